"""The guide of compact support: a parabola in place of the Gaussian, in four variants."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ppvae import distributions
from ppvae.guides.amortized import Amortized
from ppvae.protocols import Encoder

__all__ = ["Epanechnikov"]


class Epanechnikov(Amortized):
    """Factorized posterior of Epanechnikov kernels, q(t) = 3/4 (1 - t^2) on [-1, 1].

        "normal"  z = m + r K                      for a Normal prior
        "box"     z = m + r K, |m| + r < B/2       for the prior U(-B/2, B/2)
        "smooth"  z = b (m + r K) + tau eps        of full support, eps ~ N(0, 1)
        "paper"   z = b (m + r K) + U              U ~ U(-B/2, B/2), the paper's own

    The first three give evidence bounds, the first two with the KL in closed form. Compact support
    has a price: importance weights of "normal" and "box" average to p(x) times the posterior mass
    within the support, and their Pareto k tends to 1/2, so that `IWELBO` is a bound but does not
    reach ln p(x); and the KL of "normal" to N(0, I) is at least 0.0462 nats per coordinate.

    "paper" gives no bound. Its prior is U(-B/2, B/2), which the draws leave whatever r is, so that
    the KL is infinite; the paper's penalty, `objectives.RadiusPenalty`, is another quantity, which
    falls with r. The site says so, and `log_weights`, `evidence` and `IWELBO` refuse. The model's
    prior must then be made with `validate_args=False`.

    Args:
        encoder: Maps the batch x, `(N, ...)`, to features `(N, encoder.out_features)`.
        latent_dim: The size D of the latent.
        variant: Which of the four.
        width: B, in units of z: sqrt(12) for "box", a prior of variance 1, and 0.1 for "paper".
        scale: b: 1 for "smooth", 100^(-2/9) = 0.3594 for "paper".
        noise: tau, for "smooth", in units of z: 0.1.
        min_radius: The smallest r, before b.
        **kwargs: As in `Amortized`.

    Sites:
        z: (N, D) the latent: real, of compact support but for "smooth"; pathwise gradients; KL to
            a Normal prior in closed form for "normal" and "box", to a Uniform one for "box".

    Raises:
        TypeError: If `encoder` has no `out_features`.
        ValueError: If the variant is unknown, takes no such option, or an option is not positive.

    References:
        Qin, Huang (2025), On Kernel-based Variational Autoencoder, arXiv:2405.12783.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.networks import MLP
        >>> guide = Epanechnikov(MLP(8, 16), latent_dim=2)
        >>> poutine.trace(guide).get_trace(torch.rand(5, 8)).nodes["z"]["value"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        encoder: Encoder,
        latent_dim: int,
        variant: Literal["normal", "box", "smooth", "paper"] = "normal",
        *,
        width: float | None = None,
        scale: float | None = None,
        noise: float | None = None,
        min_radius: float = 1e-6,
        **kwargs,
    ) -> None:
        given = {"width": width, "scale": scale, "noise": noise}
        kind = _kind(variant)
        options = {**kind.defaults, **{k: v for k, v in given.items() if v is not None}}
        if unknown := options.keys() - kind.defaults.keys():
            raise ValueError(
                f"the variant {variant!r} takes no {min(unknown)}, but "
                f"{sorted(kind.defaults) or 'no such option'}: leave it out, or choose another"
            )
        for name, value in {**options, "min_radius": min_radius}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, but is {value}")
        if variant == "box" and min_radius >= options["width"] / 2:
            raise ValueError(
                f"min_radius must be below half the width, {options['width'] / 2:g}, but is "
                f"{min_radius}"
            )
        posterior = partial(kind.posterior, min_radius=min_radius, **options)
        infer = {"weightless": WEIGHTLESS} if variant == "paper" else None
        super().__init__(encoder, posterior, 2 * latent_dim, infer=infer, **kwargs)
        with torch.no_grad():
            self.head.bias[latent_dim:] = kind.start


# an aggregate posterior scores each datum's draws under all others, and these lie outside
_kernel = partial(distributions.Epanechnikov, validate_args=False)
_boxed = partial(distributions.BoxedEpanechnikov, validate_args=False)


def normal(h: Tensor, min_radius: float) -> dist.Independent:
    """Return q(z|x) of "normal", of batch shape (N,), from the head's outputs (N, 2 D)."""
    loc, radius = h.chunk(2, dim=-1)  # (N, D) each
    return _kernel(loc, softplus(radius) + min_radius).to_event(1)


def box(h: Tensor, min_radius: float, width: float) -> dist.Independent:
    """Return q(z|x) of "box": no support leaves (-B/2, B/2), not by rounding either."""
    loc, radius = h.chunk(2, dim=-1)
    half = width / 2 * (1 - 1e-6)
    radius = min_radius + (half - min_radius) * radius.sigmoid()
    return _kernel((half - radius) * loc.tanh(), radius).to_event(1)


def smooth(h: Tensor, min_radius: float, scale: float, noise: float) -> dist.Independent:
    """Return q(z|x) of "smooth"."""
    loc, radius = h.chunk(2, dim=-1)
    radius = softplus(radius) + min_radius
    return distributions.SmoothedEpanechnikov(scale * loc, scale * radius, noise).to_event(1)


def paper(h: Tensor, min_radius: float, scale: float, width: float) -> dist.Independent:
    """Return q(z|x) of "paper"."""
    loc, radius = h.chunk(2, dim=-1)
    radius = softplus(radius) + min_radius
    return _boxed(scale * loc, scale * radius, width).to_event(1)


WEIGHTLESS = (
    "the draws of Epanechnikov's variant \"paper\" leave the prior's box, where the model has no "
    'density, and its objective is no bound; the variants "box" and "normal" have weights'
)

ONE = math.log(math.e - 1)  # softplus of it is 1


class _Kind(NamedTuple):
    posterior: Callable[..., dist.Independent]
    start: float  # of the radius, before softplus or sigmoid
    defaults: dict[str, float]


def _kind(variant: str) -> _Kind:
    match variant:
        case "normal":
            return _Kind(normal, ONE, {})
        case "box":  # wide kernels learn slowly
            return _Kind(box, -2.0, {"width": math.sqrt(12)})
        case "smooth":
            return _Kind(smooth, ONE, {"scale": 1.0, "noise": 0.1})
        case "paper":
            return _Kind(paper, ONE, {"scale": 100 ** (-2 / 9), "width": 0.1})
    raise ValueError(f"unknown variant {variant!r}: choose 'normal', 'box', 'smooth' or 'paper'")
