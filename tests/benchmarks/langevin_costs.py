"""What a training step of `guides.Langevin` costs beside the same dynamics written by hand.

    python tests/benchmarks/langevin_costs.py --out runs/langevin_costs

A VAE decoder D-H-784 with ReLU, Bernoulli data, K steps of s = .1 from the prior, Adam 1e-3 fused.
"By hand" is a loop of plain PyTorch over the same decoder: on one seed it has the same losses, up
to rounding, which is checked here. "Normal" is the plain VAE with the mirrored encoder. The three
take turns, a few steps each in an order drawn anew every round, so that what else the machine does
hits all alike; on a CPU the times are CPU times of the process, one thread, which waiting for a
core does not lengthen; on CUDA wall times with a wait for the device. The median over rounds.
Passes are counted by hooks on the decoder.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import torch
import tyro
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import Adam

from ppvae import SVI, resolve_device
from ppvae.guides import Langevin, Normal
from ppvae.models import VAE
from ppvae.networks import MLP

PIXELS = 784
Step = Callable[[Tensor], Tensor]


def langevin(decoder: MLP, steps: int, device: torch.device) -> Step:
    """Return a training step of the library."""
    model = VAE(decoder, decoder.in_features).to(device)
    guide = Langevin(model, steps).to(device)
    return SVI(model, guide, partial(Adam, lr=1e-3), Trace_ELBO()).step


def normal(decoder: MLP, steps: int, device: torch.device) -> Step:
    """Return a training step of the plain VAE."""
    model = VAE(decoder, decoder.in_features).to(device)
    hidden = decoder[0].out_features
    guide = Normal(MLP(PIXELS, hidden), decoder.in_features).to(device)
    return SVI(model, guide, partial(Adam, lr=1e-3), Trace_ELBO()).step


def by_hand(decoder: MLP, steps: int, device: torch.device) -> Step:
    """Return the same step, of plain PyTorch."""
    decoder, s = decoder.to(device), 0.1
    optimizer = Adam(decoder.parameters(), lr=1e-3, fused=True)

    def log_joint(z: Tensor, x: Tensor) -> Tensor:
        log_likelihood = -binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        return log_likelihood - z.square().sum() / 2

    def step(x: Tensor) -> Tensor:
        z = torch.randn(len(x), decoder.in_features, device=device)
        for _ in range(steps):
            z.requires_grad_()
            (slope,) = torch.autograd.grad(log_joint(z, x), z)
            z = z.detach() + s * s / 2 * slope + s * torch.randn_like(z)
        optimizer.zero_grad(set_to_none=True)
        constant = decoder.in_features / 2 * torch.log(torch.tensor(2 * torch.pi)).to(device)
        loss = -log_joint(z, x) / len(x) + constant
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


MAKERS = {"Langevin": langevin, "by hand": by_hand, "Normal": normal}


def check_same(sizes: tuple[int, ...], steps: int, x: Tensor) -> float:
    """Return the largest relative difference of losses, by the library and by hand, one seed."""
    losses = {}
    for name in ("Langevin", "by hand"):
        pyro.set_rng_seed(0)
        step = MAKERS[name](MLP(*sizes), steps, x.device)
        step(x[:2])
        pyro.set_rng_seed(1)
        losses[name] = [float(step(x)) for _ in range(5)]
    pairs = zip(*losses.values(), strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def passes(sizes: tuple[int, ...], steps: int, x: Tensor) -> tuple[int, int]:
    """Return the decoder's forward and backward passes in a step of the library."""
    decoder, count = MLP(*sizes), {"forward": 0, "backward": 0}

    def add(direction: str) -> None:
        count[direction] += 1

    def forward(module: MLP, inputs: tuple, out: Tensor) -> None:
        add("forward")
        if out.requires_grad:
            out.register_hook(lambda gradient: add("backward"))

    step = langevin(decoder, steps, x.device)
    step(x)  # Pyro's first step counts plates by running the pair
    decoder.register_forward_hook(forward)
    step(x)
    return count["forward"], count["backward"]


def times(
    sizes: tuple[int, ...], steps: int, x: Tensor, rounds: int, turn: int
) -> dict[str, list[float]]:
    """Return milliseconds per step, a number per round, by name."""
    steppers = {name: make(MLP(*sizes), steps, x.device) for name, make in MAKERS.items()}
    for step in steppers.values():
        for _ in range(3):
            step(x)
    found, clock = {name: [] for name in steppers}, time.process_time
    if x.is_cuda:
        clock = time.perf_counter
    for _ in range(rounds):
        for index in torch.randperm(len(steppers)).tolist():
            name = list(steppers)[index]
            if x.is_cuda:
                torch.cuda.synchronize()
            start = clock()
            for _ in range(turn):
                steppers[name](x)
            if x.is_cuda:
                torch.cuda.synchronize()
            found[name].append(1e3 * (clock() - start) / turn)
    return found


def main(
    out: Path = Path("runs/langevin_costs"),
    steps: int = 20,
    batch_sizes: tuple[int, ...] = (128, 1000),
    rounds: int = 15,
    turn: int = 3,
    device: str = "auto",
) -> None:
    """Measure, print the table, and write it.

    Args:
        out: Where to write.
        steps: K.
        batch_sizes: Of the data.
        rounds: How often each has its turn.
        turn: Steps in a turn.
        device: Where.
    """
    torch.set_num_threads(1)
    place, rows = resolve_device(device), []
    for sizes in ((20, 400, PIXELS), (8, 256, PIXELS)):
        for batch_size in batch_sizes:
            x = (torch.rand(batch_size, PIXELS) < 0.3).float().to(place)
            difference = check_same(sizes, steps, x)
            count = passes(sizes, steps, x)
            found = times(sizes, steps, x, rounds, turn)
            middle = {name: statistics.median(values) for name, values in found.items()}
            paired = zip(found["Langevin"], found["by hand"], strict=True)
            rows.append(
                {
                    "decoder": "-".join(map(str, sizes)),
                    "N": batch_size,
                    "forward": count[0],
                    "backward": count[1],
                    "Langevin ms": round(middle["Langevin"], 2),
                    "by hand ms": round(middle["by hand"], 2),
                    "ratio": round(statistics.median(a / b for a, b in paired), 3),
                    "Normal ms": round(middle["Normal"], 2),
                    "losses differ by": f"{difference:.1e}",
                }
            )
            print(rows[-1], flush=True)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    print("\n".join(lines))
    out.mkdir(parents=True, exist_ok=True)
    (out / "costs.md").write_text("\n".join(lines) + "\n")
    said = {"K": steps, "device": str(place), "torch": torch.__version__}
    said |= {"machine": platform.processor() or platform.machine()}
    (out / "costs.json").write_text(json.dumps(said | {"rows": rows}, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
