"""Stein's way to compare draws with a density of known score: a discrepancy, and a direction."""

from torch import Tensor
from torch.distributions import Distribution

from ppvae.divergences.kernels import (
    Bandwidth,
    Estimator,
    mean_of_pairs,
    squared_distances,
    squared_width,
)
from ppvae.divergences.normals import prior_moments

__all__ = ["stein", "svgd"]


def stein(
    z: Tensor,
    p: Distribution | None = None,
    *,
    bandwidth: Bandwidth = None,
    estimator: Estimator = "u",
) -> Tensor:
    """Return the squared kernel Stein discrepancy of draws from a Normal, 0-d.

        D = mean_ij k_ij [x_i . x_j - r^2/g^2 + d/g^2 - r^2/g^4],  x = (z - a)/b,  r = |x_i - x_j|

    with k = exp(-r^2 / (2 g^2)). The last two terms are the trace of the kernel's second
    derivative: without them it is no discrepancy, and least away from the prior.

    Args:
        z: `(..., N, d)`, draws of the guide. Axes before these are particles, then the mean.
        p: p(z), `Normal(a, b).to_event(1)`, one for all data; None for N(0, I).
        bandwidth: g, in units of b, by default sqrt(d); "author" for 2 g^2 = d^2.
        estimator: "u" leaves out i = j and is unbiased, so at times negative; "v" keeps them, and
            is (d + d/g^2)/N in the mean at equality.

    Raises:
        TypeError: If p is not a factorized Normal.
        ValueError: If p differs between data, an option is unknown or not positive, or "u" meets a
            batch of one.

    References:
        Liu, Lee, Jordan (2016), A Kernelized Stein Discrepancy, arXiv:1602.03253, theorem 3.6.

    Example:
        >>> z = torch.randn(200, 5)
        >>> bool(stein(z).abs() < 0.1 < stein(z / 2))
        True
    """
    x = _in_units_of(p, z)
    d = x.shape[-1]
    g2 = squared_width(bandwidth, d)
    r2 = squared_distances(x, x)
    terms = x @ x.mT - r2 / g2 + d / g2 - r2 / g2**2
    return mean_of_pairs((r2 / (-2 * g2)).exp() * terms, estimator).mean()


def svgd(z: Tensor, p: Distribution | None = None, *, bandwidth: Bandwidth = None) -> Tensor:
    """Return zero, with the gradient of Stein's variational descent from draws to a Normal, 0-d.

        -mean_i stopgrad(phi(x_i)) . x_i,  phi(x) = mean_j k(x_j, x) (-x_j) + grad_{x_j} k(x_j, x)

    with x = (z - a)/b, and k as in `stein`. A direction, smoothed from that of KL(q(z) || p(z)):
    there is no value to report. A mean over data where the paper sums, as losses here are per
    datum.

    Args:
        z: As in `stein`.
        p: As in `stein`.
        bandwidth: As in `stein`.

    Raises:
        TypeError: If p is not a factorized Normal.
        ValueError: If p differs between data, or the bandwidth is not positive.

    References:
        Liu, Wang (2016), Stein Variational Gradient Descent, arXiv:1608.04471, equation 8.

    Example:
        >>> z = torch.full((3, 1), 2.0, requires_grad=True)
        >>> svgd(z).backward(); z.grad.flatten()  # toward 0, a third of the way each
        tensor([0.6667, 0.6667, 0.6667])
    """
    x = _in_units_of(p, z)
    fixed, g2 = x.detach(), squared_width(bandwidth, x.shape[-1])
    k = (squared_distances(fixed, fixed) / (-2 * g2)).exp()  # symmetric
    # the kernel's gradient by x_j is k (x_i - x_j) / g^2
    total = (fixed * k.sum(-1, keepdim=True) - k @ fixed) / g2 - k @ fixed
    loss = -(total / x.shape[-2] * x).sum(-1).mean()
    return loss - loss.detach()


stein.score = svgd.score = True  # take draws of the guide, and the prior itself


def _in_units_of(p: Distribution | None, z: Tensor) -> Tensor:
    if p is None:
        return z
    a, b = prior_moments(p)
    return (z - a) / b
