"""InfoVAE on MNIST: the aggregate posterior by training-set size, the penalty's noise, the toy.

    python tests/benchmarks/infovae.py --root FOLDER --out runs/infovae

FOLDER holds MNIST, as torchvision lays it out; the toy needs no data. Networks are MLPs with leaky
ReLU .1, guide and decoder 784-256-256 and its mirror, 5 latents, the guide's s.d. the sigmoid of
its head, at least .005 (so at most 1), batches of 100, Adam 1e-3, 2,000 steps, one seed.

*Size*: ln det of the covariance of 10,000 sampled codes, which is 0 for the prior, for the ELBO
and for InfoVAE by the closed-form MMD without i = j: alpha = 1 with the weight of the authors'
figure 2, 50 MMD beside a reconstruction per pixel, 39,200 in nats ("MMD"); and lam = 1000. Gray
pixels in [0, 1], Normal with an s.d. per pixel of at least .05. Published values are read off that
figure, arXiv:1706.02262, to +-.1: other networks, 100,000 steps, a wider kernel.

*Noise*: alpha = 0 on 50,000 binary images, Bernoulli. -E ln p(x|z) of the test images, and the
gradient of 1000 D by the guide's parameters, its mean and its standard deviation over 200 batches,
at the pair trained with the closed form.

*Toy*: figure 1. x in {-1, 1}, one latent, MLP 200-200, s.d. sigmoid + 5e-4, batches of 500, Adam
3e-4, 8,000 steps; the ELBO, and alpha = 1 with 500 sampled MMD of kernel exp(-|z - y|^2).

Each run is written as it ends, so that an interrupted benchmark goes on where it was.
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

from ppvae import SVI, plots
from ppvae.data import load
from ppvae.divergences import mmd, mmd_gaussian
from ppvae.guides.amortized import Amortized
from ppvae.likelihoods import Likelihood, normal_with_scale
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import BetaELBO, InfoELBO
from ppvae.objectives.base import Objective
from ppvae.weights import evaluating, trace_pair

NAN = float("nan")
SIZES = (500, 1000, 5000, 10_000, 50_000)
unbiased = partial(mmd_gaussian, estimator="u")  # with i = j, codes spread to part from each other
OBJECTIVES = {
    "ELBO": BetaELBO,
    "MMD": partial(InfoELBO, 1.0, 39_200.0, unbiased),
    "MMD, lam 1000, alpha 0": partial(InfoELBO, 0.0, 1000.0, unbiased),
    "MMD, lam 1000": partial(InfoELBO, 1.0, 1000.0, unbiased),
}
PUBLISHED = {  # figure 2; the test value for 500 images is off its axis
    "ELBO": {500: (8.95, 8.25), 1000: (7.7, 6.85), 50_000: (2.2, 1.95)},
    "MMD": {500: (-0.1, NAN), 1000: (0.0, -1.2), 50_000: (-0.05, -0.3)},
}


class Estimator(NamedTuple):
    """A penalty of alpha = 0, and the batches it is estimated on."""

    lam: float
    divergence: Callable[..., Tensor]
    batch_size: int


NOISE = {
    "ELBO": Estimator(1.0, mmd, 100),
    "sampled, 100, lam 1000": Estimator(1000.0, mmd, 100),
    "sampled, 400, lam 1000": Estimator(1000.0, mmd, 400),
    "closed form, 100, lam 1000": Estimator(1000.0, mmd_gaussian, 100),
    "without i = j, 100, lam 1000": Estimator(1000.0, unbiased, 100),
    "sampled, 100, lam 100": Estimator(100.0, mmd, 100),
    "closed form, 100, lam 100": Estimator(100.0, mmd_gaussian, 100),
    "without i = j, 100, lam 100": Estimator(100.0, unbiased, 100),
}
TOY_KERNEL = {"bandwidth": 0.5**0.5}
TOY = {
    "ELBO": BetaELBO,
    "MMD": partial(InfoELBO, 1.0, 500.0, partial(mmd, **TOY_KERNEL)),
}
leaky = partial(nn.LeakyReLU, 0.1)


def posterior(h: Tensor) -> dist.Independent:
    """The authors' q(z|x): a linear mean, and an s.d. between .005 and 1."""
    loc, scale = h.chunk(2, -1)
    return dist.Normal(loc, scale.sigmoid().clamp(min=0.005)).to_event(1)


def toy_posterior(h: Tensor) -> dist.Independent:
    """The toy's q(z|x)."""
    loc, scale = h.chunk(2, -1)
    return dist.Normal(loc, scale.sigmoid() + 5e-4).to_event(1)


def toy_likelihood(h: Tensor) -> dist.Normal:
    """The toy's p(x|z)."""
    loc, scale = h.chunk(2, -1)
    return dist.Normal(loc, scale.sigmoid() + 5e-4)


def images_pair(likelihood: Likelihood | str, outputs: int) -> tuple[VAE, Amortized]:
    """The pair of MNIST."""
    model = VAE(MLP(5, 256, 256, outputs, activation=leaky), 5, likelihood)
    return model, Amortized(MLP(784, 256, 256, activation=leaky), posterior, 10)


def train(
    pair: tuple[VAE, Amortized],
    loss: Objective,
    x: Tensor,
    *,
    steps: int,
    batch_size: int,
    rate: float = 1e-3,
) -> float:
    """Train a pair on batches drawn at random; return the seconds it took."""
    svi = SVI(*pair, partial(torch.optim.Adam, lr=rate), loss)
    order = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for _ in range(steps):
        svi.step(x[torch.randint(len(x), (batch_size,), generator=order)])
    return time.perf_counter() - start


def codes(guide: Amortized, x: Tensor, count: int = 10_000) -> Tensor:
    """Draw codes of as many images, in turn."""
    with evaluating(guide):
        chosen = x[torch.arange(count) % len(x)]
        traces = (poutine.trace(guide).get_trace(part) for part in chosen.split(1000))
        return torch.cat([trace.nodes["z"]["value"] for trace in traces])


def log_det(z: Tensor) -> float:
    """Return ln det of the covariance of draws."""
    return float(z.double().T.cov().logdet())


def judged(model: VAE, guide: Amortized, train_x: Tensor, test_x: Tensor) -> dict[str, float]:
    """Return what is asked of every pair of MNIST, in nats."""
    z_train, z_test = codes(guide, train_x), codes(guide, test_x, len(test_x))
    likelihood, kl = [], []
    with evaluating(model, guide):
        for part in test_x.split(1000):
            model_trace, guide_trace = trace_pair(model, guide, part)
            sites = model_trace.nodes["z"], guide_trace.nodes["z"]
            likelihood.append(model_trace.nodes["x"]["log_prob"].flatten())
            kl.append(torch.distributions.kl_divergence(sites[1]["fn"], sites[0]["fn"]).flatten())
    return {
        "log_det_train": log_det(z_train),
        "log_det_test": log_det(z_test),
        "reconstruction": -float(torch.cat(likelihood).mean()),
        "kl": float(torch.cat(kl).mean()),
        "mmd_test": float(mmd(z_test[:2000], torch.randn(2000, z_test.shape[1]))),
    }


def run_size(name: str, size: int, split: object, steps: int) -> dict[str, object]:
    """One point of figure 2."""
    pair = images_pair(partial(normal_with_scale, min_scale=0.05), 2 * 784)
    x = split.train[:size]
    seconds = train(pair, OBJECTIVES[name](), x, steps=steps, batch_size=100)
    return {"seconds": seconds, "size": size, **judged(*pair, x, split.test)}


def run_noise(name: str, split: object, steps: int) -> dict[str, object]:
    """One estimator of the penalty; at the closed form's pair, the noise of all."""
    pair, x, how = images_pair("bernoulli", 784), split.train[:50_000].round(), NOISE[name]
    loss = InfoELBO(0.0, how.lam, how.divergence)
    seconds = train(pair, loss, x, steps=steps, batch_size=how.batch_size)
    record = {"seconds": seconds, **judged(*pair, x, split.test.round())}
    if name == "closed form, 100, lam 1000":
        record["gradients"] = {
            "reconstruction, 100": gradient_noise(pair, x, None, 100),
            "sampled, 100": gradient_noise(pair, x, mmd, 100),
            "sampled, 400": gradient_noise(pair, x, mmd, 400),
            "closed form, 100": gradient_noise(pair, x, mmd_gaussian, 100),
            "closed form, 400": gradient_noise(pair, x, mmd_gaussian, 400),
        }
    return record


def gradient_noise(
    pair: tuple[VAE, Amortized], x: Tensor, divergence: Callable | None, batch_size: int
) -> tuple[float, float]:
    """Return the norms of mean and s.d. of a gradient by the guide's parameters, over batches."""
    model, guide = pair
    parameters, total, square, count = list(guide.parameters()), 0.0, 0.0, 200
    for _ in range(count):
        batch = x[torch.randint(len(x), (batch_size,))]
        model_trace, guide_trace = trace_pair(model, guide, batch)
        if divergence is None:
            value = -model_trace.nodes["x"]["log_prob"].mean()
        else:
            value = 1000 * _divergence(divergence, model_trace, guide_trace)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
        total, square = total + gradient, square + float(gradient.square().sum())
    mean = float((total / count).square().sum())
    variance = (square / count - mean) * count / (count - 1)
    return math.sqrt(max(mean - variance / count, 0.0)), math.sqrt(variance)


def _divergence(divergence: Callable, model_trace: object, guide_trace: object) -> Tensor:
    penalty = InfoELBO(0.0, 2.0, divergence).penalty_functions[0]  # of weight 1
    return penalty(model_trace, guide_trace)


def run_toy(name: str, steps: int, out: Path) -> dict[str, object]:
    """Figure 1: where the posteriors of both data end up."""
    model = VAE(MLP(1, 200, 200, 2, activation=leaky), 1, toy_likelihood)
    guide = Amortized(MLP(1, 200, 200, activation=leaky), toy_posterior, 2)
    x = torch.tensor([[-1.0], [1.0]])
    batch = x.repeat(250, 1)
    seconds = train((model, guide), TOY[name](), batch, steps=steps, batch_size=500, rate=3e-4)
    torch.save(guide.state_dict(), out / f"toy, {name}.pt")
    with evaluating(guide):
        q = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    p = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    with evaluating(model, guide):
        model_trace, _ = trace_pair(model, guide, batch)
    return {
        "seconds": seconds,
        "modes": q.mean.flatten().tolist(),
        "widths": q.stddev.flatten().tolist(),
        "mmd": float(mmd_gaussian(q, p, **TOY_KERNEL)),
        "log_likelihood": float(model_trace.nodes["x"]["log_prob"].mean()),
        "kl": float(torch.distributions.kl_divergence(q, p).mean()),
    }


def main(
    root: Path = Path("data"),
    out: Path = Path("runs/infovae"),
    seed: int = 0,
    scale: float = 1.0,
) -> None:
    """Do the runs that are not written yet; print tables and draw figures of those that are.

    Args:
        root: The folder of torchvision's data sets.
        out: Where to write.
        seed: Of weights and draws.
        scale: Of the number of steps: 0.01 tries the script out.
    """
    out.mkdir(parents=True, exist_ok=True)
    split, steps = load("mnist", root=root), max(2, int(2000 * scale))
    runs = {f"noise, {name}": partial(run_noise, name, split, steps) for name in NOISE}
    for name in OBJECTIVES:
        for size in SIZES:
            runs[f"size, {name}, {size}"] = partial(run_size, name, size, split, steps)
    for name in TOY:
        runs[f"toy, {name}"] = partial(run_toy, name, max(2, int(8000 * scale)), out)
    for name, run in runs.items():
        path = out / f"{name}.json"
        if not path.exists():
            pyro.set_rng_seed(seed)
            path.write_text(json.dumps({"seed": seed, **run()}, indent=2))
            print(name, path.read_text(), flush=True)
    print(report(out))


def report(out: Path) -> str:
    """Return the tables of what is written, as Markdown, and save the figures beside it."""
    done = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    lines = [*_sizes(done, out), *_noises(done, out), *_toys(done, out)]
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, "", versions])


def _sizes(done: dict[str, dict], out: Path) -> list[str]:
    lines = [
        "| training images | objective | ln det, train | test | published | -E ln p | KL | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    spreads = {name: {} for name in OBJECTIVES}
    for size in SIZES:
        for name in OBJECTIVES:
            if (r := done.get(f"size, {name}, {size}")) is None:
                continue
            spreads[name][size] = r["log_det_train"], r["log_det_test"]
            said = PUBLISHED.get(name, {}).get(size, (NAN, NAN))
            both = " / ".join("-" if math.isnan(v) else f"{v:.2f}" for v in said)
            lines.append(
                f"| {size:,} | {name} | {r['log_det_train']:.2f} | {r['log_det_test']:.2f} "
                f"| {both} | {r['reconstruction']:.1f} | {r['kl']:.2f} | {r['seconds']:.0f} s |"
            )
    if all(spreads.values()):
        plots.spread_by_size(spreads, PUBLISHED).savefig(out / "size.png", dpi=150)
    return lines


def _noises(done: dict[str, dict], out: Path) -> list[str]:
    found = {name: r for name in NOISE if (r := done.get(f"noise, {name}"))}
    lines = [
        "",
        "| penalty, batch | -E ln p, test | KL | ln det, train | test | MMD, test | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in found.items():
        lines.append(
            f"| {name} | {r['reconstruction']:.1f} | {r['kl']:.2f} | {r['log_det_train']:.2f} "
            f"| {r['log_det_test']:.2f} | {r['mmd_test']:.4f} | {r['seconds']:.0f} s |"
        )
    noise = next((r["gradients"] for r in found.values() if "gradients" in r), None)
    if noise is not None:
        lines += ["", "| gradient, batch | norm of its mean | of its s.d. |", "|---|---|---|"]
        lines += [f"| {name} | {mean:.3g} | {sd:.3g} |" for name, (mean, sd) in noise.items()]
        cost = {name: (r["reconstruction"], r["log_det_test"]) for name, r in found.items()}
        plots.penalty_noise(noise, cost).savefig(out / "noise.png", dpi=150)
    return lines


def _toys(done: dict[str, dict], out: Path) -> list[str]:
    lines = [
        "",
        "| toy | modes | widths | M^2 + s^2 | MMD | E ln p | KL | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    guides = {}
    for name in TOY:
        if (r := done.get(f"toy, {name}")) is None:
            continue
        squares = [m**2 + s**2 for m, s in zip(r["modes"], r["widths"], strict=True)]
        modes, widths, sums = (
            ", ".join(f"{v:.2f}" for v in values) for values in (r["modes"], r["widths"], squares)
        )
        lines.append(
            f"| {name} | {modes} | {widths} | {sums} | {r['mmd']:.4f} | {r['log_likelihood']:.2f} "
            f"| {r['kl']:.2f} | {r['seconds']:.0f} s |"
        )
        guide = Amortized(MLP(1, 200, 200, activation=leaky), toy_posterior, 2)
        guide.load_state_dict(torch.load(out / f"toy, {name}.pt", weights_only=True))
        guides[name] = guide
    if guides:
        figure = plots.aggregate_densities(guides, torch.tensor([[-1.0], [1.0]]))
        figure.savefig(out / "toy.png", dpi=150)
    return lines


if __name__ == "__main__":
    tyro.cli(main)
