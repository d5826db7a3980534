"""Pictures of several modalities: each generated from each, and what it costs to differ."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ppvae.diagnostics import Coherence, generate
from ppvae.diagnostics.samples.features import image_shape
from ppvae.distributions import MoEPrior, VariationalMoEPrior
from ppvae.plots.canvas import COLORS, INK, MUTED, new_figure
from ppvae.protocols import Batch, Guide, Model, leaves, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["cross_generation", "kl_to_mixture"]


def cross_generation(
    model: Model,
    guide: Guide,
    batch: Batch,
    *,
    images: Mapping[str, Sequence[int]] | None = None,
    count: int = 8,
    coherence: Coherence | None = None,
) -> "Figure":
    """Draw each modality generated from each: a row per given one, a column per generated one.

    The first column holds what is given; the others the likelihood's means at one draw of the
    latent. Random numbers are drawn from torch's global generators.

    Args:
        model: With a method `decode`, as in `diagnostics.coherence`.
        guide: With a method `joint`, likewise.
        batch: x, (N, ...) by name, of which the first are drawn.
        images: The shapes (C, H, W) by name, of those to draw; all by default, read off the batch
            or taken for squares.
        count: How many data to draw.
        coherence: Of the same pair: its accuracies are written over the panels.

    Raises:
        ValueError: If a modality has no image shape, naming the argument.

    Example:
        >>> from ppvae.guides import ModalLatents as Guide
        >>> from ppvae.models import ModalLatents
        >>> from ppvae.networks import MLP
        >>> guide = Guide({"a": MLP(16, 8), "b": MLP(9, 8)}, latent_dim=2)
        >>> model = ModalLatents({"a": MLP(2, 16), "b": MLP(2, 9)}, latent_dim=2, guide=guide)
        >>> batch = {"a": torch.rand(9, 16), "b": torch.rand(9, 9)}
        >>> len(cross_generation(model, guide, batch).axes)  # 2 rows of the given and 2 generated
        6
    """
    some = leaves(rows_of(batch, 0, count))
    names = list(some if images is None else images)
    shapes = {n: image_shape(some[n], None if images is None else images[n]) for n in names}
    across, columns = min(4, count), 1 + len(names)
    down = -(-min(count, len(some[names[0]])) // across)
    height = max(shape[1] / shape[2] for shape in shapes.values()) * down / across
    figure, panels = new_figure(
        len(names), columns, width=2.2 * columns, height=(2.2 * height + 0.25) * len(names)
    )
    for row, given in enumerate(names):
        made = generate(model, guide, some, [given])
        for column, name in enumerate([given, *names]):
            axes = panels[row * columns + column]
            _show(axes, (made[name] if column else some[given]), shapes[name], across)
            title = f"{given} given" if column == 0 else f"{given} to {name}"
            if coherence is not None and column:
                a, b = coherence.names.index(given), coherence.names.index(name)
                title += f": {float(coherence.matrix[a, b]):.2f}"
            axes.set_title(title, loc="left", fontsize=8, color=INK, pad=2)
    return figure


def kl_to_mixture(furthest: float = 5.0, count: int = 101) -> "Figure":
    """Draw what one of two posteriors pays to be apart, N(0, 1) and N(d, 1), and how it is pulled.

    Left: KL(q || h) to their mixture h, by quadrature; the variational bound on it; the mean of
    the two KLs, d^2 / 4. Right: their slopes by d. The first two end at ln 2, where nothing pulls.

    Args:
        furthest: The largest distance d.
        count: How many distances are computed.

    Raises:
        ValueError: If `furthest` is not positive.

    Example:
        >>> left, right = kl_to_mixture().axes
        >>> [line.get_label() for line in left.lines][:3]
        ['KL(q || h)', 'variational', 'pairwise']
    """
    if not furthest > 0:
        raise ValueError(f"furthest must be positive, but is {furthest}")
    d = torch.linspace(0, furthest, count, dtype=torch.float64).requires_grad_()
    loc = torch.stack([torch.zeros_like(d), d], 1).unsqueeze(-1)  # (count, M = 2, 1)
    q = dist.Normal(loc[:, 0], torch.ones_like(loc[:, 0])).to_event(1)
    there = torch.ones(count, 2, dtype=torch.bool)
    pairwise, variational = (
        kind.of(loc, torch.ones_like(loc), there) for kind in (MoEPrior, VariationalMoEPrior)
    )
    z = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None, None]
    log_q = q.log_prob(z)
    exact = torch.trapezoid(log_q.exp() * (log_q - pairwise.log_prob(z)), z[:, 0, 0], dim=0)
    costs = {
        "KL(q || h)": exact,
        "variational": kl_divergence(q, variational),
        "pairwise": kl_divergence(q, pairwise),
    }
    figure, (left, right) = new_figure(1, 2, width=9, height=3.2)
    for color, (name, cost) in zip(COLORS, costs.items(), strict=False):
        (slope,) = torch.autograd.grad(cost.sum(), d, retain_graph=True)
        left.plot(d.detach(), cost.detach(), color=color, label=name)
        right.plot(d.detach(), slope, color=color)
    left.axhline(math.log(2), color=MUTED, linewidth=1, linestyle=":", label="ln 2")
    left.set(title="cost", xlabel="distance d", ylabel="nats", ylim=(0, 2))
    right.set(title="pull", xlabel="distance d", ylabel="nats per d", ylim=(0, 1))
    left.legend(frameon=False, fontsize=8)
    return figure


def _show(axes: object, images: Tensor, shape: tuple[int, ...], across: int) -> None:
    from torchvision.utils import make_grid

    images = images.detach().cpu().float().reshape(-1, *shape)
    there = images[~images.isnan()]  # of what is given, rows may be missing
    low, high = (there.amin(), there.amax()) if len(there) else (0.0, 1.0)
    if low < 0 or high > 1:  # real-valued: scaled together
        images = (images - low) / (high - low)
    ink = 1 - images if shape[0] == 1 else images  # gray ones dark on white
    grid = make_grid(torch.nan_to_num(ink), nrow=across, padding=1, pad_value=1.0)
    axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_axis_off()
