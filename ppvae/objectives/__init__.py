"""Objectives: what a pair is trained for. Small subclasses of a Pyro ELBO, one idea each.

Pyro's own `Trace_ELBO` and `TraceMeanField_ELBO` serve as they are. Ours look at the log
probabilities per particle and datum, `(K, N)`, and never wait for the device. They are modules, so
that what is scheduled or learned in them moves, saves and loads.
"""

from ppvae.objectives.base import Objective, Terms
from ppvae.objectives.beta import BetaELBO, PenalizedELBO, cosine, cyclical, warmup
from ppvae.objectives.critics import ReconstructionCritic
from ppvae.objectives.importance import IWELBO, log_mean_exp
from ppvae.objectives.info import InfoELBO
from ppvae.objectives.linear import LinearELBO
from ppvae.objectives.masked import MaskedELBO
from ppvae.objectives.mixture import MixtureELBO, individual_penalty, population_penalty
from ppvae.objectives.penalties import RadiusPenalty
from ppvae.objectives.subsets import (
    bernoulli_subsets,
    mvae_subsets,
    nonempty_subsets,
    uniform_size_subsets,
)

__all__ = [
    "IWELBO",
    "BetaELBO",
    "InfoELBO",
    "LinearELBO",
    "MaskedELBO",
    "MixtureELBO",
    "Objective",
    "PenalizedELBO",
    "RadiusPenalty",
    "ReconstructionCritic",
    "Terms",
    "bernoulli_subsets",
    "cosine",
    "cyclical",
    "individual_penalty",
    "log_mean_exp",
    "mvae_subsets",
    "nonempty_subsets",
    "population_penalty",
    "uniform_size_subsets",
    "warmup",
]
