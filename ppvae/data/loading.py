"""Any data set by its name."""

from pathlib import Path

from ppvae.data import readers
from ppvae.data.images import read_images
from ppvae.data.kinds import read_other
from ppvae.data.pixels import Binarize
from ppvae.data.split import Split

__all__ = ["load"]


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
    if name not in readers.OTHER_KINDS:
        return read_images(
            name,
            root=root,
            download=download,
            binarize=binarize,
            validation_share=validation_share,
            flat=flat,
            keep_bytes=keep_bytes,
            seed=seed,
        )
    if binarize != "none" or keep_bytes:
        raise ValueError(f"{name} holds no gray images: leave binarize and keep_bytes out")
    return read_other(name, root, validation_share, seed)
