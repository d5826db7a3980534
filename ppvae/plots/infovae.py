"""Pictures of the aggregate posterior under a divergence, and of what the divergence costs."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from pyro import poutine
from torch import Tensor

from ppvae.plots.canvas import COLORS, INK, MUTED, new_figure
from ppvae.protocols import Guide
from ppvae.weights import evaluating, latent_sites

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["aggregate_densities", "penalty_noise", "spread_by_size"]

Spread = Mapping[int, tuple[float, float]]  # by the number of training data: train, test


def spread_by_size(
    spreads: Mapping[str, Spread], published: Mapping[str, Spread] | None = None
) -> "Figure":
    """Draw ln det of the aggregate posterior's covariance against the number of training data.

    Solid on the training data, dashed on test data; published values are hollow points. The ideal,
    a prior N(0, I), is 0; above, posteriors lie apart and prior samples fall between them.

    Args:
        spreads: By objective, ln det by number of training data, on (train, test).
        published: The same, drawn in the color of the objective of that name. NaN is left out.

    Example:
        >>> figure = spread_by_size({"ELBO": {500: (6.8, 2.2), 50_000: (3.0, 2.4)}})
        >>> figure.axes[0].get_xlabel()
        'training images'
    """
    figure, panels = new_figure(1, 2, width=8, height=3.6, sharey=True)
    colors = dict(zip(spreads, COLORS, strict=False))
    for column, (axes, part) in enumerate(zip(panels, ("training", "test"), strict=True)):
        axes.axhline(0, color=INK, linewidth=0.8)
        for name, spread in spreads.items():
            values = [pair[column] for pair in spread.values()]
            axes.plot(list(spread), values, "o-", color=colors[name], label=name, markersize=4)
        for name, spread in (published or {}).items():
            values = [pair[column] for pair in spread.values()]
            style = {"mfc": "none", "markersize": 7, "color": colors.get(name, MUTED)}
            axes.plot(list(spread), values, "s", label=f"{name}, published", **style)
        axes.set(xscale="log", xlabel="training images", title=f"codes of {part} images")
    panels[0].set_ylabel("ln det Cov of sampled codes")
    panels[-1].legend(frameon=False, fontsize=8)
    return figure


def penalty_noise(
    noise: Mapping[str, tuple[float, float]], cost: Mapping[str, tuple[float, float]]
) -> "Figure":
    """Draw how noisy a penalty's gradient is, and what the trained pairs pay for it.

    Args:
        noise: By estimator, the norms of the gradient's mean and of its standard deviation from
            batch to batch, in one unit.
        cost: By estimator, -E ln p(x|z) of test data in nats, and ln det of the covariance of
            their codes.

    Example:
        >>> figure = penalty_noise({"sampled": (1.0, 9.0)}, {"sampled": (157.0, 0.1)})
        >>> [axes.get_title() for axes in figure.axes]
        ['gradient of the penalty', 'what it costs']
    """
    height = 0.34 * max(len(noise), len(cost)) + 1.3
    figure, (left, right) = new_figure(1, 2, width=9, height=height)
    for place, pair in enumerate(noise.values()):
        left.plot(pair, [place, place], color=MUTED, linewidth=1, zorder=0)
    for index, label in enumerate(("mean", "s.d. over batches")):
        values = [pair[index] for pair in noise.values()]
        left.scatter(values, range(len(noise)), color=COLORS[index], s=28, label=label)
    left.set(xlabel="norm (nats per parameter unit)", title="gradient of the penalty")
    left.set_xlim(left=0)
    left.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.1), ncols=2)
    values = [pair[0] for pair in cost.values()]
    right.scatter(values, range(len(cost)), color=COLORS[2], s=28)
    for place, (value, spread) in enumerate(cost.values()):
        right.annotate(
            f"{value:.1f}  (ln det {spread:+.2f})",
            (value, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    right.set(xlabel="reconstruction of test data (nats)", title="what it costs")
    right.margins(x=0.6)
    for axes, names in ((left, noise), (right, cost)):
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
    return figure


def aggregate_densities(
    guides: Mapping[str, Guide],
    batch: Tensor,
    *,
    site: str = "z",
    limits: Sequence[float] = (-3.5, 3.5),
) -> "Figure":
    """Draw each datum's posterior and their mean over the prior N(0, 1), for one latent.

    Args:
        guides: By name; their latent is (N, 1) and has a density.
        batch: x, (N, ...), a few data.
        site: The latent.
        limits: The range of z.

    Raises:
        ValueError: If the latent has more than one coordinate.

    Example:
        >>> from ppvae.guides import Normal
        >>> from ppvae.networks import MLP
        >>> guide = Normal(MLP(1, 8), latent_dim=1)
        >>> len(aggregate_densities({"normal": guide}, torch.tensor([[-1.0], [1.0]])).axes)
        1
    """
    figure, panels = new_figure(1, len(guides), width=3.2 * len(guides), height=3, sharey=True)
    z = torch.linspace(*limits, 400, dtype=batch.dtype, device=batch.device)
    prior = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    for axes, color, (name, guide) in zip(panels, COLORS, guides.items(), strict=False):
        with evaluating(guide):
            q = latent_sites(poutine.trace(guide).get_trace(batch))[site]["fn"]
            if q.event_shape != (1,):
                raise ValueError(
                    f"site {site!r} has events of shape {tuple(q.event_shape)}, where one "
                    "coordinate can be drawn: see aggregate_posterior for more"
                )
            each = q.log_prob(z[:, None, None].expand(-1, len(batch), 1)).exp()  # (400, N)
        axes.fill_between(z.cpu(), prior.cpu(), color=MUTED, alpha=0.25, linewidth=0)
        axes.plot(z.cpu(), each.cpu() / len(batch), color=color, linewidth=0.9, linestyle="--")
        axes.plot(z.cpu(), each.mean(1).cpu(), color=color, linewidth=1.8)
        axes.set(title=name, xlabel="z")
    panels[0].set_ylabel("density")
    return figure
