"""Divergences against closed forms, quadrature and brute force."""

import importlib
import math
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from ppvae.divergences import Critic, mmd, mmd_gaussian, stein, svgd
from ppvae.divergences.kernels import squared_width

WIDTHS = [1.0, "author", None]


def normal(loc, variance, d=None, batch=1):
    """A batch of posteriors N(loc, variance I), in double precision."""
    loc = torch.as_tensor(loc, dtype=torch.float64)
    loc = loc.expand(batch, d) if d else loc
    scale = torch.full_like(loc, variance**0.5)
    return dist.Normal(loc, scale).to_event(1)


def standard(d):
    """The prior N(0, I)."""
    return dist.Normal(torch.zeros(d).double(), torch.ones(d).double()).to_event(1)


def expected(m1, s1, m2, s2, g2):
    """E k of N(m1, s1 I) and N(m2, s2 I), as the sheet has it."""
    v = g2 + s1 + s2
    return (g2 / v) ** (len(m1) / 2) * math.exp(-((m1 - m2).square().sum()) / (2 * v))


def within(values, target, errors=5):
    """Assert that the mean of replicates is the target, within so many standard errors."""
    values = torch.stack(list(values))
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - target) < errors * error
    return error


# MMD


@pytest.mark.parametrize(
    ("width", "value"), [(1.0, 0.055960), ("author", 0.032448), (None, 0.062515)]
)
def test_the_closed_form_is_what_samples_estimate(width, value):
    """N(.3, .5 I) to N(0, I), d = 5: a formula, `mmd_gaussian` of one datum, and 4,000 draws."""
    zero, m, g2 = torch.zeros(5), torch.full((5,), 0.3), squared_width(width, 5)
    formula = (
        expected(m, 0.5, m, 0.5, g2)
        - 2 * expected(m, 0.5, zero, 1.0, g2)
        + expected(zero, 1.0, zero, 1.0, g2)
    )
    assert formula == pytest.approx(value, abs=1e-6)
    closed = mmd_gaussian(normal(0.3, 0.5, 5), standard(5), bandwidth=width)
    assert closed.item() == pytest.approx(value, abs=1e-6)
    z, y = 0.3 + 0.5**0.5 * torch.randn(4000, 5), torch.randn(4000, 5)
    drawn = mmd(z, y, bandwidth=width)
    halves = [mmd(a, b, bandwidth=width) for a, b in zip(z.split(200), y.split(200), strict=True)]
    assert abs(drawn - value) < 4 * torch.stack(halves).std() / len(halves) ** 0.5


POWER = {  # the sheet's table: signal and noise by d, for g = 1, "author" and the default
    5: [(1.95e-2, 1.4e-3), (2.15e-2, 1.5e-3), (4.36e-2, 2.1e-3)],
    20: [(1.5e-5, 4.5e-6), (2.30e-3, 2.9e-4), (5.27e-2, 1.2e-3)],
    80: [(8e-20, 1.5e-18), (1.54e-4, 3.9e-5), (5.58e-2, 6.1e-4)],
}


def noise(d, g2, n=200):
    """The s.d. of the U-statistic of two samples of n draws of N(0, I), from the kernel's."""
    second = (g2 / (g2 + 4)) ** (d / 2)
    projected = (g2 / (g2 + 1)) ** d * ((g2 + 1) / (g2 + 3)) ** (d / 2)
    variance = second - 2 * projected + (g2 / (g2 + 2)) ** d  # of the centered kernel
    return (variance * (4 / (n * (n - 1)) + 4 / n**2)) ** 0.5


@pytest.mark.parametrize("d", list(POWER))
@pytest.mark.parametrize("column", range(3))
def test_the_power_of_bandwidths(d, column):
    """N(0, 2 I) to N(0, I) over the noise at equality: g = 1 is blind for d >= 20."""
    width = WIDTHS[column]
    signal, error = POWER[d][column]
    closed = mmd_gaussian(normal(0.0, 2.0, d), standard(d), bandwidth=width)
    assert closed.item() == pytest.approx(signal, rel=0.07 if signal < 1e-4 else 0.01)  # rounded
    assert noise(d, squared_width(width, d)) == pytest.approx(error, rel=0.1)  # simulated


@pytest.mark.parametrize("width", WIDTHS)
def test_the_noise_of_the_u_statistic(width):
    """150 replicates of 200 draws have the s.d. that the kernel's moments say."""
    values = torch.stack(
        [
            mmd(torch.randn(200, 5).double(), torch.randn(200, 5).double(), bandwidth=width)
            for _ in range(150)
        ]
    )
    assert values.std().item() == pytest.approx(noise(5, squared_width(width, 5)), rel=0.2)


def test_the_u_statistic_is_unbiased_and_the_v_statistic_is_not():
    """At equality the former has mean 0, the latter (1 - E k) (1/n + 1/m)."""
    n, m, d = 20, 30, 5
    kernel = (5 / 7) ** (d / 2)
    assert kernel == pytest.approx(0.431201, abs=1e-6)
    draws = [(torch.randn(n, d), torch.randn(m, d)) for _ in range(400)]
    within([mmd(*pair) for pair in draws], 0.0)
    within([mmd(*pair, estimator="v") for pair in draws], (1 - kernel) * (1 / n + 1 / m))


def imq(v, d, c):
    """E k of an inverse multiquadric kernel, from the sheet's integral."""
    return quad(lambda u: math.exp(-u) * (1 + 2 * u * v / c) ** (-d / 2), 0, np.inf)[0]


@pytest.mark.parametrize(
    ("d", "kernel", "one", "seven"),
    [(5, 0.544938, 0.028198, 0.13198), (20, 0.512182, 0.031890, 0.13727)],
)
def test_imq_is_its_integral(d, kernel, one, seven):
    """N(0, 2 I) to N(0, I), by one scale and by seven, against quadrature and draws."""

    def squared(c):
        return imq(4, d, c) - 2 * imq(3, d, c) + imq(2, d, c)

    scales = [2 * d * t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
    assert imq(2, d, 2 * d) == pytest.approx(kernel, abs=1e-6)
    assert squared(2 * d) == pytest.approx(one, abs=1e-6)
    assert sum(map(squared, scales)) == pytest.approx(seven, abs=1e-5)
    draws = ((2**0.5 * torch.randn(200, d), torch.randn(200, d)) for _ in range(100))
    error = within([mmd(*pair, kernel="imq") for pair in draws], seven)
    assert error < seven / 50


def test_particles_are_averaged():
    """One discrepancy each, over the axis of data."""
    z, y = torch.randn(3, 7, 2), torch.randn(3, 7, 2)
    each = torch.stack([mmd(*pair) for pair in zip(z, y, strict=True)])
    torch.testing.assert_close(mmd(z, y), each.mean())


def test_prior_scale_sets_the_default_bandwidth():
    """2 g^2 = 2 d s^2, in the unit of z: the same number for whatever unit."""
    z, y = torch.randn(9, 3).double(), torch.randn(9, 3).double()
    torch.testing.assert_close(mmd(5 * z, 5 * y, prior_scale=5.0), mmd(z, y))


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
@pytest.mark.parametrize("estimator", ["u", "v"])
def test_the_gradient_of_mmd(kernel, estimator):
    """Against finite differences, for both samples."""
    inputs = [torch.randn(n, 2).double().requires_grad_() for n in (4, 5)]
    assert torch.autograd.gradcheck(partial(mmd, kernel=kernel, estimator=estimator), inputs)


# MMD of Normals, in closed form


def test_the_closed_form_of_two_data():
    """mu = (-1, 1), v = .5, d = 1, g = 1: with i = j it is the mixture's, by quadrature."""
    q, p = normal([[-1.0], [1.0]], 0.5), standard(1)
    with_itself = mmd_gaussian(q, p, bandwidth=1.0)
    assert with_itself.item() == pytest.approx(0.025347, abs=1e-6)
    without = mmd_gaussian(q, p, bandwidth=1.0, estimator="u")
    assert without.item() == pytest.approx(-0.198141, abs=1e-6)
    grid = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    mixture = q.log_prob(grid[:, None, None]).exp().mean(-1)
    difference = (mixture - p.log_prob(grid[:, None]).exp()) * (grid[1] - grid[0])
    kernel = (-(grid[:, None] - grid).square() / 2).exp()
    assert (difference @ kernel @ difference).item() == pytest.approx(0.025347, abs=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_closed_form_is_the_mean_of_sampled_ones(width):
    """One draw per datum and U-statistics, against the closed form without i = j."""
    q = dist.Normal(torch.randn(12, 3), torch.rand(12, 3) + 0.1).to_event(1)
    p = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    draws = (mmd(q.sample(), p.sample((12,)), bandwidth=width) for _ in range(600))
    within(draws, mmd_gaussian(q, p, bandwidth=width, estimator="u"))


def brute(m, s, a, b, estimator="v", g2=None):
    """`mmd_gaussian` as the sheet writes it, every pair at once."""
    m, v = (m - a) / b, (s / b) ** 2
    d = m.shape[-1]
    g2 = d if g2 is None else g2

    def kernel(delta, w):
        return ((g2 / w).sqrt() * (-delta.square() / (2 * w)).exp()).prod(-1)

    qq = kernel(m[:, None] - m, g2 + v[:, None] + v)
    if estimator == "v":
        qq = qq.mean()
    else:
        qq = (qq.sum() - qq.diagonal().sum()) / (len(m) * (len(m) - 1))
    return qq - 2 * kernel(m, g2 + 1 + v).mean() + (g2 / (g2 + 2)) ** (d / 2)


def moments(n=7, d=3):
    """Means, scales, and a prior's, that require gradients."""
    tensors = (torch.randn(n, d), torch.rand(n, d) + 0.2, torch.randn(d), torch.rand(d) + 0.5)
    return [t.double().requires_grad_() for t in tensors]


def gaussian(m, s, a, b, **options):
    """`mmd_gaussian` of tensors."""
    q, p = dist.Normal(m, s).to_event(1), dist.Normal(a, b).to_event(1)
    return mmd_gaussian(q, p.expand(q.batch_shape), **options)


@pytest.mark.parametrize("estimator", ["u", "v"])
@pytest.mark.parametrize("block", [None, 1, 45])
def test_blocks_do_not_change_the_closed_form(estimator, block, monkeypatch):
    """Value and gradients are those of all pairs at once, the prior's included."""
    if block:
        module = importlib.import_module("ppvae.divergences.mmd_gaussian")
        monkeypatch.setattr(module, "BLOCK", {"cpu": block})
    inputs = moments()
    ours, theirs = gaussian(*inputs, estimator=estimator), brute(*inputs, estimator=estimator)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    gradients = (torch.autograd.grad(value, inputs) for value in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_the_gradient_of_the_closed_form():
    """Against finite differences."""
    assert torch.autograd.gradcheck(gaussian, moments(4, 2))


def test_the_closed_form_of_many_coordinates_is_finite():
    """Also where the product of widths overflows: the kernel is 0 there."""
    m = torch.randn(5, 400, requires_grad=True)
    value = gaussian(m, torch.ones(5, 400), torch.zeros(400), torch.ones(400), bandwidth=0.3)
    value.backward()
    assert value.isfinite() and m.grad.isfinite().all()


@pytest.mark.parametrize("expanded", [True, False])
def test_the_closed_form_under_particles(expanded):
    """Particles that are expanded count once; those that differ are averaged."""
    m, s, a, b = moments()
    if expanded:
        q = dist.Normal(m, s).to_event(1).expand((3, 7))
        parts = [(m, s)]
    else:
        stacked = torch.stack([m, m + 1, 2 * m])
        q = dist.Normal(stacked, s.expand(3, 7, 3)).to_event(1)
        parts = [(each, s) for each in stacked]
    p = dist.Normal(a, b).to_event(1).expand((3, 7))
    target = torch.stack([brute(*part, a, b) for part in parts]).mean()
    torch.testing.assert_close(mmd_gaussian(q, p), target)


# Stein


@pytest.mark.parametrize(
    ("d", "s", "g", "value"), [(2, 0.25, 1.0, 0.50000), (10, 0.25, None, 0.41975)]
)
def test_the_stein_discrepancy_of_another_width(d, s, g, value):
    """N(0, s I): d (s - 1)^2 (g^2/(g^2 + 2 s))^(d/2) / (g^2 + 2 s)."""
    g2 = squared_width(g, d)
    formula = d * (s - 1) ** 2 * (g2 / (g2 + 2 * s)) ** (d / 2) / (g2 + 2 * s)
    assert formula == pytest.approx(value, abs=1e-5)
    error = within([stein(s**0.5 * torch.randn(100, d), bandwidth=g) for _ in range(200)], value)
    assert error < value / 50


def test_the_stein_discrepancy_of_another_mean():
    """N(m, I): m.m (g^2/(g^2 + 2))^(d/2), also in the units of another prior."""
    m = torch.tensor([0.5, -1.0, 0.3])
    value = (m @ m).item() * (3 / 5) ** 1.5
    within([stein(m + torch.randn(100, 3)) for _ in range(200)], value)
    p = dist.Normal(torch.ones(3), 2.0).to_event(1)
    within([stein(1 + 2 * (m + torch.randn(100, 3)), p) for _ in range(200)], value)


@pytest.mark.parametrize("g", [1.0, None])
def test_the_stein_discrepancy_at_equality(g):
    """0 in the mean without i = j, (d + d/g^2)/n with."""
    n, d = 50, 4
    draws = [torch.randn(n, d) for _ in range(400)]
    within([stein(z, bandwidth=g) for z in draws], 0.0)
    value = (d + d / squared_width(g, d)) / n
    within([stein(z, bandwidth=g, estimator="v") for z in draws], value)


def test_without_its_trace_it_would_be_no_discrepancy():
    """With g = 1 and d = 2 the other terms are least near s.d. .5, and negative; ours is not."""

    def without(scale):
        z = scale * noise
        r2 = torch.cdist(z, z).square()
        return ((-r2 / 2).exp() * (z @ z.mT - r2)).mean()

    noise = torch.randn(1500, 2).double()
    assert without(0.5) < 0 and without(0.5) < without(1.0)
    values = [stein(scale * noise, bandwidth=1.0) for scale in (0.5, 1.0, 1.5)]
    assert values[1] < values[0] and values[1] < values[2]


def test_the_direction_of_svgd():
    """Against the kernel's own gradient by autograd: -phi / N."""
    z = torch.randn(6, 3).double().requires_grad_()
    value = svgd(z)
    (ours,) = torch.autograd.grad(value, z)
    assert value == 0
    points, phi = z.detach(), []
    for x in points:
        y = points.clone().requires_grad_()
        k = (-(y - x).square().sum(-1) / 6).exp()  # 2 g^2 = 2 d
        (slopes,) = torch.autograd.grad(k.sum(), y)
        phi.append((k.detach()[:, None] * -points + slopes).mean(0))
    torch.testing.assert_close(ours, -torch.stack(phi) / 6)


def test_svgd_rests_at_the_prior():
    """Its gradient by a shift vanishes in the mean at q = p, and points back from elsewhere."""

    def slope(offset):
        shift = torch.full((2,), offset, requires_grad=True)
        (gradient,) = torch.autograd.grad(svgd(torch.randn(50, 2) + shift), shift)
        return gradient[0]

    within([slope(0.0) for _ in range(300)], 0.0)
    assert torch.stack([slope(1.0) for _ in range(50)]).mean() > 0.1


def test_a_prior_sets_the_unit_of_stein_and_svgd():
    """Shifted and stretched draws of a shifted and stretched prior are no different."""
    z = torch.randn(6, 3).double()
    p = dist.Normal(torch.full((3,), 2.0).double(), 0.5).to_event(1)
    torch.testing.assert_close(stein(2 + z / 2, p.expand((6,))), stein(z))
    moved = (2 + z / 2).requires_grad_()
    still = z.clone().requires_grad_()
    (a,), (b,) = (
        torch.autograd.grad(loss, x) for loss, x in ((svgd(moved, p), moved), (svgd(still), still))
    )
    torch.testing.assert_close(a, 2 * b)


# The critic


def noisy(features=3):
    """A critic with running means."""
    layers = nn.Linear(features, 8), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), nn.Linear(8, 1)
    return nn.Sequential(*layers).double()


def samples():
    """Fakes and reals, of different numbers."""
    fake, real = torch.randn(6, 3).double(), 1 + torch.randn(9, 3).double()
    return fake.requires_grad_(), real.requires_grad_()


def ones(logits, label=1.0):
    """BCE to a label."""
    return bce(logits, torch.full_like(logits, label))


def test_an_undecided_critic():
    """At output 1/2: BCE sum 2 ln 2, divergence 0."""
    critic = Critic(nn.Linear(3, 1).double())
    nn.init.zeros_(critic.network.weight), nn.init.zeros_(critic.network.bias)
    value = critic(*samples())
    assert value.item() == 0
    assert critic.record["critic"].item() == pytest.approx(1.386294, abs=1e-6)
    assert critic.record["generator"].item() == pytest.approx(math.log(2))


def test_a_perfect_critic():
    """ln 2 where the samples lie apart, and finite gradients."""
    critic = Critic(nn.Linear(1, 1).double())
    nn.init.constant_(critic.network.weight, 1e3), nn.init.zeros_(critic.network.bias)
    fake, real = torch.full((4, 1), -1.0).double(), torch.full((4, 1), 1.0).double()
    value = critic(fake.requires_grad_(), real)
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert fake.grad.isfinite().all() and (fake.grad < 0).all()  # toward the reals still


@pytest.mark.parametrize("saturating", [False, True])
def test_the_gradients_of_a_critic(saturating):
    """Value and both sides' gradients, from one backward, against each side's own loss."""
    critic, (fake, real) = Critic(noisy(), saturating=saturating), samples()
    network = critic.network
    value = critic(fake, real)
    parameters = tuple(network.parameters())
    *ours, to_fake, to_real = torch.autograd.grad(value, (*parameters, fake, real))
    d = (ones(network(real.detach())) + ones(network(fake.detach()), 0.0)) / 2
    assert value.item() == pytest.approx(math.log(2) - d.item(), abs=1e-12)
    torch.testing.assert_close(ours, list(torch.autograd.grad(d, parameters)))
    generator = -ones(network(fake), 0.0) / 2 if saturating else ones(network(fake)) / 2
    torch.testing.assert_close(to_fake, *torch.autograd.grad(generator, fake))
    prior = -ones(network(real)) / 2 if saturating else ones(network(real), 0.0) / 2
    torch.testing.assert_close(to_real, *torch.autograd.grad(prior, real))
    assert critic.record["generator"].item() == pytest.approx(ones(network(fake)).item())
    assert critic.record["critic"].item() == pytest.approx(2 * d.item())


def test_buffers_move_once_per_sample():
    """By the critic's own pass, reals and fakes apart, and not by the generator's."""
    critic, (fake, real) = Critic(noisy()), samples()
    norm, by_hand = critic.network[1], noisy()
    by_hand.load_state_dict(critic.network.state_dict())
    critic(fake, real)
    assert norm.num_batches_tracked == 2
    by_hand(real), by_hand(fake)
    torch.testing.assert_close(norm.running_mean, by_hand[1].running_mean)


@pytest.mark.parametrize("how", ["evaluation", "no gradients"])
def test_a_critic_that_is_judged_does_not_learn(how):
    """Nothing moves, no gradient reaches its parameters, and the value is right."""
    critic, (fake, real) = Critic(noisy()), samples()
    critic.train(how != "evaluation")
    before = [t.clone() for t in critic.state_dict().values()]
    with torch.set_grad_enabled(how == "evaluation"):
        value = critic(fake, real)
    after = [t.clone() for t in critic.state_dict().values()]
    assert all(map(torch.equal, before, after))
    with torch.no_grad():
        d = (ones(critic.network(real)) + ones(critic.network(fake), 0.0)) / 2
    assert value.item() == pytest.approx(math.log(2) - d.item())
    if how == "evaluation":
        value.backward()
        assert fake.grad.any()
        assert all(p.grad is None for p in critic.parameters())


def test_the_samples_of_a_critic_have_any_shape():
    """Particles before fakes, images, and a logit per patch."""
    patches = Critic(nn.Conv2d(1, 1, 2, stride=2))
    assert patches(torch.randn(3, 5, 1, 4, 4), torch.randn(5, 1, 4, 4)).ndim == 0
    latents = Critic(noisy(), event_dim=1)
    z, y = torch.randn(4, 6, 3).double(), torch.randn(4, 6, 3).double()
    torch.testing.assert_close(latents(z, y), latents(z.flatten(0, 1), y.flatten(0, 1)))


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: mmd(z, z[:, :1]), r"\(..., N, d\).*\(5, 2\) and \(5, 1\)"),
        (lambda z: mmd(z, z, kernel="laplace"), "kernel must be 'rbf' or 'imq', but is 'laplace'"),
        (lambda z: mmd(z, z, estimator="w"), "estimator must be 'u' or 'v', but is 'w'"),
        (lambda z: mmd(z, z, bandwidth=0.0), "bandwidth must be a positive number"),
        (lambda z: mmd(z, z, bandwidth="median"), "None for sqrt.*but is 'median'"),
        (lambda z: mmd(z, z, prior_scale=-1.0), "prior_scale must be positive"),
        (lambda z: mmd(z[:1], z), r"this batch has one: .*drop_last=True.*estimator='v'"),
        (lambda z: stein(z[:1]), "this batch has one"),
        (lambda z: gaussian(z[:1], z[:1].exp(), 0 * z[0], 1, estimator="u"), "has one"),
        (lambda z: gaussian(z, z.exp(), 0 * z[0], 1, estimator="w"), "estimator must be"),
        (lambda z: gaussian(z, z.exp(), 1 * z, z.exp()), r"\(5, 2\).*give it batch shape \(\)"),
        (lambda z: Critic(nn.Linear(2, 1))(z, z[:, :1]), r"fake is \(5, 2\) and real \(5, 1\)"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    """Naming the argument or the shape, and the mend."""
    with pytest.raises(ValueError, match=message):
        call(torch.randn(5, 2))


def test_moments_want_normals():
    """Whose distribution it is, what it is, and what else there is."""
    p = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    full = dist.MultivariateNormal(torch.zeros(3, 2), torch.eye(2))
    with pytest.raises(TypeError, match="the guide's distribution is MultivariateNormal.*mmd"):
        mmd_gaussian(full, p)
    laplace = dist.Laplace(torch.zeros(2), 1.0).to_event(1)
    for refused in (partial(mmd_gaussian, p.expand((3,))), partial(stein, torch.zeros(3, 2))):
        with pytest.raises(TypeError, match="the prior's distribution is Laplace"):
            refused(laplace)
