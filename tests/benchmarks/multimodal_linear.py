"""Linear-Gaussian data of five modalities: what each aggregation and bound leave of the evidence.

    python tests/benchmarks/multimodal_linear.py --out runs/multimodal_linear

z ~ N(0, I_5), x_m = W_m z + b_m + N(0, 1), as `ppvae.data.linear_views` draws it: 5,000 rows of
five modalities, their sizes drawn from 30 to 59, as in the paper (arXiv:2309.00380). Networks and
training are smaller: encoders of two layers of 64, pooling of width 64, batches of 250, 3,000
steps of Adam, where the paper has 256 and 40,000 steps. The learning rate falls on a cosine to 0,
from 5e-3 for experts and from 2e-3 for pooling and attention, whose latents collapse at 5e-3: of
the first seed SumPooling then leaves .021 under either bound, SelfAttention .016 and .021. Subsets
are uniform in size, gradients stick the landing, decoders are linear with sd 1 and start at the
means.

The gap is (LLH_MLE - LLH) / |LLH_MLE| of the training rows, both exact: LLH is the trained
decoder's evidence in closed form, LLH_MLE that of probabilistic PCA with sd 1. "objective" is the
trained bound on the same rows, 20 draws of S and z per row. KLs are of q(z|x_S) to the exact
posterior, per row, of one modality (the mean of five) and of all, by 100 draws. The published gaps
are secondary: from public summaries, of other data and budgets.

Each run is written as it ends, so that an interrupted benchmark goes on where it was.
"""

import json
import math
import platform
import time
from functools import partial
from pathlib import Path

import pyro
import torch
import tyro
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ppvae import SVI, guides, log_weights
from ppvae.aggregation import MoE, MoPoE, PoE, SelfAttention, SumPooling
from ppvae.data import linear_views
from ppvae.likelihoods import Normal
from ppvae.models import Multimodal
from ppvae.networks import MLP
from ppvae.objectives import MaskedELBO
from ppvae.protocols import batch_size, hide, rows_of
from ppvae.weights import evaluating

LATENTS, WIDTH, BATCH = 5, 64, 250
AGGREGATIONS = {
    "PoE": PoE,
    "MoE": MoE,
    "MoPoE": MoPoE,
    "SumPooling": partial(SumPooling, width=WIDTH),
    "SelfAttention": partial(SelfAttention, width=WIDTH),
}
RATES = {"SumPooling": 2e-3, "SelfAttention": 2e-3}  # 5e-3 for the others
PUBLISHED = {  # five modalities, masked
    ("PoE", "masked"): 0.03,
    ("SumPooling", "masked"): 0.00,
    ("SelfAttention", "masked"): 0.00,
}
Batch = dict[str, Tensor]


def best(batch: Batch) -> float:
    """Return the largest LLH of any linear decoder of sd 1, per row: probabilistic PCA's."""
    x = torch.cat([*batch.values()], dim=1).double()
    size = x.shape[1]
    values = torch.linalg.eigvalsh((x - x.mean(0)).mT @ (x - x.mean(0)) / len(x))
    kept = values[-LATENTS:].clamp(min=1.0)
    fit = kept.log().sum() + LATENTS + values[:-LATENTS].sum()
    return float(-(size * math.log(2 * math.pi) + fit) / 2)


def make_pair(aggregation: str, batch: Batch) -> tuple[Multimodal, guides.Multimodal]:
    """Return a linear model whose decoders start at the means, and a guide."""
    decoders, encoders = {}, {}
    for name, x in batch.items():
        decoders[name], encoders[name] = (
            nn.Linear(LATENTS, x.shape[1]),
            MLP(x.shape[1], WIDTH, WIDTH),
        )
        decoders[name].bias.data = x.mean(0)
    model = Multimodal(decoders, LATENTS, Normal(1.0))
    return model, guides.Multimodal(encoders, AGGREGATIONS[aggregation](LATENTS), LATENTS)


def train(aggregation: str, bound: str, batch: Batch, steps: int, seed: int) -> dict[str, float]:
    """Train a pair; return what came of it."""
    pyro.set_rng_seed(seed)
    model, guide = make_pair(aggregation, batch)
    loss = MaskedELBO("uniform_size", bound, stl=True)

    def cosine(step: int) -> float:
        return (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2

    optim = partial(torch.optim.Adam, lr=RATES.get(aggregation, 5e-3))
    scheduler = partial(LambdaLR, lr_lambda=cosine)
    svi = SVI(model, guide, optim, loss, scheduler=scheduler, clip_value=100.0)
    size, start = batch_size(batch), time.process_time()
    for _ in range(steps):
        rows = torch.randint(size, (BATCH,))
        svi.step({name: x[rows] for name, x in batch.items()})
        svi.scheduler.step()
    seconds = time.process_time() - start
    with torch.no_grad():
        llh = float(model.double().log_evidence({n: x.double() for n, x in batch.items()}).mean())
    model.float()
    objective = -sum(float(svi.evaluate(batch)) for _ in range(20)) / 20
    return {
        "llh": llh,
        "mle": best(batch),
        "objective": objective,
        **divergences(model, guide, rows_of(batch, 0, 1000)),
        "seconds": seconds,
    }


def divergences(model: Multimodal, guide: guides.Multimodal, batch: Batch) -> dict[str, float]:
    """Return KL(q(z|x_S) || p(z|x_S)) for S of one modality, and of all, per row."""
    one = []
    for m in range(len(batch)):
        keep = torch.arange(len(batch)) == m
        one.append(_divergence(model, guide, hide(batch, keep)))
    return {"kl_one": sum(one) / len(one), "kl_all": _divergence(model, guide, batch)}


def _divergence(model: Multimodal, guide: guides.Multimodal, batch: Batch) -> float:
    elbo = log_weights(model, guide, batch, 100).mean(0)
    with evaluating(model):
        return float((model.log_evidence(batch) - elbo).mean())


def main(
    out: Path = Path("runs/multimodal_linear"),
    aggregations: tuple[str, ...] = tuple(AGGREGATIONS),
    bounds: tuple[str, ...] = ("masked", "mixture"),
    seeds: int = 3,
    steps: int = 3000,
) -> None:
    """Do the runs that are not written yet, and print the table of those that are.

    Args:
        out: Where to write.
        aggregations: Which of the table's; none prints the table alone.
        bounds: Of `MaskedELBO`.
        seeds: How many of each, of data, weights, order and draws.
        steps: Of training.
    """
    out.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        batch = linear_views(seed=seed).data
        for aggregation in aggregations:
            for bound in bounds:
                path = _path(out, aggregation, bound, seed)
                if not path.exists():
                    found = train(aggregation, bound, batch, steps, seed)
                    found |= {"seed": seed, "steps": steps}
                    print(aggregation, bound, found, flush=True)
                    path.write_text(json.dumps(found, indent=2))
    text = table(out)
    (out / "table.md").write_text(text)
    print(text)


def table(out: Path) -> str:
    """Return the runs that are written, as Markdown."""
    columns = ["aggregation", "bound", "gap, mean", "of each seed", "published"]
    columns += ["objective - LLH", "KL of one", "KL of all", "CPU, each"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for aggregation in AGGREGATIONS:
        for bound in ("masked", "mixture"):
            paths = [p for s in range(100) if (p := _path(out, aggregation, bound, s)).exists()]
            if not paths:
                continue
            runs = [json.loads(path.read_text()) for path in paths]
            gaps = [(run["mle"] - run["llh"]) / abs(run["mle"]) for run in runs]
            over = [run["objective"] - run["llh"] for run in runs]
            cells = [aggregation, bound, f"{sum(gaps) / len(gaps):.5f}"]
            cells += [", ".join(f"{gap:.5f}" for gap in gaps)]
            cells += [
                f"{PUBLISHED.get((aggregation, bound), '')}",
                f"{sum(over) / len(over):+.3f}",
            ]
            cells += [f"{sum(r[kl] for r in runs) / len(runs):.3f}" for kl in ("kl_one", "kl_all")]
            cells += [f"{sum(run['seconds'] for run in runs) / len(runs):.0f} s"]
            lines.append(f"| {' | '.join(cells)} |")
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, "", versions, ""])


def _path(out: Path, aggregation: str, bound: str, seed: int) -> Path:
    return out / f"{aggregation}, {bound}, {seed}.json"


if __name__ == "__main__":
    tyro.cli(main)
