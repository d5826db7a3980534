"""What is done to pixels before a model sees them: functions of batch and generator."""

from typing import Literal

import torch
from torch import Tensor

from ppvae.protocols import Batch, map_batch

__all__ = ["Binarize", "bernoulli", "to_unit"]

Binarize = Literal["none", "threshold", "fixed", "dynamic"]


def to_unit(batch: Batch, generator: torch.Generator | None = None) -> Batch:
    """Return images with pixels in [0, 1]: bytes are divided by 255, floats are left alone.

    As the `transform` of `Batches` it lets images stay bytes, a quarter of the memory.

    Args:
        batch: x: (N, ...), bytes or floats.
        generator: Not used: nothing is random.

    Example:
        >>> to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    return map_batch(lambda x: x.float() / 255 if x.dtype == torch.uint8 else x, batch)


def bernoulli(batch: Batch, generator: torch.Generator | None = None) -> Batch:
    """Return images binarized at random: dynamically as a `transform`, fixed if called once.

        b ~ Bernoulli(x)

    Not a threshold: a gray pixel is 1 as often as it is bright, so the mean over epochs is the
    image.

    Args:
        batch: x: (N, ...), floats in [0, 1] or bytes; NaN, which marks a missing row, stays NaN.
        generator: Of the draws, on the batch's device; torch's own by default.

    References:
        Salakhutdinov, Murray (2008), On the Quantitative Analysis of Deep Belief Networks,
            section 5.
        Burda et al. (2016), Importance Weighted Autoencoders, arXiv:1509.00519, section 5
            (dynamic).

    Example:
        >>> bernoulli(torch.tensor([[0.0, 1.0]]))
        tensor([[0., 1.]])
    """

    def draw(x: Tensor) -> Tensor:
        # torch.bernoulli kills the CUDA context at a pixel outside [0, 1], and refuses NaN
        uniform = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return torch.where(x.isnan(), x, (uniform < x).to(x.dtype))

    return map_batch(draw, to_unit(batch))
