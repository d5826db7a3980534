"""Models and guides to swap, objectives that pair any two, weights that judge every pair."""

from ppvae import diagnostics, guides, models, networks, objectives
from ppvae.arviz import from_langevin, from_pyro, from_pyro_svi
from ppvae.diagnostics import compare
from ppvae.pairing import PairError, check_pair
from ppvae.runs import load
from ppvae.training import (
    SVI,
    Batches,
    CheckpointError,
    History,
    LaggingSVI,
    callbacks,
    checkpoints,
    fit,
    resolve_device,
)
from ppvae.weights import WeightlessError, log_weights, predictive

__all__ = [
    "SVI",
    "Batches",
    "CheckpointError",
    "History",
    "LaggingSVI",
    "PairError",
    "WeightlessError",
    "callbacks",
    "check_pair",
    "checkpoints",
    "compare",
    "diagnostics",
    "fit",
    "from_langevin",
    "from_pyro",
    "from_pyro_svi",
    "guides",
    "load",
    "log_weights",
    "models",
    "networks",
    "objectives",
    "predictive",
    "resolve_device",
]
