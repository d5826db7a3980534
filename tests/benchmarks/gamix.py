"""GAMIX against VAE: what the mixture objective changes, on clothes, faces and digits.

    python tests/benchmarks/gamix.py --data FOLDER --out runs/gamix

FOLDER holds MNIST/ and FashionMNIST/ in torchvision's layout, and frey/. One pair of MLPs,
784-256-256 with ReLU and 32 latents, batches of 100, Adam 1e-3: the first 20,000 images and 6
epochs, or about as many steps on the 1,765 faces. Binary images are drawn anew for every batch
under a Bernoulli likelihood; gray ones have a Laplace likelihood that learns its scale, and only
with them is there a critic, since it would tell gray means from binary data. A step with it costs
18 times as much, so that those runs have one seed. V_k and S_k, the variances of the posterior
means and of the aggregate posterior, are over training images: a variance of test faces is that of
one stretch of the film. L_100 is the importance-weighted bound of 100 draws, on 500 images. FID-r
is the Frechet distance in the features of a classifier of gray images trained here; the faces have
no labels to train one on, and what tells clothes apart says little of faces. Each run is written
as it ends, so that an interrupted benchmark goes on where it was.
"""

import json
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import pyro
import torch
import tyro
from torch import Tensor, nn

from ppvae import SVI, fit, log_weights
from ppvae.data import Split, load
from ppvae.diagnostics import (
    Classifier,
    anomaly_auroc,
    evidence,
    frechet_distance,
    population_moments,
    sharpness,
    train_classifier,
)
from ppvae.guides import GaussianMixture, Normal
from ppvae.likelihoods import Laplace
from ppvae.models import VAE
from ppvae.networks import MLP, PatchCritic
from ppvae.objectives import BetaELBO, MixtureELBO, Objective, ReconstructionCritic
from ppvae.plots.canvas import COLORS, INK, MUTED, image_rows, new_figure
from ppvae.training import Batches

LATENTS, BATCH, IMAGES, TEST, HELD_OUT = 32, 100, 20_000, 5_000, 9
Adam = partial(torch.optim.Adam, lr=1e-3)
CriticAdam = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999))  # beta1 as in the paper


COLUMNS = (
    *("objective", "reconstruction", "avgKL", "-ELBO", "-L_100", "V_k < 0.01", "mean v"),
    *("mean S", "FID-r N(0, I)", "FID-r N(m, S)", "FID-r rec.", "sharpness rec. (data)"),
    *("mean abs. error", "seeds", "CPU s"),
)


class Setting(NamedTuple):
    """A data set, how its pixels are taken, and how long to train."""

    data: str
    binarize: str
    epochs: int = 6
    labels: bool = True  # a classifier can be trained, and a class held out
    critic: bool = False
    curve: bool = True  # beta-VAEs of other rates
    anomalies: str = ""  # the setting whose images are the anomalous ones


SETTINGS = {
    "fashion, binary": Setting("fashion_mnist", "dynamic", anomalies="digits, binary"),
    "fashion, gray": Setting("fashion_mnist", "none", critic=True),
    "frey, gray": Setting("frey", "none", epochs=70, labels=False, critic=True),
    "digits, binary": Setting("mnist", "dynamic", curve=False, anomalies="fashion, binary"),
}


def critic(image: tuple[int, int, int]) -> ReconstructionCritic:
    """Return the critic for small images, a logit for each patch 15 pixels wide."""
    return ReconstructionCritic(PatchCritic(image, filters=(64, 64, 1), strides=(2, 2, 1)))


OBJECTIVES: dict[str, Callable[[tuple[int, int, int]], Objective]] = {
    "VAE": lambda image: BetaELBO(1.0),
    "beta-VAE 0.2": lambda image: BetaELBO(0.2),
    "total 0.2": lambda image: MixtureELBO(0.2),
    "means 0.2": lambda image: MixtureELBO(0.2, moments="means"),
    "total 0": lambda image: MixtureELBO(0.0),
    "total 0.2, critic": lambda image: MixtureELBO(0.2, critic=critic(image)),
    "means 0.2, critic": lambda image: MixtureELBO(0.2, moments="means", critic=critic(image)),
    **{f"beta-VAE {b}": lambda image, b=b: BetaELBO(b) for b in (0.05, 0.1, 0.5, 2.0)},
}
CURVE = ("beta-VAE 0.05", "beta-VAE 0.1", "beta-VAE 0.5", "beta-VAE 2.0")  # one seed each
DETECTORS: dict[str, tuple[Callable[..., nn.Module], Callable[[], Objective]]] = {
    "VAE": (Normal, BetaELBO),
    "MixtureELBO": (Normal, MixtureELBO),
    "GaussianMixture": (partial(GaussianMixture, components=4), BetaELBO),
}


def train(
    setting: Setting,
    split: Split,
    images: Tensor,
    guide: Callable[..., nn.Module],
    loss: Objective,
    seed: int,
) -> SVI:
    """Train one pair."""
    pyro.set_rng_seed(seed)
    size = split.train.shape[1]
    likelihood = "bernoulli" if setting.binarize == "dynamic" else Laplace(0.1, learned=True)
    model = VAE(MLP(LATENTS, 256, 256, size), LATENTS, likelihood)
    svi = SVI(model, guide(MLP(size, 256, 256), LATENTS), Adam, loss, critic_optim=CriticAdam)
    batches = Batches(images, BATCH, seed=seed, transform=split.transform, drop_last=True)
    fit(svi, batches, epochs=setting.epochs, progress=False)
    return svi


@cache
def split_of(setting: Setting, root: Path) -> Split:
    """Return the data of a setting, in the order their authors gave them."""
    return load(setting.data, root=root, binarize=setting.binarize)


@cache
def gray_of(data: str, root: Path) -> Tensor:
    """Return the test images that samples are compared with."""
    return load(data, root=root).test[:TEST].clone()


@cache
def classifier_of(data: str, root: Path) -> tuple[Classifier, Tensor]:
    """Return a classifier of gray images, and its features of the test images, for FID-r."""
    split = load(data, root=root)
    classifier = train_classifier(split.train, split.train_labels, steps=1500)
    return classifier, classifier(gray_of(data, root))


def judge(svi: SVI, setting: Setting, root: Path, seed: int) -> dict[str, object]:
    """Return what the tables and figures show of one run, in nats per datum."""
    split, gray = split_of(setting, root), gray_of(setting.data, root)
    test, model, guide = split.test[:TEST], svi.model, svi.guide
    pyro.set_rng_seed(seed)
    elbo = BetaELBO(num_particles=2)
    bound = -elbo.loss(model, guide, test) / len(test)
    log_p = evidence(log_weights(model, guide, test[:500], 100))
    train_images = split.train[:TEST]  # the aggregate posterior that training shaped
    if split.transform is not None:
        train_images = split.transform(train_images, torch.Generator().manual_seed(seed))
    moments = population_moments(guide, train_images)
    with torch.no_grad():
        noise = torch.randn(len(test), LATENTS)
        matched = moments.mean + moments.total_variance.sqrt() * noise
        samples = {name: decode(model, z) for name, z in (("N(0, I)", noise), ("q", matched))}
        samples["reconstruction"] = decode(model, guide_means(guide, test))
    facts = {
        "reconstruction": -float(elbo.record["log_likelihood"]),
        "rate": float(elbo.record["kl"]),
        "minus_elbo": -bound,
        "minus_evidence": -log_p.mean,
        "absolute_error": float((samples["reconstruction"] - gray).abs().mean()),
        "spread_of_means": moments.variance_of_means.tolist(),
        "total_variance": moments.total_variance.tolist(),
        "variance": moments.mean_variance.tolist(),
        "sharpness": {
            name: sharpness(x.clamp(0, 1), image=split.image)
            for name, x in {"data": gray, **samples}.items()
        },
        "critic": {
            name: float(svi.loss.record[name])
            for name in ("critic", "generator")
            if "generator" in svi.loss.record
        },
    }
    if setting.labels:
        network, real = classifier_of(setting.data, root)
        facts["accuracy"] = network.accuracy
        facts["fid_r"] = {
            name: frechet_distance(real, network(x.clamp(0, 1))).value
            for name, x in samples.items()
        }
    shown = {"data": gray, **samples} if seed == 0 else {}
    bytes_ = {name: (255 * x[:16].clamp(0, 1)).round().int() for name, x in shown.items()}
    return facts | {
        "image": split.image,
        "pictures": {name: x.tolist() for name, x in bytes_.items()},
    }


def decode(model: VAE, z: Tensor) -> Tensor:
    """Return the likelihood's means."""
    return model.likelihood(model.decoder(z)).mean


def guide_means(guide: Normal, batch: Tensor) -> Tensor:
    """Return the posterior means (N, D)."""
    loc, _ = guide.head(guide.activation(guide.encoder(batch))).chunk(2, dim=-1)
    return loc


def detect(
    setting: Setting, other: Setting, name: str, root: Path, seed: int
) -> dict[str, dict[str, float]]:
    """Train without one class; return how well evidence tells it, and another set, from the rest.

    All images are binary draws, so that evidence is that of discrete data.
    """
    split = split_of(setting, root)
    guide, objective = DETECTORS[name]
    kept = split.train_labels[:IMAGES] != HELD_OUT
    svi = train(setting, split, split.train[:IMAGES][kept], guide, objective(), seed)
    known = split.test_labels != HELD_OUT
    sets = {
        "normal": split.test[known][:1000],
        f"class {HELD_OUT}": split.test[~known][:1000],
        other.data: split_of(other, root).test[:1000],
    }
    pyro.set_rng_seed(seed)
    scores = {
        part: evidence(log_weights(svi.model, svi.guide, x, 50)).log_evidence
        for part, x in sets.items()
    }
    normal = scores.pop("normal")
    facts = {"log_evidence": {"normal": float(normal.mean())}}
    for part, score in scores.items():
        auroc = anomaly_auroc(normal, score)
        facts[part] = {"auroc": auroc.value, "standard_error": auroc.standard_error}
        facts["log_evidence"][part] = float(score.mean())
    return facts


def main(
    data: Path,
    out: Path = Path("runs/gamix"),
    settings: tuple[str, ...] = tuple(SETTINGS),
    seeds: int = 3,
    critic_seeds: int = 1,
    scale: float = 1.0,
) -> None:
    """Train and judge the runs that are not written yet, print the tables, draw the figures.

    Args:
        data: The folder that holds MNIST/, FashionMNIST/ and frey/.
        out: Where to write.
        settings: Which of "fashion, binary", "fashion, gray", "frey, gray", "digits, binary".
        seeds: Of weights, draws and order: 0, 1, ...
        critic_seeds: The same for runs with a critic.
        scale: Of the number of epochs: 0.2 tries the script out.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for seed in range(max(seeds, critic_seeds)):  # one of all first, the dear ones last
        for with_critic in (False, True):
            limit = critic_seeds if with_critic else seeds
            for name in settings if seed < limit else ():
                setting = SETTINGS[name]
                setting = setting._replace(epochs=max(1, int(setting.epochs * scale)))
                for title, work in jobs(setting, with_critic, data, seed).items():
                    run(out / f"{name} - {title} - {seed}.json", work)
    report(out)


def jobs(setting: Setting, with_critic: bool, root: Path, seed: int) -> dict[str, Callable]:
    """Return what is to be done for one setting and seed, by name."""
    if with_critic and not setting.critic:
        return {}
    curve = CURVE if setting.curve and seed == 0 else ()
    titles = [
        title
        for title in OBJECTIVES
        if ("critic" in title) is with_critic and (title in curve or title not in CURVE)
    ]
    work = {title: partial(one, setting, OBJECTIVES[title], root, seed) for title in titles}
    if setting.anomalies and not with_critic:
        other = SETTINGS[setting.anomalies]
        for title in DETECTORS:
            work[f"anomalies, {title}"] = partial(detect, setting, other, title, root, seed)
    return work


def one(setting: Setting, make: Callable, root: Path, seed: int) -> dict[str, object]:
    """Train and judge one objective."""
    split = split_of(setting, root)
    svi = train(setting, split, split.train[:IMAGES], Normal, make(split.image), seed)
    return judge(svi, setting, root, seed)


def run(path: Path, work: Callable[[], Mapping[str, object]]) -> None:
    """Do a piece of work that is not written yet, and write it with the CPU seconds it took."""
    if not path.exists():
        start = time.process_time()
        facts = work()
        seconds = time.process_time() - start
        path.write_text(json.dumps({"seconds": seconds, **facts}))
        print(f"{path.stem}: {seconds:.0f} s", flush=True)


def read(out: Path, name: str) -> dict[str, list[dict]]:
    """Return the runs of a setting that are written, by name, in order of the seeds."""
    found = {}
    for path in sorted(out.glob(f"{name} - *.json")):
        _, title, _ = path.stem.split(" - ")
        found.setdefault(title, []).append(json.loads(path.read_text()))
    order = [*OBJECTIVES, *(f"anomalies, {title}" for title in DETECTORS)]
    return {title: found[title] for title in sorted(found, key=order.index)}


def over_seeds(values: list[float], digits: int = 1) -> str:
    """Return mean and standard deviation over seeds."""
    spread = f" +- {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def report(out: Path) -> None:
    """Print the tables and draw the figures of what is written."""
    for name in SETTINGS:
        written = read(out, name)
        anomalies = {title: r for title, r in written.items() if title.startswith("anomalies")}
        if runs := {title: r for title, r in written.items() if title not in anomalies}:
            print(f"\n{name}\n\n{table(runs)}")
            stem = name.replace(", ", "_")
            pictures(runs).savefig(out / f"{stem}_pictures.png", dpi=110)
            variances(runs).savefig(out / f"{stem}_variances.png", dpi=110)
            rates(runs, name).savefig(out / f"{stem}_rates.png", dpi=110)
        if anomalies:
            print(f"\nanomalies, {name}\n\n{anomaly_table(anomalies)}")
    print(f"\ntorch {torch.__version__}, pyro {pyro.__version__}, {platform.python_version()}")


def table(runs: Mapping[str, list[dict]]) -> str:
    """Return the runs of one setting, as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for title, several in runs.items():
        column = [
            over_seeds([r[key] for r in several])
            for key in ("reconstruction", "rate", "minus_elbo", "minus_evidence")
        ]
        column.append(over_seeds([sum(v < 0.01 for v in r["spread_of_means"]) for r in several]))
        for key in ("variance", "total_variance"):
            column.append(over_seeds([mean(r[key]) for r in several], 3))
        for key in ("N(0, I)", "q", "reconstruction"):
            values = [r["fid_r"][key] for r in several if "fid_r" in r]
            column.append(over_seeds(values) if values else "")
        sharp = over_seeds([r["sharpness"]["reconstruction"] for r in several], 4)
        column.append(f"{sharp} ({several[0]['sharpness']['data']:.4f})")
        column.append(over_seeds([r["absolute_error"] for r in several], 4))
        column += [str(len(several)), over_seeds([r["seconds"] for r in several], 0)]
        lines.append(f"| {title} | {' | '.join(column)} |")
    return "\n".join(lines)


def anomaly_table(runs: Mapping[str, list[dict]]) -> str:
    """Return the AUROC of each detector, as Markdown."""
    first = next(iter(runs.values()))[0]
    parts = [part for part in first if isinstance(first[part], dict) and "auroc" in first[part]]
    lines = [
        f"| trained by | ln p(x) of the rest | {' | '.join(f'AUROC, {p}' for p in parts)} |",
        "|" + "---|" * (2 + len(parts)),
    ]
    for title, several in runs.items():
        column = [over_seeds([r["log_evidence"]["normal"] for r in several])]
        column += [over_seeds([r[part]["auroc"] for r in several], 3) for part in parts]
        lines.append(f"| {title.removeprefix('anomalies, ')} | {' | '.join(column)} |")
    return "\n".join(lines)


def shown(runs: Mapping[str, list[dict]]) -> dict[str, dict]:
    """Return a run that has pictures of each objective that figures compare."""
    with_pictures = {
        title: [r for r in several if r["pictures"]] for title, several in runs.items()
    }
    return {t: some[0] for t, some in with_pictures.items() if some and t not in CURVE}


def pictures(runs: Mapping[str, list[dict]]) -> object:
    """Draw reconstructions, and samples from both priors, by objective."""
    some = shown(runs)
    first = next(iter(some.values()))
    rows = {"data": torch.tensor(first["pictures"]["data"]) / 255}
    for kind, words in (
        ("reconstruction", "reconstruction"),
        ("N(0, I)", "z ~ N(0, I)"),
        ("q", "z ~ N(m, diag S)"),
    ):
        for title, facts in some.items():
            rows[f"{title}: {words}"] = torch.tensor(facts["pictures"][kind]) / 255
    return image_rows(rows, tuple(first["image"]))


def variances(runs: Mapping[str, list[dict]]) -> object:
    """Draw the histograms of V_k and S_k, a panel per objective, over all seeds."""
    some = shown(runs)
    figure, panels = new_figure(len(some), 1, width=6, height=1.25 * len(some) + 0.4)
    edges = torch.linspace(0, 2, 61).tolist()
    for axes, title in zip(panels, some, strict=True):
        for key, color, label in (
            ("spread_of_means", COLORS[0], "V, of the means"),
            ("total_variance", COLORS[1], "S, of the aggregate posterior"),
        ):
            values = [min(v, 2.0) for r in runs[title] for v in r[key]]
            axes.hist(values, bins=edges, color=color, alpha=0.6, label=label)
        axes.axvline(1.0, color=INK, linewidth=0.8, label="the prior's")
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlim(0, 2)
    panels[0].legend(frameon=False, fontsize=7)
    panels[-1].set_xlabel("variance of a coordinate")
    return figure


def rates(runs: Mapping[str, list[dict]], name: str) -> object:
    """Draw reconstruction against rate, the beta-VAEs as a curve, the others beside it."""
    figure, (axes,) = new_figure(1, 1, width=6, height=4)
    points = {
        title: (mean(r["rate"] for r in several), mean(r["reconstruction"] for r in several))
        for title, several in runs.items()
    }
    curve = sorted(point for title, point in points.items() if "VAE" in title)
    axes.plot(*zip(*curve, strict=True), color=MUTED, marker="o", markersize=4, label="beta-VAE")
    betas = {
        title: 1.0 if title == "VAE" else float(title[9:]) for title in points if "VAE" in title
    }
    for title, beta in betas.items():
        axes.annotate(
            f"{beta:g}",
            points[title],
            fontsize=7,
            color=MUTED,
            xytext=(4, 4),
            textcoords="offset points",
        )
    others = [title for title in points if title not in betas]
    for color, title in zip(COLORS, others, strict=False):
        axes.scatter(*points[title], color=color, s=30, label=title, zorder=3)
    axes.set(title=name, xlabel="avgKL (nats)", ylabel="reconstruction (nats)")
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    tyro.cli(main)
