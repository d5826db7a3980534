"""Pictures of sparse coding by counts: what sparsity costs, and what relaxing the counts does."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ppvae.distributions.soft_steps import soft_step
from ppvae.plots.canvas import COLORS, INK, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["error_by_sparsity", "relaxation"]

Point = tuple[str, float, float]  # label, lifetime sparsity, error


def error_by_sparsity(
    curves: Mapping[str, Sequence[Point]], published: Mapping[str, Sequence[Point]] | None = None
) -> "Figure":
    """Draw the error of reconstructions against the sparsity of codes, a labeled point per run.

    Lower right is better. Of two curves through one dictionary, the height between them is what
    their ways to a code differ by: the amortization gap, if one is an encoder.

    Args:
        curves: Runs by name, (label, sparsity, error) each: `diagnostics.lifetime_sparsity`,
            averaged over units, and |x - Phi m|^2 per datum.
        published: Others' by the same names, dashed and hollow.

    Example:
        >>> figure = error_by_sparsity({"LCA": [("0.5", 0.8, 40.0), ("1", 0.9, 60.0)]})
        >>> figure.axes[0].get_xlabel()
        'lifetime sparsity'
    """
    figure, (axes,) = new_figure(1, 1, width=7, height=4.6)
    published = published or {}
    colors = dict(zip(dict.fromkeys([*curves, *published]), COLORS, strict=False))
    for name, points in curves.items():
        _curve(axes, points, name, color=colors[name], marker="o", linestyle="-")
    for name, points in published.items():
        style = {"marker": "s", "linestyle": "--", "mfc": "none", "alpha": 0.7}
        _curve(axes, points, f"{name}, published", color=colors[name], **style)
    axes.set(xlabel="lifetime sparsity", ylabel="$|x - \\Phi m|^2$ per datum", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    return figure


def relaxation(
    kernels: Sequence[str] = ("cubic", "sigmoid", "linear"),
    temperatures: Sequence[float] = tuple(np.geomspace(0.02, 1, 25)),
) -> "Figure":
    """Draw what temperature does to relaxed counts: mean, variance, and noise of the gradient.

        E z / lam = int g dt,   Var z / lam = int g^2 dt,   lam Var dz/dlam = int (g' t / T)^2 dt

    with g = g((1 - t) / T), over t > 0, by quadrature. Counts have 1, 1, and no gradient.

    Args:
        kernels: g by name, as in `RelaxedPoisson`.
        temperatures: T > 0.

    Raises:
        ValueError: If a kernel is unknown.

    References:
        A hitchhiker's guide to Poisson gradient estimation (2026), arXiv:2602.03896.

    Example:
        >>> figure = relaxation(["linear"], [0.5, 1.0])
        >>> [round(value, 3) for value in figure.axes[1].lines[0].get_ydata().tolist()]
        [0.833, 0.667]
    """
    figure, panels = new_figure(1, 3, width=10, height=3)
    for color, kernel in zip(COLORS, kernels, strict=False):
        rows = zip(*(_moments(kernel, float(T)) for T in temperatures), strict=True)
        for axes, values in zip(panels, rows, strict=True):
            axes.plot(temperatures, values, color=color, label=kernel)
    titles = ("$E\\,z / \\lambda$", "Var $z / \\lambda$", "$\\lambda$ Var $dz / d\\lambda$")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xscale="log", xlabel="temperature T", title=title)
    for axes in panels[:2]:
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":", label="counts")
    panels[2].set_yscale("log")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _moments(kernel: str, temperature: float, points: int = 20_001) -> tuple[float, float, float]:
    """Return the integrals: 1 up to the window where g changes, by quadrature within it."""
    step = soft_step(kernel)
    start, end = max(0.0, 1 - step.reach * temperature), 1 + step.reach * temperature
    t = torch.linspace(start, end, points, dtype=torch.float64)
    g, slope = step.values((1 - t) / temperature)
    integrals = (g, g.square(), (slope * t / temperature).square())
    mean, variance, noise = (float(torch.trapezoid(values, t)) for values in integrals)
    return start + mean, start + variance, noise


def _curve(axes: "Axes", points: Sequence[Point], name: str, **style) -> None:
    labels, sparsities, errors = zip(*sorted(points, key=lambda point: point[1]), strict=True)
    axes.plot(sparsities, errors, label=name, markersize=4, linewidth=1.2, **style)
    for label, *place in zip(labels, sparsities, errors, strict=True):
        options = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 6.5}
        axes.annotate(label, tuple(place), color=style["color"], **options)
