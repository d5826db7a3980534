"""Pictures of a linear code: what each unit adds to the image, and how often units fire."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppvae.diagnostics.samples.features import image_shape
from ppvae.plots.canvas import COLORS, INK, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["dictionary", "rate_histograms"]


def dictionary(
    weight: Tensor,
    image: Sequence[int] | None = None,
    *,
    order: Tensor | None = None,
    count: int = 256,
    columns: int = 32,
) -> "Figure":
    """Draw the columns of a linear decoder as images, row by row, those of the largest KL first.

    Gray is 0, and each image's largest magnitude is black or white: how strongly a unit acts is
    not to be seen.

    Args:
        weight: Phi, (M, K), as `nn.Linear` has it.
        image: The shape (1, H, W) of one datum; a square by default.
        order: What to sort by, the largest first, (K,): the KL of each unit, as
            `diagnostics.kl_per_dimension` returns it. As they are by default.
        count: How many to draw at most.
        columns: How many to a row.

    Raises:
        ValueError: If the weight is no matrix, its rows no gray image, or `order` of another
            length.

    References:
        Olshausen, Field (1996), Emergence of Simple-Cell Receptive Field Properties, figure 4.

    Example:
        >>> figure = dictionary(torch.randn(16, 40), order=torch.rand(40), columns=10)
        >>> figure.axes[0].images[0].get_array().shape  # 4 rows of 10, a pixel apart
        (21, 51)
    """
    if weight.ndim != 2:
        raise ValueError(
            f"the weight of a linear decoder is a matrix (M, K), but has shape "
            f"{tuple(weight.shape)}: pass decoder.weight"
        )
    atoms = weight.detach().cpu().T  # (K, M)
    if order is not None:
        if order.shape != (len(atoms),):
            raise ValueError(
                f"order must be a number for each of the {len(atoms)} units, but has shape "
                f"{tuple(order.shape)}"
            )
        atoms = atoms[order.detach().cpu().argsort(descending=True, stable=True)]
    channels, height, width = image_shape(atoms, image)
    if channels != 1:
        raise ValueError(f"only gray images can be drawn, but image has {channels} channels")
    atoms = atoms[:count].reshape(-1, height, width)
    atoms = atoms / atoms.abs().amax((1, 2), keepdim=True).clamp(min=1e-30)
    rows = math.ceil(len(atoms) / columns)
    canvas = torch.full((rows * (height + 1) + 1, columns * (width + 1) + 1), math.nan)
    for n, atom in enumerate(atoms):
        top, left = n // columns * (height + 1) + 1, n % columns * (width + 1) + 1
        canvas[top : top + height, left : left + width] = atom
    inches = 9.0
    tall = inches * canvas.shape[0] / canvas.shape[1]
    figure, (axes,) = new_figure(1, 1, width=inches, height=tall)
    axes.imshow(canvas.numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    return figure


def rate_histograms(rates: Mapping[str, Tensor], *, bins: int = 40) -> "Figure":
    """Draw histograms of rates, a color per name, on a logarithmic axis.

    Args:
        rates: Positive rates by name, of any shape: a prior's, one per unit, or a guide's means
            over data.
        bins: How many, over all names.

    Raises:
        ValueError: If a rate is not positive.

    Example:
        >>> rate_histograms({"prior": torch.rand(512) + 0.1}).axes[0].get_xlabel()
        'rate (events per datum)'
    """
    flat = {name: values.detach().cpu().flatten().numpy() for name, values in rates.items()}
    for name, values in flat.items():
        if not (values > 0).all():
            raise ValueError(
                f"the rates of {name!r} must be positive, to go on a logarithmic axis"
            )
    low = min(float(values.min()) for values in flat.values())
    high = max(float(values.max()) for values in flat.values())
    edges = np.geomspace(low * 0.999, high * 1.001, bins + 1)
    figure, (axes,) = new_figure(1, 1, width=6, height=3.2)
    for color, (name, values) in zip(COLORS, flat.items(), strict=False):
        share = {"weights": np.full(len(values), 1 / len(values)), "color": color}
        axes.hist(values, edges, histtype="stepfilled", alpha=0.35, **share)
        axes.hist(values, edges, histtype="step", label=name, linewidth=1.4, **share)
        axes.axvline(float(np.median(values)), color=color, linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlabel("rate (events per datum)", color=INK)
    axes.set_ylabel("share", color=INK)
    axes.legend(frameon=False, fontsize=8, title="dashed: the median", title_fontsize=7)
    return figure
