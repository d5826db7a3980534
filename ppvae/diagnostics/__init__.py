"""Verdicts on a pair: how good is the bound, can weights be trusted, what does the latent hold?

Three kinds of input. What weights tell (`evidence`, `pareto_k`) takes the `(K, N)` of
`log_weights`, so that they are computed once. What the latent tells takes the pair itself. Two
sets of images are compared in the features of a network. Nothing here trains a pair: parameters,
buffers and modes are left as they were.
"""

from ppvae.diagnostics.anomaly import Auroc, anomaly_auroc
from ppvae.diagnostics.classifier import (
    Classifier,
    ClassMismatch,
    class_mismatch,
    train_classifier,
)
from ppvae.diagnostics.frechet import Distance, Inception, frechet_distance
from ppvae.diagnostics.importance import Evidence, Pareto, evidence, pareto_k, pareto_threshold
from ppvae.diagnostics.latent import (
    AggregatePosterior,
    active_units,
    aggregate_posterior,
    kl_per_dimension,
    mutual_information,
    posterior_moments,
)
from ppvae.diagnostics.mixture import ComponentUsage, component_usage
from ppvae.diagnostics.population import (
    PopulationMoments,
    log_det_covariance,
    population_moments,
)
from ppvae.diagnostics.realism import density_coverage, precision_recall, sharpness
from ppvae.diagnostics.verdict import Verdict, compare, judge

__all__ = [
    "AggregatePosterior",
    "Auroc",
    "ClassMismatch",
    "Classifier",
    "ComponentUsage",
    "Distance",
    "Evidence",
    "Inception",
    "Pareto",
    "PopulationMoments",
    "Verdict",
    "active_units",
    "aggregate_posterior",
    "anomaly_auroc",
    "class_mismatch",
    "compare",
    "component_usage",
    "density_coverage",
    "evidence",
    "frechet_distance",
    "judge",
    "kl_per_dimension",
    "log_det_covariance",
    "mutual_information",
    "pareto_k",
    "pareto_threshold",
    "population_moments",
    "posterior_moments",
    "precision_recall",
    "sharpness",
    "train_classifier",
]
