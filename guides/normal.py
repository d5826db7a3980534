"""The guide of the plain VAE."""

from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
from torch import Tensor
from torch.nn.functional import softplus

from ppvae.guides.amortized import Amortized
from ppvae.protocols import Encoder

__all__ = ["Normal"]


class Normal(Amortized):
    """Factorized Normal posterior, the mean field.

        q(z|x) = prod_d N(z_d; m_d(x), s_d(x)^2)

    Args:
        encoder: Maps the batch x, `(N, ...)`, to features `(N, encoder.out_features)`.
        latent_dim: The size D of the latent.
        min_scale: The smallest s, in units of z.
        scale: Makes s, less `min_scale`, of the head's outputs; `networks.bounded_exp` keeps it
            within exp(+- 5.3).
        **kwargs: As in `Amortized`.

    Sites:
        z: (N, D) the latent: real, pathwise gradients, KL to a normal prior in closed form.

    Raises:
        TypeError: If `encoder` has no `out_features`.

    References:
        Kingma, Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.networks import MLP
        >>> guide = Normal(MLP(8, 16), latent_dim=2)
        >>> poutine.trace(guide).get_trace(torch.rand(5, 8)).nodes["z"]["value"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        encoder: Encoder,
        latent_dim: int,
        *,
        min_scale: float = 1e-4,
        scale: Callable[[Tensor], Tensor] = softplus,
        **kwargs,
    ) -> None:
        posterior = partial(normal, min_scale=min_scale, scale=scale)
        super().__init__(encoder, posterior, 2 * latent_dim, **kwargs)


def normal(
    h: Tensor, min_scale: float, scale: Callable[[Tensor], Tensor] = softplus
) -> dist.Independent:
    """Return q(z|x), of batch shape (N,), from the head's outputs (N, 2 D)."""
    loc, raw = h.chunk(2, dim=-1)  # (N, D) each
    return dist.Normal(loc, scale(raw) + min_scale).to_event(1)
