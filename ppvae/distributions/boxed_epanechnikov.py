"""The Epanechnikov kernel with Uniform noise added: the draws of the paper's guide."""

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from ppvae.distributions.epanechnikov import standard_draws

__all__ = ["BoxedEpanechnikov"]


class BoxedEpanechnikov(dist.TorchDistribution):
    """The convolution of an Epanechnikov kernel with a Uniform, with its exact density.

        z = m + r K + U,  K of the standard kernel, U ~ U(-B/2, B/2)
        q(z) = (F((z - m + B/2) / r) - F((z - m - B/2) / r)) / B,  F(t) = 1/2 + 3t/4 - t^3/4

    The support [m - r - B/2, m + r + B/2] is wider than U's whatever r is: the KL divergence to
    U(-B/2, B/2) is infinite, and none is registered.

    Args:
        loc: m, the center, in units of z.
        radius: r > 0, of the kernel.
        width: B > 0, of the noise.

    Raises:
        ValueError: If a radius or a width is not positive; from `log_prob`, if a value lies
            outside of the support by more than rounding explains.

    References:
        Qin, Huang (2025), On Kernel-based Variational Autoencoder, arXiv:2405.12783.

    Example:
        >>> BoxedEpanechnikov(torch.zeros(2), torch.tensor([1.0, 2.0]), 0.1).variance
        tensor([0.2008, 0.8008])
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real,
        "radius": constraints.positive,
        "width": constraints.positive,
    }
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        radius: Tensor | float,
        width: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.radius, self.width = broadcast_all(loc, radius, width)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "BoxedEpanechnikov":
        """Return the distribution with its batch shape expanded."""
        new = self._get_checked_instance(BoxedEpanechnikov, _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(BoxedEpanechnikov, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The interval, with what a draw's rounding may add."""
        reach = self.radius + self.width / 2
        slack = 4 * torch.finfo(self.loc.dtype).eps * (self.loc.abs() + reach)
        return constraints.interval(self.loc - reach - slack, self.loc + reach + slack)

    @property
    def mean(self) -> Tensor:
        """The center m."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Of kernel and noise, r^2 / 5 + B^2 / 12."""
        return self.radius.square() / 5 + self.width.square() / 12

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z, with gradients to all three arguments."""
        shape = self._extended_shape(sample_shape)
        noise = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device) - 0.5
        return self.loc + self.radius * standard_draws(self.loc, shape) + self.width * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ln q(z): -inf outside, and finite up to the edge."""
        if self._validate_args:
            self._validate_sample(value)
        y, half = value - self.loc, self.width / 2
        low = ((y - half) / self.radius).clamp(-1, 1)
        high = ((y + half) / self.radius).clamp(-1, 1)
        # F(high) - F(low) without its cancellation
        mass = (high - low) * (3 - low.square() - low * high - high.square()) / 4
        log_q = mass.clamp(min=torch.finfo(y.dtype).eps ** 2).log() - self.width.log()
        return torch.where(self.support.check(value), log_q, -math.inf)
