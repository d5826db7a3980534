"""Pictures of training, of a model and of its guides: each function returns a matplotlib Figure.

Nothing is shown or saved, and no figure stays open: a notebook displays what a cell returns, a
script calls `figure.savefig`. A mapping from names to things is drawn in one figure, a color per
name. For a tree of draws use ArviZ's own plots on `from_pyro_svi`.
"""

from ppvae.plots.dictionary import dictionary, rate_histograms
from ppvae.plots.epanechnikov import codes_and_box, densities, penalty_and_kl
from ppvae.plots.images import prior_samples, reconstructions
from ppvae.plots.infovae import aggregate_densities, penalty_noise, spread_by_size
from ppvae.plots.langevin import chain_paths, posterior_draws, short_runs
from ppvae.plots.latents import aggregate_posterior, kl_per_dimension, latent_map
from ppvae.plots.masked_bound import likelihood_gaps, not_a_bound
from ppvae.plots.multimodal import cross_generation, kl_to_mixture
from ppvae.plots.population import population_variances, rate_distortion
from ppvae.plots.sparse_coding import error_by_sparsity, relaxation
from ppvae.plots.verdicts import pareto_k, training_curves

__all__ = [
    "aggregate_densities",
    "aggregate_posterior",
    "chain_paths",
    "codes_and_box",
    "cross_generation",
    "densities",
    "dictionary",
    "error_by_sparsity",
    "kl_per_dimension",
    "kl_to_mixture",
    "latent_map",
    "likelihood_gaps",
    "not_a_bound",
    "pareto_k",
    "penalty_and_kl",
    "penalty_noise",
    "population_variances",
    "posterior_draws",
    "prior_samples",
    "rate_distortion",
    "rate_histograms",
    "reconstructions",
    "relaxation",
    "short_runs",
    "spread_by_size",
    "training_curves",
]
