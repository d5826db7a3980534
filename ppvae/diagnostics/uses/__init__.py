"""What a pair is good for: labels, anomalies, several modalities, text."""

from ppvae.diagnostics.uses.anomaly import Auroc, anomaly_auroc
from ppvae.diagnostics.uses.coherence import Coherence, coherence, generate, given_only
from ppvae.diagnostics.uses.labels import (
    knn_accuracy,
    semi_supervised_accuracy,
    shattering_dimensionality,
)
from ppvae.diagnostics.uses.sentences import interpolation, sample_sentences
from ppvae.diagnostics.uses.text import (
    NestedInformation,
    Perplexity,
    nested_mutual_information,
    perplexity,
    reconstruction,
)

__all__ = [
    "Auroc",
    "Coherence",
    "NestedInformation",
    "Perplexity",
    "anomaly_auroc",
    "coherence",
    "generate",
    "given_only",
    "interpolation",
    "knn_accuracy",
    "nested_mutual_information",
    "perplexity",
    "reconstruction",
    "sample_sentences",
    "semi_supervised_accuracy",
    "shattering_dimensionality",
]
