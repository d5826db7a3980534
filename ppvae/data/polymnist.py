"""Digits over natural images, built when needed: one class, several views that share no style."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ppvae.data.images import read_images
from ppvae.data.split import Split
from ppvae.protocols import seeded

__all__ = ["embedded_photographs", "polymnist", "read_photographs"]

SIDE, SHRUNK = 28, 21  # pixels; the side of a translated digit
CONTRAST = 0.495  # the least mean |2x - 1| at which an inverted digit shows, to two places 0.5
NARROW = (100, 108)  # offsets of crops that a small network can learn
DARK = 128  # a gray value above is ink


def polymnist(
    root: str | Path = "data",
    photographs: str | Path | Sequence[Tensor] | None = None,
    *,
    views: int = 3,
    count: int | None = None,
    crops: tuple[int, int] | None = NARROW,
    translated: bool = False,
    digits: Split | None = None,
    seed: int = 0,
) -> Split:
    """Return views m0, m1, ... of the same digits, each written differently on its own photograph.

    For each digit class and view the images are permuted apart, so that the views of a datum share
    the class and nothing of the style. A crop of the view's photograph is inverted, x -> 1 - x,
    where there is ink. Train and test parts, and their labels, are those of the digits; the same
    arguments give the same data. Nothing is downloaded or stored: 20,000 data of three views take
    seconds, and 0.6 GB.

    Args:
        root: The folder of MNIST, as `load` takes it.
        photographs: What is behind the digits: a folder or a zip archive, as `read_photographs`
            takes it, or images (3, H, W) in [0, 1], the first for m0; scikit-learn's own, without
            any file, by default.
        views: How many, 2 to 5.
        count: How many data to train on, the first of all, the same whatever their number; all by
            default. The test part is whole, or its first this many where it has more.
        crops: The offsets of crops, from and up to, the same for both axes; None for anywhere, as
            published. Narrow ones are what small networks learn in minutes.
        translated: Whether digits shrink to 21 x 21 pixels and are put anywhere.
        digits: Others than MNIST's: a split of gray images with labels, (N, 1, H, W) in bytes or
            in [0, 1], which are resized to 28 x 28.
        seed: Of permutations, crops and places.

    Returns:
        The split, (N, 3, 28, 28) per view, in [0, 1].

    Raises:
        ValueError: If there are not 2 to 5 views, or too few photographs, or too small ones.
        FileNotFoundError: If MNIST or the photographs are missing.

    References:
        Sutter, Daunhawer, Vogt (2021), Generalized Multimodal ELBO, arXiv:2105.02470 (PolyMNIST).
        Sutter et al. (2024), Unity by Diversity, arXiv:2403.05300 (translated).

    Example:
        >>> from ppvae.data import digits
        >>> split = polymnist(digits=digits(binarize=False, flat=False), views=2)
        >>> {name: tuple(x.shape) for name, x in split.test.items()}
        {'m0': (359, 3, 28, 28), 'm1': (359, 3, 28, 28)}
    """
    if not 2 <= views <= 5:
        raise ValueError(f"views must be between 2 and 5, but is {views}")
    if photographs is None:
        photographs = embedded_photographs()
    elif isinstance(photographs, (str, Path)):
        photographs = read_photographs(photographs, count=views)
    if len(photographs) < views:
        raise ValueError(
            f"{views} views need as many photographs, but there are only "
            f"{len(photographs)}: give more, or ask for fewer views"
        )
    for photograph in photographs[:views]:
        _require_photograph(photograph, crops)
    if digits is None:
        digits = read_images("mnist", root=root, flat=False, keep_bytes=True)
    parts = {
        "train": (digits.train, digits.train_labels),
        "test": (digits.test, digits.test_labels),
    }
    made, labels = {}, {}
    for index, (name, (images, classes)) in enumerate(parts.items()):
        labels[name] = classes[:count]
        how = (crops, translated)
        made[name] = {
            f"m{m}": _view(
                images, classes, count, photographs[m], *how, seeded(seed, 5 * index + m)
            )
            for m in range(views)
        }
    return Split(made["train"], made["test"], labels["train"], labels["test"])


def read_photographs(
    path: str | Path, names: Sequence[str] | None = None, *, count: int = 5
) -> list[Tensor]:
    """Return photographs of a folder or a zip archive, (3, H, W) each in [0, 1].

    An inverted digit shows only where a photograph is far from mid-gray: by default those of mean
    |2x - 1| of 0.5 at least are taken, in the order of their names.

    Args:
        path: A folder with, or a zip archive of, .jpg or .png files, such as BSDS500's.
        names: Of the files wanted, without their ending, in this order.
        count: How many to take where no names are given.

    Raises:
        FileNotFoundError: If there is no such folder, archive or name.
        ValueError: If too few are far enough from mid-gray.

    Example:
        >>> read_photographs("nowhere.zip")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no folder or archive nowhere.zip: ...
    """
    files = _files(Path(path))
    if names is not None:
        if missing := [name for name in names if name not in files]:
            raise FileNotFoundError(f"{path} holds no photograph {missing[0]!r}")
        return [_decoded(files[name]) for name in names]
    found = []
    for name in sorted(files):
        photograph = _decoded(files[name])
        if (2 * photograph - 1).abs().mean() >= CONTRAST:
            found.append(photograph)
        if len(found) == count:
            return found
    raise ValueError(
        f"only {len(found)} of {len(files)} photographs in {path} have mean |2x - 1| >= "
        f"{CONTRAST}, and {count} are needed: name some with names=, or add others"
    )


def embedded_photographs() -> list[Tensor]:
    """Return five backgrounds cut from scikit-learn's two photographs, nothing downloaded.

    Five corners and centers of a temple in China and of a flower, contrasts doubled about
    mid-gray, so that inverted digits show.

    Example:
        >>> [tuple(photograph.shape) for photograph in embedded_photographs()][:2]
        [(3, 200, 200), (3, 200, 200)]
    """
    from sklearn.datasets import load_sample_images

    china, flower = (
        torch.tensor(image).permute(2, 0, 1).float() / 255 for image in load_sample_images().images
    )
    corners = (
        (china, 0, 0),
        (flower, 100, 220),
        (china, 200, 200),
        (flower, 0, 0),
        (china, 60, 420),
    )
    cut = [image[:, top : top + 200, left : left + 200] for image, top, left in corners]
    return [(0.5 + 2 * (image - 0.5)).clamp(0, 1) for image in cut]


def _view(
    images: Tensor,
    classes: Tensor,
    count: int | None,
    photograph: Tensor,
    crops: tuple[int, int] | None,
    translated: bool,
    draw: torch.Generator,
) -> Tensor:
    """Return one view of the first data, (N, 3, 28, 28): what is drawn is drawn for them all."""
    source = torch.empty_like(classes)
    for label in classes.unique():
        rows = (classes == label).nonzero()[:, 0]
        source[rows] = rows[torch.randperm(len(rows), generator=draw)]
    places = (
        torch.randint(SIDE - SHRUNK + 1, (2, len(classes)), generator=draw) if translated else None
    )
    tops, lefts = (
        torch.randint(*(crops or (0, side - SIDE + 1)), (len(classes),), generator=draw)[:count]
        for side in photograph.shape[1:]
    )
    gray = _bytes(images[source[:count]])
    ink = (gray if places is None else _moved(gray, places[:, :count])) > DARK  # (N, 1, 28, 28)
    windows = photograph.unfold(1, SIDE, 1).unfold(2, SIDE, 1)  # (3, H - 27, W - 27, 28, 28)
    crop = windows[:, tops, lefts].transpose(0, 1)
    return torch.where(ink, 1 - crop, crop).contiguous()


def _moved(gray: Tensor, places: Tensor) -> Tensor:
    """Return digits shrunk to 21 x 21 pixels, their corners at places (2, N)."""
    small = interpolate(gray.float(), size=(SHRUNK, SHRUNK), mode="bilinear", antialias=False)
    canvas = torch.zeros(len(gray), 1, SIDE, SIDE)
    rows = torch.arange(SHRUNK)
    n = torch.arange(len(gray))[:, None, None]
    top, left = (place[:, None] + rows for place in places)  # (N, 21) each
    canvas[n, 0, top[:, :, None], left[:, None, :]] = small[:, 0]
    return canvas


def _bytes(images: Tensor) -> Tensor:
    """Return gray images as (N, 1, 28, 28) of values up to 255."""
    gray = images.float() if images.dtype == torch.uint8 else 255 * images
    if gray.ndim != 4 or gray.shape[1] != 1:
        raise ValueError(
            f"digits must be gray images (N, 1, H, W), but are {tuple(images.shape)}: load them "
            "with flat=False"
        )
    if gray.shape[2:] == (SIDE, SIDE):
        return gray
    return interpolate(gray, size=(SIDE, SIDE), mode="bilinear")


def _require_photograph(photograph: Tensor, crops: tuple[int, int] | None) -> None:
    least = SIDE if crops is None else crops[1] - 1 + SIDE
    fits = photograph.ndim == 3 and len(photograph) == 3 and min(photograph.shape[1:]) >= least
    if not fits or not photograph.is_floating_point():
        raise ValueError(
            f"a photograph must be (3, H, W) floats in [0, 1] with sides of at least {least} for "
            f"crops={crops}, but is {photograph.dtype} of shape {tuple(photograph.shape)}"
        )


def _files(path: Path) -> dict[str, bytes]:
    """Return the images of a folder or archive by name, undecoded."""
    endings = (".jpg", ".jpeg", ".png")
    if path.is_dir():
        return {p.stem: p.read_bytes() for p in path.iterdir() if p.suffix.lower() in endings}
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no folder or archive {path}: give one of .jpg or .png photographs, or "
            "leave it out for scikit-learn's own"
        )
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(endings)]
        return {Path(name).stem: archive.read(name) for name in names}


def _decoded(content: bytes) -> Tensor:
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
