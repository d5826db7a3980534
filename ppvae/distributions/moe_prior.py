"""A mixture of posteriors as a prior, and two closed forms of what it costs to stay near it."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

__all__ = ["MoEPrior", "VariationalMoEPrior"]


class MoEPrior(dist.MixtureSameFamily):
    """A mixture of experts in the role of a prior, whose KL is the mean of the experts' KLs.

        h(z) = sum_k w_k q_k(z),  KL(q || h) <= sum_k w_k KL(q || q_k)

    The right side is what is registered as the KL of a factorized Normal to this mixture: what
    published MMVM models minimize. Unbounded, it goes on pulling experts together where KL(q || h)
    itself, which never exceeds -ln w_k for q = q_k, has lost its gradient. Not the KL: by draws,
    as `Trace_ELBO` and `BetaELBO(analytic=False)` take it, the KL itself is to be had.

    Made of logits and experts, as `MixtureSameFamily` is; experts of weight 0 count nowhere. Draws
    have no pathwise gradients.

    References:
        Sutter et al. (2024), Unity by Diversity: Improved Representation Learning for Multimodal
        VAEs, arXiv:2403.05300.

    Example:
        >>> experts = dist.Normal(torch.tensor([[0.0], [2.0]]), 1.0).to_event(1)
        >>> h = MoEPrior(dist.Categorical(logits=torch.zeros(2)), experts)
        >>> q = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> torch.distributions.kl_divergence(q, h)  # d^2 / 4 at the distance d = 2
        tensor(1.)
    """

    @classmethod
    def of(
        cls, loc: Tensor, scale: Tensor, obs: Tensor, alpha: Tensor | float = 0.0
    ) -> "MoEPrior":
        """Return alpha N(0, I) + (1 - alpha) times the even mixture of the experts at hand.

        A row without any expert has N(0, I).

        Args:
            loc: Their means, (..., M, D).
            scale: Their standard deviations, (..., M, D), in units of z.
            obs: Which are at hand, (..., M) booleans; the others weigh 0.
            alpha: The share of N(0, I), between 0 and 1.

        Example:
            >>> zeros = torch.zeros(5, 3, 2)
            >>> MoEPrior.of(zeros, zeros + 1, torch.ones(5, 3).bool()).event_shape
            torch.Size([2])
        """
        alpha = alpha.to(loc) if isinstance(alpha, Tensor) else loc.new_full((), alpha)
        share = (1 - alpha) * obs / obs.sum(-1, keepdim=True).clamp(min=1)  # (..., M)
        rest = torch.where(obs.any(-1, keepdim=True), alpha, torch.ones_like(alpha))
        zeros = torch.zeros_like(loc[..., :1, :])
        experts = dist.Normal(
            torch.cat([loc, zeros], -2), torch.cat([scale, zeros + 1], -2)
        ).to_event(1)
        return cls(dist.Categorical(logits=torch.cat([share, rest], -1).log()), experts)

    @property
    def experts(self) -> dist.Independent:
        """The experts q_k, of batch shape (..., M)."""
        return self.component_distribution

    @property
    def weights(self) -> Tensor:
        """Their weights w_k, (..., M)."""
        return self.mixture_distribution.probs


class VariationalMoEPrior(MoEPrior):
    """The same mixture, with a bound on its KL that is tighter, and at most -ln w_k.

        KL(q || h) <= -ln sum_k w_k exp(-KL(q || q_k))

    References:
        Hershey, Olsen (2007), Approximating the Kullback Leibler Divergence between Gaussian
        Mixture Models, equation 20.

    Example:
        >>> experts = dist.Normal(torch.tensor([[0.0], [2.0]]), 1.0).to_event(1)
        >>> h = VariationalMoEPrior(dist.Categorical(logits=torch.zeros(2)), experts)
        >>> q = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> torch.distributions.kl_divergence(q, h)  # ln 2 - ln(1 + exp(-2))
        tensor(0.5662)
    """


@register_kl(dist.Independent, MoEPrior)
def _pairwise(q: dist.Independent, h: MoEPrior) -> Tensor:
    weights = h.weights
    return (weights * torch.where(weights > 0, _to_experts(q, h), 0.0)).sum(-1)  # 0 inf is NaN


@register_kl(dist.Independent, VariationalMoEPrior)
def _variational(q: dist.Independent, h: VariationalMoEPrior) -> Tensor:
    absent = h.weights == 0
    exponents = h.mixture_distribution.logits - torch.where(absent, 0.0, _to_experts(q, h))
    return -exponents.masked_fill(absent, -math.inf).logsumexp(-1)


def _to_experts(q: dist.Independent, h: MoEPrior) -> Tensor:
    """Return KL(q || q_k), (..., M)."""
    if type(q.base_dist) is not dist.Normal or q.event_shape != h.event_shape:
        raise TypeError(
            "the closed forms of the KL to a mixture of posteriors are those of a factorized "
            f"Normal of event shape {tuple(h.event_shape)}, Normal(m, s).to_event(1), but the "
            f"guide has {type(q.base_dist).__name__} of event shape {tuple(q.event_shape)}: take "
            "the KL by draws, with Trace_ELBO or BetaELBO(analytic=False)"
        )
    loc, scale = (t.unsqueeze(-2) for t in (q.base_dist.loc, q.base_dist.scale))  # (..., 1, D)
    return kl_divergence(dist.Normal(loc, scale).to_event(1), h.experts)
