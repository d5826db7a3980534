"""From official parts to a split: flat or not, binarized or not, with validation or without."""

from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from ppvae.data import readers
from ppvae.data.pixels import Binarize, bernoulli, to_unit
from ppvae.data.readers import Parts
from ppvae.data.split import Split
from ppvae.protocols import seeded

__all__ = ["digits", "parted", "read_images"]


def read_images(
    name: str,
    *,
    root: str | Path = "data",
    download: bool = False,
    binarize: Binarize = "none",
    validation_share: float = 0.0,
    flat: bool = True,
    keep_bytes: bool = False,
    seed: int = 0,
) -> Split:
    """Return a data set of images by name: `load` says which, and what the arguments mean.

    Raises:
        ValueError: If the arguments do not go together, or with the data.
        FileNotFoundError: If the files are missing, with the call or the layout that mends it.

    Example:
        >>> len(read_images("digits"))
        1438
    """
    _check(binarize, keep_bytes)
    if name == "binarized_mnist" and binarize == "dynamic":
        raise ValueError(
            "binarized_mnist is binarized once and for all: load 'mnist' with binarize='dynamic'"
        )
    if name in readers.REAL_VALUED and binarize != "none":
        raise ValueError(
            f"{name} are real numbers of mean 0, which binarize={binarize!r} would take for "
            "pixels: leave it out, and choose a Normal likelihood"
        )
    if name == "digits":
        parts = readers.digits(test_share=0.2, seed=seed)
    else:
        parts = readers.read(name, root, download=download)
    parts = _hold_out(parts, validation_share, seed)
    return _split(parts, binarize, flat=flat, keep_bytes=keep_bytes, seed=seed)


def digits(
    *,
    binarize: bool | Binarize = True,
    test_share: float = 0.2,
    validation_share: float = 0.0,
    flat: bool = True,
    seed: int = 0,
) -> Split:
    """Return scikit-learn's embedded digits: 1,797 images of 8 x 8 pixels, nothing downloaded.

    Args:
        binarize: Whether to call a pixel 1 from half its range on, for a Bernoulli likelihood;
            otherwise pixels lie in [0, 1] in steps of 1/16. Or a word, as in `load`.
        test_share: The share of images held out.
        validation_share: The share of the others held out; none by default.
        flat: Whether an image is (64,), not (1, 8, 8).
        seed: Of the split, and of fixed draws.

    Returns:
        The split.

    Raises:
        ValueError: If a share leaves a part empty, or `binarize` is unknown.

    References:
        Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI.

    Example:
        >>> split = digits()
        >>> split.train.shape, split.test.shape
        (torch.Size([1438, 64]), torch.Size([359, 64]))
    """
    if isinstance(binarize, bool):
        binarize = "threshold" if binarize else "none"
    _check(binarize)
    parts = _hold_out(readers.digits(test_share, seed), validation_share, seed)
    return _split(parts, binarize, flat=flat, keep_bytes=False, seed=seed)


def _check(binarize: str, keep_bytes: bool = False) -> None:
    known = get_args(Binarize)
    if binarize not in known:
        raise ValueError(f"unknown binarize {binarize!r}: choose one of {', '.join(known)}")
    if keep_bytes and binarize not in ("none", "dynamic"):
        raise ValueError(
            f"keep_bytes=True keeps gray values, and binarize={binarize!r} has none: choose "
            "'none', or 'dynamic', which draws from bytes"
        )


def _hold_out(parts: Parts, share: float, seed: int) -> Parts:
    """Move a share of the train part to validation, both in their old order."""
    if share == 0:
        return parts
    if parts.validation is not None:
        raise ValueError(
            f"validation_share is {share}, but these data have an official validation part of "
            f"{len(parts.validation):,}: leave it out"
        )
    rest, held_out = parted(len(parts.train), share, seed)
    labels = parts.train_labels
    return parts._replace(
        train=parts.train[rest],
        train_labels=None if labels is None else labels[rest],
        validation=parts.train[held_out],
        validation_labels=None if labels is None else labels[held_out],
    )


def parted(total: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows that stay and those held out, drawn by seed, each in their old order.

    Raises:
        ValueError: If the share leaves a part empty.

    Example:
        >>> [len(rows) for rows in parted(9, 0.4, seed=0)]
        [6, 3]
    """
    count = int(total * share)
    if not 0 < count < total:
        raise ValueError(f"validation_share must leave both parts data, but is {share}")
    order = torch.randperm(total, generator=seeded(seed, 0))
    return order[count:].sort().values, order[:count].sort().values


def _split(parts: Parts, binarize: str, *, flat: bool, keep_bytes: bool, seed: int) -> Split:
    data = {name: getattr(parts, name) for name in ("train", "test", "validation")}
    data = {name: x.flatten(1) if flat else x for name, x in data.items() if x is not None}
    train = data.pop("train")
    if not keep_bytes:
        train = _pixels(train, "none" if binarize == "dynamic" else binarize, seeded(seed, 1))
    held_out = {
        name: _pixels(x, binarize, seeded(seed, index))  # each part draws numbers of its own
        for index, (name, x) in enumerate(data.items(), start=2)
    }
    transform = bernoulli if binarize == "dynamic" else to_unit if keep_bytes else None
    return Split(
        train,
        **held_out,
        train_labels=parts.train_labels,
        test_labels=parts.test_labels,
        validation_labels=parts.validation_labels,
        image=tuple(parts.train.shape[1:]),
        transform=transform,
    )


def _pixels(images: Tensor, binarize: str, generator: torch.Generator) -> Tensor:
    match binarize:
        case "none":
            return to_unit(images)
        case "threshold":
            return (to_unit(images) >= 0.5).float()
        case _:  # "fixed", and "dynamic" where nothing trains
            return bernoulli(images, generator)
