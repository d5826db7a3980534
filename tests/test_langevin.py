"""The chain itself, against Gaussian moments, known acceptance rates and what must be refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC
from torch import nn

from ppvae.langevin import (
    ChainError,
    LogJoint,
    bridge,
    hmc,
    langevin,
    point,
    sample,
    still,
    transport,
)
from ppvae.models import LinearGaussian

POSTERIOR = dist.Normal(1.0, 0.2**0.5)  # the sheet's: precision 5, mean 1
N = 20_000

# check 1 of the sheet: (mean, variance, KL) of z_K by s and K
MOMENTS = {
    (0.1, 1): (0.025000, 0.960625, 3.493492),
    (0.1, 5): (0.118904, 0.821630, 2.788413),
    (0.1, 20): (0.397312, 0.492198, 1.188294),
    (0.1, 100): (0.920483, 0.207574, 0.016157),
    (0.2, 1): (0.100000, 0.850000, 2.926541),
    (0.2, 5): (0.409510, 0.485799, 1.142454),
    (0.2, 20): (0.878423, 0.222195, 0.039821),
    (0.2, 100): (0.999973, 0.210526, 0.000669),
    (0.4, 1): (0.400000, 0.520000, 1.222244),
    (0.4, 5): (0.922240, 0.254535, 0.030894),
    (0.4, 20): (0.999963, 0.250000, 0.013428),
    (0.4, 100): (1.000000, 0.250000, 0.013428),
}


def recursion(steps, precision=5.0, mode=1.0, start=0.0, variance=1.0, noise=1.0):
    """Return mean and variance of the chain on a Gaussian."""
    mean = start
    for s in steps:
        a = 1 - s**2 * precision / 2
        mean, variance = mode + a * (mean - mode), a**2 * variance + noise**2 * s**2
    return mean, variance


def kl(mean, variance, precision=5.0, mode=1.0):
    """Return KL(N(mean, variance) || N(mode, 1 / precision))."""
    lam_v = precision * variance
    return (lam_v + precision * (mean - mode) ** 2 - 1 - math.log(lam_v)) / 2


def within(z, mean, variance):
    """Assert that draws (N,) have these moments, within four standard errors."""
    assert abs(float(z.mean()) - mean) < 4 * math.sqrt(variance / len(z))
    assert abs(float(z.var()) - variance) / variance < 4 * math.sqrt(2 / len(z))


@pytest.mark.parametrize("s", [0.1, 0.2, 0.4])
def test_the_moments_of_every_step(s):
    """Check 1: the table, the recursion and the chain agree."""
    walk = langevin(POSTERIOR.log_prob, torch.randn(N), [s] * 100, keep_path=True)
    assert walk.path.shape == (101, N)
    for steps in (1, 5, 20, 100):
        mean, variance, divergence = MOMENTS[s, steps]
        found = recursion([s] * steps)
        assert (*found, kl(*found)) == pytest.approx((mean, variance, divergence), abs=6e-6)
        within(walk.path[steps], mean, variance)
    stationary = 1 / (5 * (1 - s**2 * 5 / 4))
    assert recursion([s] * 4000)[1] == pytest.approx(stationary, rel=1e-6)
    assert {0.1: 0.202532, 0.2: 0.210526, 0.4: 0.25}[s] == pytest.approx(stationary, abs=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_schedule_a_noise_factor_and_a_step_per_datum(noise):
    """Check 1 with T below 1 and the released steps: the same recursion, datum by datum."""
    schedule = [0.8, 0.7, 0.6, 0.5, 0.2, 0.2, 0.1, 0.1, 0.05] + [0.05] * 11
    walk = langevin(POSTERIOR.log_prob, torch.randn(N), schedule, noise=noise)
    within(walk.z, *recursion(schedule, noise=noise))
    scales = torch.tensor([0.1, 0.4])
    per_datum = langevin(
        lambda z: POSTERIOR.log_prob(z).sum(-1), torch.randn(N, 2, 3), [scales] * 5
    )
    for n, s in enumerate(scales.tolist()):
        within(per_datum.z[:, n].flatten(), *recursion([s] * 5))


def test_the_last_mean_is_that_of_the_last_step():
    """What mode B conditions on: z_K less its noise."""
    walk = langevin(POSTERIOR.log_prob, torch.randn(N), [0.3] * 4, keep_path=True)
    before = walk.path[-2]
    expected = before + 0.3**2 / 2 * 5 * (1 - before)
    assert torch.allclose(walk.mean, expected, atol=1e-5)
    within((walk.z - walk.mean) / 0.3, 0.0, 1.0)


@pytest.mark.parametrize(("s", "acceptance"), [(0.2, 0.9929), (0.6, 0.8130)])
def test_mala_accepts_as_often_as_it_must(s, acceptance):
    """Check 9, and Pyro's unadapted HMC of one step does likewise."""
    target = dist.Normal(0.0, 0.2**0.5)
    draws = sample(target.log_prob, target.sample((4000,)), 20, step_size=s)
    assert float(draws.acceptance.mean()) == pytest.approx(acceptance, abs=0.01)
    assert float(draws.step_size) == pytest.approx(s)
    within(draws.z[-1], 0.0, 0.2)
    kernel = HMC(
        potential_fn=lambda z: -target.log_prob(z["z"]).sum(),
        step_size=s,
        num_steps=1,
        adapt_step_size=False,
    )
    mcmc = MCMC(
        kernel,
        num_samples=1500,
        warmup_steps=0,
        initial_params={"z": torch.tensor(0.1)},
        disable_progbar=True,
    )
    mcmc.run()
    rate = mcmc.diagnostics()["acceptance rate"]["chain 0"]
    assert rate == pytest.approx(acceptance, abs=0.05)  # 1,500 dependent draws


def test_the_acceptance_of_langevin_moves():
    """Pitfall 13: at s^2 lam = .05 .2 .8 1.8 3.2, where the unadjusted chain has settled."""
    target = dist.Normal(0.0, 0.2**0.5)
    for u, acceptance in ((0.05, 0.999), (0.2, 0.993), (0.8, 0.945), (1.8, 0.840), (3.2, 0.692)):
        at = point(target.log_prob, target.sample((N,)) / math.sqrt(1 - u / 4))
        move = hmc(target.log_prob, at, math.sqrt(u / 5))
        assert float(move.acceptance.mean()) == pytest.approx(acceptance, abs=0.01)


@pytest.mark.parametrize(("leapfrog", "target", "error"), [(1, 0.574, 0.03), (5, 0.8, 0.1)])
def test_the_step_adapts_datum_by_datum(leapfrog, target, error):
    """Two data whose scales differ by ten: their steps do, too, and both have their moments."""
    scales = torch.tensor([0.1, 1.0])
    log_p = dist.Normal(torch.zeros(2, 1), scales[:, None]).to_event(1).log_prob
    start = torch.zeros(500, 2, 1)
    draws = sample(
        log_p, start, 100, step_size=torch.full((2,), 0.05), warmup=200, leapfrog=leapfrog
    )
    assert draws.z.shape == (100, 500, 2, 1)
    assert draws.step_size[1] / draws.step_size[0] == pytest.approx(10, rel=0.15)
    assert draws.acceptance.mean((0, 1)).tolist() == pytest.approx([target] * 2, abs=error)
    for n, scale in enumerate(scales.tolist()):
        within(draws.z[-1, :, n, 0], 0.0, scale**2)


def test_hmc_refuses_what_is_not_finite():
    """A proposal beyond the support stays where it was, under validation, too."""
    log_p = dist.HalfNormal(torch.ones(1), validate_args=False).log_prob
    at = point(log_p, torch.full((1000,), 0.1))
    move = hmc(log_p, at, 1.0)
    assert (move.at.z >= 0).all() and 0 < move.accepted.float().mean() < 1


def test_the_transport_is_exact_on_a_gaussian():
    """Check 7, C, by hand: the determinant is prod_k (1 - s_k^2 lam / 2) per direction."""
    steps = [0.1, 0.2, 0.3]
    start = torch.randn(6, 2, dtype=torch.float64)
    z, log_q = transport(
        lambda z: POSTERIOR.log_prob(z).sum(-1), start, torch.zeros(6).double(), steps
    )
    log_det = 2 * sum(math.log(1 - s**2 * 5 / 2) for s in steps)
    assert torch.allclose(log_q, torch.full((6,), -log_det, dtype=torch.float64))
    assert not z.requires_grad


def test_the_transport_is_differentiable_in_its_steps():
    """Check 7: d loss / ds at .1, to the error of 100,000 draws."""
    model = LinearGaussian(torch.ones(1, 1), scale=0.5)
    x = torch.tensor([[0.3], [-1.2], [2.0]]).expand(100_000, 3, 1).reshape(-1, 1)
    with torch.no_grad():
        joint = LogJoint(model, x)
        start = joint.draw().z
    s = torch.tensor(0.1, requires_grad=True)
    z, log_q = transport(joint, start, joint.log_prior, [s] * 20, create_graph=True)
    gain = (joint(z) - log_q).reshape(-1, 3).sum(1)
    (slope,) = torch.autograd.grad(-gain.mean(), s)
    assert float(slope) == pytest.approx(-79.476, abs=0.7)


def test_the_bridge_needs_no_small_steps():
    """Check 7, D: E[w] / p(x) = 1 whatever the step, tempered or not."""
    prior, posterior = dist.Normal(0.0, 1.0), dist.Normal(0.5, 0.5)

    def parts(z):
        log_prior = prior.log_prob(z).sum(-1)
        return log_prior, posterior.log_prob(z).sum(-1) - log_prior  # integrates to 1

    for tempered in (True, False):
        z_0 = torch.randn(100_000, 1)
        z, log_q = bridge(parts, z_0, prior.log_prob(z_0).sum(-1), [0.4] * 10, tempered=tempered)
        weights = (posterior.log_prob(z).sum(-1) - log_q).exp()
        assert float(weights.mean()) == pytest.approx(1, abs=5 * float(weights.std()) / 316)


# What is refused


def test_a_step_too_large_is_named():
    """Bad input: which datum, from which step on; the curvature is in the message."""
    precisions = torch.tensor([1.0, 4.0, 100.0])
    log_p = dist.Normal(torch.zeros(3, 1), precisions.rsqrt()[:, None]).to_event(1).log_prob
    message = r"datum 2 diverges from step 1 of 20 on: .* is 6.25, where less than 4 is due"
    with pytest.raises(ChainError, match=message):
        langevin(log_p, torch.ones(3, 1), [0.25] * 20)
    with pytest.raises(ChainError, match=r"diverges at step \d+ of 40: the .* of datum 2 is"):
        langevin(log_p, torch.ones(3, 1), [50.0] * 40)
    with pyro.validation_enabled(False):
        assert not langevin(log_p, torch.ones(3, 1), [50.0] * 40).z[2].isfinite()


def test_a_few_particles_may_start_where_it_is_steep():
    """Only where most of a datum's diverge is the step too large for it."""
    log_p = dist.Normal(torch.tensor([[1.0], [0.2], [1.0]]), 1.0).to_event(1)

    def steep(z):  # walls at -8 and 8
        return log_p.log_prob(z) - 200 * (z[..., 0].abs() - 8).clamp(min=0).square()

    start = torch.zeros(40, 3, 1)
    start[3, 1] = 9.0
    langevin(steep, start, [0.5] * 2)
    start[:30, 1] = 9.0
    with pytest.raises(ChainError, match="datum 1 diverges"):
        langevin(steep, start, [0.5] * 2)


@pytest.mark.parametrize("u", [4.0, 4.2])
def test_the_edge_of_stability_is_flagged(u):
    """Check 10: s^2 lam >= 4; a chain of 3.6 is let pass, though its variance is ten times off."""
    start = POSTERIOR.sample((200,))
    with pytest.raises(ChainError, match="diverges"):
        langevin(POSTERIOR.log_prob, start, [math.sqrt(u / 5)] * 20)
    for stable in (3.6, 1.5, 0.1):
        langevin(POSTERIOR.log_prob, start, [math.sqrt(stable / 5)] * 20)


def test_a_start_that_is_not_finite_is_named():
    """Bad input: the datum, and of a model the site."""
    log_p = dist.Gamma(2.0, 1.0, validate_args=False).log_prob
    with pytest.raises(ChainError, match="not finite at the start .* datum 1 is"):
        langevin(log_p, torch.tensor([1.0, -1.0]), [0.1])
    model = LinearGaussian(torch.ones(3, 2))
    x = torch.zeros(4, 3)
    x[2, 1] = float("inf")
    message = "not finite at the start of the Langevin chain: the log probability of site 'x' of "
    with pytest.raises(ChainError, match=message + "datum 2 is -inf"):
        LogJoint(model, x).draw()


def test_hmc_refuses_an_infinite_density():
    """Or the chain would never leave it."""

    def log_p(z):
        return torch.where(z > 1, torch.inf, -z * z / 2)

    move = hmc(log_p, point(log_p, torch.zeros(1000)), 2.0)
    assert (move.at.z <= 1).all() and 0 < move.accepted.float().mean() < 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"draws": 1, "step_size": -0.1}, "step_size must be positive and finite, but is -0.1"),
        ({"draws": 1, "step_size": torch.tensor([0.1, 0.0, 0.1])}, "step_size must be positive"),
        ({"draws": 1, "warmup": 1, "target": 0.0}, "target must lie between 0 and 1"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"draws": 1, "warmup": -1}, "warmup must be at least 0"),
        ({"draws": 1, "leapfrog": 0}, "leapfrog must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sample(POSTERIOR.log_prob, torch.zeros(3), **kwargs)
    with pytest.raises(ValueError, match="at least one step"):
        langevin(POSTERIOR.log_prob, torch.zeros(3), [])


# The log joint


class Two(nn.Module):
    """Two latents, one of them positive, a mask and a subsampled plate."""

    def __init__(self, size=20):
        super().__init__()
        self.size, self.runs = size, 0

    def forward(self, batch):
        self.runs += 1
        with pyro.plate("data", self.size, subsample_size=len(batch), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), rate[..., None]).to_event(1))
            with pyro.poutine.mask(mask=torch.arange(len(batch)) > 0):
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=batch)


def test_the_log_joint_by_hand():
    """Its parts, with the log Jacobian and the mask, and without N / B; one run of the model."""
    model, x = Two(), torch.randn(4, 2)
    joint = LogJoint(model, x)
    at = joint.draw()
    assert model.runs == 1 and at.z.shape == (4, 3)
    u = torch.randn(4, 3)
    rate, z = joint.constrain(u).values()
    assert torch.allclose(rate, u[:, 0].exp()) and torch.equal(z, u[:, 1:])
    log_prior = dist.Gamma(2.0, 1.0).log_prob(rate) + u[:, 0]
    log_prior = log_prior + dist.Normal(0.0, rate[:, None]).log_prob(z).sum(-1)
    log_likelihood = dist.Normal(z, 1.0).log_prob(x).sum(-1) * (torch.arange(4) > 0)
    found = joint.parts(u)
    assert torch.allclose(found[0], log_prior, atol=1e-5)
    assert torch.allclose(found[1], log_likelihood, atol=1e-5)
    assert torch.allclose(joint(at.z), at.log_p) and torch.equal(joint.log_volume(u), u[:, 0])
    slope = point(joint, at.z).slope
    assert torch.allclose(slope, at.slope, atol=1e-6)


def test_the_subsample_of_the_first_run_stays():
    """Every later run sees the same rows, or the chain would change its target on the way."""

    seen = []

    def model(batch):
        with pyro.plate("data", 100, subsample_size=len(batch), dim=-1) as rows:
            seen.append(rows)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch)

    joint = LogJoint(model, torch.zeros(5))
    u = joint.draw().z
    joint(u), joint(u)
    assert len(seen) == 3 and all(torch.equal(rows, seen[0]) for rows in seen)


def discrete(batch):
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Bernoulli(0.5))


def shared(batch):
    pyro.sample("mean", dist.Normal(0.0, 1.0))


def empty(batch):
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=batch)


def test_a_likelihood_with_axes_of_its_own_is_refused():
    """A plate of features instead of an event: one number per datum is needed."""

    def model(batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("features", 2, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=batch.T)

    with pytest.raises(ValueError, match=r"site 'x' has .* shape \(2, 3\), .*to_event"):
        LogJoint(model, torch.zeros(3, 2)).draw()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (discrete, r"site 'z' is discrete.*sum it out.*Categorical or Poisson"),
        (shared, r"site 'mean' lies outside of pyro.plate\(\"data\""),
        (empty, "no latent site"),
    ],
)
def test_latents_that_no_chain_moves_are_refused(model, message):
    """Bad input: discrete latents, and those that all data share."""
    with pytest.raises(NotImplementedError, match=message):
        LogJoint(model, torch.zeros(3)).draw()


def test_still_modules():
    """Dropout and batch norm stand still; a recurrent net without dropout stays in training."""
    model = nn.ModuleList(
        [nn.Dropout(), nn.BatchNorm1d(2), nn.GRU(2, 2), nn.LSTM(2, 2, 2, dropout=0.5)]
    )
    model[0].eval()
    before = [part.training for part in model.modules()]
    with still(model):
        assert [part.training for part in model] == [False, False, True, False]
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled
    with still(model[:3]):
        assert torch.backends.cudnn.enabled
    assert [part.training for part in model.modules()] == before
