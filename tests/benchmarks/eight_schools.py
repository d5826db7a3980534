"""Eight schools: two autoguides and NUTS beside the reference draws of posteriordb.

    python tests/benchmarks/eight_schools.py --data FOLDER --out runs/eight_schools

FOLDER holds `posteriordb/`. The model is the non-centered one. The guides take many draws, as
means and standard deviations are to be those of the fit and not of chance; NUTS is shown with its
Monte Carlo error. All go through the converters, and their numbers are read off the trees.
Written: `table.md`, `moments.csv`.
"""

import json
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import tyro
from pyro.infer import MCMC, NUTS, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from xarray import DataTree

from ppvae import SVI, from_pyro, from_pyro_svi, log_weights
from ppvae.diagnostics import evidence, pareto_k

FILE = "posteriordb/eight_schools-eight_schools_noncentered.npz"
SCHOOLS = [f"theta[{j}]" for j in range(1, 9)]
GUIDES = {"AutoNormal": AutoNormal, "AutoMultivariateNormal": AutoMultivariateNormal}


def model(batch: dict[str, Tensor]) -> None:
    """The effect of coaching in each school, about a mean effect."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(batch["y"])):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, batch["sigma"]), obs=batch["y"])


class Result(NamedTuple):
    """What one method found."""

    tree: DataTree
    seconds: float
    note: str


def read(data: Path) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Return the batch, and the reference's mean and standard deviation by parameter."""
    file = np.load(data / FILE)
    given = json.loads(str(file["data_json"]))
    batch = {name: torch.tensor(given[name], dtype=torch.float32) for name in ("y", "sigma")}
    draws = pd.DataFrame(
        file["draws"].reshape(-1, file["draws"].shape[-1]), columns=file["param_names"]
    )
    return batch, pd.DataFrame({"mean": draws.mean(), "sd": draws.std()})


def fit_guide(
    make: Callable[..., torch.nn.Module], batch: dict[str, Tensor], steps: int, draws: int
) -> Result:
    """Train an autoguide on all data, its learning rate falling to nothing by a cosine."""
    start = time.perf_counter()
    guide = make(model)
    loss = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    scheduler = partial(CosineAnnealingLR, T_max=steps)
    svi = SVI(model, guide, partial(torch.optim.Adam, lr=0.02), loss, scheduler=scheduler)
    for _ in range(steps):
        svi.step(batch)
        svi.scheduler.step()
    seconds = time.perf_counter() - start
    log_w = log_weights(model, guide, batch, draws)
    tail = pareto_k(log_w)
    note = (
        f"k = {tail.k.item():.2f}, ESS {tail.ess.item():.0f} of {draws}, ELBO "
        f"{log_w.mean().item():.3f}, ln p(y) = {evidence(log_w)}"
    )
    return Result(from_pyro_svi(model, guide, batch, draws=draws), seconds, note)


def run_nuts(batch: dict[str, Tensor], warmup: int, draws: int, chains: int, seed: int) -> Result:
    """Draw some chains."""
    pyro.set_rng_seed(seed)
    start = time.perf_counter()
    kernel = NUTS(model, target_accept_prob=0.95)
    mcmc = MCMC(kernel, draws, warmup, num_chains=chains, disable_progbar=True)
    mcmc.run(batch)
    seconds, tree = time.perf_counter() - start, from_pyro(mcmc)
    names = ["mu", "tau", "theta"]
    ess = min(float(values.min()) for values in az.ess(tree, var_names=names).values())
    rhat = max(float(values.max()) for values in az.rhat(tree, var_names=names).values())
    bad = int(tree.sample_stats.diverging.sum())
    note = (
        f"{chains} x {draws} draws, smallest ESS {ess:.0f}, largest R-hat {rhat:.3f}, "
        f"{bad} divergences"
    )
    return Result(tree, seconds, note)


def exact_evidence(batch: dict[str, Tensor]) -> float:
    """Return ln p(y) by quadrature over mu and ln tau: theta integrates out."""
    mu = torch.linspace(-60, 60, 2401, dtype=torch.float64)[:, None]
    log_tau = torch.linspace(-14, 12, 3001, dtype=torch.float64)
    tau = log_tau.exp()
    log_p = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau) + log_tau
    for y, sigma in zip(batch["y"], batch["sigma"], strict=True):
        log_p = log_p + dist.Normal(mu, (sigma**2 + tau**2).sqrt()).log_prob(y)
    return float(log_p.flatten().logsumexp(0)) + math.log(120 / 2400 * 26 / 3000)


def flat(values: object) -> pd.Series:
    """Return mu, tau and theta of a dataset without draws, by posteriordb's names."""
    numbers = [float(values["mu"]), float(values["tau"]), *values["theta"].values.ravel().tolist()]
    return pd.Series(numbers, index=["mu", "tau", *SCHOOLS])


def moments(tree: DataTree) -> pd.DataFrame:
    """Return mean and standard deviation by parameter."""
    draws = tree.posterior.dataset
    over = ("chain", "draw")
    return pd.DataFrame({"mean": flat(draws.mean(over)), "sd": flat(draws.std(over, ddof=1))})


def errors(tree: DataTree) -> pd.DataFrame:
    """Return the Monte Carlo standard errors of the moments of a chain."""
    names = ["mu", "tau", "theta"]
    kinds = {kind: az.mcse(tree, var_names=names, method=kind) for kind in ("mean", "sd")}
    return pd.DataFrame({kind: flat(values) for kind, values in kinds.items()})


def main(
    data: Path,
    out: Path = Path("runs/eight_schools"),
    seed: int = 0,
    steps: int = 5000,
    guide_draws: int = 20_000,
    warmup: int = 1000,
    draws: int = 1000,
    chains: int = 2,
) -> None:
    """Run all methods, print the table and write it.

    Args:
        data: The folder that holds posteriordb/.
        out: Where to write.
        seed: Of every method.
        steps: Of the guides' training.
        guide_draws: How many draws of a guide its moments and weights are of.
        warmup: Of NUTS.
        draws: Of NUTS, in each chain.
        chains: Of NUTS.
    """
    torch.set_num_threads(1)  # eight numbers: threads cost more than they bring
    batch, reference = read(data)
    results = {}
    for name, make in GUIDES.items():
        pyro.set_rng_seed(seed)
        results[name] = fit_guide(make, batch, steps, guide_draws)
    results["NUTS"] = run_nuts(batch, warmup, draws, chains, seed)
    found = {"reference": reference} | {name: moments(r.tree) for name, r in results.items()}
    text = table(found, errors(results["NUTS"].tree), results, seed)
    text += f"; ln p(y) by quadrature: {exact_evidence(batch):.4f}"
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    pd.concat(found, axis=1).loc[["mu", "tau", *SCHOOLS]].to_csv(out / "moments.csv")


def table(
    found: dict[str, pd.DataFrame], mcse: pd.DataFrame, results: dict[str, Result], seed: int
) -> str:
    """Return mean and standard deviation of each parameter by method, as Markdown."""
    lines = [f"| mean, sd | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    for name in ["mu", "tau", *SCHOOLS]:
        cells = [
            f"{m.loc[name, 'mean']:.2f} ± {mcse.loc[name, 'mean']:.2f}, "
            f"{m.loc[name, 'sd']:.2f} ± {mcse.loc[name, 'sd']:.2f}"
            if method == "NUTS"
            else f"{m.loc[name, 'mean']:.2f}, {m.loc[name, 'sd']:.2f}"
            for method, m in found.items()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    notes = [f"- {name}: {r.note}; {r.seconds:.0f} s" for name, r in results.items()]
    versions = (
        f"seed {seed}, one CPU thread, torch {torch.__version__}, pyro {pyro.__version__}, "
        f"arviz {az.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, "", *notes, "", versions])


if __name__ == "__main__":
    tyro.cli(main)
