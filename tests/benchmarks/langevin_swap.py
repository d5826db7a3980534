"""Notebook 01's guides and short-run Langevin on one VAE: what decoder has each of them taught?

    python tests/benchmarks/langevin_swap.py --out runs/langevin_swap
    python tests/benchmarks/langevin_swap.py --data mnist --root FOLDER --epochs 10 --fit 5

The pair is notebook 01's, 8 latents and one layer of 256 units, and `Langevin(model)` takes the
place of `Normal(encoder, latent_dim=8)`: no encoder, but 20 steps from the prior in each step of
training, of the size that the row's name says. MNIST is thresholded, as the digits are; FOLDER
holds it as torchvision lays it out.

Langevin's own training loss is no bound, so that its decoder is judged as all the others are:

- post hoc: a FullRank guide, fitted to the frozen decoder by the ELBO for `--fit` epochs, and
  1,000 draws from it, on all test data (the first 1,000 of MNIST);
- bridge: `Langevin(model, steps=100, density="bridge")`, annealed importance sampling without
  accept steps, of the size on a grid that has the largest bound on 20 training data; 64 draws, on
  the first 200 test data. No encoder is asked.

Each run is written as it ends, so that an interrupted benchmark goes on where it was.
"""

import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import torch
import tyro
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.optim import Adam

from ppvae import SVI, fit, log_weights
from ppvae.data import load
from ppvae.data.split import Split
from ppvae.diagnostics import Evidence, active_units, evidence, pareto_k
from ppvae.guides import FullRank, Langevin
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.recipes import FIVE_GUIDES

LATENTS, HIDDEN = 8, 256
BRIDGE = {"steps": 100, "density": "bridge"}
STEPS = {f"langevin, s = {s}": s for s in (0.1, 0.2, 0.3)}
GRID = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)


def make(name: str, features: int) -> tuple[nn.Module, nn.Module, object]:
    """Return a model, a guide and a loss."""
    model = VAE(MLP(LATENTS, HIDDEN, features), latent_dim=LATENTS)
    if name in STEPS:
        return model, Langevin(model, step_size=STEPS[name]), Trace_ELBO()
    entry = FIVE_GUIDES[name]
    return model, entry.guide(MLP(features, HIDDEN), latent_dim=LATENTS), entry.loss()


def post_hoc(model: nn.Module, split: Split, epochs: int, some: Tensor) -> tuple[Evidence, float]:
    """Return the evidence by a guide fitted to the model as it is, and the share of bad k."""
    guide = FullRank(MLP(split.train.shape[1], HIDDEN), latent_dim=LATENTS)
    svi = SVI(model, guide, partial(Adam, lr=1e-3), Trace_ELBO())
    fit(svi, split.train, epochs=epochs, progress=False)
    log_w = log_weights(model, guide, some, 1000)
    return evidence(log_w), pareto_k(log_w).share_bad


def bridge(model: nn.Module, split: Split) -> tuple[Evidence, float]:
    """Return the evidence by annealed importance sampling, and its step size."""

    def bound(step_size: float) -> float:
        guide = Langevin(model, step_size=step_size, **BRIDGE)
        log_w = log_weights(model, guide, split.train[:20], 16)
        return float(log_w.mean().nan_to_num(-torch.inf))

    best = max(GRID, key=bound)
    guide = Langevin(model, step_size=best, **BRIDGE)
    return evidence(log_weights(model, guide, split.test[:200], 64)), best


def run(name: str, split: Split, epochs: int, refit: int, seed: int) -> dict:
    """Train a pair, and return what is said of its decoder."""
    pyro.set_rng_seed(seed)
    model, guide, loss = make(name, split.train.shape[1])
    svi, start = SVI(model, guide, partial(Adam, lr=1e-3), loss), time.process_time()
    fit(svi, split.train, epochs=epochs, progress=False)
    found = {"epochs": epochs, "cpu_seconds": time.process_time() - start}
    active = active_units(guide, split.test[:1000]).sum()
    model.requires_grad_(False)
    some = split.test[:1000]
    fitted, bad = post_hoc(model, split, refit, some)
    annealed, chosen = bridge(model, split)
    found |= {
        "active": int(active),
        "post_hoc": fitted.mean,
        "post_hoc_se": fitted.mean_standard_error,
        "post_hoc_200": float(fitted.log_evidence[:200].mean()),
        "post_hoc_bad": bad,
        "bridge_200": annealed.mean,
        "bridge_se": annealed.mean_standard_error,
        "bridge_step": chosen,
    }
    return found


def main(
    data: str = "digits",
    root: Path = Path("data"),
    out: Path = Path("runs/langevin_swap"),
    guides: tuple[str, ...] = (*STEPS, *FIVE_GUIDES),
    epochs: int = 200,
    fit: int = 200,
    seeds: int = 1,
) -> None:
    """Do the runs that are not written yet, and print the table of those that are.

    Args:
        data: digits or mnist.
        root: The folder of torchvision's data sets.
        out: Where to write.
        guides: Which of the table's; none prints the table alone.
        epochs: Of training.
        fit: Epochs of the guide that is fitted afterwards.
        seeds: How many of each, of weights, order and draws.
    """
    out.mkdir(parents=True, exist_ok=True)
    split = load(data, root=root, binarize="threshold")
    for seed, name in ((s, g) for s in range(seeds) for g in guides):
        path = out / f"{data}, {name}, {seed}.json"
        if not path.exists():
            found = run(name, split, epochs, fit, seed)
            print(name, found, flush=True)
            path.write_text(json.dumps({"guide": name, "seed": seed, **found}, indent=2))
    print(table(out, data))


COLUMNS: dict[str, Callable[[dict], str]] = {
    "trained with": lambda r: r["guide"],
    "evidence, post hoc": lambda r: f"{r['post_hoc']:.2f} +- {r['post_hoc_se']:.2f}",
    "k > 0.7": lambda r: f"{r['post_hoc_bad']:.1%}",
    "first 200": lambda r: f"{r['post_hoc_200']:.2f}",
    "the same by bridge": lambda r: f"{r['bridge_200']:.2f} +- {r['bridge_se']:.2f}",
    "active": lambda r: str(r["active"]),
    "CPU": lambda r: f"{r['cpu_seconds']:.0f} s",
}


def table(out: Path, data: str) -> str:
    """Return the runs that are written, as Markdown."""
    runs = [json.loads(path.read_text()) for path in sorted(out.glob(f"{data}, *.json"))]
    lines = [f"| {' | '.join([*COLUMNS, 'seed'])} |", "|" + "---|" * (len(COLUMNS) + 1)]
    for found in sorted(runs, key=lambda r: -r["post_hoc"]):
        cells = [cell(found) for cell in COLUMNS.values()]
        lines.append(f"| {' | '.join([*cells, str(found['seed'])])} |")
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, "", versions])


if __name__ == "__main__":
    tyro.cli(main)
