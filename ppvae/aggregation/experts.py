"""Experts, one per modality: their product, their mixture, and the mixture of their products."""

import pyro.distributions as dist
import torch
from torch import Tensor

from ppvae.aggregation.base import ABSENT, Aggregation, mixture

__all__ = ["MoE", "MoPoE", "PoE"]


class PoE(Aggregation):
    """The product of the seen experts and of the prior N(0, I), itself Normal.

        T_m = 1 / (v + exp(2 s_m)),  L = 1 + sum_S T_m,  q = N(z; sum_S T_m m_m / L, 1 / L)

    Exact for a model with independent coordinates, as p(z|x_S) is proportional to p(z) prod_S
    p(x_m|z) there: an expert stands for the likelihood, not for the posterior of one modality,
    which would count the prior once each. Nothing seen leaves the prior.

    Args:
        latent_dim: The size D of the latent.
        components: C: component c is the product of the experts' components c, of weight
            proportional to the product of theirs. Not the product of mixtures, which has C^M.
        min_variance: v, the smallest variance of an expert, in units of z^2.

    Raises:
        ValueError: As in `Aggregation`.

    References:
        Wu, Goodman (2018), Multimodal Generative Models for Scalable Weakly-Supervised Learning,
        arXiv:1802.05335, equation 3.

    Example:
        >>> q = PoE(1, min_variance=0.0)(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[True]]))
        >>> q.mean, q.variance
        (tensor([[1.]]), tensor([[0.5000]]))
    """

    def __init__(
        self, latent_dim: int, *, components: int = 1, min_variance: float = 1e-3
    ) -> None:
        super().__init__(latent_dim, components=components)
        self.min_variance = min_variance

    def posterior(self, h: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """Return q(z|x_S), of batch shape (..., N)."""
        everything = torch.ones(1, seen.shape[-1], dtype=torch.bool, device=h.device)
        return mixture(*self._products(h, seen, everything))

    def _products(self, h: Tensor, seen: Tensor, members: Tensor) -> tuple[Tensor, ...]:
        """Return loc, scale and logits of the products over subsets, one of them per row.

        Args:
            h: (..., M, E).
            seen: (..., M).
            members: Which modalities a subset has, (B, M).

        Returns:
            (..., B C, D) twice and (..., B C).
        """
        loc, log_scale, logits = self.read(h)  # (..., M, C, D) twice, (..., M, C)
        there = seen[..., None, None]
        variance = self.min_variance + (2 * log_scale).clamp(max=80).exp()  # finite in float32
        precision = torch.where(there, 1 / variance, 0.0)
        members = members.to(h.dtype)
        total = 1 + torch.einsum("bm,...mcd->...bcd", members, precision)
        loc = torch.einsum("bm,...mcd->...bcd", members, precision * loc) / total
        logits = members @ torch.where(seen.unsqueeze(-1), logits, 0.0)  # (..., B, C)
        return loc.flatten(-3, -2), total.rsqrt().flatten(-3, -2), logits.flatten(-2)


class MoE(Aggregation):
    """The mixture of the seen experts, with equal weights; of nothing seen, the prior N(0, I).

        q = 1/|S| sum_S N(z; m_m, s_m^2)

    Never the posterior of a model whose modalities add what they know: for two or more it is too
    wide. Draws have pathwise gradients.

    Args:
        latent_dim: The size D of the latent.
        components: C: each expert is itself a mixture of so many Normals.
        min_scale: Added to each s, in units of z.

    Raises:
        ValueError: As in `Aggregation`.

    References:
        Shi et al. (2019), Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
        Generative Models, arXiv:1911.03393.

    Example:
        >>> h = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])  # two experts, means -1 and 1
        >>> MoE(1, min_scale=0.0)(h, torch.tensor([[True, True]])).variance
        tensor([[2.]])
    """

    def __init__(self, latent_dim: int, *, components: int = 1, min_scale: float = 1e-3) -> None:
        super().__init__(latent_dim, components=components)
        self.min_scale = min_scale

    def posterior(self, h: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """Return q(z|x_S), of batch shape (..., N)."""
        loc, log_scale, logits = self.read(h)  # (..., M, C, D) twice, (..., M, C)
        there = seen[..., None, None]
        scale = torch.where(there, self.min_scale + log_scale.exp(), 1.0)
        logits = torch.where(seen.unsqueeze(-1), logits.log_softmax(-1), ABSENT)
        none = torch.where(seen.any(-1, keepdim=True), ABSENT, 0.0).to(h)  # the prior's, (..., 1)
        prior = torch.zeros_like(loc[..., 0, :1, :])  # (..., 1, D)
        return mixture(
            torch.cat([torch.where(there, loc, 0.0).flatten(-3, -2), prior], -2),
            torch.cat([scale.flatten(-3, -2), torch.ones_like(prior)], -2),
            torch.cat([logits.flatten(-2), none], -1),
        )


class MoPoE(PoE):
    """The mixture, with equal weights, of the products of all nonempty subsets of the seen.

        q = 1 / (2^|S| - 1) sum_(B in S, B not empty) PoE_B(z)

    Each product has the prior as an expert; nothing seen leaves the prior. There are 2^M
    components, so that this is for M of 10 at most.

    Args:
        latent_dim: The size D of the latent.
        components: C: as in `PoE`, of each product.
        min_variance: As in `PoE`.

    Raises:
        ValueError: As in `Aggregation`.

    References:
        Sutter, Daunhawer, Vogt (2021), Generalized Multimodal ELBO, arXiv:2105.02470.

    Example:
        >>> h = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])
        >>> q = MoPoE(1, min_variance=0.0)(h, torch.tensor([[True, True]]))
        >>> q.probs  # of the products of nothing, of one, of the other, and of both
        tensor([[0.0000, 0.3333, 0.3333, 0.3333]])
    """

    def posterior(self, h: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """Return q(z|x_S), of batch shape (..., N)."""
        count = seen.shape[-1]
        bits = torch.arange(count, device=h.device)
        members = (torch.arange(2**count, device=h.device)[:, None] >> bits) % 2 == 1  # (2^M, M)
        loc, scale, logits = self._products(h, seen, members)
        there = (seen.unsqueeze(-2) | ~members).all(-1)  # (..., 2^M): no member is missing
        empty = ~members.any(-1)
        there = torch.where(empty, ~seen.any(-1, keepdim=True), there)
        logits = logits.unflatten(-1, (2**count, -1)).log_softmax(-1)  # (..., 2^M, C)
        return mixture(loc, scale, torch.where(there.unsqueeze(-1), logits, ABSENT).flatten(-2))
