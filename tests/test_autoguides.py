"""Pyro's own guides, and latents that all data share: trained, weighed, converted like any."""

import copy
import json
import math
from functools import partial

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from real import real
from torch import nn
from torch.optim import Adam
from zoo import binary, particles, vae

from ppvae import (
    SVI,
    PairError,
    WeightlessError,
    check_pair,
    compare,
    fit,
    from_pyro,
    from_pyro_svi,
)
from ppvae.diagnostics import active_units, aggregate_posterior, evidence, judge, pareto_k
from ppvae.objectives import BetaELBO
from ppvae.protocols import local_parameters
from ppvae.weights import elbo_per_datum, evaluating, log_weights, plan_of

X = torch.tensor([0.5, -1.0, 2.0, 0.3, 1.2, 0.9])
DESIGN = torch.tensor([[1.0, 0.9], [-0.5, -0.2], [0.3, 0.6], [-1.2, -1.0], [0.8, 0.4], [0.1, 0.7]])
LINE = {"x": DESIGN, "y": DESIGN @ torch.tensor([1.0, -0.5]) + 0.3 * X}


def shared_mean(x):
    """m ~ N(0, 1), x_n ~ N(m, 1): m | x ~ N(sum x / (N + 1), 1 / (N + 1))."""
    mean = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def spread(x):
    """t ~ half-Cauchy(2), x_n ~ N(0, t): a positive latent."""
    t = pyro.sample("t", dist.HalfCauchy(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, t), obs=x)


def line(batch):
    """w ~ N(0, I), y ~ N(x w, 1/2), written as one does: `x @ w` takes no particles."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(batch["x"])):
        pyro.sample("y", dist.Normal(batch["x"] @ w, 0.5), obs=batch["y"])


def two(x):
    """A mean and a spread."""
    mean = pyro.sample("m", dist.Normal(0.0, 1.0))
    t = pyro.sample("t", dist.HalfCauchy(2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, t), obs=x)


def local(x):
    """ln z_n ~ N(0, 1), x_n ~ N(z_n, 1): one latent per datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def listed(model, **guides):
    """Return an AutoGuideList with a guide for each of some sites."""
    parts = AutoGuideList(model)
    for name, guide in guides.items():
        parts.append(guide(poutine.block(model, expose=[name])))
    return parts


def train(model, guide, *args, steps=600, lr=0.05, loss=None):
    """Return the losses of some steps, the rate falling to nothing."""
    svi = SVI(model, guide, partial(Adam, lr=lr), loss or Trace_ELBO())
    losses = []
    for step in range(steps):
        losses.append(svi.step(*args).item())
        svi.optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
    return losses


def trained(model, guide, *args, **kwargs):
    """Return a guide after some steps."""
    train(model, guide, *args, **kwargs)
    return guide


def posterior_of_line():
    """Return mean and covariance of w, and ln p(y)."""
    x, y = LINE["x"], LINE["y"]
    covariance = (torch.eye(2) + x.T @ x / 0.25).inverse()
    marginal = dist.MultivariateNormal(torch.zeros(6), 0.25 * torch.eye(6) + x @ x.T)
    return covariance @ (x.T @ y) / 0.25, covariance, marginal.log_prob(y).item()


# Training

GUIDES = {
    "normal": AutoNormal,
    "full-rank": AutoMultivariateNormal,
    "diagonal": AutoDiagonalNormal,
    "point": AutoDelta,
    "list": lambda model: listed(model, m=AutoNormal, t=AutoDelta),
}


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_an_autoguide_trains(make, elbo):
    """The loss falls, every parameter moves, and Pyro's store stays empty."""
    guide = make(two)
    svi = SVI(two, guide, partial(Adam, lr=0.05), elbo())
    svi.prepare(X)
    assert svi.parameters.keys() == {f"guide.{name}" for name, _ in guide.named_parameters()}
    before = [p.detach().clone() for p in svi.parameters.values()]
    losses = [svi.step(X).item() for _ in range(150)]
    assert sum(losses[-50:]) < sum(losses[:50])
    after = svi.parameters.values()
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    assert not list(pyro.get_param_store().keys())


def test_the_second_guide_trains_on_its_own():
    """Under Pyro's SVI its parameters would be those of the first: they are found by name."""
    first, second = AutoNormal(shared_mean), AutoNormal(shared_mean)
    train(shared_mean, first, X, steps=50)
    kept = [p.detach().clone() for p in first.parameters()]
    svi = SVI(shared_mean, second, partial(Adam, lr=0.05), Trace_ELBO())
    svi.prepare(-X)
    fresh = [p.detach().clone() for p in second.parameters()]
    assert any((a != b).any() for a, b in zip(kept, fresh, strict=True))
    for _ in range(50):
        svi.step(-X)
    assert all((a != b).all() for a, b in zip(fresh, second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, first.parameters(), strict=True))


def test_pyros_own_svi_shares_them():
    """Why the test above is there: here, in a store of its own, two guides are one."""
    with pyro.get_param_store().scope():
        guides = AutoNormal(shared_mean), AutoNormal(shared_mean)
        optim = pyro.optim.Adam({"lr": 0.05})
        for guide in guides:
            svi = pyro.infer.SVI(shared_mean, guide, optim, Trace_ELBO())
            svi.step(X)
        first, second = ([*guide.parameters()] for guide in guides)
        assert all(a is b for a, b in zip(first, second, strict=True))


class Line(PyroModule):
    """A user's regression: weights with a prior, a noise that is learned."""

    def __init__(self):
        super().__init__()
        self.w = PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        self.noise = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

    def forward(self, x, y=None):
        mean = x @ self.w  # outside of the plate: all data share the weights
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


class LineGuide(PyroModule):
    """The guide of it, by hand."""

    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.zeros(2))
        self.scale = PyroParam(0.1 * torch.ones(2), constraint=dist.constraints.positive)

    def forward(self, x, y=None):
        pyro.sample("w", dist.Normal(self.loc, self.scale).to_event(1))


@pytest.mark.parametrize("make", [lambda _: LineGuide(), AutoNormal], ids=["by-hand", "auto"])
def test_pyro_modules_train(make):
    """Model and guide, with several inputs; twice, each pair on its own."""
    for _ in range(2):
        model = Line()
        guide = make(model)
        losses = train(model, guide, DESIGN, LINE["y"], steps=200)
        assert sum(losses[-50:]) < sum(losses[:50])
        with local_parameters():
            assert 0.1 < model.noise.item() < 0.9
    assert not list(pyro.get_param_store().keys())


def test_a_pair_that_takes_several_inputs_is_judged_through_a_mapping():
    """What takes one batch takes one: two lines make a model of x and y one of {x, y}."""
    model = Line()
    guide = trained(model, LineGuide(), DESIGN, LINE["y"], steps=100)
    pair = (lambda b: model(b["x"], b["y"])), (lambda b: guide(b["x"], b["y"]))
    assert log_weights(*pair, LINE, 30).shape == (30, 1)
    assert dict(from_pyro_svi(*pair, LINE, draws=5)["posterior/w"].sizes)["w_dim_0"] == 2
    assert not list(pyro.get_param_store().keys())


def test_lazy_layers_wait_for_data_too():
    """And their device is known before that."""
    guide = LazyNormal()
    model = vae()
    svi = SVI(model, guide, partial(Adam, lr=1e-2), Trace_ELBO())
    assert svi.optimizer is None and svi.device == torch.device("cpu")
    svi.step(binary(5, 8))
    assert svi.parameters["guide.head.weight"].shape == (4, 8)


class LazyNormal(nn.Module):
    """A guide that learns the size of x from x."""

    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(4)

    def forward(self, batch):
        loc, log_scale = self.head(batch).chunk(2, -1)
        with pyro.plate("data", len(batch)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_preparing_draws_nothing():
    """The first batch makes the parameters; random streams and modes are as before."""
    guide = AutoNormal(two)
    svi = SVI(two, guide, partial(Adam, lr=0.05), Trace_ELBO())
    assert svi.parameters == {} and svi.optimizer is None
    assert svi.device == torch.get_default_device()
    state = torch.get_rng_state()
    svi.prepare(X)
    assert torch.equal(state, torch.get_rng_state())
    assert guide.training and all(p.requires_grad for p in svi.parameters.values())
    optimizer = svi.optimizer
    svi.prepare(X)
    assert svi.optimizer is optimizer


def test_the_same_seed_gives_the_same_losses():
    """Whether prepared or not."""
    runs = []
    for prepared in (False, True):
        pyro.set_rng_seed(1)
        svi = SVI(two, AutoNormal(two), partial(Adam, lr=0.05), Trace_ELBO())
        if prepared:
            svi.prepare(X)
        runs.append([svi.step(X).item() for _ in range(3)])
    assert runs[0] == runs[1]


def test_options_and_state_come_late_too():
    """Groups and scheduler are made with the optimizer; a state needs the parameters."""
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    groups = {"guide.scales": {"lr": 0.01}}
    make = partial(SVI, two, optim=partial(Adam, lr=0.1), loss=Trace_ELBO(), groups=groups)
    first, second = (make(guide=AutoNormal(two), scheduler=halving) for _ in range(2))
    first.step(X)
    assert [group["lr"] for group in first.optimizer.param_groups] == [0.1, 0.01]
    state = copy.deepcopy(first.state_dict())
    with pytest.raises(ValueError, match=r"no parameters to load into yet.*svi.prepare\(batch\)"):
        second.load_state_dict(state)
    second.prepare(X)
    second.load_state_dict(state)
    losses = []
    for svi in (first, second):
        pyro.set_rng_seed(2)
        losses.append(svi.step(X).item())
    assert losses[0] == losses[1]


def test_what_cannot_train_is_refused():
    """A parameter that no module has; a maker that is none; a pair without parameters."""

    def guide(x):
        pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    maker = partial(Adam, lr=0.05)
    with pytest.raises(ValueError, match="nothing to train.*pyro.param makes is not seen"):
        SVI(shared_mean, guide, maker, Trace_ELBO())

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            mean = pyro.sample("m", dist.Normal(self.shift, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(
        ValueError, match=r"pyro.param\('loc', ...\) makes a parameter that belongs"
    ):
        SVI(Shifted(), guide, maker, Trace_ELBO()).step(X)
    with pytest.raises(TypeError, match="optim must make the optimizer"):
        SVI(shared_mean, AutoNormal(shared_mean), 0.1, Trace_ELBO())


def test_what_plain_pyro_trained_is_read_and_left_alone():
    """Its store is seen by diagnostics, and not changed."""

    def guide(x):
        loc = pyro.param("loc", torch.tensor(-5.0))
        pyro.sample("m", dist.Normal(loc, 0.5))

    with pyro.get_param_store().scope():
        pyro.param("loc", torch.tensor(2.0))
        tree = from_pyro_svi(shared_mean, guide, X, draws=200)
        assert float(tree.posterior.m.mean()) == pytest.approx(2.0, abs=0.2)
        assert [*pyro.get_param_store().keys()] == ["loc"]


# The data plate and minibatches


def scaled(x):
    """The shared mean, given a part of 60 data."""
    mean = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 60, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_minibatches_of_any_size_scale_the_likelihood():
    """The loss is per datum of the whole, whatever the batch's size."""
    x = X.repeat(10)
    guide = trained(scaled, AutoNormal(scaled), x, steps=300)
    svi = SVI(scaled, guide, partial(Adam, lr=0.0), Trace_ELBO(num_particles=20))
    whole = svi.step(x).item()
    parts = [svi.step(part).item() for part in (x[:30], x[30:36], x[36:])]
    exact = -dist.MultivariateNormal(torch.zeros(60), torch.eye(60) + 1).log_prob(x) / 60
    assert whole == pytest.approx(exact.item(), abs=0.02)
    assert parts == pytest.approx([whole] * 3, abs=0.05)
    check_pair(scaled, guide, x[:7])
    for batch in (x, x[:30]):
        assert elbo_per_datum(scaled, guide, batch, 100).item() == pytest.approx(-whole, abs=0.05)


def test_a_factor_per_datum_is_for_those_data():
    """Another number of them is refused in words; create_plates lets them come in parts."""
    guide = trained(local, AutoNormal(local), X, steps=20)
    svi = SVI(local, guide, partial(Adam, lr=0.01), Trace_ELBO())
    message = (
        "AutoNormal has a factor for each of the 6 data that it first saw, and the batch 4 data"
    )
    for judge_it in (
        lambda: svi.step(X[:4]),
        lambda: svi.evaluate(X[:4]),
        lambda: log_weights(local, guide, X[:4], 2),
        lambda: from_pyro_svi(local, guide, X[:4], draws=2),
    ):
        with pytest.raises(ValueError, match=message):
            judge_it()


def test_create_plates_lets_data_come_in_parts():
    """Every datum's factor is trained, by the batches that it is in."""

    def plate(batch):
        return pyro.plate("data", 6, subsample=batch["index"])

    def model(batch):
        with plate(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch["x"])

    guide = AutoNormal(model, create_plates=plate)
    svi = SVI(model, guide, partial(Adam, lr=0.05), Trace_ELBO())
    for step in range(600):
        index = torch.randperm(6)[: 2 + step % 3]
        svi.step({"x": X[index], "index": index})
        svi.optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 600)
    loc = guide.get_parameter("locs.z_unconstrained")
    torch.testing.assert_close(loc.detach(), X / 2, atol=0.2, rtol=0)
    batch = {"x": X[:4], "index": torch.arange(4)}  # weights are per datum, so without the scale
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(X[:4])
    found = evidence(log_weights(model, guide, batch, 2000)).log_evidence
    torch.testing.assert_close(found.float(), exact, atol=0.05, rtol=0)
    tree = from_pyro_svi(model, guide, batch, draws=3)
    z = torch.as_tensor(tree["posterior/z"].values)
    expected = dist.Normal(z, 1.0).log_prob(X[:4])
    np.testing.assert_allclose(tree["log_likelihood/x"].values, expected, rtol=1e-4)


# Weights against what is known


@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal, AutoDiagonalNormal])
def test_the_evidence_of_a_shared_mean(make):
    """In closed form; and the posterior with it."""
    guide = trained(shared_mean, make(shared_mean), X, steps=400, loss=particles(16))
    log_w = log_weights(shared_mean, guide, X, 2000)
    assert log_w.shape == (2000, 1)
    exact = dist.MultivariateNormal(torch.zeros(6), torch.eye(6) + 1).log_prob(X).item()
    found = evidence(log_w)
    assert found.mean == pytest.approx(exact, abs=3 * found.mean_standard_error + 1e-5)
    assert found.mean_standard_error < 0.03
    assert pareto_k(log_w).share_bad == 0
    draws = from_pyro_svi(shared_mean, guide, X, draws=4000)["posterior/m"].values
    assert draws.mean() == pytest.approx(X.sum().item() / 7, abs=0.05)
    assert draws.std() == pytest.approx(7**-0.5, abs=0.05)


def test_a_full_rank_guide_reaches_the_exact_posterior():
    """Of a regression on correlated inputs, where a factorized one does not."""
    mean, covariance, exact = posterior_of_line()
    loss = Trace_ELBO(num_particles=8)
    guide = trained(line, AutoMultivariateNormal(line), LINE, steps=400, loss=loss)
    with local_parameters():
        posterior = guide.get_posterior()
    torch.testing.assert_close(posterior.mean, mean, atol=0.05, rtol=0)
    torch.testing.assert_close(posterior.covariance_matrix, covariance, atol=0.06, rtol=0.1)
    correlation = covariance[0, 1] / covariance.diagonal().prod().sqrt()
    assert correlation < -0.5
    factorized = trained(line, AutoNormal(line), LINE, steps=300)
    table = compare({"full": guide, "factorized": factorized}, line, LINE, num_particles=300)
    assert table.loc["full", "elbo"] == pytest.approx(exact / 6, abs=0.01)
    assert table.loc["full", "elbo"] > table.loc["factorized", "elbo"]
    assert table.loc["full", "evidence"] == pytest.approx(exact / 6, abs=0.02)
    for column in ("kl", "mutual_information", "active_units"):
        assert table[column].isna().all()


def quadrature(log_joint):
    """Return ln of the integral of exp(log_joint) over (0, inf), on a grid in ln t."""
    u = torch.linspace(-12.0, 12.0, 200_001, dtype=torch.float64)
    return (log_joint(u.exp()) + u).logsumexp(0).item() + math.log(24 / 200_000)


def test_the_evidence_of_a_positive_latent():
    """By quadrature: auxiliary sites and the volume of the transform are both in the weight."""

    def log_joint(t):
        return dist.HalfCauchy(2.0).log_prob(t) + dist.Normal(0.0, t[:, None]).log_prob(X).sum(1)

    exact = quadrature(log_joint)
    guide = trained(spread, AutoNormal(spread), X)
    found = evidence(log_weights(spread, guide, X, 5000))
    assert found.mean == pytest.approx(exact, abs=3 * found.mean_standard_error)
    assert found.mean_standard_error < 0.06


def test_the_evidence_of_positive_latents_of_each_datum():
    """The same within the data plate, where each datum has its weights."""
    guide = trained(local, AutoNormal(local), X)
    log_w = log_weights(local, guide, X, 5000)
    assert log_w.shape == (5000, 6)
    found = evidence(log_w)
    for n, x in enumerate(X):
        exact = quadrature(
            lambda z, x=x: dist.LogNormal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
        )
        error = float(found.standard_error[n])
        assert float(found.log_evidence[n]) == pytest.approx(exact, abs=4 * error)
        assert error < 0.5  # the tails are heavy


def test_the_mean_field_elbo_knows_the_volume():
    """Pyro's leaves the Jacobian out where the latent is constrained: here by ln 5."""
    guide = AutoNormal(spread, init_loc_fn=init_to_value(values={"t": torch.tensor(5.0)}))
    losses = []
    for elbo in (particles(500), particles(500, TraceMeanField_ELBO)):
        pyro.set_rng_seed(1)
        losses.append(SVI(spread, guide, partial(Adam, lr=0.0), elbo).step(X).item())
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_the_beta_elbo_knows_the_volume():
    """Also per datum, in ours."""
    guide = AutoNormal(local, init_loc_fn=init_to_value(values={"z": torch.full((6,), 5.0)}))
    losses = []
    for elbo in (particles(500), BetaELBO(num_particles=500)):
        pyro.set_rng_seed(1)
        losses.append(SVI(local, guide, partial(Adam, lr=0.0), elbo).step(X).item())
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_particles_are_left_of_the_models_plates():
    """Here two of them, and latents outside of both."""

    def grid(x):
        mean = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 2, dim=-2):
            row = pyro.sample("row_mean", dist.Normal(mean, 1.0))
            with pyro.plate("data", 6, dim=-1):
                pyro.sample("x", dist.Normal(row, 1.0), obs=x.T)

    x = torch.stack([X, -X], 1)
    for make in (AutoNormal, AutoMultivariateNormal):
        guide = trained(grid, make(grid), x, steps=300)
        with evaluating(grid, guide):
            assert plan_of(grid, guide, x)[:3] == (True, True, -3)
        within = torch.eye(12) + torch.block_diag(torch.ones(6, 6), torch.ones(6, 6)) + 1
        exact = dist.MultivariateNormal(torch.zeros(12), within).log_prob(x.T.flatten()).item()
        found = evidence(log_weights(grid, guide, x, 2000))
        assert found.mean == pytest.approx(exact, abs=4 * found.mean_standard_error + 1e-4)
        tree = from_pyro_svi(grid, guide, x, draws=5)
        assert tree["posterior/row_mean"].dims == ("chain", "draw", "row")
        assert tree["log_likelihood/x"].shape == (1, 5, 2, 6)


@pytest.mark.parametrize("total", [lambda w: w.sum(), lambda w: w[0] + w[1]])
def test_a_model_that_takes_no_particles_is_run_for_each(total):
    """Even if it fails in silence: a sum over all axes adds up the particles."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 0.5**0.5).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(total(w), 1.0), obs=x)

    guide = trained(model, AutoMultivariateNormal(model), X, steps=300)
    with evaluating(guide):
        assert plan_of(model, guide, X).dim is None
    exact = dist.MultivariateNormal(torch.zeros(6), torch.eye(6) + 1).log_prob(X).item()
    found = evidence(log_weights(model, guide, X, 200))
    assert found.mean == pytest.approx(exact, abs=4 * found.mean_standard_error + 1e-3)
    tree = from_pyro_svi(model, guide, X, draws=4)
    w = torch.as_tensor(tree["posterior/w"].values)
    expected = dist.Normal(w.sum(-1, keepdim=True), 1.0).log_prob(X)
    np.testing.assert_allclose(tree["log_likelihood/x"].values, expected, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("chunk", [1, 12, 10_000])
def test_only_particles_come_in_chunks(count, chunk):
    """The data stay together, since their weight is one."""
    guide = trained(two, AutoMultivariateNormal(two), X, steps=5)
    log_w = log_weights(two, guide, X, count, chunk_size=chunk)
    assert log_w.shape == (count, 1)
    assert log_w.isfinite().all() and len(log_w.unique()) == count


# What has no weights


@pytest.mark.parametrize(
    ("make", "site"),
    [
        (AutoDelta, "m"),
        (lambda model: listed(model, m=AutoNormal, t=AutoDelta), "t"),
        (lambda model: listed(model, m=AutoDelta, t=AutoMultivariateNormal), "m"),
    ],
    ids=["delta", "list-normal", "list-full-rank"],
)
def test_a_point_has_no_weights(make, site):
    """Also beside sites that have a density; the posterior can be looked at all the same."""
    guide = trained(two, make(two), X, steps=5)
    with pytest.raises(
        WeightlessError, match=f"site '{site}' has no importance weights: it is a po"
    ):
        log_weights(two, guide, X, 2)
    tree = from_pyro_svi(two, guide, X, draws=3)
    assert "sample_stats" not in tree.children
    assert tree["posterior"][site].std() < 1e-6


def test_a_list_of_densities_has_weights():
    """The rule is about each site, not about lists."""
    guide = trained(two, listed(two, m=AutoNormal, t=AutoMultivariateNormal), X, steps=5)
    assert log_weights(two, guide, X, 3).isfinite().all()


@pytest.mark.parametrize("model", [two, local])
def test_fit_trains_and_resumes_an_autoguide(tmp_path, model):
    """Its parameters are made from the first batch, also before a checkpoint is read."""

    def run(folder, epochs):
        pyro.set_rng_seed(0)
        svi = SVI(model, AutoNormal(model), partial(Adam, lr=0.02), Trace_ELBO())
        options = {"checkpoint": tmp_path / folder, "resume": True, "progress": False}
        return svi, fit(svi, X, epochs=epochs, validation=X, **options)

    whole, history = run("whole", 30)
    run("parts", 10)
    resumed, _ = run("parts", 30)
    pairs = zip(whole.guide.parameters(), resumed.guide.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    last = history.records[-1]
    assert last["validation_elbo"] > history["validation_elbo"][0]
    assert abs(last["validation_elbo"] + last["loss"]) < 2  # both of them per datum


@pytest.mark.filterwarnings("ignore:Encountered .inf")  # by Pyro, rightly
def test_a_loss_that_is_not_finite_names_the_shared_site():
    def broken(x):
        mean = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
            pyro.factor("f", torch.full((len(x),), float("inf")) * (svi.records != []))

    svi = SVI(broken, AutoNormal(broken), partial(Adam, lr=0.02), Trace_ELBO())
    svi.records.append({"epoch": 1, "loss": 1.0, "seconds": 0.0})
    with pytest.raises(FloatingPointError, match="site 'f' of the model"):
        fit(svi, X, epochs=1, progress=False)


def test_what_is_said_per_datum_is_refused_where_data_share():
    """In words that name the site; a verdict leaves it out."""
    guide = trained(two, AutoNormal(two), X, steps=5)
    with pytest.raises(ValueError, match="site 'm(_unconstrained)?' lies outside of pyro.plate"):
        aggregate_posterior(two, guide, X)
    with pytest.raises(ValueError, match="the latent 'm' is shared by all data"):
        active_units(guide, X, site="m")
    with pytest.raises(ValueError, match="lies outside of pyro.plate.*Trace_ELBO"):
        SVI(two, guide, partial(Adam, lr=0.01), BetaELBO()).step(X)
    verdict = judge(two, guide, X, num_particles=50)
    assert verdict.split is None and verdict.size == 6
    assert verdict.row["evidence"] == pytest.approx(verdict.evidence.mean / 6)


def test_an_autoguide_on_a_contract_model_is_judged_per_datum():
    """All but what needs its density of other data."""
    model, x = vae(), binary(5, 8)
    model.requires_grad_(False)
    guide = trained(model, AutoNormal(model), x, steps=100)
    row = judge(model, guide, x, num_particles=200).row
    assert row["elbo"] < row["evidence"]
    assert math.isnan(row["mutual_information"]) and row["active_units"] >= 0


# Pairs that fit, and that do not


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)
def test_a_pair_with_shared_latents_fits(make):
    """Fresh or trained; the check trains nothing."""
    guide = make(two)
    check_pair(two, guide, X)
    before = [p.detach().clone() for p in guide.parameters()]
    train(two, guide, X, steps=1)
    after = [p.detach().clone() for p in guide.parameters()]
    assert before and any((a != b).any() for a, b in zip(before, after, strict=True))
    check_pair(two, guide, X)
    assert all(torch.equal(a, b) for a, b in zip(after, guide.parameters(), strict=True))
    assert not list(pyro.get_param_store().keys())


def unplated(x):
    """A shared scale, and latents of each datum that no plate names."""
    t = pyro.sample("t", dist.HalfCauchy(2.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), t))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def grouped(plate):
    """A story of three means in a plate; the data know theirs."""

    def story(x):
        t = pyro.sample("t", dist.HalfCauchy(2.0))
        with pyro.plate(plate, 3):
            means = pyro.sample("means", dist.Normal(0.0, t))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(means[[0, 0, 1, 1, 2, 2]], 1.0), obs=x)

    return story


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (
            unplated,
            AutoNormal(unplated),
            (
                r"site 'z_unconstrained': the guide gives it batch shape \(6,\), but of its "
                r"axes \[-1\] no"
            ),
        ),
        (
            grouped("group"),
            poutine.block(grouped("groups"), hide=["x"]),
            (
                r"site 'means': the model samples it in plates \['group'\], but the "
                r"guide in \['groups"
            ),
        ),
        (
            shared_mean,
            lambda x: pyro.sample("m", dist.Normal(torch.zeros(6), 1.0)),
            r"site 'm': the guide gives it batch shape \(6,\)",
        ),
        (shared_mean, lambda x: None, "site 'm': the model samples it, but the guide"),
    ],
    ids=["no-plate", "other-plate", "too-many", "missing"],
)
def test_a_misfit_is_refused(model, guide, message):
    """In words that name site and mend."""
    with pytest.raises(PairError, match=message):
        check_pair(model, guide, X)


def test_groups_fit():
    """Plates besides the data's are named alike on both sides."""
    model = grouped("group")
    check_pair(model, AutoNormal(model), X)
    guide = trained(model, AutoNormal(model), X, steps=20)
    tree = from_pyro_svi(model, guide, X, draws=3)
    assert tree["posterior/means"].dims == ("chain", "draw", "group")
    assert tree["log_likelihood/x"].dims == ("chain", "draw", "data")


# ArviZ


# The 0.7 that the fit of this small pair may exceed is not what is tested.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal])
def test_groups_and_dims(make):
    """One chain; auxiliary sites are left out; every function that users start with runs."""
    guide = trained(two, make(two), X, steps=100)
    tree = from_pyro_svi(two, guide, X, draws=200)
    dims = {group: {name: v.dims for name, v in node.items()} for group, node in tree.items()}
    draws = ("chain", "draw")
    assert dims == {
        "posterior": {"m": draws, "t": draws},
        "sample_stats": {"log_weight": draws},
        "log_likelihood": {"x": (*draws, "data")},
        "log_prior": {"m": draws, "t": draws},
        "posterior_predictive": {"x": (*draws, "data")},
        "prior": {"m": draws, "t": draws},
        "prior_predictive": {"x": (*draws, "data")},
        "observed_data": {"x": ("data",)},
    }
    assert az.summary(tree) is not None
    assert az.loo(tree).n_data_points == 6
    post = tree.posterior
    m, t = torch.as_tensor(post.m.values)[..., None], torch.as_tensor(post.t.values)[..., None]
    expected = dist.Normal(m, t).log_prob(X)
    np.testing.assert_allclose(tree["log_likelihood/x"].values, expected, rtol=1e-4)


def test_the_weights_in_the_tree_are_log_weights():
    """Of the same draws: p(m, t, x) / (q(m) q(t)), with q(t) a log-normal."""
    guide = trained(two, AutoNormal(two), X, steps=100)
    tree = from_pyro_svi(two, guide, X, draws=50)
    m, t = (torch.as_tensor(tree.posterior[name].values) for name in "mt")
    log_p = dist.Normal(0.0, 1.0).log_prob(m) + dist.HalfCauchy(2.0).log_prob(t)
    log_p = log_p + dist.Normal(m[..., None], t[..., None]).log_prob(X).sum(-1)
    with local_parameters(), torch.no_grad():
        (m_loc, m_scale), (t_loc, t_scale) = (guide._get_loc_and_scale(name) for name in "mt")
        log_q = dist.Normal(m_loc, m_scale).log_prob(m) + dist.LogNormal(t_loc, t_scale).log_prob(
            t
        )
    np.testing.assert_allclose(
        tree["sample_stats/log_weight"], log_p - log_q, rtol=1e-4, atol=1e-4
    )


def test_evaluation_changes_nothing():
    """Parameters, gradients, modes and the store outlive every diagnostic."""
    guide = trained(two, AutoMultivariateNormal(two), X, steps=5)
    state = [p.detach().clone() for p in guide.parameters()]
    gradients = [p.grad.clone() for p in guide.parameters()]
    check_pair(two, guide, X)
    log_weights(two, guide, X, 4)
    from_pyro_svi(two, guide, X, draws=4)
    compare({"auto": guide}, two, X, num_particles=30)
    SVI(two, guide, partial(Adam, lr=0.1), Trace_ELBO()).evaluate(X)
    assert all(torch.equal(a, b) for a, b in zip(state, guide.parameters(), strict=True))
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, guide.parameters(), strict=True))
    assert guide.training and not list(pyro.get_param_store().keys())
    assert not pyro.settings.get("module_local_params")


# Eight schools

SCHOOLS = "eight_schools-eight_schools_noncentered.npz"


def eight_schools(batch):
    """The effects of coaching, non-centered."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(batch["y"])):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, batch["sigma"]), obs=batch["y"])


@pytest.fixture(scope="module")
def reference():
    """The reference draws, (10000, K), by name, and the data."""
    file = np.load(real("posteriordb") / SCHOOLS)
    given = json.loads(str(file["data_json"]))
    batch = {name: torch.tensor(given[name], dtype=torch.float32) for name in ("y", "sigma")}
    draws = file["draws"].reshape(-1, file["draws"].shape[-1])
    return batch, dict(zip(file["param_names"].tolist(), draws.T, strict=True))


@pytest.mark.parametrize("make", [AutoNormal, NUTS], ids=["AutoNormal", "NUTS"])
def test_eight_schools(reference, make):
    """Means near those of the reference draws; plates named, school by school."""
    batch, draws = reference
    if make is NUTS:
        mcmc = MCMC(NUTS(eight_schools), 150, warmup_steps=150, disable_progbar=True)
        mcmc.run(batch)
        tree = from_pyro(mcmc)
    else:
        guide = trained(eight_schools, AutoNormal(eight_schools), batch, lr=0.03)
        tree = from_pyro_svi(eight_schools, guide, batch, draws=1000)
        log_w = torch.as_tensor(tree["sample_stats/log_weight"].values).reshape(-1, 1)
        assert pareto_k(log_w).k < 1.0
        assert evidence(log_w).mean == pytest.approx(-31.311, abs=0.3)  # by quadrature
    assert tree["posterior/theta"].dims == ("chain", "draw", "school")
    assert "eta_unconstrained" not in tree.posterior
    assert float(tree.posterior.mu.mean()) == pytest.approx(draws["mu"].mean(), abs=1.0)
    assert float(tree.posterior.mu.std()) == pytest.approx(draws["mu"].std(), rel=0.3)
    means = [draws[f"theta[{j}]"].mean() for j in range(1, 9)]
    np.testing.assert_allclose(tree.posterior.theta.mean(("chain", "draw")), means, atol=1.5)
    assert not list(pyro.get_param_store().keys())
