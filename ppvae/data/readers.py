"""Where each data set lies and how it is read: official parts, images (N, C, H, W), no more."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ppvae.data.patches import patches
from ppvae.data.patches import photographs as photograph_patches

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

__all__ = ["NAMES", "OFFICIAL_VALIDATION", "OTHER_KINDS", "REAL_VALUED", "Parts", "read"]

OFFICIAL_VALIDATION = ("binarized_mnist", "celeba")  # the other sets of images have no such part
OTHER_KINDS = ("ptb", "short_yelp", "text", "mfeat", "polymnist", "digit_halves")
REAL_VALUED = ("olshausen_whitened", "photographs")  # not in [0, 1], so never binarized
FREY_TEST = 200  # the end of the film
OLSHAUSEN_TRAIN = 8  # of ten images


class Parts(NamedTuple):
    """The official parts of a data set: bytes, floats in [0, 1] or whitened, and labels."""

    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    validation: Tensor | None = None
    validation_labels: Tensor | None = None


def read(name: str, root: str | Path, *, download: bool) -> Parts:
    """Return a data set by name.

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If the files are missing or broken, with what mends it.
    """
    if name not in READERS:
        raise ValueError(f"unknown data {name!r}: choose one of {', '.join(NAMES)}")
    return READERS[name](Path(root).expanduser().absolute(), download)


def digits(test_share: float, seed: int) -> Parts:
    """Return scikit-learn's 1,797 digits, a share of them held out by seed."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.as_tensor(bundle.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.as_tensor(bundle.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    count = int(len(images) * test_share)
    if not 0 < count < len(images):
        raise ValueError(f"test_share must lie between 0 and 1, but is {test_share}")
    test, train = order[:count], order[count:]
    return Parts(images[train], images[test], labels[train], labels[test])


def _idx(root: Path, download: bool, *, name: str, kind: str) -> Parts:
    train, test = _official(name, kind, root, download, {"train": True}, {"train": False})
    gray = [part.data.unsqueeze(1) for part in (train, test)]
    return Parts(*gray, train.targets, test.targets)


def _cifar10(root: Path, download: bool) -> Parts:
    parts = _official("cifar10", "CIFAR10", root, download, {"train": True}, {"train": False})
    images = [torch.from_numpy(part.data).movedim(-1, 1).contiguous() for part in parts]
    return Parts(*images, *(torch.tensor(part.targets) for part in parts))


def _svhn(root: Path, download: bool) -> Parts:
    parts = _official("svhn", "SVHN", root, download, {"split": "train"}, {"split": "test"})
    images = [torch.from_numpy(np.ascontiguousarray(part.data)) for part in parts]
    return Parts(*images, *(torch.from_numpy(part.labels) for part in parts))


def _celeba(root: Path, download: bool) -> Parts:
    from torchvision.transforms import CenterCrop, Compose, Resize

    # the crop of Hou et al. (2017), arXiv:1610.00291, section 4.1
    smaller = Compose([CenterCrop(148), Resize(64)])
    options = [{"split": split, "transform": smaller} for split in ("train", "test", "valid")]
    parts = _official("celeba", "CelebA", root, download, *options)
    images, labels = zip(*map(_decoded, parts), strict=True)
    return Parts(*images[:2], *labels[:2], images[2], labels[2])


def _omniglot(root: Path, download: bool) -> Parts:
    from torchvision.transforms import Resize

    options = [{"background": background, "transform": Resize(28)} for background in (True, False)]
    parts = _official("omniglot", "Omniglot", root, download, *options)
    images, labels = zip(*map(_decoded, parts), strict=True)
    return Parts(*(255 - paper for paper in images), *labels)  # ink is 1, as in MNIST


def _binarized_mnist(root: Path, download: bool) -> Parts:
    folder = root / "binarized_mnist"
    found = list(folder.glob("*.npz"))
    try:
        if len(found) != 1:
            raise ValueError(f"{len(found)} .npz files there")
        with found[0].open("rb") as file, np.load(file) as packed:
            named = {name: np.unpackbits(packed[name], axis=1) for name in packed}
        parts = [255 * named[name].reshape(-1, 1, 28, 28) for name in ("train", "test", "valid")]
    except (ValueError, KeyError, TypeError, OSError, BadZipFile) as error:
        raise FileNotFoundError(
            f"binarized_mnist is not in {str(folder)!r} ({error}). Nothing downloads it: put "
            "there the split of Larochelle and Salakhutdinov "
            "(binarized_mnist_{train,valid,test}.amat of "
            "www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist) as one .npz file, made "
            "by np.savez(path, **{s: np.packbits(np.loadtxt(f'binarized_mnist_{s}.amat', "
            "dtype=np.uint8), axis=1) for s in ('train', 'valid', 'test')})"
        ) from error
    train, test, validation = map(torch.from_numpy, parts)
    return Parts(train, test, validation=validation)


def _frey(root: Path, download: bool) -> Parts:
    path = root / "frey" / "freyfaces.npz"
    try:
        with path.open("rb") as file, np.load(file) as packed:
            images = torch.from_numpy(packed["images"]).reshape(-1, 1, 28, 20)
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}, not bytes")
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, BadZipFile) as error:
        told = " ".join(str(error).split())
        raise FileNotFoundError(
            f"frey is not at {str(path)!r} ({told}). Nothing downloads it: take "
            "datasets/Freyfaces/freyfaces.pkl of github.com/jmtomczak/vae_vampprior, and put it "
            "there by np.savez(path, images=faces), faces being bytes of shape (1965, 28, 20)"
        ) from error
    return Parts(images[:-FREY_TEST], images[-FREY_TEST:])


def _olshausen(root: Path, download: bool) -> Parts:
    path = root / "olshausen_whitened" / "olshausen_images.npz"
    try:
        with path.open("rb") as file, np.load(file) as packed:
            images = torch.from_numpy(packed["images"]).float()
        train, test = patches(images[:OLSHAUSEN_TRAIN]), patches(images[OLSHAUSEN_TRAIN:])
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, BadZipFile) as error:
        told = " ".join(str(error).split())
        raise FileNotFoundError(
            f"olshausen_whitened is not at {str(path)!r} ({told}). Nothing downloads it: take the "
            "ten whitened images of Olshausen and Field (IMAGES.mat of www.rctn.org/bruno/"
            "sparsenet), and put them there by np.savez(path, images=images), images being "
            "floats of shape (10, 512, 512)"
        ) from error
    return Parts(train, test)


def _photographs(root: Path, download: bool) -> Parts:
    return Parts(*photograph_patches())


def _official(
    name: str, kind: str, root: Path, download: bool, *options: dict[str, object]
) -> "list[VisionDataset]":
    """Return torchvision's parts of a set, one for each of the options."""
    from torchvision import datasets

    try:
        return [getattr(datasets, kind)(root, download=download, **part) for part in options]
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        told = " ".join(str(error).split())
        where = f"{name} cannot be read from {str(root)!r} ({told})"
        if not download:
            call = f"ppvae.data.load({name!r}, root={str(root)!r}, download=True)"
            raise FileNotFoundError(
                f"{where}: call {call}, which fetches, verifies and unpacks it"
            ) from error
        raise FileNotFoundError(
            f"{where}: the download failed, a file is broken, or the folder cannot be written. "
            f"Put {ARCHIVES[name]} by hand into an empty folder: the same call with that root "
            "then verifies and unpacks it without a network"
        ) from error


def _decoded(part: "VisionDataset") -> tuple[Tensor, Tensor]:
    """Return images that torchvision keeps as files, as bytes (N, C, H, W), and their labels."""
    pairs = [(np.atleast_3d(np.asarray(image)), np.asarray(label)) for image, label in part]
    images, labels = map(np.stack, zip(*pairs, strict=True))  # (N, H, W, C) and (N, ...)
    return torch.from_numpy(images).movedim(-1, 1).contiguous(), torch.from_numpy(labels)


ARCHIVES = {
    "mnist": "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
    "fashion_mnist": "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
    "cifar10": "cifar-10-python.tar.gz",
    "svhn": "train_32x32.mat and test_32x32.mat",
    "celeba": "celeba/img_align_celeba.zip and the five .txt files beside it",
    "omniglot": "omniglot-py/images_background.zip and omniglot-py/images_evaluation.zip",
}

READERS: dict[str, Callable[[Path, bool], Parts]] = {
    "mnist": partial(_idx, name="mnist", kind="MNIST"),
    "fashion_mnist": partial(_idx, name="fashion_mnist", kind="FashionMNIST"),
    "binarized_mnist": _binarized_mnist,
    "omniglot": _omniglot,
    "cifar10": _cifar10,
    "svhn": _svhn,
    "celeba": _celeba,
    "frey": _frey,
    "olshausen_whitened": _olshausen,
    "photographs": _photographs,
}

NAMES = ("digits", *READERS, *OTHER_KINDS)  # digits need no files, and are split by seed
