"""MMVM on the six views of mfeat: what each form of its KL shares, and at what price.

    python tests/benchmarks/mfeat_mmvm.py --root FOLDER --out runs/mfeat_mmvm

FOLDER holds mfeat/mfeat.npz. The recipe `mmvm` as it comes: D = 16, encoders of two hidden layers
of 128 and decoders of one, x ~ N(h, 0.5^2), Adam 1e-3 falling to 0 on a cosine, batches of 100, 60
epochs. On the 400 test rows: E ln p(x_m|z_m) summed over views; both KLs, summed over views, of
the trained posteriors, "mc" by 20 draws, at most 6 ln 6 = 10.75; coherence, what logistic
regressions of the raw views make of what is generated, from other views and from itself; and the
accuracy of logistic regressions on the means of each view. A standard error of an accuracy is at
most 0.025 for a view, and 0.005 for coherence as 30 pairs of 400 dependent rows go.

Reference values are one seed of an earlier implementation, with the same sizes.
Each run is written as it ends, so that an interrupted benchmark goes on where it was.
"""

import json
import platform
import time
from functools import partial
from pathlib import Path
from statistics import mean

import pyro
import torch
import tyro
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppvae import SVI
from ppvae.data import Split, mfeat
from ppvae.diagnostics import coherence, latent_classification, linear_classifier
from ppvae.plots.canvas import INK, new_figure
from ppvae.recipes.mmvm import mmvm
from ppvae.training import Batches
from ppvae.weights import evaluating, trace_pair

RUNS = (
    *(("pairwise", beta) for beta in (1.0, 0.25, 4.0)),
    *(("mc", beta) for beta in (1.0, 16.0)),
    ("variational", 1.0),
    ("independent", 1.0),
)
REFERENCE = {  # reconstruction, mc, pairwise, coherence off and on the diagonal
    ("pairwise", 1.0): (-579.0, 9.73, 87.5, 0.768, 0.841),
    ("pairwise", 0.25): (-511.9, 10.68, 232.8, 0.695, 0.832),
    ("pairwise", 4.0): (-680.8, 6.78, 33.4, 0.774, 0.821),
    ("mc", 1.0): (-410.2, 10.75, 3e8, 0.088, 0.835),
    ("mc", 16.0): (-566.7, 8.18, 4e7, 0.245, 0.639),
    ("variational", 1.0): (-410.3, 10.75, 4e8, 0.090, 0.838),
    ("independent", 1.0): (-473.0, 10.75, 1161.0, 0.093, 0.789),
}
BATCH, DRAWS = 100, 20


def train(split: Split, kl: str, beta: float, epochs: int, seed: int) -> tuple[SVI, float]:
    """Return a trained pair, and the seconds of processor time it took."""
    pyro.set_rng_seed(seed)
    made = mmvm(split.features, kl=kl, beta=beta, device="cpu")
    steps = epochs * len(split) // BATCH
    svi = SVI(
        *(made.model, made.guide, partial(torch.optim.Adam, lr=1e-3), made.loss),
        scheduler=partial(CosineAnnealingLR, T_max=steps),
    )
    batches, start = Batches(split.train, BATCH, seed=seed), time.process_time()
    for _ in range(epochs):
        for batch in batches:
            svi.step(batch)
            svi.scheduler.step()
    return svi, time.process_time() - start


def judge(svi: SVI, split: Split, seed: int) -> dict[str, object]:
    """Return what a pair reconstructs, shares and knows, of the test rows."""
    pyro.set_rng_seed(seed)
    model, guide, names = svi.model, svi.guide, list(split.test)
    with evaluating(model, guide):
        model_trace, guide_trace = trace_pair(model, guide, split.test, DRAWS)
        h = guide.joint(split.test)
        posteriors = [guide_trace.nodes[f"z_{name}"]["fn"] for name in names]
        draws = [guide_trace.nodes[f"z_{name}"]["value"] for name in names]
        exact = sum(
            (q.log_prob(z) - h.log_prob(z)).mean() for q, z in zip(posteriors, draws, strict=True)
        )
        pairwise = sum(torch.distributions.kl_divergence(q, h).mean() for q in posteriors)
        fit = sum(model_trace.nodes[name]["log_prob"].mean() for name in names)
    judges = {n: linear_classifier(x, split.train_labels) for n, x in split.train.items()}
    shared = coherence(model, guide, split.test, split.test_labels, judges)
    parts = split.train, split.train_labels, split.test, split.test_labels
    return {
        "reconstruction": float(fit),
        "mc": float(exact),
        "pairwise": float(pairwise),
        "coherence": shared.off_diagonal,
        "diagonal": shared.diagonal,
        "matrix": shared.matrix.tolist(),
        "accuracy": latent_classification(guide, *parts, [[name] for name in names]),
    }


def main(
    root: Path = Path("data"),
    out: Path = Path("runs/mfeat_mmvm"),
    epochs: int = 60,
    seeds: int = 1,
) -> None:
    """Do the runs that are not written yet, and print the table of those that are.

    Args:
        root: The folder of the data sets.
        out: Where to write.
        epochs: Of training.
        seeds: How many of each, of weights, order and draws.
    """
    out.mkdir(parents=True, exist_ok=True)
    split = mfeat(root)
    for seed in range(seeds):
        for kl, beta in RUNS:
            path = _path(out, kl, beta, seed)
            if path.exists():
                continue
            svi, seconds = train(split, kl, beta, epochs, seed)
            found = {"epochs": epochs, "seconds": seconds, **judge(svi, split, seed)}
            print(kl, beta, found, flush=True)
            path.write_text(json.dumps(found, indent=2))
    text = table(out, list(split.test))
    (out / "table.md").write_text(text)
    print(text)
    matrices(out, list(split.test)).savefig(out / "mfeat.png", dpi=150)


def table(out: Path, names: list[str]) -> str:
    """Return the runs that are written, means over seeds, as Markdown."""
    columns = ["kl", "beta", "reconstruction", "mc", "pairwise", "coherence", "diagonal"]
    columns += [*names, "reference: rec., mc, pairwise, coherence, diagonal", "seeds", "CPU s"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for kl, beta in RUNS:
        runs = _runs(out, kl, beta)
        if not runs:
            continue
        averages = [
            f"{mean(run[name] for run in runs):{form}}"
            for name, form in (
                *(("reconstruction", ".1f"), ("mc", ".2f"), ("pairwise", ".4g")),
                *(("coherence", ".3f"), ("diagonal", ".3f")),
            )
        ]
        accuracy = [f"{mean(run['accuracy'][name] for run in runs):.3f}" for name in names]
        reference = ", ".join(f"{value:g}" for value in REFERENCE[kl, beta])
        seconds = f"{mean(run['seconds'] for run in runs):.0f}"
        cells = [kl, f"{beta:g}", *averages, *accuracy, reference, str(len(runs)), seconds]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"torch {torch.__version__}, pyro {pyro.__version__}, "]
    return "\n".join(lines) + platform.python_version()


def matrices(out: Path, names: list[str]) -> object:
    """Draw the coherence matrices of beta = 1: a row per given view, a column per generated."""
    kinds = [kl for kl in ("independent", "mc", "pairwise") if _runs(out, kl, 1.0)]
    figure, panels = new_figure(1, max(1, len(kinds)), width=3.4 * max(1, len(kinds)), height=3.7)
    for axes, kl in zip(panels, kinds, strict=False):
        matrix = torch.tensor(_runs(out, kl, 1.0)[0]["matrix"])
        axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set(title=kl, xlabel="generated", ylabel="given")
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                color = "white" if value > 0.6 else INK
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    return figure


def _runs(out: Path, kl: str, beta: float) -> list[dict]:
    paths = [path for seed in range(100) if (path := _path(out, kl, beta, seed)).exists()]
    return [json.loads(path.read_text()) for path in paths]


def _path(out: Path, kl: str, beta: float, seed: int) -> Path:
    return out / f"{kl}, {beta:g}, {seed}.json"


if __name__ == "__main__":
    tyro.cli(main)
