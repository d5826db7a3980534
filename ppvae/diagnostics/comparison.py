"""Verdicts side by side: how far behind the best, and whether data and seeds bear that out."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppvae.diagnostics.bounds.importance import data_error
from ppvae.diagnostics.verdict import Verdict, judge
from ppvae.protocols import Batch, Guide, Model

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare", "tabulate"]

SURE = 2.0  # errors that a difference must exceed to count in the ranking
Pair = tuple[Model, Guide]


def compare(
    guides: Mapping[str, Guide | Pair | Sequence[Pair]],
    model: Model | None,
    batch: Batch,
    **kwargs,
) -> "pd.DataFrame":
    """Judge several guides on the same data, a row each.

    Columns, in nats per datum where they are nats: `elbo`; `evidence`, the importance-weighted
    estimate with K particles; `k_bad`, the share of data with Pareto k > 0.7; `ess`, the median
    effective number of draws; `kl`; `mutual_information`; `active_units`; `parameters`, the
    guide's. NaN where a column has no meaning: see `judge`. Where a model's density is not
    normalized, `unnormalized` says why: its evidence lacks ln Z.

    Three kinds of error. `evidence_se` is of Monte Carlo, the data given. `elbo_se` and
    `evidence_data_se` are of the mean over other data of the same kind. `elbo_difference` and
    `evidence_difference` are to the best guide by that number, datum by datum on the same data,
    so that what makes all data hard cancels, with the errors `..._se`. `best_rank` and
    `worst_rank` say which places by evidence are left open: one guide is ahead of another where
    their difference exceeds twice its error, and has one sign in all seeds.

    Args:
        guides: Guides by name, or (model, guide) pairs where each was trained with its own model,
            or lists of such pairs, one for each seed: columns are then means over the seeds,
            differences are within seeds, their errors hold the spread over the seeds, and
            `elbo_seed_sd` and `evidence_seed_sd` are added.
        model: The model of those given without one.
        batch: Held-out data x, (N, ...).
        **kwargs: As in `judge`.

    Raises:
        WeightlessError: If a guide has no density, in words.
        ValueError: If there are no guides, or a guide comes without a model.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 2))
        >>> compare({"exact": Exact(model)}, model, torch.zeros(5, 3))["k_bad"].item()
        0.0
    """
    pairs = {name: _pairs(name, entry, model) for name, entry in guides.items()}
    return tabulate(
        {
            name: [judge(of, guide, batch, **kwargs) for of, guide in some]
            for name, some in pairs.items()
        }
    )


def tabulate(verdicts: Mapping[str, Sequence[Verdict]]) -> "pd.DataFrame":
    """Return verdicts on the same data as the table of `compare`.

    Args:
        verdicts: By guide, one for each seed.

    Raises:
        ValueError: If there are none.

    Example:
        >>> tabulate({})
        Traceback (most recent call last):
        ...
        ValueError: there are no guides to compare: give at least one, by name
    """
    import pandas as pd

    if not verdicts or not all(verdicts.values()):
        raise ValueError("there are no guides to compare: give at least one, by name")
    rows = {name: _mean([v.row for v in some]) for name, some in verdicts.items()}
    for number, of in (("elbo", _bounds), ("evidence", _evidence)):
        best = max(rows, key=lambda name: rows[name][number])
        for name, row in rows.items():
            mean, error, _ = _difference(verdicts[name], verdicts[best], of)
            row[f"{number}_difference"], row[f"{number}_difference_se"] = mean, error
            if max(map(len, verdicts.values())) > 1:
                row[f"{number}_seed_sd"] = _spread([v.row[number] for v in verdicts[name]])
    for name, row in rows.items():
        others = [_difference(verdicts[name], some, _evidence) for some in verdicts.values()]
        row["best_rank"] = 1 + sum(_behind(*other) for other in others)
        row["worst_rank"] = len(rows) - sum(_behind(-m, e, -each) for m, e, each in others)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("guide")
    notes = [some[0].evidence.note for some in verdicts.values()]
    return table.assign(unnormalized=notes) if any(notes) else table


def _bounds(verdict: Verdict) -> tuple[Tensor, Tensor, Tensor]:
    """Return bounds, their biases and squared Monte Carlo errors, (N,) each."""
    nothing = torch.zeros_like(verdict.bounds)
    return verdict.bounds, nothing, nothing


def _evidence(verdict: Verdict) -> tuple[Tensor, Tensor, Tensor]:
    found = verdict.evidence
    return found.log_evidence, found.bias, found.standard_error.square()


def _difference(
    some: Sequence[Verdict], others: Sequence[Verdict], of: object
) -> tuple[float, float, Tensor]:
    """Return the mean difference, its error, and the differences by seed.

    error^2 = var_n(mean_s d_sn) / N + var_s(mean_n d_sn) / S + bias^2
    """
    if some is others:
        return 0.0, 0.0, torch.zeros(len(some))
    pairs = list(zip(some, others, strict=False))
    share = pairs[0][0].share
    if len(pairs[0][0].bounds) == len(pairs[0][1].bounds) > 1:
        parts = [(a - b for a, b in zip(of(one), of(two), strict=True)) for one, two in pairs]
        values, biases, _ = (torch.stack(part) for part in zip(*parts, strict=True))  # (S, N)
        error, seeds = data_error(values.mean(0), biases.mean(0)), values.mean(1)
    else:  # nothing to pair, or no spread over data: the data given
        seeds, error = _unpaired(pairs, of)
        share = 1.0
    across = _spread(seeds.tolist()) / math.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
    return float(seeds.mean()) * share, math.hypot(error, across) * share, seeds


def _unpaired(pairs: list[tuple[Verdict, Verdict]], of: object) -> tuple[Tensor, float]:
    """Return differences of means per datum, by seed, and their Monte Carlo error."""
    means = [[float(of(v)[0].sum()) / v.size for v in pair] for pair in pairs]
    squares = [float(of(v)[2].sum()) / v.size**2 for pair in pairs for v in pair]
    return torch.tensor(means).diff(dim=1)[:, 0].neg(), math.sqrt(sum(squares)) / len(pairs)


def _behind(mean: float, error: float, seeds: Tensor) -> bool:
    return mean < -SURE * error and bool((seeds < 0).all())


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _spread(values: list[float]) -> float:
    return float(torch.tensor(values).std()) if len(values) > 1 else math.nan


def _pairs(
    name: str, entry: Guide | Pair | Sequence[Pair], model: Model | None
) -> list[tuple[Model, Guide]]:
    if isinstance(entry, list):
        return [pair for part in entry for pair in _pairs(name, part, model)]
    of, guide = entry if isinstance(entry, tuple) else (model, entry)
    if of is None:
        raise ValueError(f"the guide {name!r} has no model: pass model, or a (model, guide) pair")
    return [(of, guide)]
