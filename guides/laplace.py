"""The guide of sparse coding's prior: peaked at its center, with heavier tails than a Normal."""

from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
from torch import Tensor
from torch.nn.functional import softplus

from ppvae.guides.amortized import Amortized
from ppvae.protocols import Encoder

__all__ = ["Laplace"]


class Laplace(Amortized):
    """Factorized Laplace posterior, for a Laplace prior.

        q(z|x) = prod_d exp(-|z_d - m_d(x)| / b_d(x)) / (2 b_d(x))
        KL(q || Laplace(0, 1)) = sum_d |m_d| - ln b_d - 1 + b_d exp(-|m_d| / b_d)

    Not a Laplace approximation: no mode is sought. The standard deviation is sqrt(2) b, not b.

    Args:
        encoder: Maps the batch x, `(N, ...)`, to features `(N, encoder.out_features)`.
        latent_dim: The size D of the latent.
        min_scale: The smallest b, in units of z.
        scale: Makes b, less `min_scale`, of the head's outputs; `networks.bounded_exp` keeps it
            within exp(+- 5.3).
        **kwargs: As in `Amortized`.

    Sites:
        z: (N, D) the latent: real, pathwise gradients, KL to a Laplace or Normal prior in closed
            form.

    Raises:
        TypeError: If `encoder` has no `out_features`.

    References:
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473 (a
        baseline).

    Example:
        >>> from pyro import poutine
        >>> from ppvae.networks import MLP
        >>> guide = Laplace(MLP(8, 16), latent_dim=2)
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
        posterior = partial(laplace, min_scale=min_scale, scale=scale)
        super().__init__(encoder, posterior, 2 * latent_dim, **kwargs)


def laplace(
    h: Tensor, min_scale: float, scale: Callable[[Tensor], Tensor] = softplus
) -> dist.Independent:
    """Return q(z|x), of batch shape (N,), from the head's outputs (N, 2 D)."""
    loc, raw = h.chunk(2, dim=-1)  # (N, D) each
    return dist.Laplace(loc, scale(raw) + min_scale).to_event(1)
