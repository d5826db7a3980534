"""A data set in parts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ppvae.data.sentences import SentenceBatches
from ppvae.protocols import Batch, batch_size, leaves, map_batch
from ppvae.training import Batches, Transform

__all__ = ["Features", "Kind", "Split"]

Features = int | dict[str, int | tuple[int, ...]] | tuple[str, ...]
Kind = Literal["arrays", "modalities", "sentences"]


@dataclass(frozen=True)
class Split:
    """A data set in two or three parts, with labels that no model sees.

    Attributes:
        train: (N, ...), as a model takes it once `transform` was applied; a mapping of tensors
            where a datum has several modalities.
        test: (M, ...), as a model takes it.
        train_labels: (N, ...) integers, if there are labels.
        test_labels: (M, ...) integers, if there are labels.
        image: The shape (C, H, W) of one datum as an image.
        validation: (V, ...) for early stopping and the like, as a model takes it; None without
            one.
        validation_labels: (V, ...) integers, if there are labels.
        transform: What each batch of `train` needs before a model sees it, if anything: `Batches`
            applies it, and so does `batches()`.
        words: The vocabulary in the order of its token ids, where data are sentences.

    Raises:
        ValueError: If a part is empty, its data are shaped unlike the others, or its labels are of
            another length.

    Example:
        >>> split = Split(torch.rand(8, 4), torch.rand(2, 4), image=(1, 2, 2))
        >>> [len(batch) for batch in split.batches(batch_size=5)]
        [5, 3]
    """

    train: Batch
    test: Batch
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    image: tuple[int, int, int] | None = None
    validation: Batch | None = None
    validation_labels: Tensor | None = None
    transform: Transform | None = None
    words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check what later would fail far from here."""
        events = self._events(self.train)
        for name in ("train", "validation", "test"):
            part, labels = getattr(self, name), getattr(self, f"{name}_labels")
            count = 0 if part is None else len(next(iter(leaves(part).values())))
            if part is not None and count == 0:
                raise ValueError(f"the {name} part is empty: give at least one datum")
            if part is not None and self._events(part) != events:
                raise ValueError(
                    f"a {name} datum has shape {self._events(part)}, but a train datum {events}: "
                    "give all parts the same"
                )
            if labels is not None and len(labels) != count:
                raise ValueError(
                    f"there are {len(labels)} {name} labels for {count} data: give one for each"
                )

    @property
    def kind(self) -> Kind:
        """What a datum is: one array, several modalities, or a sentence."""
        if self.words is not None:
            return "sentences"
        return "modalities" if isinstance(self.train, Mapping) else "arrays"

    @property
    def features(self) -> Features:
        """What a recipe must know of a datum: its size, those of its modalities, or the words.

        Example:
            >>> Split(torch.rand(8, 4), torch.rand(2, 4)).features
            4
        """
        if self.words is not None:
            return self.words
        if isinstance(self.train, Mapping):
            shapes = {name: tuple(leaf.shape[1:]) for name, leaf in self.train.items()}
            return {name: s[0] if len(s) == 1 else s for name, s in shapes.items()}
        return self.train[0].numel()

    def __len__(self) -> int:
        """The number of data to train on."""
        return batch_size(self.train)

    def _events(self, part: Batch) -> object:
        """Return the shape of a datum; sentences are padded to the longest of their part."""
        if self.words is not None:
            return ()
        shapes = {name: tuple(leaf.shape[1:]) for name, leaf in leaves(part).items()}
        return shapes if isinstance(part, Mapping) else shapes["x"]

    def to(self, device: str | torch.device) -> "Split":
        """Return the split with its data, not its labels, on a device."""
        parts = {name: getattr(self, name) for name in ("train", "test", "validation")}
        return replace(
            self,
            **{n: map_batch(lambda x: x.to(device), p) for n, p in parts.items() if p is not None},
        )

    def batches(
        self,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
        device: str | torch.device | None = None,
    ) -> Batches:
        """Return the minibatches of the train part, transformed: what `fit` takes as data.

        Sentences of a batch have equal lengths, so that nothing is padded.
        """
        if self.words is not None:
            return SentenceBatches(self.train, batch_size, equal=True, seed=seed, device=device)
        return Batches(self.train, batch_size, seed=seed, device=device, transform=self.transform)
