"""Modalities that look at each other before they are summed."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ppvae.aggregation.base import Aggregation, mixture
from ppvae.aggregation.pooling import perceptron
from ppvae.networks import MLP

__all__ = ["SelfAttention"]


class SelfAttention(Aggregation):
    """Self-attention over what was seen and a learned null token, then a sum and a network.

        g <- g + MHA(LN g),  g <- g + F(LN g)  in each block;  (m, ln s) = rho(sum LN g)

    The null token is always there, so that something can be attended to when nothing was seen.
    There is no code of position: the encoders say which modality it is.

    Args:
        latent_dim: The size D of the latent.
        width: Of the tokens and of the hidden layers.
        heads: Of the attention; they divide `width`.
        blocks: How many times.
        components: The number C of components of q.
        min_scale: Added to each s, in units of z.
        in_features: The size E of h_m; as of an expert by default.

    Raises:
        ValueError: If `heads` does not divide `width`, or as in `Aggregation`.

    References:
        Lee et al. (2019), Set Transformer, arXiv:1810.00825. Hirt et al. (2024), Learning
        Multi-Modal Generative Models with Permutation-Invariant Encoders, arXiv:2309.00380.

    Example:
        >>> q = SelfAttention(2, width=16)(torch.zeros(5, 3, 4), torch.zeros(5, 3) > 0)
        >>> bool(q.mean.isfinite().all())  # though nothing was seen
        True
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        width: int = 256,
        heads: int = 4,
        blocks: int = 1,
        components: int = 1,
        min_scale: float = 1e-3,
        in_features: int | None = None,
    ) -> None:
        super().__init__(latent_dim, components=components, in_features=in_features)
        if width % heads:
            raise ValueError(
                f"width must be a multiple of heads, but {width} is none of {heads}: choose e.g. "
                f"width={heads * (width // heads + 1)}"
            )
        self.embed = MLP(self.in_features, width, width, activation=nn.LeakyReLU)
        self.null = nn.Parameter(torch.randn(width) / width**0.5)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.rho = perceptron(width, width, self.parameters_per_posterior)
        self.min_scale = min_scale

    def posterior(self, h: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """Return q(z|x_S), of batch shape (..., N)."""
        g = self.embed(h)  # (..., N, M, W)
        g = torch.cat([self.null.expand_as(g[..., :1, :]), g], dim=-2)
        there = torch.cat([torch.ones_like(seen[..., :1]), seen], dim=-1)
        for block in self.blocks:
            g = block(g, there)
        pooled = torch.where(there.unsqueeze(-1), self.norm(g), 0.0).sum(-2)
        loc, log_scale, logits = self.read(self.rho(pooled))
        return mixture(loc, self.min_scale + log_scale.exp(), logits)


class _Block(nn.Module):
    """Attention and a network, each after a layer norm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.network = MLP(width, width, width)

    def forward(self, g: Tensor, there: Tensor) -> Tensor:
        """Map tokens `(..., T, W)`, of which those that are `there` can be attended to."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # (..., heads, T, W / heads)
            for part in self.projections(self.before(g)).chunk(3, dim=-1)
        )
        keys = there[..., None, None, :]  # for all heads and queries
        attended = scaled_dot_product_attention(q, k, v, attn_mask=keys)
        g = g + self.out(attended.transpose(-3, -2).flatten(-2))
        return g + self.network(self.between(g))
