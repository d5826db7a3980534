"""Pictures of the masked bound: where it exceeds the evidence, and what it leaves of it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppvae.plots.canvas import COLORS, INK, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["likelihood_gaps", "not_a_bound"]


def not_a_bound(excess: Mapping[str, Tensor]) -> "Figure":
    """Draw how far objectives lie above the evidence: in a case by hand, and row by row.

    On the left two views x = (0, 3) of z ~ N(0, 1), each x_m ~ N(z, 1); the posterior of both is
    exact, that of the first view alone is off by d in the mean. The masked bound is then ln p(x) +
    2 d - 2 d^2, and its mean over x_2 ~ p(x_2|x_1) is ln p(x) - 2 d^2. On the right, histograms of
    objective - ln p(x), with the share of rows above 0.

    Args:
        excess: Objective - ln p(x) by its name, (N,) in nats.

    Example:
        >>> figure = not_a_bound({"masked": torch.tensor([-0.1, 0.2])})
        >>> figure.axes[1].get_legend().get_texts()[0].get_text()
        'masked: 50% above'
    """
    figure, (left, right) = new_figure(1, 2, width=9, height=3.4)
    d = torch.linspace(-0.4, 1.2, 200)
    left.plot(d, 2 * d - 2 * d**2, color=COLORS[0], label="this datum")
    left.plot(d, -2 * d**2, "--", color=COLORS[0], label="mean under the model")
    left.axhline(0, color=INK, linewidth=0.8)
    left.set(xlabel="error d of the one-view mean", ylabel="masked - ln p(x), nats")
    left.legend(frameon=False, fontsize=8)
    values = {name: e.detach().cpu().double().numpy() for name, e in excess.items()}
    pooled = np.concatenate([*values.values()])
    bins = np.linspace(pooled.min(), pooled.max(), 31)
    for color, (name, e) in zip(COLORS, values.items(), strict=False):
        label = f"{name}: {(e > 0).mean():.0%} above"
        right.hist(e, bins, color=color, alpha=0.6, label=label)
    right.axvline(0, color=INK, linewidth=0.8)
    right.set(xlabel="objective - ln p(x), nats", ylabel="rows")
    right.legend(frameon=False, fontsize=8)
    return figure


def likelihood_gaps(gaps: Mapping[str, Mapping[str, Sequence[float]]]) -> "Figure":
    """Draw the relative gaps of exact log likelihoods: a dot per run, a bar for their mean.

    Args:
        gaps: (LLH_MLE - LLH) / |LLH_MLE| of runs, by aggregation and by bound.

    Example:
        >>> figure = likelihood_gaps({"PoE": {"masked": [1e-5, 2e-5], "mixture": [2e-3]}})
        >>> [round(float(bar.get_height()), 6) for bar in figure.axes[0].patches]
        [1.5e-05, 0.002]
    """
    bounds = list(dict.fromkeys(bound for runs in gaps.values() for bound in runs))
    figure, (axes,) = new_figure(1, 1, width=1.2 * len(gaps) + 2.5, height=3.4)
    width = 0.8 / len(bounds)
    for color, (i, bound) in zip(COLORS, enumerate(bounds), strict=False):
        label = bound
        for place, runs in enumerate(gaps.values()):
            x = place + (i - (len(bounds) - 1) / 2) * width
            values = list(runs.get(bound, ()))
            if values:
                axes.bar(x, sum(values) / len(values), width, color=color, label=label)
                label = None  # once in the legend
                axes.plot([x] * len(values), values, ".", color=INK, markersize=4)
    axes.set_xticks(range(len(gaps)), list(gaps))
    axes.set(yscale="log", ylabel="relative gap of the log likelihood")
    axes.legend(frameon=False, fontsize=8)
    return figure
