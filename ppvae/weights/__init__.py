"""Importance weights of a pair, `(K, N)`: the primitive of all evaluation.

Where all data share a latent, their weights do not factorize: there is one per particle, `(K, 1)`.
"""

from ppvae.pairing import (
    WeightlessError,
    evaluating,
    is_delta,
    is_q_function,
    latent_sites,
    log_prob_of,
    particles,
    per_datum,
    refuse_marked,
    refuse_weightless,
    trace_pair,
)
from ppvae.weights.importance import (
    CHUNK,
    elbo_per_datum,
    log_weights,
    pairwise_log_density,
    weigh,
)
from ppvae.weights.plan import Plan, check_autoguide, plan_of, require_all_data
from ppvae.weights.predictive import Simulate, predictive
from ppvae.weights.unbounded import Unbounded, require_evidence

__all__ = [
    "CHUNK",
    "Plan",
    "Simulate",
    "Unbounded",
    "WeightlessError",
    "check_autoguide",
    "elbo_per_datum",
    "evaluating",
    "is_delta",
    "is_q_function",
    "latent_sites",
    "log_prob_of",
    "log_weights",
    "pairwise_log_density",
    "particles",
    "per_datum",
    "plan_of",
    "predictive",
    "refuse_marked",
    "refuse_weightless",
    "require_all_data",
    "require_evidence",
    "trace_pair",
    "weigh",
]
