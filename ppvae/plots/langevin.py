"""Pictures of Langevin chains: their paths on a posterior, and what a few steps leave out."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppvae.langevin import LogJoint, langevin, still
from ppvae.plots.canvas import COLORS, INK, MUTED, new_figure
from ppvae.protocols import Batch, Guide, Model, rows_of
from ppvae.weights import evaluating, particles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["chain_paths", "posterior_draws", "short_runs"]

CELLS, COARSE = 161, 41  # a side of the grids


def posterior_draws(
    model: Model,
    guides: Mapping[str, Guide],
    batch: Batch,
    *,
    draws: int = 400,
    limit: float = 4.0,
    site: str = "z",
) -> "Figure":
    """Draw guides on the true posterior of the first datum, for two latents: a panel per guide.

    The shade is p(z|x), normalized on a grid; dots are draws of the guide. Titles say how far the
    draws' mean lies from the posterior's, in its standard deviations, and the ratio of variances.

    Args:
        model: Samples p(x, z), with a latent of two real coordinates.
        guides: By name.
        batch: x, (N, ...), of which the first is taken.
        draws: Of each guide.
        limit: Where the grid is first laid, -limit to limit.
        site: The latent.

    Raises:
        ValueError: If the latent has other than two coordinates.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2))
        >>> posterior_draws(model, {"exact": Exact(model)}, torch.ones(1, 2)).axes[0].get_xlabel()
        'z, coordinate 1'
    """
    datum, count = rows_of(batch, 0, 1), len(guides)
    grid = _grid(model, datum, limit)
    figure, panels = new_figure(1, count, width=2.9 * count, height=3.2, sharey=True)
    for axes, color, (name, guide) in zip(panels, COLORS, guides.items(), strict=False):
        with evaluating(guide):
            nodes = poutine.trace(particles(guide, draws)).get_trace(datum).nodes
        z = nodes[site]["value"].detach().cpu()[:, 0]
        _shade(axes, grid)
        axes.scatter(*z.T, s=3, color=color, linewidths=0)
        mean, variance = _moments(grid)
        off = ((z.mean(0) - mean) / variance.sqrt()).norm()
        ratio = (z.var(0) / variance).log().mean().exp()
        axes.set_title(f"{name}\nmean off by {off:.2f} sd, variance x {ratio:.2f}", fontsize=8)
    panels[0].set_ylabel("coordinate 2")
    return figure


def chain_paths(
    model: Model,
    runs: Mapping[str, Sequence[float]],
    batch: Batch,
    *,
    chains: int = 12,
    noise: float = 1.0,
    limit: float = 4.0,
) -> "Figure":
    """Draw Langevin chains on the true posterior of the first datum: a panel per run.

    Hollow dots are starts, drawn from the prior, the same in every panel; full ones are ends.

    Args:
        model: Samples p(x, z), with one latent of two real coordinates.
        runs: The step sizes of each run, by name.
        batch: x, (N, ...), of which the first is taken.
        chains: How many.
        noise: T.
        limit: Where the grid is first laid, -limit to limit.

    Raises:
        ValueError: If the latent has other than two coordinates.

    Example:
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.eye(2))
        >>> chain_paths(model, {"5 steps": [0.3] * 5}, torch.ones(1, 2)).axes[0].get_title()
        '5 steps'
    """
    datum = rows_of(batch, 0, 1)
    grid, joint = _grid(model, datum, limit), LogJoint(model, datum)
    figure, panels = new_figure(1, len(runs), width=3 * len(runs), height=3.1, sharey=True)
    with evaluating(model), still(model):
        with pyro.plate("chains", chains, dim=-2):
            start = joint.draw()
        for axes, (name, steps) in zip(panels, runs.items(), strict=True):
            with pyro.validation_enabled(False):  # a chain that diverges is worth a picture
                walk = langevin(joint, start, steps, noise=noise, keep_path=True)
            path = walk.path[:, :, 0].cpu()
            _shade(axes, grid, wide=limit)
            for chain, color in zip(path.unbind(1), COLORS * chains, strict=False):
                axes.plot(*chain.T, color=color, linewidth=0.7, alpha=0.8)
                axes.scatter(*chain[0], s=14, facecolors="none", edgecolors=color, linewidths=0.8)
                axes.scatter(*chain[-1], s=14, color=color, linewidths=0, zorder=3)
            axes.set_title(name)
    panels[0].set_ylabel("coordinate 2")
    return figure


def short_runs(
    *, precision: float = 5.0, mode: float = 1.0, steps: int = 20, chains: int = 100_000
) -> "Figure":
    """Draw what a few Langevin steps leave, on a Gaussian posterior: lines exact, dots of chains.

    Left: KL(q_K || p(z|x)) against the number of steps K, from the prior N(0, 1). Right, after
    `steps` steps, against their size s: the same, and the gap of two bounds, of the last step's
    density ("step") and of the whole map's ("transport"). Their least is where each would have s.

    Args:
        precision: Of the posterior.
        mode: Its mean.
        steps: K of the right panel.
        chains: How many for the dots.

    Example:
        >>> short_runs(chains=100).axes[0].get_xlabel()
        'steps K'
    """
    figure, (left, right) = new_figure(1, 2, width=9, height=3.4)
    counts = np.arange(1, 101)
    for color, s in zip(COLORS, (0.1, 0.2, 0.4), strict=False):
        lines = [_divergence(s, k, precision, mode) for k in counts]
        left.plot(counts, lines, color=color, linewidth=1.5, label=f"s = {s}")
        path = langevin(
            torch.distributions.Normal(mode, precision**-0.5).log_prob,
            torch.randn(chains),
            [s] * 100,
            keep_path=True,
        ).path
        for k in (1, 2, 5, 10, 20, 50, 100):
            mean, variance = float(path[k].mean()), float(path[k].var())
            left.plot(k, _kl(mean, variance, precision, mode), "o", color=color, markersize=4)
    left.set(xlabel="steps K", ylabel="KL to the posterior (nats)", xscale="log", yscale="log")
    left.legend(frameon=False, fontsize=8)
    sizes = np.linspace(0.02, 1.98 * precision**-0.5, 400)
    for (name, gap), color in zip(_gaps(precision, mode, steps).items(), COLORS, strict=False):
        values = np.array([gap(s) for s in sizes])
        right.plot(sizes, values, color=color, linewidth=1.5, label=name)
        best = int(values.argmin())
        right.plot(sizes[best], values[best], "o", color=color, markersize=5)
    right.set(xlabel="step size s", ylabel="nats", yscale="log", ylim=(1e-3, 1e2))
    right.legend(frameon=False, fontsize=8)
    return figure


def _gaps(precision: float, mode: float, steps: int) -> dict:
    def step(s: float) -> float:
        variance = _moments_after(s, steps, precision, mode)[1]
        gap = _divergence(s, steps, precision, mode)
        return gap + math.log(variance / s**2) / 2

    def transport(s: float) -> float:
        a = 1 - s**2 * precision / 2
        variance = _moments_after(s, steps, precision, mode)[1]
        gap = _divergence(s, steps, precision, mode)
        return gap + math.log(variance) / 2 - steps * math.log(max(abs(a), 1e-12))

    return {
        "KL of where chains end": lambda s: _divergence(s, steps, precision, mode),
        'gap of "step"': step,
        'gap of "transport"': transport,
    }


def _moments_after(s: float, steps: int, precision: float, mode: float) -> tuple[float, float]:
    a, mean, variance = 1 - s**2 * precision / 2, 0.0, 1.0
    for _ in range(steps):
        mean, variance = mode + a * (mean - mode), a**2 * variance + s**2
    return mean, variance


def _divergence(s: float, steps: int, precision: float, mode: float) -> float:
    return _kl(*_moments_after(s, steps, precision, mode), precision, mode)


def _kl(mean: float, variance: float, precision: float, mode: float) -> float:
    lam_v = precision * variance
    return (lam_v + precision * (mean - mode) ** 2 - 1 - math.log(lam_v)) / 2


class _Grid:
    """A posterior of two latents on the grid where it has its mass."""

    def __init__(self, joint: LogJoint, low: Tensor, high: Tensor, cells: int) -> None:
        self.axes = [
            torch.linspace(float(a), float(b), cells) for a, b in zip(low, high, strict=True)
        ]
        points = torch.cartesian_prod(*self.axes)[:, None]  # (cells^2, 1, 2)
        log_p = joint(points.to(joint.log_prior.device)).detach().cpu()[:, 0]
        self.points, self.mass = points[:, 0], log_p.softmax(0)


def _grid(model: Model, datum: Batch, limit: float) -> _Grid:
    joint = LogJoint(model, datum)
    with evaluating(model), still(model), poutine.block():
        if joint.draw().z.shape[-1] != 2:
            raise ValueError(
                f"a plane takes two latent coordinates, but the model has {list(joint.sites)} of "
                f"{joint.draw().z.shape[-1]} in all"
            )
        wide = torch.full((2,), limit)
        rough = _Grid(joint, -wide, wide, COARSE)
        mean, variance = _moments(rough)
        reach = 5 * variance.sqrt() + 4 * limit / COARSE
        return _Grid(joint, mean - reach, mean + reach, CELLS)


def _moments(grid: _Grid) -> tuple[Tensor, Tensor]:
    mean = grid.mass @ grid.points
    return mean, grid.mass @ (grid.points - mean).square()


def _shade(axes: "Axes", grid: _Grid, wide: float | None = None) -> None:
    """Shade the density, with lines around 50 and 95 percent of the mass."""
    density = grid.mass.reshape(CELLS, CELLS).T.numpy()
    ordered = np.sort(density.ravel())[::-1]
    levels = [ordered[np.searchsorted(ordered.cumsum(), share)] for share in (0.95, 0.5)]
    x, y = (axis.numpy() for axis in grid.axes)
    axes.contourf(x, y, density, levels=[*levels, density.max() * 1.01], cmap="Greys", alpha=0.5)
    axes.contour(x, y, density, levels=levels, colors=[MUTED, INK], linewidths=0.7)
    axes.set_xlabel("z, coordinate 1")
    if wide is not None:
        axes.set(xlim=(-wide, wide), ylim=(-wide, wide))
