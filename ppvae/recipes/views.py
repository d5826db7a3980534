"""Networks and likelihoods by the sizes of modalities: what the multimodal recipes share."""

from torch import nn

from ppvae.likelihoods import Laplace, Likelihood, Normal
from ppvae.networks import MLP, ConvDecoder, ConvEncoder
from ppvae.protocols import Encoder

__all__ = ["view_likelihood", "view_networks"]

CHANNELS = (32, 64, 128)  # of the small convolutional pair of Sutter et al., arXiv:2403.05300


def view_networks(
    size: int | tuple[int, ...], latent_dim: int, hidden: tuple[int, ...]
) -> tuple[Encoder, nn.Module]:
    """Return a modality's encoder and decoder: MLPs, or convolutions for images (C, H, W).

    Args:
        size: The number of elements, or (C, H, W).
        latent_dim: The size of what the decoder takes.
        hidden: The widths of the encoder's layers; the last is the decoder's, and of the features
            of images.

    Raises:
        ValueError: If a size is neither, or there is no hidden layer.

    Example:
        >>> encoder, decoder = view_networks((1, 16, 16), 4, (32,))
        >>> decoder(torch.zeros(5, 4)).shape
        torch.Size([5, 1, 16, 16])
    """
    if not hidden:
        raise ValueError("hidden is empty: give at least one width, such as hidden=(128,)")
    if isinstance(size, int):
        return MLP(size, *hidden), MLP(latent_dim, hidden[-1], size)
    if len(size) != 3:
        raise ValueError(
            f"a modality's size is its number of elements, or (C, H, W) of images, but is {size}: "
            "flatten it, or build the pair from networks of your own"
        )
    encoder = ConvEncoder(size, hidden[-1], channels=CHANNELS, kernel=3)
    return encoder, ConvDecoder(latent_dim, size, channels=CHANNELS[::-1], kernel=3)


def view_likelihood(name: str, scale: float | None) -> str | Likelihood:
    """Return a likelihood by name, of a fixed scale unless that is None.

    Example:
        >>> view_likelihood("normal", 0.5)(torch.zeros(2)).scale
        tensor([0.5000, 0.5000])
    """
    heads = {"normal": Normal, "laplace": Laplace}
    return name if scale is None or name not in heads else heads[name](scale)
