"""What all pictures share: blank figures, colors, rows of images, the principal plane."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppvae.protocols import Batch, batch_size, map_batch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by everyone; black is kept for what is exact or prior.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
INK, MUTED = "#222222", "#8a8a8a"

__all__ = [
    "COLORS",
    "INK",
    "MUTED",
    "image_rows",
    "label_color",
    "new_figure",
    "principal_plane",
    "repeat_rows",
]


def new_figure(
    rows: int, columns: int, *, width: float, height: float, sharey: bool = False
) -> "tuple[Figure, list[Axes]]":
    """Return a blank figure, inches wide and high, and its panels row by row; it is not open."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(width, height),
        layout="constrained",
        squeeze=False,
        sharey=sharey,
    )
    plt.close(figure)  # no global state: the caller's reference is the only one
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
        axes.title.set_fontsize(10)
    return figure, list(panels.flat)


def label_color(index: int, count: int) -> tuple[float, ...]:
    """Return the color of one of `count` labels."""
    import matplotlib

    return matplotlib.colormaps["tab10" if count <= 10 else "turbo"](
        index if count <= 10 else index / (count - 1)
    )


def image_rows(rows: Mapping[str, Tensor], image: tuple[int, ...]) -> "Figure":
    """Draw a titled row of images per name, dark ink on white."""
    from torchvision.utils import make_grid

    figure, panels = new_figure(len(rows), 1, width=9, height=0.75 * len(rows))
    for axes, (name, values) in zip(panels, rows.items(), strict=True):
        pixels = values.detach().cpu().reshape(-1, *image).clamp(0, 1)
        ink = 1 - pixels if image[0] == 1 else pixels
        grid = make_grid(ink, nrow=len(ink), padding=1, pad_value=1)
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(name, loc="left", fontsize=8, color=INK, pad=2)
    return figure


def principal_plane(points: Tensor) -> tuple[Callable[[Tensor], np.ndarray], float]:
    """Return the projection on the first two principal components, and their share of variance."""
    from sklearn.decomposition import PCA

    pca = PCA(n_components=min(2, points.shape[1])).fit(points.cpu())

    def project(values: Tensor) -> np.ndarray:
        flat = pca.transform(values.cpu())
        return flat if flat.shape[1] == 2 else np.c_[flat, np.zeros(len(flat))]

    return project, float(pca.explained_variance_ratio_.sum())


def repeat_rows(batch: Batch, count: int) -> Batch:
    """Return a batch of `count` rows, which repeat if they do not suffice."""
    rows = torch.arange(count) % batch_size(batch)
    return map_batch(lambda leaf: leaf[rows.to(leaf.device)], batch)
