"""The KL divergence, coordinate by coordinate."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

__all__ = ["kl_per_coordinate"]


def kl_per_coordinate(q: Distribution, p: Distribution) -> Tensor:
    """Return the KL divergence of each coordinate, in nats, where both distributions factorize.

        KL(q || p) = sum_d KL(q_d || p_d)

    Args:
        q: A distribution with independent coordinates, of event shape (D,).
        p: Another one.

    Returns:
        The divergences, `(*batch_shape, D)`.

    Raises:
        TypeError: If a distribution's coordinates are dependent, or no KL is registered for them.

    Example:
        >>> q = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).to_event(1)
        >>> kl_per_coordinate(q, dist.Normal(torch.zeros(2), 1.0).to_event(1))
        tensor([0.0000, 0.5000])
    """
    names = f"{_name(q)} and {_name(p)}"
    if not all(_factorized(d) for d in (q, p)):
        raise TypeError(f"the KL of {names} does not split over coordinates: they are dependent")
    try:
        return torch.as_tensor(kl_divergence(q.base_dist, p.base_dist))
    except NotImplementedError as error:
        raise TypeError(f"no KL is registered for {names}") from error


def _factorized(d: Distribution) -> bool:
    return isinstance(d, Independent) and d.base_dist.event_shape == ()


def _name(d: Distribution) -> str:
    return type(d.base_dist if isinstance(d, Independent) else d).__name__
