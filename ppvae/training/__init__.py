"""The step and what repeats it: `SVI`, `fit`, checkpoints, and all that a run needs."""

from ppvae.training import callbacks, checkpoints
from ppvae.training.batches import Batches, Transform, resolve_device
from ppvae.training.checkpoints import CheckpointError
from ppvae.training.fit import fit
from ppvae.training.history import History
from ppvae.training.lagging import LaggingSVI
from ppvae.training.svi import SVI

__all__ = [
    "SVI",
    "Batches",
    "CheckpointError",
    "History",
    "LaggingSVI",
    "Transform",
    "callbacks",
    "checkpoints",
    "fit",
    "resolve_device",
]
