"""The Poisson VAE beside Normal and Laplace ones: sparse coding of digits and natural images.

    python tests/benchmarks/poisson.py --mnist FOLDER --patches FOLDER --out runs/poisson

FOLDER holds MNIST, or `olshausen_whitened/`. Encoder and decoder are matrices of 512 latents,
started from N(0, .05^2), without biases but for the runs named "bias": patches have mean 0, so
that without one a Normal's scales lie about 1 whatever the unit. x ~ N(Phi z, I/2); Adamax, its
learning rate warmed up over 1% of the steps and then on one cosine to 1e-5; beta rises from 1e-4
to 1 over the first half, but for the runs named "beta 1" or "bias": the paper has that schedule
for Poisson latents alone. MNIST's pixels are gray, in [0, 1]; patches are of mean 0 and variance
1, 16 x 16. "exact" trains without draws (`LinearELBO`), "relaxed" with relaxed counts, cubic, of T
from 1 to .05 over the first half; "from exact" goes on from the exact one, with beta = 1 and
T = .05.

Numbers are of the test part, in paper units (`diagnostics.paper_units`), with counts, T = 0: the
average of 5 draws per datum, and in closed form, mse and KL too; mse_map is at the mean. A unit is
active if its KL is above .01 nats; published shares have a threshold of each family's own. pPCA is
what bounds a linear decoder with Normal latents. Published patches are van Hateren's, and ours
Olshausen and Field's: compare those with pPCA, not with the published, which read nELBO = mse +
KL; mse_map; active.

Each run is written as it ends, its weights before it is judged, so that an interrupted benchmark
goes on where it was.
"""

import json
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
import tyro
from pyro import poutine
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ppvae import SVI, plots
from ppvae.data import load
from ppvae.diagnostics import kl_per_dimension, paper_units, ppca_bound, sparsity
from ppvae.guides import Laplace, Normal, Poisson
from ppvae.likelihoods import Normal as FixedScale
from ppvae.models import VAE, PoissonVAE
from ppvae.networks import Flat, bounded_exp
from ppvae.objectives import BetaELBO, LinearELBO, warmup
from ppvae.weights import evaluating

LATENTS, DRAWS, COLDEST = 512, 5, 0.05
Pair = tuple[nn.Module, nn.Module]


class Run(NamedTuple):
    """Data, a family of latents, and how to train them."""

    data: str
    family: str
    epochs: int
    batch_size: int
    rate: float
    decay: float
    clip: float
    relaxed: bool = False  # whether with draws
    ramp: bool = True  # whether beta rises over the first half
    bias: bool = False  # whether a Normal or Laplace head has one
    start: str | None = None  # the run to go on from, at the schedules' end
    published: str = ""


digits = partial(Run, "mnist", batch_size=600, decay=3e-4, clip=1000.0)
images = partial(Run, "patches", epochs=1000, batch_size=256, rate=0.01, decay=0.0, clip=500.0)
EXACT, RELAXED = "41.5 = 32.84 + 8.62; 24.64; .520", "41.7 = 33.21 + 8.51; 24.36; .537"
RUNS = {
    "MNIST, Poisson, exact, 25 epochs": digits("Poisson", 25, rate=0.004),
    "MNIST, Poisson, exact": digits("Poisson", 80, rate=0.004, published=EXACT),
    "patches, Poisson, exact": images(
        "Poisson", published="168.0; with draws 167.2 = 137.70 + 29.47; 102.39; .984"
    ),
    "patches, Normal, exact": images("Normal", published="160.3 = 122.74 + 37.56; 82.33; .218"),
    "patches, Laplace, exact": images("Laplace", published="167.3 = 126.91 + 40.43; 91.20; .188"),
    **{
        f"patches, {family}, exact, beta 1": images(family, epochs=300, ramp=False)
        for family in ("Poisson", "Normal", "Laplace")
    },
    **{
        f"patches, {family}, exact, bias": images(family, epochs=300, ramp=False, bias=True)
        for family in ("Normal", "Laplace")
    },
    "MNIST, Poisson, relaxed": digits("Poisson", 80, rate=0.004, relaxed=True, published=RELAXED),
    "MNIST, Poisson, relaxed, from exact": digits(
        "Poisson", 15, rate=0.001, relaxed=True, start="MNIST, Poisson, exact", published=RELAXED
    ),
}


def make_pair(family: str, size: int, *, bias: bool = False) -> Pair:
    """Return a model and a guide, both linear, the guide's head with a bias or without."""
    decoder = nn.Linear(LATENTS, size, bias=False)
    nn.init.normal_(decoder.weight, std=0.05)
    if family == "Poisson":
        model = PoissonVAE(decoder, LATENTS)
        return model, Poisson(Flat(size), model, temperature=COLDEST, bias=False)
    guide_class, prior_class = {
        "Normal": (Normal, dist.Normal),
        "Laplace": (Laplace, dist.Laplace),
    }[family]
    prior = prior_class(torch.zeros(LATENTS), torch.ones(LATENTS)).to_event(1)
    model = VAE(decoder, LATENTS, FixedScale(0.5**0.5), prior)
    guide = guide_class(Flat(size), LATENTS, min_scale=0.0, scale=bounded_exp)
    guide.head = nn.Linear(size, 2 * LATENTS, bias=bias)
    nn.init.normal_(guide.head.weight, std=0.05)
    if bias:
        nn.init.zeros_(guide.head.bias)
    return model, guide


def factor(run: Run, steps: int) -> Callable[[int], float]:
    """Return the learning rate's factor by step: a linear warm-up, and a cosine to 1e-5."""
    first, floor = max(1, steps // 100), 1e-5 / run.rate

    def of(step: int) -> float:
        cosine = (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2
        return min((step + 1) / first, floor + (1 - floor) * cosine)

    return of


def train(run: Run, pair: Pair, x: Tensor, held_out: Tensor) -> dict[str, object]:
    """Train a pair; return the seconds it took, its steps, and the held-out nELBO on its path."""
    size = min(run.batch_size, len(x))
    steps = run.epochs * (len(x) // size)
    half = max(1, steps // 2)
    ramp = warmup(half, 1e-4, 1.0) if run.ramp and not run.start else 1.0
    cooling = None if run.start or not run.relaxed else warmup(half, 1.0, COLDEST)
    loss = (BetaELBO if run.relaxed else LinearELBO)(ramp)
    optim = partial(torch.optim.Adamax, lr=run.rate, weight_decay=run.decay)
    scheduler = partial(LambdaLR, lr_lambda=factor(run, steps))
    svi = SVI(*pair, optim, loss, scheduler=scheduler, clip_norm=run.clip)
    seconds, path, order = 0.0, [], torch.Generator().manual_seed(0)
    start, cpu = time.perf_counter(), time.process_time()
    for step in range(steps):
        if step % (len(x) // size) == 0:
            rows = torch.randperm(len(x), generator=order)
        if cooling is not None:
            pair[1].temperature.fill_(cooling(step))
        first = step % (len(x) // size) * size
        svi.step(x[rows[first : first + size]])
        svi.scheduler.step()
        if (step + 1) % max(1, steps // 10) == 0:
            seconds += time.perf_counter() - start
            path.append((step + 1, exact(pair, held_out)["nelbo"]))
            print(
                f"step {step + 1} of {steps}, nELBO {path[-1][1]:.3f}, {seconds:.0f} s", flush=True
            )
            start = time.perf_counter()
    seconds += time.perf_counter() - start
    cpu = time.process_time() - cpu
    return {"steps": steps, "seconds": seconds, "cpu_seconds": cpu, "path": path}


def terms(pair: Pair, x: Tensor, loss: BetaELBO) -> dict[str, float]:
    """Return nELBO, mse and KL of a loss, of beta = 1, in paper units."""
    total = {"nelbo": 0.0, "kl": 0.0}
    with evaluating(*pair, loss):
        for part in x.split(1000):
            total["nelbo"] += float(loss.differentiable_loss(*pair, part).double()) / len(x)
            total["kl"] += float(loss.record["kl"]) * len(part) / len(x)
    nelbo = paper_units(total["nelbo"], x[0].numel())
    return {"nelbo": nelbo, "kl": total["kl"], "mse": nelbo - total["kl"]}


def exact(pair: Pair, x: Tensor) -> dict[str, float]:
    """Return the terms in closed form."""
    return terms(pair, x, LinearELBO())


def judge(run: Run, pair: Pair, x: Tensor) -> dict[str, object]:
    """Return what is asked of every pair, in paper units per test datum."""
    model, guide = pair
    closed, drawn = exact(pair, x), [terms(pair, x, BetaELBO()) for _ in range(DRAWS)]
    with evaluating(*pair):
        means = torch.cat(
            [poutine.trace(guide).get_trace(p).nodes["z"]["fn"].mean for p in x.split(1000)]
        )
        mse_map = (x - model.decoder(means)).square().sum(1).mean()
    kl = kl_per_dimension(model, guide, x)
    nelbos = torch.tensor([found["nelbo"] for found in drawn])
    verdict = {
        "closed": closed,
        "drawn": {name: sum(found[name] for found in drawn) / DRAWS for name in closed},
        "drawn_sd": float(nelbos.std()),
        "mse_map": float(mse_map),
        "active": float((kl > 0.01).double().mean()),
        "units": int((kl > 0.01).sum()),
        "kl_per_unit": kl.tolist(),
    }
    if run.family == "Poisson":
        code = sparsity(guide, x)
        verdict |= {
            "largest_rate": float(means.max()),
            "mean_rate": float(means.mean()),
            "zeros": code.zeros,
            "lifetime": float(code.lifetime.mean()),
        }
    return verdict


def perform(name: str, run: Run, split: object, seed: int, out: Path) -> dict[str, object]:
    """Train a pair, unless its weights are there already, and judge it."""
    pyro.set_rng_seed(seed)
    pair, path = make_pair(run.family, split.train.shape[1], bias=run.bias), out / f"{name}.pt"
    if not path.exists():
        if run.start is not None:
            _restore(pair, out / f"{run.start}.pt")
        facts = train(run, pair, split.train, split.test)
        weights = {"model": pair[0].state_dict(), "guide": pair[1].state_dict()}
        torch.save({**weights, "facts": facts}, path)
    facts = _restore(pair, path)
    pyro.set_rng_seed(seed)
    facts |= {"seed": seed, "epochs": run.epochs, "train": exact(pair, split.train)}
    return facts | judge(run, pair, split.test)


def _restore(pair: Pair, path: Path) -> dict[str, object]:
    saved = torch.load(path, weights_only=True)
    for module, side in zip(pair, ("model", "guide"), strict=True):
        module.load_state_dict(saved[side])
    return saved["facts"]


def main(
    mnist: Path = Path("data"),
    patches: Path = Path("data"),
    out: Path = Path("runs/poisson"),
    runs: tuple[str, ...] = tuple(RUNS),
    seed: int = 0,
    scale: float = 1.0,
) -> None:
    """Do the runs that are not written yet; print the table, and draw the figures, of all.

    Args:
        mnist: The folder of torchvision's data sets.
        patches: The folder that holds olshausen_whitened/.
        out: Where to write.
        runs: Which, by name; none prints the table alone.
        seed: Of weights, order and draws.
        scale: Of the number of epochs: 0.01 tries the script out.
    """
    out.mkdir(parents=True, exist_ok=True)
    sources = {"mnist": ("mnist", mnist), "patches": ("olshausen_whitened", patches)}
    splits = {}
    for name in runs:
        run, path = RUNS[name], out / f"{name}.json"
        run = run._replace(epochs=max(1, int(run.epochs * scale)))
        if path.exists():
            continue
        if run.data not in splits:
            source, root = sources[run.data]
            splits[run.data] = load(source, root=root)
            found = vars(ppca_bound(splits[run.data].train, splits[run.data].test))
            (out / f"ppca, {run.data}.json").write_text(json.dumps(found, indent=2))
        print(name, flush=True)
        path.write_text(json.dumps(perform(name, run, splits[run.data], seed, out), indent=2))
    print(report(out))


def report(out: Path) -> str:
    """Return the table of what is written, as Markdown, and save the figures beside it."""
    columns = ("run", "nELBO, 5 draws", "closed form", "mse", "KL", "mse_map", "active")
    columns += ("largest rate", "zeros", "published", "steps", "CPU")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for data in ("mnist", "patches"):
        if (path := out / f"ppca, {data}.json").exists():
            p = json.loads(path.read_text())
            lines.append(
                f"| {data}, pPCA | - | {p['nelbo']:.2f} | {p['mse']:.2f} | {p['kl']:.2f} "
                f"| {p['mse_map']:.2f} | {p['units'] / LATENTS:.3f} | - | - | - | - | - |"
            )
    for name, run in RUNS.items():
        if not (path := out / f"{name}.json").exists():
            continue
        r = json.loads(path.read_text())
        drawn, closed = r["drawn"], r["closed"]
        rate, zeros = (f"{r[key]:.3g}" if key in r else "-" for key in ("largest_rate", "zeros"))
        lines.append(
            f"| {name} | {drawn['nelbo']:.2f} | {closed['nelbo']:.2f} | {closed['mse']:.2f} "
            f"| {closed['kl']:.2f} | {r['mse_map']:.2f} | {r['active']:.3f} | {rate} | {zeros} "
            f"| {run.published} | {r['steps']:,} | {r['cpu_seconds'] / 60:.1f} min |"
        )
        weights = torch.load(out / f"{name}.pt", weights_only=True)["model"]["decoder.weight"]
        figure = plots.dictionary(weights, order=torch.tensor(r["kl_per_unit"]))
        figure.savefig(out / f"{name}.png", dpi=150)
    _draw_kl(out)
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, "", versions])


def _draw_kl(out: Path) -> None:
    """Save each family's KL per unit on the patches, the largest first."""
    figure, (axes,) = plots.canvas.new_figure(1, 1, width=6, height=3.2)
    paths = {name: out / f"{name}.json" for name, run in RUNS.items() if run.data == "patches"}
    for color, (name, path) in zip(plots.canvas.COLORS, paths.items(), strict=False):
        if path.exists():
            kl = sorted(json.loads(path.read_text())["kl_per_unit"], reverse=True)
            axes.plot(range(1, len(kl) + 1), kl, color=color, label=RUNS[name].family)
    if axes.lines:
        axes.axhline(0.01, color=plots.canvas.MUTED, linewidth=0.8, linestyle="--")
        axes.set(yscale="log", ylim=(1e-4, None), xlabel="unit", ylabel="KL (nats per datum)")
        axes.legend(frameon=False, fontsize=8, title="dashed: active from", title_fontsize=7)
        figure.savefig(out / "patches, KL per unit.png", dpi=150)


if __name__ == "__main__":
    tyro.cli(main)
