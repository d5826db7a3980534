"""Poisson counts with pathwise gradients: arrivals counted by a soft step, not a hard one."""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Poisson, constraints, register_kl
from torch.nn.functional import softplus

from ppvae.distributions.soft_steps import SoftStep, soft_step

__all__ = ["MOST_EVENTS", "Kernel", "RelaxedPoisson", "event_window", "softclamp"]

Kernel = Literal["cubic", "sigmoid", "linear", "quintic", "cosine"]

CHUNK = 2**18  # events at a time: 10 MB in float32, however many there are in all
MOST_EVENTS = 2**31  # of one draw: a minute of one core


class RelaxedPoisson(dist.Poisson):
    """Poisson counts relaxed by a temperature T, so that draws are differentiable in their rate.

        z = sum_k g((1 - t_k) / T),  t_1 < t_2 < ... arrivals of a Poisson process of rate lam
        E z = lam I1,  Var z = lam I2;  for compact kernels and T <= 1: I1 = 1, I2 = 1 - c T

    g rises from 0 to 1, so that z counts the arrivals up to t = 1, softly; T = 0 counts them. With
    u = clamp(x/2 + 1/2, 0, 1), g(x) is "linear" u, c = 1/3; "cubic" 3u^2 - 2u^3, c = 9/35;
    "quintic" 6u^5 - 15u^4 + 10u^3, c = 50/231; "cosine" (1 - cos pi u)/2, c = 1/4; "sigmoid"
    1/(1 + e^-x), with I1 = 1 + T ln(1 + e^(-1/T)): biased upward.

    **Surrogate.** `log_prob`, `mean`, `variance` and the KL are those of the counts that z stands
    for. Its own density is none of these, so that no loss of relaxed draws is a bound.

    **Sampler.** Only arrivals where g is neither 0 nor 1 matter: within 1 +- T for compact
    kernels, within 1 +- 14 T for the sigmoid, where e^-14 < 1e-6 of T lam lies beyond. Their
    number is Poisson, and they are uniform; those before are a Poisson count. No arrival is left
    out: there is no truncation. The gradient, too, is exact: the window's edges do not move with
    lam, and contribute nothing, since g is continuous there. One draw's gradient in lam is
    sum_k g'((1 - t_k)/T) t_k / (T lam): 0 where no arrival falls into the window, as in most draws
    of small rates, and I1 on average.

    **Memory.** 2 T lam events per element and draw, in chunks of which none is kept for the
    backward pass: in float32 at most 64 bytes per element of the draw, and 64 MB. The number of
    events is read back from the device once per draw, which stalls CUDA, unless `max_events`
    bounds it.

    Args:
        rate: lam > 0, in events.
        temperature: T >= 0, a number or a 0-d tensor. The number 0 means plain counts, without
            pathwise gradients; a tensor of 0 draws counts of gradient 0.
        kernel: g, by name.
        max_events: The largest number of events within the windows of all elements of a draw
            together. Draws take the time of so many, and read nothing back. A draw that has more
            is NaN as a whole, or an error under validation: never wrong in silence. `event_window`
            says how many to expect.
        straight_through: Whether z is the count itself, with the relaxed gradient: biased where
            the loss is not linear in z.
        validate_args: As in Pyro; a tensor is then checked, which stalls CUDA.

    Raises:
        ValueError: If a rate is not positive or NaN, the temperature negative, the kernel unknown;
            if a draw would have more than 2^31 events, or `max_events` is more than that; under
            validation, if it has more than `max_events`.

    References:
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473.
        A hitchhiker's guide to Poisson gradient estimation (2026), arXiv:2602.03896.

    Example:
        >>> rate = torch.tensor([0.5, 2.0, 9.0], requires_grad=True)
        >>> z = RelaxedPoisson(rate, 0.5).rsample((20000,)).mean(0)
        >>> (z - rate).abs().max() < 0.1
        tensor(True)
        >>> torch.autograd.grad(z.sum(), rate)[0].round()
        tensor([1., 1., 1.])
    """

    arg_constraints: ClassVar = {"rate": constraints.nonnegative}

    def __init__(
        self,
        rate: Tensor | float,
        temperature: Tensor | float,
        kernel: Kernel = "cubic",
        max_events: int | None = None,
        *,
        straight_through: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.kernel, self.max_events = kernel, max_events
        self.temperature, self.straight_through = temperature, straight_through
        soft_step(kernel)
        if max_events is not None and not 0 < max_events <= MOST_EVENTS:
            raise ValueError(
                f"max_events must be between 1 and 2^31, but is {max_events:,}: no memory holds, "
                "and no training waits for, more; lower the rates or the temperature"
            )
        validate = self._validate_args if validate_args is None else validate_args
        if validate:
            _require_rate(torch.as_tensor(rate))
        if validate or not isinstance(temperature, Tensor):
            _require_temperature(temperature)
        super().__init__(rate, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "RelaxedPoisson":
        """Return the distribution with its batch shape expanded."""
        new = self._get_checked_instance(RelaxedPoisson, _instance)
        new.kernel, new.max_events = self.kernel, self.max_events
        new.temperature, new.straight_through = self.temperature, self.straight_through
        return super().expand(batch_shape, _instance=new)

    @property
    def has_rsample(self) -> bool:
        """Whether T is anything but the number 0."""
        return isinstance(self.temperature, Tensor) or self.temperature != 0

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The numbers from 0 on; for T = 0 the integers among them."""
        return constraints.nonnegative if self.has_rsample else constraints.nonnegative_integer

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z, without a gradient."""
        with torch.no_grad():
            if self.has_rsample:
                return self.rsample(sample_shape)
            return torch.poisson(self.rate.expand(self._extended_shape(sample_shape)))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z, with its pathwise gradient in the rate."""
        rate = self.rate.expand(self._extended_shape(sample_shape))
        if not self.has_rsample:
            raise NotImplementedError("at T = 0 there are only counts, without pathwise gradients")
        options = _Options(self.max_events, self.straight_through)
        with torch.no_grad():
            z, slope = _draw(rate, self.temperature, soft_step(self.kernel), options)
        if self._validate_args and not z.isfinite().all():
            raise ValueError(
                f"a draw had more than max_events={self.max_events} events: raise it, as "
                "callbacks.bound_events does by what an epoch has seen, or leave it out"
            )
        return z + slope * (rate - rate.detach())  # the events are gone, their gradient is kept


def softclamp(u: Tensor, limit: float) -> Tensor:
    """Return c - softplus(c - u), a smooth min(u, c): of log rates, lam becomes lam/(1 + lam/e^c).

    Example:
        >>> softclamp(torch.tensor([5.3, 100.0]), 5.3)
        tensor([4.6069, 5.3000])
    """
    return limit - softplus(limit - u)


def event_window(kernel: Kernel, temperature: Tensor | float) -> Tensor | float:
    """Return how many events a draw has per unit of rate: min(2 R T, 1 + R T), R = 1 or 14.

    Example:
        >>> event_window("cubic", 0.25)
        0.5
    """
    reach = soft_step(kernel).reach * temperature
    clamped = reach.clamp(max=1.0) if isinstance(reach, Tensor) else min(reach, 1.0)
    return reach + clamped


def _draw(
    rate: Tensor, temperature: Tensor | float, kernel: SoftStep, options: "_Options"
) -> tuple[Tensor, Tensor]:
    """Return z, or the count that it relaxes, and dz/dlam, each of the rate's shape."""
    given = isinstance(temperature, Tensor)  # a number is not copied to the device, but filled in
    T = temperature.to(rate) if given else rate.new_full((), temperature)
    start = (1 - kernel.reach * T).clamp(min=0)  # before it g = 1
    width = 1 + kernel.reach * T - start  # after it g = 0
    T = T.clamp(min=torch.finfo(rate.dtype).tiny)
    safe = rate.nan_to_num(0.0).clamp(0.0, 1e15)  # others trap poisson; NaN comes back in dz/dlam
    z = torch.poisson(safe * start)
    number = torch.poisson(safe * width).flatten()  # (E,) of elements
    total = number.sum(dtype=torch.float64)
    size = _size(total, rate) if options.max_events is None else options.max_events
    sums = rate.new_zeros(2, len(number) + 1)  # the last takes events that pad a chunk
    for owner in _owners(number.clamp(max=MOST_EVENTS).long(), size):
        t = torch.rand(len(owner), dtype=rate.dtype, device=rate.device).mul_(width).add_(start)
        g, slope = kernel.values((1 - t) / T)
        if options.straight_through:
            g = (t <= 1).to(rate.dtype)
        sums[0].index_add_(0, owner, g)
        sums[1].index_add_(0, owner, slope.mul_(t))
    added, slope = (row[:-1].reshape(rate.shape) for row in sums)
    z += added
    if options.max_events is not None:  # what did not fit is missing somewhere
        z = torch.where(total > options.max_events, math.nan, z)
    return z, slope / T / rate


def _owners(number: Tensor, size: int) -> Iterator[Tensor]:
    """Yield for chunks of `size` events the element of each; E where there are not so many."""
    last = number.cumsum(0)  # (E,)
    for begin in range(0, size, CHUNK):
        end = min(begin + CHUNK, size)
        here = last.clamp(begin, end).sub_((last - number).clamp_(begin, end))
        here = torch.cat([here, (end - begin) - here.sum(0, keepdim=True)])
        yield torch.repeat_interleave(here, output_size=end - begin)


def _size(total: Tensor, rate: Tensor) -> int:
    """Read the number of events back, and refuse what would never end."""
    size = int(total)
    if size > MOST_EVENTS:
        raise ValueError(
            f"a draw of {float(total):.3g} events, at rates up to {float(rate.max()):.3g}, is "
            "more than the 2^31 that memory and time allow for: bound the rates, as "
            "PoissonVAE(clamp=5.3) does, or lower the temperature"
        )
    return size


def _require_rate(rate: Tensor) -> None:
    good = rate > 0  # NaN is not
    if not good.all():
        raise ValueError(
            f"rates must be positive, but {int((~good).sum())} of {rate.numel()} are not, such as "
            f"{float(rate[~good].flatten()[0])}: take exp of a log rate, and add 1e-7"
        )


def _require_temperature(temperature: Tensor | float) -> None:
    if not temperature >= 0 or math.isinf(temperature):
        raise ValueError(
            f"temperature must be finite and not negative, but is {float(temperature)}: 0 draws "
            "counts, and training goes from 1 to 0.05"
        )


class _Options(NamedTuple):
    max_events: int | None
    straight_through: bool


@register_kl(RelaxedPoisson, Poisson)
def _kl(q: RelaxedPoisson, p: Poisson) -> Tensor:
    """Return r (delta e^delta - expm1(delta)), delta = ln lam - ln r: precise near delta = 0."""
    delta = (q.rate / p.rate).log()
    return p.rate * (delta * delta.exp() - delta.expm1())
