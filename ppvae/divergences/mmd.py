"""The maximum mean discrepancy between two samples."""

from typing import Literal

from torch import Tensor

from ppvae.divergences.kernels import (
    Bandwidth,
    Estimator,
    mean_of_pairs,
    squared_distances,
    squared_width,
)

__all__ = ["mmd"]

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # Tolstikhin et al.'s, of their released code


def mmd(
    z: Tensor,
    y: Tensor,
    *,
    kernel: Literal["rbf", "imq"] = "rbf",
    bandwidth: Bandwidth = None,
    estimator: Estimator = "u",
    prior_scale: float = 1.0,
) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples, 0-d.

        D = E k(z, z') - 2 E k(z, y) + E k(y, y')
        rbf: k = exp(-|z - y|^2 / (2 g^2)),  imq: k = sum_t t W / (t W + |z - y|^2), W = 2 g^2

    with t in {.1, .2, .5, 1, 2, 5, 10}. The unit is the kernel's: a value says nothing without its
    bandwidth. Not a metric, but the square of one. O(N^2) in memory.

    Args:
        z: `(..., N, d)`, usually draws of the guide, one per datum. Axes before these are
            particles: a discrepancy each, then the mean.
        y: `(..., M, d)`, usually draws of the prior.
        kernel: "rbf" or "imq", whose tails reach farther.
        bandwidth: g, in units of z: by default `prior_scale sqrt(d)`, so that 2 g^2 is the mean of
            |y - y'|^2; "author" for 2 g^2 = d^2, as in the authors' code.
        estimator: "u" leaves out the pairs of a draw with itself and is unbiased, so at times
            negative; "v" keeps them, and is too large by (1 - E k) (1/N + 1/M) at equality.
        prior_scale: The prior's standard deviation s, for the default bandwidth.

    Raises:
        ValueError: If an option is unknown or not positive, the samples differ in d, or "u" meets
            a batch of one.

    References:
        Gretton et al. (2012), A Kernel Two-Sample Test, JMLR 13, equations 3 and 5.
        Zhao et al. (2019), InfoVAE, arXiv:1706.02262. Tolstikhin et al. (2018), Wasserstein
        Auto-Encoders, arXiv:1711.01558 (imq).

    Example:
        >>> z, y = torch.randn(200, 5), torch.randn(200, 5)
        >>> bool(mmd(z, y).abs() < 0.01 < mmd(2 * z, y))
        True
    """
    if min(z.ndim, y.ndim) < 2 or z.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"mmd compares samples (..., N, d) and (..., M, d), but got {tuple(z.shape)} and "
            f"{tuple(y.shape)}"
        )
    if kernel not in ("rbf", "imq"):
        raise ValueError(f"kernel must be 'rbf' or 'imq', but is {kernel!r}")
    width = 2 * squared_width(bandwidth, z.shape[-1], prior_scale)
    k = _rbf if kernel == "rbf" else _imq
    zz, yy = (mean_of_pairs(k(squared_distances(a, a), width), estimator) for a in (z, y))
    return (zz - 2 * k(squared_distances(z, y), width).mean((-2, -1)) + yy).mean()


def _rbf(squared: Tensor, width: float) -> Tensor:
    return (squared / -width).exp()


def _imq(squared: Tensor, width: float) -> Tensor:
    return sum(t * width / (t * width + squared) for t in SCALES)
