"""A Normal guide that knows correlations."""

import math
from functools import partial

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ppvae.guides.amortized import Amortized
from ppvae.protocols import Encoder

__all__ = ["FullRank"]

_ONE = torch.Size()


class FullRank(Amortized):
    """Normal posterior with a full covariance per datum.

        q(z|x) = N(z; m(x), L(x) L(x)'),  L lower triangular, its diagonal positive

    The head has D (D + 3) / 2 outputs, so that it suits latents of up to a few dozen.

    Args:
        encoder: Maps the batch x, `(N, ...)`, to features `(N, encoder.out_features)`.
        latent_dim: The size D of the latent.
        min_scale: The smallest diagonal element of L, in units of z.
        **kwargs: As in `Amortized`.

    Sites:
        z: (N, D) the latent: real, pathwise gradients. No KL to a factorized normal is registered,
            so `TraceMeanField_ELBO` estimates it from draws.

    Raises:
        TypeError: If `encoder` has no `out_features`.

    References:
        Kingma, Welling (2019), An Introduction to Variational Autoencoders, section 2.5.1.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.networks import MLP
        >>> guide = FullRank(MLP(8, 16), latent_dim=2)
        >>> poutine.trace(guide).get_trace(torch.rand(5, 8)).nodes["z"]["value"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self, encoder: Encoder, latent_dim: int, *, min_scale: float = 1e-4, **kwargs
    ) -> None:
        posterior = partial(full_rank, latent_dim=latent_dim, min_scale=min_scale)
        super().__init__(encoder, posterior, latent_dim * (latent_dim + 3) // 2, **kwargs)


def full_rank(h: Tensor, latent_dim: int, min_scale: float) -> dist.MultivariateNormal:
    """Return q(z|x), of batch shape (N,), from the head's outputs (N, D (D + 3) / 2)."""
    loc, diagonal, below = h.split([latent_dim, latent_dim, h.shape[-1] - 2 * latent_dim], dim=-1)
    rows, columns = torch.tril_indices(latent_dim, latent_dim, offset=-1, device=h.device)
    factor = torch.diag_embed(softplus(diagonal) + min_scale)  # (N, D, D)
    factor[..., rows, columns] = below
    return _Scored(loc, scale_tril=factor)


class _Scored(dist.MultivariateNormal):
    """Scores its own last draw by the noise it was made of.

    To solve L eps = z - m for it loses everything where L is ill-conditioned, and training then
    finds a density that is not there: 1e10 nats, on a sharp decoder.
    """

    drawn: tuple[Tensor, Tensor] | None = None  # z and eps

    def rsample(self, sample_shape: torch.Size = _ONE) -> Tensor:
        eps = torch.randn(
            self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device
        )
        z = self.loc + (self._unbroadcasted_scale_tril @ eps.unsqueeze(-1)).squeeze(-1)
        self.drawn = z, eps
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        if self.drawn is None or value is not self.drawn[0] or self._held(value):
            return super().log_prob(value)
        diagonal = self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1)
        eps = self.drawn[1]
        square = (eps.square() + math.log(2 * math.pi)).sum(-1)
        return -square / 2 - diagonal.log().sum(-1)

    def _held(self, value: Tensor) -> bool:
        """Return whether a gradient is due at a fixed draw, of `sample`: noise knows no score."""
        learned = self.loc.requires_grad or self._unbroadcasted_scale_tril.requires_grad
        return torch.is_grad_enabled() and learned and not value.requires_grad
