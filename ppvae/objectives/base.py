"""The template of an objective, and the terms it is made of."""

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from operator import is_
from weakref import ref

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import ELBO, Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import site_is_factor
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppvae.pairing import (
    PairError,
    Record,
    describe,
    evaluating,
    few_rows,
    is_delta,
    is_deterministic,
    latent_sites,
    log_prob_of,
    per_datum,
    read,
    require_trainable,
    sample_sites,
    subsampling,
    takes_particles,
    takes_parts,
)
from ppvae.protocols import (
    Batch,
    Guide,
    Model,
    batch_size,
    forked_streams,
    module_of,
)

__all__ = ["Objective", "Terms"]


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
    def log_factor(self) -> Tensor:
        """What factors say: they tilt the prior, and belong to no latent."""
        return self._sum(self.model_trace, site_is_factor)

    @cached_property
    def stands_for(self) -> float:
        """How many data each datum stands for: N / B under a subsampled plate, else 1."""
        sites = sample_sites(self.model_trace).values()
        return max((subsampling(site) for site in sites), default=1.0)

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
        """KL(q(z|x) || p(z)): in closed form if one is registered and asked for, or by draws.

        A latent that the guide draws before one on which the model lets it depend has a KL of its
        own, but that is no term of the KL of all: it goes by draws.
        """
        closed = self._closed_forms() if analytic else {}
        drawn = self._sum(self.guide_trace, lambda site: site["name"] not in closed)
        prior = self._sum(
            self.model_trace, lambda site: _of_prior(site) and site["name"] not in closed
        )
        return sum(closed.values(), start=drawn - prior)

    def _closed_forms(self) -> dict[str, Tensor]:
        """The KL of each latent for which one is registered, (K, N)."""
        closed = {}
        order = {name: place for place, name in enumerate(latent_sites(self.guide_trace))}
        latest = -1  # the place in the guide of what the model has drawn so far
        for name, site in latent_sites(self.model_trace).items():
            q = self.guide_trace.nodes[name]
            early, latest = order[name] < latest, max(order[name], latest)
            if early or is_delta(q["fn"]):  # whose KL leaves out the Jacobian of a transport
                continue
            try:
                kl = kl_divergence(q["fn"], site["fn"])
                kl = scale_and_mask(kl, q["scale"] / subsampling(q), q["mask"])
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
                    total = total + per_datum(name, term / subsampling(site), self.shape)
        return total

    def _sum(self, trace: Trace, wanted: Callable[[dict], bool]) -> Tensor:
        terms = [
            per_datum(name, log_prob_of(site), self.shape)
            for name, site in sample_sites(trace).items()
            if not is_deterministic(site) and wanted(site)
        ]
        return sum(terms, start=self._nothing).expand(self.shape)

    @cached_property
    def _nothing(self) -> Tensor:
        """The empty sum, 0-d, of the device and the dtype of the traces."""
        sites = (*self.model_trace.nodes.values(), *self.guide_trace.nodes.values())
        log_probs = (site["log_prob"] for site in sites if site["type"] == "sample")
        return next((p.new_zeros(()) for p in log_probs if isinstance(p, Tensor)), torch.zeros(()))


def _of_prior(site: dict) -> bool:
    return not site["is_observed"] or site_is_factor(site)


class Objective(nn.Module, Trace_ELBO):
    """The template: a subclass says what to maximize per datum, `objective(terms) -> (N,)`.

    What depends on the batch as a whole, such as a penalty, is apart, `batch_objective(terms)`,
    0-d. Sites without pathwise gradients receive the score function's: of each datum's own draws
    times its own value f_n, and of all draws times what is of the batch, b:

        grad E_q[sum_n f_n + N b] = E_q[grad + sum_n (f_n + N b) grad ln q(z_n|x_n)]

    The latter's noise grows with the batch. Abstract. `record` holds the terms of the last loss by
    name, detached, in nats per datum.

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
        self._looked_at: tuple[ref, ...] = ()  # the sides of the last pair that was looked at

    __call__ = ELBO.__call__  # like any Pyro ELBO: `BetaELBO()(model, guide)` is a module

    @abstractmethod
    def objective(self, terms: Terms) -> Tensor:
        """Return what to maximize, `(N,)` in nats, of each datum's own draws."""

    def batch_objective(self, terms: Terms) -> Tensor | float:
        """Return what to maximize of all draws together, 0-d in nats per datum; 0 by default."""
        return 0.0

    def advance(self) -> None:
        """Move schedules on by one training step; `SVI.step` calls it."""

    def differentiable_loss(self, model: Model, guide: Guide, batch: Batch) -> Tensor:
        """Return the loss summed over the batch, 0-d, to call backward on."""
        try:
            model_trace, guide_trace = self._traces(model, guide, batch)
        except Exception:
            self._look(model, guide, batch)  # which may know why, in words
            raise
        self._look(model, guide, batch, model_trace, guide_trace)
        terms = Terms(
            model_trace, guide_trace, torch.Size((self.num_particles, batch_size(batch)))
        )
        return self._loss(terms)

    def loss(self, model: Model, guide: Guide, batch: Batch) -> float:
        """Return the loss summed over the batch, as Pyro does."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, batch))

    def loss_and_grads(self, model: Model, guide: Guide, batch: Batch) -> float:
        """Return the loss summed over the batch, and call backward on it."""
        loss = self.differentiable_loss(model, guide, batch)
        loss.backward()
        return float(loss.detach())

    def _loss(self, terms: Terms) -> Tensor:
        value, whole = self.objective(terms), terms.shape[1] * self.batch_objective(terms)
        total = value.sum() + whole
        if isinstance(terms.score, Tensor):
            score = terms.score.sum(0)  # (N,)
            total = total + ((score - score.detach()) * (value + whole).detach()).sum()
        return -total * terms.stands_for

    def _look(self, model: Model, guide: Guide, batch: Batch, *traces: Trace) -> None:
        """Refuse once, while Pyro validates, a pair of which this would be no objective.

        Raises:
            PairError: Naming site and mend; where several particles go another way than one, the
                network's.
        """
        sides = [module_of(side) or side for side in (model, guide)]
        last = [reference() for reference in self._looked_at]
        if not is_validation_enabled() or (last and all(map(is_, last, sides))):
            return
        record = read(*traces, batch_size(batch)) if traces else None
        with evaluating(model, guide), forked_streams():
            if record is None or record.needs_runs:
                try:
                    record = describe(model, guide, batch)
                except PairError:  # the loss says so, in its own words
                    return
            require_trainable(record, enumerating=False)
            self._require_sites(record)
            self._require_particles(model, guide, batch, record)
        self._looked_at = tuple(map(ref, sides))

    def _require_particles(self, model: Model, guide: Guide, batch: Batch, record: Record) -> None:
        if self.num_particles == 1 or record.joint:
            return
        few = few_rows(batch) if takes_parts(model, guide, batch) else batch
        if not takes_particles(model, guide, few, -2):
            raise PairError(
                f"{type(self).__name__}(num_particles={self.num_particles}) draws particles "
                "(K, N, ...) at once, which a network of this pair takes for something else "
                "than one after the other, as Flatten, BatchNorm1d or softmax(dim=1) do: "
                "write it for any leading axes (dim=-1), or wrap it in networks.Folded"
            )

    def _require_sites(self, record: Record) -> None:
        """Raise if the objective would leave out a site of the pair."""

    def _traces(self, model: Model, guide: Guide, batch: Batch) -> tuple[Trace, Trace]:
        return next(self._get_traces(model, guide, (batch,), {}))

    def _record(self, **terms: Tensor) -> None:
        self.record = {name: term.detach().mean() for name, term in terms.items()}
