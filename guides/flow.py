"""A normalizing flow per datum, by zuko."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppvae.guides.amortized import Amortized
from ppvae.protocols import Encoder

if TYPE_CHECKING:
    from pyro.contrib.zuko import ZukoToPyro

__all__ = ["Flow"]


class Flow(Amortized):
    """Normalizing flow posterior: a factorized Normal, bent by affine coupling layers.

        z = T_L(... T_1(m(x) + s(x) e; x) ...; x),  e ~ N(0, I_D)
        ln q(z|x) = ln N(e; 0, I) - ln |det dz/de|

    Coupling layers invert in one pass, so that draws and densities at given points cost the same.

    Args:
        encoder: Maps the batch x, `(N, ...)`, to features `(N, encoder.out_features)`.
        latent_dim: The size D of the latent; with D = 1 the posterior is a Normal.
        transforms: The number L of coupling layers, alternating between halves.
        hidden_features: The widths of the network in each layer.
        context_features: The size of the linear head that tells the layers about x.
        min_scale: The smallest s, in units of z.
        **kwargs: As in `Amortized`.

    Sites:
        z: (N, D) the latent: real, pathwise gradients, no closed-form KL.

    Raises:
        TypeError: If `encoder` has no `out_features`.

    References:
        Rezende, Mohamed (2015), Variational Inference with Normalizing Flows, arXiv:1505.05770.
        Dinh, Sohl-Dickstein, Bengio (2017), Density Estimation Using Real NVP, arXiv:1605.08803.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.networks import MLP
        >>> guide = Flow(MLP(8, 16), latent_dim=2)
        >>> poutine.trace(guide).get_trace(torch.rand(5, 8)).nodes["z"]["value"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        encoder: Encoder,
        latent_dim: int,
        *,
        transforms: int = 4,
        hidden_features: tuple[int, ...] = (64,),
        context_features: int = 32,
        min_scale: float = 1e-4,
        **kwargs,
    ) -> None:
        posterior = _Coupling(latent_dim, context_features, transforms, hidden_features, min_scale)
        super().__init__(encoder, posterior, context_features + 2 * latent_dim, **kwargs)


class _Coupling(nn.Module):
    """The flow: from the head's outputs (N, context + 2 D) to a distribution over z."""

    def __init__(
        self,
        latent_dim: int,
        context: int,
        transforms: int,
        hidden_features: tuple[int, ...],
        min_scale: float,
    ) -> None:
        super().__init__()
        with _validation_restored():
            import zuko
        order = torch.arange(latent_dim)
        layers = [
            zuko.flows.MaskedAutoregressiveTransform(
                latent_dim,
                context,
                passes=2,
                order=order if index % 2 else order.flip(0),
                hidden_features=hidden_features,
            )
            for index in range(transforms)
        ]
        self.sizes = [context, latent_dim, latent_dim]
        self.min_scale = min_scale
        self.transform = zuko.lazy.LazyComposedTransform(*layers)

    def forward(self, h: Tensor) -> "ZukoToPyro":
        import zuko
        from pyro.contrib.zuko import ZukoToPyro

        context, loc, scale = h.split(self.sizes, dim=-1)
        base = dist.Normal(loc, softplus(scale) + self.min_scale).to_event(1)
        return ZukoToPyro(zuko.distributions.NormalizingFlow(self.transform(context), base))


@contextmanager
def _validation_restored() -> Iterator[None]:
    """Undo what importing zuko does: it switches off argument validation for all distributions."""
    flag = torch.distributions.Distribution._validate_args
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(flag)
