"""GAMIX-VAE: the batch's mixture pulled to the prior, with or without a critic."""

from functools import partial
from math import isqrt, prod
from typing import Literal

import torch
from torch import nn

from ppvae.guides import Normal
from ppvae.networks import MLP, PatchCritic, ResNetDecoder, ResNetEncoder
from ppvae.objectives import MixtureELBO, ReconstructionCritic
from ppvae.recipes.pairs import pair
from ppvae.training import SVI

__all__ = ["gamix"]


def gamix(
    features: int,
    *,
    individual: float = 0.2,
    population: float = 1.0,
    moments: Literal["total", "means", "mixture"] = "total",
    critic_weight: float = 0.0,
    image: tuple[int, int, int] | None = None,
    resnet: bool = False,
    latent_dim: int = 32,
    hidden: tuple[int, ...] = (256, 256),
    **kwargs,
) -> SVI:
    """GAMIX-VAE: the batch's posterior as one mixture, pulled to the prior by its moments.

    By default a small setting of ours, of fully connected layers. The paper's is

        gamix(196608, image=(3, 256, 256), resnet=True, latent_dim=512, moments="means",
              critic_weight=100.0, likelihood="laplace", learning_rate=1e-4)

    on pixels in [-1, 1], 24,000 faces, batches of 10, with Adam's beta1 = 0.5. `individual=0.2` is
    the factor 0.1 of its code. Batches of less than 64 are noisy: their moments are the loss.

    Args:
        features: The number of elements of one datum, which the data hold flat.
        individual: The weight of the barrier that keeps each variance from collapsing.
        population: The weight of the KL of the batch's moments.
        moments: Which variance of the batch is pulled to the prior's, as in `MixtureELBO`.
        critic_weight: The weight of a PatchGAN critic of reconstructions; 0 leaves it out.
        image: The shape (C, H, W) of one datum; a gray square by default.
        resnet: Whether to build the paper's residual networks, for squares of 32 to 256 pixels.
        latent_dim: The size of the latent.
        hidden: The widths of the hidden layers without `resnet`.
        **kwargs: As in `pair`.

    Raises:
        ValueError: If `image` has not `features` elements, or the networks cannot halve it, or a
            weight is negative.

    References:
        Rivera (2023), How to train your VAE, arXiv:2309.13160.

    Example:
        >>> svi = gamix(64, hidden=(16,), latent_dim=2, critic_weight=1.0, device="cpu")
        >>> svi.loss.penalty_names
        ('population', 'individual', 'critic')
    """
    shape = _shape(features, image) if resnet or critic_weight != 0 else None
    penalties = {}
    if critic_weight != 0:
        penalties["critic"] = ReconstructionCritic(_critic(shape), critic_weight)
    if resnet:
        encoder = ResNetEncoder(shape)
        decoder = nn.Sequential(ResNetDecoder(latent_dim, shape), nn.Flatten(-3))
        optim = partial(torch.optim.Adam, betas=(0.5, 0.999))
    else:
        encoder, decoder = MLP(features, *hidden), MLP(latent_dim, *reversed(hidden), features)
        optim = torch.optim.Adam
    return pair(
        Normal,
        MixtureELBO(individual, population, moments, **penalties),
        features,
        latent_dim=latent_dim,
        encoder=encoder,
        decoder=decoder,
        optim=optim,
        **kwargs,
    )


def _shape(features: int, image: tuple[int, int, int] | None) -> tuple[int, int, int]:
    side = isqrt(features)
    shape = image or (1, side, side)
    if prod(shape) != features:
        raise ValueError(
            f"a datum has {features} elements, but image={shape} has {prod(shape)}: give image as "
            "(channels, height, width)"
        )
    return shape


def _critic(shape: tuple[int, int, int]) -> PatchCritic:
    """Return the paper's critic, or a smaller one, whose patches suit smaller images."""
    if min(shape[1:]) < 64:
        return PatchCritic(shape, filters=(64, 64, 1), strides=(2, 2, 1))
    return PatchCritic(shape)
