"""Objectives that train the posterior of every subset of the modalities."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_factor
from torch import Tensor, nn
from torch.func import functional_call

from ppvae.objectives.base import Terms
from ppvae.objectives.beta import BetaELBO, Schedule
from ppvae.objectives.importance import require_fixed_support
from ppvae.objectives.subsets import Subsets, bernoulli_subsets, uniform_size_subsets
from ppvae.pairing import PairError, Record
from ppvae.protocols import (
    Batch,
    Guide,
    Model,
    SetGuide,
    batch_size,
    hide,
    leaves,
    modalities,
    module_of,
    seen,
)
from ppvae.weights import latent_sites, per_datum, refuse_weightless

__all__ = ["MaskedELBO"]

LAWS = {"uniform_size": uniform_size_subsets, "bernoulli": bernoulli_subsets}


class MaskedELBO(BetaELBO):
    """The masked bound, and others of subsets S of what is seen; C is the rest, M all of it.

        L_S = E_q_S[ln p(x_S|z)] - beta KL(q_S || p(z))
        L_C = E_q_M[ln p(x_C|z)] - beta KL(q_M || q_S)

    q_S = q(z|x_S) is trained as a posterior, and as the prior under which the rest is coded. Each
    encoder runs once per step, however many subsets there are, where the guide is a `SetGuide`,
    as `guides.Multimodal` is; another runs on batches with the rest hidden.

    **No evidence bound, in spite of the names**, except for "mixture" with beta >= 1: with exact
    posteriors "masked" is ln p(x) for every S, and otherwise it may exceed it, for a datum or for
    all. The evidence is that of `log_weights`, whatever is missing.

    Args:
        mask: The law of S: "uniform_size", where its size is uniform; "bernoulli", where all
            subsets are equal; a fixed one, booleans `(M,)`, `(N, M)` or `(L, N, M)`; or a function
            from what is seen, `(N, M)` booleans, to such, e.g. `mvae_subsets()`. Columns are in
            the order of the guide's `names`, or of the batch. What is not seen is never in S.
        bound: "masked", L_S + L_C; "mixture", E_q_S[ln p(x|z)] - beta KL(q_S || p(z)); "tc",
            E_q_M[ln p(x|z)] - beta KL(q_M || q_S), without a prior; each averaged over L subsets.
            "marginal": L_S, summed over them, as in the MVAE.
        beta: The weight of the KLs, or a schedule, as in `BetaELBO`.
        stl: Whether to stick the landing: the guide's parameters are held in ln q_S and ln q_M at
            their own draws, which takes the variance from gradients near the optimum. Not in
            ln q_S at draws of q_M.
        num_particles: The number K of draws per datum.

    Raises:
        ValueError: If `mask` or `bound` is unknown, or as in `BetaELBO`; on the first loss, if the
            mask has another shape, a modality is no site of the model or the other way around, or
            `stl` meets sites without pathwise gradients, a support that moves with the guide's
            parameters, or a guide wrapped by a handler.
        TypeError: On the first loss, if the batch is no mapping of modalities.
        WeightlessError: On the first loss, if the guide has no density.

    References:
        Hirt et al. (2024), Learning Multi-Modal Generative Models with Permutation-Invariant
        Encoders and Tighter Variational Objectives, arXiv:2309.00380. Hwang et al. (2021),
        Multi-View Representation Learning via Total Correlation Objective ("tc").
        Roeder, Wu, Duvenaud (2017), Sticking the Landing, arXiv:1703.09194.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import Multimodal
        >>> model = Multimodal({"a": nn.Linear(1, 2), "b": nn.Linear(1, 3)}, latent_dim=1)
        >>> batch = {"a": torch.ones(1, 2), "b": torch.ones(1, 3)}
        >>> loss = MaskedELBO().loss(model, Exact(model), batch)  # of one draw of S and z
        >>> abs(loss + model.log_evidence(batch).item()) < 1e-5
        True
    """

    def __init__(
        self,
        mask: Literal["uniform_size", "bernoulli"] | Tensor | Subsets = "uniform_size",
        bound: Literal["masked", "mixture", "tc", "marginal"] = "masked",
        beta: float | Schedule = 1.0,
        *,
        stl: bool = False,
        num_particles: int = 1,
    ) -> None:
        super().__init__(beta, analytic=False, num_particles=num_particles)
        if bound not in ("masked", "mixture", "tc", "marginal"):
            raise ValueError(
                f"bound must be 'masked', 'mixture', 'tc' or 'marginal', but is {bound!r}"
            )
        known = mask in LAWS if isinstance(mask, str) else isinstance(mask, Tensor)
        if not (known or callable(mask)):
            raise ValueError(
                f"mask must be one of {list(LAWS)}, booleans, or a function from what is seen to "
                f"them, but is {mask!r}"
            )
        self.bound, self.stl = bound, stl
        self.law = LAWS[mask] if isinstance(mask, str) else mask if callable(mask) else None
        self.register_buffer("mask", mask if isinstance(mask, Tensor) else None)

    def differentiable_loss(self, model: Model, guide: Guide, batch: Batch) -> Tensor:
        """Return the loss summed over the batch, 0-d, to call backward on."""
        self._look(model, guide, batch)
        view = _view(guide, batch)
        draw = partial(self._draw, model, guide, view)
        whole = draw(view.seen) if self.bound in ("masked", "tc") else None
        values = [self._value(subset, whole, draw, view) for subset in self._subsets(view.seen)]
        self.record = {
            name: torch.stack([record[name] for _, record in values]).mean(0)
            for name in values[0][1]
        }
        total = torch.stack([value for value, _ in values])  # (L, N)
        return -(total.sum() if self.bound == "marginal" else total.mean(0).sum())

    def _require_sites(self, record: Record) -> None:
        if record.full_size != record.size:
            raise PairError(
                f'MaskedELBO takes each datum for itself, but plate "data" stands for '
                f"{record.full_size}, of which the batch has {record.size}: take the plate's size "
                "from the batch"
            )

    def _value(
        self, subset: Tensor, whole: "_Draw | None", draw: Callable, view: "_View"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the bound of a subset, `(N,)`, and its terms by name, per datum."""
        rest = view.seen & ~subset
        match self.bound:
            case "masked":
                marginal = self._marginal(draw(subset), subset)
                conditional = self._conditional(whole, rest, subset, view)
                terms = {"marginal": marginal, "conditional": conditional}
            case "mixture":
                terms = {"mixture": self._marginal(draw(subset), view.seen)}
            case "tc":
                terms = {"tc": self._conditional(whole, view.seen, subset, view)}
            case "marginal":
                terms = {"marginal": self._marginal(draw(subset), subset)}
        return sum(terms.values()), {n: term.detach().mean() for n, term in terms.items()}

    def _marginal(self, draw: "_Draw", of: Tensor) -> Tensor:
        """E_q_S[ln p(x_of|z)] - beta KL(q_S || p(z)), (N,)."""
        value = draw.log_likelihood(of)
        if not self.without_kl:
            value = value + self.beta * (draw.terms.log_prior - draw.log_guide)
        return draw.with_score(value)

    def _conditional(self, draw: "_Draw", of: Tensor, subset: Tensor, view: "_View") -> Tensor:
        """E_q_M[ln p(x_of|z)] - beta KL(q_M || q_S), (N,)."""
        value = draw.log_likelihood(of)
        if not self.without_kl:
            fn, args = view.at(subset)
            log_prior = _score(self._wrap(fn), draw.terms, *args)
            value = value + self.beta * (log_prior - draw.log_guide)
        return draw.with_score(value)

    def _draw(self, model: Model, guide: Guide, view: "_View", subset: Tensor) -> "_Draw":
        """Draw z ~ q_S, and score it under the model and under q_S."""
        fn, args = view.at(subset)
        guide_trace = poutine.trace(self._wrap(fn)).get_trace(*args)
        replayed = poutine.replay(self._wrap(model), trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(view.batch)
        traces = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        traces[0].compute_log_prob()
        traces[1].compute_score_parts()
        refuse_weightless(traces[1])
        _require_shared(traces[1])
        terms = Terms(*traces, torch.Size((self.num_particles, batch_size(view.batch))))
        log_guide = terms.log_guide
        if self.stl and torch.is_grad_enabled():
            _require_pathwise(terms)
            require_fixed_support(guide_trace, "stl=True", "take stl=False")
            log_guide = _held(guide, partial(_score, self._wrap(fn), terms), args)
        return _Draw(terms, log_guide, _likelihoods(terms, view.batch))

    def _wrap(self, fn: Callable) -> Callable:
        return self._vectorized_num_particles(fn)

    def _subsets(self, seen: Tensor) -> Tensor:
        """Return the subsets, (L, N, M)."""
        subsets = self.mask if self.law is None else self.law(seen)
        due = seen.shape[-1:] if subsets.ndim == 1 else seen.shape
        if subsets.dtype != torch.bool or subsets.ndim > 3 or subsets.shape[-2:] != due:
            raise ValueError(
                "the mask must be booleans of shape (M,), (N, M) or (L, N, M), where (N, M) = "
                f"{tuple(seen.shape)}, but is {subsets.dtype} of shape {tuple(subsets.shape)}"
            )
        subsets = subsets.expand(seen.shape) if subsets.ndim == 1 else subsets
        return seen & subsets.reshape(-1, *seen.shape)


class _View(NamedTuple):
    """A batch, what is seen of it, and what to call, on what, to sample q(z|x_S)."""

    batch: dict[str, Tensor]
    seen: Tensor  # (N, M)
    at: Callable[[Tensor], tuple[Callable, tuple]]


def _view(guide: Guide, batch: Batch) -> _View:
    if not isinstance(batch, Mapping):
        raise TypeError(
            "MaskedELBO needs a mapping of modalities for a batch, but got a "
            f"{type(batch).__name__}: of one modality, the ELBO is Trace_ELBO or BetaELBO"
        )
    if isinstance(guide, SetGuide):
        batch = modalities(batch, guide.names, "guide")
        h, there = guide.features(batch)
        return _View(batch, there, lambda subset: (guide.sample, (h, subset)))
    return _View(leaves(batch), seen(batch), lambda subset: (guide, (hide(batch, subset),)))


class _Draw(NamedTuple):
    """Draws of z ~ q_S, and what is said of them."""

    terms: Terms
    log_guide: Tensor  # (K, N), with the guide held where the landing is stuck to
    likelihoods: Tensor  # (K, N, M)

    def log_likelihood(self, of: Tensor) -> Tensor:
        """Ln p(x_of|z), (K, N)."""
        return torch.where(of, self.likelihoods, 0.0).sum(-1)

    def with_score(self, value: Tensor) -> Tensor:
        """Return the mean over draws, with the gradient of those without a path."""
        value, score = value.mean(0), self.terms.score
        if isinstance(score, Tensor):
            score = score.sum(0)
            value = value + (score - score.detach()) * value.detach()
        return value


def _require_shared(guide_trace: Trace) -> None:
    """Raise if a latent is a modality's own, and gone with it: subsets share none then."""
    for name, site in latent_sites(guide_trace).items():
        if isinstance(site["mask"], Tensor):
            raise ValueError(
                f"MaskedELBO needs a latent that all modalities share, but the guide masks "
                f"{name!r} where its modality is missing: take guides.Multimodal, or train this "
                "pair with BetaELBO"
            )


def _score(fn: Callable, terms: Terms, *args: object) -> Tensor:
    """Return the log density of draws under a guide, (K, N)."""
    replayed = poutine.replay(fn, trace=terms.guide_trace)
    trace = prune_subsample_sites(poutine.trace(replayed).get_trace(*args))
    trace.compute_log_prob()
    return Terms(terms.model_trace, trace, terms.shape).log_guide


def _likelihoods(terms: Terms, batch: Mapping[str, Tensor]) -> Tensor:
    """Return ln p(x_m|z), (K, N, M)."""
    sites = {
        name: site["log_prob"]
        for name, site in terms.model_trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and not site_is_factor(site)
    }
    if sites.keys() != batch.keys():
        raise ValueError(
            f"the model observes {list(sites)}, but the batch has the modalities {list(batch)}: "
            "name the model's sites after them"
        )
    return torch.stack([per_datum(name, sites[name], terms.shape) for name in batch], dim=-1)


class _Held(nn.Module):
    """A call of what a guide is part of, for `functional_call` to put constants into."""

    def __init__(self, guide: nn.Module, call: Callable) -> None:
        super().__init__()
        self.guide, self.call = guide, call

    def forward(self, *args: object) -> Tensor:
        return self.call(*args)


def _held(guide: Guide, call: Callable[..., Tensor], args: tuple) -> Tensor:
    """Return a call with the guide's parameters, and tensors made of them, as constants."""
    module = module_of(guide)
    if module is None:
        return call(*args)
    noisy = not isinstance(guide, SetGuide) and any(
        isinstance(m, nn.Dropout) and m.training and m.p for m in module.modules()
    )
    if module is not guide or noisy:
        raise ValueError(
            "stl=True runs the guide again with its parameters held, which a handler around it "
            "keeps from us, and dropout would make another guide: pass the guide itself, without "
            "dropout, or take stl=False"
        )
    constants = {f"guide.{name}": p.detach() for name, p in guide.named_parameters()}
    constants |= {f"guide.{name}": b.clone() for name, b in guide.named_buffers()}
    detached = [a.detach() if isinstance(a, Tensor) else a for a in args]
    return functional_call(_Held(guide, call), constants, tuple(detached))


def _require_pathwise(terms: Terms) -> None:
    if isinstance(terms.score, Tensor):
        raise ValueError(
            "stl=True needs pathwise gradients, which a site of the guide has not: take stl=False"
        )
