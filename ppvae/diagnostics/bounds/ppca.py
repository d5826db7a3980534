"""What probabilistic PCA reaches on the same data: the bound that linear Normal VAEs run into."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PPCA", "paper_units", "ppca_bound"]


@dataclass(frozen=True)
class PPCA:
    """The best a linear decoder does with Normal latents, in paper units per held-out datum.

    Attributes:
        nelbo: mse + kl.
        kl: KL(q(z|x) || p(z)).
        mse: E_q |x - Phi z|^2.
        mse_map: |x - Phi m|^2, at the posterior's mean.
        units: k, how many latents are used.
    """

    nelbo: float
    kl: float
    mse: float
    mse_map: float
    units: int


def ppca_bound(train: Tensor, validation: Tensor, units: int | None = None) -> PPCA:
    """Fit p(x|z) = N(Phi z, I/2), p(z) = N(0, I) to the train data, and score the others.

        nelbo   = 1/2 sum_{i<=k} [ln 2 l_i + s_i / l_i] + sum_{i>k} s_i
        kl      = 1/2 sum_{i<=k} [v_i + (l_i - 1/2) s_i / l_i^2 - 1 - ln v_i],  v_i = 1 / (2 l_i)
        mse_map = sum_{i<=k} s_i / (4 l_i^2) + sum_{i>k} s_i
        mse     = mse_map + sum_{i<=k} (l_i - 1/2) v_i

    l_i > 1/2 are the top k eigenvalues of the train data's second moment, not centered, since the
    decoder has no bias, and s_i the validation data's second moments along them. Paper units: see
    `paper_units`. A linear decoder with a Normal guide can do no better on the train data; a
    network as encoder comes near, whatever K is. Other latents may do better.

    Args:
        train: (N, ...).
        validation: (V, ...), data of the same size M.
        units: k; by default as many as pay, l_i > 1/2.

    Raises:
        ValueError: If the data are not finite, or differ in size; if not so many units pay.

    References:
        Tipping, Bishop (1999), Probabilistic Principal Component Analysis, JRSS B 61.
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473.

    Example:
        >>> x = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 0.5], [0.0, -0.5]])
        >>> found = ppca_bound(x, x)  # l = 2 and 1/8
        >>> found.units, round(found.nelbo, 4)  # (ln 4 + 1) / 2 + 1/8
        (1, 1.3181)
    """
    x, y = train.flatten(1).double(), validation.flatten(1).double()
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"train data have {x.shape[1]} elements, validation data {y.shape[1]}")
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise ValueError("the data hold NaN or infinity: remove or fill them")
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    moments = (y @ vectors).square().mean(0)
    values, moments = values.flip(0), moments.flip(0)  # the largest first
    paying = int((values > 0.5).sum())  # the noise has variance 1/2
    k = paying if units is None else units
    if not 0 <= k <= paying:
        raise ValueError(f"{paying} units pay on these data, but units is {k}: choose no more")
    l, s, left = values[:k], moments[:k], moments[k:].sum()
    v = 1 / (2 * l)
    kl = (v + (l - 0.5) * s / l.square() - 1 - v.log()).sum() / 2
    mse_map = (s / (4 * l.square())).sum() + left
    mse = mse_map + ((l - 0.5) * v).sum()
    return PPCA(float(mse + kl), float(kl), float(mse), float(mse_map), len(l))


def paper_units(loss: float, size: int) -> float:
    """Return E |x - decoder(z)|^2 + KL, as the Poisson VAE's paper prints it, from nats.

        nELBO = -ELBO - M/2 ln pi        for p(x|z) = N(decoder(z), I/2)

    The constant is 146.525 for 16 x 16 patches and 448.734 for MNIST. Our losses, evidence and
    weights have it in: subtract it only to print beside the paper.

    Args:
        loss: -ELBO, or minus the evidence, in nats per datum, every constant in.
        size: M, the elements of a datum.

    Example:
        >>> round(paper_units(0.0, 256), 3)
        -146.525
    """
    return loss - size / 2 * math.log(math.pi)
