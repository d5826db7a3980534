"""Pictures of the Epanechnikov guides: densities, penalty beside KL, codes over their prior."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from pyro import poutine

from ppvae.distributions import SmoothedEpanechnikov
from ppvae.plots.canvas import COLORS, INK, MUTED, new_figure
from ppvae.protocols import Batch, Guide
from ppvae.weights import evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["codes_and_box", "densities", "penalty_and_kl"]


def densities(named: Mapping[str, dist.TorchDistribution], *, limit: float = 4.0) -> "Figure":
    """Draw densities of one variable: as they are, and their logarithms, where the tails show.

    Args:
        named: Distributions by name, of batch shape ().
        limit: How far from 0 to draw, in units of the variable.

    Example:
        >>> densities({"normal": dist.Normal(0.0, 1.0)}).axes[1].get_ylabel()
        'log density (nats)'
    """
    figure, panels = new_figure(1, 2, width=9, height=3.2)
    z = torch.linspace(-limit, limit, 2001)
    for color, (name, q) in zip(COLORS, named.items(), strict=False):
        inside = q.support.check(z)
        log_q = q.log_prob(torch.where(inside, z, q.mean)).where(inside, -torch.inf)
        panels[0].plot(z, log_q.exp(), color=color, label=name, linewidth=1.6)
        panels[1].plot(z, log_q, color=color, linewidth=1.6)
    panels[0].set(xlabel="z", ylabel="density")
    panels[1].set(xlabel="z", ylabel="log density (nats)", ylim=(-9, 0))
    figure.legend(loc="outside right center", frameon=False)
    return figure


def penalty_and_kl(
    *, width: float = 0.1, minibatch: int = 100, scale: float = 0.359381
) -> "Figure":
    """Draw the paper's penalty and the KL of a guide it is used with, against the radius r.

        3 B / (5 M r)    and    KL(b r K + B eps || N(0, B^2)),  eps ~ N(0, 1)

    The guide is the paper's for a Normal prior, centered, for which alone the KL is finite.

    Args:
        width: B, the scale of prior and noise.
        minibatch: M.
        scale: b.

    Example:
        >>> penalty_and_kl().axes[0].get_xlabel()
        'radius r'
    """
    radii = torch.logspace(-1, 1, 61, dtype=torch.float64)
    q = SmoothedEpanechnikov(0 * radii, scale * radii, width * torch.ones_like(radii))
    p = dist.Normal(0 * radii, width * torch.ones_like(radii))
    reach = scale * radii.max() + 9 * width
    z = torch.linspace(-1, 1, 4001, dtype=torch.float64)[:, None] * reach  # (4001, 61)
    log_q = q.log_prob(z)
    kl = torch.trapezoid(log_q.exp() * (log_q - p.log_prob(z)), z, dim=0)
    figure, (axes,) = new_figure(1, 1, width=6, height=3.6)
    penalty = 3 * width / (5 * minibatch * radii)
    axes.loglog(radii, kl, color=COLORS[0], label="KL of the guide to its prior", linewidth=1.6)
    axes.loglog(radii, penalty, color=COLORS[1], label="penalty 3B/(5Mr)", linewidth=1.6)
    axes.set(xlabel="radius r", ylabel="nats per coordinate")
    axes.legend(frameon=False, fontsize=8)
    return figure


def codes_and_box(
    guides: Mapping[str, Guide], batch: Batch, width: float, *, site: str = "z"
) -> "Figure":
    """Draw codes over the prior U(-B/2, B/2), in the two coordinates where they spread most.

    One draw per datum. The title counts those outside of the box in any coordinate.

    Args:
        guides: By name; D at least 2.
        batch: x, (N, ...).
        width: B, the side of the prior's box.
        site: The latent.

    Example:
        >>> from ppvae.guides import Epanechnikov
        >>> from ppvae.networks import MLP
        >>> guide = Epanechnikov(MLP(8, 16), latent_dim=3, variant="paper")
        >>> codes_and_box({"paper": guide}, torch.rand(50, 8), 1e-3).axes[0].get_title()
        'paper: 100% outside of the box'
    """
    from matplotlib.patches import Rectangle

    count = len(guides)
    figure, panels = new_figure(1, count, width=4.2 * count, height=4)
    for axes, color, (name, guide) in zip(panels, COLORS, guides.items(), strict=False):
        with evaluating(guide):
            z = poutine.trace(guide).get_trace(batch).nodes[site]["value"].cpu()
        first, second = z.var(0).topk(2).indices
        axes.scatter(z[:, first], z[:, second], s=4, color=color, linewidths=0)
        corner = (-width / 2, -width / 2)
        axes.add_patch(Rectangle(corner, width, width, fill=False, color=INK, linewidth=1.2))
        axes.annotate(
            "the prior", corner, (0.05, 0.95), textcoords="axes fraction", fontsize=8,
            color=INK, arrowprops={"arrowstyle": "-", "color": MUTED},
        )  # fmt: skip
        outside = float((z.abs() > width / 2).any(1).float().mean())
        axes.set_title(f"{name}: {outside:.0%} outside of the box", fontsize=10)
        axes.set(xlabel=f"z, coordinate {int(first) + 1}", ylabel=f"coordinate {int(second) + 1}")
        axes.set_aspect("equal", adjustable="datalim")
    return figure
