"""The Epanechnikov kernel with Normal noise added: smooth, and of full support."""

import math
from typing import ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from ppvae.distributions.epanechnikov import standard_draws

__all__ = ["SmoothedEpanechnikov"]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)  # on [-1, 1]
WINDOW = 8.5  # standard deviations of the noise, beyond which it has 2e-17 of its mass


class SmoothedEpanechnikov(dist.TorchDistribution):
    """The convolution of an Epanechnikov kernel with a Normal, with its exact density.

        z = m + r K + s eps,  K of the standard kernel, eps ~ N(0, 1)
        q(z) = int_-1^1 3/4 (1 - t^2) N(z; m + r t, s^2) dt

    The integral has a closed form, which cancels for r << s and in the tails. Here it is taken by
    Gauss-Legendre quadrature over that part of the kernel which the noise can reach: 32 nodes,
    right to 1e-11 in float64, and a sum of positive terms. In float32 the kernel's own edge is
    rounded away once r exceeds some 1e4 s.

    No KL is registered: a bound takes `log_prob`, as `Trace_ELBO` does.

    Args:
        loc: m, the center, in units of z.
        radius: r > 0, of the kernel.
        scale: s > 0, the standard deviation of the noise.

    Raises:
        ValueError: If a radius or a scale is not positive.

    References:
        Qin, Huang (2025), On Kernel-based Variational Autoencoder, arXiv:2405.12783 (its option
        with a Normal prior, whose density it does not use).

    Example:
        >>> q = SmoothedEpanechnikov(torch.zeros(2), torch.tensor([1.0, 2.0]), 0.1)
        >>> q.log_prob(torch.tensor([0.0, 2.5]))
        tensor([ -0.2977, -20.0368])
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real,
        "radius": constraints.positive,
        "scale": constraints.positive,
    }
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        radius: Tensor | float,
        scale: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.radius, self.scale = broadcast_all(loc, radius, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "SmoothedEpanechnikov":
        """Return the distribution with its batch shape expanded."""
        new = self._get_checked_instance(SmoothedEpanechnikov, _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(SmoothedEpanechnikov, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The center m."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Of kernel and noise, r^2 / 5 + s^2."""
        return self.radius.square() / 5 + self.scale.square()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z, with gradients to all three arguments."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.radius * standard_draws(self.loc, shape) + self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ln q(z), by quadrature over the distance v s from the kernel's nearer edge.

        q(z) = 3/(4 r) int v a (2 - v a) phi(t + v) dv,  a = s / r,  t = (|z - m| - r) / s
        """
        if self._validate_args:
            self._validate_sample(value)
        a = self.scale / self.radius
        t = ((value - self.loc).abs() - self.radius) / self.scale
        beyond = t.clamp(min=0)  # the noise then decays as exp(-t v)
        reach = WINDOW**2 / ((beyond.square() + WINDOW**2).sqrt() + beyond) + (-t).clamp(min=0)
        low, high = (-t - WINDOW).clamp(min=0), torch.minimum(reach, 2 / a)
        half = (high - low).unsqueeze(-1) / 2
        nodes, weights = (  # without waiting for the device
            torch.as_tensor(each).to(t.device, t.dtype, non_blocking=True)
            for each in (NODES, WEIGHTS)
        )
        v = low.unsqueeze(-1) + half * (1 + nodes)  # (..., 32)
        kernel = (v * a.unsqueeze(-1)).log() + (2 - v * a.unsqueeze(-1)).log()
        terms = weights.log() + half.log() + kernel - (t.unsqueeze(-1) + v).square() / 2
        constant = math.log(0.75) - math.log(2 * math.pi) / 2
        return constant - self.radius.log() + terms.logsumexp(-1)
