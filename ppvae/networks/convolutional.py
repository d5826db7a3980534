"""Plain strided convolutions: the small image networks."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from ppvae.networks.mlp import flatten_event

__all__ = ["ConvDecoder", "ConvEncoder"]


def _levels(image: Sequence[int], channels: Sequence[int], kernel: int) -> list[tuple[int, int]]:
    """Return the sides of an image halved once per channel count, itself first."""
    if kernel not in (3, 4):
        raise ValueError(f"kernel must be 4, for even sides, or 3, for any, but is {kernel}")
    scale = 2 ** len(channels)
    if len(image) != 3 or (kernel == 4 and (image[1] % scale or image[2] % scale)):
        raise ValueError(
            f"image must be (channels, height, width) with sides divisible by {scale} = "
            f"2^{len(channels)}, one halving per entry of channels={tuple(channels)}, "
            f"but is {tuple(image)}: choose fewer channels, or pad the image, or take kernel=3"
        )
    sides = [(image[1], image[2])]
    for _ in channels:
        sides.append(tuple(-(-side // 2) for side in sides[-1]))
    return sides


class ConvEncoder(nn.Module):
    """Strided convolutions, each halving the image, then a linear layer.

    Args:
        image: The shape (C, H, W) of one datum; 28x28, 32x32 and 64x64 suit the defaults.
        out_features: The number of features.
        channels: The width of each level; level l has side H / 2^l.
        kernel: Of the convolutions: 4, or 3, which rounds odd sides up.

    Raises:
        ValueError: If a side cannot be halved once per level.

    Example:
        >>> ConvEncoder((1, 28, 28), 256)(torch.zeros(3, 5, 1, 28, 28)).shape
        torch.Size([3, 5, 256])
    """

    def __init__(
        self,
        image: Sequence[int],
        out_features: int,
        *,
        channels: Sequence[int] = (32, 64),
        kernel: int = 4,
    ) -> None:
        super().__init__()
        height, width = _levels(image, channels, kernel)[-1]
        self.image, self.in_features, self.out_features = tuple(image), prod(image), out_features
        convolutions = [
            layer
            for pair in pairwise((image[0], *channels))
            for layer in (nn.Conv2d(*pair, kernel, stride=2, padding=1), nn.ReLU())
        ]
        features = channels[-1] * height * width
        self.layers = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(..., C, H, W)`, or as many flat pixels, to `(..., out_features)`."""
        pixels = flatten_event(x, self.in_features)
        images = pixels.reshape(-1, *self.image)  # convolutions take one batch axis
        return self.layers(images).reshape(*pixels.shape[:-1], self.out_features)


class ConvDecoder(nn.Module):
    """A linear layer, then transposed convolutions, each doubling the image.

    Args:
        in_features: The size of the latent.
        image: The shape (C, H, W) of one datum; 28x28, 32x32 and 64x64 suit the defaults.
        channels: The width of each level, the smallest image first.
        kernel: Of the convolutions: 4, or 3, which mirrors an encoder with kernel 3.

    Raises:
        ValueError: If a side cannot be halved once per level.

    Example:
        >>> ConvDecoder(16, (1, 28, 28))(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 5, 1, 28, 28])
    """

    def __init__(
        self,
        in_features: int,
        image: Sequence[int],
        *,
        channels: Sequence[int] = (64, 32),
        kernel: int = 4,
    ) -> None:
        super().__init__()
        (height, width), *larger = reversed(_levels(image, channels, kernel))
        padding = [tuple((side + kernel) % 2 for side in sides) for sides in larger]
        self.image, self.in_features, self.out_features = tuple(image), in_features, prod(image)
        upsamplings = [
            layer
            for pair, rest in zip(pairwise((*channels, image[0])), padding, strict=True)
            for layer in (
                nn.ReLU(),
                nn.ConvTranspose2d(*pair, kernel, stride=2, padding=1, output_padding=rest),
            )
        ]
        self.layers = nn.Sequential(
            nn.Linear(in_features, channels[0] * height * width),
            nn.Unflatten(-1, (channels[0], height, width)),
            *upsamplings,
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map latents `(..., in_features)` to images `(..., C, H, W)`."""
        flat = flatten_event(z, self.in_features)
        images = self.layers(flat.reshape(-1, self.in_features))
        return images.reshape(*flat.shape[:-1], *self.image)
