"""Distributions that Pyro lacks, or has with a wrong gradient."""

from ppvae.distributions.mixture import MixtureOfDiagNormals

__all__ = ["MixtureOfDiagNormals"]
