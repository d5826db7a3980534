"""Likelihood heads: from a decoder's output to a distribution over data, all constants included.

A head is any callable `h -> Distribution` whose batch shape is h's shape, or that declares its own
events; the model calls `.to_event` for the rest. Heads with parameters are modules.
"""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.nn.functional import softplus

__all__ = [
    "Laplace",
    "Likelihood",
    "Normal",
    "bernoulli",
    "likelihood_head",
    "neutral",
    "normal_with_scale",
    "one_hot",
    "poisson",
]

Likelihood = Callable[[Tensor], dist.TorchDistribution]


def bernoulli(h: Tensor) -> dist.Bernoulli:
    """Return p(x|h) = sigmoid(h)^x (1 - sigmoid(h))^(1 - x), for x in {0, 1}.

    Example:
        >>> bernoulli(torch.zeros(2)).mean
        tensor([0.5000, 0.5000])
    """
    return dist.Bernoulli(logits=h)


def poisson(h: Tensor) -> dist.Poisson:
    """Return p(x|h) = r^x e^-r / x!, r = softplus(h) + 1e-6, for counts x = 0, 1, 2, ...

    Example:
        >>> poisson(torch.tensor([-200.0])).rate > 0
        tensor([True])
    """
    return dist.Poisson(softplus(h) + 1e-6)  # softplus underflows to a rate of 0, which has no log


def one_hot(h: Tensor) -> dist.OneHotCategorical:
    """Return p(x|h) = softmax(h)_c for x the one-hot vector of class c, in float: labels.

    Example:
        >>> one_hot(torch.zeros(4)).log_prob(torch.eye(4)[2])
        tensor(-1.3863)
    """
    return dist.OneHotCategorical(logits=h)


def normal_with_scale(
    h: Tensor, min_scale: float = 0.005, mean: Callable[[Tensor], Tensor] = torch.sigmoid
) -> dist.Normal:
    """Return p(x|h) = N(x; mean(h_1), max(sigmoid(h_2), min_scale)^2), a scale per element.

    The decoder gives twice the data's features, h_1 and h_2 one after the other on the last axis.
    The density is unbounded as scales shrink: `min_scale` is what it ends at, and part of every
    number of nats.

    Args:
        h: `(..., 2 F)`.
        min_scale: The smallest standard deviation, in the unit of the data.
        mean: Applied to h_1: the sigmoid for data in [0, 1], `nn.Identity()` for real numbers.

    References:
        Zhao et al. (2019), InfoVAE, arXiv:1706.02262: the decoder of the authors' code.

    Example:
        >>> normal_with_scale(torch.tensor([0.0, -9.0]))
        Normal(loc: tensor([0.5000]), scale: tensor([0.0050]))
    """
    loc, scale = h.chunk(2, dim=-1)
    return dist.Normal(mean(loc), scale.sigmoid().clamp(min=min_scale))


class _Scaled(nn.Module):
    """A positive scale for a location family: a buffer, or a parameter when learned."""

    def __init__(self, scale: float = 1.0, *, learned: bool = False) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale must be positive, but is {scale}")
        log_scale = torch.tensor(float(scale)).log()
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        """The scale, a 0-d tensor in the unit of the data."""
        return self.log_scale.exp()


class Normal(_Scaled):
    """p(x|h) = N(x; h, scale^2), one scale for all of x, with its log 2 pi.

        ln p(x|h) = -(x - h)^2 / (2 scale^2) - ln scale - ln(2 pi) / 2

    Args:
        scale: The standard deviation, or where learning starts, in the unit of the data.
        learned: Whether the scale is a parameter.

    Raises:
        ValueError: If `scale` is not positive.

    Example:
        >>> Normal(0.5)(torch.zeros(2)).log_prob(torch.zeros(2))
        tensor([-0.2258, -0.2258])
    """

    def forward(self, h: Tensor) -> dist.Normal:
        """Return the distribution of x."""
        return dist.Normal(h, self.scale)


class Laplace(_Scaled):
    """p(x|h) = exp(-|x - h| / scale) / (2 scale), one scale for all of x.

    Args:
        scale: The scale b (the standard deviation is sqrt(2) b), in the unit of the data.
        learned: Whether the scale is a parameter.

    Raises:
        ValueError: If `scale` is not positive.

    Example:
        >>> Laplace(1.0)(torch.zeros(2)).log_prob(torch.zeros(2))
        tensor([-0.6931, -0.6931])
    """

    def forward(self, h: Tensor) -> dist.Laplace:
        """Return the distribution of x."""
        return dist.Laplace(h, self.scale)


def likelihood_head(likelihood: str | Likelihood) -> Likelihood:
    """Return the head named by a string, or the callable itself.

    `"normal"` and `"laplace"` learn their scale, from 1; pass `Normal(0.1)` for a fixed one.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is neither a name nor callable.

    Example:
        >>> likelihood_head("bernoulli") is bernoulli
        True
    """
    if not isinstance(likelihood, str):
        if not callable(likelihood):
            raise TypeError(f"likelihood must be a name or a callable, but is {likelihood!r}")
        return likelihood
    match likelihood:
        case "bernoulli":
            return bernoulli
        case "normal":
            return Normal(learned=True)
        case "laplace":
            return Laplace(learned=True)
        case "poisson":
            return poisson
        case "one_hot":
            return one_hot
    raise ValueError(
        f"unknown likelihood {likelihood!r}: choose 'bernoulli', 'normal', 'laplace', 'poisson' "
        "or 'one_hot', or pass a callable from the decoder's output to a distribution"
    )


def neutral(p: dist.TorchDistribution, like: Tensor) -> Tensor:
    """Return a value inside the support of p, to stand where data are missing and masked.

    What is masked is scored all the same, and its gradient multiplied by zero: it must be finite.

    Args:
        p: The likelihood of the data.
        like: The data, for device and dtype.

    Example:
        >>> neutral(dist.Gamma(torch.ones(2), 1.0), torch.empty(())), neutral(
        ...     one_hot(torch.zeros(2, 3)), torch.empty(())
        ... )
        (tensor(1.), tensor([1., 0., 0.]))
    """
    support = p.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    zeros = like.new_zeros(p.event_shape)
    if support is constraints.one_hot:
        first = torch.arange(zeros.shape[-1], device=zeros.device) == 0
        return first.to(zeros).expand_as(zeros)
    return zeros if support.is_discrete else transform_to(p.support)(zeros).detach()
