"""Discrete sites of the model that are summed out exactly, with Pyro's plated contractions."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
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


def collapsed(
    model: Callable[[Batch], None], guide_trace: Trace, batch: Batch, drawn: Trace
) -> Trace:
    """Return the model's trace with sum_a p(a) p(x|a) in place of the sites that it is made of.

    The first site that depends on what is summed out bears the sum's log probability, of shape
    (K, N) or (K, 1): the plates that all summed sites lie in. The others bear none.

    Args:
        model: Under particles.
        guide_trace: The guide's, to replay the model on.
        batch: x, `(N, ...)`.
        drawn: Its trace, where what is to be summed out was drawn: it tells how many axes there
            are.

    References:
        Obermeyer et al. (2019), Tensor Variable Elimination for Plated Factor Graphs,
        arXiv:1902.03210.
    """
    axes = [len(s["fn"].batch_shape) for s in drawn.nodes.values() if _is_law(s)]
    first = -1 - max(1, *axes)
    replayed = poutine.replay(poutine.enum(model, first_available_dim=first), trace=guide_trace)
    trace = prune_subsample_sites(poutine.trace(replayed).get_trace(batch))
    trace.compute_log_prob()
    trace.pack_tensors()
    sites = {name: site for name, site in trace.nodes.items() if _is_law(site)}
    summed = {name: sites[name] for name in enumerated_sites(trace, guide_trace)}
    symbols = {s["infer"]["_enumerate_symbol"] for s in summed.values()}
    involved = {
        n: s for n, s in sites.items() if symbols & set(s["packed"]["log_prob"]._pyro_dims)
    }
    plates = frozenset.intersection(*(_plates(s) for s in summed.values()))
    log_p = _contracted(trace, involved, symbols, plates)
    _bear(trace, summed, involved, log_p, plates)
    return trace


def _contracted(
    trace: Trace, sites: dict[str, dict], symbols: set[str], plates: frozenset[str]
) -> Tensor:
    """Return the log of the sum over `symbols` of the product of all sites, unscaled."""
    tree: OrderedDict = OrderedDict()
    for site in sites.values():
        part = site["packed"]
        term = packed.scale_and_mask(part["unscaled_log_prob"], mask=part["mask"])
        ordinal = frozenset(trace.plate_to_symbol[name] for name in _plates(site))
        tree.setdefault(ordinal, []).append(term)
    target = frozenset(trace.plate_to_symbol[name] for name in plates)
    return packed.unpack(contract_to_tensor(tree, symbols, target), trace.symbol_to_dim)


def _bear(
    trace: Trace,
    summed: dict[str, dict],
    involved: dict[str, dict],
    log_p: Tensor,
    plates: frozenset[str],
) -> None:
    """Give the sum to one site, and leave the others without."""
    rest = [name for name in involved if name not in summed] or list(summed)
    bearer = trace.nodes[rest[0]]
    bearer["cond_indep_stack"] = tuple(f for f in bearer["cond_indep_stack"] if f.name in plates)
    for frame in bearer["cond_indep_stack"]:
        if frame.size > 0 and frame.full_size not in (None, frame.size):
            log_p = log_p * (frame.full_size / frame.size)
    bearer["log_prob"] = log_p
    for name in rest[1:]:
        trace.nodes[name]["log_prob"] = torch.zeros_like(log_p)
    for name in summed:
        if name != rest[0]:
            trace.remove_node(name)


def _plates(site: dict) -> frozenset[str]:
    return frozenset(frame.name for frame in site["cond_indep_stack"] if frame.vectorized)


def _is_law(site: dict) -> bool:
    return site["type"] == "sample" and not site_is_subsample(site)
