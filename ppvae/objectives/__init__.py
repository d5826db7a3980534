"""Objectives: what a pair is trained for. Small subclasses of a Pyro ELBO, one idea each.

Pyro's own `Trace_ELBO` and `TraceMeanField_ELBO` serve as they are. Ours look at the log
probabilities per particle and datum, `(K, N)`, and never wait for the device. They are modules, so
that what is scheduled or learned in them moves, saves and loads.
"""

from ppvae.objectives.base import Objective, Terms
from ppvae.objectives.beta import BetaELBO, PenalizedELBO, warmup
from ppvae.objectives.critics import ReconstructionCritic
from ppvae.objectives.importance import IWELBO, log_mean_exp
from ppvae.objectives.info import InfoELBO
from ppvae.objectives.linear import LinearELBO
from ppvae.objectives.mixture import MixtureELBO, individual_penalty, population_penalty
from ppvae.objectives.penalties import RadiusPenalty

__all__ = [
    "IWELBO",
    "BetaELBO",
    "InfoELBO",
    "LinearELBO",
    "MixtureELBO",
    "Objective",
    "PenalizedELBO",
    "RadiusPenalty",
    "ReconstructionCritic",
    "Terms",
    "individual_penalty",
    "log_mean_exp",
    "population_penalty",
    "warmup",
]
