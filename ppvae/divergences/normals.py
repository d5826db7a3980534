"""The moments of factorized Normals, for divergences that need no draws."""

from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

__all__ = ["prior_moments", "standardized"]


def standardized(q: Distribution, p: Distribution) -> tuple[Tensor, Tensor]:
    """Return the means and variances of Normals q in units of a Normal p, `(P, N, d)` each.

    P is the number of particles that differ: those that are expanded count once.

    Raises:
        TypeError: If q or p is not a factorized Normal, naming what it is.
        ValueError: If p differs between data.

    Example:
        >>> q = dist.Normal(torch.ones(3, 2), 1.0).to_event(1)
        >>> standardized(q, dist.Normal(torch.zeros(2), 2.0).to_event(1))[1].unique()
        tensor([0.2500])
    """
    (m, s), (a, b) = _moments("guide", q), prior_moments(p)
    m, v = (m - a) / b, (s / b).square()
    return m.reshape(-1, *m.shape[-2:]), v.reshape(-1, *v.shape[-2:])


def prior_moments(p: Distribution) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of a Normal prior, `(d,)` each.

    Raises:
        TypeError: If p is not a factorized Normal, naming what it is.
        ValueError: If p differs between data.

    Example:
        >>> p = dist.Normal(torch.zeros(2), 2.0).to_event(1)
        >>> prior_moments(p.expand((3,)))
        (tensor([0., 0.]), tensor([2., 2.]))
    """
    a, b = _moments("prior", p)
    return _shared(a), _shared(b)


def _moments(side: str, distribution: Distribution) -> tuple[Tensor, Tensor]:
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    if not isinstance(base, Normal) or len(distribution.event_shape) != 1:
        raise TypeError(
            f"a divergence by moments needs factorized Normals, Normal(m, s).to_event(1), but the "
            f"{side}'s distribution is {type(base).__name__} with event shape "
            f"{tuple(distribution.event_shape)}: take a divergence of draws, such as mmd"
        )
    particles = base.loc.ndim > 2 and 0 == base.loc.stride(0) == base.scale.stride(0)
    return (base.loc[0], base.scale[0]) if particles else (base.loc, base.scale)


def _shared(moment: Tensor) -> Tensor:
    """Return the one row (d,) of a prior's moment that is expanded over data."""
    while moment.ndim > 1:
        if len(moment) > 1 and moment.stride(0) != 0:
            raise ValueError(
                f"the prior's moments, of shape {tuple(moment.shape)}, may differ between data, "
                "where a divergence by moments needs one prior: give it batch shape ()"
            )
        moment = moment[0]
    return moment
