"""Whether several draws may go through a pair at once: networks are not always written for it."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from ppvae.pairing.marks import Mark
from ppvae.pairing.traces import (
    Pair,
    is_delta,
    is_deterministic,
    latent_sites,
    sample_sites,
    subsampling,
    trace_pair,
)
from ppvae.protocols import DATA_PLATE, Batch, Guide, Model, batch_size, rows_of

__all__ = ["few_rows", "joint_weights", "log_prob", "takes_particles", "takes_parts"]

PROBE = 4


def takes_particles(model: Model, guide: Guide, batch: Batch, dim: int) -> bool:
    """Return whether two draws at once weigh what they weigh one by one.

    softmax(dim=1), nn.Flatten or x @ w are written for (N, ...), and either fail under particles
    (K, N, ...), or do something else in silence.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, `(N, ...)`; a few rows suffice where each datum has its weights.
        dim: Where the particles' plate goes.
    """
    try:
        alone = trace_pair(model, guide, batch, dim=None)
        together = trace_pair(model, guide, batch, 2, dim=dim)
        marks = [Mark.of(site) for site in sample_sites(alone[1]).values()]
        moving = any(mark.conditional or mark.weightless for mark in marks)
        compare = _same_model if moving else _same_pair
        return all(compare(model, guide, batch, alone[1], together, k, dim) for k in range(2))
    except Exception:  # noqa: BLE001 -- whatever the user's networks raise
        return False


def few_rows(batch: Batch) -> Batch:
    """Return a few rows, fewer than there are, to tell what a pair does to them."""
    return rows_of(batch, 0, max(1, min(PROBE, batch_size(batch) - 1)))


def takes_parts(model: Model, guide: Guide, batch: Batch) -> bool:
    """Return whether a pair runs on fewer rows: one with a parameter of each datum does not."""
    try:
        trace_pair(model, guide, few_rows(batch), dim=None)
    except Exception:  # noqa: BLE001 -- whatever torch says to sizes that do not fit
        return False
    return True


def _same_pair(
    model: Model, guide: Guide, batch: Batch, alone: Trace, together: Pair, k: int, dim: int
) -> bool:
    """Return whether the k-th of several draws has the same densities by itself."""
    draw = _kth(together[1], alone, k, points=False)  # computed anew: rounding would rule them out
    apart = trace_pair(model, poutine.replay(guide, trace=draw), batch, dim=None)
    return all(
        _close(log_prob(a, 2, dim)[k], log_prob(b, 1, None)[0])
        for a, b in zip(together, apart, strict=True)
    )


def _same_model(
    model: Model, guide: Guide, batch: Batch, alone: Trace, together: Pair, k: int, dim: int
) -> bool:
    """Return the same of the model only: the guide's density of a draw is another at each run."""
    draw = _kth(together[1], alone, k, points=True)
    apart = trace_pair(model, lambda _: _sample_again(draw), batch, dim=None)
    return _close(log_prob(together[0], 2, dim)[k], log_prob(apart[0], 1, None)[0])


def _sample_again(draw: Trace) -> None:
    """Sample the sites of a trace where they were."""
    for name, site in draw.nodes.items():
        pyro.sample(name, dist.Delta(site["value"], event_dim=site["value"].ndim))


def _kth(together: Trace, alone: Trace, k: int, *, points: bool) -> Trace:
    """Return the k-th draw of several, with or without points."""
    draw = Trace()
    for name, site in latent_sites(together).items():
        if points or not is_delta(site["fn"]):
            value = site["value"][k].reshape(alone.nodes[name]["value"].shape)
            draw.add_node(name, **site | {"value": value})
    return draw


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-3, equal_nan=True)


def log_prob(trace: Trace, num_particles: int, dim: int | None, stands_for: float = 1.0) -> Tensor:
    """Return the log probability of all data at once, `(K,)`.

    Args:
        trace: Of one side.
        num_particles: K.
        dim: Where the particles' plate is.
        stands_for: How many data each row of a data plate stands for, where the plate itself does
            not say.
    """
    sites = sample_sites(trace).values()
    terms = [
        _per_particle(site["log_prob"] * _factor(site, stands_for), num_particles, dim)
        for site in sites
        if not is_deterministic(site)
    ]
    return sum(terms) if terms else torch.zeros(num_particles)


def _factor(site: dict, stands_for: float) -> float:
    local = any(frame.name == DATA_PLATE for frame in site["cond_indep_stack"])
    return stands_for if local and subsampling(site) == 1 else 1.0


def joint_weights(
    traces: Pair, num_particles: int, dim: int | None, stands_for: float = 1.0
) -> Tensor:
    """Return the log weights of all data at once, `(K,)`."""
    log_q = log_prob(traces[1], num_particles, dim, stands_for)
    return log_prob(traces[0], num_particles, dim) - log_q


def _per_particle(log_prob: Tensor | float, num_particles: int, dim: int | None) -> Tensor:
    """Return a log probability summed over all axes but the particles', `(K,)`."""
    log_prob = torch.as_tensor(log_prob)
    particles = dim is not None and log_prob.ndim == -dim
    return (log_prob.flatten(1).sum(1) if particles else log_prob.sum()).expand(num_particles)
