"""Pre-activation residual networks (ResNetV2) for square images: the large image networks."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from ppvae.networks.mlp import flatten_event

__all__ = ["ResNetDecoder", "ResNetEncoder"]

SIDE = 4  # of the smallest feature map
EPS = 1e-3  # Keras' default, in whose code the paper's networks are
MOMENTUM = 0.01  # Keras' .99: running averages over a hundred batches, since batches are small


class ResNetEncoder(nn.Module):
    """Residual blocks that halve a square image down to 4 x 4, with its features then flattened.

        LayerNorm over (H, W), Conv3, levels x {blocks x (h + Tri(h)), halving Tri + Conv1}, Conv1

    Tri is three times BatchNorm, ReLU, convolution. All but the last are of width `channels`; the
    last has `out_features / 16`. At 256 x 256 x 3, with the defaults, a `Normal` guide's head of
    512 latents makes it the paper's encoder, heads included: 6,917,184 parameters. A guide applies
    no activation to the features.

    BatchNorm couples the data of a batch while training, and takes particles as further data. Its
    running averages are Keras', slow: evaluate after some hundred steps, not after ten. As in the
    paper, every convolution has a bias, though a BatchNorm after it subtracts it while training.

    Args:
        image: The shape (C, S, S) of one datum, S = 4 x 2^levels: 32, 64, 128 or 256.
        out_features: The number of features, a multiple of 16.
        channels: The width of each convolution.
        blocks: The number of residual blocks before each halving.

    Raises:
        ValueError: If the image is not square or cannot be halved down to 4 x 4, or
            `out_features` is no multiple of 16.

    References:
        He et al. (2016), Identity Mappings in Deep Residual Networks, arXiv:1603.05027.
        Rivera (2023), How to train your VAE, arXiv:2309.13160 (the sizes).

    Example:
        >>> encoder = ResNetEncoder((1, 32, 32), 64, channels=8)
        >>> encoder(torch.zeros(3, 5, 1, 32, 32)).shape
        torch.Size([3, 5, 64])
    """

    def __init__(
        self,
        image: Sequence[int],
        out_features: int = 1024,
        *,
        channels: int = 128,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        levels, narrow = _levels(image), _per_pixel("out_features", out_features)
        self.image, self.in_features, self.out_features = tuple(image), prod(image), out_features
        self.activation = nn.Identity  # what a guide applies: the features are linear
        self.layers = nn.Sequential(
            nn.LayerNorm(image[1:], eps=EPS),
            nn.Conv2d(image[0], channels, 3, padding=1),
            *(
                layer
                for _ in range(levels)
                for layer in (*(_residual(channels) for _ in range(blocks)), _halving(channels))
            ),
            nn.Conv2d(channels, narrow, 1),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(..., C, S, S)`, or as many flat pixels, to `(..., out_features)`."""
        pixels = flatten_event(x, self.in_features)
        images = pixels.reshape(-1, *self.image)  # convolutions take one batch axis
        return self.layers(images).reshape(*pixels.shape[:-1], self.out_features)


class ResNetDecoder(nn.Module):
    """A linear layer to 4 x 4, then residual blocks that double the image up to its square.

        Linear, Conv3, levels x {blocks x (h + Tri(h)), doubling}, Conv1

    The last doubling has the image's channels. Linear output: a likelihood's parameters. At
    256 x 256 x 3, with 512 latents and the defaults, it is the paper's, of 4,040,556 parameters.
    For BatchNorm see `ResNetEncoder`.

    Args:
        in_features: The size of the latent.
        image: The shape (C, S, S) of one datum, S = 4 x 2^levels: 32, 64, 128 or 256.
        channels: The width of each convolution.
        blocks: The number of residual blocks before each doubling.
        hidden_features: The outputs of the linear layer, a multiple of 16.

    Raises:
        ValueError: If the image is not square or cannot be halved down to 4 x 4, or
            `hidden_features` is no multiple of 16.

    References:
        As in `ResNetEncoder`.

    Example:
        >>> decoder = ResNetDecoder(16, (1, 32, 32), channels=8, hidden_features=64)
        >>> decoder(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 5, 1, 32, 32])
    """

    def __init__(
        self,
        in_features: int,
        image: Sequence[int],
        *,
        channels: int = 128,
        blocks: int = 1,
        hidden_features: int = 1024,
    ) -> None:
        super().__init__()
        levels, narrow = _levels(image), _per_pixel("hidden_features", hidden_features)
        self.image, self.in_features, self.out_features = tuple(image), in_features, prod(image)
        widths = [channels] * (levels - 1) + [image[0]]
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden_features),
            nn.Unflatten(-1, (narrow, SIDE, SIDE)),
            nn.Conv2d(narrow, channels, 3, padding=1),
            *(
                layer
                for width in widths
                for layer in (*(_residual(channels) for _ in range(blocks)), _up(channels, width))
            ),
            nn.Conv2d(image[0], image[0], 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map latents `(..., in_features)` to images `(..., C, S, S)`."""
        flat = flatten_event(z, self.in_features)
        images = self.layers(flat.reshape(-1, self.in_features))
        return images.reshape(*flat.shape[:-1], *self.image)


class _Sum(nn.Module):
    """The sum of two branches."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, h: Tensor) -> Tensor:
        return self.one(h) + self.other(h)


def _conv(width: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """BatchNorm, ReLU, convolution, which keeps the side or halves it."""
    convolution = nn.Conv2d(width, out, kernel, stride=stride, padding=kernel // 2)
    return nn.Sequential(_norm(width), nn.ReLU(), convolution)


def _transposed(width: int, out: int) -> nn.Sequential:
    """BatchNorm, ReLU, transposed convolution, which doubles the side."""
    convolution = nn.ConvTranspose2d(width, out, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(_norm(width), nn.ReLU(), convolution)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=EPS, momentum=MOMENTUM)


def _tri(width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(width, width, 3), _conv(width, width, 3), _conv(width, width, 1, stride)
    )


def _residual(width: int) -> _Sum:
    return _Sum(nn.Identity(), _tri(width, 1))


def _halving(width: int) -> _Sum:
    return _Sum(_tri(width, 2), _conv(width, width, 1, 2))


def _up(width: int, out: int) -> _Sum:
    deep = nn.Sequential(_conv(width, out, 1), _transposed(out, out))
    return _Sum(deep, _transposed(width, out))


def _levels(image: Sequence[int]) -> int:
    """Return how often the image is halved down to 4 x 4."""
    side = image[-1]
    levels = (side // SIDE).bit_length() - 1
    if len(image) != 3 or image[1] != side or levels < 1 or side != SIDE * 2**levels:
        raise ValueError(
            f"image must be (channels, side, side), with a side that halves down to {SIDE} such "
            f"as 32, 64, 128 or 256, but is {tuple(image)}: pad the image, or resize it"
        )
    return levels


def _per_pixel(name: str, features: int) -> int:
    """Return the channels of a 4 x 4 map of as many features."""
    if features < SIDE**2 or features % SIDE**2:
        raise ValueError(
            f"{name} must be a multiple of {SIDE**2}, the pixels of the smallest feature map, but "
            f"is {features}"
        )
    return features // SIDE**2
