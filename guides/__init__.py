"""Variational guides: modules that sample a model's latents given the data, one file each."""

from ppvae.guides.categorical import Categorical
from ppvae.guides.epanechnikov import Epanechnikov
from ppvae.guides.exact import Exact
from ppvae.guides.flow import Flow
from ppvae.guides.full_rank import FullRank
from ppvae.guides.gaussian_mixture import GaussianMixture
from ppvae.guides.iterative_poisson import IterativePoisson
from ppvae.guides.langevin import Langevin
from ppvae.guides.laplace import Laplace
from ppvae.guides.modal_latents import ModalLatents
from ppvae.guides.multimodal import Multimodal
from ppvae.guides.normal import Normal
from ppvae.guides.poisson import Poisson

__all__ = [
    "Categorical",
    "Epanechnikov",
    "Exact",
    "Flow",
    "FullRank",
    "GaussianMixture",
    "IterativePoisson",
    "Langevin",
    "Laplace",
    "ModalLatents",
    "Multimodal",
    "Normal",
    "Poisson",
]
