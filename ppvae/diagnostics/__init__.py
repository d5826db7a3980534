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
from ppvae.diagnostics.coherence import Coherence, coherence, generate, given_only
from ppvae.diagnostics.conditional import conditional_evidence
from ppvae.diagnostics.frechet import Distance, Inception, frechet_distance
from ppvae.diagnostics.identifiability import mean_correlation
from ppvae.diagnostics.importance import Evidence, Pareto, evidence, pareto_k, pareto_threshold
from ppvae.diagnostics.imputation import imputation_error
from ppvae.diagnostics.labels import (
    knn_accuracy,
    semi_supervised_accuracy,
    shattering_dimensionality,
)
from ppvae.diagnostics.latent import (
    AggregatePosterior,
    active_units,
    aggregate_posterior,
    kl_per_dimension,
    mutual_information,
    posterior_moments,
)
from ppvae.diagnostics.linear import latent_classification, linear_classifier
from ppvae.diagnostics.mixture import ComponentUsage, component_usage
from ppvae.diagnostics.population import (
    PopulationMoments,
    log_det_covariance,
    population_moments,
)
from ppvae.diagnostics.ppca import PPCA, paper_units, ppca_bound
from ppvae.diagnostics.realism import density_coverage, precision_recall, sharpness
from ppvae.diagnostics.sentences import interpolation, sample_sentences
from ppvae.diagnostics.sparsity import (
    Sparsity,
    active_by_kl,
    lifetime_sparsity,
    population_sparsity,
    proportion_zeros,
    sparsity,
)
from ppvae.diagnostics.step_size import StepSearch, search_step_size
from ppvae.diagnostics.text import (
    NestedInformation,
    Perplexity,
    nested_mutual_information,
    perplexity,
    reconstruction,
)
from ppvae.diagnostics.verdict import Verdict, compare, judge

__all__ = [
    "PPCA",
    "AggregatePosterior",
    "Auroc",
    "ClassMismatch",
    "Classifier",
    "Coherence",
    "ComponentUsage",
    "Distance",
    "Evidence",
    "Inception",
    "NestedInformation",
    "Pareto",
    "Perplexity",
    "PopulationMoments",
    "Sparsity",
    "StepSearch",
    "Verdict",
    "active_by_kl",
    "active_units",
    "aggregate_posterior",
    "anomaly_auroc",
    "class_mismatch",
    "coherence",
    "compare",
    "component_usage",
    "conditional_evidence",
    "density_coverage",
    "evidence",
    "frechet_distance",
    "generate",
    "given_only",
    "imputation_error",
    "interpolation",
    "judge",
    "kl_per_dimension",
    "knn_accuracy",
    "latent_classification",
    "lifetime_sparsity",
    "linear_classifier",
    "log_det_covariance",
    "mean_correlation",
    "mutual_information",
    "nested_mutual_information",
    "paper_units",
    "pareto_k",
    "pareto_threshold",
    "perplexity",
    "population_moments",
    "population_sparsity",
    "posterior_moments",
    "ppca_bound",
    "precision_recall",
    "proportion_zeros",
    "reconstruction",
    "sample_sentences",
    "search_step_size",
    "semi_supervised_accuracy",
    "sharpness",
    "shattering_dimensionality",
    "sparsity",
    "train_classifier",
]
