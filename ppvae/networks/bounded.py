"""Maps from a network's outputs to positive numbers that cannot run away."""

from torch import Tensor

__all__ = ["bounded_exp"]


def bounded_exp(u: Tensor, bound: float = 5.3) -> Tensor:
    """Return exp(bound tanh(u / bound)): exp near 0, within exp(+- bound) far away.

    As a guide's `scale`, it learns the scale's logarithm, and neither vanishes nor overflows.

    Args:
        u: Any shape.
        bound: Of the logarithm; 5.3 for scales within 0.005 and 200.

    References:
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473, whose code
        bounds log scales so.

    Example:
        >>> bounded_exp(torch.tensor([-100.0, 0.0, 100.0]))
        tensor([4.9916e-03, 1.0000e+00, 2.0034e+02])
    """
    return (bound * (u / bound).tanh()).exp()
