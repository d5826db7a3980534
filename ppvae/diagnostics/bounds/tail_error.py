"""The error of a mean of heavy-tailed weights: wider than their own spread admits."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ppvae.diagnostics.bounds.pareto import Tail
from ppvae.protocols import seeded

REPETITIONS = 1024  # of the sample, of which the error is taken
SMALLEST_K, LARGEST_K = -1.0, 0.99  # beyond, the fitted weights have no mean to be off from
GRID = 80  # values of k between them
ENTRIES = 2**20  # of the largest tensor at once
SEED = 0  # of random numbers of our own: the same weights have the same error

__all__ = ["halving", "shrunk", "tail_error"]


def tail_error(tail: Tail) -> Tensor:
    """Return the root mean squared error of ln mean(w), (n,) in nats, if the fit is right.

        error^2 = E (ln 1/K sum_k w*_k - ln E w*)^2

    The samples w* are drawn anew: of K draws so many, by chance, are of the tail, a generalized
    Pareto distribution out of the posterior of its fit; the sum of the others is Normal. So the
    weights that were not met count, and so does that k is an estimate. The ordinary standard
    error knows neither, and where k exceeds 1/2 it estimates an infinite variance. Means are
    those at k = 0.99 where k is larger.

    Args:
        tail: Of `tails`; zero where nothing was fitted.

    Example:
        >>> from ppvae.diagnostics.bounds.pareto import tails
        >>> u = torch.rand(10_000, 1, dtype=torch.float64)  # w = u^-0.2: sd / mean = 0.2582
        >>> (tail,) = tails(-0.2 * u.log())
        >>> bool((100 * tail_error(tail) - 0.26).abs() < 0.04)
        True
    """
    numbers = _numbers(len(tail.weights), tail.length)
    columns = ENTRIES // REPETITIONS
    parts = torch.arange(len(tail.k)).split(columns)
    errors = torch.cat([_error(tail, some, numbers) for some in parts])
    errors = errors.nan_to_num(nan=torch.inf)  # of tails whose weights are all but nothing
    return torch.where(tail.fitted, errors, 0.0)


def halving(log_w: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return bias and variance of ln mean(w), (N,) each, as two halves of the draws tell them.

        bias(K) = [ln mean(w) - 1/2 (l_1 + l_2)] / (2^g - 1),  g = min(1, 1/k - 1)
        variance(K) = 1/2 (l_1 - l_2)^2 / 4^r,                 r = min(1/2, 1 - k)

    l_1 and l_2 are the halves' ln mean(w). The bias, down since the logarithm is concave, falls by
    K^-g and the spread by K^-r, with g = 1 and r = 1/2 where the weights have a variance. Two ways
    to halve are averaged. Both numbers are noisy per datum, and meant for sums over data.

    Args:
        log_w: Log weights, (K, N).
        k: (N,) tail indices; below 1/2 if there are none.

    Example:
        >>> halving(torch.zeros(10, 2))
        (tensor([0., 0.]), tensor([0., 0.]))
    """
    half = len(log_w) // 2
    log_w = log_w[: 2 * half]
    k = torch.zeros_like(log_w[0]) if k is None else k
    k = k.clamp(0.0, 0.9)  # nearer to 1 the rates, and what they divide by, go to 0
    both = ((log_w[:half], log_w[half:]), (log_w[::2], log_w[1::2]))
    l_1, l_2 = (torch.stack([_log_mean(pair[i]) for pair in both]) for i in (0, 1))  # (2, N)
    bias = _log_mean(log_w) - (l_1 + l_2).mean(0) / 2
    variance = (l_1 - l_2).square().mean(0) / 2
    return bias / (2 ** (1 / k - 1).clamp(max=1) - 1), variance / 4 ** (1 - k).clamp(max=0.5)


def shrunk(k: Tensor, length: int) -> Tensor:
    """Return tail indices, drawn to their mean as far as they scatter as estimates of one do.

    An index out of M draws has variance (1 + k)^2 / M.

    Args:
        k: (N,) tail indices; infinite ones count as 0.99.
        length: M, of each tail.

    References:
        Efron, Morris (1973), Stein's Estimation Rule and Its Competitors, JASA 68.

    Example:
        >>> shrunk(torch.tensor([0.5, 0.6]), 100)  # as two estimates of one index: their mean
        tensor([0.5500, 0.5500])
    """
    k = k.clamp(max=LARGEST_K)
    if len(k) < 2:
        return k
    noise, mean = (1 + k).square().mean() / length, k.mean()
    return mean + (k - mean) * (1 - noise / k.var()).clamp(min=0.0, max=1.0).nan_to_num()


class _Numbers(NamedTuple):
    """What is drawn once for all data: each has its own error, so that sharing does no harm."""

    counts: Tensor  # (B,) draws of the tail
    log_excess: Tensor  # (B, G) ln sum of (u^-k - 1) / k over them, on the grid of k
    normal: Tensor  # (B,)
    levels: Tensor  # (B,) of the posterior


@lru_cache(maxsize=8)
def _numbers(draws: int, length: int) -> _Numbers:
    stream = seeded(SEED, draws)
    share = torch.full((REPETITIONS,), length / draws, dtype=torch.float64)
    counts = torch.binomial(torch.full_like(share, draws), share, generator=stream).clamp(min=1)
    options = {"generator": stream, "dtype": torch.float64}
    exponential = -torch.rand(REPETITIONS, int(counts.max()), **options).log()
    exponential *= torch.arange(exponential.shape[1]) < counts[:, None]  # the others add nothing
    sums = torch.stack([torch.expm1(k * exponential).sum(1) / k for k in _grid()], dim=1)
    levels = (torch.randperm(REPETITIONS, generator=stream) + 0.5) / REPETITIONS
    return _Numbers(counts, sums.log(), torch.randn(REPETITIONS, **options), levels.double())


def _grid() -> Tensor:
    """Return tail indices, evenly spaced, none of them 0."""
    return torch.linspace(SMALLEST_K, LARGEST_K, GRID, dtype=torch.float64)


def _error(tail: Tail, some: Tensor, numbers: _Numbers) -> Tensor:
    """Return the error of some data, (n,)."""
    draws, length, counts = len(tail.weights), tail.length, numbers.counts[:, None]
    body, cutoff = tail.weights[:-length, some], tail.weights[-length - 1, some]
    k, scale = _posterior_draws(tail, some, numbers.levels)  # (B, n) each
    sums = (draws - counts) * body.mean(0)
    sums += (draws - counts).sqrt() * body.std(0) * numbers.normal[:, None]
    sums += counts * cutoff + _excess(k, scale, numbers)
    share = length / draws
    mean = (1 - share) * body.mean(0) + share * (cutoff + scale / (1 - k))
    return (sums / draws / mean).log().square().mean(0).sqrt()


def _excess(k: Tensor, scale: Tensor, numbers: _Numbers) -> Tensor:
    """Return the sums of what tails' draws exceed the cutoff by, (B, n), between grid points."""
    place = (k.nan_to_num(0.0) - SMALLEST_K) / (LARGEST_K - SMALLEST_K) * (GRID - 1)
    left = place.long().clamp(max=GRID - 2)
    low, high = (numbers.log_excess.gather(1, index) for index in (left, left + 1))
    return scale * torch.lerp(low, high, place - left).exp()


def _posterior_draws(tail: Tail, some: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return k and scale out of the posterior of the fit, (B, n) each."""
    cumulative = tail.posterior[:, some].cumsum(0).T.contiguous()  # (n, m)
    at = torch.searchsorted(cumulative, levels.expand(len(cumulative), -1).contiguous())
    at = at.T.clamp(max=len(tail.posterior) - 1)  # (B, n)
    k = tail.ks[:, some].gather(0, at).clamp(SMALLEST_K, LARGEST_K)
    return k, tail.scales[:, some].gather(0, at)


def _log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))
