"""The generalized Pareto distribution of the largest weights: how heavy is their tail?"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEAST_DRAWS = 30  # fewer leave no tail to fit
CONSTANT = 1e-5  # nats: log weights that differ by less are those of an exact guide
ATOM = 10  # draws tied at the maximum: what may lie above has less than a third of their mass
PRIOR_DRAWS, PRIOR_K = 10, 0.5  # what k is worth before the data
ENTRIES = 2**22  # of the largest tensor at once

__all__ = ["LEAST_DRAWS", "Tail", "tail_length", "tails"]


@dataclass(frozen=True)
class Tail:
    """The tail of the weights of some data, in units of each datum's largest weight.

        P(w > u + y | w > u) = (1 + k y / scale)^(-1/k)

    Attributes:
        weights: (K, n), in ascending order, ties spread out.
        k: The tail index, (n,): 0 where weights are constant or tied at their maximum, infinity
            where no Pareto distribution fits.
        fitted: (n,) Whether k is of a fit.
        scale: (n,), where fitted.
        ks: (m, n) a grid of indices, weighed by `posterior`.
        scales: (m, n), likewise.
        posterior: (m, n).
        ess: (n,) the effective number of draws, the tail smoothed where it was fitted.
    """

    weights: Tensor
    k: Tensor
    fitted: Tensor
    scale: Tensor
    ks: Tensor
    scales: Tensor
    posterior: Tensor
    ess: Tensor

    @property
    def length(self) -> int:
        """M, the number of draws in the tail."""
        return tail_length(len(self.weights))


def tail_length(num_draws: int) -> int:
    """Return how many draws make the tail: min(S / 5, 3 sqrt S), rounded up, as R's loo has it.

    Example:
        >>> tail_length(100), tail_length(1000)
        (20, 95)
    """
    return math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def tails(log_w: Tensor) -> Iterator[Tail]:
    """Fit the tail of each datum's weights, a few data at a time.

    The level of log w does not matter. Draws tied at one weight, as of a discrete latent, are
    spread evenly down to the next smaller one, which moves no draw by more than one step, and so
    leaves the index of a tail alone. Where many are tied at the maximum there is no tail: the
    weights are bounded, as far as draws can tell.

    Args:
        log_w: Log weights, (K, N), K at least 30.

    References:
        Zhang, Stephens (2009), A New and Efficient Estimation Method for the Generalized Pareto
        Distribution, Technometrics 51.
        Vehtari et al. (2024), Pareto Smoothed Importance Sampling, arXiv:1507.02646, appendix C.

    Example:
        >>> (tail,) = tails(torch.zeros(100, 3))
        >>> tail.k, tail.length
        (tensor([0., 0., 0.], dtype=torch.float64), 20)
    """
    length = tail_length(len(log_w))
    columns = max(1, ENTRIES // max(len(log_w), length * _grid_size(length)))
    for some in log_w.detach().double().cpu().split(columns, dim=1):
        yield _fit(some, length)


def _fit(log_w: Tensor, length: int) -> Tail:
    top = log_w.amax(0)
    broken = log_w.isnan().any(0) | ~top.isfinite()
    log_w = torch.where(broken, 0.0, log_w - top)
    constant = (log_w.amin(0) >= -CONSTANT) & ~broken
    bounded = ((log_w == 0).sum(0) >= min(ATOM, length)) & ~broken
    raw = log_w.exp().sort(0).values
    weights = _untied(raw)
    tail, cutoff = weights[-length:], weights[-length - 1]
    excess = tail - cutoff
    fitted = ~(broken | constant | bounded) & (excess[_quartile(length)] > excess[0])
    k, scale, ks, scales, posterior = _zhang_stephens(torch.where(fitted, excess, _ramp(length)))
    fitted &= k.isfinite()
    smooth = _smoothed(k, scale, cutoff, length)
    ess = _effective(torch.cat([raw[:-length], torch.where(fitted, smooth, raw[-length:])]))
    ess = torch.where(constant, float(len(log_w)), ess).masked_fill(broken, 0.0)
    k = torch.where(fitted, k, torch.where(constant | bounded, 0.0, math.inf))
    return Tail(weights, k, fitted, scale, ks, scales, posterior, ess)


def _zhang_stephens(excess: Tensor) -> tuple[Tensor, ...]:
    """Return k, scale, and the posterior of both on a grid, of sorted exceedances (M, n)."""
    length = len(excess)
    size = _grid_size(length)
    steps = torch.arange(size, dtype=excess.dtype)[:, None] + 0.5
    b = 1 / excess[-1] + (1 - (size / steps).sqrt()) / (3 * excess[_quartile(length)])  # (m, n)
    ks = torch.log1p(-b[:, None] * excess).mean(1)
    posterior = (length * ((-b / ks).log() - ks - 1)).softmax(0)
    at = (b * posterior).sum(0)
    k = torch.log1p(-at * excess).mean(0)
    return _shrunk(k, length), -k / at, _shrunk(ks, length), -ks / b, posterior


def _shrunk(k: Tensor, length: int) -> Tensor:
    return (length * k + PRIOR_DRAWS * PRIOR_K) / (length + PRIOR_DRAWS)


def _smoothed(k: Tensor, scale: Tensor, cutoff: Tensor, length: int) -> Tensor:
    """Return the distribution's quantiles in place of the tail's draws, none above the largest."""
    p = (torch.arange(length, dtype=k.dtype)[:, None] + 0.5) / length
    return (cutoff + scale * torch.expm1(-k * torch.log1p(-p)) / k).clamp(max=1.0)


def _effective(weights: Tensor) -> Tensor:
    return weights.sum(0).square() / weights.square().sum(0)


def _untied(weights: Tensor) -> Tensor:
    """Return sorted weights (K, n), each run of ties spread evenly above the next smaller one."""
    length = tail_length(len(weights))
    tied = (weights[-length - 1 :].diff(dim=0) == 0).any(0).nonzero().flatten().tolist()
    weights = weights.clone()
    for column in tied:
        weights[:, column] = torch.from_numpy(_spread(weights[:, column].numpy()))
    return weights


def _spread(weights: np.ndarray) -> np.ndarray:
    """Spread the ties of sorted weights, in their logarithm: that is what a tail is even in."""
    values, counts = np.unique(weights[weights > 0], return_counts=True)
    zeros = len(weights) - counts.sum()
    ranks = zeros + np.concatenate([[0], counts.cumsum()])
    logs = np.log(values)
    edges = np.concatenate([[logs[0] - np.log(2)], logs])  # the smallest has none below
    spread = np.exp(np.interp(np.arange(1, len(weights) + 1), ranks, edges))
    spread[:zeros] = 0.0
    return spread


def _ramp(length: int) -> Tensor:
    """Return exceedances that any fit digests, for data that have none."""
    return torch.arange(1, length + 1, dtype=torch.float64)[:, None]


def _quartile(length: int) -> int:
    return int(length / 4 + 0.5) - 1


def _grid_size(length: int) -> int:
    return 30 + int(math.sqrt(length))
