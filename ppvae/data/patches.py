"""From gray images to whitened patches, the data of sparse coding."""

import torch
from torch import Tensor

__all__ = ["patches", "photographs", "whiten", "whitening_gain"]

GRAY = (0.299, 0.587, 0.114)  # the luma of red, green and blue, BT.601


def patches(images: Tensor, size: int = 16) -> Tensor:
    """Cut images into a grid of square patches, each of mean 0 and variance 1.

        x = (p - mean p) / s,  s^2 = sum_i (p_i - mean p)^2 / (size^2 - 1)

    So |x|^2 = size^2 - 1 for each. What the grid leaves over at the right and the bottom is lost.

    Args:
        images: (N, H, W) floats, whitened before: see `whiten`.
        size: The side of a patch, in pixels.

    Returns:
        (P, 1, size, size): image after image, each row by row.

    Raises:
        ValueError: If the images are no finite gray images, are smaller than a patch, or a patch
            is constant.

    References:
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473, appendix.

    Example:
        >>> x = patches(torch.randn(2, 40, 50), size=16)
        >>> x.shape, x[0].square().sum().round()
        (torch.Size([12, 1, 16, 16]), tensor(255.))
    """
    _require_images(images)
    if size < 2 or min(images.shape[1:]) < size:
        raise ValueError(
            f"images of {tuple(images.shape[1:])} pixels hold no patch of size {size}: take one "
            "between 2 and the smaller side"
        )
    grid = images.unfold(1, size, size).unfold(2, size, size).flatten(0, 2)  # (P, size, size)
    flat = grid.flatten(1)
    if constant := int((flat.amax(1) == flat.amin(1)).sum()):
        raise ValueError(
            f"{constant} of {len(flat)} patches are constant, and cannot be scaled to variance 1: "
            "whiten the images first, or leave out what is saturated or blank"
        )
    flat = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)
    return flat.reshape(-1, 1, size, size)


def whiten(images: Tensor, cutoff: float = 0.4) -> Tensor:
    """Flatten the spectrum of natural images, 1/f in amplitude, up to a cutoff.

        X'(k) = g(|k|) X(k),  g(f) = f exp(-(f / f0)^4)

    A convolution on the torus: structures at one border reach round to the other. The mean is
    removed, since g(0) = 0; nothing else is scaled. Not whitening by a covariance: no statistics
    of the images are used.

    Args:
        images: (N, H, W) floats, H and W at least 4.
        cutoff: f0, in cycles per pixel.

    Returns:
        (N, H, W), in the images' dtype.

    Raises:
        ValueError: If the images are no finite gray images, one is constant, or they are too
            small; if the cutoff is not positive.

    References:
        Olshausen, Field (1997), Sparse Coding with an Overcomplete Basis Set, section 4.

    Example:
        >>> whiten(torch.rand(2, 32, 48)).mean((1, 2)).abs().max() < 1e-6
        tensor(True)
    """
    _require_images(images)
    if min(images.shape[1:]) < 4:
        raise ValueError(
            f"images of {tuple(images.shape[1:])} pixels have no spectrum to flatten: both sides "
            "must be at least 4"
        )
    flat = images.flatten(1)
    if constant := int((flat.amax(1) == flat.amin(1)).sum()):
        raise ValueError(
            f"{constant} of {len(flat)} images are constant: nothing of them would be left but "
            "rounding; leave them out"
        )
    gain = whitening_gain(images.shape[1:], cutoff).to(images)
    return torch.fft.ifft2(gain * torch.fft.fft2(images)).real


def whitening_gain(shape: tuple[int, int], cutoff: float = 0.4) -> Tensor:
    """Return g(|k|) of `whiten`, (H, W) in float64, ordered as `torch.fft.fft2` orders k.

    Raises:
        ValueError: If the cutoff is not positive.

    Example:
        >>> whitening_gain((64, 64))[0, 3]  # three cycles in 64 pixels
        tensor(0.0469, dtype=torch.float64)
    """
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive, in cycles per pixel, but is {cutoff}")
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in shape)
    f = torch.hypot(rows[:, None], columns)  # (H, W), cycles per pixel
    return f * (-((f / cutoff) ** 4)).exp()


def photographs(size: int = 16) -> tuple[Tensor, Tensor]:
    """Return whitened patches of scikit-learn's two photographs, nothing downloaded.

    A temple in China and a flower, 427 x 640 each, turned gray. The right fifth of each is held
    out: patches drawn at random would have their neighbors on the other side.

    Args:
        size: The side of a patch, in pixels.

    Returns:
        Those to train on, and those held out, (P, 1, size, size) each: 1,664 and 416 of 16 x 16.

    Raises:
        ValueError: If no patch of that size fits in.

    Example:
        >>> [part.shape for part in photographs()]
        [torch.Size([1664, 1, 16, 16]), torch.Size([416, 1, 16, 16])]
    """
    from sklearn.datasets import load_sample_images

    colored = torch.stack([torch.tensor(image) for image in load_sample_images().images])
    gray = colored.double() / 255 @ torch.tensor(GRAY, dtype=torch.float64)  # (2, H, W)
    white = whiten(gray).float()
    border = white.shape[2] * 4 // 5 // size * size
    return patches(white[..., :border], size), patches(white[..., border:], size)


def _require_images(images: Tensor) -> None:
    if images.ndim != 3 or not images.is_floating_point() or images.numel() == 0:
        raise ValueError(
            f"images must be gray ones, floats of shape (N, H, W), but are {images.dtype} of "
            f"shape {tuple(images.shape)}: average color channels, and divide bytes by 255"
        )
    if bad := int((~images.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(f"{bad} of {len(images)} images hold NaN or infinity: mend or drop them")
