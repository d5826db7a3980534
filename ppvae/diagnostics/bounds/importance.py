"""What the importance weights of a pair tell: the evidence, and whether to believe it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppvae.objectives import log_mean_exp
from ppvae.weights import require_evidence

LEAST_DRAWS = 30  # fewer leave no tail to fit

__all__ = ["Evidence", "Pareto", "evidence", "pareto_k", "pareto_threshold"]


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

        ln p(x) >= E[ln 1/K sum_k w_k]
        standard error by the delta method: sd(w) / (sqrt(K) mean(w))

    Biased low by about var(w) / (2 K mean(w)^2). Neither can be trusted where `pareto_k` exceeds
    its threshold: the largest weights may not have been met yet.

    Args:
        log_w: Log weights, (K, N), of `log_weights`; K at least 2.

    Raises:
        ValueError: If they are not (K, N) with K >= 2.
        WeightlessError: If they are of a prior that reads the data, and bound no evidence.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.

    Example:
        >>> print(evidence(torch.zeros(10, 5)))
        0.0000 +- 0.0000 nats (K = 10)
    """
    _require_weights(log_w, least=2)
    require_evidence(log_w)
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

    Weights that are constant up to rounding, as those of an exact guide, have k = 0, and so have
    those whose whole tail is tied. A tail that no Pareto distribution fits has k = infinity.

    Args:
        log_w: Log weights, (K, N), of `log_weights`; K at least 30, better 1000.

    Raises:
        ValueError: If they are not (K, N) with K >= 30.

    References:
        Vehtari et al. (2024), Pareto Smoothed Importance Sampling, arXiv:1507.02646.

    Example:
        >>> pareto_k(torch.zeros(100, 3)).k
        tensor([0., 0., 0.], dtype=torch.float64)
    """
    from arviz_stats.base import array_stats

    _require_weights(log_w, least=LEAST_DRAWS)
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


def _require_weights(log_w: Tensor, least: int) -> None:
    if log_w.ndim != 2 or len(log_w) < least or log_w.shape[1] == 0:
        raise ValueError(
            f"log weights of shape (K, N) with K >= {least} are due, as log_weights(model, guide, "
            f"batch, num_particles) returns them, but the shape is {tuple(log_w.shape)}"
        )
