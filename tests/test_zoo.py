"""What holds for every pair and every objective: the zoo, crossed."""

import copy
import importlib
import inspect
import pkgutil

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import nn
from zoo import GOALS, GUIDES, PAIRS, crossed, named, train

import ppvae.guides
import ppvae.models
import ppvae.objectives
from ppvae import WeightlessError, check_pair, log_weights
from ppvae.diagnostics import active_units, aggregate_posterior, compare, kl_per_dimension
from ppvae.protocols import map_batch, rows_of
from ppvae.weights import latent_sites, trace_pair

each_pair = pytest.mark.parametrize("pair", named(PAIRS))
each_weighed = pytest.mark.parametrize("pair", named(p for p in PAIRS if p.density))
each_cross = pytest.mark.parametrize(("pair", "goal"), crossed())


def state(*modules):
    """Return a copy of all tensors of modules."""
    return [t.clone() for m in modules for t in (*m.parameters(), *m.buffers())]


def same(a, b):
    """Return whether two lists of tensors are bitwise equal."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def weights(module):
    """Return a copy of a module's parameters by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def unmoved(before, module):
    """Return the names of the parameters that are where they were."""
    return [name for name, p in module.named_parameters() if torch.equal(p, before[name])]


# Pairs


@each_pair
def test_the_pair_fits(pair):
    """`check_pair` passes, and the sites have the batch's size."""
    model, guide = pair.make()
    check_pair(model, guide, pair.batch)
    guide_trace = poutine.trace(guide).get_trace(pair.batch)
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(pair.batch)
    drawn = latent_sites(guide_trace).items()
    own = {name for name, site in drawn if not site["infer"].get("is_auxiliary")}
    assert latent_sites(model_trace).keys() == own
    for trace in (model_trace, guide_trace):
        trace.compute_log_prob()
        sites = [s for n, s in trace.nodes.items() if s["type"] == "sample" and n != "data"]
        assert {s["log_prob"].shape for s in sites} == {(5,)}


@each_weighed
@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("size", [1, 5])
def test_log_weights_are_finite_and_k_by_n(pair, particles, size):
    """Also for one particle, and for one datum."""
    log_w = log_weights(*pair.make(), rows_of(pair.batch, 0, size), particles)
    assert log_w.shape == (particles, size)
    assert log_w.isfinite().all()
    assert not log_w.requires_grad


@each_weighed
def test_log_weights_in_chunks_keep_their_shape(pair):
    """However small the chunks."""
    log_w = log_weights(*pair.make(), pair.batch, 5, chunk_size=3)
    assert log_w.shape == (5, 5)
    assert log_w.isfinite().all()


@pytest.mark.parametrize("pair", named(p for p in PAIRS if not p.density))
def test_a_guide_without_a_density_has_no_weights(pair):
    """And whatever needs weights says so, and why."""
    model, guide = pair.make()
    for judge in (
        lambda: log_weights(model, guide, pair.batch, 4),
        lambda: aggregate_posterior(model, guide, pair.batch),
        lambda: compare({"point": guide}, model, pair.batch),
    ):
        message = r"site 'z' has no importance weights: .*(Delta|leave)"
        with pytest.raises(WeightlessError, match=message):
            judge()


@pytest.mark.parametrize("pair", named(p for p in PAIRS if not p.marginal))
def test_a_density_that_depends_on_the_way_is_not_split(pair):
    """Weights are fine, and the verdict has them; densities at given draws are refused."""
    model, guide = pair.make()
    with pytest.raises(WeightlessError, match="density of 'z' at given points is an integral"):
        aggregate_posterior(model, guide, pair.batch)
    table = compare({"guide": guide}, model, pair.batch, num_particles=30)
    assert table["mutual_information"].isna().all() and table["evidence"].notna().all()


@each_pair
def test_a_copy_is_its_own(pair):
    """A deep copy trains alike, and leaves the original where it was."""
    model, guide = pair.make()
    before = state(model, guide)
    copied = copy.deepcopy((model, guide))
    svi = train(*copied, ppvae.objectives.BetaELBO(analytic=False))
    pyro.set_rng_seed(1)
    loss = svi.step(pair.batch)
    assert same(before, state(model, guide))
    assert not same(before, state(*copied))
    pyro.set_rng_seed(1)
    assert torch.equal(
        loss, train(model, guide, ppvae.objectives.BetaELBO(analytic=False)).step(pair.batch)
    )


@each_pair
def test_the_pair_moves(pair):
    """`.to(torch.float64)` moves every tensor, and nothing falls back to float32 on the way."""
    model, guide = pair.make()
    model.to(torch.float64), guide.to(torch.float64)
    batch = map_batch(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, pair.batch)
    assert {t.dtype for t in state(model, guide) if t.is_floating_point()} == {torch.float64}
    for trace in trace_pair(model, guide, batch, 3):
        sites = [s for s in trace.nodes.values() if s["type"] == "sample"]
        values = [s["value"] for s in sites if s["value"].is_floating_point()]  # not labels
        assert {value.dtype for value in values} == {torch.float64}
        assert {s["log_prob"].dtype for s in sites} == {torch.float64}


def floor_of(guide):
    """Return the smallest scale or radius that a guide says its draws have, or None."""
    named = inspect.signature(type(guide).__init__).parameters
    least = [named[name].default for name in ("min_scale", "min_radius") if name in named]
    return least[0] if least else None


@pytest.mark.parametrize("pair", named(p for p in PAIRS if floor_of(p.make()[1])))
def test_no_scale_falls_below_the_floor(pair):
    """However far down the head's outputs are, draws have a density and a spread."""
    guide = pair.make()[1].double()  # far out, single precision rounds the spread away
    batch = map_batch(lambda x: x.double() if x.is_floating_point() else x, pair.batch)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.fill_(-50.0 if parameter.ndim == 1 else 0.0)  # biases
        trace = poutine.trace(pyro.plate("particles", 300, dim=-2)(guide)).get_trace(batch)
    trace.compute_log_prob()
    for site in latent_sites(trace).values():
        assert site["log_prob"].isfinite().all()
        spread = site["value"].std(0)  # of an Epanechnikov kernel r / sqrt(5)
        assert (spread > 0.4 * floor_of(guide)).all()


# Pairs and objectives


@each_cross
def test_a_gradient_reaches_every_parameter(pair, goal):
    """By name; without a KL, all but the prior's. What is recorded has no gradient."""
    model, guide = pair.make()
    svi = train(model, guide, goal.make())
    svi.step(pair.batch)
    assert not any(term.requires_grad for term in getattr(svi.loss, "record", {}).values())
    idle = {n for n, p in svi.parameters.items() if p.grad is None or not p.grad.any()}
    prior = {n for n in svi.parameters if not goal.prior and n.startswith("model.prior")}
    assert idle == prior
    assert all(p.isfinite().all() for p in svi.parameters.values())


@each_cross
def test_the_same_seed_gives_the_same_loss(pair, goal):
    """Bit for bit, over several steps; another seed gives another loss."""

    def losses(seed):
        svi = train(*pair.make(), goal.make())
        pyro.set_rng_seed(seed)
        return [float(svi.step(pair.batch)) for _ in range(3)]

    assert losses(1) == losses(1)
    if goal.draws and pair.density and pair.name != "linear-exact":
        assert losses(1) != losses(2)


@each_cross
def test_a_batch_of_the_least_size_trains(pair, goal):
    """One datum, where the modules can."""
    svi = train(*pair.make(), goal.make())
    assert svi.step(rows_of(pair.batch, 0, max(pair.least, goal.least))).isfinite()
    assert svi.evaluate(rows_of(pair.batch, 0, goal.least)).isfinite()


@each_cross
def test_the_state_makes_a_round_trip(pair, goal):
    """What is loaded elsewhere goes on as if nothing had happened."""
    svi = train(*pair.make(), goal.make())
    for _ in range(2):
        svi.step(pair.batch)
    other = train(*pair.make(seed=1), goal.make())
    other.load_state_dict(copy.deepcopy(svi.state_dict()))
    losses = []
    for each in (svi, other):
        pyro.set_rng_seed(2)
        losses.append([float(each.step(pair.batch)) for _ in range(2)])
    assert losses[0] == losses[1]


@each_cross
def test_the_second_guide_trains_after_the_first(pair, goal):
    """In one process, with our SVI: what plain Pyro fails at."""
    model, _ = pair.make()
    for seed in range(2):
        guide = pair.make_guide(model, seed)
        before = weights(guide)
        svi = train(model, guide, goal.make())
        svi.step(pair.batch)
        assert unmoved(before, guide) == []


@pytest.mark.parametrize(
    ("pair", "goal"), [p for p in crossed() if not p.values[1].name.startswith("renyi")]
)
def test_the_second_guide_trains_as_a_module(pair, goal):
    """The other style: `elbo(model, guide)` is a module with the parameters of both."""
    model, _ = pair.make()
    for seed in range(2):
        guide = pair.make_guide(model, seed)
        elbo = goal.make()(model, guide)
        optimizer = torch.optim.SGD(elbo.parameters(), lr=1e-2)
        before = weights(guide)
        elbo(pair.batch).backward()
        optimizer.step()
        assert unmoved(before, guide) == []


@pytest.mark.parametrize(("pair", "goal"), crossed(suits=False))
def test_what_does_not_go_together_is_refused(pair, goal):
    """In words, on the first step."""
    svi = train(*pair.make(), goal.make())
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=goal.refusal):
        svi.step(pair.batch)


@each_pair
def test_evaluation_changes_nothing(pair):
    """Parameters, buffers, gradients, modes and the optimizer's state outlive every diagnostic."""
    model, guide = pair.make()
    svi = train(model, guide, ppvae.objectives.BetaELBO(analytic=False))
    svi.step(pair.batch)

    def everything():
        moments = [t for s in svi.optimizer.state.values() for t in s.values()]
        gradients = [p.grad.clone() for p in svi.parameters.values()]
        return [*state(model, guide, svi.loss), *gradients, *(t.clone() for t in moments)]

    def modes():
        return [m.training for side in (model, guide) for m in side.modules()]

    for part in list(guide.modules())[1::2]:
        part.eval()  # a mixture of modes, which a blunt train() would undo
    before, before_modes = everything(), modes()
    svi.evaluate(pair.batch)
    check_pair(model, guide, pair.batch)
    active_units(guide, pair.batch, site=pair.latent)
    if pair.density:
        log_weights(model, guide, pair.batch, 4)
        if pair.marginal:
            aggregate_posterior(model, guide, pair.batch)
        if pair.coordinates:
            kl_per_dimension(model, guide, pair.batch, site=pair.latent)
    if pair.density and pair.latent == "z":
        compare({"guide": guide}, model, pair.batch, num_particles=30)
    assert same(before, everything())
    assert before_modes == modes()


# The zoo itself


def members(package):
    """Yield the public classes defined in a module or package, and below it."""
    modules = [package]
    for found in pkgutil.iter_modules(getattr(package, "__path__", [])):
        modules.append(importlib.import_module(f"{package.__name__}.{found.name}"))
    for module in modules:
        for name, member in vars(module).items():
            own = inspect.isclass(member) and member.__module__.startswith(package.__name__)
            if own and not name.startswith("_"):
                yield member


def without_row(classes, rows):
    """Return the names of the classes that no row makes an instance of."""
    made = {type(instance) for instance in rows}
    return sorted({c.__name__ for c in classes} - {c.__name__ for c in made})


ABSTRACT = {"Amortized", "Counts", "Objective"}


@pytest.mark.parametrize("package", [ppvae.models, ppvae.guides, ppvae.objectives])
def test_every_class_has_a_row(package):
    """A model, guide or objective that the zoo does not know fails here, by name."""
    kind = ELBO if package is ppvae.objectives else nn.Module
    classes = [c for c in members(package) if issubclass(c, kind) and c.__name__ not in ABSTRACT]
    assert classes
    rows = [side for pair in PAIRS for side in pair.make()] + [goal.make() for goal in GOALS]
    assert without_row(classes, rows) == [], "add a row to tests/zoo.py"


def test_a_class_without_a_row_is_named():
    """The test above can fail."""
    assert without_row([nn.Linear, nn.ReLU], [nn.ReLU()]) == ["Linear"]


def test_no_two_rows_share_a_name():
    """Names are how failures are found."""
    for rows in (PAIRS, GOALS):
        assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize("guide", GUIDES)
def test_importing_and_using_a_guide_leaves_settings_alone(guide):
    """Zuko switches validation off when imported; `Flow` switches it on again."""
    GUIDES[guide](ppvae.networks.MLP(8, 16))(torch.ones(5, 8))
    with pytest.raises(ValueError, match="scale"):
        pyro.distributions.Normal(0.0, -1.0)
