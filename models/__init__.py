"""Generative models: modules that sample the story of the data, one file each."""

from ppvae.models.linear_gaussian import LinearGaussian
from ppvae.models.modal_latents import ModalLatents
from ppvae.models.multimodal import Multimodal
from ppvae.models.poisson import PoissonVAE
from ppvae.models.sentence import Sentence
from ppvae.models.vae import VAE

__all__ = ["VAE", "LinearGaussian", "ModalLatents", "Multimodal", "PoissonVAE", "Sentence"]
