"""Kill a running `fit` at random moments, resume it, and compare with a run that nobody disturbed.

    python tests/benchmarks/kills.py --kills 100

Each trial trains in a process of its own, which an alarm ends without warning (nothing is cleaned
up, as with kill -9) after a time drawn from the length of a whole run: at any step, or inside a
write. It is resumed, and killed again, until it gets through. After every kill the last checkpoint
must be readable; at the end weights, optimizer, random streams and records must be those of the
undisturbed run, bit for bit.
"""

import os
import random
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import pyro
import torch
import tyro
from pyro.infer import Trace_ELBO
from torch.optim.lr_scheduler import StepLR

from ppvae import SVI, checkpoints, fit
from ppvae.guides import Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import IWELBO, BetaELBO, warmup

EPOCHS = 8
LOSSES = {"elbo": Trace_ELBO, "beta": lambda: BetaELBO(warmup(50)), "iw": partial(IWELBO, 4)}


def build(loss: str) -> SVI:
    """Return a fresh pair: the same every time."""
    pyro.set_rng_seed(0)
    model = VAE(MLP(8, 128, 64), latent_dim=8)
    guide = Normal(MLP(64, 128), latent_dim=8)
    schedule = partial(StepLR, step_size=2, gamma=0.7)
    return SVI(
        model, guide, partial(torch.optim.Adam, lr=1e-2), LOSSES[loss](), scheduler=schedule
    )


def run(folder: Path, loss: str) -> None:
    """Train, or go on, to the end."""
    data = (torch.rand(600, 64, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    fit(
        build(loss),
        data,
        epochs=EPOCHS,
        batch_size=64,
        validation=data[:100],
        checkpoint=folder,
        resume=True,
        progress=False,
    )


def survives(folder: Path, loss: str, seconds: float | None) -> bool:
    """Run in a child that ends without warning after some seconds; return if it got through."""
    child = os.fork()
    if child == 0:
        if seconds is not None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process where it stands
            signal.setitimer(signal.ITIMER_REAL, seconds)
        run(folder, loss)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"a resumed run failed with {status}")
    return True


def ending(folder: Path, loss: str) -> dict[str, object]:
    """Return all that a run left behind, seconds aside."""
    best = build(loss)
    checkpoints.load(folder, best, "best")
    svi = build(loss)
    meta = checkpoints.load(folder, svi)
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in svi.records]
    return {
        "state": svi.state_dict(),
        "best": best.state_dict(),
        "random": meta["random"],
        "sampler": meta["sampler"],
        "records": records,
    }


def same(a: object, b: object) -> bool:
    """Return whether two nested states are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def main(kills: int = 100, seed: int = 0) -> None:
    """Kill until there were enough, and print what became of the runs.

    Args:
        kills: How many kills to make.
        seed: Of their moments.
    """
    torch.set_num_threads(1)
    draw, done, trials, reads = random.Random(seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        references, lengths = {}, {}
        for loss in LOSSES:
            start = time.perf_counter()
            survives(Path(place) / f"reference-{loss}", loss, None)
            lengths[loss] = time.perf_counter() - start
            references[loss] = ending(Path(place) / f"reference-{loss}", loss)
        while done < kills:
            loss = draw.choice(list(LOSSES))
            folder = Path(place) / f"trial-{trials}"
            while not survives(folder, loss, max(0.01, draw.uniform(0, lengths[loss]))):
                done += 1
                if checkpoints.exists(folder):
                    ending(folder, loss)  # readable, or this raises
                    reads += 1
            if not same(ending(folder, loss), references[loss]):
                raise SystemExit(
                    f"trial {trials} ({loss}) ended elsewhere than the undisturbed run"
                )
            trials += 1
    print(
        f"{done} kills in {trials} runs: {reads} checkpoints read after a kill, none damaged; "
        f"{trials} of {trials} runs bitwise equal to the undisturbed ones"
    )


if __name__ == "__main__":
    tyro.cli(main)
