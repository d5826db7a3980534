"""A finished MCMC for ArviZ: its draws, and the model at them."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.poutine import Trace
from torch import Tensor

from ppvae.arviz.tree import (
    VARIABLES,
    Groups,
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
from ppvae.protocols import rows_of
from ppvae.weights import CHUNK, evaluating

if TYPE_CHECKING:
    from xarray import DataTree

__all__ = ["from_pyro"]


def from_pyro(
    mcmc: MCMC,
    *,
    prior: Values | None = None,
    posterior_predictive: Values | None = None,
    log_likelihood: bool = True,
    constant_data: Values | None = None,
    coords: Names | None = None,
    dims: Names | None = None,
) -> "DataTree":
    """Return the draws of a finished `pyro.infer.MCMC`, and the model at them, for ArviZ.

    Sites are read off the model, run with the arguments of `mcmc.run`, and plates name their axes.
    Not for `StreamingMCMC`, which keeps no draws.

    Args:
        mcmc: After `mcmc.run(...)`: C chains of S draws.
        prior: P draws by site, `(P, ...)`, from `Predictive(model, num_samples=P)`: observed sites
            become prior_predictive, the others prior.
        posterior_predictive: Draws by site, `(C S, ...)`, from
            `Predictive(model, mcmc.get_samples())`.
        log_likelihood: Whether to run the model at the draws, for its deterministic sites, for
            log_likelihood (per datum) and log_prior.
        constant_data: Arrays by name which the model was given and does not observe.
        coords: Labels by dimension, such as `{"school": names}`; 0, 1, ... by default.
        dims: Names, by variable, of the axes that no plate names; `<name>_dim_0`, ... by default.

    Returns:
        posterior, sample_stats (`diverging`; acceptance rates are in its attributes),
        observed_data and the groups asked for, of dims (chain = C, draw = S, plates, event axes).

    Raises:
        ValueError: If the MCMC was not run, the log likelihood lacks a model or draws of a latent,
            or shapes, `coords` or `dims` do not fit.

    References:
        Betancourt (2017), A Conceptual Introduction to Hamiltonian Monte Carlo, arXiv:1701.02434.

    Example:
        >>> from pyro.infer import NUTS
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> mcmc = MCMC(NUTS(model), num_samples=8, warmup_steps=8, disable_progbar=True)
        >>> mcmc.run(torch.zeros(5))
        >>> dict(from_pyro(mcmc)["log_likelihood/x"].sizes)
        {'chain': 1, 'draw': 8, 'data': 5}
    """
    samples, lead = _samples(mcmc), (mcmc.num_chains, mcmc.num_samples)
    model, prior = mcmc.kernel.model, prior or {}
    if model is None and log_likelihood:
        raise ValueError(
            "log_likelihood needs the model, but the kernel was built from a potential_fn: build "
            "it from a model, or pass log_likelihood=False"
        )
    with evaluating(model), pyro.validation_enabled(False):  # draws may round to a support's edge
        run = partial(model, *mcmc._args, **mcmc._kwargs) if model is not None else None
        trace = Trace() if run is None else _at(run, first(samples))
        layouts = layouts_of(trace, samples)
        scores, note = _scores(run, samples, trace, layouts) if log_likelihood else ({}, {})
    variables = {n for n, layout in layouts.items() if layout.kind in VARIABLES} | set(samples)
    given = {
        "posterior": samples | scores.pop("posterior", {}),
        "posterior_predictive": posterior_predictive or {},
        "prior": {name: value for name, value in prior.items() if name in variables},
        "prior_predictive": {
            name: value for name, value in prior.items() if name not in variables
        },
    }
    stats, rates = _sampler(mcmc)
    groups = {group: _shaped(group, values, layouts, lead) for group, values in given.items()}
    groups |= {group: unflatten(values, lead) for group, values in scores.items()}
    groups |= {
        "sample_stats": stats,
        "observed_data": first(read(trace, layouts, ["observed"], 1)),
        "constant_data": {n: torch.as_tensor(v) for n, v in (constant_data or {}).items()},
    }
    return tree_of(groups, layouts, coords, dims, {"log_likelihood": note, "sample_stats": rates})


def _samples(mcmc: MCMC) -> dict[str, Tensor]:
    """Return the draws, `(C S, ...)` by site, chain after chain."""
    if mcmc._samples is None:
        raise ValueError("this MCMC holds no draws: call mcmc.run(...) first")
    return {name: draws.detach() for name, draws in mcmc.get_samples().items()}


def _at(run: Callable[[], None], draw: Values) -> Trace:
    trace = poutine.trace(poutine.condition(run, data=draw)).get_trace()
    trace.compute_log_prob()
    return trace


def _scores(
    run: Callable[[], None], samples: Values, trace: Trace, layouts: Layouts
) -> tuple[Groups, dict[str, str]]:
    """Return the model at all draws, `(C S, ...)`, at once if it can, and why if it cannot."""
    latent = {name for name, layout in layouts.items() if layout.kind == "latent"}
    if missing := sorted(latent - set(samples)):
        raise ValueError(
            f"log_likelihood needs draws of the sites {missing}, which the MCMC summed out or did "
            "not save: pass log_likelihood=False"
        )
    ranks = {name: len(trace.nodes[name]["fn"].batch_shape) for name in layouts}
    left = 1 + max(ranks.values())  # of the model's plates

    def together(part: Values) -> Groups:
        count = _count(part)
        padded = {  # (S, 1, ..., batch, event)
            name: value.reshape(count, *[1] * (left - 1 - ranks[name]), *value.shape[1:])
            for name, value in part.items()
        }
        return _scored(_at(pyro.plate("_draws", count, dim=-left)(run), padded), layouts, count)

    def in_turn(part: Values) -> Groups:
        draws = ({name: value[i] for name, value in part.items()} for i in range(_count(part)))
        return join([_scored(_at(run, draw), layouts, 1) for draw in draws], dim=0)

    ends = {name: value[[0, -1]] for name, value in samples.items()}
    most = max(1, CHUNK // max(prod(layout.shape) for layout in layouts.values()))
    try:
        _require_same(together(ends), in_turn(ends))
        starts = range(0, _count(samples), most)
        return join([together(rows_of(samples, start, most)) for start in starts], dim=0), {}
    except Exception as error:  # noqa: BLE001 -- whatever the user's model raises
        note = f"one draw at a time, since the model cannot take all at once: {error!r}"
        return in_turn(samples), {"note": note}


def _scored(trace: Trace, layouts: Layouts, draws: int) -> Groups:
    return {
        "posterior": read(trace, layouts, ["deterministic"], draws),
        "log_likelihood": read(trace, layouts, ["observed"], draws, "log_prob"),
        "log_prior": read(trace, layouts, ["latent"], draws, "log_prob"),
    }


def _require_same(together: Groups, in_turn: Groups) -> None:
    for group, values in in_turn.items():
        for name, value in values.items():
            if not torch.allclose(together[group][name], value, 1e-3, 1e-4, equal_nan=True):
                raise ValueError(f"all at once, site {name!r} has other numbers in {group}")


def _sampler(mcmc: MCMC) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Return what Pyro keeps of the sampler: which draws diverged, and acceptance rates."""
    diagnostics = mcmc.diagnostics()
    if "divergences" not in diagnostics:
        return {}, {}
    diverging = torch.zeros(mcmc.num_chains, mcmc.num_samples, dtype=torch.bool)
    for chain, indices in enumerate(diagnostics["divergences"].values()):
        diverging[chain, torch.tensor(indices, dtype=torch.long)] = True
    rates = list(diagnostics.get("acceptance rate", {}).values())
    return {"diverging": diverging}, {"acceptance_rate": rates}


def _shaped(group: str, given: Values, layouts: Layouts, lead: tuple[int, int]) -> dict:
    """Return draws as (chain, draw, *axes): `Predictive` pads axes and flattens chains."""
    shaped = {}
    for name, array in given.items():
        value = torch.as_tensor(array)
        ahead = (1, len(value)) if group.startswith("prior") else lead
        axes = layouts[name].shape if name in layouts else tuple(value.shape[1:])
        if value.numel() != prod(ahead) * prod(axes):
            raise ValueError(
                f"{group}: the draws of {name!r} have shape {tuple(value.shape)}, but "
                f"{(prod(ahead), *axes)} is due, with a row for each draw"
            )
        shaped[name] = value.reshape(*ahead, *axes)
    return shaped


def _count(samples: Values) -> int:
    return len(next(iter(samples.values())))
