"""The importance-weighted bound, and its gradients."""

import math
from collections.abc import Callable
from functools import partial

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import constraints
from torch.func import functional_call

from ppvae.objectives.base import Objective, Terms
from ppvae.pairing import Record, knows_support, refuse_points
from ppvae.protocols import Batch, Guide, Model, batch_size, module_of
from ppvae.weights import latent_sites, refuse_marked

__all__ = ["IWELBO", "log_mean_exp", "require_fixed_support"]


class IWELBO(Objective):
    """The importance-weighted bound, or Rényi's of order alpha.

        1 / (1 - alpha) ln mean_k w_k^(1 - alpha),  w_k = p(x, z_k) / q(z_k|x)

    Tightens with K to ln p(x) for alpha = 0. Its plain gradient ("iwae") teaches the guide less
    and less as K grows; "dreg" removes that, unbiased; "stl" drops the score of q, biased for
    K > 1.

    Args:
        num_particles: The number K of draws per datum.
        estimator: Of the guide's gradient: "iwae", "dreg" or "stl". The last two need pathwise
            gradients, and run the guide twice.
        alpha: The order, below 1; alpha = 0 is the importance-weighted bound, alpha -> 1 the ELBO.

    Raises:
        ValueError: If `estimator` or `alpha` is unknown, or they do not go together; on the first
            loss, if "dreg" or "stl" meets a site without pathwise gradients, one whose support
            moves with its parameters, as `guides.Epanechnikov`'s, dropout, or a guide that reads
            parameters of the model, as `guides.Poisson` does.
        WeightlessError: On the first loss, if a site of the guide says that it has no weights.

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

    def _require_sites(self, record: Record) -> None:
        if not any(site.mark.weightless for site in record.guide.values()):  # which says why
            refuse_points(record.points)

    def objective(self, terms: Terms) -> Tensor:
        """Return the bound; its gradient is the estimator's."""
        refuse_marked(terms.guide_trace)
        log_w = terms.log_weight
        bound = log_mean_exp((1 - self.alpha) * log_w) / (1 - self.alpha)
        self._record(log_likelihood=terms.log_likelihood, kl=terms.log_guide - terms.log_prior)
        if self.estimator == "iwae" or not torch.is_grad_enabled():  # estimators are of gradients
            return bound
        if isinstance(terms.score, Tensor):
            raise ValueError(
                f"estimator={self.estimator!r} needs pathwise gradients, which a site of the "
                "guide has not: use estimator='iwae'"
            )
        normalized = log_w.detach().softmax(0)  # (K, N)
        return bound.detach() + (normalized * (log_w - log_w.detach())).sum(0)

    def _traces(self, model: Model, guide: Guide, batch: Batch) -> tuple[Trace, Trace]:
        """Score draws under the guide, its parameters held: only the path's gradient is left."""
        if self.estimator == "iwae":
            return super()._traces(model, guide, batch)
        wrap = self._vectorized_num_particles
        drawn = poutine.trace(wrap(guide)).get_trace(batch)
        _require_repeatable(drawn)
        require_fixed_support(drawn, f"estimator={self.estimator!r}", "use estimator='iwae'")
        sites = latent_sites(drawn).values()
        for site in sites:
            site["value"] = site["value"].view_as(site["value"])  # a node of its own, for the hook
        guide_trace = _scored_by_held(guide, wrap, drawn, batch)
        if is_validation_enabled():
            _require_apart(model, guide_trace)
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


def _require_repeatable(drawn: Trace) -> None:
    """Raise if a density depends on numbers drawn on the way: the second run draws others."""
    for name, site in latent_sites(drawn).items():
        if reason := site["infer"].get("conditional"):
            raise ValueError(
                f"estimators 'dreg' and 'stl' run the guide twice, and its density of {name!r} is "
                f"another then: {reason}. Use estimator='iwae'"
            )


def require_fixed_support(drawn: Trace, what: str, mend: str) -> None:
    """Raise if the ends of a guide's support move with its parameters.

    There E[d ln q/dz dz/dphi] is not what is left of the gradient, or has an infinite variance: by
    1 / t at a distance t from an end where q falls to zero as t does.
    """
    for name, site in latent_sites(drawn).items():
        support = site["fn"].support if knows_support(site["fn"]) else None
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        ends = (getattr(support, end, None) for end in ("lower_bound", "upper_bound"))
        if any(isinstance(end, Tensor) and end.requires_grad for end in ends):
            raise ValueError(
                f"{what} differentiates ln q along the draws, but the support of the guide's site "
                f"{name!r} ends where its parameters say, and the gradient has an infinite "
                f"variance, or a bias, from there: {mend}"
            )


def _require_apart(model: Model, guide_trace: Trace) -> None:
    """Raise if q depends on the model's parameters: what is held must be all that q has."""
    module = module_of(model)
    named = dict(module.named_parameters()) if module is not None else {}
    named = {name: p for name, p in named.items() if p.requires_grad}
    log_q = guide_trace.log_prob_sum()
    if not named or not log_q.requires_grad:
        return
    found = torch.autograd.grad(log_q, [*named.values()], retain_graph=True, allow_unused=True)
    shared = [name for name, g in zip(named, found, strict=True) if g is not None]
    if shared:
        raise ValueError(
            f"estimators 'dreg' and 'stl' hold the guide's parameters, but it also reads "
            f"{', '.join(shared)} of the model, whose gradient would be wrong: use "
            "estimator='iwae'"
        )


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
    scoring, module = _Scoring(guide, wrap, drawn), module_of(guide)
    if module is None:
        return scoring(batch)
    if module is not guide:
        raise ValueError(
            "estimators 'dreg' and 'stl' hold the guide's parameters, which they cannot reach "
            "through a handler: pass the guide itself, or use estimator='iwae'"
        )
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
