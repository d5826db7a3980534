"""MixtureELBO: numbers by hand and by quadrature, identities, limits, the optimum, refusals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from zoo import LearnedPrior, Point, binary, linear, real, train, vae

from ppvae import log_weights
from ppvae.distributions import MixtureOfDiagNormals
from ppvae.guides import Exact, Flow, GaussianMixture, Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import (
    MixtureELBO,
    PenalizedELBO,
    individual_penalty,
    population_penalty,
)
from ppvae.weights import WeightlessError, trace_pair

DOUBLE = {"dtype": torch.float64}
FIRST = torch.tensor([-1.0, 0.0, 1.0], **DOUBLE), torch.full((3,), 0.25, **DOUBLE)
SECOND = (
    torch.tensor([-1.0, 0.0, 1.0, 2.0], **DOUBLE),
    torch.tensor([0.1, 0.2, 0.3, 0.4], **DOUBLE),
)


def traces(mean, variance, prior=None):
    """A pair of traces with one latent, N(mean, variance), both (N, D), and a prior."""
    mean, variance = (t.unsqueeze(-1) if t.ndim == 1 else t for t in (mean, variance))
    zeros = mean.new_zeros(mean.shape[-1])
    prior = prior or dist.Normal(zeros, zeros + 1).to_event(1)

    def model():
        with pyro.plate("data", len(mean), dim=-1):
            pyro.sample("z", prior)

    def guide():
        with pyro.plate("data", len(mean), dim=-1):
            pyro.sample("z", dist.Normal(mean, variance.sqrt()).to_event(1))

    guide_trace = pyro.poutine.trace(guide).get_trace()
    model_trace = pyro.poutine.trace(pyro.poutine.replay(model, guide_trace)).get_trace()
    return model_trace, guide_trace


def mean_kl(mean, variance):
    """AvgKL, by hand."""
    kl = (mean.square() + variance - 1 - variance.log()) / 2
    return kl.reshape(len(mean), -1).sum(-1).mean()


def mixture_kl(mean, variance):
    """KL(qbar || N(0, 1)) in one dimension, by Gauss-Hermite quadrature in each component."""
    nodes, weights = (torch.as_tensor(a) for a in hermegauss(200))
    z = mean[:, None] + variance.sqrt()[:, None] * nodes  # (N, Q)
    log_q = dist.Normal(mean, variance.sqrt()).log_prob(z.unsqueeze(-1)).logsumexp(-1)
    log_q = log_q - math.log(len(mean))
    log_p = dist.Normal(0.0, 1.0).log_prob(z)
    return ((log_q - log_p) * weights / weights.sum()).sum(-1).mean()


def random_moments(seed, n=7, d=3):
    """Means and variances of a batch."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, d, generator=generator, **DOUBLE) * 1.3 + 0.2
    return mean, torch.rand(n, d, generator=generator, **DOUBLE) + 0.05


def spread(mean, variance):
    """V and S."""
    v = mean.var(0, correction=0)
    return v, v + variance.mean(0)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (FIRST, (0.651481, 0.001839, 0.036066, 0.318147, 0.032336)),
        (SECOND, (1.129036, 0.172267, 0.138428, 0.379036, 0.254936)),
    ],
)
def test_numbers(batch, expected):
    """The sheet's: mean KL, total, means, individual, the mixture's KL by quadrature."""
    pair = traces(*batch)
    found = (
        mean_kl(*batch),
        population_penalty()(*pair),
        population_penalty(moments="means")(*pair),
        individual_penalty(1.0)(*pair),
        mixture_kl(*batch),
    )
    assert [float(x) for x in found] == pytest.approx(expected, abs=1.1e-6)
    information = mean_kl(*batch) - mixture_kl(*batch)
    assert 0 <= information <= math.log(len(batch[0]))


@pytest.mark.parametrize("seed", range(5))
def test_identities_and_order(seed):
    """AvgKL splits exactly, and total <= sum of marginals <= KL(qbar || p) <= avgKL."""
    mean, variance = random_moments(seed)
    pair = traces(mean, variance)
    v, s = spread(mean, variance)
    total, scale = population_penalty()(*pair), individual_penalty(1.0)(*pair)
    average = mean_kl(mean, variance)
    torch.testing.assert_close(
        average, (mean.mean(0).square() + v).sum() / 2 + scale, atol=1e-10, rtol=0
    )
    gap = ((s / variance).log() / 2).sum(-1).mean()
    torch.testing.assert_close(average - total, gap, atol=1e-10, rtol=0)
    marginals = sum(mixture_kl(mean[:, k], variance[:, k]) for k in range(3))
    assert total <= marginals <= average


def test_the_means_alone_obey_no_order():
    """They may exceed KL(qbar || p): why "total" is the default."""
    pair = traces(*FIRST)
    assert population_penalty(moments="means")(*pair) > mixture_kl(*FIRST)
    assert population_penalty()(*pair) < mixture_kl(*FIRST)


def test_the_mixture_itself_by_draws():
    """Its Monte Carlo estimate has the quadrature's mean."""
    pyro.set_rng_seed(0)
    penalty = population_penalty(moments="mixture")
    draws = torch.stack([penalty(*traces(*SECOND)) for _ in range(2000)])
    error = draws.std() / len(draws) ** 0.5
    assert abs(draws.mean() - mixture_kl(*SECOND)) < 5 * error


def test_the_mixture_in_blocks_is_the_same(monkeypatch):
    """Value and gradient, however little memory."""
    found = []
    for block in (10**6, 20):
        monkeypatch.setattr("ppvae.objectives.mixture.BLOCK", block)
        mean, variance = (t.requires_grad_() for t in random_moments(0))
        pyro.set_rng_seed(0)
        value = population_penalty(moments="mixture")(*traces(mean, variance))
        found.append((value, *torch.autograd.grad(value, (mean, variance))))
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)


def test_the_mixture_s_kl_falls_with_the_batch():
    """From avgKL at B = 1 to the whole set's at B = N, by convexity (brute force over batches)."""
    from itertools import combinations

    def average(size):
        batches = combinations(range(4), size)
        return torch.stack([mixture_kl(*(t[list(b)] for t in SECOND)) for b in batches]).mean()

    kls = [float(average(size)) for size in (1, 2, 3, 4)]
    assert kls == sorted(kls, reverse=True)
    assert kls[0] == pytest.approx(float(mean_kl(*SECOND)), abs=1e-9)
    assert kls[-1] == pytest.approx(0.254936, abs=1e-6)


@pytest.mark.parametrize("moments", ["total", "means"])
def test_gradients_in_closed_form(moments):
    """With respect to every mean and variance."""
    mean, variance = (t.requires_grad_() for t in random_moments(0))
    penalty = population_penalty(moments=moments)
    value = penalty(*traces(mean, variance))
    found = torch.autograd.grad(value, (mean, variance), materialize_grads=True)
    with torch.no_grad():
        v, s = spread(mean, variance)
        s = s if moments == "total" else v
        m, n = mean.mean(0), len(mean)
        to_mean = (m + (mean - m) * (1 - 1 / s)) / n
        to_variance = ((1 - 1 / s) / (2 * n)).expand_as(variance) * (moments == "total")
    torch.testing.assert_close(found[0], to_mean, atol=2e-6, rtol=0)  # the floor of 1e-6
    torch.testing.assert_close(found[1], to_variance, atol=1e-9, rtol=0)
    if moments == "total":
        torch.testing.assert_close(found, (to_mean, to_variance), atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda a, b: penalty(*traces(a, b)), (mean, variance))


def test_the_individual_term_vanishes_at_the_prior_s_variance_only():
    """L_ind = 0 iff v = 1."""
    ones = torch.ones(4, 2, **DOUBLE)
    assert individual_penalty(1.0)(*traces(ones, ones)) == 0
    assert individual_penalty(1.0)(*traces(ones, 0.9 * ones)) > 0


def test_another_prior():
    """N(a, b^2) is the same as a standardized latent under N(0, 1)."""
    mean, variance = random_moments(1)
    a, b = torch.tensor([1.0, -2.0, 0.5], **DOUBLE), torch.tensor([0.5, 2.0, 1.0], **DOUBLE)
    moved = traces(a + b * mean, b.square() * variance, dist.Normal(a, b).to_event(1))
    for penalty in (population_penalty(), individual_penalty(1.0)):
        torch.testing.assert_close(penalty(*moved), penalty(*traces(mean, variance)))


# Limits


def losses(*objectives, size=6, seed=3):
    """Losses of one pair on the same noise."""
    pyro.set_rng_seed(0)
    model, guide = vae().double(), Normal(MLP(8, 16), latent_dim=2).double()
    batch = binary(size, 8).double()
    found = []
    for objective in objectives:
        pyro.set_rng_seed(seed)
        found.append(float(train(model, guide, objective).evaluate(batch)))
    return found, trace_pair(model, guide, batch, dim=None)


def test_a_batch_of_one_without_the_barrier_is_the_elbo():
    """B = 1, total, individual=0."""
    (ours, pyros), _ = losses(MixtureELBO(individual=0.0), TraceMeanField_ELBO(), size=1)
    assert ours == pytest.approx(pyros, abs=1e-6)


def test_means_with_the_whole_barrier_is_the_elbo_less_a_barrier():
    """Less sum_k 1/2 (1 + ln V_k)."""
    goal = MixtureELBO(individual=1.0, moments="means")
    (ours, pyros), (_, guide_trace) = losses(goal, TraceMeanField_ELBO())
    v = guide_trace.nodes["z"]["fn"].mean.detach().var(0, correction=0) + 1e-6
    assert ours == pytest.approx(pyros - float((1 + v.log()).sum() / 2), abs=2e-6)


def test_without_weights_only_the_reconstruction_is_left():
    """population = individual = 0: a bare autoencoder, in value and in its terms."""
    bare = MixtureELBO(individual=0.0, population=0.0)
    (ours, reconstruction), _ = losses(bare, PenalizedELBO(beta=0.0))
    assert ours == reconstruction
    assert bare.penalty_names == ()


def test_equal_posteriors_without_the_barrier_give_the_plain_kl():
    """Equal mu and v, total, individual=0."""
    mean, variance = (t[:1].expand(5, 3) for t in random_moments(2))
    torch.testing.assert_close(
        population_penalty()(*traces(mean, variance)), mean_kl(mean, variance)
    )


def test_particles_leave_the_terms_alone():
    """They are numbers of the posteriors, not of draws."""
    model, guide = vae(), Normal(MLP(8, 16), latent_dim=2)
    batch = binary(6, 8)
    one, many = MixtureELBO(), MixtureELBO(num_particles=5)
    for goal in (one, many):
        train(model, guide, goal).evaluate(batch)
    for name in ("population", "individual"):
        torch.testing.assert_close(one.record[name], many.record[name])


# Statistics and optima


def test_the_floor_of_a_batch():
    """E L_pop of B draws, c_B = 1/2 (ln B - ln 2 - digamma((B-1)/2)) above the population's."""
    pyro.set_rng_seed(0)
    for size, floor, runs in ((10, 0.1103, 2_000_000), (64, 0.0159, 300_000)):
        exact = math.log(size) - math.log(2) - float(torch.digamma(torch.tensor((size - 1) / 2)))
        assert exact / 2 == pytest.approx(floor, abs=6e-5)
        mean = torch.randn(size, runs, **DOUBLE)
        pair = traces(mean, torch.ones_like(mean))
        found = float(population_penalty(moments="means")(*pair)) / runs
        assert found == pytest.approx(exact / 2, abs=3e-4)
    for size, floor, runs in ((10, 0.0746, 2_000_000), (64, 0.0113, 300_000)):
        mean = math.sqrt(0.8) * torch.randn(size, runs, **DOUBLE)
        pair = traces(mean, torch.full_like(mean, 0.2))
        assert float(population_penalty()(*pair)) / runs == pytest.approx(floor, abs=3e-4)


def linear_gaussian_loss(moments, individual, ratio, log_v, gain, weight):
    """The population's loss: x ~ N(0, R), x | z ~ N(w z, 1), q = N(a x, v)."""
    v, big_v = log_v.exp(), gain.square() * ratio
    error = (1 - weight * gain).square() * ratio + weight.square() * v
    s = big_v + v if moments == "total" else big_v
    return error / 2 + (s - 1 - s.log()) / 2 + individual * (v - 1 - log_v) / 2


@pytest.mark.parametrize(
    ("moments", "ratio", "expected"),
    [
        ("total", 10.0, {"rho": 0.019533, "s": 1.195330}),
        ("total", 0.5, {"rho": 0.274917, "s": 1.137459}),
        ("means", 10.0, {"v": 0.024280, "big_v": 1.195144}),
    ],
)
def test_the_linear_gaussian_optimum(moments, ratio, expected):
    """Its aggregate is wider than the prior, by less than 1 + individual."""
    start = [-2.0, 0.5 / math.sqrt(ratio), math.sqrt(ratio)]
    parameters = [torch.tensor(x, **DOUBLE, requires_grad=True) for x in start]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=2000, line_search_fn="strong_wolfe", tolerance_grad=1e-12,
        tolerance_change=1e-16,
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = linear_gaussian_loss(moments, 0.2, ratio, *parameters)
        loss.backward()
        return loss

    optimizer.step(closure)
    log_v, gain, _ = (float(p.detach()) for p in parameters)
    v, big_v = math.exp(log_v), gain**2 * ratio
    found = {"v": v, "big_v": big_v, "s": v + big_v, "rho": v / (v + big_v)}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert 1 < (found["s"] if moments == "total" else big_v) < 1.2
    if moments == "total":
        rho = expected["rho"]
        assert ratio * rho**2 + (1 + ratio / 0.2) * rho - 1 == pytest.approx(0, abs=1e-4)


def test_the_loss_of_the_code_is_that_of_the_optimum():
    """The closed form above is what MixtureELBO computes, on a sample whose moments are exact."""
    ratio, log_v, gain, weight = 2.0, torch.tensor(-1.0, **DOUBLE), 0.4, 1.1
    x = torch.tensor([[-1.0], [1.0]], **DOUBLE) * math.sqrt(ratio)
    pair = traces(gain * x, log_v.exp().expand(2, 1))
    terms = population_penalty()(*pair) + individual_penalty(0.2)(*pair)
    whole = linear_gaussian_loss(
        "total", 0.2, ratio, log_v, torch.tensor(gain, **DOUBLE), torch.tensor(weight, **DOUBLE)
    )
    error = (1 - weight * gain) ** 2 * ratio + weight**2 * log_v.exp()
    torch.testing.assert_close(terms + error / 2, whole)


# The mixture per datum


def test_mixture_guides_are_seen_by_their_moments():
    """Mean and variance of each datum's mixture; the barrier acts on the components."""
    pyro.set_rng_seed(0)
    guide = GaussianMixture(MLP(8, 16), latent_dim=2, components=3)
    pair = trace_pair(vae(), guide, binary(5, 8), dim=None)
    q = pair[1].nodes["z"]["fn"]
    draws = q.expand((200_000, 5)).sample()
    variance, mean = torch.var_mean(draws, dim=0)
    torch.testing.assert_close(q.mean, mean, atol=0.02, rtol=0)
    torch.testing.assert_close(q.variance, variance, atol=0.03, rtol=0)
    s = spread(q.mean, q.variance)[1]
    expected = ((q.mean.mean(0).square() + s - 1 - s.log()) / 2).sum()
    torch.testing.assert_close(population_penalty()(*pair), expected)
    r = q.coord_scale.square()
    by_component = ((r - 1 - r.log()) / 2).sum(-1)  # (N, K)
    expected = (q.categorical.probs * by_component).sum(-1).mean()
    torch.testing.assert_close(individual_penalty(1.0)(*pair), expected)


def test_a_collapsed_component_is_seen():
    """Total variance 1, every component's going to 0: only a barrier on those can tell."""
    locs = torch.tensor([[[-1.0], [1.0]]])
    q = MixtureOfDiagNormals(locs, torch.full_like(locs, 1e-4), torch.zeros(1, 2))
    assert q.variance.item() == pytest.approx(1.0, abs=1e-6)
    model_trace, guide_trace = traces(torch.zeros(1, 1), torch.ones(1, 1))
    guide_trace.nodes["z"]["fn"] = q
    assert individual_penalty(1.0)(model_trace, guide_trace) > 8


# Refusals


def refused(goal, message, model=vae, guide=None, batch=None, error=ValueError):
    guide = guide or Normal(MLP(8, 16), latent_dim=2)
    batch = binary(5, 8) if batch is None else batch
    with pytest.raises(error, match=message):
        train(model(), guide, goal).step(batch)


class ByDatum(nn.Module):
    """p(z|n) = N(c_n, 1)."""

    def __init__(self):
        super().__init__()
        self.decoder = MLP(2, 8)

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(batch[:, :2], 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=batch)


def test_bad_input_is_refused_in_words():
    refused(MixtureELBO(moments="means"), "batch of one.*drop_last", batch=binary(1, 8))
    laplace = dist.Laplace(torch.zeros(2), 1.0).to_event(1)
    refused(MixtureELBO(), "prior's.*Laplace", model=lambda: vae(prior=laplace), error=TypeError)
    refused(MixtureELBO(), "prior's moments.*differ between data", model=ByDatum)
    refused(MixtureELBO(), "no importance weights", guide=Point(), error=WeightlessError)
    flow = Flow(MLP(8, 16), latent_dim=2)
    refused(MixtureELBO(), "no mean and variance", guide=flow)
    refused(MixtureELBO(site="y"), "no site 'y'")
    for options, message in (
        ({"moments": "variance"}, "'total', 'means' or 'mixture'"),
        ({"individual": -1.0}, "individual must be"),
        ({"population": math.inf}, "population must be"),
    ):
        with pytest.raises(ValueError, match=message):
            MixtureELBO(**options)


def test_what_has_a_density_can_take_the_mixture_itself():
    """A flow has no moments; the mixture's KL asks for none."""
    svi = train(
        vae(), Flow(MLP(8, 16), latent_dim=2), MixtureELBO(individual=0.0, moments="mixture")
    )
    assert svi.step(binary(5, 8)).isfinite()


def test_learned_priors_learn():
    """A gradient reaches them through the moments."""
    model = vae(prior=LearnedPrior())
    svi = train(model, Normal(MLP(8, 16), latent_dim=2), MixtureELBO())
    svi.step(binary(5, 8))
    assert model.prior.loc.grad.any() and model.prior.log_scale.grad.any()


def test_evidence_is_that_of_the_pair():
    """The objective plays no part in what judges: Exact still has equal log weights."""
    model = linear()
    log_w = log_weights(model, Exact(model), real(5, 3), 4)
    torch.testing.assert_close(log_w, log_w[:1].expand_as(log_w), atol=1e-4, rtol=0)


def test_a_vae_of_images_trains_down():
    """A few steps lower the loss."""
    pyro.set_rng_seed(0)
    svi = train(VAE(MLP(4, 16, 8), latent_dim=4), Normal(MLP(8, 16), latent_dim=4), MixtureELBO())
    found = [float(svi.step(binary(64, 8))) for _ in range(60)]
    assert sum(found[-10:]) < sum(found[:10]) - 5
