"""The Epanechnikov VAE against a VAE, and against beta-VAEs at the same rate.

    python tests/benchmarks/epanechnikov.py --root FOLDER --out runs/epanechnikov

FOLDER holds MNIST and FashionMNIST, as torchvision lays them out. First 20,000 images in [0, 1],
Bernoulli likelihood of gray pixels (binary cross-entropy, summed), MLP 784-256-256 with ReLU and
its mirror, batches of 100, Adam 1e-3, 6 epochs; hold-out: the official test part. Reconstructions
are the decoder's means at one draw of the guide, as in the paper. FID-r is the Frechet distance in
the features of a small classifier that is trained here, once per data set: it is not FID, and not
to be set beside published ones.

Rate, the same for every guide, whatever its shape, from its means m and variances v:

    R = mean_i sum_k 1/2 ln(S_k / v_ik),  S_k = Var_i(m_ik) + mean_i v_ik

the mean KL of Normals with the guide's moments to the Normal with the aggregate posterior's. It
asks how precise a code is beside the spread of all codes, not how well these fit a prior: of the
paper's guide ("paper"), whose KL to its own prior is infinite, no other is to be had. Beta-VAEs
are interpolated to its rate, seed by seed, between two values of beta.

Each run is written as it ends, so that an interrupted benchmark goes on where it was.
"""

import json
import math
import platform
import statistics
import time
from functools import partial
from itertools import product
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import tyro
from pyro import poutine
from torch import Tensor, nn

from ppvae import SVI
from ppvae.data import load
from ppvae.diagnostics import Classifier, frechet_distance, sharpness, train_classifier
from ppvae.guides import Epanechnikov, Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import BetaELBO, PenalizedELBO, RadiusPenalty
from ppvae.training import Batches
from ppvae.weights import evaluating

WIDTH, SCALE, MINIBATCH = 0.1, 100 ** (-2 / 9), 100  # B, b and M of the paper
BETAS = (0.1, 0.03, 0.01, 0.003, 0.001)  # and 1, the VAE
KINDS = ("vae", "normal", "paper", *(f"beta {beta:g}" for beta in BETAS))
METRICS = ("fid_r", "sharpness", "reconstruction", "rate", "sample_fid_r")


def gray(h: Tensor) -> dist.Bernoulli:
    """The Bernoulli likelihood of pixels between 0 and 1, which is no density of them."""
    return dist.Bernoulli(logits=h, validate_args=False)


def make(kind: str, latent_dim: int) -> SVI:
    """Return a pair of one kind, with its loss."""
    encoder, decoder = MLP(784, 256, 256), MLP(latent_dim, 256, 256, 784)
    prior, guide, loss = None, Normal, BetaELBO()
    if kind == "normal":
        guide = Epanechnikov
    elif kind == "paper":
        guide = partial(Epanechnikov, variant="paper", width=WIDTH, scale=SCALE)
        half = torch.full((latent_dim,), WIDTH / 2)
        prior = dist.Uniform(-half, half, validate_args=False).to_event(1)
        penalty = RadiusPenalty(WIDTH, MINIBATCH, scale=SCALE)
        loss = PenalizedELBO(beta=0.0, radius=penalty)
    elif kind.startswith("beta"):
        loss = BetaELBO(float(kind.split()[1]))
    model = VAE(decoder, latent_dim, gray, prior)
    optim = partial(torch.optim.Adam, lr=1e-3)
    return SVI(model, guide(encoder, latent_dim=latent_dim), optim, loss)


def train(svi: SVI, images: Tensor, epochs: int, seed: int) -> float:
    """Train a pair; return the seconds it took."""
    start = time.perf_counter()
    batches = Batches(images, MINIBATCH, seed=seed)
    for _ in range(epochs):
        for batch in batches:
            svi.step(batch)
    return time.perf_counter() - start


def judge(svi: SVI, test: Tensor, classifier: nn.Module) -> dict[str, float]:
    """Return how the hold-out images are reconstructed, at what rate, and what samples are."""
    with evaluating(svi.model, svi.guide):
        site = poutine.trace(svi.guide).get_trace(test).nodes["z"]
        mean, variance = site["fn"].mean, site["fn"].variance
        spread = mean.var(0) + variance.mean(0)
        logits = svi.model.decoder(site["value"])
        nats = -gray(logits).log_prob(test).sum(-1).mean()
        samples = svi.model.decoder(svi.model.prior().sample((len(test),))).sigmoid()
    images = logits.sigmoid()
    return {
        "fid_r": frechet_distance(test, images, classifier).value,
        "sharpness": sharpness(images),
        "reconstruction": float(nats),
        "rate": float((spread / variance).log().sum(-1).mean() / 2),
        "code_scale": float(spread.mean().sqrt()),
        "noise_scale": float(variance.mean().sqrt()),
        "sample_fid_r": frechet_distance(test, samples, classifier).value,
    }


def extractor(images: Tensor, labels: Tensor, path: Path) -> Classifier:
    """Return the data set's classifier: from the file, or trained and written there."""
    classifier = Classifier((1, 28, 28), classes=10)
    if not path.exists():
        classifier = train_classifier(images, labels, seed=0)
        torch.save({"state": classifier.state_dict(), "accuracy": classifier.accuracy}, path)
    saved = torch.load(path, weights_only=True)
    classifier.load_state_dict(saved["state"])
    classifier.accuracy = saved["accuracy"]
    return classifier.eval().requires_grad_(False)


def prepared(name: str, root: Path, out: Path, scale: float) -> tuple[Tensor, Tensor, Classifier]:
    """Return images to train on and to hold out, and the classifier; write what the data say."""
    split = load(name, root=root)
    classifier = extractor(split.train, split.train_labels, out / f"{name}.classifier.pt")
    path = out / f"{name}.data.json"
    if not path.exists():
        order = torch.randperm(len(split.test), generator=torch.Generator().manual_seed(0))
        halves = split.test[order].chunk(2)
        half = frechet_distance(*halves, classifier).value
        facts = {"sharpness": sharpness(split.test), "accuracy": classifier.accuracy}
        path.write_text(json.dumps({**facts, "fid_r_of_halves": half}, indent=2))
    return split.train[: int(20_000 * scale)], split.test, classifier


def main(
    root: Path,
    out: Path = Path("runs/epanechnikov"),
    data: tuple[str, ...] = ("mnist", "fashion_mnist"),
    latent_dims: tuple[int, ...] = (8, 32, 64),
    seeds: tuple[int, ...] = (0, 1, 2),
    kinds: tuple[str, ...] = KINDS,
    epochs: int = 6,
    scale: float = 1.0,
) -> None:
    """Train and judge the runs that are not written yet, and print the table of those that are.

    Args:
        root: The folder that holds MNIST and FashionMNIST.
        out: Where to write.
        data: Which sets.
        latent_dims: Which sizes of the latent.
        seeds: Of weights, draws and order; all kinds of a seed start from the same decoder.
        kinds: Which of vae, normal, paper and "beta B".
        epochs: How many times to go through the images.
        scale: Of the number of images to train on: 0.05 tries the script out.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sets = {name: prepared(name, root, out, scale) for name in data}
    for seed in seeds:  # whole comparisons first, then more of them
        for name, latent_dim, kind in product(data, latent_dims, kinds):
            path = out / f"{name}-{latent_dim}-{seed}-{kind.replace(' ', '-')}.json"
            if path.exists():
                continue
            images, test, classifier = sets[name]
            pyro.set_rng_seed(seed)
            svi = make(kind, latent_dim)
            seconds = train(svi, images, epochs, seed)
            verdict = judge(svi, test, classifier)
            facts = {"data": name, "latent_dim": latent_dim, "seed": seed, "kind": kind}
            facts |= {"epochs": epochs, "seconds": seconds}
            path.write_text(json.dumps(facts | verdict, indent=2))
    print(table(out))


Runs = dict[str, dict[int, dict[str, float]]]  # by kind and seed


def at_rate(runs: Runs, seed: int, rate: float) -> dict[str, float]:
    """Return the metrics of a beta-VAE at a rate: linear between two runs, or the nearest run."""
    known = [runs[kind][seed] for kind in runs if kind == "vae" or kind.startswith("beta")]
    known.sort(key=lambda run: run["rate"])
    below = [run for run in known if run["rate"] <= rate] or known[:1]
    above = [run for run in known if run["rate"] > rate] or known[-1:]
    low, high = below[-1], above[0]
    share = 0.0 if low is high else (rate - low["rate"]) / (high["rate"] - low["rate"])
    share = min(max(share, 0.0), 1.0)
    return {name: (1 - share) * low[name] + share * high[name] for name in METRICS}


def _mean(values: list[float], digits: int) -> str:
    spread = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(out: Path) -> str:
    """Return the runs that are written, as Markdown: means over seeds, standard deviations."""
    found: dict[tuple[str, int], Runs] = {}
    for path in sorted(out.glob("*-*-*-*.json")):
        run = json.loads(path.read_text())
        runs = found.setdefault((run["data"], run["latent_dim"]), {})
        runs.setdefault(run["kind"], {})[run["seed"]] = run
    digits = {"fid_r": 3, "sharpness": 4, "reconstruction": 1, "rate": 1, "sample_fid_r": 1}
    heads = ["FID-r", "sharpness", "reconstruction (nats)", "rate (nats)", "FID-r of samples"]
    lines = [f"| set, d | run | seeds | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    paired = ["| set, d | paper less | seeds | FID-r | sharpness | reconstruction | rate |"]
    paired.append("|---" * 7 + "|")
    for (name, latent_dim), runs in sorted(found.items()):
        rows = {kind: runs[kind] for kind in KINDS if kind in runs}
        paper, beta = runs.get("paper", {}), {}
        if "vae" in runs:
            seeds = [s for s in paper if all(s in runs[k] for k in rows if k != "normal")]
            beta = {seed: at_rate(runs, seed, paper[seed]["rate"]) for seed in seeds}
        if beta:
            rows["beta-VAE at paper's rate"] = beta
        for kind, by_seed in rows.items():
            cells = [_mean([r[m] for r in by_seed.values()], digits[m]) for m in METRICS]
            lines.append(
                f"| {name} {latent_dim} | {kind} | {len(by_seed)} | {' | '.join(cells)} |"
            )
        for other in ("vae", "beta-VAE at paper's rate"):
            seeds = [seed for seed in paper if seed in rows.get(other, {})]
            if not seeds:
                continue
            cells = []
            for metric in METRICS[:4]:
                gaps = [paper[seed][metric] - rows[other][seed][metric] for seed in seeds]
                error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
                mean = statistics.mean(gaps)
                cells.append(f"{mean:+.{digits[metric]}f} +- {error:.{digits[metric]}f}")
            lines_of = f"| {name} {latent_dim} | {other} | {len(seeds)} | {' | '.join(cells)} |"
            paired.append(lines_of)
    sets = [f"{p.stem.split('.')[0]}: {p.read_text()}" for p in sorted(out.glob("*.data.json"))]
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, "", *paired, "", *(" ".join(s.split()) for s in sets), versions])


if __name__ == "__main__":
    tyro.cli(main)
