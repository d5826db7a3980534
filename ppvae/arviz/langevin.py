"""Chains of a model's latents for ArviZ: a gold posterior, datum by datum."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppvae.arviz.tree import (
    VARIABLES,
    Groups,
    Layout,
    Layouts,
    Names,
    Values,
    first,
    join,
    layouts_of,
    read,
    tree_of,
    unflatten,
)
from ppvae.langevin import LogJoint, langevin, sample, still
from ppvae.protocols import DATA_PLATE, Batch, Model, batch_size, leaves, rows_of
from ppvae.weights import CHUNK, evaluating, particles

if TYPE_CHECKING:
    from xarray import DataTree

__all__ = ["from_langevin"]

KERNELS = ("mala", "hmc", "ula")
BIASED = (
    "unadjusted: these chains settle at another law than the posterior, wider for larger steps"
)


def from_langevin(
    model: Model,
    batch: Batch,
    *,
    kernel: str = "mala",
    chains: int = 4,
    draws: int = 1000,
    warmup: int = 500,
    step_size: float = 0.1,
    leapfrog: int = 10,
    coords: Names | None = None,
    dims: Names | None = None,
) -> "DataTree":
    """Return chains on the posterior of every datum, all walked at once, for ArviZ.

        posterior       z_csn, chain c, draw s:  p(z|x_n) but for "ula"
        sample_stats    acceptance_rate, step_size and lp = log p(x_n, z_csn) + ln |det dz/du|
        log_likelihood  log p(x_n|z_csn), and in log_prior log p(z_csn)

    lp is the density that the chain walks in, over unconstrained u, as Stan and PyMC have it too;
    log p(x_n, z_csn) itself is the sum of log_likelihood and log_prior.

    Chains start at the prior, so that R-hat sees where they fail to meet. Each datum has a step of
    its own, adapted in the warm-up. Modules run in evaluation mode, and are left as they were. Not
    for the few steps of `guides.Langevin`: R-hat of those is large even where they have settled.

    Args:
        model: Samples p(x, z), with continuous latents in plate "data".
        batch: x, `(N, ...)`: a few data, for all draws stay in memory.
        kernel: "mala", "hmc", or "ula", which accepts every move, and keeps `step_size`.
        chains: The number C of chains per datum.
        draws: The number S kept of each.
        warmup: How many come first, and are dropped.
        step_size: Where the adaptation starts, in units of the unconstrained latents.
        leapfrog: The number of leapfrog steps of "hmc", a gradient each.
        coords: Labels by dimension, such as `{"data": names}`; 0, 1, ... by default.
        dims: Names, by site, of the axes that no plate names; `<site>_dim_0`, ... by default.

    Returns:
        The groups above, observed_data and constant_data, of dims (chain = C, draw = S, data = N,
        ...).

    Raises:
        ValueError: If the batch is empty, the kernel is unknown, a number is out of range, or
            `coords` or `dims` do not fit.
        NotImplementedError: If a latent is discrete or shared by all data.
        ChainError: If the log joint is not finite at the start, or "ula" diverges.

    References:
        Vehtari et al. (2021), Rank-normalization, folding, and localization, arXiv:1903.08008.

    Example:
        >>> from ppvae.models import LinearGaussian
        >>> tree = from_langevin(
        ...     LinearGaussian(torch.ones(3, 2)), torch.zeros(5, 3), draws=20, warmup=10
        ... )
        >>> dict(tree["posterior/z"].sizes)
        {'chain': 4, 'draw': 20, 'data': 5, 'z_dim_0': 2}
    """
    size = batch_size(batch)
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {KERNELS}, but is {kernel!r}")
    for name, value, least in (("chains", chains, 1), ("draws", draws, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but is {value}")
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be positive and finite, but is {step_size}")
    joint = LogJoint(model, batch)
    with evaluating(model), still(model):
        with pyro.plate("chains", chains, dim=-2):
            start = joint.draw()
        if kernel == "ula":
            steps = [step_size] * (warmup + draws)
            u = langevin(joint, start, steps, keep_path=True).path[warmup + 1 :]  # (S, C, N, D)
            stats = {}
        else:
            steps = torch.full((size,), step_size, dtype=start.z.dtype, device=start.z.device)
            leaps = leapfrog if kernel == "hmc" else 1
            u, lp, rate, steps = sample(
                joint, start, draws, step_size=steps, warmup=warmup, leapfrog=leaps
            )
            stats = {"acceptance_rate": rate, "step_size": steps.expand_as(lp), "lp": lp}
    with evaluating(model):
        u = u.transpose(0, 1).flatten(0, 1)  # (C S, N, D), chain after chain
        groups, layouts = _read(model, batch, joint.constrain(u))
    groups = {group: unflatten(values, (chains, draws)) for group, values in groups.items()}
    groups["sample_stats"] = {n: stat.transpose(0, 1) for n, stat in stats.items()}
    observed, constant = _data(model, batch, layouts, joint.constrain(u[:1]))
    groups |= {"observed_data": observed, "constant_data": constant}
    layouts |= dict.fromkeys([*stats, *constant], Layout("constant", (DATA_PLATE,), ()))
    attrs = {"posterior": {"kernel": kernel} | ({"note": BIASED} if kernel == "ula" else {})}
    return tree_of(groups, layouts, coords, dims, attrs)


def _trace(model: Model, batch: Batch, values: Values, dim: int | None = -2) -> Trace:
    """Return the model at latents, (S, N, ...) each."""
    count = len(next(iter(values.values())))
    conditioned = poutine.condition(particles(model, count, dim), data=values)
    trace = prune_subsample_sites(poutine.trace(conditioned).get_trace(batch))
    trace.compute_log_prob()
    return trace


def _read(model: Model, batch: Batch, values: dict[str, Tensor]) -> tuple[Groups, Layouts]:
    """Return the model at all draws, (C S, ...) by group and site."""
    layouts = layouts_of(_trace(model, batch, first(values), dim=None), values)
    total, rows = len(next(iter(values.values()))), max(1, CHUNK // batch_size(batch))
    parts = []
    for begin in range(0, total, rows):
        some = rows_of(values, begin, rows)
        trace, count = _trace(model, batch, some), len(next(iter(some.values())))
        parts.append(
            {
                "posterior": read(trace, layouts, VARIABLES, count),
                "log_likelihood": read(trace, layouts, ["observed"], count, "log_prob"),
                "log_prior": read(trace, layouts, ["latent"], count, "log_prob"),
            }
        )
    return join(parts, dim=0), layouts


def _data(
    model: Model, batch: Batch, layouts: Layouts, values: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the model observes, and what else the batch holds."""
    trace = _trace(model, batch, first(values), dim=None)
    observed = first(read(trace, layouts, ["observed"], 1))
    named = leaves(batch) if isinstance(batch, Mapping) else {}
    return observed, {name: leaf for name, leaf in named.items() if name not in observed}
