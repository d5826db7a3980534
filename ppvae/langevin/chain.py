"""The unadjusted chain, one backward pass a step for all chains, and what goes wrong with it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

__all__ = [
    "ChainError",
    "LogDensity",
    "Point",
    "Walk",
    "Watch",
    "first_true",
    "langevin",
    "located",
    "point",
    "require_finite",
    "widened",
]

LogDensity = Callable[[Tensor], Tensor]  # (..., N, *event) -> (..., N)

STIFF = 3.99  # s^2 times the curvature; 4 is where a Gaussian chain diverges, less rounding
FALL = 10.0  # nats per coordinate; a stable chain with 3.8 for 4 loses 9.5 at stationarity


class ChainError(FloatingPointError):
    """A chain without finite numbers, or that diverges; the message names datum and step."""


class Point(NamedTuple):
    """A state of the chain, and what the density says there.

    Attributes:
        z: (..., N, *event).
        log_p: (..., N), in nats.
        slope: d log p / dz, like z.
    """

    z: Tensor
    log_p: Tensor
    slope: Tensor


class Walk(NamedTuple):
    """Where a chain has gone.

    Attributes:
        z: The last state, (..., N, *event).
        mean: That of the last step's law, before its noise, like z.
        path: All states with the start, (K + 1, ..., N, *event), or None.
    """

    z: Tensor
    mean: Tensor
    path: Tensor | None


def langevin(
    log_density: LogDensity,
    start: Tensor | Point,
    step_sizes: Sequence[float | Tensor] | Tensor,
    *,
    noise: float | Tensor = 1.0,
    keep_path: bool = False,
) -> Walk:
    """Walk up a log density by the unadjusted Langevin algorithm.

        z_(k+1) = z_k + (s_k^2 / 2) grad log p(z_k) + T s_k eps_k,   eps_k ~ N(0, I)

    **Convention:** s has drift s^2/2 and noise s. BlackJAX's `step_size` and the short-run paper
    have drift s and noise sqrt(2 s): theirs is s^2/2. On a Gaussian of precision lam the chain
    contracts by 1 - s^2 lam / 2 a step, converges iff s^2 lam < 4, and then to the variance
    T^2 / (lam (1 - s^2 lam / 4)), not to 1 / lam.

    No gradient passes through the chain. Nothing waits for the device, unless Pyro's validation is
    on: then the states are checked.

    Args:
        log_density: Maps z, (..., N, *event), to log p(z) up to a constant, (..., N), in nats,
            such as a `LogJoint`: one value per datum and particle, that depends on no other's z.
        start: z_0, or a `Point` already evaluated.
        step_sizes: s_0, ..., s_(K-1), in units of z: numbers, or tensors of shape () or (..., N).
        noise: T; below 1 the target is cold, 0 ascends to a mode.
        keep_path: Whether to keep all states.

    Raises:
        ChainError: Under validation, if the log density or its gradient is not finite, at the
            start or later, or the chain diverges: which datum, which step.
        ValueError: If there are no steps.

    References:
        Roberts, Tweedie (1996), Exponential convergence of Langevin distributions.

    Example:
        >>> walk = langevin(dist.Normal(3.0, 1.0).log_prob, torch.zeros(1000), [0.5] * 40)
        >>> bool((walk.z.mean() - 3).abs() < 0.2)
        True
    """
    total = len(step_sizes)
    if total == 0:
        raise ValueError("a chain needs at least one step, but step_sizes is empty")
    at = start if isinstance(start, Point) else point(log_density, start, step=0, total=total)
    watch = Watch(at) if is_validation_enabled() else None
    path = [at.z] if keep_path else []
    for k, step_size in enumerate(step_sizes, start=1):
        s = widened(step_size, at)
        mean = at.z + s * s / 2 * at.slope
        z = mean + noise * s * torch.randn_like(mean)
        path += [z] if keep_path else []
        if k < total:  # nobody asks for the slope at the end
            at = point(log_density, z, step=k, total=total)
            if watch is not None:
                watch.see(at, k, s)
    if watch is not None:
        watch.close(z, total)
    return Walk(z, mean, torch.stack(path) if keep_path else None)


def point(
    log_density: LogDensity,
    z: Tensor,
    *,
    create_graph: bool = False,
    step: int = 0,
    total: int = 0,
) -> Point:
    """Return a state with its log density and slope, by one backward pass for all chains.

    Args:
        log_density: As in `langevin`.
        z: (..., N, *event).
        create_graph: Whether all that is returned is to be differentiable; detached otherwise.
        step: How many steps led here, for the error.
        total: Of so many.

    Raises:
        ChainError: Under validation, if a number is not finite.

    Example:
        >>> point(dist.Normal(0.0, 1.0).log_prob, torch.tensor([2.0])).slope
        tensor([-2.])
    """
    with torch.enable_grad(), located(step, total):
        z = z if create_graph else z.detach().requires_grad_()
        log_p = log_density(z)
        (slope,) = torch.autograd.grad(log_p.sum(), z, create_graph=create_graph)
        at = Point(z, log_p, slope)
        if is_validation_enabled():
            require_finite(at)
    return at if create_graph else Point(*(part.detach() for part in at))


def widened(step_size: float | Tensor, at: Point) -> float | Tensor:
    """Return step sizes per datum with as many axes as z has."""
    if not isinstance(step_size, Tensor) or step_size.ndim == 0:
        return step_size
    return step_size.reshape(step_size.shape + (1,) * (at.z.ndim - at.log_p.ndim))


@contextmanager
def located(step: int, total: int) -> Iterator[None]:
    """Say at which step of a chain a number is not finite."""
    try:
        yield
    except ChainError as error:
        if step == 0:
            raise ChainError(
                f"the log joint is not finite at the start of the Langevin chain: {error}. Look "
                "at the data and the model's parameters, or start elsewhere (init=)"
            ) from None
        raise ChainError(
            f"the Langevin chain diverges at step {step} of {total}: {error}. Lower step_size: "
            "its square times the curvature of the log joint must stay below 4"
        ) from None


def first_true(bad: Tensor) -> tuple[int, ...]:
    """Return the place of the first true entry."""
    return tuple(bad.nonzero()[0].tolist())


def require_finite(at: Point) -> None:
    """Raise if a state's log density or slope is not finite, naming the first datum."""
    parts = (("log density", at.log_p), ("gradient", _spread(at, at.slope.abs())))
    for what, value in ((what, part.detach()) for what, part in parts):
        if not (finite := value.isfinite()).all():
            place = first_true(~finite)
            raise ChainError(f"the {what} of datum {place[-1]} is {float(value[place]):g}")


def _spread(at: Point, value: Tensor) -> Tensor:
    """Return the sum over event axes, (..., N)."""
    return value.flatten(at.log_p.ndim).sum(-1) if value.ndim > at.log_p.ndim else value


class Watch:
    """Tells a chain that diverges, before its numbers overflow, from one that takes large steps.

    It has met a curvature too large for its step, and ended far below where it started; with
    particles, most of a datum's have.
    """

    def __init__(self, start: Point) -> None:
        self.first = self.last = start
        self.step = torch.zeros_like(start.log_p, dtype=torch.long)  # the first too large; 0: none
        self.stiffness = torch.zeros_like(start.log_p)

    def see(self, at: Point, step: int, s: float | Tensor, before: Point | None = None) -> None:
        """Measure the curvature along the last step, from `before` where the density moves too."""
        last = before or self.last
        move, bend = at.z - last.z, at.slope - last.slope
        stiffness = _spread(at, -s * s * move * bend) / _spread(at, move * move)
        fresh = (stiffness >= STIFF) & (self.step == 0)
        self.step = self.step.masked_fill(fresh, step)
        self.stiffness = torch.where(fresh, stiffness, self.stiffness)
        self.last = at

    def close(self, z: Tensor, total: int) -> None:
        """Raise if a chain has diverged."""
        at = Point(z, self.last.log_p, z)
        finite = _spread(at, z.abs()).isfinite()
        fall = self.first.log_p - self.last.log_p
        size = z.numel() // self.first.log_p.numel()
        bad = (self.step > 0) & (fall > FALL * size)
        most = bad.flatten(0, -2).float().mean(0) > 0.5 if bad.ndim > 1 else bad
        bad = ~finite | (bad & most)  # of many particles a few may start where it is steep
        if bad.any():
            place = first_true(bad)
            raise ChainError(
                f"the Langevin chain of datum {place[-1]} diverges from step "
                f"{int(self.step[place]) or total} of {total} on: there its squared step size "
                f"times the curvature it met is {float(self.stiffness[place]):.3g}, where less "
                f"than 4 is due, and its log joint has fallen by {float(fall[place]):.3g} nats. "
                "Lower step_size"
            )
