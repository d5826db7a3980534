"""What the latent holds: information, moments, codes, sources."""

from ppvae.diagnostics.latents.identifiability import mean_correlation
from ppvae.diagnostics.latents.latent import (
    AggregatePosterior,
    active_units,
    aggregate_posterior,
    kl_per_dimension,
    mutual_information,
    posterior_moments,
)
from ppvae.diagnostics.latents.linear import latent_classification, linear_classifier
from ppvae.diagnostics.latents.mixture import ComponentUsage, component_usage
from ppvae.diagnostics.latents.population import (
    PopulationMoments,
    log_det_covariance,
    population_moments,
)
from ppvae.diagnostics.latents.sparsity import (
    Sparsity,
    active_by_kl,
    lifetime_sparsity,
    population_sparsity,
    proportion_zeros,
    sparsity,
)

__all__ = [
    "AggregatePosterior",
    "ComponentUsage",
    "PopulationMoments",
    "Sparsity",
    "active_by_kl",
    "active_units",
    "aggregate_posterior",
    "component_usage",
    "kl_per_dimension",
    "latent_classification",
    "lifetime_sparsity",
    "linear_classifier",
    "log_det_covariance",
    "mean_correlation",
    "mutual_information",
    "population_moments",
    "population_sparsity",
    "posterior_moments",
    "proportion_zeros",
    "sparsity",
]
