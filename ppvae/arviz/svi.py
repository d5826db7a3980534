"""A pair of model and guide for ArviZ: one chain of independent draws."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from ppvae.arviz.tree import (
    VARIABLES,
    Groups,
    Layout,
    Layouts,
    Names,
    first,
    join,
    layouts_of,
    read,
    tree_of,
    unflatten,
)
from ppvae.protocols import DATA_PLATE, Batch, Guide, Model, batch_size, leaves
from ppvae.weights import (
    CHUNK,
    Plan,
    Simulate,
    WeightlessError,
    evaluating,
    particles,
    plan_of,
    require_all_data,
    trace_pair,
    weigh,
)

if TYPE_CHECKING:
    from xarray import DataTree

__all__ = ["from_pyro_svi"]

INDEPENDENT = (
    "Draws of a guide are independent, so R-hat and ESS are perfect whatever its fit: they say "
    "nothing about it. Judge it by Pareto k of sample_stats/log_weight."
)
WEIGHTLESS = "This guide has no density, so nothing here judges its fit: log_weights says why."


def from_pyro_svi(
    model: Model,
    guide: Guide,
    batch: Batch,
    *,
    draws: int = 1000,
    coords: Names | None = None,
    dims: Names | None = None,
) -> "DataTree":
    """Return draws of a guide, and what the model makes of them, as ArviZ wants them.

        posterior             z_sn ~ q(z|x_n)
        sample_stats          log_weight_sn = log p(x_n, z_sn) - log q(z_sn|x_n)
        log_likelihood        log p(x_n|z_sn), and in log_prior log p(z_sn)
        posterior_predictive  x_sn ~ p(x|z_sn)

    and prior, prior_predictive, observed_data, constant_data. One chain of S draws, so that every
    function of ArviZ finds its axes. All of it stays in memory, 2 S N times the size of x: pass a
    few hundred data. Modules run in evaluation mode and without gradients, and are left as they
    were. As each datum has its latent, `az.loo` is a harmonic mean estimate of log p(x_n) here,
    poor where its k says so: prefer the log weights. A modality's missing row is NaN in
    observed_data, and its log_likelihood 0.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z|x). Without a density there is no sample_stats, but all the rest.
        batch: x, `(N, ...)`. What a mapping holds under no site's name becomes constant_data.
        draws: The number S of draws per datum.
        coords: Labels by dimension, such as `{"data": names}`; 0, 1, ... by default.
        dims: Names, by site, of the axes that no plate names, such as `{"x": ["row", "column"]}`;
            `<site>_dim_0`, ... by default.

    Returns:
        The groups, of dims (chain = 1, draw = S, data = N, ...). A latent outside of the data
        plate has no dim data, and makes log_weight one of all data, (chain, draw): `evidence` and
        `pareto_k` take them as `(S, 1)`. Auxiliary sites, as autoguides have them, are left out.

    Raises:
        PairError: If the two are no pair: what `check_pair` says of their sites.
        ValueError: If the batch is empty, `draws` is not positive, or `coords` or `dims` do not
            fit.

    References:
        Vehtari et al. (2024), Pareto Smoothed Importance Sampling, arXiv:1507.02646.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 2))
        >>> tree = from_pyro_svi(model, Exact(model), torch.zeros(5, 3), draws=4)
        >>> dict(tree["posterior/z"].sizes)
        {'chain': 1, 'draw': 4, 'data': 5, 'z_dim_0': 2}
    """
    size = batch_size(batch)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, but is {draws}")
    with evaluating(model, guide):
        plan = plan_of(model, guide, batch)
        require_all_data(plan, batch)
        one = _one_draw(model, guide, batch)
        layouts = _layouts(one, plan)
        blocks = [
            _block(model, guide, batch, layouts, (count, size), plan)
            for count in plan.counts(size, CHUNK, draws)
        ]
    groups = join(blocks, dim=0)
    observed_data = read(one, layouts, ["observed"], 1)
    named = leaves(batch) if isinstance(batch, Mapping) else {}
    observed = _with_holes(first(observed_data), named)
    constant = {name: leaf for name, leaf in named.items() if name not in observed}
    layouts |= dict.fromkeys(["log_weight", *constant], Layout("constant", (DATA_PLATE,), ()))
    note = INDEPENDENT if groups["sample_stats"] else WEIGHTLESS
    groups = {group: unflatten(values, (1, draws)) for group, values in groups.items()}
    groups |= {"observed_data": observed, "constant_data": constant}
    return tree_of(groups, layouts, coords, dims, {"posterior": {"note": note}})


def _with_holes(observed: dict[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what was observed, NaN again where the batch has it and the model a stand-in."""
    return {
        name: torch.where(batch[name].detach().cpu().isnan(), torch.nan, value)
        if name in batch and batch[name].shape == value.shape and value.is_floating_point()
        else value
        for name, value in observed.items()
    }


def _one_draw(model: Model, guide: Guide, batch: Batch) -> Trace:
    guide_trace = poutine.trace(guide).get_trace(batch)
    return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch)


def _layouts(one: Trace, plan: Plan) -> Layouts:
    """Return the layouts of the variables, less what is summed out and what is made of it."""
    layouts = layouts_of(one)
    summed = {n for n, layout in layouts.items() if layout.kind == "latent"} - set(plan.latents)
    left_out = ("latent", "deterministic") if summed else ()
    return {n: lay for n, lay in layouts.items() if n in plan.latents or lay.kind not in left_out}


def _block(
    model: Model,
    guide: Guide,
    batch: Batch,
    layouts: Layouts,
    shape: tuple[int, int],
    plan: Plan,
) -> Groups:
    """Return a block of draws and data, `shape` = (S, N), small enough for the device."""
    draws = shape[0]
    model_trace, guide_trace = trace_pair(model, guide, batch, draws, dim=plan.dim)
    simulate = particles(Simulate(shape[1])(model), draws, plan.dim)
    replicate = poutine.trace(poutine.replay(simulate, trace=guide_trace)).get_trace(batch)
    prior = poutine.trace(simulate).get_trace(batch)
    return {
        "posterior": read(model_trace, layouts, VARIABLES, draws),
        "sample_stats": _log_weight((model_trace, guide_trace), shape, plan),
        "log_likelihood": read(model_trace, layouts, ["observed"], draws, "log_prob"),
        "log_prior": read(model_trace, layouts, ["latent"], draws, "log_prob"),
        "posterior_predictive": read(replicate, layouts, ["observed"], draws),
        "prior": read(prior, layouts, VARIABLES, draws),
        "prior_predictive": read(prior, layouts, ["observed"], draws),
    }


def _log_weight(
    traces: tuple[Trace, Trace], shape: tuple[int, int], plan: Plan
) -> dict[str, Tensor]:
    """Return log weights `(S, N)`, or `(S,)` where data share a latent; none without density."""
    try:
        log_w = weigh(traces, shape, plan)
    except WeightlessError:
        return {}
    return {"log_weight": (log_w[:, 0] if plan.joint else log_w).cpu()}
