"""The Poisson VAE against closed forms: exact checks by number, and what is refused."""

import copy
import math
import subprocess
import sys
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

from ppvae import SVI, WeightlessError, cli, fit, likelihoods, log_weights
from ppvae.distributions import RelaxedPoisson, event_window, relaxed_poisson, softclamp
from ppvae.distributions.soft_steps import soft_step
from ppvae.guides import FullRank, Normal, Poisson
from ppvae.models import VAE, LinearGaussian, PoissonVAE
from ppvae.networks import MLP, Flat
from ppvae.objectives import IWELBO, BetaELBO, LinearELBO, warmup
from ppvae.recipes import poisson
from ppvae.training.callbacks import anneal, bound_events

# Campbell's theorem: E z = lam I1, Var z = lam I2
LOSS_OF_VARIANCE = {"linear": 1 / 3, "cubic": 9 / 35, "quintic": 50 / 231, "cosine": 1 / 4}
SIGMOID = {
    1.0: (1.31326, 0.58220),
    0.5: (1.06346, 0.62307),
    0.1: (1.0, 0.90001),
    0.05: (1.0, 0.95),
    0.01: (1.0, 0.99),
}
SECOND = {  # I2 at T = 1, .5, .1, .05, .01
    "cubic": (0.74286, 0.87143, 0.97429, 0.98714, 0.99743),
    "linear": (0.66667, 0.83333, 0.96667, 0.98333, 0.99667),
    "quintic": (0.78355, 0.89177, 0.97835, 0.98918, 0.99784),
    "cosine": (0.75, 0.875, 0.975, 0.9875, 0.9975),
}
KERNELS = [*SECOND, "sigmoid"]
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def moments(kernel, temperature):
    """The sheet's I1 and I2."""
    if kernel == "sigmoid":
        return SIGMOID[temperature]
    return 1.0, SECOND[kernel][list(SIGMOID).index(temperature)]


def quadrature(kernel, temperature, function):
    """Integrate a function of (g, g', t) over t in [0, infinity), by midpoints."""
    t = (torch.arange(400_000, dtype=torch.float64) + 0.5) * (40 * temperature + 1) / 400_000
    g, slope = soft_step(kernel).values((1 - t) / temperature)
    slope = slope * ((1 - t).abs() <= soft_step(kernel).reach * temperature)
    return float(function(g, slope, t).mean() * (40 * temperature + 1))


def scalar(x=2.0, gain=0.0, **kwargs):
    """K = M = 1, Phi = 1, r = 1, and a guide whose log gain is one number, whatever x."""
    decoder = nn.Linear(1, 1, bias=False)
    nn.init.ones_(decoder.weight)
    model = PoissonVAE(decoder, 1, log_rate=(0.0, 0.0))
    guide = Poisson(Flat(1), model, **kwargs)
    nn.init.zeros_(guide.head.weight)
    nn.init.constant_(guide.head.bias, gain)
    return model, guide, torch.full((1, 1), x)


def three(**kwargs):
    """Three latents, two data, a guide of different gains."""
    torch.manual_seed(3)
    decoder = nn.Linear(3, 2, bias=False)
    model = PoissonVAE(decoder, 3, log_rate=(-1.0, 0.5))
    guide = Poisson(Flat(2), model, **kwargs)
    nn.init.normal_(guide.head.weight, std=0.5)
    return model, guide, torch.tensor([[0.3, -0.7], [1.0, 0.4]])


@torch.no_grad()
def evidence(model, x, most=40):
    """Ln p(x), (N,), by the sum over a grid of counts."""
    axes = [torch.arange(most + 1.0, dtype=torch.float64)] * model.latent_dim
    z = torch.cartesian_prod(*axes).reshape(-1, model.latent_dim)  # (G, K)
    model = copy.deepcopy(model).double()
    p_x = model.likelihood(model.decoder(z)).to_event(1)
    joint = p_x.log_prob(x.double().unsqueeze(1)) + model.prior().log_prob(z)
    return joint.logsumexp(-1)


def lam_of(model, guide, x):
    """The guide's rates."""
    return poutine.trace(guide).get_trace(x).nodes["z"]["fn"].base_dist.rate


# Check 1: the KL


@pytest.mark.parametrize("r", [1e-3, 0.05, 1.0, 7.0, 40.0])
@pytest.mark.parametrize("gain", [1e-3, 0.2, 1.3, 5.0, 20.0])
def test_check_1_the_kl_is_the_sum_over_counts(r, gain):
    r, lam = (torch.tensor(v, dtype=torch.float64) for v in (r, r * gain))
    z = torch.arange(3000, dtype=torch.float64)
    q, p = dist.Poisson(lam), dist.Poisson(r)
    summed = (q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))).sum()
    closed = kl_divergence(RelaxedPoisson(lam, 0.5), p)
    assert float(closed) == pytest.approx(float(summed), rel=1e-6)
    assert float(closed) == pytest.approx(float(kl_divergence(q, p)), rel=1e-6)


@pytest.mark.parametrize(("y", "f"), [(2.0, 0.3862944), (0.5, 0.1534264), (math.e, 1.0)])
def test_check_1_the_cost_of_a_gain(y, f):
    kl = kl_divergence(RelaxedPoisson(torch.tensor(y), 0.5), dist.Poisson(torch.tensor(1.0)))
    assert float(kl) == pytest.approx(f, abs=2e-7)


def test_check_1_numbers_and_gradient():
    r = torch.tensor(0.5, dtype=torch.float64)
    q = RelaxedPoisson(torch.tensor(1.5, dtype=torch.float64), 0.5)
    assert float(kl_divergence(q, dist.Poisson(r))) == pytest.approx(0.6479184, abs=5e-8)
    silent = RelaxedPoisson(torch.tensor(1e-12, dtype=torch.float64), 0.5)
    assert float(kl_divergence(silent, dist.Poisson(r))) == pytest.approx(0.5, abs=1e-9)
    log_gain = torch.tensor([-3.0, -0.1, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    lam = r * log_gain.exp()
    kl = kl_divergence(RelaxedPoisson(lam, 0.5), dist.Poisson(r.expand(4)))
    gradient = torch.autograd.grad(kl.sum(), log_gain)[0]
    torch.testing.assert_close(gradient, (lam * log_gain).detach())


def test_the_kl_is_dispatched_through_events_and_used_by_mean_field():
    """One number for `to_event`, and Pyro's own mean-field loss has no noise in its KL."""
    lam, r = torch.rand(5, 3) + 0.1, torch.rand(3) + 0.1
    kl = kl_divergence(RelaxedPoisson(lam, 0.5).to_event(1), dist.Poisson(r).to_event(1))
    torch.testing.assert_close(kl, kl_divergence(dist.Poisson(lam), dist.Poisson(r)).sum(-1))
    model, guide, x = three()
    nn.init.zeros_(model.decoder.weight)  # nothing but the KL is left to be noisy
    losses = {TraceMeanField_ELBO().loss(model, guide, x) for _ in range(5)}
    assert max(losses) == pytest.approx(min(losses), rel=1e-6)
    assert len({Trace_ELBO().loss(model, guide, x) for _ in range(5)}) == 5


# Check 2: precision


@pytest.mark.parametrize(
    ("delta", "plain", "stable"), [(1e-2, 3e-3, 6e-6), (1e-3, 0.05, 2e-4), (1e-4, 1.0, 1e-3)]
)
def test_check_2_the_stable_form_in_float32(delta, plain, stable):
    """At r = 1, relative to float64: what is registered, near delta, and the plain form."""
    d = torch.linspace(delta, 1.1 * delta, 1000)

    def errors(value, exact):
        return (value.double() / exact - 1).abs()

    exact = d.double().exp() * d.double() - d.double().expm1()
    assert errors(1 + d.exp() * (d - 1), exact).max() > plain / 2
    assert errors(d * d.exp() - d.expm1(), exact).median() < 2 * stable
    lam = d.exp()  # rounded: what the distribution sees
    exact = lam.double() * lam.double().log() - (lam.double() - 1)
    kl = kl_divergence(RelaxedPoisson(lam, 1.0), dist.Poisson(torch.ones(1000)))
    assert errors(kl, exact).median() < 2 * stable
    assert errors(kl, exact).max() < 6 * stable


# Check 3: the clamp


@pytest.mark.parametrize(
    ("limit", "changes"),
    [(5.3, (-0.0050, -0.0244, -0.0908, -0.3330)), (5.0, (-0.0067, -0.0326, -0.1188, -0.4026))],
)
def test_check_3_what_the_clamp_changes(limit, changes):
    lam = torch.tensor([1.0, 5.0, 20.0, 100.0])
    relative = softclamp(lam.log(), limit).exp() / lam - 1
    torch.testing.assert_close(relative, torch.tensor(changes), atol=6e-5, rtol=0)


def test_check_3_one_clamp_serves_draws_kl_and_expectation():
    """At a gain that wants 1,000 events: site, mean and KL have the same 167."""
    model, guide, x = scalar(gain=math.log(1000.0))
    q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    lam = 1000 / (1 + 1000 * math.exp(-5.3))
    rate = float(q.mean.detach())
    assert rate == pytest.approx(lam, rel=1e-2)  # the gain has a clamp of its own, at 10
    kl = float(kl_divergence(q, model.prior()).detach())
    assert kl == pytest.approx(rate * math.log(rate) - rate + 1, rel=1e-5)
    guide.eval()
    assert float(lam_of(model, guide, x).detach()) == rate
    counts = torch.stack(
        [poutine.trace(guide).get_trace(x).nodes["z"]["value"] for _ in range(500)]
    )
    assert float(counts.mean()) == pytest.approx(rate, abs=5 * (rate / 500) ** 0.5)


# Check 4: the closed reconstruction


def test_check_4_the_reconstruction_against_draws():
    """E|x - Phi z|^2 by 400,000 draws of counts, within 5 standard errors."""
    model, guide, x = three()
    lam, phi = lam_of(model, guide, x)[0].detach(), model.decoder.weight.detach()
    squared = (x[0] - torch.poisson(lam.expand(400_000, 3)) @ phi.mT).square().sum(-1)
    closed = (x[0] - phi @ lam).square().sum() + (lam * phi.square().sum(0)).sum()
    error = float(squared.std()) / 400_000**0.5
    assert abs(float(squared.mean() - closed)) < 5 * error
    loss = LinearELBO()
    loss.loss(model, guide, x[:1])
    constant = math.log(math.pi)  # (M/2) ln pi, M = 2
    assert -float(loss.record["log_likelihood"]) - constant == pytest.approx(float(closed), 1e-5)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_check_4_linear_elbo_is_the_mean_of_the_plain_loss_with_counts(beta):
    model, guide, x = three()
    guide.eval()
    plain = BetaELBO(beta, num_particles=2_000_000)
    value, closed = (loss.loss(model, guide, x) for loss in (plain, LinearELBO(beta)))
    assert closed == pytest.approx(value, abs=0.02)
    guide.train()
    assert LinearELBO(beta).loss(model, guide, x) == pytest.approx(closed, rel=1e-6)


def test_check_4_the_gradient_of_linear_elbo():
    """By finite differences in float64, of every parameter."""
    model, guide, x = three()
    model.double(), guide.double()
    elbo = LinearELBO(0.7)(model, guide)
    names, values = zip(*elbo.named_parameters(), strict=True)

    def loss(*values):
        return torch.func.functional_call(
            _Parts(model, guide), dict(zip(names, values, strict=True)), (x.double(),)
        )

    class _Parts(nn.Module):
        def __init__(self, model, guide):
            super().__init__()
            self.model, self.guide = model, guide

        def forward(self, batch):
            return LinearELBO(0.7).double().differentiable_loss(self.model, self.guide, batch)

    # the guide's own reference to the model is the same module, so its rates move with it
    assert torch.autograd.gradcheck(loss, [v.detach().clone().requires_grad_() for v in values])


def test_check_4_linear_elbo_serves_normal_guides():
    """And agrees with draws there, too, with a bias."""
    torch.manual_seed(0)
    model = VAE(nn.Linear(2, 3), 2, likelihood="normal")
    guide, x = Normal(Flat(3), 2), torch.rand(4, 3)
    closed = LinearELBO().loss(model, guide, x)
    drawn = BetaELBO(num_particles=100_000).loss(model, guide, x)
    assert closed == pytest.approx(drawn, abs=0.05)


# Check 5: Campbell's theorem


@each_kernel
@pytest.mark.parametrize("temperature", SIGMOID)
def test_check_5_moments(kernel, temperature):
    """200,000 draws; the sheet's I1 and I2, by quadrature as well."""
    first, second = moments(kernel, temperature)
    assert quadrature(kernel, temperature, lambda g, s, t: g) == pytest.approx(first, abs=1e-5)
    assert quadrature(kernel, temperature, lambda g, s, t: g * g) == pytest.approx(
        second, abs=1e-5
    )
    lam = torch.tensor([1.0, 8.0])
    z = RelaxedPoisson(lam, temperature, kernel).sample((200_000,))
    error = 5 * (second / (lam * 200_000)).sqrt()
    assert ((z.mean(0) / lam - first).abs() < error).all()
    assert ((z.var(0) / (lam * second) - 1).abs() < 0.03).all()


@pytest.mark.parametrize("kernel", SECOND)
def test_check_5_the_compact_kernels_lose_c_t_of_the_variance(kernel):
    for temperature, second in zip(SIGMOID, SECOND[kernel], strict=True):
        assert 1 - LOSS_OF_VARIANCE[kernel] * temperature == pytest.approx(second, abs=6e-6)


def test_temperature_0_draws_counts():
    """As a number: no pathwise gradient; as a tensor: the counts, without one."""
    lam = torch.tensor([0.3, 4.0, 60.0], requires_grad=True)
    plain = RelaxedPoisson(lam, 0.0)
    assert not plain.has_rsample and not plain.to_event(1).has_rsample
    assert plain.support is torch.distributions.constraints.nonnegative_integer
    with pytest.raises(NotImplementedError, match="T = 0"):
        plain.rsample()
    for q in (plain, RelaxedPoisson(lam, torch.tensor(0.0))):
        z = q.sample((20_000,))
        assert torch.equal(z, z.round())
        assert ((z.mean(0) - lam).abs() < 5 * (lam / 20_000).sqrt()).all()
        assert ((z.var(0) / lam - 1).abs() < 0.1).all()
    z = RelaxedPoisson(lam, torch.tensor(0.0), max_events=9).rsample()
    assert torch.autograd.grad(z.sum(), lam)[0].tolist() == [0.0, 0.0, 0.0]


# Check 6: truncation, of which there is none


@pytest.mark.parametrize("rate", [1e-3, 0.1, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0])
def test_check_6_nothing_is_truncated(rate):
    """The sheet's padded sampler has E z / lam = .9304 at lam = 100, T = 1; here it is 1."""
    size = int(max(20_000, min(2_000_000, 20_000 / rate)))
    z = RelaxedPoisson(torch.full((size,), rate), 1.0).sample()
    assert float(z.mean()) / rate == pytest.approx(1.0, abs=5 * (0.75 / (rate * size)) ** 0.5)


def test_check_6_the_sigmoid_too():
    """T = 1, lam = 100: I1 = 1.31326, where the padded sampler has .7658."""
    z = RelaxedPoisson(torch.full((4000,), 100.0), 1.0, "sigmoid").sample()
    assert float(z.mean()) / 100 == pytest.approx(1.31326, abs=5 * (0.58 / 4e5) ** 0.5)
    beyond = quadrature("sigmoid", 1.0, lambda g, s, t: g * (t > 15))
    assert 0 < beyond < 1e-6


# Check 7: gradients


@each_kernel
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1])
def test_check_7_the_mean_gradient(kernel, temperature):
    """E dz/dlam = I1, and of E z^2, which is not linear: I2 + 2 lam I1^2."""
    first, second = moments(kernel, temperature)
    lam = torch.tensor([0.2, 3.0], dtype=torch.float64).repeat(100_000, 1).requires_grad_()
    z = RelaxedPoisson(lam, temperature, kernel).rsample()
    for loss, exact in (
        (z, first + 0 * lam[0]),
        (z.square(), second + 2 * lam[0] * first**2),
    ):
        slope = torch.autograd.grad(loss.sum(), lam, retain_graph=True)[0]
        error = slope.std(0) / 100_000**0.5
        assert ((slope.mean(0) - exact).abs() < 5 * error).all()


@pytest.mark.parametrize(
    ("kernel", "temperature", "noise"),
    [
        ("sigmoid", 1.0, 0.358),
        ("cubic", 1.0, 0.686),
        ("sigmoid", 0.1, 1.688),
        ("cubic", 0.1, 6.01),
        ("sigmoid", 0.05, 3.344),
        ("cubic", 0.05, 12.00),
    ],
)
def test_check_7_the_noise_of_the_gradient(kernel, temperature, noise):
    """Lam Var dz/dlam, by quadrature and by draws."""
    exact = quadrature(kernel, temperature, lambda g, s, t: (s * t / temperature).square())
    assert exact == pytest.approx(noise, abs=6e-3)
    lam = torch.full((200_000,), 5.0, requires_grad=True)
    z = RelaxedPoisson(lam, temperature, kernel).rsample()
    slope = torch.autograd.grad(z.sum(), lam)[0]
    assert 5 * float(slope.var()) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(
    ("kernel", "k"),
    [("sigmoid", 1 / 6), ("linear", 1 / 2), ("cubic", 3 / 5), ("quintic", 5 / 7)]
    + [("cosine", math.pi**2 / 16)],
)
def test_check_7_the_noise_at_low_temperatures(kernel, k):
    noise = quadrature(kernel, 0.01, lambda g, s, t: (s * t / 0.01).square())
    assert 0.01 * noise == pytest.approx(k, rel=2e-3)


def test_check_7_cubic_at_3_6_times_the_temperature_has_the_sigmoids_noise():
    """And .926 of its bias of the variance."""
    sigmoid = quadrature("sigmoid", 0.05, lambda g, s, t: (s * t / 0.05).square())
    cubic = quadrature("cubic", 0.18, lambda g, s, t: (s * t / 0.18).square())
    assert cubic == pytest.approx(sigmoid, rel=0.01)
    assert (9 / 35 * 0.18) / (1 - SIGMOID[0.05][1]) == pytest.approx(0.926, abs=1e-3)


def test_the_gradient_is_that_of_arrivals_one_by_one():
    """Cumulated exponential waiting times and autograd: the same law of z and of dz/dlam."""
    lam = torch.full((100_000, 1), 2.0, dtype=torch.float64, requires_grad=True)
    t = (torch.empty(100_000, 30, dtype=torch.float64).exponential_() / lam).cumsum(-1)
    z = soft_step("cubic").values((1 - t) / 0.5)[0].sum(-1)
    slope = torch.autograd.grad(z.sum(), lam)[0].squeeze(-1)
    ours = RelaxedPoisson(lam.squeeze(-1), 0.5).rsample()
    ours_slope = torch.autograd.grad(ours.sum(), lam)[0].squeeze(-1)
    grid = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    for a, b in ((z.detach(), ours.detach()), (slope, ours_slope)):
        torch.testing.assert_close(a.mean(), b.mean(), atol=0.03, rtol=0)
        torch.testing.assert_close(a.quantile(grid), b.quantile(grid), atol=0.06, rtol=0)
    pairs = ((z.detach(), slope), (ours.detach(), ours_slope))
    joint = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]
    assert float(joint[0]) == pytest.approx(float(joint[1]), abs=0.02)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_no_gradient_is_zero_for_any_rate(temperature):
    """Of the loss in every log gain, for lam from 1e-6 to 200; draws' gradients are 1 on average.

    A single draw's pathwise gradient is 0 where no arrival falls into the window: what moves a
    unit then is the KL, whose gradient lam delta is not 0.
    """
    model = PoissonVAE(nn.Linear(1, 1, bias=False), 1, log_rate=(1.0, 1.0))
    log_gain = torch.linspace(-16.0, 17.0, 400).unsqueeze(-1).requires_grad_()
    lam = model.rate(log_gain)
    assert lam.min() < 1e-6 and 195 < lam.max() < 201
    q = RelaxedPoisson(lam, temperature).to_event(1)
    kl = kl_divergence(q, model.prior())
    gradient = torch.autograd.grad(kl.sum(), log_gain)[0]
    assert (gradient != 0).all()
    for rate, size in ((1e-6, 2**22), (1e-3, 2**19), (1.0, 2**16), (200.0, 2**12)):
        if rate < 1e-3 and temperature < 1:
            continue  # no draw would see an arrival
        lam = torch.full((size,), rate, requires_grad=True)
        slope = torch.autograd.grad(RelaxedPoisson(lam, temperature).rsample().sum(), lam)[0]
        error = (0.62 / (temperature * rate * size)) ** 0.5  # check 7
        assert 0 < float(slope.mean())
        assert float(slope.mean()) == pytest.approx(1.0, abs=5 * error)


def test_a_gradient_reaches_every_unit_at_the_papers_start():
    """Rates near e^-5 and one relaxed draw: no log rate's gradient is exactly zero."""
    svi = poisson(64, latent_dim=128, device="cpu")
    svi.step(torch.rand(50, 64))
    assert (svi.model.log_rate.grad != 0).all()
    assert (svi.guide.head.weight.grad.abs().sum(-1) > 0).all()


# Check 8: the KL by relaxed draws


@pytest.mark.parametrize(
    ("kernel", "values"),
    [("cubic", (0.651, 0.651, 0.648, 0.642)), ("sigmoid", (1.161, 0.751, 0.652, 0.650))],
)
def test_check_8_the_kl_by_relaxed_draws(kernel, values):
    """Ln q - ln p is linear in z: right on average for the cubic kernel, wrong for the sigmoid."""
    r, lam = torch.tensor(0.5), torch.tensor(1.5)
    for temperature, value in zip((1.0, 0.5, 0.1, 0.05), values, strict=True):
        q = RelaxedPoisson(lam, temperature, kernel)
        z = q.sample((400_000,))
        kl = q.log_prob(z) - dist.Poisson(r, validate_args=False).log_prob(z)
        error = float(kl.std()) / 400_000**0.5
        assert float(kl.mean()) == pytest.approx(value, abs=5 * (0.002 + error))
        exact = 1.5 * moments(kernel, temperature)[0] * math.log(3) - 1
        assert float(kl.mean()) == pytest.approx(exact, abs=5 * error)


# Check 9: evidence


def test_check_9_the_scalar_system():
    """-ln p(2) = 1.625478; the best guide has 2 lam - 3 + ln lam = 0 and -ELBO 2.400006."""
    model, guide, x = scalar()
    assert -float(evidence(model, x, 200)) == pytest.approx(1.625478, abs=1e-6)
    loss, optimizer = LinearELBO(), torch.optim.LBFGS([guide.head.bias], tolerance_change=1e-12)
    for _ in range(3):
        optimizer.step(lambda: (optimizer.zero_grad(), loss.loss_and_grads(model, guide, x))[1])
    lam = float(lam_of(model, guide, x).detach())
    assert lam == pytest.approx(1.349962, abs=1e-3)
    value = loss.loss(model, guide, x)
    assert value == pytest.approx(2.400006, abs=1e-5)
    assert value - math.log(math.pi) / 2 == pytest.approx(1.827641, abs=1e-5)
    assert value - 1.625478 == pytest.approx(0.774528, abs=1e-5)
    log_w = log_weights(model, guide, x, 400_000)
    assert float(log_w.mean()) == pytest.approx(-2.400006, abs=0.02)
    assert float(log_w.logsumexp(0)) - math.log(400_000) == pytest.approx(-1.625478, abs=0.01)


def test_check_9_three_latents_on_a_grid_of_counts():
    model, guide, x = three()
    exact = evidence(model, x)
    log_w = log_weights(model, guide, x, 400_000)
    bound = log_w.logsumexp(0) - math.log(400_000)
    torch.testing.assert_close(bound.double(), exact, atol=0.02, rtol=0)
    assert (log_w.mean(0) < exact).all()


@pytest.mark.parametrize("loss", [BetaELBO(), LinearELBO(), IWELBO(5)])
def test_every_evaluation_is_a_bound(loss):
    """On counts, whatever the temperature of training."""
    model, guide, x = three(temperature=1.0)
    svi = SVI(model, guide, partial(torch.optim.Adam, lr=1e-3), loss)
    values = torch.stack([svi.evaluate(x.repeat(200, 1)) for _ in range(20)])
    error = float(values.std()) / 20**0.5
    assert float(values.mean()) > -float(evidence(model, x).mean()) - 3 * error


def test_in_training_the_relaxed_draws_are_no_bound_and_say_so():
    """Their variance is too small, so the loss at T = 1 lies below that of counts."""
    model, guide, x = three(temperature=1.0)
    x = x.repeat(2000, 1)
    surrogate = BetaELBO(num_particles=200).loss(model, guide, x) / len(x)
    closed = LinearELBO().loss(model, guide, x) / len(x)
    lost = (lam_of(model, guide, x) * model.decoder.weight.square().sum(0)).sum(-1).mean()
    assert closed - surrogate == pytest.approx(9 / 35 * float(lost.detach()), abs=0.015)
    with pytest.raises(WeightlessError, match="'z' has no importance weights: .*no bound"):
        IWELBO(4).loss(model, guide, x)
    guide.eval()
    assert math.isfinite(IWELBO(4).loss(model, guide, x))


# Other gradients


@pytest.mark.parametrize("gradient", ["relaxed", "score", "straight-through"])
def test_the_gradients_that_are_compared(gradient):
    """In lam, of E|x - z|^2 + KL: the score function's is that of counts, the relaxed one's too
    but for 9/35 T of the variance's part, the straight-through one's but for its covariance."""
    model, guide, x = scalar(gradient=gradient, temperature=0.5)
    x = x.expand(1000, 1)
    values = []
    for _ in range(20):
        guide.zero_grad()
        BetaELBO(num_particles=100).differentiable_loss(model, guide, x).backward()
        values.append(float(guide.head.bias.grad) / 1000)
    values = torch.tensor(values)
    lam = lam_of(model, guide, x)[0]
    chain = float(torch.autograd.grad(lam.sum(), guide.head.bias)[0])
    lam = float(lam.detach())
    second = 1 - 9 / 35 * 0.5
    through = quadrature("cubic", 0.5, lambda g, s, t: s * t / 0.5 * (t <= 1))  # E z_hard dz/dlam
    variance = {"relaxed": second, "score": 1.0, "straight-through": 2 * through}[gradient]
    exact = chain * (2 * (lam - 2) + variance + math.log(lam))
    assert float(values.mean()) == pytest.approx(exact, abs=5 * float(values.std()) / 20**0.5)


def test_straight_through_draws_are_counts():
    lam = torch.full((50_000,), 3.0, requires_grad=True)
    z = RelaxedPoisson(lam, 0.5, straight_through=True).rsample()
    assert torch.equal(z, z.round())
    assert float(z.detach().mean()) == pytest.approx(3.0, abs=0.04)
    assert float(z.detach().var()) == pytest.approx(3.0, abs=0.1)
    assert float(torch.autograd.grad(z.mean(), lam)[0].sum()) == pytest.approx(1.0, abs=0.03)


# Check 12: sizes


@pytest.mark.parametrize(("features", "count"), [(256, 262_656), (784, 803_328)])
def test_check_12_the_number_of_parameters(features, count):
    svi = poisson(features, device="cpu")
    assert sum(p.numel() for p in svi.parameters.values()) == count
    assert set(svi.parameters) == {"model.log_rate", "model.decoder.weight", "guide.head.weight"}
    assert -6 < svi.model.log_rate.min() < svi.model.log_rate.max() < -4
    for weight in (svi.model.decoder.weight, svi.guide.head.weight):
        assert float(weight.detach().std()) == pytest.approx(0.05, rel=0.02)


# Events: chunks, bounds, memory


def test_chunks_give_each_element_its_events(monkeypatch):
    """Whatever their size, and the padding goes to nobody."""
    monkeypatch.setattr(relaxed_poisson, "CHUNK", 7)
    number = torch.tensor([3, 0, 11, 1, 0, 9])
    for size, padding in ((24, 0), (30, 6)):
        owners = list(relaxed_poisson._owners(number, size))
        assert [len(o) for o in owners] == [7] * (size // 7) + [size % 7] * (size % 7 > 0)
        expected = torch.repeat_interleave(torch.cat([number, torch.tensor([padding])]))
        assert torch.equal(torch.cat(owners), expected)


def test_chunked_draws_have_the_same_moments(monkeypatch):
    monkeypatch.setattr(relaxed_poisson, "CHUNK", 1000)
    z = RelaxedPoisson(torch.full((10_000,), 5.0), 1.0).sample()
    assert float(z.mean()) == pytest.approx(5.0, abs=0.1)
    assert float(z.var()) == pytest.approx(5 * 0.74286, rel=0.1)


def test_a_bound_on_events_that_holds_changes_nothing():
    """But the random numbers: the law is the same."""
    lam = torch.tensor([0.1, 1.0, 12.0]).repeat(50_000, 1)
    z = RelaxedPoisson(lam, 0.5, max_events=700_000).sample()
    assert z.isfinite().all()
    assert ((z.mean(0) / lam[0] - 1).abs() < 5 / (lam[0] * 50_000).sqrt()).all()


def test_a_bound_on_events_that_breaks_is_never_silent():
    """All of the draw is NaN, the elements that had their events as well."""
    lam = torch.full((100,), 10.0)
    assert RelaxedPoisson(lam, 1.0, max_events=1000, validate_args=False).rsample().isnan().all()
    with pytest.raises(ValueError, match="a draw had more than max_events=1000 events: raise it"):
        RelaxedPoisson(lam, 1.0, max_events=1000).rsample()


def test_a_broken_bound_stops_the_training():
    """In words in the first epoch, where validation is on; by its NaN afterwards."""
    model, guide, x = three()
    nn.init.constant_(guide.head.bias, 3.0)
    svi = SVI(model, guide, partial(torch.optim.Adam, lr=1e-3), BetaELBO())

    def bound(svi, history):
        svi.guide.max_events = 1

    with pytest.raises(FloatingPointError, match="site 'z' of the guide: its value"):
        fit(svi, x.repeat(50, 1), epochs=2, progress=False, callbacks=[bound])
    with pytest.raises(ValueError, match="more than max_events=1 events"):
        fit(svi, x.repeat(50, 1), epochs=1, progress=False)


def test_the_window_says_how_many_events_to_expect():
    for kernel, temperature, expected in (("cubic", 0.1, 0.2), ("cubic", 1.0, 2.0)):
        assert event_window(kernel, temperature) == pytest.approx(expected)
    assert event_window("sigmoid", 1.0) == 15.0
    assert float(event_window("cubic", torch.tensor(2.0))) == 3.0


MEMORY = """
import torch
from ppvae.distributions import RelaxedPoisson
torch.set_num_threads(1)
RelaxedPoisson(torch.ones(1000), 1.0).sample()
rate = torch.linspace(1e-6, 200, 512000).reshape(1000, 512).requires_grad_()
def status(key):
    return next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith(key))
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = status("VmRSS")
z = RelaxedPoisson(rate, 0.5).rsample()
z.sum().backward()
print(status("VmHWM") - before)
assert 0.99 < float(z.mean()) / 100 < 1.01 and 0.99 < float(rate.grad.mean()) < 1.01
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_stays_under_the_stated_bound():
    """Batch 1000, K = 512, rates up to 200: 51 million events in 64 bytes an element and 64 MB.

    One intermediate of the padded sampler has 539 MB.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 10e6 < int(done.stdout) * 1024 < 64 * 512_000 + 64e6


# Schedules


def build(seed=0, **kwargs):
    """A pair to resume."""
    pyro.set_rng_seed(seed)
    model = PoissonVAE(nn.Linear(4, 8, bias=False), 4, log_rate=(-1.0, 0.0))
    guide = Poisson(Flat(8), model, **kwargs)
    callbacks = [
        anneal("guide.temperature", warmup(3, start=1.0, end=0.1)),
        anneal("loss.beta", warmup(4, start=1e-4, end=1.0)),
        bound_events(margin=3.0),
    ]
    adam = partial(torch.optim.Adam, lr=1e-3)
    return SVI(model, guide, adam, BetaELBO(1e-4), callbacks=callbacks)


def test_schedules_resume_exactly(tmp_path):
    """Temperature, beta, the bound on events and the weights are where they would have been."""
    x, run = torch.rand(64, 8), partial(fit, batch_size=16, progress=False)
    whole = build()
    history = run(whole, x, epochs=4, checkpoint=tmp_path / "whole")
    assert float(whole.guide.temperature) == pytest.approx(0.1)
    assert float(whole.loss.beta) == 1.0
    assert whole.guide.max_events > 10
    assert len(set(history["loss"])) == 4
    run(build(), x, epochs=2, checkpoint=tmp_path / "parts")
    resumed = build(seed=1)
    run(resumed, x, epochs=4, checkpoint=tmp_path / "parts", resume=True)
    assert resumed.guide.max_events == whole.guide.max_events
    for side in ("model", "guide", "loss"):
        expected = getattr(whole, side).state_dict()
        for name, value in getattr(resumed, side).state_dict().items():
            assert (
                value == expected[name] if "extra" in name else torch.equal(value, expected[name])
            )


def test_the_first_epoch_has_the_starting_value():
    seen, svi = [], build()
    svi.callbacks = (lambda s, h: seen.append(float(s.guide.temperature)), *svi.callbacks)
    fit(svi, torch.rand(32, 8), epochs=5, progress=False)
    assert seen == pytest.approx([1.0, 0.7, 0.4, 0.1, 0.1])


def test_callbacks_refuse_what_is_not_there():
    x, adam = torch.rand(8, 8), partial(torch.optim.Adam, lr=1e-3)
    model = VAE(MLP(2, 8), 2)
    svi = SVI(model, Normal(MLP(8, 4), 2), adam, BetaELBO())
    with pytest.raises(ValueError, match=r"no buffer 'guide.temperature' to set.*loss\.beta"):
        fit(svi, x.round(), epochs=1, callbacks=[anneal("guide.temperature", warmup(2))])
    with pytest.raises(ValueError, match="Normal draws no events to bound: take guides.Poisson"):
        fit(svi, x.round(), epochs=1, callbacks=[bound_events()])
    with pytest.raises(ValueError, match="margin must be at least 1, but is 0.5"):
        bound_events(0.5)


@pytest.mark.parametrize("gradient", ["relaxed", "exact", "score", "straight-through"])
def test_the_recipe_learns(gradient):
    svi = poisson(
        16, latent_dim=8, gradient=gradient, anneal_epochs=2, learning_rate=0.02, device="cpu"
    )
    x = torch.rand(256, 1) * torch.rand(1, 16).round()
    before = float(torch.stack([svi.evaluate(x) for _ in range(20)]).mean())
    fit(svi, x, epochs=25, batch_size=32, progress=False)
    assert float(torch.stack([svi.evaluate(x) for _ in range(20)]).mean()) < before - 0.1
    assert float(svi.loss.beta) == 1.0
    relaxed = gradient in ("relaxed", "straight-through")
    assert float(svi.guide.temperature) == pytest.approx(0.05 if relaxed else 1.0)


def test_the_recipe_with_hidden_layers():
    svi = poisson(16, latent_dim=4, hidden=(8,), likelihood="bernoulli", device="cpu")
    assert svi.step(torch.rand(5, 16).round()).isfinite()
    assert svi.guide.head.bias is not None


def test_the_command_line_trains_and_resumes(tmp_path, monkeypatch, capsys):
    """Two epochs and two more end where four end."""

    def run(out, epochs, *more):
        words = ["train", "poisson", "--data", "digits", "--binarize", "none", "--latent-dim", "8"]
        words += ["--anneal-epochs", "3", "--epochs", str(epochs), "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["ppvae", *words, "--out", str(tmp_path / out), *more])
        cli.main()

    run("whole", 4)
    run("parts", 2)
    run("parts", 4, "--resume")
    capsys.readouterr()
    whole, parts = (
        cli.runs.load(tmp_path / out, "last", device="cpu") for out in ("whole", "parts")
    )
    assert torch.equal(whole.model.decoder.weight, parts.model.decoder.weight)
    assert float(parts.guide.temperature) == pytest.approx(0.05)
    assert whole.history["loss"] == parts.history["loss"]


# What is refused


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_rate_that_is_no_rate(rate):
    with pytest.raises(ValueError, match="rates must be positive, but 1 of 2 are not"):
        RelaxedPoisson(torch.tensor([1.0, rate]), 0.5)
    q = RelaxedPoisson(torch.tensor([1.0, rate]), 0.5, validate_args=False)
    z = q.rsample()  # without validation: no crash, and nothing that looks right
    assert z[0].isfinite()
    assert z[1].isnan() or rate <= 0


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf, torch.tensor(-0.1)])
def test_a_temperature_that_is_none(temperature):
    with pytest.raises(ValueError, match="temperature must be finite and not negative, but is"):
        RelaxedPoisson(torch.ones(2), temperature)


def test_an_unknown_kernel():
    with pytest.raises(ValueError, match="unknown kernel 'cubical': choose 'cubic', 'sigmoid'"):
        RelaxedPoisson(torch.ones(2), 0.5, "cubical")
    with pytest.raises(ValueError, match="unknown kernel"):
        scalar(kernel="cubical")


def test_events_that_no_memory_holds():
    """Before anything is allocated for them."""
    with pytest.raises(
        ValueError, match=r"a draw of 2e\+12 events, at rates up to 1e\+09, is more"
    ):
        RelaxedPoisson(torch.full((1000,), 1e9), 1.0).sample()
    for count in (0, 2**31 + 1):
        with pytest.raises(ValueError, match=r"max_events must be between 1 and 2\^31, but is"):
            RelaxedPoisson(torch.ones(2), 0.5, max_events=count)
    endless = RelaxedPoisson(torch.full((2,), math.inf), 1.0, max_events=5, validate_args=False)
    assert endless.rsample().isnan().all()


def test_linear_elbo_refuses_what_is_not_linear():
    x, normal = torch.rand(3, 8), Normal(MLP(8, 4), 2)
    for model, guide, said in (
        (
            VAE(MLP(2, 4, 8), 2, "normal"),
            normal,
            "linear decoder.*Linear, ReLU, Linear.*use BetaELBO",
        ),
        (VAE(nn.Sequential(nn.Linear(2, 8), nn.ReLU()), 2, "normal"), normal, "linear decoder"),
        (LinearGaussian(torch.ones(8, 2)), normal, "LinearGaussian's is missing"),
        (VAE(Scaled(2, 8), 2, "normal"), normal, "linear decoder.*is Scaled"),
        (VAE(MLP(2, 8), 2, "laplace"), normal, "Normal likelihood.*is Laplace"),
        (VAE(MLP(2, 8), 2), normal, "Normal likelihood.*is bernoulli"),
        (VAE(MLP(2, 8), 2, "normal"), FullRank(MLP(8, 4), 2), "dependent ones"),
    ):
        with pytest.raises(TypeError, match=said):
            LinearELBO().loss(model, guide, x)


class Scaled(nn.Linear):
    """A layer that does more than its matrix says."""

    def forward(self, z):
        return super().forward(z).abs()


class Squashed(nn.Sequential):
    """A container whose forward bends what its parts give."""

    def forward(self, z):
        return super().forward(z).tanh()


class Shrinking(likelihoods.Normal):
    """A head whose scale depends on h."""

    def forward(self, h):
        return dist.Normal(h, self.scale * (1 + h.square()))


class Twisted(VAE):
    """A model that does something between the latent and its decoder."""

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", self.prior())
            p_x = self.likelihood(self.decoder(torch.where(z > 2, 2 * z, z)))
            pyro.sample("x", p_x.to_event(1), obs=batch)


@pytest.mark.parametrize(
    "model",
    [
        lambda: VAE(Squashed(nn.Linear(2, 8)), 2, "normal"),
        lambda: VAE(nn.Linear(2, 8), 2, Shrinking(0.5)),
        lambda: Twisted(nn.Linear(2, 8), 2, "normal"),
        lambda: PoissonVAE(Squashed(nn.Linear(2, 8)), 2),
    ],
    ids=["container", "likelihood", "model", "counts"],
)
def test_linear_elbo_refuses_what_bends_in_a_forward(model):
    """Told by what the model says at random latents, and without a random number of ours."""
    model, x = model(), torch.rand(3, 8)
    guide = Poisson(Flat(8), model) if isinstance(model, PoissonVAE) else Normal(MLP(8, 4), 2)
    before = torch.get_rng_state()
    with pytest.raises(TypeError, match="another mean or scale at random z"):
        LinearELBO().loss(model, guide, x)
    assert torch.equal(before, torch.get_rng_state())


def test_linear_elbo_takes_a_decoder_of_ones_own_that_is_linear():
    """Whatever it is called: against 40,000 draws, within five errors."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, z):
            return self.layer(2 * z) / 2 + self.layer.bias / 2

    model = VAE(Own(), 2, likelihoods.Normal(0.5)).double()
    guide, x = Normal(MLP(3, 8), 2).double(), torch.rand(4, 3).double()
    exact = LinearELBO().loss(model, guide, x)
    drawn = torch.tensor(
        [BetaELBO(num_particles=1000).loss(model, guide, x) for _ in range(40)], dtype=x.dtype
    )
    assert (drawn.mean() - exact).abs() < 5 * drawn.std() / 40**0.5


def test_linear_elbo_needs_moments_and_a_kl():
    class Blind(dist.Normal):
        @property
        def variance(self):
            raise NotImplementedError

    class Odd(nn.Module):
        def __init__(self, q):
            super().__init__()
            self.q = q

        def forward(self, batch):
            with pyro.plate("data", len(batch), dim=-1):
                pyro.sample("z", self.q.expand((len(batch), 2)).to_event(1))

    model, x = VAE(nn.Linear(2, 8), 2, "normal"), torch.rand(3, 8)
    with pytest.raises(TypeError, match="no KL is registered for"):
        LinearELBO().loss(model, Odd(dist.StudentT(torch.tensor(5.0))), x)
    with pytest.raises(TypeError, match="its Blind at site 'z' has no variance in closed form"):
        LinearELBO().loss(model, Odd(Blind(torch.tensor(0.0), 1.0)), x)


def test_a_poisson_guide_needs_a_poisson_prior():
    for model in (VAE(MLP(2, 8), 2), LinearGaussian(torch.ones(8, 2))):
        with pytest.raises(TypeError, match="has no Poisson prior with a method rate.*PoissonVAE"):
            Poisson(MLP(8, 4), model)


def test_a_guide_refuses_wrong_options():
    for options, said in (
        ({"gradient": "reinforce"}, "gradient must be 'relaxed', 'straight-through' or 'score'"),
        ({"temperature": 0.0}, "temperature must be positive, but is 0.0: counts"),
        ({"max_events": -3}, "max_events must be between 1"),
    ):
        with pytest.raises(ValueError, match=said):
            scalar(**options)
    with pytest.raises(ValueError, match="latent_dim and clamp must be positive, but are 0"):
        PoissonVAE(MLP(2, 8), 0)


def test_the_guide_keeps_the_models_parameters_out_of_its_own():
    """They learn once, through both."""
    _, guide, _ = scalar()
    assert set(dict(guide.named_parameters())) == {"head.weight", "head.bias"}
    assert set(guide.state_dict()) == {
        *("head.weight", "head.bias", "temperature", "most_events", "event_bound"),
    }


def test_the_bound_on_events_counts_particles():
    """Eight draws per datum have eight times the events: the second epoch has room for them."""
    pyro.set_rng_seed(0)
    model = PoissonVAE(nn.Linear(64, 8, bias=False), 64, log_rate=(0.0, 1.0))
    guide = Poisson(Flat(8), model)
    adam = partial(torch.optim.Adam, lr=1e-3)
    svi = SVI(model, guide, adam, BetaELBO(num_particles=8), callbacks=[bound_events()])
    history = fit(svi, torch.rand(64, 8), epochs=3, batch_size=16, progress=False)
    assert all(math.isfinite(loss) for loss in history["loss"])


def test_a_beta_that_is_not_free_is_not_annealed():
    """From 0 the KL would stay away for good; a schedule by the step would be overwritten."""
    x = torch.rand(8, 8)
    for loss, message in (
        (BetaELBO(0.0), "cannot be annealed from 0"),
        (BetaELBO(warmup(9)), "follows a schedule of its own"),
    ):
        svi = SVI(
            VAE(MLP(2, 8), 2), Normal(MLP(8, 4), 2), partial(torch.optim.Adam, lr=1e-3), loss
        )
        with pytest.raises(ValueError, match=message):
            fit(svi, x.round(), epochs=1, callbacks=[anneal("loss.beta", warmup(2))])


def test_counts_at_a_tensor_temperature_of_zero_have_no_nan():
    """However small the rates."""
    rate = torch.tensor([1.0, 1e-6, 1e-8, 1e-10], requires_grad=True)
    z = RelaxedPoisson(rate, torch.tensor(0.0)).rsample()
    assert z.isfinite().all()
    assert torch.autograd.grad(z.sum(), rate)[0].isfinite().all()


class Strict(PoissonVAE):
    """A prior that validates."""

    def prior(self):
        return dist.Poisson(self.log_rate.exp(), validate_args=True).to_event(1)


def test_a_prior_that_refuses_relaxed_counts_is_refused():
    with pytest.raises(ValueError, match="validate_args=False"):
        Poisson(Flat(8), Strict(nn.Linear(2, 8), 2))


@pytest.mark.parametrize("options", [{"hidden": (8,)}, {"likelihood": "bernoulli"}])
def test_the_recipe_says_what_exact_needs(options):
    with pytest.raises(ValueError, match="gradient='exact' needs linear networks"):
        poisson(8, gradient="exact", latent_dim=2, device="cpu", **options)
