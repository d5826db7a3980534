"""The Langevin guide in its four modes, against Gaussian posteriors and what they must refuse."""

import math
from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from test_langevin import kl, recursion, within
from torch import nn
from torch.optim import SGD, Adam
from zoo import Ladder, LadderGuide, Noisy, binary, particles, vae

from ppvae import SVI, PairError, WeightlessError, check_pair, compare, fit, log_weights
from ppvae.diagnostics import active_units, evidence, pareto_k, search_step_size
from ppvae.guides import Exact, Langevin, Normal
from ppvae.langevin import ChainError, LogJoint, langevin
from ppvae.models import VAE, LinearGaussian
from ppvae.networks import MLP
from ppvae.objectives import IWELBO, BetaELBO

X = torch.tensor([[0.3], [-1.2], [2.0]])  # the sheet's, for w = 1 and sigma^2 = .25


def sharp():
    """The model of check 7: posterior precision 5."""
    return LinearGaussian(torch.ones(1, 1), scale=0.5)


def line(w, sigma=0.5):
    """A line of slope w through 0, without a bias to learn."""
    model = LinearGaussian(torch.full((1, 1), float(w)), scale=sigma)
    model.bias.requires_grad_(False), model.log_scale.requires_grad_(False)
    return model


def draws(guide, batch, count):
    """Return z, (count, N, D)."""
    run = poutine.trace(pyro.plate("particles", count, dim=-2)(guide))
    return run.get_trace(batch).nodes["z"]["value"]


def contraction(steps, precision):
    """Return prod_k (1 - s_k^2 lam / 2), and v_K from the prior's variance."""
    c = math.prod(1 - s**2 * precision / 2 for s in steps)
    return c, recursion(steps, precision)[1]


# Moments and gradients


def test_the_moments_with_a_matrix():
    """Check 2: two correlated latents; K-step moments, not the posterior's."""
    weight = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -0.4]])
    model = LinearGaussian(weight, bias=torch.tensor([0.1, -0.2, 0.3]), scale=0.5)
    x = torch.tensor([[0.7, -1.1, 0.4]])
    model.requires_grad_(False)
    assert float(model.log_evidence(x)) == pytest.approx(-2.838952, abs=1e-5)
    precisions = torch.linalg.eigvalsh(model.posterior(x).precision_matrix[0])
    assert precisions.tolist() == pytest.approx([4.28371, 6.43629], abs=1e-4)
    assert model.posterior(x).mean[0].tolist() == pytest.approx([0.647284, -0.406569], abs=1e-5)
    z = draws(Langevin(model, 20, 0.2), x, 40_000)[:, 0]
    mean, covariance = z.mean(0), torch.cov(z.T)
    variances = torch.tensor([0.181680, 0.252654])
    assert (
        (mean - torch.tensor([0.611610, -0.366506])).abs() < 4 * (variances / 4e4).sqrt()
    ).all()
    assert ((covariance.diag() / variances - 1).abs() < 4 * math.sqrt(2 / 4e4)).all()
    error = math.sqrt(float(variances.prod()) / 4e4)
    assert float(covariance[0, 1]) == pytest.approx(0.031938, abs=4 * error)


class Subsampled(nn.Module):
    """A line of slope w, on B of N data."""

    def __init__(self, size):
        super().__init__()
        self.size, self.weight = size, nn.Parameter(torch.tensor(1.0))

    def forward(self, batch):
        with pyro.plate("data", self.size, subsample_size=len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(batch.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.weight * z, 0.5), obs=batch)


@pytest.mark.parametrize("size", [5, 50])
@pytest.mark.parametrize("density", [None, "step"])
def test_the_gradient_is_that_of_the_held_draw(size, density):
    """Check 3: autograd of -sum log p(x, z_K), to 1e-8; modes A and B have the same."""
    model, x = Subsampled(size).double(), torch.randn(5, dtype=torch.float64)
    guide = Langevin(model, 20, 0.2, density=density).double()
    pyro.set_rng_seed(3)
    z = poutine.trace(guide).get_trace(x).nodes["z"]["value"]
    log_p = dist.Normal(model.weight * z, 0.5).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z)
    (expected,) = torch.autograd.grad(-log_p.sum() * size / 5, model.weight)
    pyro.set_rng_seed(3)
    Trace_ELBO().differentiable_loss(model, guide, x).backward()
    assert float(model.weight.grad) == pytest.approx(float(expected), abs=1e-8)


def test_a_subsample_does_not_temper_the_posterior():
    """Check 4: N / B = 10, s = .2, K = 60, lam = 5: the variance of K steps at precision 5.

    Scaled by N / B it would be that of precision 50, 1 / 50 but for the steps' bias: .04.
    """
    x = torch.full((4000,), 1.25)  # m = 1
    guide = Langevin(Subsampled(40_000), 60, 0.2)
    z = poutine.trace(guide).get_trace(x).nodes["z"]["value"]
    assert float((z - 1).square().mean()) == pytest.approx(0.2105, rel=0.1)
    joint = LogJoint(Subsampled(40_000), x)
    tempered = langevin(lambda u: 10 * joint(u), joint.draw().z, [0.2] * 60).z
    assert recursion([0.2] * 60, 50.0)[1] == pytest.approx(0.04)
    assert float((tempered - 1).square().mean()) == pytest.approx(0.04, rel=0.1)


# What training by A learns

RELEASED = [0.8, 0.7, 0.6, 0.5, 0.2, 0.2, 0.1, 0.1, 0.05] + [0.05] * 11  # the text paper's steps

FIXED_POINTS = {  # check 5: by s and K
    0.1: {5: 0, 10: 0, 20: 0, 40: 1.1300, 100: 1.0928, 400: 0.9923},
    0.2: {5: 0, 10: 1.0988, 20: 1.1034, 40: 0.9948, 100: 0.9699, 400: 0.9698},
    0.3: {5: 1.1018, 20: 0.9478, 40: 0.9348, 100: 0.9347, 400: 0.9347},
    0.4: {5: 0.9760, 10: 0.9057, 20: 0.8901, 40: 0.8898, 100: 0.8898, 400: 0.8898},
}


def slope_after(w, steps, noise=1.0, total=1.25, sigma2=0.25):
    """Return the slope that maximizes E log p(x, z_K) on chains of slope w."""
    precision = 1 + w**2 / sigma2
    c, v = contraction(steps, precision)[0], recursion(steps, precision, noise=noise)[1]
    rho = w / (w**2 + sigma2)
    return (1 - c) * rho * total / (v + (1 - c) ** 2 * rho**2 * total)


def fixed_point(steps, noise=1.0):
    """Return the slope that learning on exact moments of z_K ends at, from 1; 0 for less than .01.

    By walking, since whole steps stray where the chain is near its edge.
    """
    w, direction = 1.0, math.copysign(1e-3, slope_after(1.0, steps, noise) - 1)
    while w > 0.01 and (slope_after(w, steps, noise) - w) * direction > 0:
        w += direction
    return w - direction / 2 if w > 0.01 else 0.0


def data(count, total=1.25):
    """Standard data of variance `total`, to the last digit."""
    x = torch.randn(count, 1)
    return (x - x.mean()) / x.std(correction=0) * math.sqrt(total)


def climb(model, guide, x, rounds, pace=1.0):
    """Maximize E log p(x, z_K) in closed form, round after round."""
    for _ in range(rounds):
        z = draws(guide, x, 1)[0]
        with torch.no_grad():
            best = (x * z).sum() / z.square().sum()
            model.weight.lerp_(best.reshape(1, 1), pace)
    return float(model.weight.detach())


def test_the_table_of_what_is_learned():
    """Check 5: the table is the fixed point's.

    At T = .2, .05 and 0 the formula gives 1.510, 1.512 and 4.806: the next test draws at T = .2.
    """
    for s, row in FIXED_POINTS.items():
        for count, w in row.items():
            assert fixed_point([s] * count) == pytest.approx(w, abs=2e-3), (s, count)
    for noise, w in ((1.0, 0.8680), (0.2, 1.510), (0.05, 1.512)):
        assert fixed_point(RELEASED, noise) == pytest.approx(w, abs=2e-3)
    assert fixed_point([0.2] * 20, noise=0.0) == pytest.approx(4.806, abs=3e-3)


@pytest.mark.parametrize(
    ("s", "steps", "noise", "w"),
    [
        (0.2, 20, 1.0, 1.1034),
        (0.3, 5, 1.0, 1.1018),
        (0.4, 10, 1.0, 0.9057),
        (RELEASED, 20, 1.0, 0.8680),
        (RELEASED, 20, 0.2, 1.510),
    ],
)
def test_learning_ends_where_the_table_says(s, steps, noise, w):
    """Check 5: maximum steps on draws of the guide, 4,000 data; +- .02."""
    model, x = line(1.0), data(4000)
    guide = Langevin(model, steps, s, noise=noise)
    pace = 1.0 if noise == 1 else 0.25  # the cold chain is near its edge, where a full one strays
    climb(model, guide, x, 40 if s == 0.2 or noise < 1 else 10, pace)
    found = [climb(model, guide, x, 1, pace) for _ in range(20)]
    assert sum(found) / 20 == pytest.approx(w, abs=0.02)


def test_svi_learns_what_the_table_says():
    """Check 5: s = .4, K = 20, by SVI: 200 steps of Adam on 4,000 data, where the sheet has 1,500.

    The last 50 are averaged. Exact inference would learn w = 1.
    """
    model = line(1.0)
    svi, x = SVI(model, Langevin(model, 20, 0.4), partial(Adam, lr=0.02), Trace_ELBO()), data(4000)
    path = []
    for _ in range(200):
        svi.step(x)
        path.append(float(model.weight.detach()))
    assert sum(path[-50:]) / 50 == pytest.approx(0.8901, abs=0.02)


# check 6: the least sigma^2 / S at which w = 0 is stable, K = 5 10 20 40 100
COLLAPSE = {
    0.1: (0.025, 0.049, 0.095, 0.18, 0.39),
    0.2: (0.096, 0.18, 0.33, 0.55, 0.86),
    0.3: (0.20, 0.36, 0.59, 0.82, 0.97),
    0.4: (0.33, 0.55, 0.78, 0.93, 0.96),
}


def test_the_table_of_collapse():
    """Check 6: (1 - c_1) S <= v_1 sigma^2, and the released schedule's never."""
    for s, row in COLLAPSE.items():
        for count, ratio in zip((5, 10, 20, 40, 100), row, strict=True):
            c, v = contraction([s] * count, 1.0)
            assert (1 - c) / v == pytest.approx(ratio, abs=0.006)
    for noise, ratio in ((1.0, 0.601), (0.2, 4.15), (0.05, 5.39)):
        c, v = contraction(RELEASED, 1.0)[0], recursion(RELEASED, 1.0, noise=noise)[1]
        assert (1 - c) / v == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize(("ratio", "collapses"), [(0.22, False), (0.45, True)])
def test_learning_collapses_where_the_table_says(ratio, collapses):
    """Check 6: around .33, at s = .2, K = 20, from w = .1."""
    model, x = line(0.1, sigma=math.sqrt(ratio)), data(4000, total=1.0)
    w = climb(model, Langevin(model, 20, 0.2), x, 25)
    assert abs(w) < 0.06 if collapses else w > 0.3


# Bounds


def gap(density, s, steps=20):
    """Return how far the mean of mode B or C lies below ln p(x), of the three data."""
    c, v = contraction([s] * steps, 5.0)
    means = [0.8 * float(x) for x in X]
    divergence = sum(kl(m * (1 - c), v, mode=m) for m in means)
    return divergence + 1.5 * math.log(v / s**2 if density == "step" else v / c**2)


@pytest.mark.parametrize(
    ("density", "s", "steps", "bound", "error"),
    [
        (None, 0.2, 20, -7.4434, 0.05),
        (None, 0.4, 20, -7.5212, 0.05),
        ("step", 0.2, 20, -8.0149, 0.1),
        ("step", 0.4, 20, -6.0132, 0.03),
        ("step", 0.55, 20, -5.5949, 0.02),
        ("transport", 0.1, 20, -9.8138, 0.1),
        ("transport", 0.15, 20, -7.8675, 0.06),
        ("transport", 0.3, 20, -18.3736, 0.1),
        ("bridge", 0.2, 20, -11.9677, 0.15),
        ("bridge", 0.3, 20, -9.2851, 0.12),
        ("bridge", 0.4, 20, -7.8231, 0.1),
        ("bridge", 0.3, 50, -7.4480, 0.08),
    ],
)
def test_the_bounds_of_every_mode(density, s, steps, bound, error):
    """Check 7: sums over three data, ln p(x) = -5.3035, by 20,000 draws; B, C in closed form."""
    model = sharp()
    guide = Langevin(model, steps, s, density=density)
    found = -particles(20_000).loss(model, guide, X)
    assert found == pytest.approx(bound, abs=error)
    assert float(model.log_evidence(X).sum().detach()) == pytest.approx(-5.3035, abs=1e-4)
    if density in ("step", "transport"):
        assert -5.3035 - gap(density, s) == pytest.approx(bound, abs=2e-4)


def test_a_bridge_without_tempering():
    """Check 7: all pi_k = p(z|x)."""
    guide = Langevin(sharp(), 20, 0.4, density="bridge", tempered=False)
    log_w = log_weights(sharp(), guide, X, 20_000)
    assert float(log_w.mean(0).sum()) == pytest.approx(-14.8428, abs=0.15)


@pytest.mark.parametrize(("count", "bound"), [(10, -5.441), (100, -5.328), (4000, -5.304)])
def test_the_importance_weighted_bound_of_b(count, bound):
    """Check 7: IWELBO at s = .4, by the weights of 160,000 draws; and the objective.

    The first two are those of the same chain in plain torch, 400,000 draws.
    """
    guide = Langevin(sharp(), 20, 0.4, density="step")
    log_w = log_weights(sharp(), guide, X.repeat(4, 1), 40_000)
    groups = log_w.unflatten(0, (-1, count)).logsumexp(1) - math.log(count)
    found = groups.mean(0).reshape(4, 3).sum(1).mean()
    assert float(found) == pytest.approx(bound, abs=0.02)
    if count == 100:
        losses = [IWELBO(count).loss(sharp(), guide, X.repeat(100, 1)) / 100 for _ in range(5)]
        assert -sum(losses) / 5 == pytest.approx(bound, abs=0.03)


@pytest.mark.parametrize(
    ("density", "s", "low", "high"),
    [
        ("transport", 0.1, 0.98, 1.02),
        ("transport", 0.3, 0.0, 0.1),
        ("step", 0.5, 0.99, 1.01),
        ("step", 0.3, 0.9, 1.05),
        ("step", 0.1, 0.0, 0.9),
        ("bridge", 0.3, 0.98, 1.02),
    ],
)
def test_the_weights_average_to_the_evidence(density, s, low, high):
    """Check 7: E[w] / p(x) at w = 1.5, sigma = .7, x = 1.2, with 200,000 draws for 2,000,000.

    Where the weights' tail is heavy the mean of any affordable number falls short: rare draws.
    """
    model = LinearGaussian(torch.full((1, 1), 1.5), scale=0.7)
    x = torch.full((20, 1), 1.2)
    guide = Langevin(model, 20, s, density=density)
    weights = (log_weights(model, guide, x, 10_000) - model.log_evidence(x).detach()).exp()
    assert low < float(weights.mean()) < high


class Settled(nn.Module):
    """The stationary law of the chain at s^2 lam = u, lam = 1, m = 0."""

    def __init__(self, u):
        super().__init__()
        self.register_buffer("scale", torch.tensor((1 - u / 4) ** -0.5))

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros_like(batch), self.scale).to_event(1))


def settled(u, **kwargs):
    """Return a model whose data say nothing, and mode B at stationarity."""
    model = LinearGaussian(torch.zeros(1, 1))
    return model, Langevin(model, 2, math.sqrt(u), init=Settled(u), density="step", **kwargs)


@pytest.mark.parametrize(
    ("u", "expected"), [(1.0, 0.1667), (2 * (3 - math.sqrt(5)), 0.0971), (0.09, None)]
)
def test_the_window_of_b(u, expected):
    """Check 8: its gap, 1/2 [1 / (1 - u/4) - 1 - log u], least at 1.5279."""
    formula = (1 / (1 - u / 4) - 1 - math.log(u)) / 2
    assert expected is None or formula == pytest.approx(expected, abs=5e-5)
    model, guide = settled(u)
    x = torch.zeros(10, 1)
    log_w = log_weights(model, guide, x, 40_000) - model.log_evidence(x).detach()
    assert -float(log_w.mean()) == pytest.approx(formula, abs=0.01 + 0.03 * (u < 0.5))


@pytest.mark.parametrize(
    ("u", "low", "high"), [(0.5, 0.5, 9), (1.0, -9, 0.5), (1.5, -9, 0.2), (3.2, -9, 0.5)]
)
def test_where_the_weights_of_b_can_be_trusted(u, low, high):
    """Check 8: Pareto k of 20 sets of 10,000 draws, its median."""
    model, guide = settled(u)
    k = pareto_k(log_weights(model, guide, torch.zeros(20, 1), 10_000)).k
    assert low < float(k.median()) < high


def test_what_an_uninformed_direction_costs():
    """Check 8: a decoder that ignores z, s = .3, tau = 1: .4665 nats; 0 at kappa = 0."""
    x = torch.zeros(10, 1)
    model, guide = settled(0.09, learned_dim=1)
    with torch.no_grad():
        guide.log_tau.zero_()
    log_w = log_weights(model, guide, x, 20_000) - model.log_evidence(x).detach()
    assert -float(log_w.mean()) == pytest.approx(0.4665, abs=0.01)
    with torch.no_grad():
        guide.kappa.zero_()
    log_w = log_weights(model, guide, x, 100) - model.log_evidence(x).detach()
    assert log_w.abs().max() < 1e-5


def test_b_learns_its_last_step():
    """Kappa, c and tau rise to a bound above that of tau = s; mu carries no gradient."""
    model, x = sharp().requires_grad_(False), X.repeat(30, 1)
    guide = Langevin(model, 20, 0.2, density="step", learned_dim=1)
    before = float(log_weights(model, guide, X, 4000).mean(0).sum())
    assert before == pytest.approx(-8.0149, abs=0.3)
    svi = SVI(model, guide, partial(Adam, lr=0.05), Trace_ELBO())
    for _ in range(150):
        svi.step(x)
    assert float(log_weights(model, guide, X, 4000).mean(0).sum()) > -7.0
    assert float(guide.log_tau.detach().exp()) > 0.3  # from .2; the posterior's is .447


def test_a_last_step_is_learned_without_noise_too():
    """T = 0: tau starts at s, and the weights are finite; a wrong D is named."""
    guide = Langevin(sharp(), 3, 0.2, density="step", noise=0.0, learned_dim=1)
    assert float(guide.log_tau.detach().exp()) == pytest.approx(0.2)
    assert log_weights(sharp(), guide, X, 4).isfinite().all()
    wide = VAE(MLP(2, 8, 8), latent_dim=2)
    for wrong in (1, 3):
        guide = Langevin(wide, 3, density="step", learned_dim=wrong)
        with pytest.raises(ValueError, match=rf"learned_dim is {wrong}, but the latents have 2"):
            guide(binary(5, 8))


# Contracts


def test_a_guide_is_silent():
    """Check 10: no gradient, no moved buffer, also under `no_grad`; modes are put back."""
    model = VAE(
        nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8)), 2
    )
    batch, guide = binary(5, 8), Langevin(model, 3, 0.2)
    before = {name: b.clone() for name, b in model.named_buffers()}
    guide(batch)
    with torch.no_grad():
        guide(batch)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert all(part.training for part in model.modules())


def test_the_chain_runs_without_dropout():
    """With everything else fixed, two chains on one seed are the same; the model's run is not."""
    model = VAE(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 8)), 2)
    guide, batch = Langevin(model, 5, 0.3, noise=0.0), binary(5, 8)
    values = []
    for seed in (0, 1):
        run = poutine.condition(guide, data={"z_0": torch.ones(5, 2)})
        pyro.set_rng_seed(seed)
        values.append(poutine.trace(run).get_trace(batch).nodes["z"]["value"])
    assert torch.equal(*values)
    losses = [
        Trace_ELBO().loss(model, poutine.condition(guide, data={"z_0": torch.ones(5, 2)}), batch)
        for _ in range(2)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("density", [None, "step", "transport", "bridge"])
def test_rows_of_particles_differ(density):
    """Check 11: the start is drawn in the plate; and in each mode B's are finite."""
    z = draws(Langevin(sharp(), 5, 0.3, density=density), X, 6)
    assert z.shape == (6, 3, 1)
    assert len(z.flatten().unique()) == 18


def test_particles_keep_the_bound():
    """Check 11: B's ELBO at s = .4 stays at -6.01 +- .03 under vectorized particles."""
    model, x = sharp(), X.repeat(200, 1)
    guide = Langevin(model, 20, 0.4, density="step")
    for loss in (particles(50), particles(50, TraceMeanField_ELBO), BetaELBO(num_particles=50)):
        assert -float(loss.loss(model, guide, x)) / 200 == pytest.approx(-6.0132, abs=0.03)


class Counts(nn.Module):
    """z ~ Gamma(2, 1), x ~ Poisson(3 z)."""

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Gamma(2.0, batch.new_ones(())))
            pyro.sample("x", dist.Poisson(3 * z), obs=batch)


def test_a_positive_latent_stays_positive():
    """Check 12: data (0, 2, 9), posterior means (2 + x) / 4; naively 43 percent leave."""
    x = torch.tensor([0.0, 2.0, 9.0])
    z = draws(Langevin(Counts(), 300, 0.2), x, 4000)
    assert (z > 0).all()
    assert z.mean(0).tolist() == pytest.approx([0.5, 1.0, 2.75], abs=0.06)
    prior = dist.Gamma(2.0, 1.0, validate_args=False)
    likelihood = partial(dist.Poisson, validate_args=False)

    def naive(z):
        return prior.log_prob(z) + likelihood(3 * z).log_prob(x)

    with pyro.validation_enabled(False):
        bad = ~(langevin(naive, prior.sample((4000, 3)), [0.2] * 300).z > 0)
    assert float(bad.float().mean()) == pytest.approx(0.43, abs=0.05)


@pytest.mark.parametrize("density", ["step", "transport", "bridge"])
def test_weights_on_a_support(density):
    """With the Jacobian, E[w] = p(x): Gamma and Poisson make a negative binomial."""
    x = torch.tensor([0.0, 2.0, 9.0])
    s = {"step": 0.5, "transport": 0.1, "bridge": 0.3}[density]
    guide = Langevin(Counts(), 20 if density == "step" else 5, s, density=density)
    log_w = log_weights(Counts(), guide, x, 40_000)
    exact = dist.NegativeBinomial(2.0, probs=torch.tensor(0.75)).log_prob(x)
    found = log_w.logsumexp(0) - math.log(40_000)
    assert (found - exact).abs().max() < 0.06


def heads(batch):
    """p ~ U(0, 1), x ~ Binomial(1000, p): of 1000 heads the evidence is 1 / 1001."""
    with pyro.plate("data", len(batch), dim=-1):
        p = pyro.sample("p", dist.Uniform(torch.tensor(0.0), 1.0, validate_args=False))
        pyro.sample("x", dist.Binomial(1000, p, validate_args=False), obs=batch)


@pytest.mark.parametrize(("density", "low"), [("step", -4.0), ("bridge", -1.0)])
def test_a_support_whose_end_is_rounded_off(density, low):
    """Probabilities of one in single precision: -ln 1001, within five errors, or below.

    Weights are at most one, so that some twenty of these 20,000 make up the sum.
    """
    log_w = log_weights(heads, Langevin(heads, density=density), torch.tensor([1000.0]), 20_000)
    found = float(log_w.logsumexp(0)) - math.log(20_000) + math.log(1001)
    assert low < found < 1.0


class Either(nn.Module):
    """Of each datum one of two counts is seen, as in `Counts`; the other one's latent is masked.

    A masked latent is drawn, though it counts for nothing.
    """

    def forward(self, batch):
        first = batch["first"] > 0
        with pyro.plate("data", len(first), dim=-1):
            for name, mask in (("a", first), ("b", ~first)):
                with poutine.mask(mask=mask):
                    z = pyro.sample(f"z_{name}", dist.Gamma(2.0, torch.ones(())))
                    pyro.sample(name, dist.Poisson(3 * z), obs=batch[name])


@pytest.mark.parametrize(("density", "s"), [("step", 0.5), ("transport", 0.1), ("bridge", 0.3)])
def test_latents_that_are_masked_weigh_nothing(density, s):
    """Guide's sites are masked where the model's are: negative binomials of what is seen."""
    batch = {"a": [2.0, 2.0, 9.0], "b": [1.0, 9.0, 0.0], "first": [1.0, 0.0, 1.0]}
    batch = {name: torch.tensor(leaf) for name, leaf in batch.items()}
    guide = Langevin(Either(), 20 if density == "step" else 5, s, density=density)
    nodes = poutine.trace(guide).get_trace(batch).nodes
    assert nodes["z_a"]["mask"].tolist() == [True, False, True]
    assert nodes["z_b"]["mask"].tolist() == [False, True, False]
    log_w = log_weights(Either(), guide, batch, 40_000)
    seen = torch.tensor([2.0, 9.0, 9.0])
    exact = dist.NegativeBinomial(2.0, probs=torch.tensor(0.75)).log_prob(seen)
    found = log_w.logsumexp(0) - math.log(40_000)
    assert (found - exact).abs().max() < 0.06


def test_masked_latents_stay_where_their_prior_is():
    """Moved by their prior alone, for as many steps as you like: Gamma(2, 1) has mean 2."""
    batch = {name: torch.zeros(3) for name in ("a", "b", "first")}
    guide = pyro.plate("particles", 2000, dim=-2)(Langevin(Either(), 60, 0.5))
    z = poutine.trace(guide).get_trace(batch).nodes["z_a"]["value"]
    assert float(z.log().abs().max()) < 20
    assert float(z.mean()) == pytest.approx(2.0, abs=0.25)


def test_a_transport_that_folds_is_refused():
    """At lam = 5 a step folds from s^2 / 2 lam = 1 on: s = .632; a search leaves it out."""
    model, x = sharp(), torch.full((20, 1), 1.25)
    guide = Langevin(model, 3, 0.64, density="transport")
    with pytest.raises(ChainError, match=r"step 1 of 3 .* folds at datum 0: .* is 1.02 there"):
        log_weights(model, guide, x, 2)
    assert log_weights(model, Langevin(model, 3, 0.62, density="transport"), x, 2).isfinite().all()
    found = search_step_size(model, guide, x, [0.1, 0.7, 0.8])
    assert found.best == 0.1
    assert found.bounds[0.7] == found.bounds[0.8] == -math.inf


@pytest.mark.parametrize("density", ["transport", "bridge"])
def test_other_densities_tell_a_chain_that_diverges_too(density):
    """Curvature 5 and s = 1: each step doubles the way to the mode; s = .2 is fine."""
    model, x = sharp(), torch.full((20, 1), 1.25)
    for s, fails in ((1.0, True), (0.2, False)):
        guide = Langevin(model, 20, s, density=density)
        with pytest.raises(ChainError, match="diverges|folds") if fails else nullcontext():
            log_weights(model, guide, x, 2)


def test_several_latents_and_a_hierarchy():
    """All sites are walked together, by the names they have in the model."""
    pyro.set_rng_seed(0)
    model, batch = Ladder(), binary(5, 8)
    bounds = {}
    for density, s in ((None, 0.5), ("step", 1.0), ("transport", 0.1), ("bridge", 0.5)):
        guide = Langevin(model, 20, s, density=density)
        check_pair(model, guide, batch)
        trace = poutine.trace(guide).get_trace(batch)
        assert set(trace.nodes) >= {"z_1", "z_2", "z_1_0", "z_2_0"}
        if density:
            bounds[density] = evidence(log_weights(model, guide, batch, 2000)).log_evidence
    assert (bounds["step"] - bounds["bridge"]).abs().max() < 0.3


def test_a_start_at_another_guide():
    """At the exact posterior few steps suffice; the bridge's weights know where it started."""
    model = sharp()
    init = Exact(model)
    z = draws(Langevin(model, 3, 0.2, init=init), X.repeat(40, 1), 100)
    for n in range(3):
        spread = recursion([0.2] * 3, variance=0.2)[1]
        within(z[:, n::3].flatten(), 0.8 * float(X[n]), spread)
    for density in ("transport", "bridge"):
        guide = Langevin(model, 3, 0.2, init=init, density=density)
        log_w = log_weights(model, guide, X, 20_000)
        ratio = (log_w - model.log_evidence(X)).exp().mean(0)
        assert (ratio - 1).abs().max() < 0.05
    encoder = Normal(MLP(8, 8), latent_dim=2)
    check_pair(vae(), Langevin(vae(), 3, init=encoder.requires_grad_(False)), binary(5, 8))
    refined = Langevin(vae(), 3, init=encoder)
    assert dict(refined.named_parameters()).keys() == {
        f"init.{n}" for n, _ in encoder.named_parameters()
    }
    refined(binary(5, 8))
    assert all(p.grad is None for p in encoder.parameters())


# What is refused


def test_a_start_at_a_guide_of_other_sites_is_refused():
    """Bad input: by name, whichever side has more; and of another size."""
    batch = binary(5, 8)
    for model, init, message in (
        (vae(), LadderGuide(), r"the model samples the site 'z', but it \['z_1', 'z_2'\]"),
        (Ladder(), Normal(MLP(8, 8), 2), r"the model samples the site 'z_2', but it \['z'\]"),
        (vae(), Normal(MLP(8, 8), 3), r"site 'z' the model's events have shape \(2,\)"),
    ):
        init.requires_grad_(False)
        with pytest.raises(PairError, match=message):
            check_pair(model, Langevin(model, init=init), batch)

    def both(batch):
        init(batch)
        with pyro.plate("again", len(batch), dim=-1):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    init = Normal(MLP(8, 8), 2)
    with pytest.raises(
        PairError, match=r"it samples \['w'\], but the model's latents are \['z'\]"
    ):
        Langevin(vae(), init=both)(batch)


def test_a_has_no_weights_and_says_what_to_take():
    """`log_weights`, IWELBO, evidence, Pareto k, compare: the message names the other modes."""
    model, guide, batch = vae(), None, binary(40, 8)
    guide = Langevin(model, 3)
    for judge in (
        lambda: log_weights(model, guide, batch, 4),
        lambda: evidence(log_weights(model, guide, batch, 4)),
        lambda: pareto_k(log_weights(model, guide, batch, 40)),
        lambda: IWELBO(4).loss(model, guide, batch),
        lambda: compare({"langevin": guide}, model, batch),
        lambda: search_step_size(model, guide, batch, [0.1]),
    ):
        with pytest.raises(WeightlessError, match='no importance weights.*"step".*"bridge"'):
            judge()
    assert active_units(guide, batch).shape == (2,)


@pytest.mark.parametrize("estimator", ["dreg", "stl"])
def test_estimators_that_run_the_guide_twice_are_refused(estimator):
    """The second chain would be another one."""
    guide = Langevin(sharp(), 3, density="step", learned_dim=1)
    with pytest.raises(ValueError, match="run the guide twice.*Use estimator='iwae'"):
        IWELBO(4, estimator=estimator).loss(sharp(), guide, X)


def test_a_density_of_an_end_needs_that_of_the_start():
    """An init without a density makes none."""
    guide = Langevin(sharp(), 3, init=Langevin(sharp(), 3), density="bridge")
    with pytest.raises(ValueError, match="needs that of its start, which the init's site 'z'"):
        log_weights(sharp(), guide, X, 4)


def optimizer(model, **kwargs):
    return SVI(model, Langevin(model, **kwargs), partial(SGD, lr=1e-3), Trace_ELBO())


def test_a_step_too_large_stops_training():
    """Bad input: at once where it diverges for the first batch."""
    svi = optimizer(LinearGaussian(torch.full((1, 1), 4.0), scale=0.5), step_size=0.5)
    with pytest.raises(ChainError, match=r"datum \d+ diverges from step \d+ of 20 on.*step_size"):
        fit(svi, data(20), epochs=1, progress=False)


def test_a_chain_that_diverges_later_is_named_by_fit():
    """Its checks are off by then: the epoch is lived through again, to tell datum and step."""
    model = sharp()
    svi = optimizer(model, step_size=0.5)
    x = data(60)

    def sharpen(svi, history):
        with torch.no_grad():
            model.log_scale.fill_(math.log(1e-3))

    fit(svi, x, epochs=1, progress=False, batch_size=20)
    sharpen(svi, None)
    svi.validate = False
    with pytest.raises(
        FloatingPointError,
        match=r"loss is .* at step 1 of 3.*chain diverges at step \d+ of 20: .* of datum \d+",
    ):
        from ppvae.training.fit import _epoch

        _epoch(svi, [x[:20], x[20:40], x[40:]], None, first=False)


def test_a_log_joint_that_is_not_finite_at_the_start_stops_training():
    """Bad input: datum and site."""
    x = data(20)
    x[7] = float("inf")
    with pytest.raises(ChainError, match="not finite at the start.*site 'x' of datum 7 is -inf"):
        check_pair(sharp(), Langevin(sharp()), x)


def test_discrete_latents_are_refused_by_the_pair():
    """Bad input: in the chain's words, not as sizes that disagree."""

    def model(batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch)

    with pytest.raises(NotImplementedError, match="site 'z' is discrete"):
        check_pair(model, Langevin(model), torch.zeros(3))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"step_size": [0.1, float("nan")], "steps": 2}, "step_size must be positive"),
        ({"step_size": [0.1] * 3}, "step_size has 3 entries, but there are 20 steps"),
        ({"noise": -1.0}, "noise must be finite and not negative"),
        ({"density": "normal"}, "density must be one of"),
        ({"density": "step", "noise": 0.0}, "give noise > 0"),
        ({"density": "bridge", "noise": 0.0}, "give noise > 0"),
        ({"learned_dim": 2}, 'learned_dim is for density="step"'),
        ({"tempered": True}, 'tempered is for density="bridge"'),
        (
            {"tempered": True, "density": "bridge", "init": Exact(sharp())},
            "leave init or tempered",
        ),
    ],
)
def test_arguments_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Langevin(sharp(), **kwargs)


# Q, and the search for a step


def test_the_history_is_of_q(tmp_path):
    """No ELBO anywhere; no patience; the best epoch is the last."""
    model = sharp()
    svi = optimizer(model, steps=3)
    history = fit(
        svi, data(40), epochs=3, validation=data(10), checkpoint=tmp_path, progress=False
    )
    assert set(history.frame.columns) == {"loss", "q", "validation_q", "seconds"}
    assert history["q"] == [-loss for loss in history["loss"]]
    from ppvae import checkpoints

    assert checkpoints.read_meta(tmp_path, "best")["epoch"] == 3
    with pytest.raises(ValueError, match="patience=2 stops by the loss, but .* -Q"):
        fit(svi, data(40), epochs=3, patience=2, progress=False)
    resumed = fit(svi, data(40), epochs=4, checkpoint=tmp_path, resume=True, progress=False)
    assert "q" in resumed.records[-1]
    bound = SVI(model, Langevin(model, 3, density="step"), partial(SGD, lr=1e-3), Trace_ELBO())
    columns = fit(
        bound, data(40), epochs=1, validation=data(10), patience=1, progress=False
    ).frame.columns
    assert set(columns) == {"loss", "validation_elbo", "seconds"}


def test_the_history_of_q_has_no_kl():
    """What an objective records as the KL is -E log p(z) of a point: it is named so."""
    svi = SVI(sharp(), Langevin(sharp(), 3), partial(SGD, lr=1e-3), BetaELBO())
    record = fit(svi, data(40), epochs=1, progress=False).records[0]
    assert set(record) == {"epoch", "loss", "log_likelihood", "cross_entropy", "q", "seconds"}
    total = record["log_likelihood"] - record["cross_entropy"]
    assert record["q"] == pytest.approx(total, rel=1e-5)


def test_the_step_is_chosen_by_the_bound():
    """Section 5, lam = 5, m = 1: C's best step is near .146, B's near .553."""
    model, x = sharp(), torch.full((2000, 1), 1.25)
    for density, grid, best in (
        ("transport", (0.05, 0.1, 0.146, 0.2, 0.3), 0.146),
        ("step", (0.3, 0.45, 0.553, 0.65, 0.8, 2.0), 0.553),
    ):
        guide = Langevin(model, 20, 0.123, density=density)
        found = search_step_size(model, guide, x, grid)
        assert found.best == best and list(found.bounds) == list(grid)
        assert torch.equal(guide.step_sizes, torch.full((20,), 0.123))
    assert found.bounds[2.0] == -math.inf  # it diverges
    with pytest.raises(ValueError, match="none gives a finite bound"):
        search_step_size(model, guide, x, [3.0])


# Cost


class Counted(MLP):
    """A decoder that counts its passes."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.forwards, self.backwards = 0, 0

    def forward(self, x):
        self.forwards += 1
        out = super().forward(x)
        if out.requires_grad:
            out.register_hook(self.count)
        return out

    def count(self, gradient):
        self.backwards += 1


@pytest.mark.parametrize("density", [None, "step"])
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_a_step_costs_k_plus_one_passes(density, start):
    """K + 1 forward and backward passes of the decoder, and as many runs of the model."""
    decoder = Counted(2, 8, 8)
    model, batch = VAE(decoder, latent_dim=2), binary(5, 8)
    init = Normal(MLP(8, 8), 2).requires_grad_(False) if start == "guide" else None
    svi = SVI(
        model, Langevin(model, 7, density=density, init=init), partial(SGD, lr=1e-3), Trace_ELBO()
    )
    svi.loss.max_plate_nesting = 1  # or Pyro would run the pair once more, to count its plates
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    svi.step(batch)  # which looks at the pair, too
    for _ in range(2):
        decoder.forwards = decoder.backwards = 0
        runs.clear()
        svi.step(batch)
        assert (decoder.forwards, decoder.backwards, len(runs)) == (8, 8, 8)


def test_an_encoder_with_running_means_may_be_the_start():
    """It is another module: only the model's stand still."""
    init = Normal(Noisy(), latent_dim=2, activation=nn.Identity()).requires_grad_(False)
    model = vae()
    svi = SVI(model, Langevin(model, 3, init=init), partial(SGD, lr=1e-3), Trace_ELBO())
    assert svi.step(binary(5, 8)).isfinite()


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrent_decoders(cell):
    """The chain takes gradients through them, in evaluation mode, too."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = cell(2, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, z):
            flat = z.reshape(-1, 1, 2).expand(-1, 8, 2)
            return self.head(self.cell(flat)[0]).reshape(*z.shape[:-1], 8)

    model = VAE(Recurrent(), latent_dim=2)
    for density in ("step", "transport", "bridge"):
        guide = Langevin(model, 2, density=density)
        assert log_weights(model, guide, binary(5, 8), 3).isfinite().all()
    assert all(part.training for part in model.modules())
