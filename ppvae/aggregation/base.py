"""What all aggregations share: their input, and how they read Normals and mixtures off numbers."""

from abc import abstractmethod
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae.distributions import MixtureOfDiagNormals

__all__ = ["ABSENT", "Aggregation", "Components"]

ABSENT = -1e30  # a log weight of zero: unlike -inf, it makes no NaN of a gradient


class Components(NamedTuple):
    """C factorized Normals and their weights.

    Attributes:
        loc: (..., C, D), in units of z.
        log_scale: (..., C, D).
        logits: The log weights up to a constant, (..., C).
    """

    loc: Tensor
    log_scale: Tensor
    logits: Tensor


class Aggregation(nn.Module):
    """The template: a subclass says `posterior(h, seen)`, where h is zero for what was not seen.

    Abstract.

    Args:
        latent_dim: The size D of the latent.
        components: The number C of components of the posterior, or of each expert.
        in_features: The size E of what an encoder says; C (2 D + 1), or 2 D for C = 1, by default.

    Raises:
        ValueError: If D or C is not positive; on the first call, if h or `seen` has another shape.
    """

    def __init__(
        self, latent_dim: int, *, components: int = 1, in_features: int | None = None
    ) -> None:
        super().__init__()
        if latent_dim < 1 or components < 1:
            raise ValueError(
                f"latent_dim and components must be at least 1, but are {latent_dim} and "
                f"{components}"
            )
        self.latent_dim, self.components = latent_dim, components
        size = 2 * latent_dim if components == 1 else components * (2 * latent_dim + 1)
        self.parameters_per_posterior = size
        self.in_features = size if in_features is None else in_features

    @abstractmethod
    def posterior(self, h: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """Return q(z|x_S), of batch shape (..., N) and event shape (D,)."""

    def forward(self, h: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """Return q(z|x_S) from h, `(..., N, M, E)`, and S, `(..., N, M)` booleans."""
        if h.shape[-1] != self.in_features:
            raise ValueError(
                f"{type(self).__name__} takes {self.in_features} features of each modality, but "
                f"got h of shape {tuple(h.shape)}: end each encoder in a linear head of "
                f"{self.in_features}, as guides.Multimodal does, or set in_features"
            )
        if seen.dtype != torch.bool or seen.shape[-2:] != h.shape[-3:-1]:
            raise ValueError(
                f"seen must be booleans of shape (N, M) = {tuple(h.shape[-3:-1])}, but is "
                f"{seen.dtype} of shape {tuple(seen.shape)}: protocols.seen(batch) makes them"
            )
        return self.posterior(torch.where(seen.unsqueeze(-1), h, 0.0), seen)

    def read(self, h: Tensor) -> Components:
        """Return components, from numbers `(..., 2 D)`, or `(..., C (2 D + 1))`."""
        if self.components == 1:
            loc, log_scale = h.unsqueeze(-2).chunk(2, dim=-1)
            return Components(loc, log_scale, torch.zeros_like(h[..., :1]))
        size = self.components * self.latent_dim
        loc, log_scale, logits = h.split([size, size, self.components], dim=-1)
        shape = (self.components, self.latent_dim)
        return Components(loc.unflatten(-1, shape), log_scale.unflatten(-1, shape), logits)


def mixture(loc: Tensor, scale: Tensor, logits: Tensor) -> dist.TorchDistribution:
    """Return the mixture of C factorized Normals, or the one Normal."""
    if loc.shape[-2] == 1:
        return dist.Normal(loc.squeeze(-2), scale.squeeze(-2)).to_event(1)
    return MixtureOfDiagNormals(loc, scale, logits)
