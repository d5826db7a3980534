"""Verdicts on a pair: how good is the bound, can its weights be trusted, what does the latent hold?

Two kinds of input. What weights tell (`evidence`, `pareto_k`) takes the `(K, N)` of `log_weights`, so
that they are computed once. What the latent tells takes the pair itself. Nothing here trains:
parameters, buffers and modes are left as they were.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae.divergences import kl_per_coordinate
from ppvae.objectives import Terms, log_mean_exp
from ppvae.protocols import Batch, Guide, Model, batch_size, map_batch
from ppvae.weights import (
    evaluating,
    latent_sites,
    log_weights,
    pairwise_log_density,
    refuse_weightless,
    trace_pair,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "AggregatePosterior",
    "Evidence",
    "Pareto",
    "Verdict",
    "active_units",
    "aggregate_posterior",
    "compare",
    "evidence",
    "judge",
    "kl_per_dimension",
    "mutual_information",
    "pareto_k",
    "pareto_threshold",
]


@dataclass(frozen=True)
class Evidence:
    """An importance-weighted estimate of ln p(x), per datum and on average, in nats.

    Attributes:
        log_evidence: The estimate, (N,).
        standard_error: Its Monte Carlo standard error, (N,).
        num_particles: K.
    """

    log_evidence: Tensor
    standard_error: Tensor
    num_particles: int

    @property
    def mean(self) -> float:
        """The mean over the data."""
        return float(self.log_evidence.mean())

    @property
    def mean_standard_error(self) -> float:
        """The Monte Carlo standard error of the mean; that of sampling the data is not in it."""
        return float(self.standard_error.square().sum().sqrt() / len(self.standard_error))

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.mean_standard_error:.4f} nats (K = {self.num_particles})"


def evidence(log_w: Tensor) -> Evidence:
    """Estimate the log evidence by importance sampling.

        ln p(x) >= E[ln 1/K sum_k w_k],   standard error by the delta method: sd(w) / (sqrt(K) mean(w))

    Biased low by about var(w) / (2 K mean(w)^2). Neither can be trusted where `pareto_k` exceeds its
    threshold: the largest weights may not have been met yet.

    Args:
        log_w: Log weights, (K, N), of `log_weights`; K at least 2.

    Raises:
        ValueError: If they are not (K, N) with K >= 2.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.

    Example:
        >>> print(evidence(torch.zeros(10, 5)))
        0.0000 +- 0.0000 nats (K = 10)
    """
    _require_weights(log_w, least=2)
    log_w = log_w.double()
    estimate = log_mean_exp(log_w)
    relative = (log_w - estimate).exp()  # w / mean(w)
    error = relative.std(0) / math.sqrt(len(log_w))
    return Evidence(estimate, error, len(log_w))


@dataclass(frozen=True)
class Pareto:
    """The tail of the importance weights, per datum.

    Attributes:
        k: The tail index, (N,): the weights have moments up to order 1/k.
        ess: The effective number of draws after Pareto smoothing, (N,).
        threshold: What k must stay below for K draws.
    """

    k: Tensor
    ess: Tensor
    threshold: float

    @property
    def share_bad(self) -> float:
        """The share of data whose k exceeds 0.7, where no practicable number of draws helps."""
        return float((self.k > 0.7).float().mean())

    @property
    def share_above_threshold(self) -> float:
        """The share of data whose k exceeds the threshold for this number of draws."""
        return float((self.k > self.threshold).float().mean())


def pareto_threshold(num_draws: int) -> float:
    """Return the k below which S draws suffice: min(1 - 1 / log10 S, 0.7).

    References:
        Vehtari et al. (2024), Pareto Smoothed Importance Sampling, arXiv:1507.02646, equation 13.

    Example:
        >>> round(pareto_threshold(1000), 3)
        0.667
    """
    return min(1 - 1 / math.log10(num_draws), 0.7)


def pareto_k(log_w: Tensor) -> Pareto:
    """Fit a generalized Pareto distribution to the tail of each datum's weights.

    Weights that are constant up to rounding, as those of an exact guide, have k = 0, and so have those
    whose whole tail is tied. A tail that no Pareto distribution fits has k = infinity.

    Args:
        log_w: Log weights, (K, N), of `log_weights`; K at least 25, better 1000.

    Raises:
        ValueError: If they are not (K, N) with K >= 25.

    References:
        Vehtari et al. (2024), Pareto Smoothed Importance Sampling, arXiv:1507.02646.

    Example:
        >>> pareto_k(torch.zeros(100, 3)).k
        tensor([0., 0., 0.], dtype=torch.float64)
    """
    from arviz_stats.base import array_stats

    _require_weights(log_w, least=25)
    columns = log_w.detach().double().cpu().numpy().T
    fits = [_tail(column, array_stats) for column in columns]
    k, ess = torch.tensor(np.array(fits)).T
    return Pareto(k, ess, pareto_threshold(len(log_w)))


def _tail(column: np.ndarray, array_stats: object) -> tuple[float, float]:
    """Return k and the effective number of draws of one datum's log weights."""
    if np.isnan(column).any() or column.max() in (np.inf, -np.inf):
        return math.inf, 0.0
    if np.ptp(column) <= 1e-5 * max(1.0, abs(column.max())):
        return 0.0, float(len(column))
    try:
        smoothed, k = array_stats.psislw(-column)  # it takes the negative log weights
    except ValueError:  # the whole tail is tied at the maximum: the weights are bounded
        weights = np.exp(column - column.max())
        return 0.0, float(weights.sum() ** 2 / (weights**2).sum())
    return math.inf if np.isnan(k) else float(k), float(1 / np.exp(2 * smoothed).sum())


@dataclass(frozen=True)
class AggregatePosterior:
    """How the mean KL splits, in nats per datum, and the draws that show it.

        E_x KL(q(z|x) || p(z)) = I_q(x; z) + KL(q(z) || p(z)),  q(z) = 1/N sum_n q(z|x_n)

    Attributes:
        kl: The left side.
        mutual_information: I_q(x; z), at most ln N.
        marginal_kl: KL(q(z) || p(z)).
        standard_error: Of the three, by their names.
        draws: Draws of q(z) by site, (K N, ...), the data in order within each of K passes.
    """

    kl: float
    mutual_information: float
    marginal_kl: float
    standard_error: dict[str, float]
    draws: dict[str, Tensor]


def aggregate_posterior(
    model: Model, guide: Guide, batch: Batch, *, num_particles: int = 1
) -> AggregatePosterior:
    """Split the mean KL into mutual information and the aggregate posterior's KL to the prior.

        I_q(x; z) ~ mean_n ln q(z_n|x_n) - ln 1/N sum_m q(z_n|x_m),   z_n ~ q(z|x_n)

    Costs N^2 densities per particle. The mixture runs over the batch given: compare guides on the same
    data only.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x), with a density.
        batch: x, (N, ...).
        num_particles: The number K of draws per datum.

    Raises:
        WeightlessError: If the guide has no density that can be evaluated at given latents.

    References:
        Hoffman, Johnson (2016), ELBO surgery, equation 9.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.zeros(3, 2))  # x tells nothing about z
        >>> split = aggregate_posterior(model, Exact(model), torch.randn(5, 3))
        >>> split.mutual_information, split.marginal_kl
        (0.0, 0.0)
    """
    shape = torch.Size((num_particles, batch_size(batch)))
    with evaluating(model, guide):
        model_trace, guide_trace = trace_pair(model, guide, batch, num_particles)
    refuse_weightless(guide_trace)
    terms = Terms(model_trace, guide_trace, shape)
    draws = {
        name: guide_trace.nodes[name]["value"].flatten(0, 1) for name in latent_sites(model_trace)
    }
    own, prior = terms.log_guide.flatten(), terms.log_prior.flatten()
    aggregate = log_mean_exp(pairwise_log_density(guide, batch, draws).T)  # (K N,)
    splits = {
        "kl": own - prior,
        "mutual_information": own - aggregate,
        "marginal_kl": aggregate - prior,
    }
    errors = {name: float(d.std() / math.sqrt(len(d))) for name, d in splits.items()}
    means = {name: float(difference.mean()) for name, difference in splits.items()}
    return AggregatePosterior(**means, standard_error=errors, draws=draws)


def mutual_information(
    model: Model, guide: Guide, batch: Batch, *, num_particles: int = 1
) -> float:
    """Return I_q(x; z) in nats, as in `aggregate_posterior`; at most ln N.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.zeros(3, 2))
        >>> mutual_information(model, Exact(model), torch.randn(5, 3))
        0.0
    """
    split = aggregate_posterior(model, guide, batch, num_particles=num_particles)
    return split.mutual_information


def kl_per_dimension(
    model: Model, guide: Guide, batch: Batch, *, num_particles: int = 1000, site: str = "z"
) -> Tensor:
    """Return the KL of each latent dimension, averaged over the data, in nats.

        KL_d = mean_n KL(q(z_d|x_n) || p(z_d))              where guide and prior factorize
        KL_d = mean_n KL(N(m_nd, v_nd) || p(z_d))           otherwise, m and v of draws

    The second form is a lower bound on the KL of the marginal, exact for Normal ones.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, (N, ...).
        num_particles: The number of draws per datum, where draws are needed.
        site: The latent.

    Returns:
        The divergences, (D,).

    Raises:
        KeyError: If there is no such latent.
        ValueError: If the guide does not factorize and the prior is no factorized Normal.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.zeros(3, 2))
        >>> kl_per_dimension(model, Exact(model), torch.randn(5, 3)).shape
        torch.Size([2])
    """
    with evaluating(model, guide):
        model_trace, guide_trace = trace_pair(model, guide, batch)
        q, p = _latent(guide_trace, site)["fn"], _latent(model_trace, site)["fn"]
        try:
            return kl_per_coordinate(q, p).flatten(0, -2).mean(0)
        except TypeError:
            base = p.base_dist if isinstance(p, torch.distributions.Independent) else p
            if not isinstance(base, torch.distributions.Normal):
                raise ValueError(
                    f"the KL per dimension of site {site!r} has no form for a {type(q).__name__} "
                    f"guide under a {type(base).__name__} prior: only its sum is known"
                ) from None
        variance, mean = torch.var_mean(_draws(guide, batch, num_particles, site), dim=0)
        moments = dist.Normal(mean, variance.sqrt())
        return torch.distributions.kl_divergence(moments, base).flatten(0, -2).mean(0)


def active_units(
    guide: Guide,
    batch: Batch,
    *,
    threshold: float = 0.01,
    num_particles: int = 100,
    site: str = "z",
) -> Tensor:
    """Return which latent dimensions carry information about x.

        A_d = Cov_x(E_q[z_d|x]) > threshold

    The means are taken over draws, and what their noise adds to the covariance is subtracted.

    Args:
        guide: Samples q(z | x).
        batch: x, (N, ...), N at least 2.
        threshold: In units of z squared.
        num_particles: The number of draws per datum, at least 2.
        site: The latent.

    Returns:
        Booleans, (D,); `.sum()` counts the active units.

    Raises:
        KeyError: If there is no such latent.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance Weighted Autoencoders, section 5.1.2.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.tensor([[3.0, 0.0]]))
        >>> active_units(Exact(model), torch.linspace(-3, 3, 20)[:, None])
        tensor([ True, False])
    """
    with evaluating(guide):
        variance, mean = torch.var_mean(_draws(guide, batch, num_particles, site), dim=0)
    noise = variance.mean(0) / num_particles
    return mean.var(0) - noise > threshold


@dataclass(frozen=True)
class Verdict:
    """All that is said of one pair on one set of data.

    Attributes:
        elbo: The mean log weight, in nats per datum.
        evidence: As in `evidence`.
        tail: As in `pareto_k`.
        split: As in `aggregate_posterior`.
        kl_per_dimension: (D,), as in `kl_per_dimension`; empty where it has no form.
        active: (D,) booleans, as in `active_units`.
        parameters: How many the guide has.
    """

    elbo: float
    evidence: Evidence
    tail: Pareto
    split: AggregatePosterior
    kl_per_dimension: Tensor
    active: Tensor
    parameters: int

    @property
    def row(self) -> dict[str, float]:
        """The verdict as numbers, a row of `compare`."""
        return {
            "elbo": self.elbo,
            "evidence": self.evidence.mean,
            "evidence_se": self.evidence.mean_standard_error,
            "k_bad": self.tail.share_bad,
            "ess": float(self.tail.ess.median()),
            "kl": self.split.kl,
            "mutual_information": self.split.mutual_information,
            "active_units": int(self.active.sum()),
            "parameters": self.parameters,
        }


def judge(
    model: Model,
    guide: Guide,
    batch: Batch,
    *,
    num_particles: int = 1000,
    most_data: int = 1000,
    site: str = "z",
) -> Verdict:
    """Judge one pair by every diagnostic here.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x), with a density.
        batch: Held-out data x, (N, ...).
        num_particles: The number K of draws per datum that weights are computed of.
        most_data: How many data, the first of the batch, the KL is split on, since that costs N^2.
        site: The latent to look at per dimension.

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
    some = map_batch(lambda leaf: leaf[:most_data], batch)
    try:
        divergences = kl_per_dimension(model, guide, some, site=site)
    except ValueError:  # dependent coordinates under a prior that is not Normal
        divergences = torch.empty(0)
    return Verdict(
        elbo=float(log_w.mean()),
        evidence=evidence(log_w),
        tail=pareto_k(log_w),
        split=aggregate_posterior(model, guide, some, num_particles=10),
        kl_per_dimension=divergences,
        active=active_units(guide, batch, site=site),
        parameters=_count_parameters(guide),
    )


def compare(
    guides: Mapping[str, Guide | tuple[Model, Guide]], model: Model | None, batch: Batch, **kwargs
) -> "pd.DataFrame":
    """Judge several guides on the same data, a row each.

    Columns, in nats per datum where they are nats: `elbo`; `evidence` and `evidence_se`, the
    importance-weighted estimate with K particles and its Monte Carlo error; `k_bad`, the share of data
    with Pareto k > 0.7; `ess`, the median effective number of draws; `kl`; `mutual_information`;
    `active_units`; `parameters`, the guide's.

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


def _count_parameters(side: Model | Guide) -> int:
    return sum(p.numel() for p in side.parameters()) if isinstance(side, nn.Module) else 0


def _draws(guide: Guide, batch: Batch, num_particles: int, site: str) -> Tensor:
    """Return draws of one latent, (K, N, D)."""
    _, guide_trace = trace_pair(lambda _: None, guide, batch, num_particles)
    return _latent(guide_trace, site)["value"]


def _latent(trace: object, site: str) -> dict:
    sites = latent_sites(trace)
    if site not in sites:
        raise KeyError(f"there is no latent {site!r}; there are {sorted(sites)}")
    return sites[site]


def _require_weights(log_w: Tensor, least: int) -> None:
    if log_w.ndim != 2 or len(log_w) < least or log_w.shape[1] == 0:
        raise ValueError(
            f"log weights of shape (K, N) with K >= {least} are due, as log_weights(model, guide, "
            f"batch, num_particles) returns them, but the shape is {tuple(log_w.shape)}"
        )
