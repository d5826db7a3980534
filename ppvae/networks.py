"""Encoders and decoders, made outside of models and guides and passed in.

Every network accepts extra leading dimensions, `(K, N, ...)` under K particles, and says its
`in_features` and `out_features`. None ends in an activation: a decoder's output is the natural
parameter of the likelihood, and a guide applies the activation to an encoder's features itself.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

__all__ = ["MLP", "ConvDecoder", "ConvEncoder"]


class MLP(nn.Sequential):
    """A fully connected network, activations between its layers and none after the last.

        h = W_L a(... a(W_1 x + v_1) ...) + v_L

    Args:
        *sizes: The layers' widths, in_features first, out_features last. As an encoder
            `MLP(784, 256)` is one hidden layer, since the guide adds activation and head.
        activation: Makes the activation a.

    Raises:
        ValueError: If fewer than two sizes are given, or the input does not end in `in_features`.

    Example:
        >>> MLP(784, 256)(torch.zeros(5, 1, 28, 28)).shape  # trailing axes are flattened
        torch.Size([5, 256])
    """

    def __init__(self, *sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        if len(sizes) < 2:
            raise ValueError(f"MLP needs in_features and out_features, but got sizes {sizes}")
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), activation())]
        super().__init__(*layers[:-1])
        self.in_features, self.out_features = sizes[0], sizes[-1]
        self.activation = activation  # a guide applies it to the features

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., in_features)`, or events of as many elements, to `(..., out_features)`."""
        return super().forward(flatten_event(x, self.in_features))


def flatten_event(x: Tensor, features: int) -> Tensor:
    """Flatten the trailing axes of x whose sizes multiply to `features`, leaving the others.

    An axis of size one before an image's sides is its channel, unless it is the first axis of x.

    Raises:
        ValueError: If no trailing axes do.

    Example:
        >>> flatten_event(torch.zeros(3, 5, 28, 28), 784).shape
        torch.Size([3, 5, 784])
        >>> flatten_event(torch.zeros(5, 1, 28, 28), 784).shape
        torch.Size([5, 784])
    """
    if x.shape[-1:] == (features,):
        return x
    for count in (3, 2, *range(4, x.ndim)):  # images with channels before those without
        if count < x.ndim and prod(x.shape[-count:]) == features:
            return x.flatten(-count)
    raise ValueError(
        f"a network with in_features={features} got an input of shape {tuple(x.shape)}, whose "
        f"last axes do not hold {features} elements: change the network's first size or the data"
    )


def _levels(image: Sequence[int], channels: Sequence[int]) -> tuple[int, int]:
    """Return the smallest feature map of an image halved once per channel count."""
    scale = 2 ** len(channels)
    if len(image) != 3 or image[1] % scale or image[2] % scale:
        raise ValueError(
            f"image must be (channels, height, width) with sides divisible by {scale} = "
            f"2^{len(channels)}, one halving per entry of channels={tuple(channels)}, "
            f"but is {tuple(image)}: choose fewer channels, or pad the image"
        )
    return image[1] // scale, image[2] // scale


class ConvEncoder(nn.Module):
    """Strided convolutions, each halving the image, then a linear layer.

    Args:
        image: The shape (C, H, W) of one datum; 28x28, 32x32 and 64x64 suit the defaults.
        out_features: The number of features.
        channels: The width of each level; level l has side H / 2^l.

    Raises:
        ValueError: If a side cannot be halved once per level.

    Example:
        >>> ConvEncoder((1, 28, 28), 256)(torch.zeros(3, 5, 1, 28, 28)).shape
        torch.Size([3, 5, 256])
    """

    def __init__(
        self, image: Sequence[int], out_features: int, *, channels: Sequence[int] = (32, 64)
    ) -> None:
        super().__init__()
        height, width = _levels(image, channels)
        self.image, self.in_features, self.out_features = tuple(image), prod(image), out_features
        convolutions = [
            layer
            for pair in pairwise((image[0], *channels))
            for layer in (nn.Conv2d(*pair, 4, stride=2, padding=1), nn.ReLU())
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

    Raises:
        ValueError: If a side cannot be halved once per level.

    Example:
        >>> ConvDecoder(16, (1, 28, 28))(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 5, 1, 28, 28])
    """

    def __init__(
        self, in_features: int, image: Sequence[int], *, channels: Sequence[int] = (64, 32)
    ) -> None:
        super().__init__()
        height, width = _levels(image, channels)
        self.image, self.in_features, self.out_features = tuple(image), in_features, prod(image)
        upsamplings = [
            layer
            for pair in pairwise((*channels, image[0]))
            for layer in (nn.ReLU(), nn.ConvTranspose2d(*pair, 4, stride=2, padding=1))
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
