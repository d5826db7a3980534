"""Divergences between distributions, in closed form or between samples of them."""

from ppvae.divergences.coordinates import kl_per_coordinate
from ppvae.divergences.critic import Critic
from ppvae.divergences.mmd import mmd
from ppvae.divergences.mmd_gaussian import mmd_gaussian
from ppvae.divergences.stein import stein, svgd

__all__ = ["Critic", "kl_per_coordinate", "mmd", "mmd_gaussian", "stein", "svgd"]
