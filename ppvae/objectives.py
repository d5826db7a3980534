"""Objectives: what a pair is trained for. Small subclasses of a Pyro ELBO, one idea each.

Pyro's own `Trace_ELBO` and `TraceMeanField_ELBO` serve as they are. Ours look at the log
probabilities per particle and datum, `(K, N)`, and never wait for the device. They are modules, so
that what is scheduled or learned in them moves, saves and loads.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property, partial

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import ELBO, Trace_ELBO
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_factor
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import functional_call

from ppvae.divergences import kl_per_coordinate
from ppvae.protocols import Batch, Guide, Model, batch_size
from ppvae.weights import latent_sites, per_datum

__all__ = ["IWELBO", "BetaELBO", "Objective", "PenalizedELBO", "Terms", "log_mean_exp", "warmup"]

Penalty = Callable[[Trace, Trace], Tensor]
Schedule = Callable[[int], float]


class Terms:
    """The terms of an ELBO, read off a pair of traces, each `(K, N)` in nats.

    Args:
        model_trace: The model replayed against the guide, log probabilities computed.
        guide_trace: The guide, likewise.
        shape: (K, N).
    """

    def __init__(self, model_trace: Trace, guide_trace: Trace, shape: torch.Size) -> None:
        self.model_trace, self.guide_trace, self.shape = model_trace, guide_trace, shape

    @cached_property
    def log_likelihood(self) -> Tensor:
        """Ln p(x|z): the observed sites, without factors."""
        return self._sum(
            self.model_trace, lambda site: site["is_observed"] and not site_is_factor(site)
        )

    @cached_property
    def log_prior(self) -> Tensor:
        """Ln p(z): the latent sites, with factors, which tilt the prior."""
        return self._sum(self.model_trace, _of_prior)

    @cached_property
    def log_guide(self) -> Tensor:
        """Ln q(z|x): all sites of the guide."""
        return self._sum(self.guide_trace, lambda _: True)

    @property
    def log_weight(self) -> Tensor:
        """Ln p(x, z) - ln q(z|x)."""
        return self.log_likelihood + self.log_prior - self.log_guide

    def kl(self, *, analytic: bool) -> Tensor:
        """KL(q(z|x) || p(z)): in closed form where one is registered and asked for, else by draws."""
        closed = self._closed_forms() if analytic else {}
        drawn = self._sum(self.guide_trace, lambda site: site["name"] not in closed)
        prior = self._sum(
            self.model_trace, lambda site: _of_prior(site) and site["name"] not in closed
        )
        return sum(closed.values(), start=drawn - prior)

    def _closed_forms(self) -> dict[str, Tensor]:
        """The KL of each latent for which one is registered, (K, N)."""
        closed = {}
        for name, site in latent_sites(self.model_trace).items():
            q = self.guide_trace.nodes[name]
            try:
                kl = scale_and_mask(kl_divergence(q["fn"], site["fn"]), q["scale"], q["mask"])
            except NotImplementedError:
                continue
            closed[name] = per_datum(name, kl, self.shape)
        return closed

    @cached_property
    def score(self) -> Tensor | float:
        """The sum of ln q over sites without pathwise gradients; 0 where all have one."""
        total = 0.0
        for name, site in self.guide_trace.nodes.items():
            if site["type"] == "sample":
                term = site["score_parts"].score_function
                if not is_identically_zero(term):
                    total = total + per_datum(name, term, self.shape)
        return total

    def _sum(self, trace: Trace, wanted: Callable[[dict], bool]) -> Tensor:
        terms = [
            per_datum(name, site["log_prob"], self.shape)
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and wanted(site)
        ]
        return sum(terms, start=torch.zeros(())).expand(self.shape)


def _of_prior(site: dict) -> bool:
    return not site["is_observed"] or site_is_factor(site)


class Objective(nn.Module, Trace_ELBO):
    """The template: a subclass says what to maximize per datum, `objective(terms) -> (N,)`.

    Sites without pathwise gradients receive the score function's:

        grad E_q[f] = E_q[grad f + f grad ln q]

    Abstract. `record` holds the terms of the last loss by name, detached, in nats per datum.

    Args:
        num_particles: The number K of draws per datum.

    Raises:
        ValueError: If `num_particles` is not positive.
    """

    def __init__(self, num_particles: int = 1) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, but is {num_particles}")
        nn.Module.__init__(self)
        Trace_ELBO.__init__(
            self, num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True
        )
        self.record: dict[str, Tensor] = {}

    __call__ = ELBO.__call__  # like any Pyro ELBO: `BetaELBO()(model, guide)` is a module

    @abstractmethod
    def objective(self, terms: Terms) -> Tensor:
        """Return what to maximize, `(N,)` in nats."""

    def advance(self) -> None:
        """Move schedules on by one training step; `SVI.step` calls it."""

    def differentiable_loss(self, model: Model, guide: Guide, batch: Batch) -> Tensor:
        """Return the loss summed over the batch, 0-d, to call backward on."""
        model_trace, guide_trace = self._traces(model, guide, batch)
        terms = Terms(
            model_trace, guide_trace, torch.Size((self.num_particles, batch_size(batch)))
        )
        value = self.objective(terms)
        if isinstance(terms.score, Tensor):
            score = terms.score.sum(0)
            value = value + (score - score.detach()) * value.detach()
        return -value.sum()

    def loss(self, model: Model, guide: Guide, batch: Batch) -> float:
        """Return the loss summed over the batch, as Pyro does."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, batch))

    def loss_and_grads(self, model: Model, guide: Guide, batch: Batch) -> float:
        """Return the loss summed over the batch, and call backward on it."""
        loss = self.differentiable_loss(model, guide, batch)
        loss.backward()
        return float(loss.detach())

    def _traces(self, model: Model, guide: Guide, batch: Batch) -> tuple[Trace, Trace]:
        return next(self._get_traces(model, guide, (batch,), {}))

    def _record(self, **terms: Tensor) -> None:
        self.record = {name: term.detach().mean() for name, term in terms.items()}


class BetaELBO(Objective):
    """The ELBO with its KL weighted by beta, and optionally free bits.

        mean_k ln p(x|z_k) - beta KL(q(z|x) || p(z))

    An evidence bound for beta >= 1 only. With beta = 0 the KL is left out, not multiplied by zero.

    Args:
        beta: The weight, a number or a schedule from the training step to one, e.g. `warmup(1000)`.
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
        """Return ln p(x|z) - beta KL, averaged over particles."""
        log_likelihood = terms.log_likelihood.mean(0)
        if self.without_kl:
            self._record(log_likelihood=log_likelihood)
            return log_likelihood
        kl = self._kl(terms)
        self._record(log_likelihood=log_likelihood, kl=kl)
        return log_likelihood - self.beta * kl

    def _kl(self, terms: Terms) -> Tensor:
        if self.free_bits == 0:
            return terms.kl(analytic=self.analytic).mean(0)
        total = terms.log_likelihood.new_zeros(())
        for name, site in latent_sites(terms.model_trace).items():
            kl = kl_per_coordinate(terms.guide_trace.nodes[name]["fn"], site["fn"])  # (..., N, D)
            total = total + kl.flatten(0, -2).mean(0).clamp(min=self.free_bits).sum()
        return total.expand(terms.shape[1:])  # a number of the batch, shared by its data

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
        **penalties: Functions or modules of (model_trace, guide_trace) that return a 0-d tensor, in
            nats per datum, already weighted. Options of `BetaELBO` go by their own names.

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
                    f"the penalty {name!r} must be a function of (model_trace, guide_trace), but is "
                    f"{penalty!r}: close over its weight, "
                    f"{name}=lambda model_trace, guide_trace: weight * ..."
                )
        self.penalty_names = tuple(penalties)
        self.penalty_functions = tuple(penalties.values())
        self.penalty_modules = nn.ModuleDict(  # these move with the objective
            {name: p for name, p in penalties.items() if isinstance(p, nn.Module)}
        )

    def objective(self, terms: Terms) -> Tensor:
        """Return the beta-ELBO less the penalties; every datum bears the batch's penalty."""
        value = super().objective(terms)
        for name, function in zip(self.penalty_names, self.penalty_functions, strict=True):
            penalty = function(terms.model_trace, terms.guide_trace)
            if not isinstance(penalty, Tensor) or penalty.ndim:
                shape = tuple(penalty.shape) if isinstance(penalty, Tensor) else penalty
                raise ValueError(
                    f"the penalty {name!r} returned {shape}, where a 0-d tensor is due: the mean "
                    "over the batch, in nats per datum"
                )
            self.record[name] = penalty.detach()
            value = value - penalty
        return value


class IWELBO(Objective):
    """The importance-weighted bound, or Rényi's of order alpha.

        1 / (1 - alpha) ln mean_k w_k^(1 - alpha),  w_k = p(x, z_k) / q(z_k|x)

    Tightens with K to ln p(x) for alpha = 0. Its plain gradient ("iwae") teaches the guide less and
    less as K grows; "dreg" removes that, unbiased; "stl" drops the score of q, biased for K > 1.

    Args:
        num_particles: The number K of draws per datum.
        estimator: Of the guide's gradient: "iwae", "dreg" or "stl". The last two need pathwise
            gradients, and run the guide twice.
        alpha: The order, below 1; alpha = 0 is the importance-weighted bound, alpha -> 1 the ELBO.

    Raises:
        ValueError: If `estimator` or `alpha` is unknown, or they do not go together; on the first
            loss, if "dreg" or "stl" meets a site without pathwise gradients, or dropout.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.
        Tucker et al. (2019), Doubly Reparameterized Gradient Estimators, arXiv:1810.04152.
        Roeder, Wu, Duvenaud (2017), Sticking the Landing, arXiv:1703.09194.
        Li, Turner (2016), Rényi Divergence Variational Inference, arXiv:1602.02311.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(1, 1))
        >>> round(IWELBO(8).loss(model, Exact(model), torch.zeros(2, 1)) / 2, 4)  # -ln N(0; 0, 2)
        1.2655
    """

    def __init__(
        self, num_particles: int = 16, *, estimator: str = "iwae", alpha: float = 0.0
    ) -> None:
        super().__init__(num_particles)
        if estimator not in ("iwae", "dreg", "stl"):
            raise ValueError(f"estimator must be 'iwae', 'dreg' or 'stl', but is {estimator!r}")
        if not alpha < 1:
            raise ValueError(f"alpha must be below 1, but is {alpha}: alpha = 1 is the ELBO")
        if alpha and estimator != "iwae":
            raise ValueError(f"the estimator {estimator!r} is known for alpha = 0 only")
        self.estimator, self.alpha = estimator, alpha

    def objective(self, terms: Terms) -> Tensor:
        """Return the bound; its gradient is the estimator's."""
        log_w = terms.log_weight
        bound = log_mean_exp((1 - self.alpha) * log_w) / (1 - self.alpha)
        self._record(log_likelihood=terms.log_likelihood, kl=terms.log_guide - terms.log_prior)
        if self.estimator == "iwae":
            return bound
        if isinstance(terms.score, Tensor):
            raise ValueError(
                f"estimator={self.estimator!r} needs pathwise gradients, which a site of the guide "
                "has not: use estimator='iwae'"
            )
        normalized = log_w.detach().softmax(0)  # (K, N)
        return bound.detach() + (normalized * (log_w - log_w.detach())).sum(0)

    def _traces(self, model: Model, guide: Guide, batch: Batch) -> tuple[Trace, Trace]:
        """Score the draws under the guide with its parameters held: only the path's gradient is left."""
        if self.estimator == "iwae":
            return super()._traces(model, guide, batch)
        wrap = self._vectorized_num_particles
        drawn = poutine.trace(wrap(guide)).get_trace(batch)
        sites = latent_sites(drawn).values()
        for site in sites:
            site["value"] = site["value"].view_as(site["value"])  # a node of its own, for the hook
        guide_trace = _scored_by_held(guide, wrap, drawn, batch)
        model_trace = poutine.trace(poutine.replay(wrap(model), drawn)).get_trace(batch)
        model_trace = prune_subsample_sites(model_trace)
        model_trace.compute_log_prob()
        if self.estimator == "dreg":  # the path's gradient bears the weight once more
            shape = torch.Size((self.num_particles, batch_size(batch)))
            weights = Terms(model_trace, guide_trace, shape).log_weight.detach().softmax(0)
            for site in sites:
                if site["value"].requires_grad:
                    site["value"].register_hook(partial(_weigh, weights=weights))
        return model_trace, guide_trace


def _weigh(gradient: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient of draws `(K, N, ...)`, or `(N, ...)` for K = 1, times their weights."""
    if len(weights) == 1:
        return gradient  # one draw has weight 1
    return gradient * weights.reshape(weights.shape + (1,) * (gradient.ndim - 2))


class _Scoring(nn.Module):
    """Scores draws under a guide, all within one call: some distributions read parameters late."""

    def __init__(self, guide: Guide, wrap: Callable[[Guide], Guide], drawn: Trace) -> None:
        super().__init__()
        self.guide, self.wrap, self.drawn = guide, wrap, drawn

    def forward(self, batch: Batch) -> Trace:
        replayed = poutine.replay(self.wrap(self.guide), self.drawn)
        trace = prune_subsample_sites(poutine.trace(replayed).get_trace(batch))
        trace.compute_score_parts()
        return trace


def _scored_by_held(
    guide: Guide, wrap: Callable[[Guide], Guide], drawn: Trace, batch: Batch
) -> Trace:
    """Return the trace of the draws under the guide, with its parameters as constants."""
    scoring = _Scoring(guide, wrap, drawn)
    if not isinstance(guide, nn.Module):
        return scoring(batch)
    if any(isinstance(m, nn.Dropout) and m.training and m.p for m in guide.modules()):
        raise ValueError(
            "estimators 'dreg' and 'stl' run the guide twice, and dropout would make that two "
            "different guides: use estimator='iwae', or take the dropout out"
        )
    constants = {f"guide.{name}": p.detach() for name, p in guide.named_parameters()}
    constants |= {  # running means move once
        f"guide.{name}": buffer.clone() for name, buffer in guide.named_buffers()
    }
    return functional_call(scoring, constants, (batch,))


def log_mean_exp(log_w: Tensor) -> Tensor:
    """Return ln mean_k exp(log_w_k) over the first axis.

    Example:
        >>> log_mean_exp(torch.zeros(4, 2))
        tensor([0., 0.])
    """
    return log_w.logsumexp(0) - math.log(len(log_w))


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
