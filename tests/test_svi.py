"""One step of training: a drop-in for Pyro's SVI that waits for nothing."""

import copy
import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import nn
from torch.optim import SGD, Adam
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import GUIDES, PAIRS, binary, crossed, linear, particles, real, train, vae

from ppvae import SVI
from ppvae.guides import Exact, Normal
from ppvae.networks import MLP
from ppvae.objectives import IWELBO, BetaELBO

BY_NAME = {pair.name: pair for pair in PAIRS}


def normal_pair(seed=0):
    """Return a model, a guide and a batch."""
    pair = BY_NAME["vae-normal"]
    return *pair.make(seed), pair.batch


def parameters(model, guide):
    """Return the parameters of both."""
    return [*model.parameters(), *guide.parameters()]


# A drop-in


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, partial(particles, 3)])
@pytest.mark.parametrize("optim", [partial(Adam, lr=1e-2), partial(SGD, lr=1e-2, momentum=0.9)])
def test_a_step_is_that_of_a_loop_by_hand(elbo, optim):
    """Loss by loss and weight by weight, on the same seed."""
    model, guide, batch = normal_pair()
    svi = SVI(model, guide, optim, elbo())
    pyro.set_rng_seed(1)
    ours = [svi.step(batch).item() for _ in range(5)]
    by_svi = parameters(model, guide)

    model, guide, batch = normal_pair()
    optimizer, loss = optim(parameters(model, guide)), elbo()
    pyro.set_rng_seed(1)
    theirs = []
    for _ in range(5):
        optimizer.zero_grad()
        value = loss.differentiable_loss(model, guide, batch) / len(batch)
        value.backward()
        optimizer.step()
        theirs.append(value.item())
    assert ours == pytest.approx(theirs, rel=1e-6)
    torch.testing.assert_close(by_svi, parameters(model, guide))


def test_it_takes_what_pyros_svi_takes():
    """Positional arguments in the same order, a `pyro.optim` optimizer, the methods' names."""
    model, guide, batch = normal_pair()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(batch).item() for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert isinstance(svi.evaluate_loss(batch), float)


def test_the_loss_is_a_tensor_per_datum():
    """Detached, 0-d, and the same for a batch given twice."""
    model, _, batch = normal_pair()
    model = linear()
    svi = SVI(model, Exact(model), partial(SGD, lr=0.0), Trace_ELBO())
    batch = real(5, 3)
    once, twice = (svi.step(each) for each in (batch, batch.repeat(2, 1)))
    assert once.shape == () and not once.requires_grad
    assert once.item() == pytest.approx(-model.log_evidence(batch).mean().item(), abs=1e-5)
    assert twice.item() == pytest.approx(once.item(), abs=1e-5)


def test_the_gradient_does_not_depend_on_the_batchs_size():
    """A batch given twice gives the same step, up to the noise of other draws."""
    model, guide, batch = normal_pair()
    svi = SVI(model, guide, partial(SGD, lr=0.0), particles(20_000))
    found = []
    for each in (batch, batch.repeat(2, 1)):
        svi.step(each)
        found.append(guide.head.bias.grad.clone())
    torch.testing.assert_close(*found, rtol=0, atol=0.05)


def test_a_plain_function_is_a_loss():
    """Of model, guide and batch, summed over the batch."""
    model, guide, batch = normal_pair()

    def loss(model, guide, batch):
        return guide.head.bias.square().sum() * len(batch)

    svi = SVI(model, guide, partial(SGD, lr=0.25), loss)
    before = guide.head.bias.detach().clone()
    assert svi.step(batch).item() == pytest.approx(before.square().sum().item())
    torch.testing.assert_close(guide.head.bias.detach(), before / 2)


def test_more_arguments_pass_through():
    """To model and guide, as with Pyro's SVI; the first says how many data there are."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, batch, by, *, twice=False):
            with pyro.plate("data", len(batch), dim=-1):
                x = dist.Normal(self.loc + by * (1 + twice), 1.0).to_event(0)
                pyro.sample("x", x.expand([len(batch)]), obs=batch)

    svi = SVI(Shifted(), lambda *_, **__: None, partial(SGD, lr=0.0), Trace_ELBO())
    exact = -dist.Normal(3.0, 1.0).log_prob(torch.zeros(()))
    assert svi.step(torch.zeros(4), 1.5, twice=True).item() == pytest.approx(exact.item())
    assert svi.evaluate(torch.zeros(4), 3.0).item() == pytest.approx(exact.item())


# Optimizers


def test_optimizers_are_fused_where_they_can_be():
    """And left alone where they cannot, or the choice was made."""

    def built(optim):
        model, guide, _ = normal_pair()
        return SVI(model, guide, optim, Trace_ELBO()).optimizer.defaults

    assert built(partial(Adam, lr=1e-3))["fused"] is True
    assert built(partial(SGD, lr=1e-3))["fused"] is True
    assert built(partial(Adam, lr=1e-3, fused=False))["fused"] is False
    assert built(partial(Adam, lr=1e-3, foreach=False))["fused"] is None
    assert "fused" not in built(partial(torch.optim.RMSprop, lr=1e-3))


def test_groups_go_by_the_longest_prefix():
    """Names are those of `named_parameters`, a prefix ends where a name does."""
    model, guide, batch = normal_pair()
    groups = {
        "guide": {"lr": 0.1},
        "guide.head": {"lr": 0.2, "weight_decay": 0.5},
        "guide.encoder.0.bias": {"lr": 0.3},
    }
    svi = SVI(model, guide, partial(Adam, lr=0.4), Trace_ELBO(), groups=groups)
    rates = {
        id(p): (group["lr"], group["weight_decay"])
        for group in svi.optimizer.param_groups
        for p in group["params"]
    }
    assert {name: rates[id(p)] for name, p in svi.parameters.items()} == {
        "model.decoder.0.weight": (0.4, 0),
        "model.decoder.0.bias": (0.4, 0),
        "guide.encoder.0.weight": (0.1, 0),
        "guide.encoder.0.bias": (0.3, 0),
        "guide.head.weight": (0.2, 0.5),
        "guide.head.bias": (0.2, 0.5),
    }
    svi.step(batch)


@pytest.mark.parametrize("prefix", ["guide.hea", "encoder", "guide.tail"])
def test_a_group_that_matches_nothing_is_refused(prefix):
    """A misspelled group would leave its parameters at the common rate, unseen."""
    model, guide, _ = normal_pair()
    message = re.escape(f"the parameter groups ['{prefix}'] match no parameter of their own")
    with pytest.raises(ValueError, match=message + ".*guide.head.bias"):
        SVI(model, guide, partial(Adam, lr=0.1), Trace_ELBO(), groups={prefix: {"lr": 1.0}})


@pytest.mark.parametrize(
    ("clip", "measure"),
    [("clip_norm", torch.linalg.vector_norm), ("clip_value", lambda g: g.abs().max())],
)
def test_gradients_are_clipped(clip, measure):
    """The norm of the whole, or every entry; the step obeys."""
    model, guide, batch = normal_pair()

    def gradient(svi):
        svi.step(batch)
        return torch.cat([p.grad.flatten() for p in svi.parameters.values()])

    free = gradient(SVI(model, guide, partial(SGD, lr=0.0), Trace_ELBO()))
    assert measure(free) > 0.02
    clipped = gradient(SVI(model, guide, partial(SGD, lr=0.0), Trace_ELBO(), **{clip: 0.01}))
    assert measure(clipped).item() == pytest.approx(0.01, rel=1e-4)


def test_a_scheduler_sees_the_optimizer():
    """`fit` steps it; so may anyone."""
    model, guide, batch = normal_pair()
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    svi = SVI(model, guide, partial(Adam, lr=0.4), Trace_ELBO(), scheduler=halving)
    svi.step(batch)
    svi.scheduler.step()
    assert svi.optimizer.param_groups[0]["lr"] == 0.2


def test_a_pyro_optimizer_is_built_once_over_all_parameters():
    """ClippedAdam brings its own decay of the learning rate."""
    model, guide, batch = normal_pair()
    adam = pyro.optim.Adam({"lr": 0.2}, {"clip_norm": 0.01})
    svi = SVI(model, guide, adam, Trace_ELBO())
    assert isinstance(svi.optimizer, Adam)
    assert sum(len(g["params"]) for g in svi.optimizer.param_groups) == len(svi.parameters)
    assert (svi.clip_norm, svi.clip_value) == (0.01, None)
    svi.step(batch)
    clipped = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.2, "lrd": 0.5}), Trace_ELBO())
    clipped.step(batch)
    assert clipped.optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (Adam([nn.Parameter(torch.zeros(1))]), r"must make the optimizer, .* but is Adam"),
        (0.1, r"must make the optimizer, .* but is float"),
        (
            pyro.optim.ExponentialLR({"optimizer": Adam, "optim_args": {"lr": 1}, "gamma": 0.5}),
            r"PyroLRScheduler .*pass partial\(torch.optim.Adam, lr=1e-3\) instead, .*scheduler=",
        ),
        (pyro.optim.Adam(lambda name: {"lr": 1}), "decides per parameter"),
    ],
    ids=["instance", "number", "scheduler", "callable"],
)
def test_what_makes_no_optimizer_is_refused(optim, message):
    """In words."""
    model, guide, _ = normal_pair()
    with pytest.raises(TypeError, match=message):
        SVI(model, guide, optim, Trace_ELBO())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (TraceGraph_ELBO(), "TraceGraph_ELBO has no differentiable loss: use Trace_ELBO"),
        ("elbo", "loss must be an ELBO or a function of"),
    ],
)
def test_what_is_no_loss_is_refused(loss, message):
    """In words."""
    model, guide, _ = normal_pair()
    with pytest.raises(TypeError, match=message):
        SVI(model, guide, partial(Adam, lr=0.1), loss)


# Who has parameters


def test_either_side_may_have_no_parameters():
    """A frozen model, a frozen guide, an exact one, or a plain function."""
    model, guide, batch = normal_pair()
    for frozen, other in ((model, guide), (guide, model)):
        frozen.requires_grad_(False)
        before = [p.clone() for p in frozen.parameters()]
        svi = train(model, guide, Trace_ELBO())
        svi.step(batch)
        assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters(), strict=True))
        assert all(p.grad.any() for p in other.parameters())
        frozen.requires_grad_(True)
    model = linear()
    train(model, Exact(model), Trace_ELBO()).step(real(5, 3))
    held = vae().requires_grad_(False)
    train(lambda batch: held(batch), guide, Trace_ELBO()).step(batch)


def test_nothing_to_train_is_an_error():
    """Pyro's SVI would run on without moving anything."""
    model, guide, _ = normal_pair()
    for side in (model, guide):
        side.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train: neither model nor guide has param"):
        train(model, guide, Trace_ELBO())


def test_a_parameter_of_both_sides_is_trained_once():
    """An optimizer refuses one parameter twice."""
    model, guide, batch = normal_pair()
    guide.decoder = model.decoder
    svi = train(model, guide, Trace_ELBO())
    assert len(svi.parameters) == len({id(p) for p in svi.parameters.values()})
    svi.step(batch)


class Crossed(nn.Module):
    """Two plates: a nesting that a smaller pair does not have."""

    def __init__(self, observed):
        super().__init__()
        self.loc, self.observed = nn.Parameter(torch.zeros(())), observed

    def forward(self, batch):
        with pyro.plate("data", 5, dim=-1), pyro.plate("more", 2, dim=-2):
            pyro.sample("z", dist.Normal(self.loc, 1.0))
        if self.observed:
            with pyro.plate("data_x", 5, dim=-1):
                pyro.sample("x", dist.Normal(self.loc, 1.0), obs=batch[:, 0])


def test_one_pyro_elbo_may_serve_two_pairs():
    """It would remember the plates of the first, and put its particles onto the second's."""
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True)
    model, guide, batch = normal_pair()
    for pair in ((model, guide), (Crossed(True), Crossed(False))):
        svi = train(*pair, elbo)
        svi.step(batch)
        assert svi.step(batch).isfinite()
    assert elbo.max_plate_nesting == float("inf")


# No wait for the device


class NoSync(TorchDispatchMode):
    """Raises where a number is read from a tensor: on a GPU that waits for all work before it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero")
        if func.overloadpacket.__name__ in waits:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


AMORTIZED = {f"vae-{name}" for name in GUIDES}


@pytest.mark.parametrize(("pair", "goal"), [p for p in crossed() if p.values[0].name in AMORTIZED])
def test_no_step_after_the_first_waits_for_the_device(pair, goal):
    """Loss, gradients, clipping and optimizer; Pyro's own ELBOs call `.item()` at every site."""
    svi = train(*pair.make(), goal.make(), clip_norm=1.0, clip_value=1.0)
    svi.step(pair.batch)
    with NoSync():
        loss = svi.step(pair.batch)
        svi.step(pair.batch)
    assert loss.isfinite()


def test_the_watch_sees_a_wait():
    """Else the test above would say nothing."""
    with NoSync(), pytest.raises(AssertionError, match="waits"):
        torch.zeros(()).item()
    model, guide, batch = normal_pair()
    with NoSync(), pytest.raises(AssertionError, match="waits"):
        Trace_ELBO().differentiable_loss(model, guide, batch)


def test_validation_is_on_for_the_first_step_alone():
    """It waits for the device; `validate` asks for it again."""
    model, guide, batch = normal_pair()
    svi = train(model, guide, Trace_ELBO())
    outside = torch.full_like(batch, 0.5)
    with pytest.raises(ValueError, match="support"):
        svi.step(outside)
    svi.step(batch)
    svi.step(outside)
    svi.validate = True
    with pytest.raises(ValueError, match="support"):
        svi.step(outside)


# State


def test_the_state_holds_all_that_training_changes():
    """Weights, moments, learning rate; what is loaded goes on as the original would."""
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    svis = []
    for seed in range(2):
        model, guide, batch = normal_pair(seed)
        svis.append(train(model, guide, BetaELBO(), scheduler=halving))
    first, second = svis
    first.step(batch)
    first.scheduler.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert first.state_dict().keys() == {"model", "guide", "loss", "optimizer", "scheduler"}
    assert second.optimizer.param_groups[0]["lr"] == 5e-3
    for svi in svis:
        pyro.set_rng_seed(1)
        svi.step(batch)
    both = [list(svi.parameters.values()) for svi in svis]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_a_state_of_another_kind_is_refused():
    """It lacks a scheduler, or has one too many."""
    model, guide, _ = normal_pair()
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    plain = train(model, guide, Trace_ELBO())
    with pytest.raises(
        ValueError, match=r"the state holds \['guide', 'model', 'optimizer'\], but"
    ):
        train(model, guide, Trace_ELBO(), scheduler=halving).load_state_dict(plain.state_dict())


def test_evaluation_is_in_evaluation_mode_and_without_gradients():
    """Dropout is off: with common random numbers two evaluations agree."""
    pair = BY_NAME["vae-batch-norm-dropout"]
    svi = train(*pair.make(), RenyiELBO(num_particles=2))
    losses = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        losses.append(svi.evaluate(pair.batch))
        assert not losses[-1].requires_grad
    assert torch.equal(*losses)
    assert svi.guide.training


class Switch(nn.Module):
    """z ~ Bernoulli(sigmoid(p)), x ~ N(z, 1), z enumerated; the guide has the first line alone."""

    def __init__(self, observed):
        super().__init__()
        self.logit, self.observed = nn.Parameter(torch.tensor(0.3)), observed

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            p_z = dist.Bernoulli(logits=self.logit)
            z = pyro.sample("z", p_z, infer={"enumerate": "parallel"})
            if self.observed:
                pyro.sample("x", dist.Normal(z, 1.0), obs=batch)


def test_an_enumerating_elbo_works():
    """Any Pyro ELBO with a differentiable loss does; this one has no noise."""
    model, guide, batch = Switch(True), Switch(False), real(5)
    svi = train(model, guide, TraceEnum_ELBO(max_plate_nesting=1))
    q, p_x = guide.logit.sigmoid().item(), dist.Normal(torch.arange(2.0), 1.0)
    log_likelihood = p_x.log_prob(batch[:, None]).mean(0)
    exact = -((1 - q) * log_likelihood[0] + q * log_likelihood[1])
    assert svi.step(batch).item() == pytest.approx(exact.item())


def test_a_mapping_is_a_batch():
    """Of tensors that agree about N."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self, batch):
            with pyro.plate("data", len(batch["x"]), dim=-1):
                pyro.sample("x", dist.Normal(self.loc, 1.0).to_event(1), obs=batch["x"])

    svi = train(Two(), lambda batch: None, Trace_ELBO())
    assert svi.step({"x": real(4, 2), "y": real(4)}).shape == ()
    with pytest.raises(ValueError, match="differ in their number of data"):
        svi.step({"x": real(4, 2), "y": real(3)})


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guides_head_may_be_trained_alone(guide):
    """A frozen encoder stays where it is."""
    model, guide = vae(), GUIDES[guide](MLP(8, 16))
    guide.encoder.requires_grad_(False)
    svi = train(model, guide, Trace_ELBO())
    assert not any("encoder" in name for name in svi.parameters)
    svi.step(binary(5, 8))
    assert all(p.grad is None for p in guide.encoder.parameters())


def test_a_guide_within_a_handler_trains():
    """Pyro's handlers return functions, and the module behind them is found."""
    model, guide = vae(), Normal(MLP(8, 4), latent_dim=2)
    svi = train(poutine.scale(model, scale=1.0), poutine.scale(guide, scale=1.0), Trace_ELBO())
    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    svi.step(binary(5, 8))
    after = (*model.parameters(), *guide.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert set(svi.state_dict()) == {"model", "guide", "optimizer"}


@pytest.mark.parametrize("estimator", ["dreg", "stl"])
def test_estimators_that_hold_parameters_want_the_guide_itself(estimator):
    guide = poutine.scale(Normal(MLP(8, 4), latent_dim=2), scale=1.0)
    svi = train(vae(), guide, IWELBO(2, estimator=estimator))
    with pytest.raises(ValueError, match="pass the guide itself"):
        svi.step(binary(5, 8))
