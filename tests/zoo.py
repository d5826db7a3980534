"""Every pair of model and guide, and every objective: a row each, crossed by the tests.

A new model, guide or objective adds a row here; `test_zoo.py` fails, by name, until it does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.optim import Adam

from ppvae import SVI
from ppvae.divergences import Critic, mmd, mmd_gaussian
from ppvae.guides import (
    Categorical,
    Epanechnikov,
    Exact,
    Flow,
    FullRank,
    GaussianMixture,
    IterativePoisson,
    Laplace,
    Normal,
    Poisson,
)
from ppvae.models import VAE, LinearGaussian, PoissonVAE
from ppvae.networks import MLP, ConvDecoder, ConvEncoder
from ppvae.objectives import (
    IWELBO,
    BetaELBO,
    InfoELBO,
    LinearELBO,
    MixtureELBO,
    PenalizedELBO,
    ReconstructionCritic,
    warmup,
)
from ppvae.weights import latent_sites


@dataclass(frozen=True)
class Pair:
    """A model, a guide and a batch that fit together, and what they can do."""

    name: str
    model: Callable
    guide: Callable  # of no arguments, or of the model where `given`
    batch: torch.Tensor
    given: bool = False  # the guide receives the model
    latent: str = "z"  # the site the diagnostics look at
    density: bool = True  # the guide's draws have weights
    unmarked: bool = True  # no site says that it has none
    pathwise: bool = True  # every latent has pathwise gradients
    linear: bool = False  # a linear decoder, a Normal likelihood, a factorized guide
    relaxed: bool = False  # in training only: evaluation makes exact, discrete draws
    apart: bool = True  # the guide reads no parameter of the model
    marginal: bool = True  # its density is known at given draws
    steady: bool = True  # the guide has no dropout: run twice, it is the same
    factorized: bool = False  # guide and prior factorize, and their KL is registered
    moments: bool = True  # z has a Normal prior, and a posterior with mean and variance
    gaussian: bool = False  # z has a factorized Normal prior and posterior
    least: int = 1  # the smallest batch that trains

    @property
    def pooled(self):
        """Whether a divergence of all data's z reaches the guide."""
        return self.latent == "z" and self.pathwise

    def make(self, seed=0):
        """Return a fresh model and guide."""
        pyro.set_rng_seed(seed)
        model = self.model()
        return model, self.guide(model) if self.given else self.guide()


@dataclass(frozen=True)
class Goal:
    """An objective, and what it asks of a pair."""

    name: str
    make: Callable
    needs: tuple[str, ...] = ()  # of Pair's flags
    refusal: str = ""  # what is said where they are missing
    prior: bool = True  # whether p(z) matters
    draws: bool = True  # whether it depends on them
    least: int = 1  # the smallest batch it takes

    def suits(self, pair):
        """Return whether the pair has what the objective needs."""
        return all(getattr(pair, flag) for flag in self.needs)


def train(model, guide, loss, **kwargs):
    """Return an SVI with the optimizer that most tests use."""
    return SVI(model, guide, partial(Adam, lr=1e-2), loss, **kwargs)


# Data


def _uniform(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def binary(*shape):
    """Zeros and ones."""
    return (_uniform(*shape) > 0.5).float()


def real(*shape):
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def counts(*shape):
    """Counts from 0 to 4."""
    return (5 * _uniform(*shape)).floor()


# Models


def box(width, **kwargs):
    """The prior U(-B/2, B/2) of two latents."""
    half = torch.full((2,), width / 2)
    return dist.Uniform(-half, half, **kwargs).to_event(1)


def vae(**kwargs):
    """The smallest VAE: two latents, eight data."""
    return VAE(MLP(2, 8), latent_dim=2, **kwargs)


def linear(weight=((1.0, 0.2), (0.3, -1.0), (0.5, 0.5)), scale=0.8):
    """A LinearGaussian of two correlated latents and three data."""
    weight = torch.tensor(weight)
    return LinearGaussian(weight, bias=torch.linspace(-0.2, 0.2, len(weight)), scale=scale)


class LearnedPrior(nn.Module):
    """p(z) = N(m, s^2), learned."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self):
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class Ladder(nn.Module):
    """Written by hand: z_2 ~ N(0, I), z_1 ~ N(f(z_2), I), x ~ Bernoulli(g(z_1))."""

    def __init__(self):
        super().__init__()
        self.prior, self.decoder = MLP(2, 2), MLP(2, 8)

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            zeros = batch.new_zeros(2)
            z_2 = pyro.sample("z_2", dist.Normal(zeros, zeros + 1).to_event(1))
            z_1 = pyro.sample("z_1", dist.Normal(self.prior(z_2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z_1)).to_event(1), obs=batch)


class Bits(nn.Module):
    """A discrete latent: z ~ Bernoulli(sigmoid(p))^2, x ~ Bernoulli(g(z))."""

    def __init__(self):
        super().__init__()
        self.prior, self.decoder = nn.Parameter(torch.tensor([0.3, -0.5])), MLP(2, 8)

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=batch)


# Guides


class Point(nn.Module):
    """A guide without a density: z = m(x)."""

    def __init__(self):
        super().__init__()
        self.encoder = MLP(8, 2)

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Delta(self.encoder(batch), event_dim=1))


class LadderGuide(nn.Module):
    """The ladder's guide, in the model's order: z_2 | x, then z_1 | z_2, x."""

    def __init__(self):
        super().__init__()
        self.top, self.bottom = MLP(8, 4), MLP(10, 4)

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z_2 = pyro.sample("z_2", _normal(self.top(batch)))
            x = batch.expand(*z_2.shape[:-1], -1)  # (K, N, 8) under particles
            pyro.sample("z_1", _normal(self.bottom(torch.cat([z_2, x], -1))))


def _normal(h):
    loc, log_scale = h.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


class BitsGuide(nn.Module):
    """q(z|x) = Bernoulli, without pathwise gradients."""

    def __init__(self):
        super().__init__()
        self.encoder = MLP(8, 2)

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(batch)).to_event(1))


def encoder(features=8):
    """Any guide's encoder."""
    return MLP(features, 16)


class Noisy(nn.Sequential):
    """An encoder with running means and dropout."""

    def __init__(self):
        linear = nn.Linear(8, 16, bias=False)  # a bias would drown in the batch norm
        super().__init__(linear, nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.out_features = 16


class Bare(nn.Module):
    """A critic of any data, by their mean."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(x.flatten(1).mean(1, keepdim=True))


def student(h):
    """A likelihood of our own."""
    return dist.StudentT(4.0, h, 1.0)


# The rows

GUIDES = {
    "normal": partial(Normal, latent_dim=2),
    "full-rank": partial(FullRank, latent_dim=2),
    "mixture": partial(GaussianMixture, latent_dim=2, components=3),
    "flow": partial(Flow, latent_dim=2, transforms=2, hidden_features=(8,), context_features=4),
}


def epanechnikov(variant):
    """The guide of compact support."""
    return lambda: Epanechnikov(encoder(), latent_dim=2, variant=variant)


def _row(name, guide="normal", *, model=vae, batch=None, features=8, **flags):
    batch = binary(5, 8) if batch is None else batch
    flags.setdefault("factorized", guide == "normal")
    flags.setdefault("moments", guide != "flow")
    flags.setdefault("gaussian", guide == "normal" and flags["moments"])
    return Pair(name, model, lambda: GUIDES[guide](encoder(features)), batch, **flags)


def _poisson(name, gradient="relaxed", **flags):
    return Pair(
        name,
        lambda: PoissonVAE(MLP(2, 8), latent_dim=2, log_rate=(1.0, 2.0)),
        lambda model: Poisson(encoder(), model, gradient=gradient, max_events=4096),
        batch=real(5, 8),
        given=True,
        apart=False,
        factorized=True,
        moments=False,
        linear=True,
        **flags,
    )


PAIRS = [
    *(_row(f"vae-{name}", name) for name in GUIDES),
    _row(
        "vae-normal-likelihood",
        model=partial(vae, likelihood="normal"),
        batch=real(5, 8),
        linear=True,
    ),
    _row("vae-laplace-likelihood", model=partial(vae, likelihood="laplace"), batch=real(5, 8)),
    _row("vae-poisson-likelihood", model=partial(vae, likelihood="poisson"), batch=counts(5, 8)),
    _row("vae-own-likelihood", model=partial(vae, likelihood=student), batch=real(5, 8)),
    _row("vae-learned-prior", model=lambda: vae(prior=LearnedPrior())),
    _row(
        "vae-laplace-prior",
        model=lambda: vae(prior=dist.Laplace(torch.zeros(2), 1.0).to_event(1)),
        moments=False,
    ),
    Pair(
        "vae-convolutions",
        lambda: VAE(ConvDecoder(2, (1, 8, 8), channels=(4, 4)), latent_dim=2),
        lambda: Normal(ConvEncoder((1, 8, 8), 16, channels=(4, 4)), latent_dim=2),
        batch=binary(5, 1, 8, 8),
        factorized=True,
        gaussian=True,
    ),
    Pair(
        "vae-batch-norm-dropout",
        vae,
        lambda: Normal(Noisy(), latent_dim=2, activation=nn.Identity()),
        batch=binary(5, 8),
        steady=False,
        factorized=True,
        gaussian=True,
        least=2,
    ),
    *(_row(f"linear-{n}", n, model=linear, batch=real(5, 3), features=3) for n in GUIDES),
    Pair("linear-exact", linear, Exact, batch=real(5, 3), given=True),
    Pair("vae-point", vae, Point, batch=binary(5, 8), density=False, moments=False),
    Pair(
        "vae-laplace",
        lambda: vae(prior=dist.Laplace(torch.zeros(2), 1.0).to_event(1)),
        lambda: Laplace(encoder(), latent_dim=2),
        batch=binary(5, 8),
        factorized=True,
        moments=False,
    ),
    Pair(
        "vae-categorical",
        lambda: vae(prior=dist.OneHotCategorical(logits=torch.zeros(2), validate_args=False)),
        lambda: Categorical(encoder(), latent_dim=2),
        batch=binary(5, 8),
        unmarked=False,
        relaxed=True,
        moments=False,
    ),
    _poisson("poisson", unmarked=False, relaxed=True),
    _poisson("poisson-straight-through", gradient="straight-through", relaxed=True),
    _poisson("poisson-score", gradient="score", pathwise=False),
    Pair(
        "poisson-iterative",
        lambda: PoissonVAE(MLP(2, 8), latent_dim=2, log_rate=(0.0, 1.0)),
        lambda model: IterativePoisson(model, steps=2, step_size=0.1, max_events=4096),
        batch=real(5, 8),
        given=True,
        apart=False,
        unmarked=False,
        marginal=False,
        factorized=True,
        moments=False,
        linear=True,
        relaxed=True,
    ),
    Pair("vae-epanechnikov", vae, epanechnikov("normal"), batch=binary(5, 8), factorized=True),
    Pair(
        "vae-epanechnikov-box",
        lambda: vae(prior=box(12**0.5)),
        epanechnikov("box"),
        batch=binary(5, 8),
        factorized=True,
        moments=False,
    ),
    Pair("vae-epanechnikov-smooth", vae, epanechnikov("smooth"), batch=binary(5, 8)),
    Pair(
        "vae-epanechnikov-paper",
        vae,
        epanechnikov("paper"),
        batch=binary(5, 8),
        density=False,
        unmarked=False,
        moments=False,
    ),
    Pair(
        "ladder",
        Ladder,
        LadderGuide,
        batch=binary(5, 8),
        latent="z_1",
        factorized=True,
        moments=False,
    ),
    Pair(
        "bits",
        Bits,
        BitsGuide,
        batch=binary(5, 8),
        pathwise=False,
        factorized=True,
        moments=False,
    ),
]


def squared(model_trace, guide_trace):
    """A penalty that any pair can bear."""
    values = [site["value"] for site in latent_sites(guide_trace).values()]
    return 0.1 * sum(value.square().mean() for value in values)


def particles(count, elbo=Trace_ELBO):
    """A Pyro ELBO whose draws are those of ours: it does not rerun the pair to count plates."""
    return elbo(num_particles=count, vectorize_particles=True, max_plate_nesting=1)


_WEIGHED = ("unmarked",)
_MOMENTS = ("moments",)
_REFUSE_MOMENTS = "factorized Normals|no mean and variance|no site 'z'|no importance weights"
_POOLED = ("pooled",)
_REFUSE_POOLED = "no latent 'z'|no pathwise gradients"
_TWICE = ("pathwise", "apart", "steady", "unmarked")
_REFUSE_TWICE = "pathwise gradients|reads log_rate|dropout|no importance weights"

GOALS = [
    Goal("elbo", Trace_ELBO),
    Goal("mean-field", TraceMeanField_ELBO, ("pathwise",), "reparam"),
    Goal("particles", lambda: particles(3)),
    Goal("beta-4", lambda: BetaELBO(beta=4.0)),
    Goal("beta-0", lambda: BetaELBO(beta=0.0), prior=False),
    Goal("free-bits", lambda: BetaELBO(free_bits=1e-4), ("factorized",), "dependent|no KL"),
    Goal("warm-up", lambda: BetaELBO(beta=warmup(4, start=0.5), num_particles=3)),
    Goal("iwae", lambda: IWELBO(4), _WEIGHED, "no importance weights"),
    Goal("dreg", lambda: IWELBO(4, estimator="dreg"), _TWICE, _REFUSE_TWICE),
    Goal("stl", lambda: IWELBO(4, estimator="stl"), _TWICE, _REFUSE_TWICE),
    Goal(
        "renyi",
        lambda: RenyiELBO(alpha=0.5, num_particles=4),
        _WEIGHED,
        "no importance weights",
    ),
    Goal("renyi-of-ours", lambda: IWELBO(4, alpha=0.5), _WEIGHED, "no importance weights"),
    Goal("penalized", lambda: PenalizedELBO(beta=2.0, squared=squared)),
    Goal(
        "linear",
        LinearELBO,
        ("linear",),
        "needs a linear decoder|needs a Normal likelihood|independent coordinates",
        draws=False,
    ),
    Goal("gamix", MixtureELBO, _MOMENTS, _REFUSE_MOMENTS),
    Goal(
        "gamix-means",
        lambda: MixtureELBO(moments="means", num_particles=3),
        _MOMENTS,
        _REFUSE_MOMENTS,
        least=2,
    ),
    Goal(
        "gamix-mixture",
        lambda: MixtureELBO(moments="mixture", num_particles=3),
        _MOMENTS,
        _REFUSE_MOMENTS,
    ),
    Goal("info", lambda: InfoELBO(alpha=0.5, lam=2.0), _POOLED, _REFUSE_POOLED, least=2),
    Goal(
        "mmd-vae",
        lambda: InfoELBO(1.0, 10.0, partial(mmd, kernel="imq", estimator="v"), num_particles=3),
        _POOLED,
        _REFUSE_POOLED,
    ),
    Goal(
        "mmd-gaussian",
        lambda: InfoELBO(lam=5.0, divergence=mmd_gaussian),
        ("gaussian",),
        f"factorized Normals|{_REFUSE_POOLED}",
    ),
    Goal("aae", lambda: InfoELBO(1.0, 1.0, Critic(MLP(2, 8, 1))), _POOLED, _REFUSE_POOLED),
    Goal("critic", lambda: PenalizedELBO(critic=ReconstructionCritic(Bare()))),
]


def named(rows):
    """Return rows as pytest's parameters, by name."""
    import pytest

    return [pytest.param(row, id=row.name) for row in rows]


def crossed(*, suits=True):
    """Return pairs and objectives as pytest's parameters: those that suit, or that do not."""
    import pytest

    return [
        pytest.param(pair, goal, id=f"{pair.name}-{goal.name}")
        for pair in PAIRS
        for goal in GOALS
        if goal.suits(pair) is suits
    ]
