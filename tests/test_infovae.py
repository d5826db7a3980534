"""InfoELBO: its special cases, what it is in closed form, and what it refuses."""

import itertools
import math
import re
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from scipy.special import digamma
from scipy.stats import norm
from torch import nn
from torch.distributions import kl_divergence
from zoo import PAIRS, named, train

from ppvae import SVI, fit, plots
from ppvae.divergences import Critic, mmd, mmd_gaussian, stein, svgd
from ppvae.guides import Normal
from ppvae.likelihoods import normal_with_scale
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import BetaELBO, InfoELBO, MixtureELBO
from ppvae.protocols import map_batch
from ppvae.recipes import aae, infovae, mmdvae
from ppvae.weights import trace_pair

BY_NAME = {pair.name: pair for pair in PAIRS}
GAUSSIAN = [pair for pair in PAIRS if pair.gaussian and pair.steady and pair.numbers]


def never(*_):
    """A divergence that must not be asked."""
    raise AssertionError("a divergence of weight 0 was evaluated")


def outcome(pair, make):
    """Return the loss per datum, its gradients by name and the next random number, in float64."""
    return outcome_of(*pair.make(), pair.batch, make())


def outcome_of(model, guide, batch, loss):
    """Return what `outcome` does, of a pair and a loss that are made."""
    loss = loss.double() if isinstance(loss, nn.Module) else loss
    svi = train(model.double(), guide.double(), loss)
    pyro.set_rng_seed(1)
    batch = map_batch(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, batch)
    value = svi._loss_per_datum(batch)
    names, parameters = zip(*svi.parameters.items(), strict=True)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    found = {n: g for n, g in zip(names, gradients, strict=True) if g is not None}
    return value.detach(), found, torch.rand(())


def same(pair, one, other):
    """Assert that two losses are one in value, gradients, and the random numbers they take."""
    a, b = outcome(pair, one), outcome(pair, other)
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    return a[0], b[0]


# Special cases


@pytest.mark.parametrize("pair", named(p for p in PAIRS if p.steady and p.pathwise))
def test_alpha_0_and_lam_1_is_the_elbo(pair):
    """Bit for bit BetaELBO's, and Pyro's mean-field ELBO; the divergence is not asked."""
    plain = partial(InfoELBO, 0.0, 1.0, never)
    a, b = same(pair, plain, BetaELBO)
    assert torch.equal(a, b)
    if pair.density:  # of a point Pyro's KL leaves out what SVI puts back
        same(pair, plain, TraceMeanField_ELBO)


@pytest.mark.parametrize("pair", named(GAUSSIAN))
@pytest.mark.parametrize("alpha", [0.25, 0.7, 0.9, -3.0])
def test_lam_1_less_alpha_is_the_beta_elbo(pair, alpha):
    """beta = 1 - alpha, bit for bit, for each alpha whose sum with lam rounds."""
    lam = 1 - alpha
    a, b = same(pair, partial(InfoELBO, alpha, lam, never), partial(BetaELBO, lam))
    assert torch.equal(a, b)


def by_hand(alpha, weight, divergence):
    """The sheet's loss, from traces: a function for SVI, summed over the batch."""

    def loss(model, guide, batch):
        guide_trace = poutine.trace(guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(batch)
        model_trace.compute_log_prob()
        q, p = guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"]
        z = guide_trace.nodes["z"]["value"]
        total = -model_trace.nodes["x"]["log_prob"].mean()
        if alpha != 1:
            total = total + (1 - alpha) * kl_divergence(q, p).mean()
        return len(batch) * (total + weight * divergence(q, p, z))

    return loss


@pytest.mark.parametrize("pair", named(GAUSSIAN))
@pytest.mark.parametrize(("alpha", "lam"), [(1.0, 10.0), (0.0, 1000.0), (-0.5, 3.0)])
def test_it_is_the_sheets_loss_with_mmd(pair, alpha, lam):
    """alpha = 1 is MMD-VAE; z and as many draws of the model's prior, one per datum."""
    hand = by_hand(alpha, alpha + lam - 1, lambda q, p, z: mmd(z, p.rsample()))
    same(pair, partial(InfoELBO, alpha, lam), lambda: hand)


@pytest.mark.parametrize("pair", named(GAUSSIAN))
def test_it_is_the_sheets_loss_without_draws(pair):
    """With moments and with the prior's score: no random number is drawn."""
    for divergence, call in (
        (mmd_gaussian, lambda q, p, z: mmd_gaussian(q, p)),
        (partial(mmd_gaussian, estimator="u"), lambda q, p, z: mmd_gaussian(q, p, estimator="u")),
        (stein, lambda q, p, z: stein(z, p)),
        (partial(svgd, bandwidth=1.0), lambda q, p, z: svgd(z, p, bandwidth=1.0)),
    ):
        hand = by_hand(0.0, 6.0, call)
        same(pair, partial(InfoELBO, 0.0, 7.0, divergence), lambda hand=hand: hand)


def test_with_a_critic_it_is_the_adversarial_autoencoder():
    """alpha = lam = 1: reconstruction and the Jensen-Shannon divergence, both sides' gradients."""
    pair = BY_NAME["vae-normal"]

    def critic():
        torch.manual_seed(5)
        return Critic(MLP(2, 8, 1)).double()

    ours = outcome(pair, lambda: InfoELBO(1.0, 1.0, critic()))
    other = critic().requires_grad_(False)  # a function has no parameters to train
    hand = by_hand(1.0, 1.0, lambda q, p, z: other(z, p.rsample()))
    theirs = outcome(pair, lambda: hand)
    torch.testing.assert_close((ours[0], ours[2]), (theirs[0], theirs[2]), rtol=1e-12, atol=0)
    for name, gradient in theirs[1].items():  # a plain function owns no critic
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-10, atol=1e-12)
    assert sum(name.startswith("loss.") for name in ours[1]) == 4


def batch_moments_kl(q, p):
    """KL(N(m, diag S) || p), of the batch's mean and total variance."""
    q, p = q.base_dist, p.base_dist
    m = q.loc.mean(0)
    spread = (q.variance + (q.loc - m).square()).mean(0)
    return kl_divergence(dist.Normal(m, spread.sqrt()), dist.Normal(p.loc[0], p.scale[0])).sum()


batch_moments_kl.moments = True


@pytest.mark.parametrize("pair", named(GAUSSIAN))
def test_with_the_batchs_moments_it_is_a_mixture_elbo(pair):
    """alpha = lam = 1 and KL(N(m, diag S) || p): MixtureELBO(individual=0, moments="total")."""
    same(
        pair,
        partial(InfoELBO, 1.0, 1.0, batch_moments_kl),
        partial(MixtureELBO, individual=0.0, moments="total"),
    )


def mixture_kl(q, p, z):
    """KL(q(z) || p) by Monte Carlo: q(z) is the batch's mixture, z its draws."""
    aggregate = q.log_prob(z[:, None]).logsumexp(-1) - math.log(len(z))
    return (aggregate - p.log_prob(z)).mean()


@pytest.mark.parametrize("pair", named(GAUSSIAN))
def test_with_the_aggregates_kl_it_is_elbo_surgery(pair):
    """alpha = 0, lam = 1 + c: -E ln p(x|z) + I + (1 + c) KL(q(z) || p), by the guide's draws."""
    c = 2.5
    model, guide = pair.make()

    def surgery(model, guide, batch):
        guide_trace = poutine.trace(guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(batch)
        model_trace.compute_log_prob()
        q, p = guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"]
        aggregate = mixture_kl(q, p, guide_trace.nodes["z"]["value"])
        information = kl_divergence(q, p).mean() - aggregate
        reconstruction = -model_trace.nodes["x"]["log_prob"].mean()
        return len(batch) * (reconstruction + information + (1 + c) * aggregate)

    def divergence(z, p):
        h = guide.head(guide.activation(guide.encoder(pair.batch.double())))
        return mixture_kl(guide.posterior(h), p, z)

    divergence.score = True  # draws and the prior
    ours = outcome_of(model, guide, pair.batch, InfoELBO(0.0, 1 + c, divergence))
    theirs = outcome_of(model, guide, pair.batch, surgery)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(
    "divergence", [mmd, mmd_gaussian, stein, lambda z, y: Critic(MLP(2, 1)).double()(z, y)]
)
def test_loss_is_differentiable_loss(divergence):
    """With its penalty; the former without gradients."""
    pair = BY_NAME["vae-normal"]
    model, guide = pair.make()
    loss, values = InfoELBO(0.5, 3.0, divergence).double(), []
    for method in (loss.loss, loss.differentiable_loss, loss.loss_and_grads):
        pyro.set_rng_seed(1)
        value = method(model.double(), guide.double(), pair.batch.double())
        values.append(value.item() if isinstance(value, torch.Tensor) else value)
    assert values[0] == values[1] == values[2]


def test_particles_each_have_a_divergence():
    """Over the axis of data, then averaged."""
    model, guide = BY_NAME["vae-normal"].make()
    batch, loss = BY_NAME["vae-normal"].batch, InfoELBO(1.0, 2.0, num_particles=4)
    pyro.set_rng_seed(3)
    loss.loss(model, guide, batch)
    pyro.set_rng_seed(3)
    traces = trace_pair(model, guide, batch, 4)
    z, p = traces[1].nodes["z"]["value"], traces[0].nodes["z"]["fn"]
    each = [mmd(*pair) for pair in zip(z, p.rsample(), strict=True)]
    assert loss.record["divergence"].item() == pytest.approx(torch.stack(each).mean().item())
    assert loss.record["aggregate"] == 2 * loss.record["divergence"]


# What it is in closed form


@pytest.mark.parametrize(
    ("lam", "alpha"), [(1.0, 0.0), (10.0, 0.0), (1.0, 1.0), (3.0, 0.4), (1000.0, 1.0)]
)
def test_the_definition_and_the_loss_differ_by_the_datas_entropy(lam, alpha):
    """A discrete toy of 6 x and 5 z: the sheet's first line less its second, to 1e-10."""
    torch.set_default_dtype(torch.float64)  # the objective's beta is a tensor
    rows = [torch.rand(6), torch.rand(6, 5), torch.rand(5), torch.rand(5, 6)]
    data, q, prior, p = (t / t.sum(-1, keepdim=True) for t in rows)
    joint = data[:, None] * q  # q(x, z)
    aggregate = joint.sum(0)
    model_joint = prior * p.T
    from_model = model_joint / model_joint.sum(0)  # p(x|z) once more, by Bayes' rule
    distance = (aggregate * (aggregate / prior).log()).sum()
    information = (joint * (q / aggregate).log()).sum()
    backward = (joint * (joint / aggregate / from_model).log()).sum()
    definition = -lam * distance - backward + alpha * information
    loss = InfoELBO(alpha, lam, never)
    weight = sum(penalty.weight for penalty in loss.penalty_functions)
    kl = (joint * (q / prior).log()).sum()
    second = (joint * p.T.log()).sum() - loss.beta * kl - weight * distance
    entropy = -(data * data.log()).sum()
    assert (definition - second).item() == pytest.approx(entropy.item(), abs=1e-10)


class Sigma(dist.Normal):
    """A Normal whose draws lie one s.d. to either side: expectations of squares are exact."""

    def rsample(self, sample_shape=()):
        """Alternate between both sides along the data."""
        signs = self.loc.new_ones(self.batch_shape[0], 1)
        signs[1::2] = -1
        return self.loc + signs * self.scale


class LinearGuide(nn.Module):
    """q(z|x) = N(m x, s^2)."""

    def __init__(self):
        super().__init__()
        self.slope, self.log_scale = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", Sigma(self.slope * batch, self.log_scale.exp()).to_event(1))


@pytest.mark.parametrize("ratio", [4.0, 0.5])
@pytest.mark.parametrize(
    ("alpha", "lam"), [(0.0, 1.0), (0.0, 10.0), (0.5, 0.5), (0.5, 3.0), (-0.5, 2.0)]
)
def test_the_optimum_of_the_linear_gaussian_pair(ratio, alpha, lam):
    """x ~ N(0, R s^2), x|z ~ N(w z, s^2): aggregate variance 1, sigma^2 = min(1, (1 - alpha)/R).

    For every lam > 0: lam does not move a well-specified optimum, alpha raises the information.
    """
    torch.set_default_dtype(torch.float64)
    decoder = nn.Linear(1, 1, bias=False)
    noise = partial(dist.Normal, scale=0.7)
    model, guide = VAE(decoder, 1, likelihood=lambda h: noise(h)), LinearGuide()
    x = (ratio**0.5 * 0.7 * torch.tensor([1.0, 1.0, -1.0, -1.0]))[:, None]  # E x^2 = R s^2
    loss = InfoELBO(alpha, lam, batch_moments_kl)
    parameters = [*model.parameters(), *guide.parameters()]
    nn.init.constant_(decoder.weight, 0.5)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=500, tolerance_grad=1e-11, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss.differentiable_loss(model, guide, x)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)
    variance = guide.log_scale.exp().square()
    aggregate = guide.slope.square() * ratio * 0.49 + variance
    best = min(1.0, (1 - alpha) / ratio)
    assert variance.item() == pytest.approx(best, abs=1e-4 if best < 1 else 1e-2)
    assert aggregate.item() == pytest.approx(1.0, abs=1e-4 if best < 1 else 1e-2)


# Proposition 1


def proposition_1(m, sigma):
    """The ELBO of data {-1, 1}, decoder N(sign z, s^2), q = N(+-M, sigma^2), at the best s."""
    log_variance = math.log(4) + norm.logcdf(-m / sigma)
    kl = (m**2 + sigma**2 - 1) / 2 - math.log(sigma)
    return -(math.log(2 * math.pi) + log_variance) / 2 - 0.5 - kl


@pytest.mark.parametrize(("m", "value"), [(0, -2.514), (1, 0.516), (2, 7.669), (5, 55.951)])
def test_the_elbo_of_the_toy_is_unbounded(m, value):
    """By its formula, and by ours from evenly spread draws where a wrong sign can be drawn."""
    assert proposition_1(m, 0.3) == pytest.approx(value, abs=1e-3)
    if m < 2:
        scale = 2 * norm.cdf(-m / 0.3) ** 0.5

        class Spread(dist.Normal):
            """Draws at the quantiles, along the particles."""

            def rsample(self, sample_shape=()):
                levels = (torch.arange(200001.0).double() + 0.5) / 200001
                return self.icdf(levels[:, None, None])

        def guide(batch):
            with pyro.plate("data", len(batch), dim=-1):
                pyro.sample("z", Spread(m * batch, 0.3).to_event(1))

        model = VAE(_Sign(), 1, likelihood=partial(dist.Normal, scale=scale)).double()
        batch = torch.tensor([[-1.0], [1.0]]).double()
        with pyro.validation_enabled(False):  # these draws are none of one particle
            loss = BetaELBO(num_particles=200001).loss(model, guide, batch) / 2
        assert -loss == pytest.approx(value, abs=0.01)


class _Sign(nn.Module):
    def forward(self, z):
        return z.sign()


def test_the_toy_grows_as_the_sheet_says():
    """M^2/(4 sigma^2) - M^2/2: without bound for sigma < 1/sqrt 2 only."""
    assert proposition_1(12, 0.6) == pytest.approx(27.66, abs=0.01)
    assert proposition_1(12, 0.8) == pytest.approx(-16.09, abs=0.01)
    for sigma, m in itertools.product((0.3, 0.6, 0.8), (1000.0,)):
        rate = 1 / (4 * sigma**2) - 1 / 2
        assert proposition_1(m, sigma) / m**2 == pytest.approx(rate, rel=1e-3)


def test_the_toys_divergence_is_the_cure():
    """MMD of the published read-offs, kernel exp(-|z - y|^2): .302 by the ELBO, .0030 by MMD."""
    values = []
    p = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    for mode, spread in ((1.4, 0.225), (0.75, 0.66), (5.0, 0.3)):
        q = dist.Normal(torch.tensor([[-mode], [mode]]), spread).to_event(1)
        values.append(mmd_gaussian(q, p, bandwidth=0.5**0.5).item())
    assert values[:2] == pytest.approx([0.302, 0.0030], rel=0.03)
    assert values[2] > values[0]


# What is measured on it


@pytest.mark.parametrize(
    ("n", "d", "value"), [(10_000, 5, -0.0015), (10_000, 20, -0.0210), (500, 20, -0.427)]
)
def test_the_log_determinant_of_the_priors_own_covariance(n, d, value):
    """E ln det of the sample covariance of n draws of N(0, I), with digamma and with draws."""
    terms = digamma((n - 1 - np.arange(d)) / 2)
    expected = terms.sum() + d * math.log(2 / (n - 1))
    assert expected == pytest.approx(value, abs=6e-4)
    draws = torch.stack([torch.randn(n, d).T.cov().logdet() for _ in range(40)])
    assert abs(draws.mean() - expected) < 5 * draws.std() / 40**0.5


def test_the_floor_of_the_class_mismatch():
    """5,000 draws of a uniform law of ten classes: what a perfect model would score."""
    counts = np.random.default_rng(0).multinomial(5000, np.full(10, 0.1), size=4000) / 5000
    away = np.abs(counts - 0.1)
    assert away.sum(1).mean() == pytest.approx(0.0338, abs=3e-4)
    assert np.sqrt((away**2).sum(1)).mean() == pytest.approx(0.0130, abs=2e-4)
    # cross entropy of the uniform law to the counted one
    excess = -(0.1 * np.log(counts)).sum(1).mean() - math.log(10)
    assert excess == pytest.approx(0.0009, abs=5e-5)


# Training


def test_it_owns_no_parameters_but_its_critics():
    """`InfoELBO` itself has none; a critic's train, save and move with it."""
    assert not list(InfoELBO(0.0, 5.0, mmd_gaussian).parameters())
    assert not list(InfoELBO(0.0, 1.0, Critic(MLP(2, 1))).parameters())  # it is not asked
    loss = InfoELBO(1.0, 1.0, Critic(MLP(2, 4, 1)))
    assert len(list(loss.double().parameters())) == 4
    assert {p.dtype for p in loss.parameters()} == {torch.float64}


def test_a_critic_learns_up_while_the_pair_learns_down():
    """On a frozen pair far from the prior the divergence rises; on a frozen critic it falls."""
    torch.manual_seed(0)
    pair = BY_NAME["vae-normal"]
    model, guide = pair.make()
    with torch.no_grad():
        guide.head.bias[:2] = 3.0
    loss = InfoELBO(1.0, 50.0, Critic(MLP(2, 16, 1)))
    frozen, moving = partial(torch.optim.SGD, lr=0.0), partial(torch.optim.Adam, lr=1e-2)
    batch = pair.batch.repeat(20, 1)
    svi = SVI(model, guide, frozen, loss, critic_optim=moving)
    svi.step(batch)
    first = loss.record["divergence"].item()
    for _ in range(60):
        svi.step(batch)
    learned = loss.record["divergence"].item()
    assert learned > first + 0.1 and learned < math.log(2)
    svi = SVI(model, guide, moving, loss, critic_optim=frozen)
    for _ in range(60):
        svi.step(batch)
    assert loss.record["divergence"].item() < learned - 0.1


def test_evaluation_leaves_the_critic_alone():
    """Weights, running means and modes."""
    pair = BY_NAME["vae-normal"]
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    svi = train(*pair.make(), InfoELBO(1.0, 1.0, Critic(network, event_dim=1)))
    svi.step(pair.batch)
    before = {
        name: t.clone() for name, t in svi.loss.state_dict().items() if name != "_extra_state"
    }
    assert svi.evaluate(pair.batch).isfinite()
    assert all(torch.equal(t, svi.loss.state_dict()[name]) for name, t in before.items())
    assert network.training


def test_a_learned_prior_is_moved_by_the_divergence():
    """Its draws are pathwise: with alpha = 1 nothing else reaches it."""
    for divergence in (mmd, mmd_gaussian, stein, Critic(MLP(2, 4, 1))):
        model, guide = BY_NAME["vae-learned-prior"].make()
        train(model, guide, InfoELBO(1.0, 2.0, divergence)).step(BY_NAME["vae-normal"].batch)
        assert model.prior.loc.grad.any() and model.prior.log_scale.grad.any()


def test_the_aggregate_comes_to_the_prior():
    """The log determinant of the codes' covariance: near 0 with MMD, far above by the ELBO."""
    spread = {}
    x = torch.rand(64, 8).round()
    for name, loss in {"elbo": BetaELBO(), "mmd": InfoELBO(1.0, 200.0, mmd_gaussian)}.items():
        pyro.set_rng_seed(0)
        likelihood = partial(normal_with_scale, min_scale=0.02)
        model, guide = VAE(MLP(2, 32, 16), 2, likelihood), Normal(MLP(8, 32), latent_dim=2)
        svi = train(model, guide, loss)
        fit(svi, x, epochs=300, batch_size=64, progress=False)
        codes = poutine.trace(guide).get_trace(x.repeat(20, 1)).nodes["z"]["value"]
        spread[name] = codes.T.cov().logdet().item()
    assert abs(spread["mmd"]) < 0.3 and spread["elbo"] > 0.7


# What it refuses


@pytest.mark.parametrize("alpha", [-5.0, -0.3, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("lam", [-1.0, 0.0, 1e-3, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 6.0, 1e3])
def test_no_accepted_setting_maximizes_the_divergence(alpha, lam):
    """The loss never falls as D rises: such settings are refused, and no other."""
    d = torch.tensor(0.5, requires_grad=True)
    try:
        loss = InfoELBO(alpha, lam, lambda z, y: d * 1.0)
    except ValueError as error:
        assert alpha + lam < 1 and "would be maximized" in str(error)
        return
    assert alpha + lam > 1 - 1e-9
    model, guide = BY_NAME["vae-normal"].make()
    (slope,) = torch.autograd.grad(
        loss.differentiable_loss(model, guide, BY_NAME["vae-normal"].batch), d, allow_unused=True
    )
    if alpha + lam - 1 < 1e-9:
        assert slope is None
    else:
        assert slope.item() == pytest.approx(5 * (alpha + lam - 1))


@pytest.mark.parametrize(("alpha", "lam"), [(0.0, 1e-3), (0.5, 0.03)])
def test_the_defaults_of_pythae_are_refused(alpha, lam):
    """Their weights of MMD are -.999 and -.47."""
    message = f"alpha + lam must be at least 1, but is {alpha} + {lam}"
    with pytest.raises(ValueError, match=re.escape(message)):
        InfoELBO(alpha, lam)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((1.1, 5.0), ValueError, "alpha must be at most 1, but is 1.1"),
        ((math.nan, 1.0), ValueError, "alpha and lam must be finite, but are nan and 1.0"),
        ((0.0, math.inf), ValueError, "must be finite, but are 0.0 and inf"),
        ((0.0, 2.0, "mmd"), TypeError, "divergence must be a function or module.*'mmd'"),
    ],
)
def test_bad_settings_are_refused(arguments, kind, message):
    """When the objective is made."""
    with pytest.raises(kind, match=message):
        InfoELBO(*arguments)


@pytest.mark.parametrize(
    ("pair", "divergence", "size", "kind", "message"),
    [
        ("vae-normal", mmd, 1, ValueError, r"this batch has one: leave out a rest of one"),
        ("ladder", mmd, 5, ValueError, r"no latent 'z', but \['z_1', 'z_2'\]: .*site="),
        ("bits", mmd, 5, ValueError, r"draws of \['z'\] have no pathwise gradients"),
        ("vae-mixture", mmd_gaussian, 5, TypeError, "guide's .* MixtureOfDiagNormals.*mmd"),
        ("vae-laplace-prior", mmd_gaussian, 5, TypeError, "prior's distribution is Laplace"),
        ("vae-laplace-prior", stein, 5, TypeError, "prior's distribution is Laplace"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(pair, divergence, size, kind, message):
    """On the first loss, naming the mend."""
    model, guide = BY_NAME[pair].make()
    with pytest.raises(kind, match=message):
        InfoELBO(0.0, 2.0, divergence).differentiable_loss(
            model, guide, BY_NAME[pair].batch[:size]
        )


def test_another_site_and_further_penalties():
    """The ladder's upper latent, beside a penalty of one's own."""
    pair = BY_NAME["ladder"]
    loss = InfoELBO(0.0, 2.0, site="z_2", own=lambda model_trace, guide_trace: torch.tensor(3.0))
    assert train(*pair.make(), loss).step(pair.batch).isfinite()
    assert loss.record["own"] == 3 and loss.record["aggregate"].isfinite()


def test_a_scale_per_element_is_its_formula():
    """Both halves of the decoder's output, the floor, and every constant."""
    h = torch.tensor([0.3, -2.0, 1.0, -9.0]).double()
    p = normal_with_scale(h, min_scale=0.05)
    scale = [1 / (1 + math.exp(-1.0)), 0.05]
    mean = [1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(2.0))]
    values = norm.logpdf([0.4, 0.1], mean, scale)
    assert p.log_prob(torch.tensor([0.4, 0.1]).double()).tolist() == pytest.approx(values.tolist())
    assert torch.equal(normal_with_scale(h, mean=nn.Identity()).mean, h[:2])


def test_the_recipes_are_points_of_the_family():
    """Their weights, what they own, and a step of each."""
    x = torch.rand(6, 64).round()
    for recipe, alpha, weight in ((infovae, 0.0, 1000 - 1), (mmdvae, 1.0, 1000), (aae, 1.0, 1)):
        svi = recipe(64, hidden=(16,), device="cpu")
        assert svi.loss.beta == 1 - alpha
        assert svi.loss.penalty_functions[0].weight == weight
        assert svi.step(x).isfinite()
        assert any(name.startswith("loss.") for name in svi.parameters) is (recipe is aae)
    with pytest.raises(ValueError, match="would be maximized"):
        infovae(64, lam=0.5, hidden=(16,), device="cpu")


def test_only_one_coordinate_is_drawn_as_densities():
    """And more are refused, with where to look."""
    with pytest.raises(ValueError, match=r"site 'z' has events of shape \(2,\).*aggregate_post"):
        plots.aggregate_densities({"two": Normal(MLP(8, 4), latent_dim=2)}, torch.rand(3, 8))
