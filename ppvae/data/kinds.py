"""Data sets of other kinds than images, by name: sentences, and several modalities."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ppvae.data.images import digits, parted
from ppvae.data.mfeat import mfeat
from ppvae.data.polymnist import polymnist
from ppvae.data.split import Split
from ppvae.data.text import load_text
from ppvae.protocols import batch_size, map_batch

__all__ = ["OTHERS", "hold_out", "read_other"]


def read_other(name: str, root: str | Path, validation_share: float, seed: int) -> Split:
    """Return a data set of sentences or modalities, with a validation part if one is asked for.

    Raises:
        FileNotFoundError: If its files are missing, with what they are.
        ValueError: If the share leaves a part empty.
    """
    split = OTHERS[name](Path(root).expanduser())
    if split.validation is None and validation_share:
        return hold_out(split, validation_share, seed)
    return split


def hold_out(split: Split, share: float, seed: int) -> Split:
    """Move a share of the train part, drawn by seed, to validation, both in their old order.

    Raises:
        ValueError: If the share leaves a part empty.

    Example:
        >>> split = hold_out(Split({"a": torch.rand(9, 2)}, {"a": torch.rand(1, 2)}), 0.4, seed=0)
        >>> len(split), batch_size(split.validation)
        (6, 3)
    """
    rest, held = parted(batch_size(split.train), share, seed)
    labels = split.train_labels
    return replace(
        split,
        train=map_batch(lambda leaf: leaf[rest], split.train),
        validation=map_batch(lambda leaf: leaf[held], split.train),
        train_labels=None if labels is None else labels[rest],
        validation_labels=None if labels is None else labels[held],
    )


def _sentences(root: Path, folder: str) -> Split:
    text = load_text(root / folder)
    if text.test is None:
        raise FileNotFoundError(
            f"the text in {str(root / folder)!r} has no test part: name a file there test.txt"
        )
    return Split(
        text.train,
        text.test,
        text.train_labels,
        text.test_labels,
        validation=text.validation,
        validation_labels=text.validation_labels,
        words=text.vocabulary.tokens,
    )


def _polymnist(root: Path) -> Split:
    archives = sorted((root / "bsds500_val").glob("*.zip"))
    return polymnist(root, archives[0] if archives else None)


def _digit_halves(root: Path) -> Split:
    gray = digits(binarize=False)
    parts = {
        name: {"top": x[:, :32], "bottom": x[:, 32:]}
        for name, x in (("train", gray.train), ("test", gray.test))
    }
    return replace(gray, **parts, image=None)


OTHERS: dict[str, Callable[[Path], Split]] = {
    "ptb": partial(_sentences, folder="ptb"),
    "short_yelp": partial(_sentences, folder="short_yelp"),
    "text": partial(_sentences, folder=""),
    "mfeat": mfeat,
    "polymnist": _polymnist,
    "digit_halves": _digit_halves,
}
