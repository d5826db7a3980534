"""Penn Treebank, a small setting: who collapses, and what it costs.

    python tests/benchmarks/ptb.py --data FOLDER --out runs/ptb

FOLDER holds ptb.{train,valid,test}.txt. The first 10,000 sentences of 3 to 15 words, the 2,000
most frequent words, D = 16, embedding 64, hidden 128, batches of 32 sentences of equal length,
Adam 2e-3, gradients of norm 5 at most, dropout .5 on embeddings and states (not in a chain), 4
epochs of 320 steps, one seed. All rows have the same decoder, started alike. It is no attempt at
the published numbers, printed below the table, which are of all words and sentences, of D = 32 and
60 epochs.

Columns are of 300 test sentences, in nats per sentence. Recon is -ln p(x|z) for one draw of the
guide that the row was trained with; AU counts coordinates with Var_x(E[z|x]) > .01, the noise of
the means' draws subtracted. NLL and PPL are bounds from importance weights, by two guides. "Own":
60 particles of an amortized guide; for Langevin 30 of the last step's density, kappa, c and tau
learned for the trained model (density="step"). "LSTM": 60 of an LSTM guide fitted to the finished
model for as many epochs, the same for all. The smaller bound of the two is the one to believe. KL
and MI are of the own guide; for Langevin the KL is that of the last step given the one before,
above that of its mixture, and MI lies between the two ends of the nested estimate. MI of the LSTM
guide is what an encoder finds in the same model; ln 300 = 5.70 is the most it can be. CPU is of
training alone.

With --yelp FOLDER, of short_yelp, accuracies of a classifier of features with few labels: means of
5 draws, of 2,000 train and 2,000 test sentences, models trained on 10,000 for 3 epochs.

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

import pyro
import torch
import tyro
from torch import Tensor, nn

from ppvae import SVI, Batches, fit, log_weights
from ppvae.data import Text, load_text
from ppvae.diagnostics import (
    active_units,
    aggregate_posterior,
    evidence,
    nested_mutual_information,
    pareto_k,
    perplexity,
    posterior_moments,
    reconstruction,
    semi_supervised_accuracy,
)
from ppvae.guides import Langevin, Normal
from ppvae.networks import RecurrentEncoder
from ppvae.objectives import BetaELBO, warmup
from ppvae.recipes.text import lstm_vae, short_run_text
from ppvae.training import LaggingSVI
from ppvae.weights import evaluating

BATCH, D, TEST, CHUNK = 32, 16, 300, 2**11
SMALL = {"latent_dim": D, "embedding_dim": 64, "hidden": 128, "learning_rate": 2e-3}
Adam = partial(torch.optim.Adam, lr=2e-3)
PUBLISHED = """\
| published, all of PTB | PPL | Recon | AU | KL |
|---|---|---|---|---|
| LSTM-LM | 100.47 | | | |
| Anneal-VAE | 101.40 | 101.28 | 0 | 0.00 |
| Cyclical-VAE | 108.97 | 101.85 | 5 | 1.37 |
| Lagging-VAE | 99.83 | 100.26 | 4 | 0.93 |
| SA-VAE | 100.39 | 100.97 | 5 | 1.86 |
| FBP-VAE | 99.62 | 98.52 | 3 | 2.95 |
| FB-VAE | 96.35 | 94.52 | 32 | 8.15 |
| SRI (10 particles) | 94.26 | 91.14 | 32 | 10.13 |"""
ACCURACY = """\
| published, short Yelp | 0 labels | 100 | 1,000 | 10,000 |
|---|---|---|---|---|
| AE | 53.1 | 78.8 | 83.7 | 84.1 |
| Cyclical-VAE | 59.9 | 78.6 | 82.7 | 83.2 |
| SA-VAE | 62.6 | 69.3 | 78.8 | 81.4 |
| FB-VAE | 67.5 | 84.9 | 89.5 | 90.6 |
| SRI | 73.3 | 85.8 | 89.6 | 90.8 |"""
Row = Callable[[Text, int], SVI]


def language_model(text: Text, total: int) -> SVI:
    """Return the decoder alone, z = 0."""
    model = lstm_vae(text.vocabulary.tokens, **SMALL, device="cpu").model

    def loss(model: nn.Module, guide: object, batch: Tensor) -> Tensor:
        zeros = torch.zeros(len(batch), D)
        return -model.decoder.log_prob(zeros, batch).sum()

    return SVI(model, lambda batch: None, Adam, loss, clip_norm=5.0)


def amortized(text: Text, total: int, **kwargs) -> SVI:
    """Return a VAE with an LSTM guide."""
    return lstm_vae(text.vocabulary.tokens, **kwargs, **SMALL, device="cpu")


def lagging(text: Text, total: int) -> SVI:
    """Return a VAE whose encoder catches up first; annealed from .1, as its authors do."""
    svi = amortized(text, total, annealing="none")
    inner, held_out = text.batches(BATCH, equal=True, seed=1), text.validation[:300]
    loss = BetaELBO(warmup(total // 2, 0.1))
    options = {"inner": inner, "held_out": held_out, "clip_norm": 5.0, "most": 30}
    return LaggingSVI(svi.model, svi.guide, Adam, loss, **options)


def short_run(text: Text, total: int, **kwargs) -> SVI:
    """Return a model with a Langevin guide."""
    kwargs = {"cold_epochs": 0, **kwargs}
    return short_run_text(text.vocabulary.tokens, **kwargs, **SMALL, device="cpu")


ROWS: dict[str, Row] = {
    "LSTM-LM": language_model,
    "VAE": partial(amortized, annealing="none"),
    "VAE, annealed": lambda text, total: amortized(text, total, annealing_steps=total // 2),
    "VAE, cyclical": lambda text, total: amortized(
        text, total, annealing="cyclical", annealing_steps=total
    ),
    "VAE, free bits .25": lambda text, total: amortized(
        text, total, annealing_steps=total // 2, free_bits=0.25
    ),
    "VAE, lagging": lagging,
    "Langevin, released steps, T = .2": short_run,
    "Langevin, s = .3, T = 1": partial(short_run, step_size=0.3, noise=1.0),
    "Langevin, K = 5": partial(short_run, steps=5),
    "Langevin, K = 10": partial(short_run, steps=10),
    "Langevin, K = 40": partial(short_run, steps=40),
}
LABELED = ("VAE, annealed", "VAE, free bits .25", "Langevin, released steps, T = .2")


def train(row: Row, text: Text, epochs: int, seed: int, path: Path) -> tuple[SVI, dict]:
    """Train a row, or take up what was trained; return it with what training cost."""
    pyro.set_rng_seed(seed)
    batches = text.batches(BATCH, equal=True, seed=seed)
    svi, start = row(text, epochs * len(batches)), time.process_time()
    modules = nn.ModuleList([m for m in (svi.model, svi.guide) if isinstance(m, nn.Module)])
    if path.exists():
        saved = torch.load(path, weights_only=True)
        modules.load_state_dict(saved["weights"])
        return svi, saved["cost"]
    if len(modules) == 2:
        fit(svi, batches, epochs=epochs, progress=False)
    else:
        for batch in (batch for _ in range(epochs) for batch in batches):
            svi.step(batch)
    cost = {"cpu_seconds": time.process_time() - start, "epochs": epochs, "seed": seed}
    cost["inner_steps"] = getattr(svi, "inner_steps", 0)
    torch.save({"weights": modules.state_dict(), "cost": cost}, path)
    return svi, cost


def fitted(
    model: nn.Module, guide: nn.Module, batches: Batches, steps: int, rate: float = 5e-3
) -> nn.Module:
    """Return a guide fitted to a finished model, which is left as it was."""
    model.requires_grad_(False).eval()
    svi = SVI(model, guide, partial(torch.optim.Adam, lr=rate), BetaELBO(), clip_norm=5.0)
    done = 0
    while done < steps:
        for batch in batches:
            svi.step(batch)
            done += 1
            if done == steps:
                break
    return guide


def bound(model: nn.Module, guide: nn.Module, x: Tensor, count: int) -> dict[str, float]:
    """Return the importance-weighted NLL with the perplexity, and whether to believe it."""
    log_w = log_weights(model, guide, x, count, chunk_size=CHUNK)
    found = perplexity(evidence(log_w).log_evidence, x)
    return {
        "nll": found.nll,
        "ppl": found.per_token,
        "elbo": float(log_w.mean()),
        "bad_k": pareto_k(log_w).share_bad,
    }


def judge(svi: SVI, text: Text, epochs: int, particles: int) -> dict[str, object]:
    """Return what the table says of a trained row."""
    model, guide = svi.model.eval(), svi.guide
    x, batches = text.test[: 3 * TEST : 3], text.batches(BATCH, equal=True, seed=2)
    if not isinstance(guide, nn.Module):
        with torch.no_grad():
            log_p = model.decoder.log_prob(torch.zeros(len(x), D), x).sum(-1)
        found = perplexity(log_p, x)
        return {"lstm": {"nll": found.nll, "ppl": found.per_token}, "tokens": found.tokens}
    draws = 30 if isinstance(guide, Langevin) else 1000  # a dead unit's noise is below .003
    facts: dict[str, object] = {
        "reconstruction": reconstruction(model, guide, x, chunk_size=CHUNK),
        "active": int(active_units(guide, x, num_particles=draws, chunk_size=CHUNK).sum()),
        "tokens": float((x > 0).sum() / len(x)),
    }
    encoder = RecurrentEncoder(model.decoder.out_features, 64, 128)
    amortized = fitted(model, Normal(encoder, D), batches, epochs * len(batches))
    split = aggregate_posterior(model, amortized, x, num_particles=30)
    facts["lstm"] = bound(model, amortized, x, 2 * particles)
    facts["lstm"]["information"] = split.mutual_information
    if isinstance(guide, Langevin):
        chain = {"noise": float(guide.noise), "density": "step", "learned_dim": D}
        own = Langevin(model, guide.steps, guide.step_sizes.tolist(), **chain)
        own.log_tau.data.fill_(math.log(0.5))  # T s is .01 at the end, and far from what is best
        fitted(model, own, batches, 150, rate=0.02)
        facts["own"] = bound(model, own, x, particles)
        nested = nested_mutual_information(own, x, num_particles=10, chunk_size=CHUNK)
        facts["information"] = [nested.low, nested.high]
        loss = BetaELBO(analytic=False)
        with evaluating(model, own):
            loss.differentiable_loss(model, own, x)
        facts["kl"] = float(loss.record["kl"])
        facts["kappa"], facts["tau"] = (
            t.detach().tolist() for t in (own.kappa, own.log_tau.exp())
        )
    else:
        facts["own"] = bound(model, guide, x, 2 * particles)
        split = aggregate_posterior(model, guide, x, num_particles=30)
        facts |= {"information": [split.mutual_information] * 2, "kl": split.kl}
    return facts


def accuracies(svi: SVI, text: Text) -> dict[str, float]:
    """Return how often a classifier of features is right, by the number of labels."""
    features = [
        posterior_moments(svi.guide, x[:2000], num_particles=5, chunk_size=CHUNK)[0]
        for x in (text.train, text.test)
    ]
    labels = text.train_labels[:2000], text.test_labels[:2000]
    pairs = [part for pair in zip(features, labels, strict=True) for part in pair]
    found = semi_supervised_accuracy(*pairs, counts=(0, 100, 1000, 2000), draws=5)
    return {str(count): share for count, share in found.items()}


def main(
    data: Path = Path("data/ptb"),
    out: Path = Path("runs/ptb"),
    yelp: Path | None = None,
    rows: tuple[str, ...] = tuple(ROWS),
    epochs: int = 4,
    particles: int = 30,
    seed: int = 0,
) -> None:
    """Do the runs that are not written yet, and print the tables of those that are.

    Args:
        data: The folder of the Penn Treebank.
        out: Where to write.
        yelp: The folder of short_yelp; left out by default.
        rows: Which of the table's; none prints the tables alone.
        epochs: Of training.
        particles: Of a Langevin guide's weights; amortized guides have twice as many.
        seed: Of weights, order and draws.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sizes = {"words": 2000, "lengths": (3, 15), "outside": "drop", "most": 10_000}
    text = load_text(data, **sizes) if rows else None
    for name in rows:
        if _path(out, name).exists():
            continue
        with pyro.validation_enabled(False):  # some chains leave, which validation refuses
            svi, cost = train(ROWS[name], text, epochs, seed, _path(out, name, "pt"))
            start = time.process_time()
            facts = judge(svi, text, epochs, particles) | cost
        facts["judged_in"] = time.process_time() - start
        print(name, facts, flush=True)
        _path(out, name).write_text(json.dumps(facts, indent=2))
    if yelp is not None:
        reviews = load_text(yelp, words=2000)
        for name in LABELED:
            if _path(out, f"yelp, {name}").exists():
                continue
            with pyro.validation_enabled(False):
                path = _path(out, f"yelp, {name}", "pt")
                svi, cost = train(ROWS[name], reviews, 3, seed, path)
                facts = {"accuracy": accuracies(svi, reviews), **cost}
            print("yelp", name, facts, flush=True)
            _path(out, f"yelp, {name}").write_text(json.dumps(facts, indent=2))
    print(table(out))
    figure(out)


def table(out: Path) -> str:
    """Return the runs that are written, as Markdown, above the published ones."""
    columns = ["", "NLL, own", "PPL, own", "NLL, LSTM", "PPL, LSTM", "Recon", "AU", "KL", "MI"]
    columns += ["MI, LSTM", "k > .7, own", "CPU"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name in ROWS:
        if not _path(out, name).exists():
            continue
        facts = json.loads(_path(out, name).read_text())
        own, (low, high) = facts.get("own", {}), facts.get("information", (None, None))
        cells = [name]
        for found in (own, facts["lstm"]):
            cells += [_cell(found.get("nll"), ".2f"), _cell(found.get("ppl"), ".1f")]
        cells += [
            _cell(facts.get("reconstruction"), ".2f"),
            _cell(facts.get("active"), "d"),
            _cell(facts.get("kl"), ".2f"),
            _cell(low, ".2f") if low == high else f"{low:.2f} to {high:.2f}",
            _cell(facts["lstm"].get("information"), ".2f"),
            _cell(own.get("bad_k"), ".0%"),
            f"{facts['cpu_seconds']:.0f} s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", PUBLISHED, ""]
    scores = {name: _path(out, f"yelp, {name}") for name in LABELED}
    if any(path.exists() for path in scores.values()):
        lines += ["| short Yelp | 0 labels | 100 | 1,000 | 2,000 |", "|---|---|---|---|---|"]
        for name, path in scores.items():
            if path.exists():
                found = json.loads(path.read_text())["accuracy"]
                shares = [f"{100 * share:.1f}" for share in found.values()]
                lines.append(f"| {' | '.join([name, *shares])} |")
        lines += ["", ACCURACY, ""]
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, versions])


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def figure(out: Path) -> None:
    """Draw active units and the rest of the sentence against the number of steps."""
    from ppvae.plots.canvas import COLORS, new_figure

    names = {5: "Langevin, K = 5", 10: "Langevin, K = 10", 40: "Langevin, K = 40"}
    names = dict(sorted((names | {20: "Langevin, released steps, T = .2"}).items()))
    paths = {k: _path(out, name) for k, name in names.items()}
    known = {k: json.loads(path.read_text()) for k, path in paths.items() if path.exists()}
    if not known:
        return
    drawn, panels = new_figure(1, 2, width=7, height=2.8)
    panels[0].plot([*known], [f["active"] for f in known.values()], marker="o", color=COLORS[0])
    panels[0].set(xlabel="steps K", ylabel="active units of 16", ylim=(-0.5, D + 0.5))
    for label, color, values in (
        ("Recon", COLORS[0], [f["reconstruction"] for f in known.values()]),
        ("NLL, the smaller bound", COLORS[1], [_best(f) for f in known.values()]),
    ):
        panels[1].plot([*known], values, marker="o", color=color, label=label)
    if (path := _path(out, "LSTM-LM")).exists():
        alone = json.loads(path.read_text())["lstm"]["nll"]
        panels[1].axhline(alone, color=COLORS[2], linewidth=1, label="NLL, LSTM-LM")
    panels[1].set(xlabel="steps K", ylabel="nats per sentence")
    panels[1].legend(frameon=False, fontsize=8)
    drawn.savefig(out / "steps.png", dpi=120)


def _best(facts: dict) -> float:
    return min(facts["own"]["nll"], facts["lstm"]["nll"])


def _path(out: Path, name: str, kind: str = "json") -> Path:
    return out / f"{name}.{kind}"


if __name__ == "__main__":
    tyro.cli(main)
