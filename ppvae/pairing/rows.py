"""Whether the rows of a batch may come in another order, or in parts."""

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from ppvae.pairing.particles import log_prob
from ppvae.pairing.record import Record, Site
from ppvae.pairing.traces import (
    PairError,
    evaluating,
    is_deterministic,
    latent_sites,
    sample_sites,
)
from ppvae.protocols import (
    DATA_PLATE,
    Batch,
    Guide,
    Model,
    forked_streams,
    local_parameters,
    map_batch,
    module_of,
    modules_of,
    seeded,
)

__all__ = ["require_free_rows"]


def require_free_rows(model: Model, guide: Guide, batch: Batch, record: Record) -> None:
    """Raise if rows must keep their place: minibatches would then mix them up in silence.

    Rows belong together if an autoguide or a parameter has a factor for each datum, or if the
    model reads their order, as that of time.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: One of several minibatches.
        record: Of the pair on it.

    Raises:
        PairError: If so, with the mend.
    """
    if found := _bound(model, guide, record) or _ordered(model, guide, batch, record):
        raise PairError(
            f"{found}, so that its rows must keep their places, and minibatches would mix them "
            "up: train on all data at once, fit(..., batch_size=N), or let an index in the batch "
            "say which rows they are"
        )


def _bound(model: Model, guide: Guide, record: Record) -> str:
    """Return what belongs to one row each, in words."""
    for part in modules_of(guide):
        made = isinstance(part, AutoGuide) and part.master is None and not part.create_plates
        if made and DATA_PLATE in (part._prototype_frames or {}):
            return f"this {type(part).__name__} has a factor for each datum"
    for side, owner in ((model, "model"), (guide, "guide")):
        module = module_of(side)
        for name, parameter in module.named_parameters() if module is not None else ():
            if _has_rows(parameter, record) and _one_row_each(parameter, record):
                return f"the parameter {owner}.{name} has a row for each datum"
    return ""


def _has_rows(parameter: nn.Parameter, record: Record) -> bool:
    return parameter.requires_grad and parameter.ndim > 0 and 1 < record.size == len(parameter)


def _one_row_each(parameter: nn.Parameter, record: Record) -> bool:
    """Return whether the first and the last datum depend on the first and the last row alone."""
    with local_parameters(), torch.enable_grad():
        terms = [
            _per_row(s, record.size) for s in (*record.model.values(), *record.guide.values())
        ]
    total = sum(term for term in terms if term is not None)
    if not isinstance(total, Tensor) or not total.requires_grad:
        return False
    for row in (0, record.size - 1):
        (gradient,) = torch.autograd.grad(
            total[row], [parameter], retain_graph=True, allow_unused=True
        )
        if gradient is None:
            return False
        moved = gradient.reshape(record.size, -1).ne(0).any(1)
        if int(moved.sum()) != 1 or not bool(moved[row]):
            return False
    return True


def _per_row(site: Site, size: int) -> Tensor | None:
    """Return a site's log probability by datum, if it has one."""
    if site.role == "deterministic" or site.node["fn"].batch_shape[-1:] != (size,):
        return None
    try:
        log_p = site.node["fn"].log_prob(site.node["value"])
    except ValueError:  # a draw outside of the support
        return None
    return log_p.reshape(-1, size).sum(0)


def _ordered(model: Model, guide: Guide, batch: Batch, record: Record) -> str:
    """Return whether the model reads the order of its rows, in words."""
    order = torch.randperm(record.size, generator=seeded(0, record.size))
    with evaluating(model, guide), forked_streams():
        drawn = poutine.trace(guide).get_trace(batch)
        before = _score(model, drawn, batch)
        if before is None or not _close(before, _score(model, drawn, batch)):
            return ""  # it draws on the way, and no two runs are alike
        for name, site in latent_sites(drawn).items():
            drawn.nodes[name]["value"] = _permuted(site, order, record.size)
        shuffled = map_batch(lambda leaf: leaf[order.to(leaf.device)], batch)
        after = _score(model, drawn, shuffled)
    if after is None or _close(before, after):
        return ""
    return "the model's log probability depends on the order of the data"


def _score(model: Model, drawn: Trace, batch: Batch) -> Tensor | None:
    try:
        trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(batch)
        trace = prune_subsample_sites(trace)
        for name, site in sample_sites(trace).items():
            if not is_deterministic(site) and not site["is_observed"] and name not in drawn.nodes:
                return None
        trace.compute_log_prob()
    except Exception:  # noqa: BLE001 -- whatever the user's model says to other rows
        return None
    return log_prob(trace, 1, None)[0]


def _permuted(site: dict, order: Tensor, size: int) -> Tensor:
    """Return a latent with its rows in another order, where it has rows."""
    value, axis = site["value"], -1 - site["fn"].event_dim
    if value.ndim < -axis or value.shape[axis] != size:
        return value
    return value.index_select(value.ndim + axis, order.to(value.device))


def _close(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and torch.allclose(a, b, rtol=1e-4, atol=1e-3, equal_nan=True)
