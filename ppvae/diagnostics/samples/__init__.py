"""How real what a model draws is."""

from ppvae.diagnostics.samples.classifier import (
    Classifier,
    ClassMismatch,
    class_mismatch,
    train_classifier,
)
from ppvae.diagnostics.samples.frechet import Distance, Inception, frechet_distance
from ppvae.diagnostics.samples.realism import density_coverage, precision_recall, sharpness

__all__ = [
    "ClassMismatch",
    "Classifier",
    "Distance",
    "Inception",
    "class_mismatch",
    "density_coverage",
    "frechet_distance",
    "precision_recall",
    "sharpness",
    "train_classifier",
]
