"""Chains with an accept step, per datum: MALA and HMC, for posteriors to trust."""

import math
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from ppvae.langevin.chain import LogDensity, Point, point, widened

__all__ = ["Draws", "Move", "hmc", "sample"]

MALA_TARGET, HMC_TARGET = 0.574, 0.8  # the best acceptance in high dimensions; NUTS's habit


class Move(NamedTuple):
    """A transition.

    Attributes:
        at: Where it ends.
        acceptance: min(1, p'/p), (..., N).
        accepted: Whether it moved, (..., N).
    """

    at: Point
    acceptance: Tensor
    accepted: Tensor


class Draws(NamedTuple):
    """Draws of chains after their warm-up.

    Attributes:
        z: (S, ..., N, *event).
        log_p: (S, ..., N).
        acceptance: The probability of each transition, (S, ..., N).
        step_size: As adapted, in the shape it was given in.
    """

    z: Tensor
    log_p: Tensor
    acceptance: Tensor
    step_size: Tensor


def hmc(
    log_density: LogDensity, at: Point, step_size: float | Tensor, *, leapfrog: int = 1
) -> Move:
    """Make one transition of Hamiltonian Monte Carlo, accepted or not datum by datum.

        p ~ N(0, I);  `leapfrog` times:  p += (s/2) slope,  z += s p,  p += (s/2) slope'
        accept with probability min(1, exp(log p(z') - |p'|^2/2 - log p(z) + |p|^2/2))

    With one leapfrog step it is MALA, whose proposal is a step of `langevin`. A backward pass per
    leapfrog step for all chains together. A proposal without a finite density is refused.

    Args:
        log_density: As in `langevin`.
        at: The state.
        step_size: s, a number or a tensor of shape () or (..., N).
        leapfrog: L, the number of leapfrog steps.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics. Roberts, Tweedie (1996).

    Example:
        >>> log_p = dist.Normal(0.0, 1.0).log_prob
        >>> move = hmc(log_p, point(log_p, torch.zeros(5)), 0.1, leapfrog=3)
        >>> move.acceptance.shape
        torch.Size([5])
    """
    s = widened(step_size, at)
    new, momentum = at, torch.randn_like(at.z)
    before = at.log_p - _kinetic(at, momentum)
    with torch.no_grad(), pyro.validation_enabled(False):  # what is not finite is refused
        for _ in range(leapfrog):
            half = momentum + s / 2 * new.slope
            new = _unchecked(log_density, new.z + s * half)
            momentum = half + s / 2 * new.slope
        log_ratio = new.log_p - _kinetic(at, momentum) - before
        log_ratio = log_ratio.masked_fill(~log_ratio.isfinite(), -torch.inf)
        acceptance = log_ratio.clamp(max=0).exp()
        accepted = torch.rand_like(acceptance) < acceptance
        chosen = accepted.reshape(accepted.shape + (1,) * (at.z.ndim - at.log_p.ndim))
        state = Point(
            torch.where(chosen, new.z, at.z),
            torch.where(accepted, new.log_p, at.log_p),
            torch.where(chosen, new.slope, at.slope),
        )
    return Move(state, acceptance, accepted)


def sample(
    log_density: LogDensity,
    start: Tensor | Point,
    draws: int,
    *,
    step_size: float | Tensor = 0.1,
    warmup: int = 0,
    leapfrog: int = 1,
    target: float | None = None,
) -> Draws:
    """Sample by MALA, or HMC with more than one leapfrog step, adapting the step in a warm-up.

    Nesterov's dual averaging moves ln s until the mean acceptance is the target, for each entry of
    `step_size`: pass a tensor of shape (N,) to give each datum its own, () to share one. HMC's
    steps are jittered by up to 20 percent, lest its paths close. After the warm-up s is held.

    Args:
        log_density: As in `langevin`.
        start: z_0, or a `Point` already evaluated.
        draws: The number S kept, of each chain.
        step_size: s to start from.
        warmup: How many transitions come first and are dropped; 0 takes `step_size` as it is.
        leapfrog: The number of leapfrog steps.
        target: The acceptance sought: 0.574 for MALA, 0.8 for HMC.

    Raises:
        ChainError: Under validation, if the log density is not finite at the start.
        ValueError: If a number is out of range.

    References:
        Hoffman, Gelman (2014), The No-U-Turn Sampler, arXiv:1111.4246, section 3.2.

    Example:
        >>> log_p = dist.Normal(0.0, 2.0).log_prob
        >>> draws = sample(log_p, torch.zeros(100), 200, warmup=200)
        >>> draws.z.shape, bool((draws.z.std() - 2).abs() < 0.2)
        (torch.Size([200, 100]), True)
    """
    for name, value, least in (
        ("draws", draws, 1),
        ("warmup", warmup, 0),
        ("leapfrog", leapfrog, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but is {value}")
    if target is None:
        target = MALA_TARGET if leapfrog == 1 else HMC_TARGET
    if not 0 < target < 1:
        raise ValueError(f"target must lie between 0 and 1, but is {target}")
    at = start if isinstance(start, Point) else point(log_density, start)
    s = torch.as_tensor(step_size, dtype=at.z.dtype, device=at.z.device)
    if not bool(((s > 0) & s.isfinite()).all()):  # once, before the chain
        raise ValueError(f"step_size must be positive and finite, but is {step_size}")
    tuner, states, acceptances = _DualAveraging(s, target), [], []
    for step in range(warmup + draws):
        if step == warmup and warmup:
            s = tuner.mean.exp()
        jittered = s if leapfrog == 1 else s * (0.8 + 0.4 * torch.rand_like(s))
        at, acceptance, _ = hmc(log_density, at, jittered, leapfrog=leapfrog)
        if step < warmup:
            s = tuner.next(acceptance)
        else:
            states.append(at)
            acceptances.append(acceptance)
    z, log_p = (torch.stack([getattr(state, part) for state in states]) for part in ("z", "log_p"))
    return Draws(z, log_p, torch.stack(acceptances), s)


class _DualAveraging:
    """Finds the step sizes whose acceptance is the target, entry by entry."""

    def __init__(self, step_size: Tensor, target: float) -> None:
        self.center, self.target = (10 * step_size).log(), target
        self.error, self.mean, self.count = torch.zeros_like(step_size), step_size.log(), 0

    def next(self, acceptance: Tensor) -> Tensor:
        """Return the step sizes to try next."""
        self.count += 1
        shape = self.error.shape
        lead = acceptance.ndim - len(shape)
        found = acceptance.mean(tuple(range(lead))) if lead else acceptance
        weight = 1 / (self.count + 10)
        self.error = (1 - weight) * self.error + weight * (self.target - found)
        log_s = self.center - math.sqrt(self.count) / 0.05 * self.error
        weight = self.count**-0.75
        self.mean = weight * log_s + (1 - weight) * self.mean
        return log_s.exp()


def _kinetic(at: Point, momentum: Tensor) -> Tensor:
    energy = momentum.square() / 2
    return energy.flatten(at.log_p.ndim).sum(-1) if energy.ndim > at.log_p.ndim else energy


def _unchecked(log_density: LogDensity, z: Tensor) -> Point:
    """Return a proposal: it may lie where nothing is finite, and is refused then."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_p = log_density(z)
        (slope,) = torch.autograd.grad(log_p.sum(), z)
    return Point(z.detach(), log_p.detach(), slope)
