"""Chains that follow the gradient of a log density: for guides, priors and gold posteriors.

The chain knows no model; `LogJoint` makes a density of one.
"""

from ppvae.langevin.adjusted import Draws, Move, hmc, sample
from ppvae.langevin.annealed import bridge, transport
from ppvae.langevin.chain import ChainError, LogDensity, Point, Walk, langevin, point
from ppvae.langevin.joint import LogJoint, still

__all__ = [
    "ChainError",
    "Draws",
    "LogDensity",
    "LogJoint",
    "Move",
    "Point",
    "Walk",
    "bridge",
    "hmc",
    "langevin",
    "point",
    "sample",
    "still",
    "transport",
]
