"""Critics: networks that tell data from what a model makes of them."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from ppvae.networks.mlp import flatten_event

__all__ = ["PatchCritic"]


class PatchCritic(nn.Module):
    """PatchGAN: a logit for each patch of an image that it is data, not a reconstruction.

        layers x {Conv3, BatchNorm, LeakyReLU(0.3), Dropout(0.25)}

    The last layer has no LeakyReLU, but BatchNorm and dropout. Patches overlap: those of the
    defaults are 63 pixels wide, 8 apart, 32 x 32 of them in an image of 256 x 256, and for three
    channels there are 411,075 parameters. For 28 x 28 take `filters=(64, 64, 1)` and
    `strides=(2, 2, 1)`: 7 x 7 patches, 15 pixels wide.

    Batch statistics would make the critic blind: they give the logits of data and those of
    reconstructions, which pass one after the other, the same mean. The norms therefore keep their
    first averages, 0 and 1, and are scales and shifts; so they are in the paper's code, which
    calls its critic outside of training. The floor under variances and the momentum are Keras'
    defaults, 1e-3 and .99.

    Args:
        image: The shape (C, H, W) of one datum.
        filters: The width of each layer, the last being 1.
        strides: The stride of each layer.
        slope: Of LeakyReLU, where its argument is negative.
        dropout: The share of outputs set to 0 while training.
        batch_statistics: Whether the norms take those of the batch, all the same.

    Raises:
        ValueError: If `image` is not (C, H, W), or the filters do not end in 1 or do not match the
            strides.

    References:
        Isola et al. (2017), Image-to-Image Translation with Conditional Adversarial Networks,
        arXiv:1611.07004, section 3.2.2.
        Rivera (2023), How to train your VAE, arXiv:2309.13160 (the sizes).

    Example:
        >>> critic = PatchCritic((1, 28, 28), filters=(64, 64, 1), strides=(2, 2, 1))
        >>> critic(torch.zeros(5, 784)).shape
        torch.Size([5, 7, 7])
    """

    def __init__(
        self,
        image: Sequence[int],
        filters: Sequence[int] = (128, 128, 128, 64, 64, 1),
        strides: Sequence[int] = (2, 2, 2, 1, 1, 1),
        *,
        slope: float = 0.3,
        dropout: float = 0.25,
        batch_statistics: bool = False,
    ) -> None:
        super().__init__()
        _check(image, filters, strides)
        self.image, self.in_features = tuple(image), prod(image)
        height, width = image[1:]
        for stride in strides:
            height, width = -(-height // stride), -(-width // stride)  # rounded up
        self.out_features = height * width
        layers = []
        for (wide, out), stride in zip(pairwise((image[0], *filters)), strides, strict=True):
            layers += [
                nn.Conv2d(wide, out, 3, stride=stride, padding=1),
                nn.BatchNorm2d(out, eps=1e-3, momentum=0.01),
                nn.LeakyReLU(slope),
                nn.Dropout(dropout),
            ]
        del layers[-2]  # logits take either sign alike
        self.layers, self.batch_statistics = nn.Sequential(*layers), batch_statistics
        self.train()

    def train(self, mode: bool = True) -> "PatchCritic":
        """Set the mode of dropout; that of the norms only with `batch_statistics`."""
        super().train(mode)
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm2d):
                layer.train(mode and self.batch_statistics)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(..., C, H, W)`, or as many flat pixels, to logits `(..., H', W')`."""
        pixels = flatten_event(x, self.in_features)
        logits = self.layers(pixels.reshape(-1, *self.image)).squeeze(-3)
        return logits.reshape(*pixels.shape[:-1], *logits.shape[-2:])


def _check(image: Sequence[int], filters: Sequence[int], strides: Sequence[int]) -> None:
    if len(image) != 3:
        raise ValueError(f"image must be (channels, height, width), but is {tuple(image)}")
    if len(filters) != len(strides):
        raise ValueError(
            f"there are {len(filters)} filters={tuple(filters)} for {len(strides)} "
            f"strides={tuple(strides)}: give one of each for every layer"
        )
    if not filters or filters[-1] != 1:
        raise ValueError(
            f"filters must end in 1, the logit of a patch, but are {tuple(filters)}: add it, with "
            "its stride"
        )
