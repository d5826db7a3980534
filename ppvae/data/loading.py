"""From official parts to a split: flat or not, binarized or not, with validation or without."""

from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from ppvae.batches import seeded
from ppvae.data import readers
from ppvae.data.pixels import Binarize, bernoulli, to_unit
from ppvae.data.readers import Parts
from ppvae.data.split import Split

__all__ = ["digits", "load", "parted"]


def load(
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
    """Return a data set by name, split as its authors did.

        name                train    validation   test     image
        digits                1,438        -         359   (1, 8, 8)
        mnist                60,000        -      10,000   (1, 28, 28)
        fashion_mnist        60,000        -      10,000   (1, 28, 28)
        binarized_mnist      50,000   10,000      10,000   (1, 28, 28)
        omniglot             19,280        -      13,180   (1, 28, 28)
        cifar10              50,000        -      10,000   (3, 32, 32)
        svhn                 73,257        -      26,032   (3, 32, 32)
        celeba              162,770   19,867      19,962   (3, 64, 64)
        frey                  1,765        -         200   (1, 28, 20)
        olshausen_whitened    8,192        -       2,048   (1, 16, 16)
        photographs           1,664        -         416   (1, 16, 16)

    The digits are scikit-learn's, split by seed. binarized_mnist is the fixed binarization that
    published likelihoods refer to; it has no labels, and its test part is ordered by class:
    shuffle before taking a subset. omniglot is torchvision's, 105 x 105, ink made 1 and resized:
    *not* the 28 x 28 split of Burda et al., so their likelihoods do not carry over, and its test
    characters are not among the train characters. celeba is cropped to 148 x 148 and resized; its
    labels are 40 attributes; decoding takes minutes: save `split.train` of `keep_bytes=True` by
    `np.save`, and give `np.load(path, mmap_mode="r")` with `transform=to_unit` to `Batches`. frey
    is 1,965 consecutive frames of one face, without labels or official parts; the last 200 are the
    test part, since next to a frame drawn at random from the film lie near copies of it.

    The last two are patches of whitened gray images, each of mean 0 and variance 1, and not in
    [0, 1]: of ten natural scenes that their authors whitened, the last two for the test part, and
    of scikit-learn's two photographs, whitened here, nothing downloaded: see `patches`, `whiten`.

    Sentences, as `load_text` reads them, with all their words: ptb and short_yelp are folders of
    `root`, and text is `root` itself, any folder of lines. Modalities, by name: mfeat; polymnist,
    three views before photographs of the archive in `root/bsds500_val`, or scikit-learn's; and
    digit_halves, the tops and bottoms of scikit-learn's digits.

    Args:
        name: One of `NAMES`.
        root: The folder of the data sets, in torchvision's layout; binarized_mnist is the one .npz
            file in `root/binarized_mnist`, frey is `root/frey/freyfaces.npz`, olshausen_whitened
            `root/olshausen_whitened/olshausen_images.npz`.
        download: Whether torchvision may fetch what is missing. Archives that are there are
            verified and unpacked without a network; the folder must then be writable.
        binarize: "none": pixels in [0, 1]; "threshold": 1 from 0.5 on; "fixed": one Bernoulli draw
            by seed; "dynamic": `split.transform` draws anew for every batch of the train part, and
            validation and test are a fixed draw.
        validation_share: The share of the train part held out by seed, where there is no official
            validation part; none by default.
        flat: Whether a datum is (C H W,), for an MLP; otherwise (C, H, W), for convolutions.
        keep_bytes: Whether the train part stays bytes, a quarter of the memory; `split.transform`
            makes pixels of them.
        seed: Of the parts and of fixed draws.

    Returns:
        The split; `split.batches()` gives the train part as a model takes it.

    Raises:
        ValueError: If the name or `binarize` is unknown, or the other arguments do not go
            together.
        FileNotFoundError: If the files are missing, with the call or the layout that mends it.

    References:
        Larochelle, Murray (2011), The Neural Autoregressive Distribution Estimator
            (binarized_mnist).
        Olshausen, Field (1996), Emergence of Simple-Cell Receptive Field Properties by Learning a
            Sparse Code for Natural Images, Nature 381 (olshausen_whitened).
        Roweis, Saul (2000), Nonlinear Dimensionality Reduction by Locally Linear Embedding (frey).
        Hou et al. (2017), Deep Feature Consistent VAE, arXiv:1610.00291 (the crop of celeba).

    Example:
        >>> split = load("digits", binarize="dynamic", validation_share=0.1)
        >>> split.train.shape, split.validation.shape, split.test.shape
        (torch.Size([1295, 64]), torch.Size([143, 64]), torch.Size([359, 64]))
        >>> next(iter(split.batches())).unique()
        tensor([0., 1.])
    """
    _check(binarize, keep_bytes)
    if name in readers.OTHER_KINDS:
        from ppvae.data.kinds import read_other  # they are made of what is loaded here

        if binarize != "none" or keep_bytes:
            raise ValueError(f"{name} holds no gray images: leave binarize and keep_bytes out")
        return read_other(name, root, validation_share, seed)
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
