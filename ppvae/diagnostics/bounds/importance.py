"""What the importance weights of a pair tell: the evidence, and whether to believe it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae.diagnostics.bounds.pareto import LEAST_DRAWS, tail_length, tails
from ppvae.diagnostics.bounds.tail_error import halving, shrunk, tail_error
from ppvae.objectives import log_mean_exp
from ppvae.weights import require_evidence

__all__ = [
    "LEAST_DRAWS",
    "Evidence",
    "Pareto",
    "data_error",
    "evidence",
    "pareto_k",
    "pareto_threshold",
    "upper",
]


@dataclass(frozen=True)
class Evidence:
    """An importance-weighted estimate of ln p(x), per datum and on average, in nats.

    Attributes:
        log_evidence: The estimate, (N,).
        standard_error: Its Monte Carlo standard error, (N,), the data given.
        num_particles: K.
        bias: How far the estimate lies below ln p(x) on average, (N,): noisy, for sums over data.
        variance: That of the estimate, (N,), likewise.
        note: What it lacks, where the model is unnormalized.
    """

    log_evidence: Tensor
    standard_error: Tensor
    num_particles: int
    bias: Tensor
    variance: Tensor
    note: str = ""

    @property
    def mean(self) -> float:
        """The mean over the data."""
        return float(self.log_evidence.mean())

    @property
    def mean_standard_error(self) -> float:
        """The Monte Carlo error of the mean, the data given.

            sqrt(V / N^2 + b^2)

        V is the sum of squared standard errors, or of variances, if that is less: those of many
        data know the tail better than each of them. The mean bias b does not average out. Sums of
        variances and of biases are taken with twice their error over the data.
        """
        size = len(self.variance)
        total = self.standard_error.square().sum()
        if size > 1:
            total = torch.minimum(total, size * upper(self.variance))
        return math.hypot(float(total.sqrt()) / size, float(upper(self.bias)))

    @property
    def data_standard_error(self) -> float:
        """The error of the mean over data like these, of which N were drawn; NaN for one.

        sqrt(var_n / N + b^2), b as above: estimates vary by their Monte Carlo errors, too.
        """
        return data_error(self.log_evidence, self.bias)

    def __str__(self) -> str:
        said = f"{self.mean:.4f} +- {self.mean_standard_error:.4f} nats (K = {self.num_particles})"
        return f"{said}, without ln Z: {self.note}" if self.note else said


def data_error(values: Tensor, bias: Tensor | None = None) -> float:
    """Return the error of the mean of (N,) values over data drawn anew; NaN where N = 1.

    Example:
        >>> data_error(torch.tensor([1.0, 3.0]))
        1.0
    """
    if len(values) < 2:
        return math.nan
    error = float(values.double().std()) / math.sqrt(len(values))
    return error if bias is None else math.hypot(error, float(upper(bias)))


def upper(values: Tensor) -> Tensor:
    """Return what the mean of (N,) values may be in size: with twice its error, if N > 1.

    Example:
        >>> upper(torch.tensor([1.0, -3.0]))  # a mean of -1 +- 2
        tensor(5.)
    """
    mean = values.mean().abs()
    return mean if len(values) < 2 else mean + 2 * values.std() / math.sqrt(len(values))


def evidence(log_w: Tensor) -> Evidence:
    """Estimate the log evidence by importance sampling.

        ln p(x) >= E[ln 1/K sum_k w_k]
        standard error: sd(w) / (sqrt(K) mean(w)), or that of the fitted tail where it is larger

    The first is the delta method's; it takes the largest weights met for the largest there are,
    and of intervals of 95 % only 84 % cover ln p(x) at a Pareto k of 0.6, K = 1000. From 30 draws
    on the tail's is that of draws anew of the distributions fitted to it: 95 %. Beyond k = 0.7
    neither can be trusted: what `pareto_k` flags is off by as much as its error, or more. The
    bias, var(w) / (2 K mean(w)^2) where there is a variance, is of halves of the draws.

    Args:
        log_w: Log weights, (K, N), of `log_weights`; K at least 2.

    Raises:
        ValueError: If they are not (K, N) with K >= 2.
        WeightlessError: If they are of a prior that reads the data, and bound no evidence.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.
        Vehtari et al. (2024), Pareto Smoothed Importance Sampling, arXiv:1507.02646.

    Example:
        >>> print(evidence(torch.zeros(10, 5)))
        0.0000 +- 0.0000 nats (K = 10)
    """
    _require_weights(log_w, least=2)
    require_evidence(log_w)
    note = getattr(log_w, "note", "")
    log_w = log_w.as_subclass(Tensor).double()
    estimate = log_mean_exp(log_w)
    with torch.no_grad():
        relative = (log_w - estimate).exp()  # w / mean(w)
        error = relative.std(0) / math.sqrt(len(log_w))
        k = None
        if len(log_w) >= LEAST_DRAWS:
            found = [(tail.k, tail_error(tail)) for tail in tails(log_w)]
            k, wider = (torch.cat(parts).to(log_w) for parts in zip(*found, strict=True))
            error, k = torch.maximum(error, wider), shrunk(k, tail_length(len(log_w)))
        bias, variance = halving(log_w, k)
    return Evidence(estimate, error, len(log_w), bias, variance, note)


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

    Weights that differ by less than 1e-5 of themselves, as those of an exact guide, have k = 0,
    and so have those that are tied at their maximum 10 times or more: they are bounded. Other ties
    are spread out. A tail that no Pareto distribution fits has k = infinity. The tail is of min(K
    / 5, 3 sqrt K) draws, rounded up.

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
    _require_weights(log_w, least=LEAST_DRAWS)
    fits = [(tail.k, tail.ess) for tail in tails(log_w)]
    k, ess = (torch.cat(parts) for parts in zip(*fits, strict=True))
    return Pareto(k, ess, pareto_threshold(len(log_w)))


def _require_weights(log_w: Tensor, least: int) -> None:
    if log_w.ndim != 2 or len(log_w) < least or log_w.shape[1] == 0:
        raise ValueError(
            f"log weights of shape (K, N) with K >= {least} are due, as log_weights(model, guide, "
            f"batch, num_particles) returns them, but the shape is {tuple(log_w.shape)}"
        )
