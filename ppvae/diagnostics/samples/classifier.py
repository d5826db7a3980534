"""A small classifier trained here: its features stand in for Inception's, its labels for eyes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppvae.diagnostics.samples.features import features_of, image_shape

BATCH = 128

__all__ = ["ClassMismatch", "Classifier", "class_mismatch", "train_classifier"]


class Classifier(nn.Module):
    """Two convolutions and two linear layers: from images to features, and on to classes.

    Called, it returns the features that its last layer takes, for `frechet_distance`: a distance
    in them is named FID-r, and depends on this very classifier. Not trained here: see
    `train_classifier`.

    Args:
        image: The shape (C, H, W) of one image, sides at least 4.
        classes: How many.
        features: The size F of what it returns.

    Attributes:
        accuracy: On images held out by `train_classifier`; NaN before.

    Example:
        >>> classifier = Classifier((1, 8, 8), classes=10, features=16)
        >>> classifier(torch.rand(5, 64)).shape, classifier.predict(torch.rand(5, 64)).shape
        (torch.Size([5, 16]), torch.Size([5]))
    """

    def __init__(self, image: Sequence[int], classes: int, *, features: int = 64) -> None:
        super().__init__()
        self.image, self.accuracy = tuple(image), float("nan")
        channels, height, width = self.image
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), features),
            nn.LeakyReLU(0.1),  # ReLU would leave many features at 0 for good
        )
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W), or as many flat pixels, to features (N, F)."""
        return self.body(images.reshape(len(images), *self.image))

    def predict(self, images: Tensor) -> Tensor:
        """Return the most probable class of each image, (N,).

        Example:
            >>> Classifier((1, 8, 8), classes=10).predict(torch.rand(5, 64)).shape
            torch.Size([5])
        """
        with torch.no_grad():
            return self.head(features_of(images, self)).argmax(-1)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    image: Sequence[int] | None = None,
    features: int = 64,
    steps: int = 1000,
    seed: int = 0,
) -> Classifier:
    """Train a small classifier, nine tenths of the data for it and one to measure its accuracy.

    The same images, labels and seed give the same classifier on one kind of device; the global
    random numbers are left alone. Adam, 3e-3 falling to 0 along a cosine, batches of 128.

    Args:
        images: In [0, 1], (N, ...), (C, H, W) each or flat.
        labels: (N,) integers from 0 on.
        image: The shape (C, H, W) of one; read off the images, or a square, by default.
        features: The size F of its features.
        steps: Of the optimizer.
        seed: Of the initial weights, the order and the held-out tenth.

    Raises:
        ValueError: If labels are no integers, one per image, or images no floating numbers.

    Example:
        >>> from ppvae.data import digits
        >>> split = digits()
        >>> train_classifier(split.train, split.train_labels, steps=200).accuracy > 0.8
        True
    """
    if labels.shape != images.shape[:1] or labels.is_floating_point() or len(labels) < 10:
        raise ValueError(
            f"labels must be integers, one per image and 10 at least, but are {labels.dtype} of "
            f"shape {tuple(labels.shape)} for images of shape {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise ValueError(f"images must be in [0, 1], but are {images.dtype}: divide by 255")
    labels = labels.to(images.device).long()
    order = torch.Generator().manual_seed(seed)
    held, rest = torch.randperm(len(images), generator=order).tensor_split([len(images) // 10])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape, classes = image_shape(images, image), int(labels.max()) + 1
        classifier = Classifier(shape, classes, features=features).to(images)
    optim = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = rest[torch.randint(len(rest), (BATCH,), generator=order)]
            loss = cross_entropy(classifier.head(classifier(images[rows])), labels[rows])
            optim.zero_grad()
            loss.backward()
            optim.step()
            schedule.step()
    classifier.eval().requires_grad_(False)
    classifier.accuracy = float((classifier.predict(images[held]) == labels[held]).double().mean())
    return classifier


@dataclass(frozen=True)
class ClassMismatch:
    """How far the class frequencies of samples are from those they should have.

    Attributes:
        l1: sum_c |f_c - p_c|.
        l2: sqrt(sum_c (f_c - p_c)^2).
        cross_entropy: -sum_c p_c ln f_c, in nats, at least the entropy of p; infinite where a
            class is missing.
    """

    l1: float
    l2: float
    cross_entropy: float


def class_mismatch(labels: Tensor, frequencies: Tensor) -> ClassMismatch:
    """Compare the class frequencies of samples, as a classifier labels them, with the right ones.

    Zero is out of reach: 5,000 draws of ten equal classes have l1 = 0.034, l2 = 0.013 on average,
    and a cross entropy 0.0009 above ln 10.

    Args:
        labels: (N,) integers: `Classifier.predict` of the samples.
        frequencies: p, (C,), of the data: positive, with sum 1.

    Raises:
        ValueError: If the frequencies are none, or a label is not among their classes.

    References:
        Zhao, Song, Ermon (2019), InfoVAE, arXiv:1706.02262, section 6.

    Example:
        >>> class_mismatch(torch.tensor([0, 0, 0, 1]), torch.tensor([0.5, 0.5])).l1
        0.5
    """
    p = frequencies.detach().double().cpu()
    if p.ndim != 1 or bool((p < 0).any()) or abs(float(p.sum()) - 1) > 1e-4:
        raise ValueError(
            f"frequencies must be (C,), none negative, with sum 1, but are {tuple(p.shape)} with "
            f"sum {float(p.sum()):.4g}: divide the counts by their sum"
        )
    if len(labels) == 0 or int(labels.max()) >= len(p) or int(labels.min()) < 0:
        raise ValueError(f"labels must be some of 0 to {len(p) - 1}, the classes of frequencies")
    f = torch.bincount(labels.cpu(), minlength=len(p)) / len(labels)
    f = f.double()
    cross = -torch.special.xlogy(p, f).sum()
    return ClassMismatch(float((f - p).abs().sum()), float((f - p).norm()), float(cross))
