"""Pictures of a population: its variances by coordinate, and what its rate buys."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ppvae.diagnostics import PopulationMoments
from ppvae.plots.canvas import COLORS, INK, MUTED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["population_variances", "rate_distortion"]

Point = tuple[str, float, float]  # label, rate, distortion


def population_variances(
    moments: Mapping[str, PopulationMoments], *, dead: float = 0.01
) -> "Figure":
    """Draw histograms of V_d and S_d, a column per objective, with the prior's variance of 1.

    Args:
        moments: By objective, as `diagnostics.population_moments` returns them.
        dead: Coordinates with V_d below are counted as dead.

    Example:
        >>> one = torch.ones(4)
        >>> figure = population_variances({"ELBO": PopulationMoments(0 * one, 0 * one, one, one)})
        >>> [axes.get_title() for axes in figure.axes]
        ['ELBO', '']
    """
    count = len(moments)
    figure, panels = new_figure(2, count, width=2.4 * count + 1, height=4, sharey=True)
    most = max(float(m.total_variance.max()) for m in moments.values())
    bins = np.linspace(0, max(1.25, 1.05 * most), 26)
    for column, (name, m) in enumerate(moments.items()):
        color = COLORS[column % len(COLORS)]
        for axes, variance in (
            (panels[column], m.variance_of_means),
            (panels[count + column], m.total_variance),
        ):
            axes.hist(variance.cpu().clamp(min=0).numpy(), bins, color=color)
            axes.axvline(1, color=INK, linewidth=0.8)
        gone = int((m.variance_of_means < dead).sum())
        size = len(m.variance_of_means)
        panels[column].set(title=name, xlabel="$V_d$, of the means")
        panels[column].text(
            *(0.96, 0.9, f"{gone} of {size} dead"),
            transform=panels[column].transAxes,
            fontsize=8,
            ha="right",
        )
        panels[count + column].set_xlabel("$S_d$, in total")
    for axes in panels[::count]:
        axes.set_ylabel("coordinates")
    return figure


def rate_distortion(curves: Mapping[str, Sequence[Point]]) -> "Figure":
    """Draw the reconstruction's cost against the rate, a labeled point per run, a line per curve.

    Lower left is better: a run that lies on another curve has only traded one for the other. Along
    a line of slope -1 the ELBO is constant: the dotted one goes through the best.

    Args:
        curves: Runs by name, (label, rate, distortion) each: mean KL(q(z|x) || p(z)) and mean
            -ln p(x|z), both in nats per datum.

    Example:
        >>> figure = rate_distortion({"beta": [("0.2", 30.0, 95.0), ("1", 14.0, 112.0)]})
        >>> figure.axes[0].get_xlabel()
        'rate (nats per datum)'
    """
    figure, (axes,) = new_figure(1, 1, width=6, height=4)
    for color, (name, points) in zip(COLORS, curves.items(), strict=False):
        labels, rates, distortions = zip(*sorted(points, key=lambda point: point[1]), strict=True)
        axes.plot(rates, distortions, "o-", color=color, label=name, markersize=4, linewidth=1.2)
        for label, rate, distortion in zip(labels, rates, distortions, strict=True):
            axes.annotate(
                *(label, (rate, distortion)),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=7,
                color=color,
            )
    best = min(
        ((r, d) for points in curves.values() for _, r, d in points), key=lambda point: sum(point)
    )
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}  # of the runs, not of the line
    axes.axline(best, slope=-1, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set(xlabel="rate (nats per datum)", ylabel="reconstruction (nats per datum)", **limits)
    axes.legend(frameon=False)
    return figure
