"""The ELBO with its KL weighted, and with penalties."""

import math
from collections.abc import Callable

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from ppvae.divergences import kl_per_coordinate
from ppvae.objectives.base import Objective, Terms
from ppvae.weights import latent_sites, log_prob_of, per_datum

__all__ = ["BetaELBO", "PenalizedELBO", "cosine", "cyclical", "warmup"]

Penalty = Callable[[Trace, Trace], Tensor]
Schedule = Callable[[int], float]


class BetaELBO(Objective):
    """The ELBO with its KL weighted by beta, and optionally free bits.

        mean_k ln p(x|z_k) - beta KL(q(z|x) || p(z))

    An evidence bound for beta >= 1 only. With beta = 0 the KL is left out, not multiplied by zero.

    Args:
        beta: The weight, a number or a schedule from the training step to one, e.g.
            `warmup(1000)`.
        free_bits: lambda, in nats per coordinate: the KL becomes sum_d max(lambda, mean_n KL_nd),
            so that no gradient pushes a coordinate below it. For factorized pairs only.
        analytic: Whether to take the KL in closed form where one is registered.
        num_particles: The number K of draws per datum.

    Raises:
        ValueError: If `beta`, `free_bits` or `num_particles` is out of range.
        TypeError: On the first loss, if `free_bits` meets a guide with dependent coordinates.

    References:
        Higgins et al. (2017), beta-VAE. Kingma et al. (2016), Improved Variational Inference with
        Inverse Autoregressive Flow, arXiv:1606.04934, equation 15 (free bits).

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(1, 1))
        >>> round(BetaELBO(beta=1.0).loss(model, Exact(model), torch.zeros(2, 1)) / 2, 3) > 1.2
        True
    """

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        *,
        free_bits: float = 0.0,
        analytic: bool = True,
        num_particles: int = 1,
    ) -> None:
        super().__init__(num_particles)
        self.schedule = beta if callable(beta) else None
        self.steps = 0
        start = beta(0) if callable(beta) else beta
        if not (start >= 0 and math.isfinite(start)):
            raise ValueError(f"beta must be finite and not negative, but is {start}")
        if not free_bits >= 0:
            raise ValueError(f"free_bits must not be negative, but is {free_bits}")
        self.register_buffer("beta", torch.tensor(float(start)))
        self.without_kl = beta == 0
        self.free_bits, self.analytic = free_bits, analytic

    def objective(self, terms: Terms) -> Tensor:
        """Return ln p(x|z) - beta KL, averaged over particles; without KL where bits are free."""
        log_likelihood = terms.log_likelihood.mean(0)
        if self.without_kl or self.free_bits:  # free bits are those of the batch
            self._record(log_likelihood=log_likelihood)
            return log_likelihood
        kl = terms.kl(analytic=self.analytic).mean(0)
        self._record(log_likelihood=log_likelihood, kl=kl)
        return log_likelihood - self.beta * kl

    def batch_objective(self, terms: Terms) -> Tensor | float:
        """Return -beta KL where bits are free: it is that of the batch's mean per coordinate."""
        if self.without_kl or self.free_bits == 0:
            return 0.0
        kl = self._free_kl(terms)
        self.record["kl"] = kl.detach()
        return -self.beta * kl

    def _free_kl(self, terms: Terms) -> Tensor:
        """Return sum_d max(lambda, mean_n KL_nd), less what factors say, 0-d."""
        total = -terms.log_factor.mean()
        for name, site in latent_sites(terms.model_trace).items():
            q = terms.guide_trace.nodes[name]
            per_datum(name, log_prob_of(site), terms.shape)  # raises where data share the latent
            kl = kl_per_coordinate(q["fn"], site["fn"])  # (..., N, D)
            if isinstance(q["mask"], Tensor):  # a latent that is missing from some data
                kl = torch.where(q["mask"].unsqueeze(-1), kl, 0.0)
            total = total + kl.flatten(0, -2).mean(0).clamp(min=self.free_bits).sum()
        return total

    def advance(self) -> None:
        """Set beta to the schedule's next value, in place."""
        self.steps += 1
        if self.schedule is not None:
            self.beta.fill_(self.schedule(self.steps))

    def get_extra_state(self) -> dict[str, int]:
        """Return the place in the schedule, for `state_dict`."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take up the place in the schedule from `state_dict`."""
        self.steps = state["steps"]


class PenalizedELBO(BetaELBO):
    """The beta-ELBO less penalties, each recorded by its name.

        mean_k ln p(x|z_k) - beta KL(q(z|x) || p(z)) - sum_j penalty_j

    Args:
        beta: As in `BetaELBO`.
        **penalties: Functions or modules of (model_trace, guide_trace) that return a 0-d tensor,
            in nats per datum, already weighted. Those that are modules move, save and train with
            the objective, and what they leave in their attribute `record`, 0-d tensors by name,
            is recorded too. Options of `BetaELBO` go by their own names.

    Raises:
        TypeError: If a penalty is not callable.
        ValueError: On the first loss, if a penalty is no 0-d tensor.

    Example:
        >>> def sparsity(model_trace, guide_trace):
        ...     return 0.1 * guide_trace.nodes["z"]["value"].abs().sum(-1).mean()
        >>> loss = PenalizedELBO(beta=1.0, sparsity=sparsity)
        >>> loss.penalty_names
        ('sparsity',)
    """

    def __init__(
        self,
        beta: float | Schedule = 1.0,
        *,
        free_bits: float = 0.0,
        analytic: bool = True,
        num_particles: int = 1,
        **penalties: Penalty,
    ) -> None:
        super().__init__(beta, free_bits=free_bits, analytic=analytic, num_particles=num_particles)
        for name, penalty in penalties.items():
            if not callable(penalty):
                raise TypeError(
                    f"the penalty {name!r} must be a function of (model_trace, guide_trace), but "
                    f"is {penalty!r}: close over its weight, "
                    f"{name}=lambda model_trace, guide_trace: weight * ..."
                )
        self.penalty_names = tuple(penalties)
        self.penalty_functions = tuple(penalties.values())
        self.penalty_modules = nn.ModuleDict(  # these move with the objective
            {name: p for name, p in penalties.items() if isinstance(p, nn.Module)}
        )

    def batch_objective(self, terms: Terms) -> Tensor | float:
        """Return the beta-ELBO's, less the penalties, which are of the batch."""
        value = super().batch_objective(terms)
        for name, function in zip(self.penalty_names, self.penalty_functions, strict=True):
            penalty = function(terms.model_trace, terms.guide_trace)
            if not isinstance(penalty, Tensor) or penalty.ndim:
                shape = tuple(penalty.shape) if isinstance(penalty, Tensor) else penalty
                raise ValueError(
                    f"the penalty {name!r} returned {shape}, where a 0-d tensor is due: the mean "
                    "over the batch, in nats per datum"
                )
            self.record[name] = penalty.detach()
            self.record |= getattr(function, "record", {})  # what a critic says of itself
            value = value - penalty
        return value


def warmup(steps: int, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Return a schedule that rises linearly from `start` to `end` in `steps` training steps.

    Raises:
        ValueError: If `steps` is not positive.

    Example:
        >>> [warmup(4)(step) for step in (0, 2, 9)]
        [0.0, 0.5, 1.0]
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")
    return lambda step: start + (end - start) * min(step / steps, 1.0)


def cosine(steps: int, start: float = 1.0, end: float = 0.0) -> Schedule:
    """Return a schedule that goes from `start` to `end` on half a cosine, in `steps` steps.

        end + (start - end) (1 + cos(pi t / steps)) / 2

    Raises:
        ValueError: If `steps` is not positive.

    Example:
        >>> [round(cosine(150_000)(step), 4) for step in (0, 75_000, 150_000, 200_000)]
        [1.0, 0.5, 0.0, 0.0]
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")
    half = math.pi / steps
    return lambda step: end + (start - end) * (1 + math.cos(half * min(step, steps))) / 2


def cyclical(
    steps: int, *, cycles: int = 4, ramp: float = 0.5, start: float = 0.0, end: float = 1.0
) -> Schedule:
    """Return a schedule that rises from `start` to `end` several times, each time anew.

        beta(t) = start + (end - start) min(u / ramp, 1),  u = (t mod c) / c,  c = steps / cycles

    and `end` from `steps` on. So the KL is free again at the start of each cycle, and what the
    latent has learned to say by then is kept.

    Args:
        steps: The training steps of all cycles together.
        cycles: How many, M.
        ramp: The share of a cycle in which beta rises, R in (0, 1].
        start: beta at the start of each cycle.
        end: beta after each rise.

    Raises:
        ValueError: If there is less than a step to a cycle, or `ramp` is out of range.

    References:
        Fu et al. (2019), Cyclical Annealing Schedule, arXiv:1903.10145, equation 7.

    Example:
        >>> [cyclical(8, cycles=2)(step) for step in (0, 1, 2, 3, 4, 5, 8, 99)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0]
    """
    if not 1 <= cycles <= steps:
        raise ValueError(f"cycles must lie between 1 and steps={steps}, but is {cycles}")
    if not 0 < ramp <= 1:
        raise ValueError(f"ramp must lie in (0, 1], but is {ramp}")
    length = steps / cycles

    def beta(step: int) -> float:
        share = 1.0 if step >= steps else step % length / length
        return start + (end - start) * min(share / ramp, 1.0)

    return beta
