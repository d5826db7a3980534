"""How a pair is to be weighed: per datum or all data at once, with which plate for particles."""

from typing import NamedTuple

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppvae.protocols import (
    DATA_PLATE,
    Batch,
    Guide,
    Model,
    batch_size,
    forked_streams,
    modules_of,
    rows_of,
)
from ppvae.weights.traces import (
    Pair,
    is_delta,
    latent_sites,
    sample_sites,
    trace_pair,
)

__all__ = ["Plan", "check_autoguide", "joint_weights", "plan_of"]


class Plan(NamedTuple):
    """How a pair is to be weighed.

    Attributes:
        joint: Whether a latent lies outside of the data plate, so that weights are of all data at
            once.
        whole: Whether the batch must stay whole: joint, or with an autoguide, which knows no other
            data.
        dim: Where the particles' plate goes, left of all others; None where draws are made one by
            one.
        points: The latents that the guide draws from no density, `Delta` sites.
        size: How many data a particle's weights are of: N, or more where joint and subsampled.
        latents: The model's latent sites, in its order.
        reason: Why weights bound no evidence, where a prior reads the data.
    """

    joint: bool
    whole: bool
    dim: int | None
    points: tuple[str, ...]
    size: int
    latents: tuple[str, ...]
    reason: str = ""

    def rows(self, size: int, chunk_size: int, num_particles: int) -> int:
        """Return how many of N data go together: few, with all particles, to encode them once."""
        return size if self.whole else max(1, min(size, chunk_size // num_particles))

    def counts(self, rows: int, chunk_size: int, num_particles: int) -> list[int]:
        """Return how many particles go together, one chunk after the other."""
        return _counts(num_particles, 1 if self.dim is None else max(1, chunk_size // rows))


def plan_of(model: Model, guide: Guide, batch: Batch) -> Plan:
    """Return how a pair is to be weighed, found out by running it on a fork of the random streams.

    Raises:
        ValueError: If an autoguide was made for other data.
    """
    check_autoguide(guide, batch)
    whole = any(isinstance(part, AutoGuide) for part in modules_of(guide))
    reasons = (getattr(part, "reads_data", "") for part in modules_of(model))
    reason = next(filter(None, reasons), "")
    with forked_streams():
        if whole:
            alone = trace_pair(model, guide, batch, dim=None)
        else:
            try:
                alone = trace_pair(model, guide, rows_of(batch, 0, 1), dim=None)
            except Exception:  # noqa: BLE001 -- some pairs know only all of their data
                alone = trace_pair(model, guide, batch, dim=None)
        points = _points(guide, batch, alone[1])
        latents = [s for trace in alone for s in latent_sites(trace).values()]
        names = tuple(latent_sites(alone[0]))
        if all(any(f.name == DATA_PLATE for f in s["cond_indep_stack"]) for s in latents):
            return Plan(False, whole, -2, points, batch_size(batch), names, reason)
        alone = trace_pair(model, guide, batch, dim=None)
        dim = -1 - max(
            1, *(len(s["fn"].batch_shape) for t in alone for s in sample_sites(t).values())
        )
        vectorized = _takes_particles(model, guide, batch, dim, alone)
    frames = [f for s in sample_sites(alone[0]).values() for f in s["cond_indep_stack"]]
    sizes = [frame.full_size for frame in frames if frame.name == DATA_PLATE and frame.full_size]
    size = max(sizes, default=batch_size(batch))
    return Plan(True, True, dim if vectorized else None, points, size, names, reason)


def check_autoguide(guide: Guide, batch: Batch) -> None:
    """Check that the autoguides in a guide were made for as many data as the batch has.

    Raises:
        ValueError: If one of them has a factor for each of other data.
    """
    for part in modules_of(guide):
        if not isinstance(part, AutoGuide) or part.create_plates or part.master is not None:
            continue
        frame = part._prototype_frames.get(DATA_PLATE)
        if frame is not None and frame.size != batch_size(batch):
            raise ValueError(
                f"this {type(part).__name__} has a factor for each of the {frame.size} data that "
                f"it first saw, and the batch {batch_size(batch)} data: pass all data at once, "
                "give it create_plates=, or take an amortized guide, such as ppvae.guides.Normal"
            )


def _points(guide: Guide, batch: Batch, guide_trace: Trace) -> tuple[str, ...]:
    """Return the `Delta` sites that no auxiliary site stands behind."""
    sites = latent_sites(guide_trace)
    points = tuple(name for name, site in sites.items() if is_delta(site["fn"]))
    if points and any(site["infer"].get("is_auxiliary") for site in sites.values()):
        with _Origins():
            nodes = poutine.trace(guide).get_trace(batch).nodes
        points = tuple(name for name in points if not get_provenance(nodes[name]["value"]))
    return points


class _Origins(Messenger):
    """Marks what is computed from auxiliary sites."""

    def _pyro_post_sample(self, msg: dict) -> None:
        if msg["infer"].get("is_auxiliary"):
            msg["value"] = track_provenance(msg["value"], frozenset([msg["name"]]))


def _takes_particles(model: Model, guide: Guide, batch: Batch, dim: int, alone: Pair) -> bool:
    """Return whether two draws at once weigh what they weigh one by one."""
    try:
        together = trace_pair(model, guide, batch, 2, dim=dim)
        found = joint_weights(together, 2, dim)
        shapes = {name: site["value"].shape for name, site in latent_sites(alone[1]).items()}
        for k in range(2):
            draw = Trace()
            for name, site in latent_sites(together[1]).items():
                if not is_delta(site["fn"]):  # computed anew: rounding would make it impossible
                    draw.add_node(name, **site | {"value": site["value"][k].reshape(shapes[name])})
            apart = trace_pair(model, poutine.replay(guide, trace=draw), batch, dim=None)
            if not torch.allclose(found[k], joint_weights(apart, 1, None), 1e-4, 1e-3, True):
                return False
    except Exception:  # noqa: BLE001 -- whatever the user's model raises
        return False
    return True


def joint_weights(traces: Pair, num_particles: int, dim: int | None) -> Tensor:
    """Return the log weights of all data at once, `(K,)`."""
    log_p, log_q = (
        sum(_per_particle(s["log_prob"], num_particles, dim) for s in sample_sites(trace).values())
        for trace in traces
    )
    return log_p - log_q


def _per_particle(log_prob: Tensor | float, num_particles: int, dim: int | None) -> Tensor:
    """Return a log probability summed over all axes but the particles', `(K,)`."""
    log_prob = torch.as_tensor(log_prob)
    particles = dim is not None and log_prob.ndim == -dim
    return (log_prob.flatten(1).sum(1) if particles else log_prob.sum()).expand(num_particles)


def _counts(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]
