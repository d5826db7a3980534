"""What a training step of the Poisson VAE costs beside a Normal one's, and at which rates.

    python tests/benchmarks/poisson_steps.py

MNIST's size, 784 pixels, encoder and decoder matrices, 512 latents, batches of 200, Adamax, one
thread. Variants take turns, in an order drawn anew every round, so that what else the machine does
hits all alike. Times are CPU times of the process, which waiting for a core does not lengthen: the
median over rounds and the middle half. "x Normal" is the median of the rounds' ratios.

*Rates*: the learning rate is 0 and the guide's gain 1, so that rates stay where they were put: at
the start of training, between e^-6 and e^-4; one unit of 512 at a given rate, the others there;
or all 512. A relaxed draw has 2 T events per unit of rate, T the temperature: it is the sum of the
rates that costs, where a padded list of arrivals costs the largest of them.
"""

import math
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro
import torch
import tyro
from torch import nn

from ppvae import SVI
from ppvae.guides import Normal, Poisson
from ppvae.likelihoods import Normal as FixedScale
from ppvae.models import VAE, PoissonVAE
from ppvae.networks import Flat, bounded_exp
from ppvae.objectives import BetaELBO, LinearELBO, Objective

PIXELS, LATENTS, CLAMP = 784, 512, 8.0  # a clamp above the largest rate that is measured


class Row(NamedTuple):
    """A loss, and what makes the Poisson guide's draws; None for the Normal guide."""

    loss: Callable[[], Objective]
    draws: dict[str, object] | None


ROWS = {
    "Normal": Row(BetaELBO, None),
    "exact": Row(LinearELBO, {}),
    "score function": Row(BetaELBO, {"gradient": "score"}),
    "relaxed, T = .05": Row(BetaELBO, {"temperature": 0.05}),
    "relaxed, T = 1": Row(BetaELBO, {"temperature": 1.0}),
}


def trainer(row: Row, units: int = 0, rate: float = 1.0) -> SVI:
    """Return a fresh pair whose first units have a rate, the others those of the start."""
    pyro.set_rng_seed(0)
    decoder = nn.Linear(LATENTS, PIXELS, bias=False)
    if row.draws is None:
        model = VAE(decoder, LATENTS, FixedScale(0.5**0.5))
        guide = Normal(Flat(PIXELS), LATENTS, scale=bounded_exp)
    else:
        model = PoissonVAE(decoder, LATENTS, clamp=CLAMP)
        guide = Poisson(Flat(PIXELS), model, bias=False, **row.draws)
        nn.init.zeros_(guide.head.weight)
        with torch.no_grad():  # undo the clamp, lam = l / (1 + l e^-c)
            model.log_rate[:units] = math.log(rate / (1 - rate * math.exp(-CLAMP)))
    return SVI(model, guide, partial(torch.optim.Adamax, lr=0.0), row.loss())


def times(trainers: dict[str, SVI], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return CPU milliseconds per step, a number per round, by name."""
    batch = torch.rand(200, PIXELS)
    for svi in trainers.values():
        for _ in range(2):
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


def main(
    rounds: int = 30,
    steps: int = 10,
    growth_rounds: int = 7,
    rates: tuple[float, ...] = (1.0, 5.0, 20.0, 50.0, 100.0, 200.0),
) -> None:
    """Measure, and print the tables.

    Args:
        rounds: How often the variants take turns at the rates of the start.
        steps: Of each, each time.
        growth_rounds: How often they do at each of the other rates, a step each time.
        rates: The largest rates, below 2,900.
    """
    torch.set_num_threads(1)
    found = times({name: trainer(row) for name, row in ROWS.items()}, rounds, steps)
    lines = ["| B = 200 | ms per step | middle half | x Normal | middle half |", "|" + "---|" * 5]
    for name in ROWS:
        ratios = [a / b for a, b in zip(found[name], found["Normal"], strict=True)]
        lines.append(f"| {name} | {_middle(found[name], 1)} | {_middle(ratios, 2)} |")
    heads = " | ".join(f"{rate:g}" for rate in rates)
    lines += ["", f"| ms per step, largest rate | units at it | {heads} |"]
    lines += ["|" + "---|" * (2 + len(rates))]
    poisson = {name: row for name, row in ROWS.items() if row.draws is not None}
    for units in (1, LATENTS):
        columns = []
        for rate in rates:
            trainers = {name: trainer(row, units, rate) for name, row in poisson.items()}
            columns.append(times(trainers, growth_rounds, 1))
        for name in poisson:
            cells = [f"{statistics.median(column[name]):.1f}" for column in columns]
            lines.append(f"| {name} | {units} | {' | '.join(cells)} |")
    versions = f"torch {torch.__version__}, pyro {pyro.__version__}, {platform.python_version()}"
    print("\n".join([*lines, "", versions]))


def _middle(values: list[float], digits: int) -> str:
    """Return the median, and the quartiles around it, as two cells."""
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.{digits}f} | {low:.{digits}f} to {high:.{digits}f}"


if __name__ == "__main__":
    tyro.cli(main)
