"""Data sets, split by seed and ready for a model."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Split", "digits"]


@dataclass(frozen=True)
class Split:
    """A data set in two parts, with labels that no model sees.

    Attributes:
        train: (N, ...).
        test: (M, ...).
        train_labels: (N,) integers.
        test_labels: (M,) integers.
        image: The shape (C, H, W) of one datum as an image.
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    image: tuple[int, int, int]

    def to(self, device: str | torch.device) -> "Split":
        """Return the split with its data, not its labels, on a device."""
        return Split(
            self.train.to(device),
            self.test.to(device),
            self.train_labels,
            self.test_labels,
            self.image,
        )


def digits(*, binarize: bool = True, test_share: float = 0.2, seed: int = 0) -> Split:
    """Return scikit-learn's embedded digits: 1,797 images of 8 x 8 pixels, nothing downloaded.

    Args:
        binarize: Whether to call a pixel 1 from half its range on, for a Bernoulli likelihood;
            otherwise pixels lie in [0, 1] in steps of 1/16.
        test_share: The share of images held out.
        seed: Of the split.

    Returns:
        The split, images flat, (N, 64).

    Raises:
        ValueError: If `test_share` leaves one part empty.

    References:
        Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.

    Example:
        >>> split = digits()
        >>> split.train.shape, split.test.shape
        (torch.Size([1438, 64]), torch.Size([359, 64]))
    """
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.as_tensor(bundle.data, dtype=torch.float32) / 16
    if binarize:
        images = (images >= 0.5).float()
    labels = torch.as_tensor(bundle.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    count = int(len(images) * test_share)
    if not 0 < count < len(images):
        raise ValueError(f"test_share must lie between 0 and 1, but is {test_share}")
    test, train = order[:count], order[count:]
    return Split(images[train], images[test], labels[train], labels[test], (1, 8, 8))
