"""All diagnostics of a pair at once, and of several pairs side by side."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppvae.diagnostics.bounds.importance import Evidence, Pareto, evidence, pareto_k
from ppvae.diagnostics.latents.latent import (
    AggregatePosterior,
    active_units,
    aggregate_posterior,
    kl_per_dimension,
)
from ppvae.protocols import Batch, Guide, Model, batch_size, map_batch, module_of
from ppvae.weights import WeightlessError, evaluating, log_weights, plan_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Verdict", "compare", "judge"]


@dataclass(frozen=True)
class Verdict:
    """All that is said of one pair on one set of data.

    Attributes:
        elbo: The mean log weight, in nats per datum.
        evidence: As in `evidence`; of all data together where they share a latent.
        tail: As in `pareto_k`, likewise.
        split: As in `aggregate_posterior`; None where it does not apply.
        kl_per_dimension: (D,), as in `kl_per_dimension`; empty where it has no form.
        active: (D,) booleans, as in `active_units`; empty where data share the latent.
        parameters: How many the guide has.
        size: The number of data that the weights, one each or one for all, are of.
    """

    elbo: float
    evidence: Evidence
    tail: Pareto
    split: AggregatePosterior | None
    kl_per_dimension: Tensor
    active: Tensor
    parameters: int
    size: int

    @property
    def row(self) -> dict[str, float]:
        """The verdict as numbers, a row of `compare`."""
        share = len(self.evidence.log_evidence) / self.size
        return {
            "elbo": self.elbo,
            "evidence": self.evidence.mean * share,
            "evidence_se": self.evidence.mean_standard_error * share,
            "k_bad": self.tail.share_bad,
            "ess": float(self.tail.ess.median()),
            "kl": self.split.kl if self.split else math.nan,
            "mutual_information": self.split.mutual_information if self.split else math.nan,
            "active_units": int(self.active.sum()) if len(self.active) else math.nan,
            "parameters": self.parameters,
        }


def judge(
    model: Model,
    guide: Guide,
    batch: Batch,
    *,
    num_particles: int = 1000,
    most_data: int = 1000,
    site: str | None = None,
) -> Verdict:
    """Judge one pair by every diagnostic here.

    Where all data share a latent, only its weights are judged: nothing else is said per datum. An
    autoguide with a factor per datum cannot say its density of other data, which the split needs.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x), with a density.
        batch: Held-out data x, (N, ...).
        num_particles: The number K of draws per datum that weights are computed of.
        most_data: How many data, evenly spaced over the batch, the KL is split on: that costs N^2.
        site: The latent to look at per dimension: z, or else the model's last one, by default.

    Raises:
        WeightlessError: If the guide has no density, in words.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 2))
        >>> judge(model, Exact(model), torch.zeros(5, 3)).tail.share_bad
        0.0
    """
    log_w = log_weights(model, guide, batch, num_particles)
    with evaluating(model, guide):
        plan = plan_of(model, guide, batch)
    site = site or ("z" if "z" in plan.latents else plan.latents[-1])
    split, divergences, active = None, torch.empty(0), torch.empty(0, dtype=torch.bool)
    if not plan.joint:
        some = batch if plan.whole else _spaced(batch, most_data)
        try:
            divergences = kl_per_dimension(model, guide, some, site=site)
        except ValueError:  # dependent coordinates under a prior that is not Normal
            pass
        try:
            split = aggregate_posterior(model, guide, some, num_particles=10)
        except WeightlessError:  # its weights are fine, but not its density at given latents
            pass
        active = active_units(guide, batch, site=site)
    return Verdict(
        elbo=float(log_w.sum(1).mean()) / plan.size,
        evidence=evidence(log_w),
        tail=pareto_k(log_w),
        split=split,
        kl_per_dimension=divergences,
        active=active,
        parameters=_count_parameters(guide),
        size=plan.size,
    )


def compare(
    guides: Mapping[str, Guide | tuple[Model, Guide]], model: Model | None, batch: Batch, **kwargs
) -> "pd.DataFrame":
    """Judge several guides on the same data, a row each.

    Columns, in nats per datum where they are nats: `elbo`; `evidence` and `evidence_se`, the
    importance-weighted estimate with K particles and its Monte Carlo error; `k_bad`, the share of
    data with Pareto k > 0.7; `ess`, the median effective number of draws; `kl`;
    `mutual_information`; `active_units`; `parameters`, the guide's. NaN where a column has no
    meaning: see `judge`.

    Args:
        guides: Guides by name, or (model, guide) pairs where each was trained with its own model.
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
    import pandas as pd

    if not guides:
        raise ValueError("there are no guides to compare: give at least one, by name")
    rows = {}
    for name, entry in guides.items():
        of, guide = entry if isinstance(entry, tuple) else (model, entry)
        if of is None:
            raise ValueError(
                f"the guide {name!r} has no model: pass model, or a (model, guide) pair"
            )
        rows[name] = judge(of, guide, batch, **kwargs).row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("guide")


def _spaced(batch: Batch, most: int) -> Batch:
    """Return at most so many data, from all over the batch: it may be ordered by class."""
    size = batch_size(batch)
    rows = torch.linspace(0, size - 1, min(size, most)).long()
    return map_batch(lambda leaf: leaf[rows.to(leaf.device)], batch)


def _count_parameters(side: Model | Guide) -> int:
    module = module_of(side)
    return 0 if module is None else sum(p.numel() for p in module.parameters())
