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
from ppvae.aggregation import MoE, MoPoE, PoE, SelfAttention, SumPooling
from ppvae.distributions import MoEPrior, VariationalMoEPrior
from ppvae.divergences import Critic, mmd, mmd_gaussian
from ppvae.guides import (
    Categorical,
    Epanechnikov,
    Exact,
    Flow,
    FullRank,
    GaussianMixture,
    IterativePoisson,
    Langevin,
    Laplace,
    Normal,
    Poisson,
)
from ppvae.guides import ModalLatents as ModalGuide
from ppvae.guides import Multimodal as MultimodalGuide
from ppvae.models import VAE, LinearGaussian, ModalLatents, Multimodal, PoissonVAE, Sentence
from ppvae.networks import MLP, ConvDecoder, ConvEncoder, RecurrentDecoder, RecurrentEncoder
from ppvae.objectives import (
    IWELBO,
    BetaELBO,
    InfoELBO,
    LinearELBO,
    MaskedELBO,
    MixtureELBO,
    PenalizedELBO,
    ReconstructionCritic,
    mvae_subsets,
    warmup,
)
from ppvae.priors import NormalMixture
from ppvae.weights import latent_sites


@dataclass(frozen=True)
class Pair:
    """A model, a guide and a batch that fit together, and what they can do."""

    name: str
    model: Callable
    guide: Callable  # of no arguments, or of the model where `given`
    batch: torch.Tensor | dict
    given: bool = False  # the guide receives the model
    latent: str = "z"  # the site the diagnostics look at
    density: bool = True  # the guide's draws have weights
    unmarked: bool = True  # no site says that it has none
    pathwise: bool = True  # every latent has pathwise gradients
    linear: bool = False  # a linear decoder, a Normal likelihood, a factorized guide
    relaxed: bool = False  # in training only: evaluation makes exact, discrete draws
    apart: bool = True  # the guide reads no parameter of the model
    marginal: bool = True  # its density is known at given draws
    fixed: bool = True  # its supports end where no parameter moves them
    steady: bool = True  # the guide has no dropout, no chain: run twice, it is the same
    factorized: bool = False  # guide and prior factorize, and their KL is registered
    moments: bool = True  # z has a Normal prior, and a posterior with mean and variance
    gaussian: bool = False  # z has a factorized Normal prior and posterior
    least: int = 1  # the smallest batch that trains
    coordinates: bool = True  # those of the prior are independent
    subsets: bool = False  # the guide takes any subset of the modalities
    private: bool = False  # it has other latents besides z

    @property
    def alone(self):
        """Whether z is all that there is to regularize."""
        return not self.private

    @property
    def single(self):
        """Whether there is but one site x."""
        return not isinstance(self.batch, dict)

    @property
    def numbers(self):
        """Whether that holds numbers, which have a mean, and not names."""
        return self.single and self.batch.is_floating_point()

    @property
    def pooled(self):
        """Whether a divergence of all data's z reaches the guide."""
        return self.latent == "z" and self.pathwise

    def make(self, seed=0):
        """Return a fresh model and guide."""
        pyro.set_rng_seed(seed)
        model = self.model()
        return model, self.guide(model) if self.given else self.guide()

    def make_guide(self, model, seed):
        """Return another guide of a model."""
        pyro.set_rng_seed(seed)
        return self.guide(model) if self.given else self.guide()


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


def sentences():
    """Tokens of five sentences, that use all of six words."""
    rows = ([3, 4, 5, 1], [6, 1, 0, 0], [3, 2, 1, 0], [5, 5, 4, 1], [2, 6, 1, 0])
    return torch.tensor(rows)


def views(**rows):
    """Three modalities of five data: pixels, numbers and labels; of each, some rows missing."""
    batch = {"a": binary(5, 8), "b": real(5, 3), "c": torch.eye(4)[torch.tensor([0, 1, 2, 3, 0])]}
    for name, missing in (rows or {"a": [1, 4], "b": [2, 4], "c": [1, 3]}).items():
        batch[name][missing] = torch.nan
    return batch


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


def multimodal(private_dim=0, **kwargs):
    """A model of the three modalities of `views`."""
    decoders = {name: MLP(2 + private_dim, size) for name, size in VIEWS.items()}
    likelihoods = {"a": "bernoulli", "b": "normal", "c": "one_hot"}
    return Multimodal(decoders, 2, likelihoods, private_dim=private_dim, **kwargs)


def linear_multimodal():
    """The same sizes, linear and Normal: its posterior is known."""
    return Multimodal({name: nn.Linear(2, size) for name, size in VIEWS.items()}, 2)


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


def multimodal_guide(aggregation=PoE, **kwargs):
    """A guide of the three modalities of `views`."""
    encoders = {name: MLP(size, 16) for name, size in VIEWS.items()}
    return MultimodalGuide(encoders, aggregation(2), 2, **kwargs)


def modal_guide():
    """A guide of a latent for each modality of `views`."""
    return ModalGuide({name: MLP(size, 16) for name, size in VIEWS.items()}, 2)


def modal_latents(prior=None, alpha=0.0):
    """A model of as many, tied by their guide's mixture, or N(0, I) of old."""
    return ModalLatents(
        {name: MLP(2, size) for name, size in VIEWS.items()},
        2,
        {"a": "bernoulli", "b": "normal", "c": "one_hot"},
        modal_guide() if prior else None,
        alpha,
        prior or MoEPrior,
    )


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


AGGREGATIONS = {
    "poe": PoE,
    "moe": MoE,
    "mopoe": MoPoE,
    "sum": partial(SumPooling, width=8),
    "attention": partial(SelfAttention, width=8),
}
VIEWS = {"a": 8, "b": 3, "c": 4}


def epanechnikov(variant):
    """The guide of compact support."""
    return lambda: Epanechnikov(encoder(), latent_dim=2, variant=variant)


def _row(name, guide="normal", *, model=vae, batch=None, features=8, **flags):
    batch = binary(5, 8) if batch is None else batch
    flags.setdefault("factorized", guide == "normal")
    flags.setdefault("moments", guide != "flow")
    flags.setdefault("gaussian", guide == "normal" and flags["moments"])
    return Pair(name, model, lambda: GUIDES[guide](encoder(features)), batch, **flags)


def _langevin(name, law=None, learned_dim=None, **flags):
    kwargs = {"steps": 3, "step_size": 0.3, "density": law, "learned_dim": learned_dim}
    flags = {"given": True, "marginal": False, "steady": False, "moments": False} | flags
    return Pair(name, vae, partial(Langevin, **kwargs), batch=binary(5, 8), **flags)


def _views(name, aggregation="poe", *, model=multimodal, private_dim=0, **flags):
    normal = aggregation in ("poe", "sum", "attention")
    return Pair(
        f"multimodal-{name}",
        partial(model, private_dim=private_dim) if private_dim else model,
        partial(multimodal_guide, AGGREGATIONS[aggregation], private_dim=private_dim),
        batch=views(),
        subsets=True,
        **{"factorized": normal, "gaussian": normal, **flags},
    )


def _modal(name, prior=None, **kwargs):
    return Pair(
        f"modal-latents-{name}",
        partial(modal_latents, prior, **kwargs),
        lambda model: model._guide[0] or modal_guide(),  # the one that the prior mixes
        batch=views(),
        given=True,
        latent="z_a",
        factorized=prior is None,
        moments=False,
        coordinates=prior is None,
    )


def _heads(aggregation):
    """Mixtures of three components."""
    return Pair(
        f"multimodal-{aggregation}-of-three",
        multimodal,
        partial(multimodal_guide, partial(AGGREGATIONS[aggregation], components=3)),
        batch=views(),
        subsets=True,
    )


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
    Pair(
        "vae-epanechnikov",
        vae,
        epanechnikov("normal"),
        batch=binary(5, 8),
        factorized=True,
        fixed=False,
    ),
    Pair(
        "vae-epanechnikov-box",
        lambda: vae(prior=box(12**0.5)),
        epanechnikov("box"),
        batch=binary(5, 8),
        factorized=True,
        fixed=False,
        moments=False,
    ),
    Pair("vae-epanechnikov-smooth", vae, epanechnikov("smooth"), batch=binary(5, 8)),
    Pair(
        "vae-epanechnikov-paper",
        vae,
        epanechnikov("paper"),
        batch=binary(5, 8),
        fixed=False,
        density=False,
        unmarked=False,
        moments=False,
    ),
    _langevin("langevin", density=False, unmarked=False, marginal=True),
    _langevin(
        "langevin-step", "step", learned_dim=2, factorized=True, moments=True, gaussian=True
    ),
    _langevin("langevin-transport", "transport"),
    _langevin("langevin-bridge", "bridge"),
    *(_views(name, name) for name in AGGREGATIONS),
    _heads("poe"),
    _views("private", private_dim=2, private=True),
    _views(
        "learned-prior",
        model=lambda: multimodal(prior=NormalMixture(2, 3)),
        coordinates=False,
        factorized=False,
        moments=False,
        gaussian=False,
    ),
    _modal("independent"),
    _modal("pairwise", MoEPrior, alpha=0.2),
    _modal("variational", VariationalMoEPrior),
    Pair(
        "multimodal-exact",
        linear_multimodal,
        Exact,
        batch={n: real(5, k).where(~views()[n].isnan(), torch.nan) for n, k in VIEWS.items()},
        given=True,
        subsets=True,
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
    *(
        Pair(
            f"sentence-{cell}",
            lambda cell=cell: Sentence(RecurrentDecoder(6, 2, 4, 5, cell=cell), latent_dim=2),
            lambda cell=cell: Normal(RecurrentEncoder(6, 4, 5, cell=cell), latent_dim=2),
            batch=sentences(),
            factorized=True,
            gaussian=True,
        )
        for cell in ("lstm", "gru")
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


_WEIGHED = ("unmarked", "density")
_MOMENTS = ("moments", "alone")
_REFUSE_MOMENTS = (
    "would leave|factorized Normals|no mean and variance|no site 'z'|no importance weights"
)
_POOLED = ("pooled",)
_POOLED_ALONE = ("pooled", "alone")
_REFUSE_POOLED = "would leave|no latent 'z'|no pathwise gradients"
_TWICE = ("pathwise", "apart", "steady", "unmarked", "density", "fixed")
_REFUSE_TWICE = (
    "pathwise gradients|reads log_rate|dropout|run the guide twice|no importance weights|support"
)
_REFUSE_SUBSETS = "mapping of modalities|a latent that all modalities share"

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
        _POOLED_ALONE,
        _REFUSE_POOLED,
    ),
    Goal(
        "mmd-gaussian",
        lambda: InfoELBO(lam=5.0, divergence=mmd_gaussian),
        ("gaussian",),
        f"factorized Normals|{_REFUSE_POOLED}",
    ),
    Goal("aae", lambda: InfoELBO(1.0, 1.0, Critic(MLP(2, 8, 1))), _POOLED_ALONE, _REFUSE_POOLED),
    Goal(
        "critic",
        lambda: PenalizedELBO(critic=ReconstructionCritic(Bare())),
        ("numbers",),
        "no site 'x'|tokens are names",
    ),
    *(
        Goal(name, make, ("subsets",), _REFUSE_SUBSETS)
        for name, make in {
            "masked": MaskedELBO,
            "masked-stl": lambda: MaskedELBO("bernoulli", beta=2.0, stl=True, num_particles=3),
            "mixture-of-subsets": lambda: MaskedELBO(mvae_subsets(), "mixture", warmup(4, 0.5)),
            "mvae": lambda: MaskedELBO(mvae_subsets(), "marginal"),
        }.items()
    ),
    Goal(
        "tc",
        lambda: MaskedELBO(bound="tc"),
        ("subsets",),
        _REFUSE_SUBSETS,
        prior=False,
    ),
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
