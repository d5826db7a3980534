"""The zoo on a CUDA device; skipped, with the reason, where there is none."""

import pyro
import pytest
import torch
from zoo import PAIRS, crossed, named, train

from ppvae import Batches, check_pair, fit, log_weights, resolve_device
from ppvae.diagnostics import (
    active_units,
    aggregate_posterior,
    evidence,
    kl_per_dimension,
    pareto_k,
)
from ppvae.objectives import BetaELBO
from ppvae.protocols import map_batch
from ppvae.weights import trace_pair

pytestmark = pytest.mark.gpu

WEIGHED = [pair for pair in PAIRS if pair.density]


def on_cuda(batch):
    """Return the batch on the device."""
    return map_batch(lambda leaf: leaf.to("cuda"), batch)


def on_device(pair):
    """Return model, guide and batch on the device."""
    model, guide = pair.make()
    return model.to("cuda"), guide.to("cuda"), on_cuda(pair.batch)


@pytest.fixture
def no_sync():
    """Make every wait for the device an error, and always lift that again."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("pair", named(PAIRS))
def test_the_pair_moves(pair):
    """`.to("cuda")` moves all of it: nothing is left behind on the way."""
    model, guide, batch = on_device(pair)
    check_pair(model, guide, batch)
    tensors = [t for side in (model, guide) for t in (*side.parameters(), *side.buffers())]
    assert all(t.is_cuda for t in tensors)
    for trace in trace_pair(model, guide, batch, 3):
        assert all(s["value"].is_cuda for s in trace.nodes.values() if s["type"] == "sample")


@pytest.mark.parametrize(("pair", "goal"), crossed())
def test_steps_are_taken_without_a_wait(pair, goal, no_sync):
    """After the first, in which validation is on."""
    model, guide, batch = on_device(pair)
    svi = train(model, guide, goal.make(), clip_norm=10.0)
    svi.step(batch)
    svi.step(batch)
    torch.cuda.synchronize()
    no_sync()
    losses = [svi.step(batch) for _ in range(3)]
    torch.cuda.set_sync_debug_mode("default")
    assert all(loss.is_cuda and loss.isfinite() for loss in losses)
    assert all(p.isfinite().all() for p in svi.parameters.values())


@pytest.mark.parametrize("pair", named(p for p in WEIGHED if p.marginal))
def test_log_weights_agree_with_the_cpus_in_distribution(pair):
    """Other random numbers, the same mean within errors, datum by datum."""
    model, guide = pair.make()
    here = log_weights(model, guide, pair.batch, 4000)
    there = log_weights(*on_device(pair), 4000)
    assert there.is_cuda and there.shape == here.shape
    there = there.cpu()
    error = ((here.var(0) + there.var(0)) / 4000).sqrt() + 1e-4
    assert ((here.mean(0) - there.mean(0)).abs() < 5 * error).all()


@pytest.mark.parametrize("pair", named(p for p in WEIGHED if p.pathwise))
def test_the_same_draws_weigh_the_same(pair):
    """The densities themselves agree, up to rounding."""
    model, guide = pair.make()
    with torch.no_grad():
        traces = trace_pair(model.eval(), guide.eval(), pair.batch, 3)
    values = {n: s["value"] for n, s in traces[1].nodes.items() if s["type"] == "sample"}
    moved = {name: value.to("cuda") for name, value in values.items()}
    model, guide, batch = model.to("cuda"), guide.to("cuda"), on_cuda(pair.batch)
    conditioned = pyro.poutine.condition(model, data=moved)
    with torch.no_grad():
        trace = pyro.poutine.trace(pyro.plate("k", 3, dim=-2)(conditioned)).get_trace(batch)
    trace.compute_log_prob()
    for name, site in traces[0].nodes.items():
        if site["type"] == "sample":
            found = trace.nodes[name]["log_prob"].cpu()
            torch.testing.assert_close(found, site["log_prob"], rtol=1e-3, atol=1e-3)


def test_the_judges_work_on_the_device():
    """Whatever they compute elsewhere comes back."""
    pair = PAIRS[0]
    model, guide, batch = on_device(pair)
    log_w = log_weights(model, guide, batch, 200)
    assert evidence(log_w).log_evidence.isfinite().all()
    assert pareto_k(log_w).k.shape == (5,)
    assert aggregate_posterior(model, guide, batch).kl > 0
    assert kl_per_dimension(model, guide, batch).is_cuda
    assert active_units(guide, batch).shape == (2,)


def test_data_are_moved_and_shuffled_there():
    """`fit` takes them from wherever they are."""
    pair = PAIRS[0]
    model, guide, _ = on_device(pair)
    data = pair.batch.repeat(10, 1)
    svi = train(model, guide, BetaELBO())
    history = fit(svi, data, epochs=2, batch_size=16, validation=data[:5], progress=False)
    assert len(history) == 2
    batches = Batches(data, 16, device="cuda")
    assert all(batch.is_cuda for batch in batches)
    assert svi.device.type == resolve_device().type == "cuda"


def test_a_state_moves_between_devices():
    """Saved on one, loaded on the other."""
    pair = PAIRS[0]
    model, guide, batch = on_device(pair)
    svi = train(model, guide, BetaELBO())
    svi.step(batch)
    other = train(*pair.make(seed=1), BetaELBO())
    other.load_state_dict(svi.state_dict())
    assert other.step(pair.batch).isfinite()
    both = zip(svi.parameters.values(), other.parameters.values(), strict=True)
    assert all(not q.is_cuda and p.is_cuda for p, q in both)
