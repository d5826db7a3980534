"""What each objective costs beside a plain VAE: time of a training step, and peak memory.

    python tests/benchmarks/costs.py

One pair for all, 784-256-256-32 with ReLU, Bernoulli, Adam, one thread. Objectives take turns, a
few steps each in an order drawn anew every round, so that what else the machine does hits all
alike. Times are CPU times of the process, which waiting for a core does not lengthen: the median
over rounds and the middle half. "x VAE" is the median of the rounds' ratios. Memory is the peak of
what torch has allocated during one loss and its gradient, batch included, optimizer and weights
not.
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
import tyro
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ppvae import SVI
from ppvae.divergences import Critic, mmd, mmd_gaussian, stein
from ppvae.guides import Normal
from ppvae.models import VAE
from ppvae.networks import MLP, PatchCritic
from ppvae.objectives import BetaELBO, InfoELBO, MixtureELBO, Objective, ReconstructionCritic

PIXELS, LATENTS = 784, 32


class Row(NamedTuple):
    """An objective, and the largest batch whose memory is measured."""

    make: Callable[[], Objective]
    largest: int = 4096


def _critic() -> ReconstructionCritic:
    return ReconstructionCritic(
        PatchCritic((1, 28, 28), filters=(64, 64, 1), strides=(2, 2, 1)), weight=100.0
    )


ROWS = {
    "VAE": Row(lambda: BetaELBO(1.0)),
    "MixtureELBO, total": Row(lambda: MixtureELBO(0.2)),
    "MixtureELBO, means": Row(lambda: MixtureELBO(0.2, moments="means")),
    "MixtureELBO, mixture": Row(lambda: MixtureELBO(0.2, moments="mixture")),
    "InfoELBO, closed-form MMD": Row(lambda: InfoELBO(1.0, 10.0, mmd_gaussian)),
    "InfoELBO, sampled MMD": Row(lambda: InfoELBO(1.0, 10.0, mmd)),
    "InfoELBO, sampled MMD, IMQ": Row(lambda: InfoELBO(1.0, 10.0, partial(mmd, kernel="imq"))),
    "InfoELBO, Stein": Row(lambda: InfoELBO(1.0, 10.0, stein)),
    "InfoELBO, critic (AAE)": Row(lambda: InfoELBO(1.0, 1.0, Critic(MLP(LATENTS, 256, 256, 1)))),
    "MixtureELBO, PatchGAN critic": Row(lambda: MixtureELBO(0.2, critic=_critic()), 512),
}


def trainer(row: Row) -> SVI:
    """Return a fresh pair with an objective."""
    pyro.set_rng_seed(0)
    model = VAE(MLP(LATENTS, 256, 256, PIXELS), LATENTS)
    guide = Normal(MLP(PIXELS, 256, 256), LATENTS)
    return SVI(model, guide, partial(torch.optim.Adam, lr=1e-3), row.make())


def images(count: int) -> Tensor:
    """Return binary images, all noise: what they show is nothing to the clock."""
    return (torch.rand(count, PIXELS) < 0.3).float()


def times(batch_size: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return CPU milliseconds per step, a number per round, by objective."""
    batch, trainers = images(batch_size), {name: trainer(row) for name, row in ROWS.items()}
    for svi in trainers.values():
        for _ in range(3):
            svi.step(batch)
    found = {name: [] for name in trainers}
    for _ in range(rounds):
        for index in torch.randperm(len(trainers)).tolist():
            name = list(trainers)[index]
            start = time.process_time()
            for _ in range(steps):
                trainers[name].step(batch)
            found[name].append(1e3 * (time.process_time() - start) / steps)
    return found


def peak_bytes(row: Row, batch_size: int) -> int:
    """Return the most that torch holds at once during one loss and its gradient."""
    svi, batch = trainer(row), images(batch_size)
    svi.step(batch[:2])  # optimizers and validation have their say
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        batch = images(batch_size)
        (svi.loss.differentiable_loss(svi.model, svi.guide, batch) / batch_size).backward()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    )
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def main(
    rounds: int = 30,
    steps: int = 10,
    batch_size: int = 128,
    batches: tuple[int, ...] = (128, 512, 2048, 4096),
) -> None:
    """Measure and print the table.

    Args:
        rounds: How often the objectives take turns.
        steps: Of each, each time.
        batch_size: For the times.
        batches: The batch sizes for memory.
    """
    torch.set_num_threads(1)
    found = times(batch_size, rounds, steps)
    columns = (f"B = {batch_size}", "ms per step", "middle half", "x VAE", "middle half")
    columns += tuple(f"peak MB, B = {b}" for b in batches)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, row in ROWS.items():
        ratios = [a / b for a, b in zip(found[name], found["VAE"], strict=True)]
        memory = [f"{peak_bytes(row, b) / 1e6:.1f}" if b <= row.largest else "" for b in batches]
        cells = [*_middle(found[name], 2), *_middle(ratios, 2), *memory]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    versions = f"torch {torch.__version__}, pyro {pyro.__version__}, {platform.python_version()}"
    print("\n".join([*lines, "", versions]))


def _middle(values: list[float], digits: int) -> tuple[str, str]:
    """Return the median, and the quartiles around it."""
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"


if __name__ == "__main__":
    tyro.cli(main)
