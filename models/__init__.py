"""Generative models: modules that sample the story of the data, one file each."""

from ppvae.models.linear_gaussian import LinearGaussian
from ppvae.models.poisson import PoissonVAE
from ppvae.models.vae import VAE

__all__ = ["VAE", "LinearGaussian", "PoissonVAE"]
