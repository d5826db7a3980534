"""Four pairs on binarized MNIST, with the negative log likelihood of the whole test set.

    python tests/benchmarks/binarized_mnist.py --data FOLDER --out runs/binarized_mnist

FOLDER holds `binarized_mnist/`, the fixed split of Larochelle. One VAE, 50 latents, two hidden
layers of 200 tanh units in encoder and decoder, trained with Adam, its learning rate falling from
1e-3 (5e-4 in the warm run, which starts from the weights of "normal") to 1e-5 by a cosine; the
epoch with the best bound on the validation set is kept. NLL: 5,000 importance samples per test
image. Each run is written as it ends, so that an interrupted benchmark goes on where it was.
"""

import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
import tyro
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppvae import SVI, fit, log_weights, resolve_device
from ppvae.data import load
from ppvae.diagnostics import evidence, pareto_k
from ppvae.guides import Flow, GaussianMixture, Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import IWELBO

SAMPLES = 5000
PUBLISHED = {
    "normal": "89.9 (1505.05770), 89.78 (pythae)",
    "mixture": "",
    "flow": "85.1 (1505.05770, 80 planar maps)",
    "iwae": "87.1 (1509.00519), 86.82 (pythae)",
    "iwae, warm": "87.1 (1509.00519), 86.82 (pythae)",
}


class Run(NamedTuple):
    """A guide, a loss, and how to train them."""

    guide: Callable[..., nn.Module]
    loss: Callable[[], ELBO]
    epochs: int
    batch_size: int = 128
    rate: float = 1e-3
    start: str | None = None  # the run whose weights to start from


RUNS = {
    "normal": Run(Normal, Trace_ELBO, 300),
    "mixture": Run(partial(GaussianMixture, components=4), Trace_ELBO, 100),
    "flow": Run(Flow, Trace_ELBO, 60),
    "iwae": Run(Normal, partial(IWELBO, 50), 30, batch_size=50),
    "iwae, warm": Run(Normal, partial(IWELBO, 50), 15, batch_size=50, rate=5e-4, start="normal"),
}


def train(
    run: Run, train_data: Tensor, validation: Tensor, seed: int, out: Path
) -> tuple[SVI, float]:
    """Train one pair; return it at its best epoch, and the seconds it took."""
    pyro.set_rng_seed(seed)
    model = VAE(MLP(50, 200, 200, 784, activation=nn.Tanh), latent_dim=50).to(train_data.device)
    encoder = MLP(784, 200, 200, activation=nn.Tanh)
    guide = run.guide(encoder, latent_dim=50, activation=nn.Tanh()).to(train_data.device)
    if run.start is not None:
        weights = torch.load(out / f"{run.start}.pt", weights_only=True)
        model.load_state_dict(weights["model"])
        guide.load_state_dict(weights["guide"])
    svi = SVI(
        model,
        guide,
        partial(torch.optim.Adam, lr=run.rate),
        run.loss(),
        scheduler=partial(CosineAnnealingLR, T_max=run.epochs, eta_min=1e-5),
    )
    start = time.perf_counter()
    fit(
        svi,
        train_data,
        epochs=run.epochs,
        batch_size=run.batch_size,
        validation=validation,
        patience=run.epochs,
    )
    return svi, time.perf_counter() - start


def judge(svi: SVI, test: Tensor) -> dict[str, float]:
    """Return the test set's NLL and what it rests on, a few images at a time."""
    estimates, errors, tails, elbos = [], [], [], []
    for images in test.split(100):
        log_w = log_weights(svi.model, svi.guide, images, SAMPLES)
        estimate = evidence(log_w)
        estimates.append(estimate.log_evidence)
        errors.append(estimate.standard_error)
        tails.append(pareto_k(log_w).k)
        elbos.append(log_w.mean(0))
    estimates, errors, tails = (torch.cat(parts) for parts in (estimates, errors, tails))
    return {
        "nll": -float(estimates.mean()),
        "monte_carlo_error": float(errors.square().sum().sqrt() / len(errors)),
        "sampling_error": float(estimates.std() / len(estimates) ** 0.5),
        "elbo": float(torch.cat(elbos).mean()),
        "k_bad": float((tails > 0.7).float().mean()),
    }


def main(
    data: Path,
    out: Path = Path("runs/binarized_mnist"),
    runs: tuple[str, ...] = tuple(RUNS),
    seed: int = 0,
    device: str = "auto",
    scale: float = 1.0,
) -> None:
    """Train and judge the runs that are not written yet, and print the table of those that are.

    Args:
        data: The folder that holds binarized_mnist/.
        out: Where to write.
        runs: Which of normal, mixture, flow, iwae and "iwae, warm".
        seed: Of weights, draws and order.
        device: "auto", "cpu" or "cuda".
        scale: Of the number of epochs, and of the test set: 0.01 tries the script out.
    """
    out.mkdir(parents=True, exist_ok=True)
    where = resolve_device(device)
    split = load("binarized_mnist", root=data).to(where)
    shuffled = split.test[
        torch.randperm(len(split.test), generator=torch.Generator().manual_seed(0))
    ]
    for name in runs:
        path = out / f"{name}.json"
        if path.exists():
            continue
        run = RUNS[name]._replace(epochs=max(1, int(RUNS[name].epochs * scale)))
        svi, seconds = train(run, split.train, split.validation, seed, out)
        torch.save(
            {"model": svi.model.state_dict(), "guide": svi.guide.state_dict()}, out / f"{name}.pt"
        )
        verdict = judge(svi, shuffled[: max(100, int(len(shuffled) * scale))])
        best = max(svi.records, key=lambda r: r.get("validation_bound", r["validation_elbo"]))
        facts = {
            "epochs": run.epochs,
            "batch_size": run.batch_size,
            "best_epoch": best["epoch"],
            "seconds": seconds,
            "seed": seed,
        }
        path.write_text(json.dumps(facts | verdict, indent=2))
    print(table(out))


def table(out: Path) -> str:
    """Return the runs that are written, as Markdown."""
    lines = [
        "| run | NLL (nats) | published | ELBO | k > 0.7 | epochs (best) | training |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in RUNS:
        if (out / f"{name}.json").exists():
            r = json.loads((out / f"{name}.json").read_text())
            lines.append(
                f"| {name} | {r['nll']:.2f} +- {r['monte_carlo_error']:.2f} | {PUBLISHED[name]} "
                f"| {r['elbo']:.2f} | {r['k_bad']:.1%} | {r['epochs']} ({r['best_epoch']}) "
                f"| {r['seconds'] / 60:.0f} min |"
            )
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, "", versions])


if __name__ == "__main__":
    tyro.cli(main)
