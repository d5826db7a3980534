"""The Epanechnikov kernel as a distribution, with its KL divergences."""

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Normal, Uniform, constraints, register_kl
from torch.distributions.utils import broadcast_all

__all__ = ["Epanechnikov", "standard_draws"]

EDGE = 1e-7  # of the uniform numbers: 0 is drawn once in 1.7e7 float32 draws, and has density 0


class Epanechnikov(dist.TorchDistribution):
    """The parabola on an interval: compact support, pathwise gradients, exact KL.

        q(z) = 3 / (4 r) (1 - t^2),  t = (z - m) / r in [-1, 1]
        mean m,  variance r^2 / 5,  entropy 5/3 - ln 3 + ln r

    KL divergences to a Normal, a Uniform and another Epanechnikov are registered; to the last two
    they are infinite where the support is not within theirs.

    Args:
        loc: m, the center, in units of z.
        radius: r > 0, half the width of the support.

    Raises:
        ValueError: If a radius is not positive; from `log_prob`, if a value lies outside of the
            support by more than rounding explains.

    References:
        Epanechnikov (1969), Non-Parametric Estimation of a Multivariate Probability Density.
        Devroye, Gyorfi (1985), Nonparametric Density Estimation: The L1 View.

    Example:
        >>> q = Epanechnikov(torch.zeros(2), torch.tensor([1.0, 2.0]))
        >>> q.variance
        tensor([0.2000, 0.8000])
        >>> p = dist.Normal(torch.zeros(2), 1.0)
        >>> torch.distributions.kl_divergence(q.to_event(1), p.to_event(1))
        tensor(0.5086)
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "radius": constraints.positive}
    has_rsample = True

    def __init__(
        self, loc: Tensor | float, radius: Tensor | float, *, validate_args: bool | None = None
    ) -> None:
        self.loc, self.radius = broadcast_all(loc, radius)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Epanechnikov":
        """Return the distribution with its batch shape expanded."""
        new = self._get_checked_instance(Epanechnikov, _instance)
        new.loc, new.radius = self.loc.expand(batch_shape), self.radius.expand(batch_shape)
        super(Epanechnikov, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The interval [m - r, m + r], with what a draw's rounding may add."""
        slack = 4 * torch.finfo(self.loc.dtype).eps * (self.loc.abs() + self.radius)
        return constraints.interval(self.loc - self.radius - slack, self.loc + self.radius + slack)

    @property
    def mean(self) -> Tensor:
        """The center m."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The center m."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """A fifth of r^2."""
        return self.radius.square() / 5

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z = m + r K, with gradients dz/dm = 1 and dz/dr = K."""
        return self.loc + self.radius * standard_draws(
            self.loc, self._extended_shape(sample_shape)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ln q(z): -inf outside, and finite up to the edge."""
        if self._validate_args:
            self._validate_sample(value)
        t = (value - self.loc) / self.radius
        inside = self.support.check(value)
        parabola = ((1 - t) * (1 + t)).clamp(min=torch.finfo(t.dtype).eps)
        log_q = math.log(0.75) + parabola.log() - self.radius.log()
        return torch.where(inside, log_q, -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """Return F(z) = 1/2 + 3t/4 - t^3/4."""
        if self._validate_args:
            self._validate_sample(value)
        t = ((value - self.loc) / self.radius).clamp(-1, 1)
        return 0.5 + t * (3 - t.square()) / 4

    def icdf(self, value: Tensor) -> Tensor:
        """Return the z with F(z) = u, for u in [0, 1]."""
        return self.loc + self.radius * _standard_icdf(value)

    def entropy(self) -> Tensor:
        """Return 5/3 - ln 3 + ln r, in nats."""
        return 5 / 3 - math.log(3) + self.radius.log()


def standard_draws(like: Tensor, shape: torch.Size) -> Tensor:
    """Return draws K of the standard kernel on [-1, 1], by its inverse distribution function.

    Example:
        >>> standard_draws(torch.zeros(1), torch.Size([3])).abs().max() < 1
        tensor(True)
    """
    u = torch.rand(shape, dtype=like.dtype, device=like.device)
    return _standard_icdf(u.clamp(EDGE, 1 - EDGE))


def _standard_icdf(u: Tensor) -> Tensor:
    return 2 * (torch.asin(2 * u - 1) / 3).sin()


@register_kl(Epanechnikov, Normal)
def _kl_to_normal(q: Epanechnikov, p: Normal) -> Tensor:
    spread = ((q.loc - p.loc).square() + q.variance) / (2 * p.scale.square())
    return p.scale.log() + math.log(2 * math.pi) / 2 + spread - q.entropy()


@register_kl(Epanechnikov, Uniform)
def _kl_to_uniform(q: Epanechnikov, p: Uniform) -> Tensor:
    inside = (q.loc - q.radius >= p.low) & (q.loc + q.radius <= p.high)
    return torch.where(inside, (p.high - p.low).log() - q.entropy(), math.inf)


@register_kl(Epanechnikov, Epanechnikov)
def _kl_to_epanechnikov(q: Epanechnikov, p: Epanechnikov) -> Tensor:
    """Return -H(q) - E_q[ln p], where 1 - t^2 = (1 - t)(1 + t) under p is linear in K, twice.

    With c = (m_q - m_p) / r_p and h = r_q / r_p, 1 +- t = (1 +- c)(1 + e K), e = h / (1 +- c) up
    to the sign of K, which does not matter.
    """
    tiny = torch.finfo(q.loc.dtype).eps
    c, h = (q.loc - p.loc) / p.radius, q.radius / p.radius
    inside = c.abs() + h <= 1 + 4 * tiny
    total = 2 * math.log(2) - 5 / 3 - h.log()
    for one in (1 - c, 1 + c):
        one = one.clamp(min=tiny)
        total = total - one.log() - _mean_log_linear((h / one).clamp(max=1))
    return torch.where(inside, total.clamp(min=0), math.inf)


def _mean_log_linear(e: Tensor) -> Tensor:
    """Return E ln(1 + e K) for 0 <= e <= 1: in closed form, or by its series for e < 1/2.

    ln(1 + e) - 4/3 + 1/(2 e^2) - (1 - e)^2 (1 + 2 e) atanh(e) / (2 e^3)
    -1/2 sum_n e^(2n) / n E K^(2n),  E K^(2n) = 3 / ((2n + 1)(2n + 3))
    """
    tiny = torch.finfo(e.dtype).eps
    large, small = e.clamp(min=0.5), e.clamp(max=0.5).square()
    rest = (1 - large).clamp(min=tiny)
    atanh = (large.log1p() - rest.log()) / 2
    closed = large.log1p() - 4 / 3 + 0.5 / large.square()
    closed = closed - (1 - large).square() * (1 + 2 * large) * atanh / (2 * large**3)
    series = torch.zeros_like(small)
    for n in range(20, 0, -1):  # Horner's rule; the rest is below 1e-16
        series = small * (series - 1.5 / (n * (2 * n + 1) * (2 * n + 3)))
    return torch.where(e < 0.5, series, closed)
