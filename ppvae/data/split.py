"""A data set in parts."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppvae.batches import Batches, Transform

__all__ = ["Split"]


@dataclass(frozen=True)
class Split:
    """A data set in two or three parts, with labels that no model sees.

    Attributes:
        train: (N, ...), as a model takes it once `transform` was applied.
        test: (M, ...), as a model takes it.
        train_labels: (N, ...) integers, if there are labels.
        test_labels: (M, ...) integers, if there are labels.
        image: The shape (C, H, W) of one datum as an image.
        validation: (V, ...) for early stopping and the like, as a model takes it; None without
            one.
        validation_labels: (V, ...) integers, if there are labels.
        transform: What each batch of `train` needs before a model sees it, if anything: `Batches`
            applies it, and so does `batches()`.

    Raises:
        ValueError: If a part is empty, its data are shaped unlike the others, or its labels are of
            another length.

    Example:
        >>> split = Split(torch.rand(8, 4), torch.rand(2, 4), image=(1, 2, 2))
        >>> [len(batch) for batch in split.batches(batch_size=5)]
        [5, 3]
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    image: tuple[int, int, int] | None = None
    validation: Tensor | None = None
    validation_labels: Tensor | None = None
    transform: Transform | None = None

    def __post_init__(self) -> None:
        """Check what later would fail far from here."""
        for name in ("train", "validation", "test"):
            part, labels = getattr(self, name), getattr(self, f"{name}_labels")
            count = 0 if part is None else len(part)
            if part is not None and count == 0:
                raise ValueError(f"the {name} part is empty: give at least one datum")
            if part is not None and part.shape[1:] != self.train.shape[1:]:
                raise ValueError(
                    f"a {name} datum has shape {tuple(part.shape[1:])}, but a train datum "
                    f"{tuple(self.train.shape[1:])}: give all parts the same"
                )
            if labels is not None and len(labels) != count:
                raise ValueError(
                    f"there are {len(labels)} {name} labels for {count} data: give one for each"
                )

    def to(self, device: str | torch.device) -> "Split":
        """Return the split with its data, not its labels, on a device."""
        held_out = None if self.validation is None else self.validation.to(device)
        return replace(
            self, train=self.train.to(device), test=self.test.to(device), validation=held_out
        )

    def batches(
        self,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
        device: str | torch.device | None = None,
    ) -> Batches:
        """Return the minibatches of the train part, transformed: what `fit` takes as data."""
        return Batches(self.train, batch_size, seed=seed, device=device, transform=self.transform)
