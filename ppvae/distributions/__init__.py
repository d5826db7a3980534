"""Distributions that Pyro lacks, or has with a wrong gradient."""

from ppvae.distributions.boxed_epanechnikov import BoxedEpanechnikov
from ppvae.distributions.epanechnikov import Epanechnikov
from ppvae.distributions.mixture import MixtureOfDiagNormals
from ppvae.distributions.moe_prior import MoEPrior, VariationalMoEPrior
from ppvae.distributions.relaxed_one_hot import RelaxedOneHot
from ppvae.distributions.relaxed_poisson import RelaxedPoisson, event_window, softclamp
from ppvae.distributions.smoothed_epanechnikov import SmoothedEpanechnikov
from ppvae.distributions.token_sequence import TokenDecoder, TokenSequence

__all__ = [
    "BoxedEpanechnikov",
    "Epanechnikov",
    "MixtureOfDiagNormals",
    "MoEPrior",
    "RelaxedOneHot",
    "RelaxedPoisson",
    "SmoothedEpanechnikov",
    "TokenDecoder",
    "TokenSequence",
    "VariationalMoEPrior",
    "event_window",
    "softclamp",
]
