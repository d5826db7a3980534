"""Each objective against its formula: values and gradients."""

import itertools
import math
import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from zoo import (
    GUIDES,
    PAIRS,
    LearnedPrior,
    binary,
    linear,
    named,
    particles,
    real,
    squared,
    train,
    vae,
)

from ppvae import SVI
from ppvae.divergences import kl_per_coordinate
from ppvae.guides import GaussianMixture
from ppvae.networks import MLP
from ppvae.objectives import IWELBO, BetaELBO, MixtureELBO, PenalizedELBO, log_mean_exp, warmup
from ppvae.protocols import batch_size, map_batch
from ppvae.weights import trace_pair

BY_NAME = {pair.name: pair for pair in PAIRS}


def double(pair, seed=0):
    """Return model, guide and batch in double precision."""
    model, guide = pair.make(seed)
    batch = map_batch(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, pair.batch)
    return model.double(), guide.double(), batch


def loss_and_gradients(model, guide, batch, loss, seed=1):
    """Return the loss summed over the batch, and its gradient by name."""
    pyro.set_rng_seed(seed)
    svi = train(model, guide, loss)
    value = svi._loss_per_datum(batch) * batch_size(batch)
    names, parameters = zip(*svi.parameters.items(), strict=True)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return value.detach(), {n: g for n, g in zip(names, gradients, strict=True) if g is not None}


def agree(pair, one, other):
    """Assert that two losses are one, in value and gradient, on the same draws.

    For discrete latents in value: ours keeps the part of the score function whose mean is zero.
    """
    a, b = (loss_and_gradients(*double(pair), make()) for make in (one, other))
    count = 2 if pair.pathwise else 1
    torch.testing.assert_close(a[:count], b[:count], atol=1e-10, rtol=1e-10)


def number(loss):
    """Return a loss as a number, whether it is one already or a tensor with a graph."""
    return loss.item() if isinstance(loss, torch.Tensor) else loss


SHORT = [pair for pair in PAIRS if pair.steady]
PATHWISE = [pair for pair in SHORT if pair.pathwise]
WEIGHED = [p for p in SHORT if p.unmarked and p.density]  # IWELBO refuses the others


# Which bound is which


@pytest.mark.parametrize("pair", named(SHORT))
def test_without_closed_forms_it_is_trace_elbo(pair):
    """In loss and gradient."""
    agree(pair, partial(BetaELBO, analytic=False), Trace_ELBO)


@pytest.mark.parametrize("pair", named(PATHWISE))
def test_with_closed_forms_it_is_trace_mean_field_elbo(pair):
    """In loss and gradient."""
    agree(pair, BetaELBO, TraceMeanField_ELBO)


@pytest.mark.parametrize("pair", named(WEIGHED))
def test_one_particle_makes_the_weighted_bound_the_elbo(pair):
    """IWELBO(1) is the ELBO, whatever alpha."""
    agree(pair, partial(IWELBO, 1), Trace_ELBO)
    agree(pair, partial(IWELBO, 1, alpha=0.5), Trace_ELBO)


@pytest.mark.parametrize("pair", named(SHORT))
def test_particles_are_those_of_pyro(pair):
    """Three draws per datum, vectorized."""
    agree(pair, partial(BetaELBO, analytic=False, num_particles=3), partial(particles, 3))


@pytest.mark.parametrize("pair", named(SHORT))
def test_without_penalties_it_is_the_beta_elbo(pair):
    """PenalizedELBO adds nothing of its own."""
    agree(pair, partial(PenalizedELBO, 2.0), partial(BetaELBO, 2.0))


# Closed-form divergences


@pytest.mark.parametrize("loss", [TraceMeanField_ELBO, BetaELBO])
@pytest.mark.parametrize(("guide", "closed"), [(g, g == "normal") for g in GUIDES])
def test_the_closed_form_is_used_where_one_is_registered(guide, closed, loss):
    """Where x tells nothing about z the loss is its KL: without noise in closed form, else with.

    Nothing says which of the two it was: a warning would be an error here.
    """
    model, guide = vae(), GUIDES[guide](MLP(8, 16))
    for parameter in model.parameters():
        parameter.data.zero_()
    losses = [loss_and_gradients(model, guide, binary(5, 8), loss(), seed)[0] for seed in (1, 2)]
    assert torch.equal(*losses) is closed


def test_mean_field_checks_reparameterization_only_while_validation_is_on():
    """On the first step of an SVI, that is; ours takes such latents at any time."""
    pair = BY_NAME["bits"]
    svi = train(*pair.make(), TraceMeanField_ELBO())
    with pytest.raises(NotImplementedError, match="reparameterized"):
        svi.step(pair.batch)
    with pyro.validation_enabled(False):
        svi.evaluate(pair.batch)
    train(*pair.make(), BetaELBO()).step(pair.batch)


# Beta


@pytest.mark.parametrize("beta", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("count", [1, 3])
def test_beta_weighs_the_kl(beta, count):
    """The loss is -(log likelihood - beta KL), by hand and by the record."""
    model, guide, batch = double(BY_NAME["vae-normal"])
    loss = BetaELBO(beta, analytic=False, num_particles=count)
    value, _ = loss_and_gradients(model, guide, batch, loss)
    pyro.set_rng_seed(1)
    model_trace, guide_trace = trace_pair(model, guide, batch, count)
    log_likelihood = model_trace.nodes["x"]["log_prob"].sum() / count
    kl = guide_trace.nodes["z"]["log_prob"] - model_trace.nodes["z"]["log_prob"]
    torch.testing.assert_close(value, beta * kl.sum() / count - log_likelihood)
    record = loss.record
    torch.testing.assert_close(5 * (beta * record["kl"] - record["log_likelihood"]), value)
    assert not any(term.requires_grad for term in record.values())


class Boxed(nn.Module):
    """z ~ U(0, 1)^2, so that a Normal guide's KL is infinite; x ~ Bernoulli(sigmoid(w z_1))."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            box = dist.Uniform(torch.zeros(2), 1.0, validate_args=False).to_event(1)
            z = pyro.sample("z", box)
            pyro.sample(
                "x", dist.Bernoulli(logits=z[..., :1] * self.weight).to_event(1), obs=batch
            )


@pytest.mark.parametrize("analytic", [True, False])
def test_beta_zero_leaves_an_infinite_kl_out(analytic):
    """Not infinity times zero."""
    model, guide = Boxed(), GUIDES["normal"](MLP(1, 4))
    losses = {}
    with pyro.validation_enabled(False):
        for beta in (0.0, 1.0):
            loss = BetaELBO(beta, analytic=analytic, num_particles=20)
            losses[beta] = loss_and_gradients(model, guide, binary(4, 1), loss)
    assert losses[1.0][0] == math.inf
    assert losses[0.0][0].isfinite()
    assert all(g.isfinite().all() for g in losses[0.0][1].values())


def test_beta_zero_records_no_kl():
    """What is not computed is not shown."""
    pair = BY_NAME["vae-normal"]
    svi = train(*pair.make(), BetaELBO(0.0))
    assert -svi.step(pair.batch) == svi.loss.record["log_likelihood"]
    assert set(svi.loss.record) == {"log_likelihood"}


@pytest.mark.parametrize("floor", [0.05, 0.3, 3.0])
def test_free_bits_by_hand(floor):
    """N (beta sum_d max(lambda, mean_n KL_nd)) - log likelihood."""
    model, guide, batch = double(BY_NAME["vae-normal"])
    value, _ = loss_and_gradients(model, guide, batch, BetaELBO(2.0, free_bits=floor))
    pyro.set_rng_seed(1)
    model_trace, guide_trace = trace_pair(model, guide, batch)
    sites = [trace.nodes["z"]["fn"] for trace in (guide_trace, model_trace)]
    kl = kl_per_coordinate(*sites).flatten(0, -2).mean(0)
    expected = 2 * 5 * kl.clamp(min=floor).sum() - model_trace.nodes["x"]["log_prob"].sum()
    torch.testing.assert_close(value, expected)
    assert (kl < floor).any() or floor == 0.05


def test_no_gradient_pushes_below_the_free_bits():
    """Under a floor of 100 nats the gradient is that of the likelihood alone."""
    pair = BY_NAME["vae-normal"]
    held, bare = (
        loss_and_gradients(*double(pair), loss)[1]
        for loss in (BetaELBO(free_bits=100.0), BetaELBO(0.0))
    )
    torch.testing.assert_close(held, bare)
    pushed = loss_and_gradients(*double(pair), BetaELBO())[1]
    assert not torch.equal(pushed["guide.head.bias"], bare["guide.head.bias"])


# Schedules


def test_only_a_training_step_advances_the_schedule():
    """Not an evaluation, a loss, or a module's forward."""
    pair = BY_NAME["vae-normal"]
    model, guide = pair.make()
    svi = train(model, guide, BetaELBO(warmup(4)))
    betas = []
    for _ in range(6):
        betas.append(float(svi.loss.beta))
        svi.evaluate(pair.batch)
        svi.loss.loss(model, guide, pair.batch)
        svi.loss(model, guide)(pair.batch)
        svi.step(pair.batch)
    assert betas == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_schedule_survives_its_state_dict():
    """The place in it is part of the state, and so is beta."""
    pair = BY_NAME["vae-normal"]
    svi, other = (train(*pair.make(), BetaELBO(warmup(4))) for _ in range(2))
    for _ in range(2):
        svi.step(pair.batch)
    other.load_state_dict(svi.state_dict())
    assert (other.loss.steps, float(other.loss.beta)) == (2, 0.5)
    other.step(pair.batch)
    assert float(other.loss.beta) == 0.75


@pytest.mark.parametrize(("step", "beta"), [(0, 2.0), (5, 1.5), (10, 1.0), (99, 1.0)])
def test_warmup_may_fall(step, beta):
    """From any number to any other."""
    assert warmup(10, start=2.0, end=1.0)(step) == beta


# Penalties


def test_penalties_are_in_every_form_of_the_loss_and_in_the_record():
    """`loss`, `differentiable_loss` and `loss_and_grads` carry them once per datum."""
    model, guide, batch = double(BY_NAME["vae-normal"])
    penalties = {"half": lambda *_: torch.tensor(0.5), "squared": squared}
    loss, bare = PenalizedELBO(2.0, **penalties), BetaELBO(2.0)
    for form in ("loss", "differentiable_loss", "loss_and_grads"):
        values = []
        for each in (loss, bare):
            pyro.set_rng_seed(1)
            values.append(number(getattr(each, form)(model, guide, batch)))
        assert values[0] - values[1] == pytest.approx(5 * (0.5 + float(loss.record["squared"])))
        assert set(loss.record) == {"log_likelihood", "kl", "half", "squared"}
    record = {name: float(term) for name, term in loss.record.items()}
    total = 2 * record["kl"] - record["log_likelihood"] + record["half"] + record["squared"]
    assert 5 * total == pytest.approx(values[0])


def test_a_penalty_has_a_gradient_and_may_be_a_module():
    """The module moves and saves with the objective."""

    class Far(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.tensor(0.1, dtype=torch.float64))

        def forward(self, model_trace, guide_trace):
            return self.weight * guide_trace.nodes["z"]["value"].square().mean()

    pair = BY_NAME["vae-normal"]
    by_module, by_function = PenalizedELBO(0.0, far=Far()), PenalizedELBO(0.0, squared=squared)
    agree(pair, lambda: by_module, lambda: by_function)
    assert "penalty_modules.far.weight" in by_module.state_dict()
    gradients = [
        loss_and_gradients(*double(pair), loss)[1]["guide.head.bias"]
        for loss in (by_function, BetaELBO(0.0))
    ]
    assert not torch.equal(*gradients)


# Importance-weighted and Renyi bounds


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
def test_renyi_through_svi_is_pyros(alpha):
    """Its value is Pyro's, its gradient that of the formula, written by hand."""
    model, guide, batch = double(BY_NAME["vae-flow"])
    make = partial(
        RenyiELBO, alpha=alpha, num_particles=6, vectorize_particles=True, max_plate_nesting=1
    )
    value, gradients = loss_and_gradients(model, guide, batch, make())
    pyro.set_rng_seed(1)
    assert float(value) == pytest.approx(make().loss(model, guide, batch), abs=1e-10)

    def formula(model, guide, batch):
        p, q = trace_pair(model, guide, batch, 6)
        log_w = p.nodes["x"]["log_prob"] + p.nodes["z"]["log_prob"] - q.nodes["z"]["log_prob"]
        order = 1 - alpha
        return -((order * log_w).logsumexp(0) - math.log(6)).sum() / order

    by_hand = loss_and_gradients(model, guide, batch, formula)
    torch.testing.assert_close((value, gradients), by_hand, atol=1e-10, rtol=1e-10)


def test_log_mean_exp_neither_overflows_nor_underflows():
    """A thousand nats either way."""
    log_w = torch.tensor([[1000.0, -1000.0], [1000.0, -1000.0]])
    assert log_mean_exp(log_w).tolist() == [1000.0, -1000.0]


@pytest.mark.parametrize("pair", named(p for p in WEIGHED if p.pathwise and p.apart and p.fixed))
@pytest.mark.parametrize("estimator", ["dreg", "stl"])
def test_the_estimators_differ_in_the_guides_gradient_alone(pair, estimator):
    """On the same draws the value and the model's gradient are those of "iwae"."""
    plain = loss_and_gradients(*double(pair), IWELBO(4))
    other = loss_and_gradients(*double(pair), IWELBO(4, estimator=estimator))
    torch.testing.assert_close(plain[0], other[0])
    for name in (name for name in plain[1] if name.startswith("model.")):
        torch.testing.assert_close(plain[1][name], other[1][name])
    assert plain[1].keys() == other[1].keys()


def gradients(pair, loss, repetitions=400):
    """Return repeated gradients of the guide, (repetitions, number of parameters)."""
    model, guide, batch = double(pair)
    if isinstance(guide, GaussianMixture):  # components that overlap: else the tails are heavy
        guide.head.bias.data[:6] *= 0.3
    svi, rows = train(model.requires_grad_(False), guide, loss), []
    for _ in range(repetitions):
        flat = torch.autograd.grad(svi._loss_per_datum(batch), list(svi.parameters.values()))
        rows.append(torch.cat([g.flatten() for g in flat]))
    return torch.stack(rows)


def deviations(a, b):
    """Return by how many standard errors the means of two samples differ, per column."""
    error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
    seen = error > 1e-12
    return ((a.mean(0) - b.mean(0)) / error)[seen].abs()


@pytest.mark.parametrize("guide", GUIDES)
def test_dreg_has_the_mean_of_iwae_and_less_variance(guide):
    """The gradient's mean agrees within errors; its total variance shrinks."""
    pair = BY_NAME[f"linear-{guide}"]
    plain, double_ = (gradients(pair, IWELBO(8, estimator=e)) for e in ("iwae", "dreg"))
    z = deviations(plain, double_)
    assert z.max() < 6
    assert z.square().mean() < 2
    assert double_.var(0).sum() < 0.8 * plain.var(0).sum()


def test_stl_is_unbiased_for_one_particle_and_biased_for_more():
    """Which is what sets it apart from dreg."""
    pair = BY_NAME["linear-normal"]
    single = deviations(gradients(pair, IWELBO(1)), gradients(pair, IWELBO(1, estimator="stl")))
    assert single.max() < 5
    several = deviations(gradients(pair, IWELBO(8)), gradients(pair, IWELBO(8, estimator="stl")))
    assert several.max() > 6


@pytest.mark.parametrize(("estimator", "still"), [("dreg", True), ("stl", True), ("iwae", False)])
def test_at_the_posterior_the_gradient_lands(estimator, still):
    """Where q(z|x) = p(z|x) dreg and stl have no noise at all."""
    model = linear(((0.0, 0.0),) * 3).double()  # the posterior is the prior
    guide = GUIDES["normal"](MLP(3, 4)).double()
    with torch.no_grad():
        guide.head.weight.zero_()
        guide.head.bias.zero_()
        guide.head.bias[2:] = math.log(math.expm1(1 - 1e-4))  # a scale of 1
    batch = real(5, 3).double()
    _, found = loss_and_gradients(model, guide, batch, IWELBO(4, estimator=estimator))
    noise = max(g.abs().max() for name, g in found.items() if name.startswith("guide"))
    assert bool(noise < 1e-10) is still


class Interval(nn.Module):
    """A guide of our own: z ~ U(m - r, m + r), whose ends move, or U(-3, 3), whose ends do not."""

    def __init__(self, moving):
        super().__init__()
        self.loc, self.moving = nn.Parameter(torch.zeros(2)), moving

    def forward(self, batch):
        loc = self.loc if self.moving else 0 * self.loc.detach()
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Uniform(loc - 3, loc + 3, validate_args=False).to_event(1))


@pytest.mark.parametrize("estimator", ["dreg", "stl"])
def test_estimators_along_the_path_need_a_support_that_stays(estimator):
    """A uniform guide's ln q is flat along the path, though its bound changes with the ends."""
    model, batch = BY_NAME["vae-normal"].make()[0], BY_NAME["vae-normal"].batch
    loss = IWELBO(4, estimator=estimator)
    with pytest.raises(ValueError, match="support of the guide's site 'z' ends where"):
        loss.differentiable_loss(model, Interval(True), batch)
    assert loss.differentiable_loss(model, Interval(False), batch).isfinite()
    assert IWELBO(4).differentiable_loss(model, Interval(True), batch).isfinite()


# Score functions against enumeration

STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)


def log_joints(model, guide, batch):
    """Return ln p(x, z), ln p(z), ln q(z|x) of a Bits pair for all four latents, (4, N) each."""
    latents = STATES[:, None]  # (4, 1, 2)
    log_prior = dist.Bernoulli(logits=model.prior).to_event(1).log_prob(latents)
    p_x = dist.Bernoulli(logits=model.decoder(latents)).to_event(1)
    log_q = dist.Bernoulli(logits=guide.encoder(batch)).to_event(1).log_prob(latents)
    return p_x.log_prob(batch) + log_prior, log_prior, log_q


def exact_elbo(model, guide, batch, beta=1.0):
    """Return the beta-ELBO by summing over latents, (N,)."""
    log_p, log_prior, log_q = log_joints(model, guide, batch)
    return (log_q.exp() * (log_p - log_prior - beta * (log_q - log_prior))).sum(0)


def exact_bound(model, guide, batch):
    """Return IWELBO(2) by summing over pairs of latents, (N,)."""
    log_p, _, log_q = log_joints(model, guide, batch)
    log_w = log_p - log_q
    value = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)  # (4, 4, N)
    return ((log_q[:, None] + log_q[None]).exp() * value).sum((0, 1))


@pytest.mark.parametrize(
    ("make", "exact"),
    [
        (Trace_ELBO, exact_elbo),
        (BetaELBO, exact_elbo),
        (partial(BetaELBO, 3.0, analytic=False), partial(exact_elbo, beta=3.0)),
        (partial(BetaELBO, 0.0), partial(exact_elbo, beta=0.0)),
        (partial(BetaELBO, num_particles=2), exact_elbo),
        (partial(IWELBO, 2), exact_bound),
    ],
    ids=["trace", "analytic", "by-draws", "beta-0", "particles", "weighted"],
)
def test_score_function_gradients_agree_with_enumeration(make, exact):
    """For discrete latents, parameter by parameter, within 4.5 standard errors."""
    model, guide, batch = double(BY_NAME["bits"])
    svi, rows = train(model, guide, make()), []
    parameters = list(svi.parameters.values())
    for _ in range(300):
        loss = svi._loss_per_datum(batch.repeat(20, 1))
        rows.append(
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(loss, parameters, materialize_grads=True)
                ]
            )
        )
    sampled = torch.stack(rows)
    loss = -exact(model, guide, batch).mean()
    expected = torch.autograd.grad(loss, parameters, materialize_grads=True)
    error = sampled.std(0) / math.sqrt(len(sampled))
    z = (sampled.mean(0) - torch.cat([g.flatten() for g in expected])) / error.clamp(min=1e-9)
    assert z.abs().max() < 4.5


class Forced(dist.Bernoulli):
    """Gives the draw that it is told."""

    draw = None

    def sample(self, sample_shape=()):
        return self.draw


class Toggled(nn.Module):
    """Bits of every datum, z; y ~ N(f(z), s^2) for each, with moments that depend on the bits."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[0.3], [-0.4], [0.8]]).double())  # (N, 1)
        self.loc = nn.Parameter(torch.tensor([-0.5, 0.9]).double())  # of y, by z
        self.scale = 0.7

    def forward(self, batch):
        with pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", Forced(logits=self.logits).to_event(1))
            pyro.sample("y", self.law(z))

    def law(self, z):
        loc = torch.where(z > 0.5, self.loc[1], self.loc[0])
        return dist.Normal(loc, self.scale).to_event(1)


def toggled_model(batch):
    """The prior of both; nothing is observed."""
    with pyro.plate("data", 3, dim=-1):
        zeros = torch.zeros(1).double()
        pyro.sample("z", dist.Bernoulli(logits=zeros).to_event(1))
        pyro.sample("y", dist.Normal(zeros, 1.0).to_event(1))


def bent(model_trace, guide_trace):
    """A penalty that is no sum over data, nor over particles: (mean z)^2."""
    return guide_trace.nodes["z"]["value"].mean().square()


def bent_of(guide, z):
    return z.mean().square()


def free_bits_of(guide, z, free_bits=0.3):
    """Of y: KL(N(m, s^2) || N(0, 1)); of z, whose KL depends on no draw."""
    kl_z = torch.distributions.kl_divergence(
        dist.Bernoulli(logits=guide.logits), dist.Bernoulli(logits=torch.zeros(()).double())
    )
    kl_y = torch.distributions.kl_divergence(
        guide.law(z).base_dist, dist.Normal(torch.zeros(()).double(), 1.0)
    )
    return sum(kl.mean().clamp(min=free_bits) for kl in (kl_z, kl_y))


def moments_of(guide, z):
    """The total moments of y over the batch, per particle, against N(0, 1): z (K, N, 1)."""
    loc = guide.law(z).mean.squeeze(-1)  # (K, N)
    m, v = loc.mean(-1), loc.var(-1, correction=0) + guide.scale**2
    return ((m.square() + v - v.log() - 1) / 2).mean()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("make", "exact"),
    [
        (partial(PenalizedELBO, 0.0, bent=bent), bent_of),
        (partial(BetaELBO, 1.0, free_bits=0.3), free_bits_of),
        (partial(MixtureELBO, 0.0, site="y"), moments_of),
    ],
    ids=["penalty", "free-bits", "moments"],
)
def test_a_statistic_of_the_batch_has_the_score_of_all_its_draws(make, exact, count):
    """The mean of the estimator over all 2^(K N) draws is the gradient of the mean, exactly."""
    guide, batch = Toggled(), torch.zeros(3, 1).double()
    parameters = list(guide.parameters())
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3 * count))).double()
    states = states.reshape(-1, count, 3, 1)  # (2^(K N), K, N, 1)
    value = torch.stack([exact(guide, z) for z in states])
    log_q = dist.Bernoulli(logits=guide.logits).log_prob(states).sum((1, 2, 3))
    mean = (log_q.exp() * value).sum()
    expected = torch.autograd.grad(mean, parameters, materialize_grads=True)

    loss, total = make(num_particles=count), 0.0
    for z, weight in zip(states, log_q.exp().detach(), strict=True):
        Forced.draw = z.squeeze(0)  # without an axis of particles for one of them
        with pyro.validation_enabled(False):  # forced draws are none of one particle
            total = total + weight * loss.differentiable_loss(toggled_model, guide, batch) / 3
    found = torch.autograd.grad(total, parameters, materialize_grads=True)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


# The forms of a loss


@pytest.mark.parametrize(
    "make", [BetaELBO, partial(IWELBO, 4), partial(PenalizedELBO, squared=squared)]
)
def test_the_forms_of_a_loss_agree(make):
    """`loss`, `loss_and_grads`, `differentiable_loss` and the module `elbo(model, guide)`."""
    model, guide, batch = double(BY_NAME["vae-normal"])

    def value(form):
        pyro.set_rng_seed(1)
        return number(form())

    loss = make()
    first = value(lambda: loss.loss(model, guide, batch))
    for form in (loss.differentiable_loss, loss.loss_and_grads):
        assert value(lambda form=form: form(model, guide, batch)) == pytest.approx(first)
    assert value(lambda: make()(model, guide)(batch)) == pytest.approx(first)
    assert guide.head.bias.grad is not None


@pytest.mark.parametrize(
    "loss", [Trace_ELBO, BetaELBO, partial(IWELBO, 3), partial(RenyiELBO, num_particles=3)]
)
def test_losses_leave_no_graph_in_the_record(loss):
    """Else memory would grow with the steps."""
    pair = BY_NAME["vae-learned-prior"]
    svi = train(*pair.make(), loss())
    svi.step(pair.batch)
    record = getattr(svi.loss, "record", {})
    assert not any(term.requires_grad or term.ndim for term in record.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BetaELBO(-1.0), "beta must be finite and not negative, but is -1.0"),
        (lambda: BetaELBO(math.nan), "beta must be finite"),
        (lambda: BetaELBO(lambda step: -1.0), "beta must be finite and not negative"),
        (lambda: BetaELBO(free_bits=-0.1), "free_bits must not be negative, but is -0.1"),
        (lambda: BetaELBO(num_particles=0), "num_particles must be at least 1, but is 0"),
        (lambda: IWELBO(0), "num_particles must be at least 1, but is 0"),
        (lambda: IWELBO(estimator="vimco"), "'iwae', 'dreg' or 'stl', but is 'vimco'"),
        (lambda: IWELBO(alpha=1.0), "alpha must be below 1, but is 1.0: alpha = 1 is the ELBO"),
        (lambda: IWELBO(alpha=0.5, estimator="dreg"), "'dreg' is known for alpha = 0 only"),
        (lambda: PenalizedELBO(sparsity=0.1), "the penalty 'sparsity' must be a function"),
        (lambda: warmup(0), "steps must be at least 1, but is 0"),
    ],
)
def test_what_makes_no_objective_is_refused(make, message):
    """In words, before the first step."""
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("returned", "shown"), [(torch.zeros(5), "(5,)"), (0.5, "0.5")], ids=["vector", "number"]
)
def test_a_penalty_that_is_no_scalar_tensor_is_refused(returned, shown):
    """A vector would be added to every datum, which no one means."""
    pair = BY_NAME["vae-normal"]
    svi = train(*pair.make(), PenalizedELBO(odd=lambda *_: returned))
    with pytest.raises(ValueError, match=re.escape(f"'odd' returned {shown}, where a 0-d tensor")):
        svi.step(pair.batch)


def test_a_site_outside_the_data_plate_is_named():
    """It has no log probability per datum."""

    def model(batch):
        pyro.sample("z", dist.Normal(torch.zeros(3, 2), 1.0).to_event(1))
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("x", dist.Bernoulli(0.5).expand([8]).to_event(1), obs=batch)

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3, 2))

        def forward(self, batch):
            pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))

    message = r"site 'z' has a log probability of shape \(3,\)"
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=message):
        SVI(model, Guide(), partial(torch.optim.SGD, lr=0.1), IWELBO(1)).evaluate(binary(5, 8))


def test_a_learned_prior_learns():
    """The KL's gradient reaches it through the closed form."""
    model, guide = vae(prior=LearnedPrior()).double(), GUIDES["normal"](MLP(8, 16)).double()
    _, found = loss_and_gradients(model, guide, binary(5, 8).double(), BetaELBO(), seed=1)
    q = guide.posterior(guide.head(guide.activation(guide.encoder(binary(5, 8).double()))))
    kl = torch.distributions.kl_divergence(q, model.prior()).sum()
    expected = torch.autograd.grad(kl, [model.prior.loc, model.prior.log_scale])
    torch.testing.assert_close(found["model.prior.loc"], expected[0])
    torch.testing.assert_close(found["model.prior.log_scale"], expected[1])
