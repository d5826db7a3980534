"""PolyMNIST: what MMVM, MoPoE, MVAE and masked SumPooling reconstruct, know and share.

    python tests/benchmarks/polymnist.py --root FOLDER --photographs ARCHIVE --out runs/polymnist

FOLDER holds MNIST, as torchvision lays it out; ARCHIVE is BSDS500's validation part, a folder or a
zip. Three views of 10,000 digits over narrow crops of three photographs, which small networks
learn in minutes; the published data have crops from anywhere and take hundreds of epochs. The
networks are the small convolutional pair of the official code with 128 features, D = 64, Laplace
likelihoods of scale 0.1, Adam 2e-3, batches of 64, 10 epochs, one seed: compare rows, not levels.

Rows named multivae are of that package, version 1.0.3, if it is installed: its own models and
losses around the same networks, data, order and optimizer, with its defaults but for a warm-up of
none. Both MVAEs sum the bounds of all views and of each alone. Its MoPoE multiplies the prior into
the product of all views only, draws its components by the place in the batch, and takes the mean
of the components' KLs; ours takes the prior into each product, and the KL of the mixture by draws.
"MoPoE, by subsets" is that looser bound with ours: the ELBO of the product of one random subset.

On 5,000 test data: -ln p(x_m|z) at z ~ q(z|x_m), of each view from itself, summed over views, and
at z ~ q(z|x) of all three, for which MMVM, without a joint posterior, has the mixture, two draws
in three from another view; the accuracy of a logistic regression on the means of q(z|x_m), fitted
to 5,000 train data; and of a classifier, trained here, of what is generated from another view
(coherence) and from itself. Standard errors of accuracies are at most 0.007.

Each run is written as it ends, so that an interrupted benchmark goes on where it was.
"""

import json
import platform
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
import tyro
from torch import Tensor, nn

from ppvae import SVI
from ppvae.aggregation import MoPoE, PoE, SumPooling
from ppvae.data import Split, polymnist, read_photographs
from ppvae.diagnostics import (
    Classifier,
    Coherence,
    coherence,
    latent_classification,
    train_classifier,
)
from ppvae.diagnostics.uses.coherence import given_only
from ppvae.guides import ModalLatents as ModalGuide
from ppvae.guides import Multimodal as JointGuide
from ppvae.likelihoods import Laplace
from ppvae.models import ModalLatents, Multimodal
from ppvae.networks import ConvDecoder, ConvEncoder
from ppvae.objectives import BetaELBO, MaskedELBO, mvae_subsets, nonempty_subsets
from ppvae.plots import cross_generation
from ppvae.plots.canvas import COLORS, new_figure
from ppvae.protocols import rows_of
from ppvae.training import Batches
from ppvae.weights import evaluating

PHOTOGRAPHS = ("101085", "148026", "45096")  # far from mid-gray, so that inverted digits show
VIEWS, IMAGE, LATENTS, FEATURES, SCALE = ("m0", "m1", "m2"), (3, 28, 28), 64, 128, 0.1
CHANNELS, BATCH, COUNT, TEST, RATE = (32, 64, 128), 64, 10_000, 5_000, 2e-3
Pair = tuple[nn.Module, nn.Module]


class Run(NamedTuple):
    """A method and its beta."""

    method: str
    beta: float

    @property
    def name(self) -> str:
        """Of its files, and of its row."""
        return f"{self.method}, {self.beta:g}"


JOINT = (
    *("SumPooling, masked", "MVAE", "multivae MVAE"),
    *("MoPoE, by subsets", "MoPoE", "multivae MoPoE"),
)
RUNS = (
    *(Run("MMVM", beta) for beta in (1.0, 0.25, 4.0)),
    *(Run(method, beta) for beta in (1.0, 0.25) for method in JOINT),
    Run("MMVM, KL by draws", 1.0),
)


def encoders() -> dict[str, nn.Module]:
    """Return the encoders of the views."""
    return {v: ConvEncoder(IMAGE, FEATURES, channels=CHANNELS, kernel=3) for v in VIEWS}


def decoders() -> dict[str, nn.Module]:
    """Return the decoders of the views."""
    return {v: ConvDecoder(LATENTS, IMAGE, channels=CHANNELS[::-1], kernel=3) for v in VIEWS}


def make(run: Run) -> tuple[Pair, BetaELBO]:
    """Return the pair and the objective of one of our methods."""
    likelihood = Laplace(SCALE)
    if run.method.startswith("MMVM"):
        guide = ModalGuide(encoders(), LATENTS)
        model = ModalLatents(decoders(), LATENTS, likelihood, guide)
        return (model, guide), BetaELBO(run.beta, analytic=run.method == "MMVM")
    aggregation, loss = {
        "SumPooling, masked": (
            lambda: SumPooling(LATENTS, in_features=FEATURES),
            lambda: MaskedELBO(beta=run.beta),
        ),
        "MoPoE": (lambda: MoPoE(LATENTS), lambda: BetaELBO(run.beta)),
        "MoPoE, by subsets": (
            lambda: PoE(LATENTS),
            lambda: MaskedELBO(nonempty_subsets, "mixture", run.beta),
        ),
        "MVAE": (
            lambda: PoE(LATENTS),
            lambda: MaskedELBO(mvae_subsets(0), "marginal", run.beta),
        ),
    }[run.method]
    guide = JointGuide(encoders(), aggregation(), LATENTS)
    return (Multimodal(decoders(), LATENTS, likelihood), guide), loss()


def train(run: Run, split: Split, epochs: int, seed: int) -> tuple[Pair, float]:
    """Return a trained pair, and the seconds of processor time it took."""
    pyro.set_rng_seed(seed)
    batches = Batches(split.train, BATCH, seed=seed)
    if run.method.startswith("multivae"):
        pair, step = theirs(run)
    else:
        pair, loss = make(run)
        step = SVI(*pair, partial(torch.optim.Adam, lr=RATE), loss).step
    start = time.process_time()
    for epoch in range(epochs):
        losses = [float(step(batch)) for batch in batches]
        print(run.name, epoch + 1, f"{sum(losses) / len(losses):.1f}", flush=True)
    return pair, time.process_time() - start


# multivae


class Theirs(nn.Module):
    """A model of multivae's, with the methods that our diagnostics read: both sides of a pair."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def joint(self, batch: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Return q(z|x_S), as `encode` draws it, for the views that any row has."""
        given = [name for name, x in batch.items() if not bool(x.isnan().any())]
        known = {name: torch.nan_to_num(x) for name, x in batch.items()}
        data = _dataset(known)
        if type(self.model).__name__ == "MVAE":
            moments = self.model.compute_mu_log_var_subset(data, given)
        else:
            moments = self.model.inference(data)["subsets"]["_".join(sorted(given))]
        return dist.Normal(moments[0], (moments[1] / 2).exp()).to_event(1)

    def decode(self, z: Tensor) -> dict[str, dist.TorchDistribution]:
        """Return p(x_m|z)."""
        means = {name: net(z).reconstruction for name, net in self.model.decoders.items()}
        return {name: dist.Laplace(mean, SCALE).to_event(3) for name, mean in means.items()}


def theirs(run: Run) -> tuple[Pair, Callable[[dict[str, Tensor]], Tensor]]:
    """Return one of multivae's models and its step, with the same networks and optimizer."""
    from multivae.models import MVAE, MoPoE, MoPoEConfig, MVAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.latent_dim = body, LATENTS
            self.heads = nn.ModuleList([nn.Linear(FEATURES, LATENTS) for _ in range(2)])

        def forward(self, x: Tensor) -> ModelOutput:
            h = self.body(x).relu()
            loc, log_variance = (head(h) for head in self.heads)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.latent_dim = body, LATENTS

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.body(z))

    common = {
        "n_modalities": len(VIEWS),
        "latent_dim": LATENTS,
        "input_dims": dict.fromkeys(VIEWS, IMAGE),
        "decoders_dist": dict.fromkeys(VIEWS, "laplace"),
        "decoder_dist_params": {name: {"scale": SCALE} for name in VIEWS},
        "beta": run.beta,
    }
    networks = (
        {name: Encoder(body) for name, body in encoders().items()},
        {name: Decoder(body) for name, body in decoders().items()},
    )
    if run.method == "multivae MVAE":
        model = MVAE(MVAEConfig(**common, warmup=0, k=0), *networks)
    else:
        model = MoPoE(MoPoEConfig(**common), *networks)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)

    def step(batch: dict[str, Tensor]) -> Tensor:
        optimizer.zero_grad()
        loss = model(_dataset(batch)).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    both = Theirs(model)
    return (both, both), step


def _dataset(batch: Mapping[str, Tensor]) -> object:
    from multivae.data.datasets import MultimodalBaseDataset

    return MultimodalBaseDataset(dict(batch))


# Judging


def reconstruction(
    pair: Pair, batch: Mapping[str, Tensor], given: tuple[str, ...] | None
) -> float:
    """Return -ln p(x_m|z) summed over views, at z ~ q(z|x_given), or each of itself for None."""
    model, guide = pair
    total, size = 0.0, len(batch[VIEWS[0]])
    for start in range(0, size, 500):
        some = rows_of(batch, start, 500)
        for name, x in some.items():
            q = given_only(guide, some, given or (name,))
            with evaluating(model, guide):
                total -= float(model.decode(q.sample())[name].log_prob(x).double().sum())
    return total / size


def judge(
    pair: Pair, split: Split, classifiers: Mapping[str, Classifier], seed: int
) -> tuple[dict[str, object], Coherence]:
    """Return what a pair reconstructs, knows and shares, of test data."""
    model, guide = pair
    pyro.set_rng_seed(seed)
    test, labels = rows_of(split.test, 0, TEST), split.test_labels[:TEST]
    alone = [(view,) for view in VIEWS]
    parts = split.train, split.train_labels, test, labels
    accuracy = latent_classification(guide, *parts, alone, most_data=TEST)
    shared = coherence(model, guide, test, labels, classifiers)
    found = {
        "reconstruction": reconstruction(pair, test, None),
        "reconstruction of all": reconstruction(pair, test, VIEWS),
        "accuracy": sum(accuracy.values()) / len(VIEWS),
        "accuracies": accuracy,
        "coherence": shared.off_diagonal,
        "diagonal": shared.diagonal,
        "matrix": shared.matrix.tolist(),
        "classifiers": {
            name: float((c.predict(test[name]) == labels).double().mean())
            for name, c in classifiers.items()
        },
    }
    return found, shared


def classifiers_of(split: Split, out: Path, seed: int) -> dict[str, Classifier]:
    """Return the classifiers of the views, trained once and kept."""
    path = out / f"classifiers, {seed}.pt"
    if not path.exists():
        made = {
            name: train_classifier(x, split.train_labels, steps=1000, seed=seed)
            for name, x in split.train.items()
        }
        torch.save({n: (c.state_dict(), c.accuracy) for n, c in made.items()}, path)
    found = {}
    for name, (state, accuracy) in torch.load(path).items():
        classifier = Classifier(IMAGE, 10)
        classifier.load_state_dict(state)
        classifier.accuracy = accuracy
        found[name] = classifier.eval().requires_grad_(False)
    return found


@cache
def data(root: Path, photographs: Path) -> Split:
    """Return the views."""
    return polymnist(root, read_photographs(photographs, PHOTOGRAPHS), count=COUNT)


def main(
    root: Path = Path("data"),
    photographs: Path = Path("data/bsds500_val"),
    out: Path = Path("runs/polymnist"),
    methods: tuple[str, ...] = (),
    epochs: int = 10,
    seed: int = 0,
) -> None:
    """Do the runs that are not written yet, and draw and print those that are.

    Args:
        root: The folder of torchvision's data sets.
        photographs: The folder or zip archive of photographs.
        out: Where to write.
        methods: Which to run; all by default, multivae's where it is installed.
        epochs: Of training.
        seed: Of weights, order and draws.
    """
    out.mkdir(parents=True, exist_ok=True)
    for run in RUNS:
        path = out / f"{run.name}, {seed}.json"
        if path.exists() or (methods and run.method not in methods):
            continue
        if run.method.startswith("multivae") and not _installed():
            print("multivae is not installed: its rows are left out", flush=True)
            continue
        split = data(root, photographs)
        classifiers = classifiers_of(split, out, seed)
        pair, seconds = train(run, split, epochs, seed)
        found, shared = judge(pair, split, classifiers, seed)
        found |= {"epochs": epochs, "seconds": seconds}
        print(run.name, found, flush=True)
        figure = cross_generation(*pair, split.test, count=8, coherence=shared)
        figure.savefig(out / f"{run.name}, {seed}.png", dpi=150)
        path.write_text(json.dumps(found, indent=2))
    done = {run: found for run in RUNS if (found := _read(out, run, seed)) is not None}
    if done:
        text = table(done)
        (out / "table.md").write_text(text)
        print(text)
        figure_of(done).savefig(out / "polymnist.png", dpi=150)


def table(done: Mapping[Run, dict]) -> str:
    """Return the runs as Markdown."""
    columns = (
        *("method", "beta", "-ln p(x_m), of itself", "of all views", "accuracy on means"),
        *("coherence", "diagonal", "CPU s"),
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for run, found in done.items():
        cells = [
            run.method,
            f"{run.beta:g}",
            f"{found['reconstruction']:.0f}",
            f"{found['reconstruction of all']:.0f}",
            *(f"{found[name]:.3f}" for name in ("accuracy", "coherence", "diagonal")),
            f"{found['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    ceiling = next(iter(done.values()))["classifiers"]
    lines += ["", f"classifiers: {', '.join(f'{n} {a:.3f}' for n, a in ceiling.items())}"]
    lines += [f"torch {torch.__version__}, pyro {pyro.__version__}, {platform.python_version()}"]
    return "\n".join(lines)


def figure_of(done: Mapping[Run, dict]) -> object:
    """Draw coherence and accuracy against reconstruction, a curve over beta per method."""
    figure, panels = new_figure(1, 2, width=10, height=4.5)
    ours = list(dict.fromkeys(r.method.removeprefix("multivae ") for r in done))
    for axes, key, title in zip(
        panels,
        ("coherence", "accuracy"),
        ("coherence between views", "logistic regression on means, per view"),
        strict=True,
    ):
        for method in dict.fromkeys(run.method for run in done):
            runs = sorted((run for run in done if run.method == method), key=lambda r: r.beta)
            points = [(done[run]["reconstruction"], done[run][key]) for run in runs]
            theirs = method.startswith("multivae")
            axes.plot(
                *zip(*points, strict=True),
                marker="o",
                linestyle="--" if theirs else "-",
                markerfacecolor="none" if theirs else None,
                color=COLORS[ours.index(method.removeprefix("multivae "))],
                label=method,
            )
            for run, point in zip(runs, points, strict=True):
                axes.annotate(
                    f"{run.beta:g}", point, fontsize=7, xytext=(4, 3), textcoords="offset points"
                )
        axes.set(title=title, xlabel="-ln p(x_m|z), z ~ q(z|x_m), summed over views (nats)")
    ceiling = next(iter(done.values()))["classifiers"].values()
    panels[0].axhline(sum(ceiling) / len(ceiling), color="0.6", linewidth=1, linestyle=":")
    panels[0].axhline(0.1, color="0.6", linewidth=1, linestyle=":")
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def _installed() -> bool:
    from importlib.util import find_spec

    return find_spec("multivae") is not None


def _read(out: Path, run: Run, seed: int) -> dict | None:
    path = out / f"{run.name}, {seed}.json"
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    tyro.cli(main)
