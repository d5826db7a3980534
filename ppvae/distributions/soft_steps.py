"""Soft steps: g rises from 0 to 1, and g' with it. What relaxes the counting of arrivals."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SoftStep", "soft_step"]


class SoftStep(NamedTuple):
    """A soft step.

    Attributes:
        values: Maps x to (g(x), g'(x)).
        reach: g is 0 before -reach and 1 after reach; up to e^-14 for the sigmoid.
    """

    values: Callable[[Tensor], tuple[Tensor, Tensor]]
    reach: float


def soft_step(name: str) -> SoftStep:
    """Return the soft step of a name.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> [g.tolist() for g in soft_step("cubic").values(torch.tensor([-1.0, 0.0, 1.0]))]
        [[0.0, 0.5, 1.0], [0.0, 0.75, 0.0]]
    """
    match name:
        case "cubic":
            return SoftStep(_cubic, 1.0)
        case "sigmoid":
            return SoftStep(_sigmoid, 14.0)
        case "linear":
            return SoftStep(_linear, 1.0)
        case "quintic":
            return SoftStep(_quintic, 1.0)
        case "cosine":
            return SoftStep(_cosine, 1.0)
    raise ValueError(
        f"unknown kernel {name!r}: choose 'cubic', 'sigmoid', 'linear', 'quintic' or 'cosine'"
    )


def _unit(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp_(0, 1)


def _linear(x: Tensor) -> tuple[Tensor, Tensor]:
    return _unit(x), torch.full_like(x, 0.5)


def _cubic(x: Tensor) -> tuple[Tensor, Tensor]:
    u = _unit(x)
    return u * u * (3 - 2 * u), 3 * u * (1 - u)


def _quintic(x: Tensor) -> tuple[Tensor, Tensor]:
    u = _unit(x)
    return u**3 * (10 - u * (15 - 6 * u)), 15 * (u * (1 - u)).square()


def _cosine(x: Tensor) -> tuple[Tensor, Tensor]:
    u = math.pi * _unit(x)
    return (1 - u.cos()) / 2, math.pi / 4 * u.sin()


def _sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    g = x.sigmoid()
    return g, g * (1 - g)
