"""Pictures of how training went, and of whether the weights can be trusted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ppvae.diagnostics import Pareto
from ppvae.plots.canvas import COLORS, INK, MUTED, new_figure
from ppvae.training import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pareto_k", "training_curves"]


def training_curves(histories: Mapping[str, History], column: str = "validation_elbo") -> "Figure":
    """Draw one column of several histories against the epoch, in nats per datum.

    Args:
        histories: By name, as `fit` returns them.
        column: Which record to draw.

    Raises:
        KeyError: If a history lacks the column, naming those it has.

    Example:
        >>> history = History([{"epoch": e, "loss": 3.0 - e, "seconds": 0.1} for e in range(3)])
        >>> training_curves({"normal": history}, "loss").axes[0].get_ylabel()
        'loss (nats per datum)'
    """
    figure, (axes,) = new_figure(1, 1, width=7, height=4)
    lows = []
    for color, (name, history) in zip(COLORS, histories.items(), strict=False):
        if len(history) and column not in history.records[-1]:
            raise KeyError(
                f"no {column!r} in the history {name!r}, but {list(history.records[-1])}"
            )
        values = history[column]
        axes.plot(history["epoch"], values, color=color, label=name, linewidth=1.6)
        lows.append(np.percentile(values, 10) if len(values) > 10 else min(values))
    if column == "validation_elbo" and lows:
        axes.set_ylim(bottom=min(lows))  # the first epochs would flatten the rest
    label = column.replace("_", " ")
    label = label[:-1] + "Q, no bound" if column in ("q", "validation_q") else label
    axes.set(xlabel="epoch", ylabel=f"{label} (nats per datum)")
    axes.legend(frameon=False)
    return figure


def pareto_k(tails: Mapping[str, Pareto]) -> "Figure":
    """Draw every datum's Pareto k, sorted, a panel per guide, with the limits it must respect.

    Args:
        tails: By guide, as `diagnostics.pareto_k` returns them.

    Example:
        >>> tail = Pareto(torch.zeros(3), torch.ones(3), 0.667)
        >>> pareto_k({"normal": tail}).axes[0].get_title()
        'normal'
    """
    figure, panels = new_figure(1, len(tails), width=2.4 * len(tails) + 1, height=3, sharey=True)
    for axes, color, (name, tail) in zip(panels, COLORS, tails.items(), strict=False):
        k = tail.k.cpu().sort().values.numpy()
        axes.scatter(range(len(k)), k, s=5, color=color, linewidths=0)
        axes.axhline(0.7, color=INK, linewidth=0.8)
        axes.axhline(tail.threshold, color=MUTED, linewidth=0.8, linestyle="--")
        axes.set(title=name, xlabel="data, sorted")
        axes.text(
            0.04, 0.94, f"{tail.share_bad:.1%} above 0.7", transform=axes.transAxes, fontsize=8
        )
    panels[0].set_ylabel("Pareto k")
    return figure
