"""Data sets by name, split by seed and ready for a model."""

from ppvae.data.loading import digits, load
from ppvae.data.patches import patches, photographs, whiten, whitening_gain
from ppvae.data.pixels import Binarize, bernoulli, to_unit
from ppvae.data.readers import NAMES, OFFICIAL_VALIDATION
from ppvae.data.split import Split

__all__ = [
    "NAMES",
    "OFFICIAL_VALIDATION",
    "Binarize",
    "Split",
    "bernoulli",
    "digits",
    "load",
    "patches",
    "photographs",
    "to_unit",
    "whiten",
    "whitening_gain",
]
