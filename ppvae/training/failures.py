"""What to say when a loss is not finite: which step, which term, which site."""

import copy
import math
from collections.abc import Iterable

import pyro
import torch
from torch import Tensor

from ppvae.langevin import ChainError
from ppvae.objectives import Objective
from ppvae.protocols import Batch, local_parameters, map_batch
from ppvae.training import checkpoints
from ppvae.training.batches import Batches
from ppvae.training.svi import SVI
from ppvae.weights import trace_pair

__all__ = ["Snapshot", "explain"]


class Snapshot:
    """A moment of training in memory: weights, optimizer, schedules, random streams, order.

    Args:
        svi: Whose moment.
        batches: The data it goes through.
    """

    def __init__(self, svi: SVI, batches: Iterable[Batch]) -> None:
        self.parts = copy.deepcopy(svi.state_dict())
        self.random = checkpoints.random_state()
        self.order = batches.state_dict() if isinstance(batches, Batches) else None

    def restore_parts(self, svi: SVI) -> None:
        """Put weights, optimizer and schedules back together, and leave random streams alone."""
        svi.load_state_dict(self.parts)

    def restore(self, svi: SVI, batches: Iterable[Batch]) -> None:
        """Put everything back."""
        self.restore_parts(svi)
        checkpoints.set_random_state(self.random)
        if self.order is not None:
            batches.load_state_dict(self.order)


def explain(svi: SVI, batches: Iterable[Batch], start: Snapshot, index: int) -> str:
    """Return why the loss of a step was not finite, by living through its epoch again.

    Nothing is checked while training goes well, for a check waits for the device. Afterwards the
    epoch is repeated from its start, on the same random numbers, up to the step in question.

    Args:
        svi: Left as it was before the step.
        batches: The data.
        start: The moment before the epoch.
        index: Which step of the epoch, from 0.
    """
    start.restore(svi, batches)
    for i, batch in enumerate(batches):
        batch = map_batch(lambda leaf: leaf.to(svi.device), batch)
        if i == index:
            return _blame(svi, batch)
        svi.step(batch)
    return "its site is unknown, since the data cannot be gone through again"


def _blame(svi: SVI, batch: Batch) -> str:
    bad = [name for name, p in svi.parameters.items() if not p.isfinite().all()]
    if bad:
        return (
            f"the parameters {', '.join(bad[:3])} were not finite any more: the gradient of the "
            "step before was not"
        )
    state = checkpoints.random_state()
    if said := _diverged(svi, batch):
        return said
    checkpoints.set_random_state(state)
    with torch.no_grad(), pyro.validation_enabled(False):
        model_trace, guide_trace = trace_pair(svi.model, svi.guide, batch, dim=None)
        sites = [("guide", guide_trace), ("model", model_trace)]
        found = [line for owner, trace in sites for line in _faults(owner, trace.nodes)]
        checkpoints.set_random_state(state)
        term = _term(svi, batch)
    return "; ".join(part for part in (*found[:2], term) if part) or (
        "every site is finite: it is the objective, or the draw, that is not"
    )


def _diverged(svi: SVI, batch: Batch) -> str:
    """Return what a chain within the guide says, whose checks are off in training."""
    try:
        with pyro.validation_enabled(True):
            svi.evaluate(batch)
    except ChainError as error:
        return str(error)
    except Exception:  # noqa: BLE001 -- whatever else is wrong is looked for site by site
        return ""
    return ""


def _faults(owner: str, nodes: dict[str, dict]) -> list[str]:
    lines = []
    for name, site in nodes.items():
        if site["type"] != "sample":
            continue
        for what, value in (("value", site["value"]), ("log probability", site["log_prob"])):
            if isinstance(value, Tensor) and not value.isfinite().all():
                lines.append(f"site {name!r} of the {owner}: its {what} is not finite")
                break
    return lines


def _term(svi: SVI, batch: Batch) -> str:
    """Return which recorded term of the objective is not finite."""
    if not isinstance(svi.loss, Objective):
        return ""
    with local_parameters():
        svi.loss.loss(svi.model, svi.guide, batch)
    bad = [name for name, value in svi.loss.record.items() if not math.isfinite(float(value))]
    return f"term {', '.join(bad)}" if bad else ""
