"""Pyro's tutorials of a few latents that all data share, in our own words, with exact answers."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.gp.kernels import RBF
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_median,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from tutorials import judged, right_or_refused, trained

from ppvae import WeightlessError, check_pair, compare, from_pyro_svi, log_weights
from ppvae.diagnostics import evidence
from ppvae.objectives import BetaELBO
from ppvae.protocols import local_parameters

# SVI, part I: is the coin fair?

FLIPS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
HEADS, TAILS = 8.0, 4.0
PRIOR = (10.0, 10.0)


def log_beta(a, b):
    """Return ln B(a, b)."""
    return torch.lgamma(torch.tensor([a, b])).sum() - torch.lgamma(torch.tensor(a + b))


def coin_evidence(heads=HEADS, tails=TAILS):
    """Return ln p of flips in their order."""
    return log_beta(PRIOR[0] + heads, PRIOR[1] + tails) - log_beta(*PRIOR)


def coin(flips):
    """One plate of flips."""
    fairness = pyro.sample("fairness", dist.Beta(*PRIOR))
    with pyro.plate("data", len(flips)):
        pyro.sample("flip", dist.Bernoulli(fairness), obs=flips)


def coin_by_flip(flips):
    """A site for each flip, of no dimension."""
    fairness = pyro.sample("fairness", dist.Beta(*PRIOR))
    for i, flip in enumerate(flips):
        pyro.sample(f"flip_{i}", dist.Bernoulli(fairness), obs=flip)


class BetaGuide(PyroModule):
    """q(fairness) = Beta(a, b), of constrained parameters."""

    def __init__(self):
        super().__init__()
        self.a = PyroParam(torch.tensor(5.0), constraint=constraints.positive)
        self.b = PyroParam(torch.tensor(5.0), constraint=constraints.positive)

    def forward(self, flips):
        pyro.sample("fairness", dist.Beta(self.a, self.b))


class LogitNormalGuide(nn.Module):
    """q(fairness) = sigmoid of a Normal, of plain parameters."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.tensor(-1.0))

    def forward(self, flips):
        base = dist.Normal(self.loc, self.log_scale.exp())
        sigmoid = torch.distributions.transforms.SigmoidTransform()
        pyro.sample("fairness", dist.TransformedDistribution(base, [sigmoid]))


@pytest.mark.parametrize("guide", [BetaGuide, LogitNormalGuide])
@pytest.mark.parametrize("model", [coin, coin_by_flip])
def test_is_the_coin_fair(model, guide):
    """Beta(18, 14), whichever guide, and its evidence by a ratio of beta functions."""
    guide = guide()
    loss = Trace_ELBO(num_particles=16, vectorize_particles=model is coin)
    history = trained(model, guide, FLIPS, loss, epochs=120 if model is coin else 20, lr=0.1)
    exact = coin_evidence()
    tail = sum(history["loss"][-10:]) / 10
    assert tail > float(-exact) / len(FLIPS) - 0.02
    _, tree = judged(model, guide, FLIPS, exact, draws=2000 if model is coin else 200)
    assert abs(float(tree["posterior/fairness"].mean()) - 18 / 32) < 0.04
    if model is coin:  # trained to the end
        assert tail < float(-exact) / len(FLIPS) + 0.02


def test_a_closed_form_trains_the_coin():
    """Beta against Beta."""
    guide = BetaGuide()
    trained(coin, guide, FLIPS, TraceMeanField_ELBO(num_particles=4), epochs=150, lr=0.1)
    _, tree = judged(coin, guide, FLIPS, coin_evidence())
    assert abs(float(tree["posterior/fairness"].mean()) - 18 / 32) < 0.04


# SVI, part II: minibatches


MANY = (torch.arange(60) % 3 > 0).float()  # 40 heads, 20 tails


def coin_of_many(flips):
    """The plate stands for all flips, of which a batch is given."""
    fairness = pyro.sample("fairness", dist.Beta(*PRIOR))
    with pyro.plate("data", len(MANY), subsample_size=len(flips)):
        pyro.sample("flip", dist.Bernoulli(fairness), obs=flips)


def coin_of_a_subset(flips):
    """The plate draws five of the flips given, anew each time."""
    fairness = pyro.sample("fairness", dist.Beta(*PRIOR))
    with pyro.plate("data", len(flips), subsample_size=5) as rows:
        pyro.sample("flip", dist.Bernoulli(fairness), obs=flips[rows])


def test_minibatches_find_the_posterior_of_all_data():
    """Beta(50, 30) from tens, and the evidence of all flips when they are given."""
    guide = BetaGuide()
    loss = Trace_ELBO(num_particles=8, vectorize_particles=True)
    history = trained(coin_of_many, guide, MANY, loss, epochs=60, lr=0.1, batch_size=10)
    exact = coin_evidence(40.0, 20.0)
    assert abs(sum(history["loss"][-10:]) / 10 + float(exact) / 60) < 0.03
    _, tree = judged(coin_of_many, guide, MANY, exact)
    assert abs(float(tree["posterior/fairness"].mean()) - 50 / 80) < 0.04


def test_a_part_of_the_data_is_not_the_evidence_of_all():
    """Ten of sixty flips: their own evidence, or words; not that of a likelihood to the sixth."""
    guide = BetaGuide()
    check_pair(coin_of_many, guide, MANY[:10])
    right_or_refused(
        lambda: evidence(log_weights(coin_of_many, guide, MANY[:10], 4000)).log_evidence.sum(),
        coin_evidence(6.0, 4.0),
    )


def test_a_plate_that_draws_its_own_rows_is_refused_or_right():
    """A new subset in every draw is no posterior of anything."""
    guide = BetaGuide()
    exact = coin_evidence(40.0, 20.0)

    def shown():
        tree = from_pyro_svi(coin_of_a_subset, guide, MANY, draws=400)
        log_w = torch.as_tensor(tree["sample_stats/log_weight"].values.reshape(-1, 1))
        return evidence(log_w).log_evidence.sum()

    right_or_refused(
        lambda: evidence(log_weights(coin_of_a_subset, guide, MANY, 400)).log_evidence.sum(), exact
    )
    right_or_refused(shown, exact)
    right_or_refused(
        lambda: (
            60
            * compare({"g": guide}, coin_of_a_subset, MANY, num_particles=400)["evidence"].item()
        ),
        exact,
    )


# Bayesian regression, and autoguides


class Regression(PyroModule):
    """y ~ N(w x + b, 1/2), with w and b drawn, as parts of a linear layer."""

    def __init__(self, features=2, scale=0.5):
        super().__init__()
        self.linear = PyroModule[nn.Linear](features, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, features]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 2.0).expand([1]).to_event(1))
        self.scale = scale

    def forward(self, batch):
        mean = self.linear(batch["x"]).squeeze(-1)
        with pyro.plate("data", len(mean)):
            pyro.sample("y", dist.Normal(mean, self.scale), obs=batch["y"])


def regression_data(size=12):
    """Return inputs and outputs, and the exact ln p(y | x)."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 2, generator=generator)
    y = x @ torch.tensor([1.0, -0.5]) + 0.3 + 0.5 * torch.randn(size, generator=generator)
    covariance = x @ x.T + 4.0 + 0.25 * torch.eye(size)
    exact = dist.MultivariateNormal(torch.zeros(size), covariance).log_prob(y)
    return {"x": x, "y": y}, exact


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal])
def test_regression_by_autoguides(auto):
    """The evidence in closed form, from weights; a full covariance also has it as its ELBO."""
    batch, exact = regression_data()
    model = Regression()
    guide = auto(model, init_scale=0.2)
    trained(model, guide, batch, Trace_ELBO(num_particles=2), epochs=150, lr=0.05)
    said, _ = judged(model, guide, batch, exact, draws=100)
    if auto is AutoMultivariateNormal:
        assert float(said.standard_error) < 0.1  # nearly the posterior itself


def test_a_point_of_a_regression_has_no_weights():
    """AutoDelta trains, and is refused where weights are asked for."""
    batch, _ = regression_data()
    model = Regression()
    guide = AutoDelta(model)
    history = trained(model, guide, batch, Trace_ELBO(), epochs=20, lr=0.1)
    assert history["loss"][-1] < history["loss"][0]
    with pytest.raises(
        WeightlessError, match="site '.*' has no importance weights: it is a point"
    ):
        log_weights(model, guide, batch, 10)
    with pytest.raises(WeightlessError, match="a point"):
        compare({"delta": guide}, model, batch)
    assert "sample_stats" not in from_pyro_svi(model, guide, batch, draws=5).children


# Gaussian process, with the kernels of pyro.contrib.gp


class Process(PyroModule):
    """f ~ N(0, k(x, x)), y ~ N(f, 0.3); the kernel is learned."""

    def __init__(self):
        super().__init__()
        self.kernel = RBF(input_dim=1, variance=torch.tensor(1.0), lengthscale=torch.tensor(1.0))

    def covariance(self, x):
        """K with a little on its diagonal."""
        return self.kernel(x) + 1e-3 * torch.eye(len(x))

    def forward(self, batch):
        x, y = batch["x"], batch["y"]
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), self.covariance(x)))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Normal(f, 0.3), obs=y)


def process_data(size=8):
    """Return a noisy sine at inputs in no order."""
    x = torch.linspace(-2, 2, size)[
        torch.randperm(size, generator=torch.Generator().manual_seed(1))
    ]
    noise = 0.3 * torch.randn(size, generator=torch.Generator().manual_seed(2))
    return {"x": x.unsqueeze(-1), "y": (2 * x).sin() + noise}


def test_a_gaussian_process_keeps_its_rows():
    """q(f) has a coordinate per datum: trained by `fit`, it is the posterior of these rows."""
    batch, model = process_data(), Process()
    guide = AutoMultivariateNormal(model, init_scale=0.2)
    history = trained(model, guide, batch, Trace_ELBO(num_particles=4), epochs=150, lr=0.05)
    with torch.no_grad(), local_parameters():
        covariance = model.covariance(batch["x"]) + 0.09 * torch.eye(8)
        exact = dist.MultivariateNormal(torch.zeros(8), covariance).log_prob(batch["y"])
    tail = -sum(history["loss"][-20:]) / 20 * 8
    assert abs(tail - float(exact)) < 1.0, (tail, exact)  # the guide's family holds the posterior
    judged(model, guide, batch, exact, draws=150)


# A mixture of Gaussians, its assignments summed out


POINTS = torch.tensor([-1.9, -1.2, -0.8, 0.9, 1.6])


@config_enumerate
def mixture(x):
    """Two components; only their weights and means are to be inferred."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 2.0])))
    with pyro.plate("components", 2):
        means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
    with pyro.plate("data", len(x)):
        which = pyro.sample("which", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(means[which], 0.7), obs=x)


def mixture_evidence(x):
    """Return ln p(x) over a grid of the first weight and both means."""
    x = x.double()
    w = torch.linspace(0, 1, 102, dtype=torch.float64)[1:-1]
    m = torch.linspace(-6, 6, 121, dtype=torch.float64)
    near = dist.Normal(m[:, None], 0.7).log_prob(x).exp()  # (M, N)
    prior = dist.Beta(2.0, 2.0).log_prob(w)[:, None, None]
    prior = prior + dist.Normal(-1.0, 1.0).log_prob(m)[:, None]
    prior = prior + dist.Normal(1.0, 1.0).log_prob(m)
    joint = prior
    for of in near.T:  # one datum after the other
        joint = joint + (w[:, None, None] * of[:, None] + (1 - w[:, None, None]) * of).log()
    return joint.flatten().logsumexp(0) + (w[1] - w[0]).log() + 2 * (m[1] - m[0]).log()


def globals_of(model):
    """Return the model without its assignments, for an autoguide."""
    return poutine.block(model, expose=["weights", "means"])


def test_a_mixture_by_enumeration():
    """Trained through `TraceEnum_ELBO`, and judged with the assignments summed exactly."""
    guide = AutoNormal(globals_of(mixture), init_scale=0.3)
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    history = trained(mixture, guide, POINTS, loss, epochs=200)
    exact = mixture_evidence(POINTS)
    assert -sum(history["loss"][-50:]) / 50 * len(POINTS) < float(exact) + 0.1
    judged(mixture, guide, POINTS, exact, draws=1000, slack=0.05)


def test_a_mixture_at_a_point():
    """`AutoDelta` on the globals finds a mode, and has no weights."""
    guide = AutoDelta(globals_of(mixture), init_loc_fn=init_to_median)
    history = trained(mixture, guide, POINTS, TraceEnum_ELBO(max_plate_nesting=1), epochs=100)
    assert history["loss"][-1] < history["loss"][0]
    with pytest.raises(WeightlessError, match="a point"):
        log_weights(mixture, guide, POINTS, 10)


@pytest.mark.parametrize("loss", [Trace_ELBO, partial(BetaELBO, analytic=False)])
def test_an_objective_that_sums_nothing_is_refused_or_right(loss):
    """A loss that draws the assignments from the prior is no bound on what the pair says."""
    guide = AutoNormal(globals_of(mixture), init_scale=0.3)
    exact = mixture_evidence(POINTS)

    def say():
        history = trained(mixture, guide, POINTS, loss(), epochs=2)
        return min(0.0, float(exact) + 5 * history["loss"][-1]) + float(exact)

    right_or_refused(say, exact)
