"""Sparse coding without a network: LCA and ISTA, batched, on any device, and their dictionaries.

    python tests/benchmarks/sparse_coding.py --root FOLDER --out runs/sparse_coding.json

FOLDER holds olshausen_whitened; without it, scikit-learn's two photographs are taken. Both methods
minimize the same energy over the code a, columns of Phi of norm 1,

    E = 1/2 |x - Phi a|^2 + threshold |a|_1        (a >= 0 with `nonnegative=True`)

and differ in how: ISTA by proximal gradient steps, LCA by neurons that inhibit each other. Neither
is a model with a bound: what can be compared with a Poisson VAE is |x - Phi a|^2, which is its
mse_map, against the sparsity of the code.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor

from ppvae.data import load
from ppvae.diagnostics import lifetime_sparsity, proportion_zeros

Infer = Callable[[Tensor, Tensor], Tensor]  # x (N, M), dictionary (M, K) -> codes (N, K)


def shrink(u: Tensor, threshold: float, nonnegative: bool = False) -> Tensor:
    """Return the soft threshold of u, of its positive part alone if `nonnegative`."""
    a = (u.abs() - threshold).clamp(min=0) * u.sign()
    return a.clamp(min=0) if nonnegative else a


def lca(
    x: Tensor,
    dictionary: Tensor,
    threshold: float = 0.1,
    *,
    steps: int = 500,
    rate: float = 0.02,
    nonnegative: bool = False,
) -> Tensor:
    """Return codes (N, K) by the locally competitive algorithm, in Euler steps of dt / tau = rate.

        du = rate (Phi^T x - u - (Phi^T Phi - I) a),  a = shrink(u)

    At rest u = a + Phi^T (x - Phi a), which is the lasso's optimality.

    References:
        Rozell et al. (2008), Sparse Coding via Thresholding and Local Competition, section 3.
    """
    drive = x @ dictionary  # (N, K)
    inhibition = dictionary.T @ dictionary - torch.eye(dictionary.shape[1]).to(dictionary)
    u = torch.zeros_like(drive)
    for _ in range(steps):
        a = shrink(u, threshold, nonnegative)
        u = u + rate * (drive - u - a @ inhibition)
    return shrink(u, threshold, nonnegative)


def ista(
    x: Tensor,
    dictionary: Tensor,
    threshold: float = 0.1,
    *,
    steps: int = 500,
    nonnegative: bool = False,
) -> Tensor:
    """Return codes (N, K) by proximal gradient steps of 1 / L, L = |Phi|^2.

        a <- shrink(a + Phi^T (x - Phi a) / L, threshold / L)

    References:
        Daubechies, Defrise, De Mol (2004), An Iterative Thresholding Algorithm.
    """
    step = 1 / torch.linalg.matrix_norm(dictionary, 2).square()
    a = x.new_zeros(len(x), dictionary.shape[1])
    for _ in range(steps):
        a = a + step * ((x - a @ dictionary.T) @ dictionary)
        a = shrink(a, threshold * step, nonnegative)
    return a


def energy(x: Tensor, dictionary: Tensor, codes: Tensor, threshold: float) -> Tensor:
    """Return E of each datum, (N,)."""
    error = (x - codes @ dictionary.T).square().sum(1)
    return error / 2 + threshold * codes.abs().sum(1)


def unit_columns(dictionary: Tensor) -> Tensor:
    """Return a dictionary whose columns have norm 1."""
    return dictionary / dictionary.norm(dim=0).clamp(min=torch.finfo(dictionary.dtype).tiny)


def learn_dictionary(
    x: Tensor,
    units: int,
    infer: Infer,
    *,
    steps: int = 1000,
    batch_size: int = 256,
    rate: float = 1.0,
    seed: int = 0,
    dictionary: Tensor | None = None,
) -> Tensor:
    """Return a dictionary (M, K), columns of norm 1, by gradient steps on batches inferred anew.

        Phi <- normalize(Phi + rate (x - Phi a) a^T / h),  h_k = E a_k^2, a running mean

    h scales each column's step by its use: Newton's, where codes are uncorrelated. A column that
    no datum of the last batches used is set to one that is badly reconstructed.

    Args:
        x: (N, M), on the device where everything runs.
        units: K.
        infer: Codes of a batch, such as `partial(lca, threshold=0.5)`.
        steps: How many batches.
        batch_size: How many data each has.
        rate: The step size; it falls linearly to a tenth.
        seed: Of the start and the batches.
        dictionary: Where to start; random columns by default.
    """
    generator = torch.Generator().manual_seed(seed)
    if dictionary is None:
        dictionary = torch.randn(x.shape[1], units, generator=generator).to(x)
    dictionary, used = unit_columns(dictionary), None
    for step in range(steps):
        rows = torch.randint(len(x), (batch_size,), generator=generator)
        some = x[rows.to(x.device)]
        a = infer(some, dictionary)  # (B, K)
        error = some - a @ dictionary.T
        now = a.square().mean(0)
        used = now if used is None else 0.95 * used + 0.05 * now
        floor = 0.05 * used.mean() + torch.finfo(x.dtype).tiny
        change = error.T @ a / batch_size / used.clamp(min=floor)
        dictionary = unit_columns(dictionary + rate * (1 - 0.9 * step / steps) * change)
        if step % 50 == 49:
            idle = used < 1e-4 * used.mean()
            worst = error[error.square().sum(1).argsort(descending=True)]
            count = min(int(idle.sum()), len(worst))
            columns = idle.nonzero()[:count, 0]
            dictionary[:, columns] = unit_columns(worst[:count].T)
            used[columns] = used.mean()
    return dictionary


def score(x: Tensor, dictionary: Tensor, infer: Infer) -> dict[str, float]:
    """Return mse_map, lifetime sparsity and the proportion of zeros of held-out data."""
    a = torch.cat([infer(some, dictionary) for some in x.split(1024)])
    return {
        "mse_map": float((x - a @ dictionary.T).square().sum(1).mean()),
        "sparsity": float(lifetime_sparsity(a).mean()),
        "zeros": proportion_zeros(a),
        "l1": float(a.abs().sum(1).mean()),
    }


def main(
    out: Path,
    root: Path | None = None,
    units: int = 512,
    thresholds: tuple[float, ...] = (0.2, 0.5, 1.0, 1.5, 2.0, 3.0),
    steps: int = 1000,
    device: str = "cpu",
) -> None:
    """Learn a dictionary per method and threshold, and write the curve of error against sparsity.

    Args:
        out: The JSON file.
        root: The folder of olshausen_whitened; scikit-learn's photographs by default.
        units: K.
        thresholds: In the unit of the data, whose standard deviation is 1.
        steps: Of the dictionary.
        device: Where to run.
    """
    split = load("olshausen_whitened", root=root) if root else load("photographs")
    train, test = split.train.to(device), split.test.to(device)
    rows = []
    for name, method in {
        "lca": partial(lca, steps=300, rate=0.05),
        "ista": partial(ista, steps=100),
    }.items():
        for threshold in thresholds:
            start = time.perf_counter()
            infer = partial(method, threshold=threshold)
            dictionary = learn_dictionary(train, units, infer, steps=steps)
            row = {"method": name, "threshold": threshold, **score(test, dictionary, infer)}
            rows.append({**row, "seconds": time.perf_counter() - start})
            print(rows[-1], flush=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
