"""What divergences by kernels share: distances, widths, and means over pairs."""

import math
from typing import Literal

from torch import Tensor

__all__ = ["Bandwidth", "Estimator", "mean_of_pairs", "squared_distances", "squared_width"]

Bandwidth = float | Literal["author"] | None
Estimator = Literal["u", "v"]


def squared_width(bandwidth: Bandwidth, d: int, scale: float = 1.0) -> float:
    """Return g^2 of exp(-r^2 / (2 g^2)): d scale^2 by default, d^2 / 2 for "author".

    The default is what |z - y|^2 / 2 is in the mean for two draws of N(0, scale^2 I): g = 1 would
    see next to nothing from d = 20 on, and "author" little but the first two moments.

    Args:
        bandwidth: g, "author" or None.
        d: The number of coordinates.
        scale: The standard deviation that the default is for.

    Raises:
        ValueError: If the bandwidth or the scale is not positive, or a word but "author".

    Example:
        >>> squared_width(None, 5), squared_width("author", 5), squared_width(2.0, 5)
        (5.0, 12.5, 4.0)
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"prior_scale must be positive, but is {scale}")
    if bandwidth is None:
        return d * scale**2
    if bandwidth == "author":
        return d**2 / 2
    if isinstance(bandwidth, str) or not (bandwidth > 0 and math.isfinite(bandwidth)):
        raise ValueError(
            f"bandwidth must be a positive number g, None for sqrt(d) or 'author', but is "
            f"{bandwidth!r}"
        )
    return float(bandwidth) ** 2


def squared_distances(z: Tensor, y: Tensor) -> Tensor:
    """Return |z_i - y_j|^2, `(..., N, M)`, from `(..., N, d)` and `(..., M, d)`.

    Example:
        >>> squared_distances(torch.zeros(1, 2), torch.ones(3, 2))
        tensor([[2., 2., 2.]])
    """
    norms = z.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return (norms - 2 * z @ y.mT).clamp(min=0)  # a product of matrices: (N, M, d) is never held


def mean_of_pairs(k: Tensor, estimator: Estimator) -> Tensor:
    """Return the mean of k over pairs, `(...,)` from `(..., N, N)`: "u" without i = j, "v" with.

    Raises:
        ValueError: If the estimator is unknown, or "u" meets a batch of one.

    Example:
        >>> mean_of_pairs(torch.eye(2), "u"), mean_of_pairs(torch.eye(2), "v")
        (tensor(0.), tensor(0.5000))
    """
    if estimator not in ("u", "v"):
        raise ValueError(f"estimator must be 'u' or 'v', but is {estimator!r}")
    if estimator == "v":
        return k.mean((-2, -1))
    require_pairs(k.shape[-1])
    within = k.sum((-2, -1)) - k.diagonal(dim1=-2, dim2=-1).sum(-1)
    return within / (k.shape[-1] * (k.shape[-1] - 1))


def require_pairs(count: int) -> None:
    """Raise if a batch has no pairs of different data."""
    if count < 2:
        raise ValueError(
            "the unbiased estimator compares the data of a batch with one another, but this batch "
            "has one: leave out a rest of one, as Batches(..., drop_last=True) does, or take "
            "estimator='v', as partial(mmd, estimator='v') does"
        )
