"""Data sets by name, split by seed and ready for a model."""

from ppvae.data.generators import LinearViews, MixedSources, linear_views, mixed_sources
from ppvae.data.images import digits
from ppvae.data.loading import load
from ppvae.data.mfeat import mfeat
from ppvae.data.multimodal import as_modalities, missing_at_random
from ppvae.data.patches import patches, photographs, whiten, whitening_gain
from ppvae.data.pixels import Binarize, bernoulli, to_unit
from ppvae.data.polymnist import embedded_photographs, polymnist, read_photographs
from ppvae.data.readers import NAMES, OFFICIAL_VALIDATION, OTHER_KINDS
from ppvae.data.sentences import SentenceBatches
from ppvae.data.split import Split
from ppvae.data.text import Text, load_text
from ppvae.data.vocabulary import Vocabulary, mask

__all__ = [
    "NAMES",
    "OFFICIAL_VALIDATION",
    "OTHER_KINDS",
    "Binarize",
    "LinearViews",
    "MixedSources",
    "SentenceBatches",
    "Split",
    "Text",
    "Vocabulary",
    "as_modalities",
    "bernoulli",
    "digits",
    "embedded_photographs",
    "linear_views",
    "load",
    "load_text",
    "mask",
    "mfeat",
    "missing_at_random",
    "mixed_sources",
    "patches",
    "photographs",
    "polymnist",
    "read_photographs",
    "to_unit",
    "whiten",
    "whitening_gain",
]
