"""Six views of two thousand handwritten digits."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppvae.data.split import Split

__all__ = ["mfeat"]

VIEWS = ("fac", "fou", "kar", "mor", "pix", "zer")


def mfeat(root: str | Path = "data") -> Split:
    """Return six views of 2,000 handwritten digits, 1,600 to train on and 400 to test.

        fac 216 profile correlations        mor   6 morphological features
        fou  76 Fourier coefficients        pix 240 averages of 2 x 3 pixels, 15 x 16
        kar  64 Karhunen-Loeve coefficients zer  47 Zernike moments

    Rows whose index leaves 4 modulo 5 are the test part: 40 of each digit, since classes lie in
    order. Columns are standardized by the mean and the population standard deviation of the train
    part. Six digits are there twice. Class by class as they come: shuffle, as `Batches` does.

    Args:
        root: The folder of the data sets: the file is `root/mfeat/mfeat.npz`, an array per view
            and `labels`.

    Raises:
        FileNotFoundError: If the file is missing, with where it comes from.

    References:
        Duin, Multiple Features, UCI Machine Learning Repository, CC BY 4.0.

    Example:
        >>> mfeat("nowhere")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no nowhere/mfeat/mfeat.npz: ...
    """
    path = Path(root) / "mfeat" / "mfeat.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: it holds the six views of UCI's Multiple Features "
            f"(archive.ics.uci.edu/dataset/72), {', '.join(VIEWS)}, as arrays of 2000 rows in the "
            "order of the files, and labels; write it with numpy.savez, or set root"
        )
    with np.load(path) as arrays:
        views = {name: torch.from_numpy(arrays[name].astype(np.float64)) for name in VIEWS}
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    test = torch.arange(len(labels)) % 5 == 4
    scaled = {name: _standardized(x, ~test) for name, x in views.items()}
    return Split(
        {name: x[~test] for name, x in scaled.items()},
        {name: x[test] for name, x in scaled.items()},
        train_labels=labels[~test],
        test_labels=labels[test],
    )


def _standardized(x: Tensor, train: Tensor) -> Tensor:
    mean, sd = x[train].mean(0), x[train].std(0, correction=0)
    return ((x - mean) / sd).float()
