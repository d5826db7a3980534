"""Variational guides: modules that sample a model's latents given the data, one file each."""

from ppvae.guides.epanechnikov import Epanechnikov
from ppvae.guides.exact import Exact
from ppvae.guides.flow import Flow
from ppvae.guides.full_rank import FullRank
from ppvae.guides.gaussian_mixture import GaussianMixture
from ppvae.guides.normal import Normal

__all__ = ["Epanechnikov", "Exact", "Flow", "FullRank", "GaussianMixture", "Normal"]
