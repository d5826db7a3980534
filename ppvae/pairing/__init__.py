"""What a pair is: one record of model and guide on a batch, and what it refuses.

`check_pair`, the loss of `SVI`, `log_weights` and ArviZ's trees are readings of the same record.
"""

from ppvae.pairing.check import (
    check_modalities,
    check_pair,
    check_seen,
    idle_error,
    look,
)
from ppvae.pairing.marks import Claims, Mark
from ppvae.pairing.particles import (
    few_rows,
    joint_weights,
    takes_particles,
    takes_parts,
)
from ppvae.pairing.reached import describe_tensor, leaves_of
from ppvae.pairing.record import Record, Site, describe, read, roles_of
from ppvae.pairing.refusals import require_pair, require_trainable
from ppvae.pairing.rows import require_free_rows
from ppvae.pairing.traces import (
    Pair,
    PairError,
    WeightlessError,
    evaluating,
    is_delta,
    is_deterministic,
    is_q_function,
    knows_support,
    latent_sites,
    log_prob_of,
    particles,
    per_datum,
    refuse_marked,
    refuse_points,
    refuse_weightless,
    sample_sites,
    subsampling,
    trace_pair,
)

__all__ = [
    "Claims",
    "Mark",
    "Pair",
    "PairError",
    "Record",
    "Site",
    "WeightlessError",
    "check_modalities",
    "check_pair",
    "check_seen",
    "describe",
    "describe_tensor",
    "evaluating",
    "few_rows",
    "idle_error",
    "is_delta",
    "is_deterministic",
    "is_q_function",
    "joint_weights",
    "knows_support",
    "latent_sites",
    "leaves_of",
    "log_prob_of",
    "look",
    "particles",
    "per_datum",
    "read",
    "refuse_marked",
    "refuse_points",
    "refuse_weightless",
    "require_free_rows",
    "require_pair",
    "require_trainable",
    "roles_of",
    "sample_sites",
    "subsampling",
    "takes_particles",
    "takes_parts",
    "trace_pair",
]
