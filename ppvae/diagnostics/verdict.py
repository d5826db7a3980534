"""All diagnostics of a pair at once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae.diagnostics.bounds.importance import Evidence, Pareto, data_error, evidence, pareto_k
from ppvae.diagnostics.latents.latent import (
    AggregatePosterior,
    active_units,
    aggregate_posterior,
    kl_per_dimension,
)
from ppvae.protocols import Batch, Guide, Model, module_of, spaced
from ppvae.weights import WeightlessError, evaluating, log_weights, plan_of

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True)
class Verdict:
    """All that is said of one pair on one set of data.

    Attributes:
        bounds: The mean log weight, (N,), of all data together where they share a latent.
        evidence: As in `evidence`; of all data together where they share a latent.
        tail: As in `pareto_k`, likewise.
        split: As in `aggregate_posterior`; None where it does not apply.
        kl_per_dimension: (D,), as in `kl_per_dimension`; empty where it has no form.
        active: (D,) booleans, as in `active_units`; empty where data share the latent, or there
            is one.
        parameters: How many the guide has.
        size: The number of data that the weights, one each or one for all, are of.
    """

    bounds: Tensor
    evidence: Evidence
    tail: Pareto
    split: AggregatePosterior | None
    kl_per_dimension: Tensor
    active: Tensor
    parameters: int
    size: int

    @property
    def share(self) -> float:
        """What a mean over weights is multiplied by to be one per datum."""
        return len(self.bounds) / self.size

    @property
    def elbo(self) -> float:
        """The mean log weight, in nats per datum."""
        return float(self.bounds.mean()) * self.share

    @property
    def row(self) -> dict[str, float]:
        """The verdict as numbers, a row of `compare` but for what compares."""
        return {
            "elbo": self.elbo,
            "elbo_se": data_error(self.bounds) * self.share,
            "evidence": self.evidence.mean * self.share,
            "evidence_se": self.evidence.mean_standard_error * self.share,
            "evidence_data_se": self.evidence.data_standard_error * self.share,
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

    Where all data share a latent, only its weights are judged: nothing else is said per datum. Of
    one datum it is not said how data differ: active units, and errors over the data. An
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
        some = batch if plan.whole else spaced(batch, most_data)
        try:
            divergences = kl_per_dimension(model, guide, some, site=site)
        except ValueError:  # dependent coordinates under a prior that is not Normal
            pass
        try:
            split = aggregate_posterior(model, guide, some, num_particles=10)
        except WeightlessError:  # its weights are fine, but not its density at given latents
            pass
        if plan.size > 1:
            active = active_units(guide, batch, site=site)
    return Verdict(
        bounds=log_w.double().mean(0),
        evidence=evidence(log_w),
        tail=pareto_k(log_w),
        split=split,
        kl_per_dimension=divergences,
        active=active,
        parameters=_count_parameters(guide),
        size=plan.size,
    )


def _count_parameters(side: Model | Guide) -> int:
    module = module_of(side)
    return 0 if module is None else sum(p.numel() for p in module.parameters())
