"""Exact before plausible: bounds, evidence and posteriors against what is known in closed form."""

import copy
import math
from functools import partial

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence
from torch.optim import Adam
from zoo import GUIDES, linear, particles, real, vae

from ppvae import SVI, likelihoods, log_weights
from ppvae.diagnostics import evidence, kl_per_dimension
from ppvae.distributions import MixtureOfDiagNormals
from ppvae.guides import Exact, FullRank, GaussianMixture, Normal
from ppvae.guides.full_rank import full_rank
from ppvae.models import LinearGaussian, Multimodal
from ppvae.networks import MLP
from ppvae.objectives import IWELBO, BetaELBO, PenalizedELBO
from ppvae.weights import pairwise_log_density

DATA = real(4, 3)


class Wide(nn.Module):
    """The exact posterior with its covariance times 2: weights of finite variance, and bounded."""

    def __init__(self, model):
        super().__init__()
        self._model = (model,)

    def forward(self, batch):
        p = self._model[0].posterior(batch)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(p.mean, 2 * p.covariance_matrix))


def grid(limit, steps):
    """Return the points of a square grid, (steps^2, 2), and the log area of a cell."""
    axis = torch.linspace(-limit, limit, steps, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), 2 * (axis[1] - axis[0]).log()


def log_joint(model, batch, z):
    """Return ln p(x, z) of one datum at many latents, (len(z),)."""
    conditioned = poutine.condition(model, data={"z": z})
    trace = poutine.trace(conditioned).get_trace(batch.expand(len(z), -1))
    trace.compute_log_prob()
    return trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]


# The yardstick itself


def test_the_yardstick_agrees_with_quadrature():
    """Evidence, posterior mean and covariance, on a grid of 401^2 latents."""
    model, x = linear().double(), DATA.double()[:1]
    z, cell = grid(6.0, 401)
    log_p = log_joint(model, x, z)
    torch.testing.assert_close(
        log_p.logsumexp(0) + cell, model.log_evidence(x)[0], rtol=0, atol=1e-9
    )
    weights = log_p.softmax(0)
    mean, posterior = weights @ z, model.posterior(x)
    torch.testing.assert_close(mean, posterior.mean[0], rtol=0, atol=1e-9)
    covariance = (weights * (z - mean).T) @ (z - mean)
    torch.testing.assert_close(covariance, posterior.covariance_matrix[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("features", "latents"), [(1, 1), (2, 4), (5, 3)])
def test_the_yardstick_agrees_with_the_joint_gaussian(features, latents):
    """Conditioning the joint of (z, x) by the textbook formula, wide and narrow."""
    weight = torch.randn(features, latents, dtype=torch.float64)
    bias = torch.randn(features, dtype=torch.float64)
    model, x = LinearGaussian(weight, bias, 0.7), torch.randn(3, features, dtype=torch.float64)
    marginal = weight @ weight.T + 0.49 * torch.eye(features, dtype=torch.float64)
    gain = weight.T @ marginal.inverse()
    covariance = torch.eye(latents, dtype=torch.float64) - gain @ weight
    posterior = model.posterior(x)
    torch.testing.assert_close(posterior.mean, (x - bias) @ gain.T)
    torch.testing.assert_close(posterior.covariance_matrix, covariance.expand(3, -1, -1))
    expected = dist.MultivariateNormal(bias, marginal).log_prob(x)
    torch.testing.assert_close(model.log_evidence(x), expected)


# Bounds

BOUNDS = {
    "elbo": Trace_ELBO,
    "mean-field": TraceMeanField_ELBO,
    "beta": BetaELBO,
    "penalized": lambda: PenalizedELBO(zero=lambda *_: torch.zeros(())),
    "renyi-8": partial(RenyiELBO, alpha=0.5, num_particles=8),
    "iwae-2": partial(IWELBO, 2),
    "iwae-8": partial(IWELBO, 8),
    "dreg-8": partial(IWELBO, 8, estimator="dreg"),
    "stl-8": partial(IWELBO, 8, estimator="stl"),
}
BELOW = [  # of each two, the first is the looser bound
    *(("elbo", "renyi-8"), ("renyi-8", "iwae-8"), ("elbo", "iwae-2"), ("iwae-2", "iwae-8")),
    *((name, "evidence") for name in BOUNDS),
]
SAME = [("elbo", "mean-field"), ("elbo", "beta"), ("elbo", "penalized")]
SAME += [("iwae-8", "dreg-8"), ("iwae-8", "stl-8")]


def bound(model, guide, loss):
    """Return a bound's mean in nats per datum and its standard error, by 60 x 40 repetitions."""
    svi = SVI(model, guide, partial(Adam, lr=0.0), loss)
    repeated = DATA.repeat(40, 1)
    values = torch.stack([-svi.evaluate(repeated) for _ in range(60)]).double()
    return float(values.mean()), float(values.std() / math.sqrt(60))


@pytest.mark.parametrize("guide", [*GUIDES, "wide"])
def test_no_bound_exceeds_the_next(guide):
    """ELBO <= Renyi <= IWELBO_K <= ln p(x), strictly here, and equal where they are one bound."""
    model = linear()
    guide = Wide(model) if guide == "wide" else GUIDES[guide](MLP(3, 16))
    means = {name: bound(model, guide, make()) for name, make in BOUNDS.items()}
    means["evidence"] = model.log_evidence(DATA).mean().item(), 0.0

    def deviation(low, high):
        """By how many standard errors the second lies above the first."""
        (a, s), (b, t) = means[low], means[high]
        return (b - a) / math.hypot(s, t)

    assert {pair: d for pair in BELOW if (d := deviation(*pair)) < 4} == {}
    assert {pair: d for pair in SAME if abs(d := deviation(*pair)) > 4} == {}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_bound_is_tight_at_the_exact_posterior(name, dtype):
    """To 1e-5, with one draw: every log weight equals ln p(x)."""
    model = linear().to(dtype)
    svi = SVI(model, Exact(model), partial(Adam, lr=0.0), BOUNDS[name]())
    loss = svi.evaluate(DATA.to(dtype))
    exact = model.log_evidence(DATA.to(dtype)).mean()
    assert (loss + exact).item() == pytest.approx(0, abs=1e-5)


def test_the_exact_guide_moves_the_model_up_the_evidence():
    """One gradient of the ELBO, averaged over draws, is that of ln p(x)."""
    model, x = linear().double(), DATA.double()
    svi = SVI(model, Exact(model), partial(torch.optim.SGD, lr=0.0), particles(20_000))
    svi.step(x)
    estimated = {name: p.grad.clone() for name, p in model.named_parameters()}
    exact = torch.autograd.grad(-model.log_evidence(x).mean(), list(model.parameters()))
    for (name, estimate), gradient in zip(estimated.items(), exact, strict=True):
        torch.testing.assert_close(estimate, gradient, rtol=0, atol=0.03, msg=name)


def test_the_exact_guide_has_nothing_to_learn():
    """No parameters, and no path to the model's; a model without a posterior is refused."""
    guide = Exact(linear())
    assert list(guide.parameters()) == []
    assert not poutine.trace(guide).get_trace(DATA).nodes["z"]["value"].requires_grad
    with pytest.raises(TypeError, match=r"a method posterior\(batch\), which VAE has not"):
        Exact(vae())


# Evidence by importance weights


def test_the_estimated_evidence_lies_within_its_error():
    """Over 400 repetitions: within 3 standard errors as often as a normal number is."""
    model = linear().double()
    x = DATA.double()[:1].expand(400, -1)
    estimate = evidence(log_weights(model, Wide(model), x, 1000))
    scores = (estimate.log_evidence - model.log_evidence(x)) / estimate.standard_error
    scores = scores.detach()
    assert (scores.abs() < 3).double().mean() > 0.985
    assert 0.88 < scores.std() < 1.12
    assert scores.mean().abs() < 0.2


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_the_mean_evidence_and_its_error(dim):
    """The mean over data is within 3 of its own, smaller standard errors."""
    weight = torch.randn(10, dim, dtype=torch.float64)
    model, x = LinearGaussian(weight), torch.randn(50, 10, dtype=torch.float64)
    estimate = evidence(log_weights(model, Wide(model), x, 2000))
    error = estimate.mean - model.log_evidence(x).mean().item()
    assert abs(error) < 3 * estimate.mean_standard_error
    assert estimate.mean_standard_error < float(estimate.standard_error.mean())


# What training reaches

ORTHOGONAL = ((1.0, 0.5), (1.0, -0.5), (0.0, 0.0))  # a diagonal posterior
ALIKE = ((1.0, 0.8), (0.8, 1.0), (0.5, 0.5))  # a correlated one


def mean_field_gap(model):
    """Return KL(q || p) of the best factorized Normal q: its precisions are p's diagonal."""
    precision = model.posterior(DATA.double()).precision_matrix[0]
    return 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()


@pytest.mark.parametrize(
    ("make", "weight", "factorized"),
    [(Normal, ORTHOGONAL, False), (Normal, ALIKE, True), (FullRank, ALIKE, False)],
    ids=["normal-diagonal", "normal-correlated", "full-rank-correlated"],
)
def test_training_reaches_what_the_guide_can(make, weight, factorized):
    """The evidence within 0.01 nats, or the known mean-field gap if factors meet correlations."""
    model = linear(weight, scale=0.5).double().requires_grad_(False)
    guide = make(MLP(3, 8), latent_dim=2, activation=nn.Identity()).double()
    x = torch.randn(256, 3, dtype=torch.float64)
    svi = SVI(model, guide, partial(Adam, lr=0.03), TraceMeanField_ELBO(), scheduler=decay)
    for _ in range(400):
        svi.step(x)
        svi.scheduler.step()
    gap = mean_field_gap(model)
    assert gap > 0.3 or weight is ORTHOGONAL and gap < 1e-9
    shortfall = model.log_evidence(x).mean() - log_weights(model, guide, x, 200).mean()
    assert shortfall.item() == pytest.approx(gap if factorized else 0.0, abs=0.01)
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    scale = q.stddev.diag_embed() if make is Normal else q.scale_tril
    kl = kl_divergence(dist.MultivariateNormal(q.mean, scale_tril=scale), model.posterior(x))
    assert kl.mean().item() == pytest.approx(gap if factorized else 0.0, abs=0.01)


def test_a_full_rank_guide_knows_its_own_draws_however_narrow():
    """Twelve latents, L of small diagonal: solving for the noise in float32 would lose it all."""
    guide = FullRank(MLP(3, 8), latent_dim=12)
    with torch.no_grad():
        guide.head.weight.zero_()
        guide.head.bias.copy_(
            torch.cat([torch.zeros(12), torch.full((12,), -5.0), torch.ones(66)])
        )
    site = poutine.trace(guide).get_trace(torch.zeros(20000, 3)).nodes["z"]
    q, z = site["fn"], site["value"]
    entropy = 6 * (1 + math.log(2 * math.pi)) + q.scale_tril[0].diagonal().log().sum().item()
    assert -q.log_prob(z).mean().item() == pytest.approx(entropy, abs=4 * (6 / 20000) ** 0.5)
    exact = dist.MultivariateNormal(torch.zeros(2), scale_tril=torch.tensor([[1.0, 0], [3, 0.5]]))
    ours = type(q)(exact.loc, scale_tril=exact.scale_tril)
    draws = ours.rsample((100,))
    for values in (draws, draws.clone()):  # its own, and given ones
        assert torch.allclose(ours.log_prob(values), exact.log_prob(values), atol=1e-4)


def test_a_full_rank_guide_scores_what_it_has_drawn_without_a_path():
    """At a fixed draw the score is the density's, as of Pyro's distribution; at a path none."""
    h = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    for draw in ("sample", "rsample"):
        grads = []
        for again in (False, True):
            pyro.set_rng_seed(0)
            q = full_rank(h, 2, 1e-4)
            z = getattr(q, draw)()
            scored = dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril) if again else q
            grads += torch.autograd.grad(scored.log_prob(z).sum(), h)
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)
        assert (grads[0][:, :2].abs().max() > 0) == (draw == "sample")  # of the mean


def decay(optimizer):
    """A learning rate that falls by a factor of 100 over 400 steps."""
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / 400))


# Several modes


class Folded(nn.Module):
    """z ~ N(0, I_2), x_j ~ N(|z_j|, 0.1^2): at x = (1.5, 1.5) four modes, each at +-1.485149."""

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(batch.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.abs(), 0.1).to_event(1), obs=batch)


FOLDED = torch.full((1, 2), 1.5, dtype=torch.float64)
EVIDENCE = 2 * -1.344628


def fitted(components):
    """Return a fitted guide of so many components, that start apart, narrow and equally heavy.

    Where components lie more than some six standard deviations apart, the pathwise gradient of
    their weights has a variance without bound: they can hardly be learned there, only kept.
    """
    make = Normal if components == 1 else partial(GaussianMixture, components=components)
    guide = make(MLP(2, 4), latent_dim=2).double()
    corners = torch.tensor([[1, 1], [-1, -1], [1, -1], [-1, 1]]).double()[:components]
    with torch.no_grad():
        guide.head.weight.zero_()
        guide.head.bias.zero_()
        guide.head.bias[: 2 * components] = corners.flatten()
        guide.head.bias[2 * components : 4 * components] = -2.0
    svi = SVI(Folded(), guide, partial(Adam, lr=0.01), Trace_ELBO(), scheduler=decay)
    for _ in range(400):
        svi.step(FOLDED.expand(64, -1))
        svi.scheduler.step()
    return guide


def test_a_mixture_finds_the_modes_that_a_normal_misses():
    """KL to the posterior by quadrature: ln(4 / K) for K components, each mode a component's."""
    z, cell = grid(2.5, 501)
    log_p = log_joint(Folded(), FOLDED, z) - EVIDENCE
    assert (log_p.logsumexp(0) + cell).item() == pytest.approx(0, abs=1e-5)
    quadrant = 2 * (z[:, 0] > 0) + (z[:, 1] > 0)
    rows = {}
    for components in (1, 2, 4):
        q = poutine.trace(fitted(components)).get_trace(FOLDED).nodes["z"]["fn"]
        log_q = q.log_prob(z).detach()
        mass = (log_q + cell).exp()
        modes = sum(bool(mass[quadrant == each].sum() > 0.1) for each in range(4))
        kl = float((mass * (log_q - log_p)).sum())
        rows[components] = {"kl": kl, "best": math.log(4 / components), "modes": modes}
    table = pd.DataFrame(rows).T
    print(table)
    assert table["modes"].tolist() == [1, 2, 4]
    assert table["kl"].tolist() == pytest.approx(table["best"].tolist(), abs=0.06)


class HalfFolded(nn.Module):
    """z ~ N(0, I_2), x ~ N((|z_1|, z_2), 0.5^2): at x = (1.5, 1.5) two modes, z_1 > 0 and < 0."""

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(batch.new_zeros(2), 1.0).to_event(1))
            mean = torch.stack([z[..., 0].abs(), z[..., 1]], -1)
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=batch)


def test_a_mixture_finds_both_modes_from_its_own_start():
    """KL by quadrature, five seeds, any initial values: a Normal keeps to one mode, or worse."""
    model, (z, cell) = HalfFolded(), grid(5.0, 401)
    log_p = log_joint(model, FOLDED, z)
    log_p = log_p - (log_p.logsumexp(0) + cell)
    rows = []
    for name, make in {
        "Normal": Normal,
        "GaussianMixture": partial(GaussianMixture, components=2),
    }.items():
        for seed in range(5):
            pyro.set_rng_seed(seed)
            guide = make(MLP(2, 4), latent_dim=2).double()
            slower = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.993)
            svi = SVI(model, guide, partial(Adam, lr=0.02), Trace_ELBO(), scheduler=slower)
            for _ in range(600):
                svi.step(FOLDED.expand(64, -1))
                svi.scheduler.step()
            log_q = poutine.trace(guide).get_trace(FOLDED).nodes["z"]["fn"].log_prob(z).detach()
            mass = (log_q + cell).exp()
            modes = sum(bool(mass[side].sum() > 0.3) for side in (z[:, 0] > 0, z[:, 0] < 0))
            rows.append(
                {"guide": name, "kl": float((mass * (log_q - log_p)).sum()), "modes": modes}
            )
    table = pd.DataFrame(rows).groupby("guide").agg(["min", "max"])
    print(table)
    assert (table.loc["GaussianMixture", "modes"] == 2).all()
    assert table.loc["GaussianMixture", ("kl", "max")] < 0.02
    assert table.loc["Normal", ("kl", "min")] > 0.5


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_the_gradient_of_a_mixture_agrees_with_quadrature(dim, spread):
    """Of E[f(z)], to means, scales and weights: Pyro's own is biased in the weights."""
    axis = torch.linspace(-9, 9, 601, dtype=torch.float64)
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    locs = spread * torch.tensor([[0.3, -0.2], [-0.4, 0.5], [0.1, 0.2]]).double()[:, :dim]
    scales = torch.tensor([[0.7, 0.5], [0.5, 0.9], [0.9, 0.6]]).double()[:, :dim]
    leaves = [t.requires_grad_() for t in (locs, scales, torch.tensor([0.1, -0.3, 0.2]).double())]

    def f(z):
        return (1.3 * z[..., 0]).tanh() + (z[..., 0] * z[..., -1]).sin()

    density = MixtureOfDiagNormals(*leaves).log_prob(points).exp() * (axis[1] - axis[0]) ** dim
    exact = torch.autograd.grad((density * f(points)).sum(), leaves)
    copies = [t.detach().expand(100_000, *t.shape).clone().requires_grad_() for t in leaves]
    sampled = torch.autograd.grad(f(MixtureOfDiagNormals(*copies).rsample()).sum(), copies)
    for gradient, draws in zip(exact, sampled, strict=True):
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - gradient) / error).abs().max() < 4


def test_a_mixture_needs_two_components():
    """One would leave the weights without a gradient; one dimension is enough."""
    with pytest.raises(ValueError, match="needs components >= 2, but got 1: use Normal"):
        GaussianMixture(MLP(3, 4), latent_dim=2, components=1)
    guide = GaussianMixture(MLP(3, 4), latent_dim=1, components=2)
    assert poutine.trace(guide).get_trace(DATA).nodes["z"]["value"].shape == (4, 1)


def test_equal_components_are_one_normal():
    """Density and draws, with sample and batch shapes."""
    normal = dist.Normal(torch.full((2,), 0.5), 2.0).to_event(1)
    mixture = MixtureOfDiagNormals(
        torch.full((5, 3, 2), 0.5), torch.full((5, 3, 2), 2.0), torch.rand(5, 3)
    )
    z = mixture.expand((4, 5)).rsample((1000,))
    assert z.shape == (1000, 4, 5, 2)
    torch.testing.assert_close(mixture.log_prob(z), normal.log_prob(z), rtol=1e-5, atol=1e-5)
    assert z.mean().item() == pytest.approx(0.5, abs=0.05)
    assert z.std().item() == pytest.approx(2.0, abs=0.05)


# Divergences


@pytest.mark.parametrize("guide", GUIDES)
def test_the_kl_is_what_draws_say(guide):
    """Closed forms against Monte Carlo, for the sum over dimensions where there is one."""
    model, guide = linear(), GUIDES[guide](MLP(3, 16))
    svi = SVI(model, guide, partial(Adam, lr=0.0), BetaELBO(num_particles=5000))
    svi.evaluate(DATA)
    closed = float(svi.loss.record["kl"])
    by_draws = SVI(
        model, guide, partial(Adam, lr=0.0), BetaELBO(num_particles=5000, analytic=False)
    )
    by_draws.evaluate(DATA)
    assert closed == pytest.approx(float(by_draws.loss.record["kl"]), abs=0.05)
    per_dimension = kl_per_dimension(model, guide, DATA, num_particles=20_000)
    assert float(per_dimension.sum()) <= closed + 0.05


# Densities


@pytest.mark.parametrize("name", GUIDES)
def test_a_guides_density_integrates_to_one(name):
    """By quadrature, for every datum, far from where training starts."""
    guide = GUIDES[name](MLP(3, 4), latent_dim=2).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    z, cell = grid(14.0, 701)
    log_q = pairwise_log_density(guide, DATA.double(), {"z": z})
    torch.testing.assert_close(
        log_q.logsumexp(0) + cell, torch.zeros(len(DATA)).double(), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", GUIDES)
def test_a_guides_density_is_the_same_at_draws_of_its_own(name):
    """A flow keeps the density of what it draws; at the same point given, it must invert."""
    guide = GUIDES[name](MLP(3, 4), latent_dim=2).double()
    trace = poutine.trace(guide).get_trace(DATA.double())
    trace.compute_log_prob()
    given = pairwise_log_density(guide, DATA.double(), {"z": trace.nodes["z"]["value"].detach()})
    torch.testing.assert_close(given.diagonal(), trace.nodes["z"]["log_prob"].detach())


SHARP = [1e-2, 1e-3]


@pytest.mark.parametrize("scale", SHARP)
def test_a_sharp_linear_model_is_exact_in_single_precision(scale):
    """Evidence and posterior as in double precision, up to the rounding of their own digits."""
    weight = torch.randn(20, 5)
    x = torch.randn(30, 5) @ weight.T + scale * torch.randn(30, 20)
    single = LinearGaussian(weight, scale=scale)
    double = copy.deepcopy(single).double()
    found, exact = single.log_evidence(x), double.log_evidence(x.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=2e-7, atol=1e-6)
    q, p = single.posterior(x), double.posterior(x.double())
    assert q.mean.dtype == torch.float32
    assert kl_divergence(_doubled(q), p).max() < 1e-5
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in single.parameters())


@pytest.mark.parametrize("scale", SHARP)
def test_sharp_linear_modalities_are_exact_in_single_precision(scale):
    """Likewise, whatever is missing."""
    decoders = {name: nn.Linear(3, size) for name, size in (("a", 10), ("b", 15))}
    single = Multimodal(decoders, 3, dict.fromkeys(decoders, likelihoods.Normal(scale)))
    with torch.no_grad():
        z = torch.randn(30, 3)
        batch = {n: d(z) + scale * torch.randn(30, len(d.bias)) for n, d in decoders.items()}
    batch["a"][:10] = torch.nan
    double = copy.deepcopy(single).double()
    twice = {name: x.double() for name, x in batch.items()}
    found, exact = single.log_evidence(batch), double.log_evidence(twice)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=2e-7, atol=1e-5)


def _doubled(q):
    return dist.MultivariateNormal(q.loc.double(), scale_tril=q.scale_tril.double())
