"""Discrete sites of the model that are summed out exactly, with Pyro's plated contractions."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppvae.protocols import Batch

__all__ = ["collapsed", "enumerated_sites"]


def enumerated_sites(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """Return the model's sites that are marked to be summed out: those that the guide lacks."""
    return [
        name
        for name, site in model_trace.nodes.items()
        if _is_law(site)
        and not site["is_observed"]
        and site["infer"].get("enumerate") == "parallel"
        and name not in guide_trace.nodes
    ]


def collapsed(replayed: Callable[[Batch], None], batch: Batch, drawn: Trace) -> Trace:
    """Return the model's trace with sum_a p(a) p(x|a) in place of the sites that it is made of.

    The first site that depends on what is summed out bears the sum's log probability, of shape
    (K, N) or (K, 1): the plates that all summed sites lie in. The others bear none.

    Args:
        replayed: The model, replayed on a guide's trace, under particles.
        batch: x, `(N, ...)`.
        drawn: Its trace, where what is to be summed out was drawn: it tells how many axes there
            are.

    References:
        Obermeyer et al. (2019), Tensor Variable Elimination for Plated Factor Graphs,
        arXiv:1902.03210.
    """
    axes = [len(s["fn"].batch_shape) for s in drawn.nodes.values() if _is_law(s)]
    first = -1 - max(1, *axes)
    trace = poutine.trace(poutine.enum(replayed, first_available_dim=first)).get_trace(batch)
    trace.compute_log_prob()
    trace.pack_tensors()
    sites = {name: site for name, site in trace.nodes.items() if _is_law(site)}
    summed = {n: s for n, s in sites.items() if s["infer"].get("_enumerate_dim") is not None}
    symbols = {s["infer"]["_enumerate_symbol"] for s in summed.values()}
    involved = {
        n: s for n, s in sites.items() if symbols & set(s["packed"]["log_prob"]._pyro_dims)
    }
    target = frozenset.intersection(*(_ordinal(s) for s in summed.values()))
    log_p = _contracted(involved, symbols, target, trace.symbol_to_dim)
    _bear(trace, summed, involved, log_p, target)
    return trace


def _contracted(
    sites: dict[str, dict], symbols: set[str], target: frozenset, dims: dict[str, int]
) -> Tensor:
    """Return the log of the sum over `symbols` of the product of all sites, unscaled."""
    tree: OrderedDict = OrderedDict()
    for site in sites.values():
        part = site["packed"]
        term = packed.scale_and_mask(part["unscaled_log_prob"], mask=part["mask"])
        tree.setdefault(_ordinal(site), []).append(term)
    return packed.unpack(contract_to_tensor(tree, symbols, target), dims)


def _bear(
    trace: Trace,
    summed: dict[str, dict],
    involved: dict[str, dict],
    log_p: Tensor,
    target: frozenset,
) -> None:
    """Give the sum to one site, and leave the others without."""
    rest = [name for name in involved if name not in summed] or list(summed)
    factor = 1.0
    for frame in target:
        if frame.size > 0 and frame.full_size not in (None, frame.size):
            factor *= frame.full_size / frame.size
    bearer = trace.nodes[rest[0]]
    bearer["log_prob"] = log_p * factor
    bearer["cond_indep_stack"] = tuple(f for f in bearer["cond_indep_stack"] if f in target)
    for name in rest[1:]:
        trace.nodes[name]["log_prob"] = torch.zeros_like(log_p)
    for name in summed:
        if name != rest[0]:
            trace.remove_node(name)


def _is_law(site: dict) -> bool:
    return site["type"] == "sample" and not site_is_subsample(site)


def _ordinal(site: dict) -> frozenset:
    return frozenset(frame for frame in site["cond_indep_stack"] if frame.vectorized)
