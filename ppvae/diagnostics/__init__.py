"""Verdicts on a pair: how good is the bound, can weights be trusted, what does the latent hold?

Two kinds of input. What weights tell (`evidence`, `pareto_k`) takes the `(K, N)` of `log_weights`,
so that they are computed once. What the latent tells takes the pair itself. Nothing here trains:
parameters, buffers and modes are left as they were.
"""

from ppvae.diagnostics.importance import Evidence, Pareto, evidence, pareto_k, pareto_threshold
from ppvae.diagnostics.latent import (
    AggregatePosterior,
    active_units,
    aggregate_posterior,
    kl_per_dimension,
    mutual_information,
    posterior_moments,
)
from ppvae.diagnostics.verdict import Verdict, compare, judge

__all__ = [
    "AggregatePosterior",
    "Evidence",
    "Pareto",
    "Verdict",
    "active_units",
    "aggregate_posterior",
    "compare",
    "evidence",
    "judge",
    "kl_per_dimension",
    "mutual_information",
    "pareto_k",
    "pareto_threshold",
    "posterior_moments",
]
