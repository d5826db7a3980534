"""Sparsity and error of Poisson VAEs over beta, beside LCA and ISTA over thresholds.

    python tests/benchmarks/poisson_rates.py --root FOLDER --out runs/poisson_rates

FOLDER holds olshausen_whitened: 16 x 16 patches of mean 0 and variance 1, so |x|^2 = 255; 8,192 to
train on, and 2,048 of two other images held out, which all numbers are of. All dictionaries have
512 columns.

*P-VAE*: encoder and decoder are matrices without biases, x ~ N(Phi z, I/2), trained without draws
(`LinearELBO`): 6,000 steps on batches of 256, Adamax, .01 warmed up over 1% of the steps and then
on one cosine to 1e-5, gradients of norm 500 at most, beta from 1e-4 to its value over the first
half. The error is that of the posterior's mean, |x - Phi m|^2; sparsity and zeros are of one draw
of counts per datum; nELBO and KL are in closed form, in paper units, the KL weighted by 1.
*LCA* and *ISTA* (see sparse_coding.py) learn dictionaries of unit columns, 400 steps of .2 on
batches of 256, codes inferred in 100 steps of 1 / |Phi|^2, and in 1,000 when scored. *P-VAE + LCA*
is LCA through the dictionary of the P-VAE of beta = 1, its columns scaled to 1: what lies between
it and the P-VAE of the same sparsity is the encoder's, the amortization gap. All codes are
nonnegative, as counts are.

Published numbers, arXiv:2405.14473, are of another data set, van Hateren's images: compare shapes
of curves, not levels. Each run is written as it ends, so that an interrupted benchmark goes on.
"""

import json
import math
import platform
import runpy
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pyro
import torch
import tyro
from pyro import poutine
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ppvae import SVI, plots
from ppvae.data import load
from ppvae.diagnostics import active_by_kl, paper_units, sparsity
from ppvae.guides import Poisson
from ppvae.models import PoissonVAE
from ppvae.networks import Flat
from ppvae.objectives import LinearELBO, warmup
from ppvae.weights import evaluating

coding = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("sparse_coding.py"))))
UNITS, BATCH, RATE = 512, 256, 0.01
CURVES = {
    "P-VAE": (0.01, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 4.0),  # beta; the others' are thresholds
    "P-VAE + LCA": (0.001, 0.1, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0),
    "LCA": (0.2, 0.5, 1.0, 1.5, 2.0, 3.0),
    "ISTA": (0.2, 0.5, 1.0, 1.5, 2.0, 3.0),
}
LEARNING, SCORING = 100, 1000  # steps that a code is inferred in


class Published(NamedTuple):
    """Numbers of van Hateren's patches."""

    error: float
    sparsity: float
    nelbo: float = math.nan
    kl: float = math.nan


PUBLISHED = {
    "P-VAE": {
        0.01: Published(3.35, 0.325, 1354, 1333),
        0.2: Published(28.73, 0.402, 253.3, 181.8),
        0.4: Published(52.29, 0.502, 191.1, 94.1),
        0.6: Published(72.16, 0.608, 173.7, 59.1),
        0.8: Published(88.55, 0.708, 168.15, 40.6),
        1.0: Published(102.39, 0.790, 167.17, 29.47),
        1.5: Published(130.96, 0.912, 172.1, 15.1),
        4.0: Published(234.5, 0.997, 237.7, 1.13),
    },
    "P-VAE + LCA": {
        0.001: Published(39.4, 0.697),
        0.1: Published(43.5, 0.828),
        0.5: Published(58.2, 0.916),
        0.7: Published(67.8, 0.935),
        1.0: Published(83.4, 0.954),
    },
    "LCA": {math.nan: Published(50.17, 0.917)},  # its threshold is not known
    "ISTA": {math.nan: Published(86.85, 0.961)},
}


def infer(method: str, x: Tensor, dictionary: Tensor, threshold: float, steps: int) -> Tensor:
    """Return nonnegative codes, in steps of 1 / |Phi|^2: LCA is unstable from twice that on."""
    if method == "ISTA":
        return coding.ista(x, dictionary, threshold, steps=steps, nonnegative=True)
    rate = 1 / torch.linalg.matrix_norm(dictionary, 2).square()
    return coding.lca(x, dictionary, threshold, steps=steps, rate=rate, nonnegative=True)


def make_pair(size: int) -> tuple[PoissonVAE, Poisson]:
    """Return a linear Poisson VAE without biases."""
    decoder = nn.Linear(UNITS, size, bias=False)
    nn.init.normal_(decoder.weight, std=0.05)
    model = PoissonVAE(decoder, UNITS)
    return model, Poisson(Flat(size), model, bias=False)


def train(pair: tuple[PoissonVAE, Poisson], x: Tensor, beta: float, steps: int) -> None:
    """Train a pair in closed form."""
    first, floor = max(1, steps // 100), 1e-5 / RATE

    def factor(step: int) -> float:
        cosine = (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2
        return min((step + 1) / first, floor + (1 - floor) * cosine)

    loss = LinearELBO(warmup(max(1, steps // 2), 1e-4, beta))
    scheduler = partial(LambdaLR, lr_lambda=factor)
    optim = partial(torch.optim.Adamax, lr=RATE)
    svi = SVI(*pair, optim, loss, scheduler=scheduler, clip_norm=500.0)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        svi.step(x[torch.randint(len(x), (BATCH,), generator=order)])
        svi.scheduler.step()


def judge(pair: tuple[PoissonVAE, Poisson], x: Tensor) -> dict[str, float]:
    """Return error, sparsity and bound of a pair."""
    model, guide = pair
    loss = LinearELBO()
    with evaluating(*pair, loss):
        total = float(loss.differentiable_loss(model, guide, x).double()) / len(x)
        mean = poutine.trace(guide).get_trace(x).nodes["z"]["fn"].mean
        error = (x - model.decoder(mean)).square().sum(1).mean()
    code = sparsity(guide, x)
    return {
        "mse_map": float(error),
        "sparsity": float(code.lifetime.mean()),
        "zeros": code.zeros,
        "nelbo": paper_units(total, x.shape[1]),
        "kl": float(loss.record["kl"]),
        "active": float(active_by_kl(model, guide, x).double().mean()),
    }


def perform(curve: str, value: float, x: Tensor, test: Tensor, out: Path, scale: float) -> dict:
    """Do one run: train a P-VAE, learn a dictionary, or infer codes through a P-VAE's."""
    pyro.set_rng_seed(0)
    if curve == "P-VAE":
        pair = make_pair(x.shape[1])
        train(pair, x, value, max(10, int(6000 * scale)))
        torch.save(pair[0].decoder.weight.detach(), out / f"{curve}, {value:g}.pt")
        return judge(pair, test)
    method = curve.removeprefix("P-VAE + ")
    fast, slow = (partial(infer, method, threshold=value, steps=n) for n in (LEARNING, SCORING))
    if curve == "P-VAE + LCA":
        atoms = coding.unit_columns(torch.load(out / "P-VAE, 1.pt", weights_only=True))
    else:
        atoms = coding.learn_dictionary(x, UNITS, fast, steps=max(10, int(400 * scale)), rate=0.2)
    return coding.score(test, atoms, slow)


def main(
    root: Path = Path("data"),
    out: Path = Path("runs/poisson_rates"),
    curves: tuple[str, ...] = tuple(CURVES),
    scale: float = 1.0,
) -> None:
    """Do the runs that are not written yet; print the table, and draw the figure, of all.

    Args:
        root: The folder that holds olshausen_whitened/.
        out: Where to write.
        curves: Which, by name; none prints the table alone.
        scale: Of the number of steps: 0.01 tries the script out.
    """
    out.mkdir(parents=True, exist_ok=True)
    todo = [(c, v) for c in curves for v in CURVES[c] if not _path(out, c, v).exists()]
    split = load("olshausen_whitened", root=root) if todo else None
    for curve, value in todo:
        start = time.process_time()
        found = perform(curve, value, split.train, split.test, out, scale)
        found["cpu_seconds"] = time.process_time() - start
        print(curve, value, found, flush=True)
        _path(out, curve, value).write_text(json.dumps(found, indent=2))
    print(report(out))


def report(out: Path) -> str:
    """Return the table of what is written, as Markdown, and save the figure beside it."""
    columns = ("method", "beta or threshold", "mse_map", "lifetime sparsity", "zeros", "nELBO")
    columns += ("KL", "active", "CPU", "published mse_map", "sparsity", "nELBO", "KL")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    points = {}
    for curve, values in CURVES.items():
        for value in values:
            if not (path := _path(out, curve, value)).exists():
                continue
            r, said = json.loads(path.read_text()), PUBLISHED[curve].get(value)
            points.setdefault(curve, []).append((f"{value:g}", r["sparsity"], r["mse_map"]))
            extra = [f"{r[key]:{form}}" if key in r else "-" for key, form in _EXTRA]
            cells = [curve, f"{value:g}", f"{r['mse_map']:.2f}", f"{r['sparsity']:.3f}"]
            cells += [f"{r['zeros']:.3f}", *extra, f"{r['cpu_seconds']:.0f} s"]
            theirs = said or (math.nan,) * 4
            cells += ["-" if math.isnan(number) else f"{number:g}" for number in theirs]
            lines.append(f"| {' | '.join(cells)} |")
        for value, said in PUBLISHED[curve].items():
            if value not in values:
                lines.append(
                    f"| {curve} |" + " - |" * 8 + f" {said.error} | {said.sparsity} | - | - |"
                )
    if points:
        published = {
            curve: [
                ("" if math.isnan(value) else f"{value:g}", said.sparsity, said.error)
                for value, said in found.items()
            ]
            for curve, found in PUBLISHED.items()
        }
        figure = plots.error_by_sparsity(points, published)
        figure.axes[0].set_title("ours: Olshausen and Field's patches; published: van Hateren's")
        figure.savefig(out / "error_by_sparsity.png", dpi=150)
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, "", versions])


_EXTRA = (("nelbo", ".2f"), ("kl", ".2f"), ("active", ".3f"))


def _path(out: Path, curve: str, value: float) -> Path:
    return out / f"{curve}, {value:g}.json"


if __name__ == "__main__":
    tyro.cli(main)
