"""What `log_weights` spends on finding out what the pair is, beside the weights themselves.

    OMP_NUM_THREADS=1 python tests/benchmarks/checks.py

CPU times of the process, which waiting for a core does not lengthen: the median of several runs of
`plan_of`, and of `log_weights` with 1,000 draws, whose part the plan is.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
import tyro
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from ppvae import log_weights
from ppvae.guides import Flow, GaussianMixture, Langevin, Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.protocols import Batch
from ppvae.weights import evaluating, plan_of

DRAWS = 1000


class Row(NamedTuple):
    """A pair, and a batch."""

    model: Callable
    guide: Callable
    batch: Batch


def regression(batch: Batch) -> None:
    """A regression of three weights that all data share."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(batch["y"])):
        pyro.sample("y", dist.Normal((batch["x"] * w.unsqueeze(-2)).sum(-1), 1.0), obs=batch["y"])


def rows() -> dict[str, Row]:
    """Return the pairs by name."""
    pyro.set_rng_seed(0)
    x = (torch.rand(128, 784) < 0.5).float()
    model = VAE(MLP(20, 400, 784), latent_dim=20)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(8, 64))
    small, y = (torch.rand(100, 64) < 0.5).float(), torch.randn(100)
    line = {"x": torch.randn(100, 3), "y": y}
    return {
        "784-400-20, Normal, 128 data": Row(model, Normal(MLP(784, 400), latent_dim=20), x),
        "784-400-20, GaussianMixture": Row(
            model, GaussianMixture(MLP(784, 400), latent_dim=20, components=8), x
        ),
        "784-400-20, Flow": Row(model, Flow(MLP(784, 400), latent_dim=20), x),
        "784-400-20, Normal, 1 datum": Row(model, Normal(MLP(784, 400), latent_dim=20), x[:1]),
        "64-32-8, Langevin bridge, 100 data": Row(
            small_model := VAE(MLP(8, 32, 64), latent_dim=8),
            Langevin(small_model, steps=5, density="bridge"),
            small,
        ),
        "64-8, one draw at a time": Row(
            VAE(wide, latent_dim=8), Normal(MLP(64, 32), latent_dim=8), small
        ),
        "regression, AutoNormal": Row(regression, AutoNormal(regression), line),
    }


def spent(function: Callable[[], object], repeats: int) -> float:
    """Return the median CPU time of a call, in ms."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def main(repeats: int = 5) -> None:
    """Print a row per pair.

    Args:
        repeats: How many times each is run.
    """
    print("| pair | plan (ms) | log_weights, 1,000 draws (ms) | share |\n|---|---|---|---|")
    for name, (model, guide, batch) in rows().items():
        log_weights(model, guide, batch, 2)

        def plan(model: Callable = model, guide: Callable = guide, batch: Batch = batch) -> None:
            with evaluating(model, guide):
                plan_of(model, guide, batch)

        def weigh(
            model: Callable = model, guide: Callable = guide, batch: Batch = batch
        ) -> Tensor:
            return log_weights(model, guide, batch, DRAWS)

        checks, whole = spent(plan, repeats), spent(weigh, repeats)
        print(f"| {name} | {checks:.1f} | {whole:.0f} | {checks / whole:.1%} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
