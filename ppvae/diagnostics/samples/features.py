"""From images to features (N, F), a few at a time, by any network or by none."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppvae.weights import evaluating

__all__ = ["features_of", "image_shape"]

IMAGES = 500  # as many as a large network takes at once


def features_of(images: Tensor, extractor: nn.Module | None = None) -> Tensor:
    """Return features (N, F) of images, or what is given where there is no extractor.

    Args:
        images: As the extractor takes them, (N, ...); features (N, F) for None.
        extractor: Maps a batch to features; left as it was, in evaluation mode meanwhile.

    Raises:
        ValueError: If the features are not (N, F).

    Example:
        >>> features_of(torch.zeros(5, 1, 2, 2), nn.Flatten()).shape
        torch.Size([5, 4])
    """
    features = images.detach()
    if extractor is not None:
        with evaluating(extractor):
            features = torch.cat([extractor(some) for some in images.split(IMAGES)])
    if features.ndim != 2 or len(features) != len(images):
        of = (
            "without an extractor, what is given"
            if extractor is None
            else "the extractor's output"
        )
        raise ValueError(
            f"{of} must be features (N, F), but is of shape {tuple(features.shape)} for "
            f"{len(images)} images: "
            + ("pass extractor=" if extractor is None else "end it in nn.Flatten() or a pool")
        )
    return features


def image_shape(batch: Tensor, image: Sequence[int] | None) -> tuple[int, ...]:
    """Return (C, H, W): as given, of the batch (N, C, H, W), or a square of its pixels.

    Raises:
        ValueError: If the data are no square images, naming the argument.

    Example:
        >>> image_shape(torch.zeros(5, 64), None)
        (1, 8, 8)
    """
    if image is not None:
        return tuple(image)
    if batch.ndim == 4:
        return tuple(batch.shape[1:])
    side = math.isqrt(batch[0].numel())
    if side * side != batch[0].numel():
        raise ValueError(
            f"data of shape {tuple(batch.shape[1:])} are no square images: pass image=(C, H, W)"
        )
    return 1, side, side
