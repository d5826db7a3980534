"""Divergences between distributions, in closed form or between samples of them."""

from ppvae.divergences.coordinates import kl_per_coordinate

__all__ = ["kl_per_coordinate"]
