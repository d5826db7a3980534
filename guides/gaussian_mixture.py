"""A mixture of Normals per datum: the guide for posteriors with several modes."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ppvae.distributions import MixtureOfDiagNormals
from ppvae.guides.amortized import Amortized
from ppvae.protocols import Encoder

__all__ = ["GaussianMixture"]


class GaussianMixture(Amortized):
    """Mixture of K factorized Normals per datum, with pathwise gradients.

        q(z|x) = sum_c pi_c(x) prod_d N(z_d; m_cd(x), s_cd(x)^2)

    The density is exact, so the ELBO is a bound. Not a mixture over the population of data: that
    is a matter of the objective. The means start apart, one N(0, 1) draw each, since components
    that start equal stay equal. The weights of components that lie far apart hardly learn: see
    `ppvae.distributions.MixtureOfDiagNormals`.

    Args:
        encoder: Maps the batch x, `(N, ...)`, to features `(N, encoder.out_features)`.
        latent_dim: The size D of the latent.
        components: The number K of components, at least 2.
        min_scale: The smallest s, in units of z.
        **kwargs: As in `Amortized`.

    Sites:
        z: (N, D) the latent: real, pathwise gradients, no closed-form KL.

    Raises:
        TypeError: If `encoder` has no `out_features`.
        ValueError: If K < 2: the weights would receive no gradient.

    References:
        Jankowiak, Karaletsos (2019), Pathwise Derivatives for Multivariate Distributions,
        arXiv:1806.01856.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.networks import MLP
        >>> guide = GaussianMixture(MLP(8, 16), latent_dim=2, components=4)
        >>> poutine.trace(guide).get_trace(torch.rand(5, 8)).nodes["z"]["value"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        encoder: Encoder,
        latent_dim: int,
        *,
        components: int = 4,
        min_scale: float = 1e-4,
        **kwargs,
    ) -> None:
        if components < 2:
            raise ValueError(
                f"GaussianMixture needs components >= 2, but got {components}: use Normal for one"
            )
        posterior = partial(gaussian_mixture, components=components, min_scale=min_scale)
        super().__init__(encoder, posterior, components * (2 * latent_dim + 1), **kwargs)
        with torch.no_grad():
            self.head.bias[: components * latent_dim].normal_()


def gaussian_mixture(h: Tensor, components: int, min_scale: float) -> MixtureOfDiagNormals:
    """Return q(z|x), of batch shape (N,), from the head's outputs (N, K (2 D + 1))."""
    size = (h.shape[-1] // components - 1) // 2 * components  # K D
    locs, scales, logits = h.split([size, size, components], dim=-1)
    return MixtureOfDiagNormals(
        locs.unflatten(-1, (components, -1)),  # (N, K, D)
        softplus(scales).unflatten(-1, (components, -1)) + min_scale,
        logits,
    )
