"""Every pair and objective on another device than the CPU: torch's `meta`, which needs no GPU.

A tensor on `meta` has a shape, a dtype and no numbers. So a tensor that was left on the CPU and a
number that is read on the way, which would stall a GPU, are errors there. Each pair runs here
under an eighth of the objectives, each objective with an eighth of the pairs: the rest is slow.
"""

from functools import partial

import pyro
import pytest
import torch
from torch import nn
from torch.optim import SGD
from zoo import GOALS, PAIRS, crossed, named

from ppvae import SVI, log_weights
from ppvae.objectives import BetaELBO
from ppvae.protocols import map_batch
from ppvae.weights import evaluating, pairwise_log_density, plan_of, trace_pair, weigh

META = torch.device("meta")
SHARE = 8  # of the combinations, one in so many runs by default


def moved(pair, goal=None):
    """Return model, guide, batch, and the loss, on `meta`; Pyro's own losses have no tensors."""
    parts = [*pair.make(), map_batch(lambda leaf: leaf.to(META), pair.batch)]
    parts += [goal.make()] if goal else []
    return [part.to(META) if isinstance(part, nn.Module) else part for part in parts]


def shared(combinations):
    """Mark as slow what is not in the share: a Latin square, so that each row has a part in it."""

    def marks(pair, goal):
        mine = (PAIRS.index(pair) + GOALS.index(goal)) % SHARE == 0
        return () if mine else pytest.mark.slow

    return [pytest.param(*c.values, id=c.id, marks=marks(*c.values)) for c in combinations]


@pytest.mark.parametrize(("pair", "goal"), shared(crossed()))
def test_a_step_stays_on_the_device(pair, goal):
    """Loss, gradients and the optimizer's step: no number is read, and nothing left behind."""
    model, guide, batch, loss = moved(pair, goal)
    svi = SVI(model, guide, partial(SGD, lr=0.1, fused=False), loss)
    svi.validate = False  # the first step reads values, to explain what is wrong with them
    assert svi.step(batch).device == META
    assert {p.device for p in svi.parameters.values()} == {META}
    assert {term.device for term in getattr(loss, "record", {}).values()} <= {META}


@pytest.mark.parametrize("pair", named(p for p in PAIRS if p.density))
def test_log_weights_stay_on_the_device(pair):
    """How a pair is to be weighed is found out by its numbers; weighing reads none."""
    plan = plan_of(*pair.make(), pair.batch)
    model, guide, batch = moved(pair)
    with pyro.validation_enabled(False), evaluating(model, guide):
        log_w = weigh(trace_pair(model, guide, batch, 3, dim=plan.dim), (3, 5), plan)
    assert log_w.shape == (3, 5)
    assert log_w.device == META


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["vae-normal", "vae-flow", "multimodal-poe", "sentence-gru"])
def test_half_precision_is_not_weighed(name, dtype):
    """It would lose nats in silence; double precision is as right as single."""
    pair = next(pair for pair in PAIRS if pair.name == name)

    def cast(to):
        parts = [part.to(to) for part in pair.make()]
        batch = map_batch(lambda x: x.to(to) if x.is_floating_point() else x, pair.batch)
        return *parts, batch

    with pytest.raises(ValueError, match=rf"scores in {dtype}, .*model.float\(\)"):
        log_weights(*cast(dtype), 4)
    with pytest.raises(ValueError, match=f"scores in {dtype}"):
        _, guide, batch = cast(dtype)
        pairwise_log_density(guide, batch, {"z": torch.zeros(3, 2, dtype=dtype)})
    assert log_weights(*cast(torch.float64), 4).dtype == torch.float64


def test_half_precision_by_autocast_is_not_weighed():
    """Modules in single precision, layers in half."""
    pair = next(pair for pair in PAIRS if pair.name == "vae-normal")
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="outside of autocast"),
    ):
        log_weights(*pair.make(), pair.batch, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_sum_is_of_the_pairs_device_and_dtype(dtype):
    """Where each latent's KL has a closed form, nothing is left to draw."""
    pair = next(pair for pair in PAIRS if pair.name == "vae-normal")
    model, guide, batch, loss = moved(pair, next(g for g in GOALS if g.name == "beta-4"))
    for part in (model, guide, loss):
        part.to(dtype)
    with pyro.validation_enabled(False):
        value = loss.differentiable_loss(model, guide, batch.to(dtype))
    value.backward()
    assert (value.device, value.dtype) == (META, dtype)
    assert all(p.grad is not None for p in guide.parameters())


@pytest.mark.parametrize("left", ["tensor", "number"])
def test_what_is_left_behind_is_an_error(left):
    """The tests above can fail: a constant on the CPU, and a number that is read."""
    pair = next(pair for pair in PAIRS if pair.name == "vae-normal")
    model, guide, batch = moved(pair)

    class Leaving(BetaELBO):
        def objective(self, terms):
            value = super().objective(terms)
            if left == "number":
                return value * (2.0 if value.sum() > 0 else 1.0)
            return value + torch.zeros(terms.shape[1:])

    with (
        pyro.validation_enabled(False),
        pytest.raises((RuntimeError, NotImplementedError), match="meta|Meta"),
    ):
        Leaving().to(META).differentiable_loss(model, guide, batch)
