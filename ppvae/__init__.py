"""Models and guides to swap, objectives that pair any two, weights that judge every pair."""

from ppvae import checkpoints, diagnostics, guides, models, networks, objectives
from ppvae.arviz import from_langevin, from_pyro, from_pyro_svi
from ppvae.batches import Batches, resolve_device
from ppvae.checkpoints import CheckpointError
from ppvae.diagnostics import compare
from ppvae.pairing import PairError, check_pair
from ppvae.runs import load
from ppvae.svi import SVI
from ppvae.training import History, fit
from ppvae.weights import WeightlessError, log_weights

__all__ = [
    "SVI",
    "Batches",
    "CheckpointError",
    "History",
    "PairError",
    "WeightlessError",
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
    "resolve_device",
]
