"""The Epanechnikov VAE: kernel, divergences, variants and penalty, exactly."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from scipy import integrate, stats
from torch import nn
from torch.distributions import kl_divergence
from zoo import binary, box, train, vae

from ppvae import PairError, WeightlessError, check_pair, fit, log_weights, plots
from ppvae.distributions import BoxedEpanechnikov, Epanechnikov, SmoothedEpanechnikov
from ppvae.guides import Epanechnikov as Guide
from ppvae.guides import Normal
from ppvae.models import LinearGaussian
from ppvae.networks import MLP
from ppvae.objectives import IWELBO, BetaELBO, PenalizedELBO, RadiusPenalty, log_mean_exp
from ppvae.recipes import evae

FLOOR = math.log(3) - 5 / 3 - math.log(5) / 2 + math.log(2 * math.pi) / 2 + 0.5  # 0.0461652
BEST = math.sqrt(5 / 2)
PAPER_SCALE = 100 ** (-2 / 9)


def tensor(*values):
    """Return numbers in float64."""
    return torch.tensor(values, dtype=torch.float64).squeeze()


def kernel(loc=0.0, radius=1.0):
    """Return a kernel in float64."""
    return Epanechnikov(tensor(loc), tensor(radius))


def quadrature(function, pieces, nodes=200):
    """Return the integral of a function of z over pieces of the line, by Gauss-Legendre."""
    t, w = np.polynomial.legendre.leggauss(nodes)
    total = 0.0
    for low, high in pairwise(pieces):
        z = torch.as_tensor((low + high) / 2 + (high - low) / 2 * t)
        total = total + float((torch.as_tensor(w) * function(z)).sum()) * (high - low) / 2
    return total


def over(q, function):
    """Return E_q[function(z)] for a kernel, in the angle: z = m + r sin tames the edges."""

    def in_angle(angle):
        z = q.loc + q.radius * angle.sin()
        return q.log_prob(z).exp() * function(z) * q.radius * angle.cos()

    return quadrature(in_angle, (-math.pi / 2, math.pi / 2))


# The kernel: checks 1 to 4


def median_of_three(shape):
    """The median of three uniform numbers on [-1, 1]."""
    return (2 * torch.rand(3, *shape, dtype=torch.float64) - 1).median(0).values


def devroye(shape):
    """The second of three uniform numbers if the third is the largest in size, else the third."""
    v = 2 * torch.rand(3, *shape, dtype=torch.float64) - 1
    largest = (v[2].abs() >= v[1].abs()) & (v[2].abs() >= v[0].abs())
    return torch.where(largest, v[1], v[2])


def beta(shape):
    """A Beta(2, 2) number, stretched."""
    return 2 * dist.Beta(tensor(2.0), tensor(2.0)).sample(shape) - 1


SAMPLERS = {
    "ours": lambda shape: kernel().rsample(shape),
    "median": median_of_three,
    "devroye": devroye,
    "beta": beta,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_moments_and_distribution_of_every_sampler(sampler):
    """Check 1: E K^(2k) = 3/((2k+1)(2k+3)); odd moments 0; Kolmogorov-Smirnov against F."""
    draws = SAMPLERS[sampler]((2_000_000,))
    assert draws.abs().max() < 1
    for k, exact in enumerate((1 / 5, 3 / 35, 1 / 21), start=1):
        error = float((draws ** (4 * k)).mean()) ** 0.5 / len(draws) ** 0.5
        assert float((draws ** (2 * k)).mean()) == pytest.approx(exact, abs=max(2e-4, 4 * error))
        odd = draws ** (2 * k - 1)
        assert abs(float(odd.mean())) < 4 * float(odd.std()) / len(draws) ** 0.5
    assert stats.kstest(draws[:200_000].numpy(), lambda t: 0.5 + t * (3 - t**2) / 4).pvalue > 1e-3


def test_the_distribution_function_is_inverted():
    """Check 2: icdf(cdf(z)) = z to 1e-6, cdf' = density, and the density integrates to 1."""
    q = kernel(0.7, 2.5)
    z = torch.linspace(-1.79, 3.19, 999, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(q.icdf(q.cdf(z)), z, rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(q.cdf(z).sum(), z)
    torch.testing.assert_close(slope, q.log_prob(z).exp().detach())
    assert over(q, torch.ones_like) == pytest.approx(1, abs=1e-8)
    assert q.cdf(tensor(-1.8)) == 0 and q.cdf(tensor(3.2)) == 1
    assert q.mode == q.mean == 0.7


def test_transforms_of_the_kernel():
    """Check 3: moment generating and characteristic function, also near 0."""
    q = kernel()
    for u in (3.0, -1.2, 0.4):
        mgf = 3 * (u * math.cosh(u) - math.sinh(u)) / u**3
        assert over(q, lambda z, u=u: (u * z).exp()) == pytest.approx(mgf, abs=1e-10)
        cf = 3 * (math.sin(u) - u * math.cos(u)) / u**3
        assert over(q, lambda z, u=u: (u * z).cos()) == pytest.approx(cf, abs=1e-10)
    assert over(q, lambda z: (5e-4 * z).exp()) == pytest.approx(1 + 25e-8 / 10, abs=1e-12)


def test_the_kernel_is_the_best_of_its_variance():
    """Check 4: int K^2 = 3/(5 r), int (K*K)^2 = 167/385; the famous optimality is worth 5%."""
    q = kernel(0.3, 2.0)
    assert over(q, lambda z: q.log_prob(z).exp()) == pytest.approx(0.3, abs=1e-10)
    t = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    density = kernel().log_prob(t).exp()
    density[[0, -1]] = 0  # where log_prob keeps it finite
    twice = np.convolve(density, density) * (2 / 4000)
    assert np.square(twice).sum() * (2 / 4000) == pytest.approx(167 / 385, abs=1e-6)
    width, scale = math.sqrt(12 / 5), math.sqrt(1 / 5)  # of variance 1/5
    others = {
        "uniform": (1 / width, 0.64550),
        "gaussian": (1 / (2 * math.sqrt(math.pi) * scale), 0.63078),
        "triangular": (2 / (3 * math.sqrt(6 / 5)), 0.60858),
        "biweight": (5 / 7 / math.sqrt(7 / 5), 0.60368),
    }
    for ours, sheet in others.values():
        assert ours == pytest.approx(sheet, abs=1e-5) and ours > over(
            kernel(), lambda z: kernel().log_prob(z).exp()
        )


# Divergences: checks 5 to 7


@pytest.mark.parametrize(
    ("loc", "radius", "exact"),
    [
        (0.0, 1.0, 0.4508842),
        (0.0, math.sqrt(5), 0.0461652),
        (0.7, 0.4, 1.5281749),
        (-1.3, 2.0, 0.9027370),
    ],
)
def test_kl_to_a_normal(loc, radius, exact):
    """Check 5: closed form, quadrature and the sheet agree; the floor is at r = sqrt 5."""
    q, p = kernel(loc, radius), dist.Normal(tensor(0.0), tensor(1.0))
    closed = float(kl_divergence(q, p))
    assert closed == pytest.approx(exact, abs=1e-7)
    assert closed == pytest.approx(over(q, lambda z: q.log_prob(z) - p.log_prob(z)), abs=1e-7)
    assert closed >= FLOOR - 1e-12
    shifted = float(kl_divergence(kernel(2 * loc + 1, 2 * radius), dist.Normal(tensor(1.0), 2.0)))
    assert shifted == pytest.approx(closed, abs=1e-6)  # 2.0 is a float32 tensor


def test_kl_to_a_uniform():
    """Check 6: ln 15 - 5/3, chi2 + 1 = 3, no pull on the center, and infinite where it leaves."""
    loc, radius = tensor(0.5).requires_grad_(), tensor(0.8).requires_grad_()
    p = dist.Uniform(tensor(-2.0), tensor(2.0))
    kl = kl_divergence(Epanechnikov(loc, radius), p)
    assert kl.item() == pytest.approx(math.log(15) - 5 / 3, abs=1e-12)
    assert kl.item() == pytest.approx(1.041384, abs=1e-6)
    by_loc, by_radius = torch.autograd.grad(kl, (loc, radius), materialize_grads=True)
    assert by_loc == 0 and by_radius == pytest.approx(-1 / 0.8)
    q = kernel(0.5, 0.8)
    assert over(q, lambda z: (q.log_prob(z) - p.log_prob(z)).exp()) == pytest.approx(3, abs=1e-9)
    assert kl.item() <= math.log(3) <= 3 - 1
    radius = tensor(2.1).requires_grad_()
    beyond = kl_divergence(Epanechnikov(tensor(0.0), radius), p)
    beyond.backward()
    assert beyond == math.inf and radius.grad == 0
    assert kl_divergence(kernel(1.5, 0.8), p) == math.inf
    both = Epanechnikov(tensor(0.5, -0.1), tensor(0.8, 0.8)).to_event(1)
    wide = dist.Uniform(tensor(-2.0, -2.0), tensor(2.0, 2.0)).to_event(1)
    assert float(kl_divergence(both, wide)) == pytest.approx(2 * kl.item())


@pytest.mark.parametrize(
    ("q", "p"),
    [
        ((0.3, 0.4), (0.0, 1.0)),
        ((-0.2, 0.8), (0.0, 1.0)),  # they touch
        ((1.0, 1e-3), (0.0, 2.0)),
        ((0.0, 1.0), (0.0, 1.0)),
        ((0.0, 0.999), (0.0, 1.0)),
        ((2.5, 0.7), (2.0, 1.4)),
        ((0.0, 0.5), (0.0, 1.0)),  # where series and closed form meet
    ],
)
def test_kl_between_kernels(q, p):
    """In closed form, against quadrature in the angle, which takes the edges' logarithm out."""
    (loc, radius), p = q, kernel(*p)
    q = kernel(loc, radius)

    def integrand(angle):  # z = m + r sin
        t = math.sin(angle)
        z = tensor(loc + radius * t)
        ratio = math.log((1 - t) * (1 + t)) - math.log(radius) + math.log(p.radius)
        s = float((z - p.loc) / p.radius)
        return 0.75 * math.cos(angle) ** 3 * (ratio - math.log(max((1 - s) * (1 + s), 1e-300)))

    exact, _ = integrate.quad(integrand, -math.pi / 2 + 1e-9, math.pi / 2 - 1e-9, epsabs=1e-11)
    assert float(kl_divergence(q, p)) == pytest.approx(exact, abs=1e-7)
    narrow = kl_divergence(
        Epanechnikov(q.loc.float(), q.radius.float()),
        Epanechnikov(p.loc.float(), p.radius.float()),
    )
    assert float(narrow) == pytest.approx(exact, abs=2e-5)


def test_kl_between_kernels_is_infinite_where_the_support_leaves():
    """And its gradient is finite everywhere."""
    assert kl_divergence(kernel(0.5, 0.6), kernel()) == math.inf
    assert kl_divergence(kernel(0.0, 1.5), kernel()) == math.inf
    loc, radius = tensor(0.0, 0.3, 0.9, 0.0).requires_grad_(), tensor(1.0, 0.1, 0.5, 3.0)
    radius.requires_grad_()
    kl = kl_divergence(Epanechnikov(loc, radius), Epanechnikov(tensor(0.0), tensor(1.0)))
    kl[kl.isfinite()].sum().backward()
    assert loc.grad.isfinite().all() and radius.grad.isfinite().all()
    assert torch.autograd.gradcheck(
        lambda m, r: kl_divergence(Epanechnikov(m, r), kernel(0.1, 2.0)),
        (tensor(0.2, -0.5).requires_grad_(), tensor(0.6, 1.1).requires_grad_()),
    )


def test_draws_move_with_center_and_radius():
    """Check 7: dz/dm = 1, dz/dr = K, gradcheck of both KLs, and the gradient of E z^2."""
    loc, radius = tensor(0.7).requires_grad_(), tensor(1.6).requires_grad_()
    z = Epanechnikov(loc, radius).rsample()
    by_loc, by_radius = torch.autograd.grad(z, (loc, radius))
    assert by_loc == 1 and by_radius == pytest.approx(((z - loc) / radius).item())
    arguments = tensor(0.2, -0.5).requires_grad_(), tensor(0.6, 1.1).requires_grad_()
    for p in (dist.Normal(tensor(0.3), tensor(1.2)), dist.Uniform(tensor(-3.0), tensor(3.0))):
        assert torch.autograd.gradcheck(
            lambda m, r, p=p: kl_divergence(Epanechnikov(m, r), p), arguments
        )
    n = 400_000
    locs, radii = loc.detach().expand(n).clone(), radius.detach().expand(n).clone()
    locs.requires_grad_(), radii.requires_grad_()
    Epanechnikov(locs, radii).rsample().square().sum().backward()
    for gradient, exact in ((locs.grad, 2 * 0.7), (radii.grad, 2 * 1.6 / 5)):
        assert abs(gradient.mean() - exact) < 5 * gradient.std() / n**0.5


def test_gradients_stay_finite_up_to_the_edge():
    """Of draws at the ends of the uniform numbers, and of the density at the very edge."""
    for dtype in (torch.float32, torch.float64):
        loc = torch.tensor([0.0, 1e4], dtype=dtype).requires_grad_()
        radius = torch.tensor([1.0, 0.1], dtype=dtype).requires_grad_()
        q = Epanechnikov(loc, radius)
        for edge in (q.loc - q.radius, q.loc + q.radius):
            value = q.log_prob(edge.detach())
            assert value.isfinite().all()
            assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), (loc, radius)))
        assert q.support.check(q.sample((100_000,))).all()
        assert q.log_prob(q.sample((100_000,))).isfinite().all()


def test_the_draws_are_never_at_the_edge(monkeypatch):
    """A uniform number of 0 or 1 would have density 0."""
    for end in (0.0, 1.0):
        monkeypatch.setattr(
            torch, "rand", lambda shape, end=end, **kwargs: torch.full(shape, end, **kwargs)
        )
        z = Epanechnikov(torch.zeros(1), torch.ones(1)).rsample()
        assert 0.999 < z.abs() < 1


# A posterior known exactly: checks 8 and 9


def linear_pair(dim=1, radius=BEST):
    """z ~ N(0, I), x | z ~ N(z, I), with the best kernel: m = x/2, r = sqrt(5/2)."""
    encoder = nn.Identity()
    encoder.out_features = dim
    guide = Guide(encoder, latent_dim=dim, activation=nn.Identity()).double()
    with torch.no_grad():
        guide.head.weight.zero_()
        guide.head.weight[:dim] = torch.eye(dim) / 2
        guide.head.bias[:dim] = 0
        guide.head.bias[dim:] = math.log(math.expm1(radius - 1e-6))
    return LinearGaussian(torch.eye(dim, dtype=torch.float64)).double(), guide


@pytest.mark.parametrize("dim", [1, 3])
def test_the_gap_to_the_evidence_is_the_floor(dim):
    """Check 8: 0.0461652 per coordinate, for every x, and minimal there."""
    model, guide = linear_pair(dim)
    x = tensor(*torch.linspace(-3, 3, 5 * dim).tolist()).reshape(5, dim)
    posterior = model.posterior(x)
    trace = poutine.trace(guide).get_trace(x)
    q = trace.nodes["z"]["fn"]
    exact = dist.Normal(posterior.mean, posterior.variance.sqrt()).to_event(1)
    gap = kl_divergence(q, exact)
    torch.testing.assert_close(gap, torch.full_like(gap, dim * 0.0461652), rtol=0, atol=1e-6)
    # the loss itself: the KL to the prior is closed, E ln p(x|z) is drawn
    log_w = log_weights(model, guide, x, 200_000)
    error = log_w.std(0) / 200_000**0.5
    assert ((model.log_evidence(x) - log_w.mean(0) - gap).abs() < 5 * error).all()
    for other in (1.4, 1.8):
        worse = poutine.trace(linear_pair(dim, other)[1]).get_trace(x).nodes["z"]["fn"]
        assert (kl_divergence(worse, exact) > gap).all()


def test_training_finds_the_best_kernel():
    """Check 8: from another start, the head comes to m = x/2 and r = sqrt(5/2)."""
    model, guide = linear_pair(radius=0.7)
    model.requires_grad_(False)
    x = 2**0.5 * torch.randn(256, 1, dtype=torch.float64)
    svi = train(model, guide, BetaELBO(num_particles=20))
    for rate in (5e-2, 5e-3):
        for group in svi.optimizer.param_groups:
            group["lr"] = rate
        for _ in range(150):
            svi.step(x)
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].base_dist
    torch.testing.assert_close(q.loc, x / 2, rtol=0, atol=0.05)
    torch.testing.assert_close(q.radius, torch.full_like(x, math.sqrt(5 / 2)), rtol=0, atol=0.05)


def test_the_importance_bound_does_not_reach_the_evidence():
    """Check 8: gaps .0462, .027, .0257 at K = 1, 10, 100, and -ln 0.9746527, not 0."""
    model, guide = linear_pair()
    x = tensor(0.8).reshape(1, 1)
    mass = 2 * stats.norm.cdf(math.sqrt(5)) - 1
    assert -math.log(mass) == pytest.approx(0.025674, abs=1e-6)
    evidence = model.log_evidence(x).detach()
    log_w = log_weights(model, guide, x, 1_000_000).squeeze(1)
    weights = (log_w - evidence).exp()
    error = float(weights.std()) / 1000
    assert float(weights.mean()) == pytest.approx(mass, abs=5 * error)
    for count, exact in ((1, 0.0462), (10, 0.027), (100, 0.0257)):
        bounds = log_mean_exp(log_w.reshape(count, -1))
        gap = float(evidence - bounds.mean())
        error = float(bounds.std()) / len(bounds) ** 0.5
        assert gap == pytest.approx(exact, abs=5 * error + 5e-4)
    loss = IWELBO(100).loss(model, guide, x.expand(5000, 1)) / 5000
    assert loss + float(evidence) == pytest.approx(0.0257, abs=2e-3)


def test_pareto_k_is_one_half():
    """Check 9: at the edge w ~ 1/distance; Hill's estimator, accepted from .35 to .6.

    A generalized Pareto fit to fewer draws is far from it: the singular edge is rarely met.
    """
    for dim in (1, 8):
        log_w = log_weights(*linear_pair(dim), torch.zeros(1, dim).double(), 400_000)
        top = log_w.flatten().topk(1001).values
        assert 0.35 < float((top[:-1] - top[-1]).mean()) < 0.6


# Variant "smooth": checks 10 and 11


def closed_density(z, a, radius, tau):
    """The convolution with a Normal in closed form, which cancels for r << tau."""
    y = z - a
    alpha, beta = (-radius - y) / tau, (radius - y) / tau
    phi, cdf = stats.norm.pdf, stats.norm.cdf
    main = (1 - (y**2 + tau**2) / radius**2) * (cdf(beta) - cdf(alpha))
    edges = tau / radius**2 * ((radius - y) * phi(alpha) + (radius + y) * phi(beta))
    return 3 / (4 * radius) * (main + edges)


@pytest.mark.parametrize(
    ("a", "radius", "tau"),
    [(0.3, 0.8, 1.0), (-0.1, 0.3, 0.1), (-0.5, 2.0, 0.3), (0.2, 1.0, 0.1), (0.0, 5.0, 0.01)],
)
def test_the_smoothed_density_is_exact(a, radius, tau):
    """Check 10: against adaptive quadrature and the closed form to 1e-10; it integrates to 1."""
    q = SmoothedEpanechnikov(tensor(a), tensor(radius), tensor(tau))
    z = np.linspace(a - radius - 4 * tau, a + radius + 4 * tau, 41)
    ours = q.log_prob(torch.as_tensor(z)).exp().numpy()
    np.testing.assert_allclose(ours, closed_density(z, a, radius, tau), rtol=0, atol=1e-10)
    for point, value in list(zip(z, ours, strict=True))[::5]:
        near = np.clip((point - a + tau * np.array([-8, 0, 8])) / radius, -1, 1)
        exact, _ = integrate.quad(
            lambda t, x=point: 0.75 * (1 - t**2) * stats.norm.pdf(x, a + radius * t, tau),
            near[0], near[2], epsabs=1e-12, epsrel=1e-12, points=[near[1]],
        )  # fmt: skip
        assert value == pytest.approx(exact, abs=1e-10)
    ends = np.unique([a + s * radius + d * tau for s in (-1, 1) for d in (-9, -3, 0, 3, 9)])
    total = quadrature(lambda z: q.log_prob(z).exp(), ends)
    assert total == pytest.approx(1, abs=1e-9)


def test_the_smoothed_density_bears_extremes():
    """Far tails and narrow kernels: finite values and gradients, in both precisions."""
    for dtype in (torch.float32, torch.float64):
        z = torch.tensor([0.0, 0.5, 1.0, 1.05, 3.0, 50.0, -1e4], dtype=dtype)
        for radius, tau in ((1.0, 0.1), (1e-6, 1.0), (30.0, 1e-3), (1.0, 1e3)):
            arguments = [torch.tensor(v, dtype=dtype) for v in (0.0, radius, tau)]
            for argument in (z, *arguments):
                argument.requires_grad_().grad = None
            value = SmoothedEpanechnikov(*arguments).log_prob(z)
            value.sum().backward()
            assert value.isfinite().all()
            assert all(t.grad.isfinite().all() for t in (z, *arguments))
    assert torch.autograd.gradcheck(
        lambda z, a, r, s: SmoothedEpanechnikov(a, r, s).log_prob(z),
        [
            tensor(*v).requires_grad_()
            for v in ((0.4, 1.9, -0.2), (0.1,) * 3, (0.9,) * 3, (0.3,) * 3)
        ],
    )
    normal = dist.Normal(tensor(0.0), tensor(1.0))  # what is left of a narrow kernel
    narrow = SmoothedEpanechnikov(tensor(0.0), tensor(1e-6), tensor(1.0))
    assert float(narrow.log_prob(tensor(1.3))) == pytest.approx(
        float(normal.log_prob(tensor(1.3)))
    )


@pytest.mark.parametrize(
    ("loc", "radius", "exact", "bound"),
    [
        (0.0, 1.0, 0.000164, 0.012915),
        (0.0, 4.0, 0.033809, 0.206648),
        (1.0, 0.5, 0.064588, 0.067806),
        (1.0, 2.0, 0.067077, 0.116239),
    ],
)
def test_the_smoothed_kl_lies_below_its_bounds(loc, radius, exact, bound):
    """Check 11: exact KL and convexity bound, b = .359381, tau = c = 1."""
    b = PAPER_SCALE
    q = SmoothedEpanechnikov(tensor(b * loc), tensor(b * radius), tensor(1.0))
    p = dist.Normal(tensor(0.0), tensor(1.0))
    kl = quadrature(
        lambda z: q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)),
        np.linspace(-11, 11, 5),
    )
    assert kl == pytest.approx(exact, abs=1e-6)
    second = float(q.variance + q.mean.square() - 1)  # b^2 (m^2 + r^2/5)
    assert second / 2 == pytest.approx(bound, abs=1e-6)
    chi2 = quadrature(
        lambda z: (2 * q.log_prob(z) - p.log_prob(z)).exp(),
        np.linspace(-11, 11, 5),
    )
    t = np.linspace(-1, 1, 20_001)
    s, u = b * (loc + radius * t), b * radius * b * (loc + radius * t)
    safe = np.where(np.abs(u) < 1e-3, 1, u)
    mgf = np.where(
        np.abs(u) < 1e-3, 1 + u**2 / 10, 3 * (safe * np.cosh(safe) - np.sinh(safe)) / safe**3
    )
    by_mgf = integrate.simpson(0.75 * (1 - t**2) * np.exp(b * loc * s) * mgf, x=t)
    assert chi2 == pytest.approx(by_mgf, abs=1e-7)
    if (loc, radius) == (1.0, 2.0):
        assert chi2 == pytest.approx(1.161010, abs=1e-6)
        assert math.log(chi2) == pytest.approx(0.149291, abs=1e-6)
    assert kl <= min(second / 2, math.log(chi2)) + 1e-9


# Variant "paper" and its penalty: checks 12, 13 and 15


def traced(q):
    """Return a trace with a site z of a batch of a distribution."""
    return poutine.trace(lambda: pyro.sample("z", q.to_event(1))).get_trace()


def test_penalty_and_reconstruction_are_in_balance():
    """Check 12: r* = (5c/(h b^2))^(1/3), where the gradients of 1/r and of variance cancel."""
    for h, sheet in ((1, 0.2853), (10, 0.1324), (100, 0.0615), (1000, 0.0285)):
        c = 3 * 0.1 / (5 * 100)
        assert c == pytest.approx(6e-4)
        best = (5 * c / (h * PAPER_SCALE**2)) ** (1 / 3)
        assert best == pytest.approx(sheet, abs=1e-4)
        radius = tensor(best, best).requires_grad_()
        q = BoxedEpanechnikov(tensor(0.0, 0.0), PAPER_SCALE * radius, tensor(0.1))
        penalty = RadiusPenalty(0.1, 100, scale=PAPER_SCALE)(None, traced(q))
        assert penalty.item() == pytest.approx(2 * c / best)
        (penalty + h / 2 * q.variance.sum()).backward()
        assert (radius.grad.abs() < 1e-9).all()
        if h == 100:
            assert float(q.variance[0].detach().sqrt()) == pytest.approx(0.03, abs=1e-3)


def test_draws_of_the_boxed_kernel_have_its_density():
    """Check 12: histogram, mean and variance; most of the mass lies outside the prior's box."""
    for loc, radius, width in ((0.6, 1.3, 0.1), (0.0, 0.2, 1.0)):
        q = BoxedEpanechnikov(
            tensor(PAPER_SCALE * loc), tensor(PAPER_SCALE * radius), tensor(width)
        )
        draws = q.sample((400_000,))
        assert q.support.check(draws).all() and q.log_prob(draws).isfinite().all()
        reach = float(q.radius + q.width / 2)
        edges = torch.linspace(-reach, reach, 41, dtype=torch.float64) + q.loc
        share = torch.histogram(draws, edges).hist / len(draws)
        density = [
            quadrature(lambda z, q=q: q.log_prob(z).exp(), ends, 100)
            for ends in pairwise(edges.tolist())
        ]
        mass = tensor(*density)
        assert float(mass.sum()) == pytest.approx(1, abs=1e-5)
        error = (mass * (1 - mass) / len(draws)).sqrt()
        assert ((share - mass).abs() < 5 * error + 1e-5).all()
        assert abs(draws.mean() - q.mean) < 5 * draws.std() / len(draws) ** 0.5
        assert float(draws.var()) == pytest.approx(float(q.variance), rel=0.01)
    q = BoxedEpanechnikov(tensor(PAPER_SCALE * 0.6), tensor(PAPER_SCALE * 1.3), tensor(0.1))
    outside = (q.sample((400_000,)).abs() > 0.05).double().mean()
    assert float(outside) == pytest.approx(0.875, abs=0.003)
    with pytest.raises(NotImplementedError):  # infinite, whatever r is: none is registered
        kl_divergence(q, dist.Uniform(tensor(-0.05), tensor(0.05)))


def test_the_papers_statement_on_random_estimates():
    """Check 13: with b = m^(-.45), E int (q_m - p)^2 / p is B int K^2 / (m b); not with -2/9."""
    width, m, runs = 4.0, 1000, 40
    z = torch.linspace(-2, 2, 1001, dtype=torch.float64)[:, None]
    for power, drawn, stated in ((-0.45, 0.0535, 0.0537), (-2 / 9, 0.0174, 0.0111)):
        b, values = m**power, []
        for _ in range(runs):
            points = width * (torch.rand(m, dtype=torch.float64) - 0.5)
            # at the grid's points, the density of the mixture of kernels
            q = Epanechnikov(points, b * torch.ones_like(points), validate_args=False)
            estimate = q.log_prob(z).exp().mean(-1)
            values.append(torch.trapezoid((estimate - 1 / width).square() * width, z[:, 0]))
        values = torch.stack(values)
        error = float(values.std()) / runs**0.5
        assert float(values.mean()) == pytest.approx(drawn, abs=5 * error)
        assert width * 0.6 / (m * b) == pytest.approx(stated, abs=1e-4)


def test_the_heads_are_those_of_a_normal():
    """Check 15: 2 d (h + 1) weights, 8,224 for h = 256 and d = 16."""
    for variant in ("normal", "box", "smooth", "paper"):
        guide = Guide(MLP(4, 256), latent_dim=16, variant=variant)
        counts = [
            sum(p.numel() for p in g.head.parameters()) for g in (guide, Normal(MLP(4, 256), 16))
        ]
        assert counts == [8224, 8224]


# Objectives


def test_the_mean_field_bound_has_no_noise_from_the_kl():
    """A model that ignores z: the loss is KL plus a constant, the same for every draw."""
    model, guide = vae().double(), Guide(MLP(8, 16), latent_dim=2).double()
    for parameter in model.decoder.parameters():
        nn.init.zeros_(parameter)
    x = binary(5, 8).double()
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    exact = (
        kl_divergence(q, dist.Normal(tensor(0.0, 0.0), tensor(1.0, 1.0)).to_event(1))
        .sum()
        .detach()
    )
    for loss in (TraceMeanField_ELBO(), BetaELBO()):
        values = [loss.loss(model, guide, x) for _ in range(3)]
        assert values == pytest.approx([float(exact) + 5 * 8 * math.log(2)] * 3, abs=1e-9)
    drawn = [BetaELBO(analytic=False).loss(model, guide, x) for _ in range(3)]
    assert np.std(drawn) > 0.1
    boxed = vae(prior=box(12**0.5)).double(), Guide(MLP(8, 16), 2, "box").double()
    for parameter in boxed[0].decoder.parameters():
        nn.init.zeros_(parameter)
    values = [TraceMeanField_ELBO().loss(*boxed, x) for _ in range(3)]
    assert values == pytest.approx(values[:1] * 3, abs=1e-9) and math.isfinite(values[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_box_is_never_left(dtype):
    """Variant "box": finite KL and log weights at the heads' extremes, saturated ones included."""
    guide = Guide(MLP(8, 16), 2, "box").to(dtype)
    p = box(12**0.5, validate_args=True).expand((1,))
    p = dist.Uniform(p.base_dist.low.to(dtype), p.base_dist.high.to(dtype)).to_event(1)
    for loc in (-100.0, -9.0, 0.0, 9.0, 100.0):
        for radius in (-200.0, -20.0, 0.0, 20.0, 200.0):
            h = torch.tensor([[loc, loc, radius, radius]], dtype=dtype)
            q = guide.posterior(h)
            assert kl_divergence(q, p).isfinite().all()
            assert p.log_prob(q.sample((1000,))).isfinite().all()


def paper_pair(validate=False):
    """Variant "paper" with the paper's prior, U(-B/2, B/2)."""
    prior = box(0.1, validate_args=validate)
    return vae(prior=prior), Guide(MLP(8, 16), 2, "paper")


def test_the_papers_system_trains_and_has_no_weights():
    """Its draws leave the prior: the pair fits, and whatever needs weights refuses in words."""
    model, guide = paper_pair()
    x = binary(50, 8)
    check_pair(model, guide, x)
    svi = train(
        model, guide, PenalizedELBO(beta=0.0, radius=RadiusPenalty(0.1, 100, scale=PAPER_SCALE))
    )
    history = fit(svi, x, epochs=40, validation=x, progress=False)
    assert history["loss"][-1] < history["loss"][0]
    assert {"radius", "log_likelihood", "validation_loss"} <= history.records[-1].keys()
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].base_dist
    exact = (3 * 0.1 / 500 * (PAPER_SCALE / q.radius).sum(-1).mean()).detach()
    svi.evaluate(x)
    assert float(svi.loss.record["radius"]) == pytest.approx(float(exact))
    for judge in (
        lambda: log_weights(model, guide, x, 4),
        lambda: IWELBO(4).differentiable_loss(model, guide, x),
        lambda: train(model, guide, IWELBO(4)).step(x),
    ):
        with pytest.raises(WeightlessError, match="site 'z' has no importance weights: .*leave"):
            judge()


def test_the_penalty_and_the_kl_pull_apart():
    """Opposite slopes in r everywhere: the penalty is no KL of the guide that it is used with."""
    kl, penalty = (line.get_ydata() for line in plots.penalty_and_kl().axes[0].lines)
    assert (np.diff(kl) > 0).all() and (np.diff(penalty) < 0).all()
    assert penalty[30] == pytest.approx(6e-4)  # r = 1
    kl = plots.penalty_and_kl(width=1.0).axes[0].lines[0].get_ydata()
    assert kl[30] == pytest.approx(0.000164, abs=1e-6)


def test_the_penalty_is_a_mean_over_particles_and_data():
    """The same for K draws, and for a batch twice as long."""
    model, guide = paper_pair()
    x, losses = binary(5, 8), []
    for particles, batch in ((1, x), (3, x), (1, torch.cat([x, x]))):
        penalty = RadiusPenalty(0.1, 100, scale=1.0)
        loss = PenalizedELBO(beta=0.0, num_particles=particles, radius=penalty)
        loss.loss(model, guide, batch)
        losses.append(float(loss.record["radius"]))
    assert losses == pytest.approx(losses[:1] * 3)


# Bad input


def test_a_radius_must_be_positive():
    """Of all three distributions; and of the penalty, whatever it is made of."""
    for radius in (0.0, -1.0):
        for make in (
            Epanechnikov,
            partial(SmoothedEpanechnikov, scale=1.0),
            partial(BoxedEpanechnikov, width=1.0),
        ):
            with pytest.raises(ValueError, match="parameter radius .* GreaterThan"):
                make(0.0, radius=radius)
    with pytest.raises(ValueError, match="parameter scale"):
        SmoothedEpanechnikov(0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="parameter width"):
        BoxedEpanechnikov(0.0, 1.0, -0.1)
    with pytest.raises(ValueError, match="width must be positive and finite, but is 0"):
        RadiusPenalty(0, 100, scale=1.0)
    with pytest.raises(ValueError, match="minibatch must be positive and finite, but is -1"):
        RadiusPenalty(0.1, -1, scale=1.0)


def test_a_value_outside_the_support_is_refused():
    """In words with validation, and of density 0 without; rounding is forgiven."""
    for make in (Epanechnikov, partial(BoxedEpanechnikov, width=0.5)):
        q = make(torch.tensor(100.0), radius=torch.tensor(1.0))
        with pytest.raises(ValueError, match="within the support"):
            q.log_prob(torch.tensor(101.5))
        lenient = make(torch.tensor(100.0), radius=torch.tensor(1.0), validate_args=False)
        assert lenient.log_prob(torch.tensor(101.5)) == -math.inf
        edge = q.support.upper_bound
        assert q.log_prob(edge).isfinite()
    with pytest.raises(ValueError, match="within the support"):
        kernel().cdf(tensor(1.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "gaussian"}, "unknown variant 'gaussian': choose 'normal', 'box'"),
        ({"variant": "normal", "width": 1.0}, "variant 'normal' takes no width, but no such"),
        ({"variant": "paper", "noise": 1.0}, r"takes no noise, but \['scale', 'width'\]"),
        ({"variant": "box", "width": 0.0}, "width must be positive and finite, but is 0.0"),
        ({"variant": "smooth", "noise": -0.1}, "noise must be positive and finite, but is -0.1"),
        ({"min_radius": 0.0}, "min_radius must be positive and finite, but is 0.0"),
        ({"variant": "box", "width": 1.0, "min_radius": 0.5}, "min_radius must be below"),
    ],
)
def test_a_guide_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Guide(MLP(8, 16), latent_dim=2, **arguments)


def test_a_guide_needs_an_encoder():
    with pytest.raises(TypeError, match="Linear has no out_features|out_features"):
        Guide(nn.ReLU(), latent_dim=2)


def test_a_penalty_needs_kernels():
    loss = PenalizedELBO(beta=0.0, radius=RadiusPenalty(0.1, 100, scale=PAPER_SCALE))
    with pytest.raises(TypeError, match="guide's site 'z' is a Normal: take guides.Epanechnikov"):
        train(vae(), Normal(MLP(8, 16), 2), loss).step(binary(5, 8))


def test_a_prior_that_validates_is_refused_with_the_mend():
    with pytest.raises(PairError, match="make the prior with validate_args=False"):
        check_pair(*paper_pair(validate=True), binary(5, 8))


def test_a_marked_site_is_not_an_excuse_for_another():
    """A guide with weights must stay within the prior."""
    with pytest.raises(PairError, match="draws values outside the model's support"):
        check_pair(vae(prior=box(0.1, validate_args=False)), Guide(MLP(8, 16), 2), binary(5, 8))


# Distributions as Pyro wants them


@pytest.mark.parametrize(
    "make",
    [
        Epanechnikov,
        partial(SmoothedEpanechnikov, scale=0.2),
        partial(BoxedEpanechnikov, width=0.2),
    ],
)
def test_a_distribution_keeps_its_shape(make):
    """Expansion, events, gradients, dtype."""
    loc = torch.tensor([0.1, -3.0], dtype=torch.float64, requires_grad=True)
    q = make(loc, radius=torch.tensor(0.5, dtype=torch.float64))
    wide = q.expand((3, 2)).to_event(1)
    assert (wide.batch_shape, wide.event_shape) == ((3,), (2,))
    z = wide.rsample((4,))
    assert z.shape == (4, 3, 2) and z.dtype == torch.float64
    assert wide.log_prob(z).shape == (4, 3)
    z.sum().backward()
    assert torch.equal(loc.grad, torch.full((2,), 12.0).double())
    many = q.sample((200_000,))
    torch.testing.assert_close(many.mean(0), q.mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(many.var(0), q.variance, rtol=0.02, atol=0)


def test_the_entropy_is_the_mean_of_minus_log_density():
    q = kernel(0.2, 3.0)
    assert float(q.entropy()) == pytest.approx(0.5680544 + math.log(3), abs=1e-7)
    draws = -q.log_prob(q.sample((200_000,)))
    assert float(draws.mean()) == pytest.approx(
        float(q.entropy()), abs=5 * float(draws.std()) / 447
    )


@pytest.mark.parametrize("variant", ["normal", "box", "smooth", "paper"])
def test_the_recipe_trains_every_variant(variant):
    """With the prior and the objective that go with it."""
    svi = evae(8, variant=variant, hidden=(16,), latent_dim=2, device="cpu")
    history = fit(svi, binary(50, 8), epochs=2, progress=False)
    assert math.isfinite(history["loss"][-1])
    assert isinstance(svi.loss, PenalizedELBO) == (variant == "paper")
    prior = svi.model.prior()
    bounded = isinstance(getattr(prior, "base_dist", None), dist.Uniform)
    assert bounded == (variant in ("box", "paper"))
    if bounded:
        half = float(prior.base_dist.high[0])
        assert half == pytest.approx({"box": 3**0.5, "paper": 0.05}[variant])


def test_the_recipe_takes_a_width():
    svi = evae(8, variant="paper", width=0.4, minibatch=50, latent_dim=2, device="cpu")
    assert float(svi.model.prior().base_dist.high[0]) == pytest.approx(0.2)
    penalty = svi.loss.penalty_functions[0]
    assert (penalty.weight, penalty.scale) == (pytest.approx(3 * 0.4 / 250), PAPER_SCALE)
    q = poutine.trace(svi.guide).get_trace(binary(5, 8)).nodes["z"]["fn"].base_dist
    assert (
        q.width.unique() == 0.4 and 0.3 < float(q.radius.detach().mean()) < 0.42
    )  # b r, r near 1
    with pytest.raises(ValueError, match="variant 'normal' takes no width"):
        evae(8, width=0.4, device="cpu")
