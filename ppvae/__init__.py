"""Models and guides that can be swapped, objectives that pair any two, weights that judge every pair."""

from ppvae import diagnostics, guides, models, networks, objectives
from ppvae.arviz import from_pyro, from_pyro_svi
from ppvae.batches import Batches, resolve_device
from ppvae.diagnostics import compare
from ppvae.pairing import PairError, check_pair
from ppvae.svi import SVI
from ppvae.training import History, fit
from ppvae.weights import WeightlessError, log_weights

__all__ = [
    "SVI",
    "Batches",
    "History",
    "PairError",
    "WeightlessError",
    "check_pair",
    "compare",
    "diagnostics",
    "fit",
    "from_pyro",
    "from_pyro_svi",
    "guides",
    "log_weights",
    "models",
    "networks",
    "objectives",
    "resolve_device",
]
