"""A learned sum over modalities."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae.aggregation.base import Aggregation, mixture
from ppvae.networks import MLP

__all__ = ["SumPooling", "perceptron"]


class SumPooling(Aggregation):
    """A network of the sum, over what was seen, of a network of each.

        g = sum_S chi(h_m),  (m, ln s) = rho(g),  q = N(z; m, (1e-3 + s)^2)

    Any continuous function of a set has this form, so that products of experts are among what can
    be learned.

    Args:
        latent_dim: The size D of the latent.
        width: Of g and of the hidden layers, two each in chi and rho.
        components: The number C of components of q.
        min_scale: Added to each s, in units of z.
        in_features: The size E of h_m; as of an expert by default.

    Raises:
        ValueError: As in `Aggregation`.

    References:
        Zaheer et al. (2017), Deep Sets, arXiv:1703.06114. Hirt et al. (2024), Learning Multi-Modal
        Generative Models with Permutation-Invariant Encoders, arXiv:2309.00380.

    Example:
        >>> q = SumPooling(2, width=16)(torch.zeros(5, 3, 4), torch.ones(5, 3) > 0)
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([2]))
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        width: int = 256,
        components: int = 1,
        min_scale: float = 1e-3,
        in_features: int | None = None,
    ) -> None:
        super().__init__(latent_dim, components=components, in_features=in_features)
        self.chi = perceptron(self.in_features, width, width)
        self.rho = perceptron(width, width, self.parameters_per_posterior)
        self.min_scale = min_scale

    def posterior(self, h: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """Return q(z|x_S), of batch shape (..., N)."""
        pooled = torch.where(seen.unsqueeze(-1), self.chi(h), 0.0).sum(-2)
        loc, log_scale, logits = self.read(self.rho(pooled))
        return mixture(loc, self.min_scale + log_scale.exp(), logits)


def perceptron(in_features: int, width: int, out_features: int) -> nn.Module:
    """Return a network of two hidden layers with leaky ReLU.

    Example:
        >>> len(perceptron(4, 8, 2))
        5
    """
    return MLP(in_features, width, width, out_features, activation=nn.LeakyReLU)
