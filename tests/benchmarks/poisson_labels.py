"""Sample efficiency: what the codes of Poisson, Normal and other VAEs say of few labels.

    python tests/benchmarks/poisson_labels.py --root FOLDER --out runs/poisson_labels

FOLDER holds MNIST, as torchvision lays it out; gray pixels in [0, 1]. 10 latents, x ~ N(h, I/2).
All families have the same networks, MLPs 784-512-256 and its mirror with swish, far smaller and
trained far shorter than the published ones, which are convolutional with residuals and have 1,200
epochs: compare families, not levels. 3,500 steps on batches of 200 (11.7 epochs), Adamax, .005
warmed up over 1% of the steps and then on one cosine to 1e-5, decay 3e-4, gradients of norm 1,000
at most; log r, which has far to go from -6 to -2, learns five times as fast (nELBO of the first
seed 40.8, where it does not 44.4). Over the first half beta rises from 1e-4 to 1, and T falls from
1 to .05 for Poisson (cubic), to .1 for Categorical. The Poisson VAE is not done by then: with
three times the steps its first seed has nELBO 37.8, and .684, .785 and .842 right.

Features are what the guide's head returns: log gains of Poisson, logits of Categorical, means of
Normal and Laplace. 5 neighbors vote; labels are drawn five times from the first 5,000 test images,
and the last 5,000 are scored. Shattering is the mean accuracy of linear cuts through the 252 even
splits of the ten digits. nELBO and KL are of the test part, in paper units, T = 0; a unit is
active if its KL is above .01 nats. Half-widths are of 99%, Student's over seeds.

Each run is written as it ends, so that an interrupted benchmark goes on where it was.
"""

import json
import math
import platform
import time
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import tyro
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ppvae import SVI
from ppvae.data import load
from ppvae.data.split import Split
from ppvae.diagnostics import (
    kl_per_dimension,
    knn_accuracy,
    paper_units,
    shattering_dimensionality,
)
from ppvae.guides import Categorical, Laplace, Normal, Poisson
from ppvae.likelihoods import Normal as FixedScale
from ppvae.models import VAE, PoissonVAE
from ppvae.networks import MLP, bounded_exp
from ppvae.objectives import BetaELBO, warmup
from ppvae.weights import evaluating

LATENTS, BATCH, RATE, COUNTS = 10, 200, 0.005, (200, 1000, 5000)
COLDEST = {"Poisson": 0.05, "Categorical": 0.1}
PUBLISHED = {  # accuracy with 200, 1,000 and 5,000 labels; shattering
    "Poisson": (0.815, 0.919, 0.946, 0.797),
    "Categorical": (0.705, 0.800, 0.853, 0.795),
    "Laplace": (0.757, 0.869, 0.924, 0.751),
    "Normal": (0.673, 0.813, 0.891, 0.758),
    "Normal, ReLU": (0.694, 0.817, 0.877, 0.762),
    "Normal, exp": (0.642, 0.784, 0.863, 0.737),
}
Pair = tuple[nn.Module, nn.Module]


class Exp(nn.Module):
    """exp, as a layer."""

    def forward(self, z: Tensor) -> Tensor:
        """Return e^z."""
        return z.exp()


def make_pair(family: str, size: int) -> Pair:
    """Return a model and a guide of a family, on the same networks."""
    encoder = MLP(size, 512, 256, activation=nn.SiLU)
    decoder = MLP(LATENTS, 256, 512, size, activation=nn.SiLU)
    scale = FixedScale(0.5**0.5)
    match family:
        case "Poisson":
            model = PoissonVAE(decoder, LATENTS, log_rate=(-6.0, -2.0))
            return model, Poisson(encoder, model)
        case "Categorical":
            prior = dist.OneHotCategorical(logits=torch.zeros(LATENTS), validate_args=False)
            return VAE(decoder, LATENTS, scale, prior), Categorical(encoder, LATENTS)
        case "Laplace":
            prior = dist.Laplace(torch.zeros(LATENTS), torch.ones(LATENTS)).to_event(1)
            guide = Laplace(encoder, LATENTS, min_scale=0.0, scale=bounded_exp)
            return VAE(decoder, LATENTS, scale, prior), guide
    bend = {"Normal": nn.Identity, "Normal, ReLU": nn.ReLU, "Normal, exp": Exp}[family]
    guide = Normal(encoder, LATENTS, min_scale=0.0, scale=bounded_exp)
    return VAE(nn.Sequential(bend(), decoder), LATENTS, scale), guide


def train(family: str, pair: Pair, x: Tensor, steps: int, seed: int) -> float:
    """Train a pair; return the seconds of processor time it took."""
    half, first, floor = max(1, steps // 2), max(1, steps // 100), 1e-5 / RATE

    def factor(step: int) -> float:
        cosine = (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2
        return min((step + 1) / first, floor + (1 - floor) * cosine)

    optim = partial(torch.optim.Adamax, lr=RATE, weight_decay=3e-4)
    loss, scheduler = BetaELBO(warmup(half, 1e-4, 1.0)), partial(LambdaLR, lr_lambda=factor)
    groups = {"model.log_rate": {"lr": 5 * RATE}} if family == "Poisson" else None
    svi = SVI(*pair, optim, loss, groups=groups, scheduler=scheduler, clip_norm=1000.0)
    cooling = warmup(half, 1.0, COLDEST.get(family, 1.0))
    order, start = torch.Generator().manual_seed(seed), time.process_time()
    for step in range(steps):
        if family in COLDEST:
            pair[1].temperature.fill_(cooling(step))
        svi.step(x[torch.randint(len(x), (BATCH,), generator=order)])
        svi.scheduler.step()
    return time.process_time() - start


def judge(pair: Pair, split: Split, seed: int) -> dict[str, object]:
    """Return what the codes of test images say of their labels, and the bound."""
    model, guide = pair
    x, labels, loss = split.test, split.test_labels, BetaELBO()
    with evaluating(*pair, loss):
        codes = guide.head(guide.activation(guide.encoder(x)))[:, :LATENTS]
        total = float(loss.differentiable_loss(*pair, x).double()) / len(x)
    parts = codes[:5000], labels[:5000], codes[5000:], labels[5000:]
    kl = kl_per_dimension(model, guide, x)
    return {
        "knn": knn_accuracy(*parts, COUNTS, seed=seed),
        "shattering": shattering_dimensionality(*parts),
        "nelbo": paper_units(total, x.shape[1]),
        "kl": float(loss.record["kl"]),
        "active": int((kl > 0.01).sum()),
    }


def main(
    root: Path = Path("data"),
    out: Path = Path("runs/poisson_labels"),
    families: tuple[str, ...] = tuple(PUBLISHED),
    seeds: int = 5,
    steps: int = 3500,
) -> None:
    """Do the runs that are not written yet, and print the table of those that are.

    Args:
        root: The folder of torchvision's data sets.
        out: Where to write.
        families: Which of the table's; none prints the table alone.
        seeds: How many of each, of weights, order and draws.
        steps: Of training.
    """
    out.mkdir(parents=True, exist_ok=True)
    todo = [(s, f) for s in range(seeds) for f in families if not _path(out, f, s).exists()]
    split = load("mnist", root=root) if todo else None
    for seed, family in todo:
        pyro.set_rng_seed(seed)
        pair = make_pair(family, split.train.shape[1])
        seconds = train(family, pair, split.train, steps, seed)
        found = {"seed": seed, "steps": steps, "cpu_seconds": seconds, **judge(pair, split, seed)}
        print(family, found, flush=True)
        _path(out, family, seed).write_text(json.dumps(found, indent=2))
    print(table(out))


def table(out: Path) -> str:
    """Return the runs that are written, as Markdown."""
    columns = [f"{count:,} labels" for count in COUNTS]
    columns = [name for column in [*columns, "shattering"] for name in (column, "published")]
    columns = ["family", *columns, "nELBO", "KL", "active", "seeds", "CPU, each"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for family, published in PUBLISHED.items():
        paths = [path for seed in range(100) if (path := _path(out, family, seed)).exists()]
        if not paths:
            continue
        runs = [json.loads(path.read_text()) for path in paths]
        scores = [[*run["knn"].values(), run["shattering"]] for run in runs]
        means = [_with_error(values) for values in zip(*scores, strict=True)]
        cells = [c for pair in zip(means, published, strict=True) for c in (pair[0], f"{pair[1]}")]
        averages = [
            f"{sum(run[name] for run in runs) / len(runs):{form}}"
            for name, form in (("nelbo", ".2f"), ("kl", ".2f"), ("active", ".1f"))
        ]
        seconds = sum(run["cpu_seconds"] for run in runs) / len(runs)
        cells = [family, *cells, *averages, str(len(runs)), f"{seconds:.0f} s"]
        lines.append(f"| {' | '.join(cells)} |")
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, "", versions])


def _with_error(values: tuple[float, ...]) -> str:
    from scipy.stats import t

    mean, n = sum(values) / len(values), len(values)
    if n < 2:
        return f"{mean:.3f}"
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return f"{mean:.3f} +- {t.ppf(0.995, n - 1) * spread / math.sqrt(n):.3f}"


def _path(out: Path, family: str, seed: int) -> Path:
    return out / f"{family}, {seed}.json"


if __name__ == "__main__":
    tyro.cli(main)
