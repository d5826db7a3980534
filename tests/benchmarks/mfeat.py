"""Six views of digits, half of them missing: conditional evidence, and labels from any subset.

    python tests/benchmarks/mfeat.py --root FOLDER --out runs/mfeat

FOLDER holds mfeat/mfeat.npz, six views of 2,000 digits (UCI, CC BY 4.0); 1,600 rows to train on,
in which every view is hidden with probability 1/2, but for one that each row keeps; 400 rows to
test on. 16 latents, Normal likelihoods of sd .5, decoders of one hidden layer of 128, encoders of
two, pooling of width 128; 60 epochs of Adam on batches of 100, 1e-3 to 0 on a cosine. "masked" and
"mixture" are bounds of `MaskedELBO`, subsets of a uniform size, sticking the landing; "ELBO" is
the ordinary one on what is seen, which no guide of unseen subsets is trained by: with PoE it is
the baseline.

Nats per test row, by importance sampling with 200 draws: of all views; of the hidden half given
the other, ln p(x_C|x_S), where S is one draw of the train rows' law, the same for all. Standard
errors are of the mean over rows, which outweighs that of the draws. Accuracy is of one logistic
regression, fitted to the means of q(z|x) of the train rows as they are, applied to the means of
q(z|x_S) of the test rows for all 63 subsets S, averaged by their size. k > .7 is the share of test
rows, all views seen, whose weights have no reliable tail: there the evidence is too low.

Each run is written as it ends, so that an interrupted benchmark goes on where it was.
"""

import json
import math
import platform
import time
from functools import partial
from itertools import combinations
from pathlib import Path

import pyro
import torch
import tyro
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ppvae import SVI, Batches, guides, log_weights
from ppvae.aggregation import MoE, MoPoE, PoE, SelfAttention, SumPooling
from ppvae.data import mfeat, missing_at_random
from ppvae.data.split import Split
from ppvae.diagnostics import conditional_evidence, evidence, linear_classifier, pareto_k
from ppvae.likelihoods import Normal
from ppvae.models import Multimodal
from ppvae.networks import MLP
from ppvae.objectives import MaskedELBO
from ppvae.protocols import hide, seen
from ppvae.weights import evaluating

LATENTS, WIDTH, BATCH, RATE, DRAWS = 16, 128, 100, 1e-3, 200
AGGREGATIONS = {
    "PoE": PoE,
    "MoE": MoE,
    "MoPoE": MoPoE,
    "SumPooling": partial(SumPooling, width=WIDTH),
    "SelfAttention": partial(SelfAttention, width=WIDTH),
}
RUNS = [("PoE", "ELBO"), *((a, b) for a in AGGREGATIONS for b in ("masked", "mixture"))]


def make_loss(bound: str) -> ELBO:
    """Return an objective by its name in the table."""
    return Trace_ELBO() if bound == "ELBO" else MaskedELBO(bound=bound, stl=True)


def make_pair(aggregation: str, batch: dict[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    """Return a model and a guide for the views of a batch."""
    sizes = {name: x.shape[1] for name, x in batch.items()}
    decoders = {name: MLP(LATENTS, WIDTH, size) for name, size in sizes.items()}
    encoders = {name: MLP(size, WIDTH, WIDTH) for name, size in sizes.items()}
    model = Multimodal(decoders, LATENTS, Normal(0.5))
    return model, guides.Multimodal(encoders, AGGREGATIONS[aggregation](LATENTS), LATENTS)


def train(pair: tuple, bound: str, data: dict[str, Tensor], epochs: int, seed: int) -> float:
    """Train a pair; return the seconds of processor time it took."""
    batches = Batches(data, BATCH, seed=seed)
    steps = epochs * len(batches)

    def cosine(step: int) -> float:
        return (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2

    optim, scheduler = partial(torch.optim.Adam, lr=RATE), partial(LambdaLR, lr_lambda=cosine)
    svi = SVI(*pair, optim, make_loss(bound), scheduler=scheduler)
    start = time.process_time()
    for _ in range(epochs):
        for batch in batches:
            svi.step(batch)
            svi.scheduler.step()
    return time.process_time() - start


def judge(pair: tuple, split: Split, train: dict[str, Tensor], seed: int) -> dict[str, object]:
    """Return what is known of held-out rows."""
    model, guide = pair
    test = split.test
    keep = seen(missing_at_random(test, 0.5, seed=1000 + seed))
    log_w = log_weights(model, guide, test, DRAWS)
    joint = evidence(log_w).log_evidence
    hidden = conditional_evidence(model, guide, test, ~keep, keep, num_particles=DRAWS)
    some = (~keep).any(1)
    with evaluating(guide):
        classify = linear_classifier(guide.joint(train).mean, split.train_labels)
        accuracy = {
            "+".join(names): float(
                (classify(_codes(guide, test, names)) == split.test_labels).float().mean()
            )
            for count in range(1, len(test) + 1)
            for names in combinations(test, count)
        }
    return {
        "joint": _mean(joint),
        "conditional": _mean(hidden.log_evidence[some]),
        "conditional_mc_error": float(
            hidden.standard_error[some].square().sum().sqrt() / int(some.sum())
        ),
        "k_bad": pareto_k(log_w).share_bad,
        "accuracy": accuracy,
    }


def _codes(guide: nn.Module, batch: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    return guide.joint(hide(batch, torch.tensor([name in names for name in batch]))).mean


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def main(
    root: Path = Path("data"),
    out: Path = Path("runs/mfeat"),
    seeds: int = 3,
    epochs: int = 60,
) -> None:
    """Do the runs that are not written yet, and print the table of those that are.

    Args:
        root: The folder of the data sets.
        out: Where to write.
        seeds: How many of each, of weights, order, draws and what is hidden; 0 prints the table.
        epochs: Of training.
    """
    out.mkdir(parents=True, exist_ok=True)
    split = mfeat(root) if seeds else None
    for seed in range(seeds):
        data = missing_at_random(split.train, 0.5, seed=seed)
        for aggregation, bound in RUNS:
            path = _path(out, aggregation, bound, seed)
            if path.exists():
                continue
            pyro.set_rng_seed(seed)
            pair = make_pair(aggregation, data)
            seconds = train(pair, bound, data, epochs, seed)
            found = {"cpu_seconds": seconds, "epochs": epochs, **judge(pair, split, data, seed)}
            path.write_text(json.dumps(found, indent=2))
            print(aggregation, bound, seed, found["joint"], found["conditional"], flush=True)
    text = table(out)
    (out / "table.md").write_text(text)
    print(text)


def table(out: Path) -> str:
    """Return the runs that are written, as Markdown."""
    columns = ["aggregation", "bound", "ln p(x)", "ln p(x_C given x_S)", "k > .7"]
    columns += [f"accuracy, {count} seen" for count in range(1, 7)] + ["seeds", "CPU, each"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for aggregation, bound in RUNS:
        paths = [p for s in range(100) if (p := _path(out, aggregation, bound, s)).exists()]
        if not paths:
            continue
        runs = [json.loads(path.read_text()) for path in paths]
        cells = [aggregation, bound]
        for name in ("joint", "conditional"):
            values, errors = zip(*(run[name] for run in runs), strict=True)
            error = max(errors) if len(runs) == 1 else _spread(values)
            cells.append(f"{sum(values) / len(values):.1f} +- {error:.1f}")
        cells.append(f"{sum(run['k_bad'] for run in runs) / len(runs):.2f}")
        for count in range(1, 7):
            found = [
                value
                for run in runs
                for names, value in run["accuracy"].items()
                if len(names.split("+")) == count
            ]
            cells.append(f"{sum(found) / len(found):.3f}")
        seconds = sum(run["cpu_seconds"] for run in runs) / len(runs)
        lines.append(f"| {' | '.join([*cells, str(len(runs)), f'{seconds:.0f} s'])} |")
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    note = "+- is the sd over seeds, or of one seed the standard error over test rows."
    return "\n".join([*lines, "", note, versions, ""])


def _spread(values: tuple[float, ...]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _path(out: Path, aggregation: str, bound: str, seed: int) -> Path:
    return out / f"{aggregation}, {bound}, {seed}.json"


if __name__ == "__main__":
    tyro.cli(main)
