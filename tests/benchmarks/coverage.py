"""How often intervals of 95 % hold what they are of, on a linear-Gaussian model.

    python tests/benchmarks/coverage.py --repetitions 200

The guide is the exact posterior with its covariance times 1 - k. In two dimensions the weights are
then exactly Pareto, w = (1 - k) u^-k, so that k is known; ln p(x), and its mean over data of the
model, are too. Each repetition draws data and weights anew, and asks `compare` about two models.
"""

import argparse
import math
import time

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae import compare, log_weights
from ppvae.diagnostics import evidence, pareto_k
from ppvae.models import LinearGaussian
from ppvae.protocols import Batch

WEIGHT = ((1.0, 0.3), (-0.5, 0.8), (0.2, -0.4))
SHIFT = 0.6  # of the other model's bias, in units of x
Z = 1.96
COLUMNS = (
    "one datum, sd(w) / (sqrt(K) mean(w))",
    "one datum, `standard_error`",
    "mean, `evidence_se`",
    "mean over data, `evidence_data_se`",
    "difference, `evidence_difference_se`",
)


class Narrow(nn.Module):
    """The exact posterior of two latents with its covariance times 1 - k: a tail of index k."""

    def __init__(self, model: LinearGaussian, k: float) -> None:
        super().__init__()
        self._model, self.k = (model,), k

    def forward(self, batch: Batch) -> None:
        """Sample z ~ q(z|x)."""
        p = self._model[0].posterior(batch)
        narrow = dist.MultivariateNormal(p.loc, scale_tril=math.sqrt(1 - self.k) * p.scale_tril)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", narrow)


def models() -> tuple[LinearGaussian, LinearGaussian]:
    """Return the model that data are of, and another."""
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    bias = torch.full((len(WEIGHT),), SHIFT, dtype=torch.float64)
    return LinearGaussian(weight), LinearGaussian(weight, bias)


def repetition(k: float, size: int, draws: int) -> dict[str, Tensor]:
    """Return whether each kind of interval holds what it is of, (N,) or () booleans."""
    own, other = models()
    with torch.no_grad():
        marginal = _marginal(own)
        x = marginal.sample((size,))
        exact = own.log_evidence(x)
        found = evidence(log_w := log_weights(own, Narrow(own, k), x, draws))
        off = (found.log_evidence - exact).abs()
        relative = (log_w - found.log_evidence).exp()
        pairs = {"own": (own, Narrow(own, k)), "other": (other, Narrow(other, k))}
        table = compare(pairs, None, x, num_particles=draws, most_data=2)  # of weights alone
        mean, behind = table.loc["own"], table.loc["other"]
        apart = torch.distributions.kl_divergence(marginal, _marginal(other))
    holds = (
        off < Z * relative.std(0) / math.sqrt(draws),
        off < Z * found.standard_error,
        abs(mean["evidence"] - float(exact.mean())) < Z * mean["evidence_se"],
        abs(mean["evidence"] + float(marginal.entropy())) < Z * mean["evidence_data_se"],
        abs(behind["evidence_difference"] + float(apart)) < Z * behind["evidence_difference_se"],
    )
    shares = {n: torch.as_tensor(h).double() for n, h in zip(COLUMNS, holds, strict=True)}
    return shares | {"k": pareto_k(log_w).k, "width": found.standard_error}


def coverage(k: float, repetitions: int, size: int, draws: int) -> dict[str, float]:
    """Return the share of intervals that hold, and the mean Pareto k found."""
    runs = [repetition(k, size, draws) for _ in range(repetitions)]
    return {name: float(torch.stack([run[name] for run in runs]).mean()) for name in runs[0]}


def _marginal(model: LinearGaussian) -> dist.MultivariateNormal:
    covariance = model.weight @ model.weight.mT + torch.eye(len(model.weight)).double()
    return dist.MultivariateNormal(model.bias.detach(), covariance.detach())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--size", type=int, default=50, help="data in each")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    print(f"| k | k found | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 2)}")
    for k in (0.3, 0.6, 0.8):
        pyro.set_rng_seed(options.seed)
        found = coverage(k, options.repetitions, options.size, options.draws)
        cells = [f"{found[name]:.1%}".replace("%", " %") for name in COLUMNS]
        print(f"| {k} | {found['k']:.2f} | {' | '.join(cells)} |", flush=True)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
