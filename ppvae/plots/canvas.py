"""Pictures of training, of a model and of its guides: each function returns a matplotlib Figure.

Nothing is shown or saved, and no figure stays open: a notebook displays what a cell returns, a
script calls `figure.savefig`. A mapping from names to things is drawn in one figure, a color per
name. For a tree of draws use ArviZ's own plots on `from_pyro_svi`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppvae.diagnostics import AggregatePosterior, Pareto, posterior_moments
from ppvae.protocols import Batch, Guide, Model, batch_size, map_batch
from ppvae.training import History
from ppvae.weights import evaluating, latent_sites, trace_pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "aggregate_posterior",
    "kl_per_dimension",
    "latent_map",
    "pareto_k",
    "prior_samples",
    "reconstructions",
    "training_curves",
]

Pair = tuple[Model, Guide]

# Okabe and Ito's palette, told apart by everyone; black is kept for what is exact or prior.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
INK, MUTED = "#222222", "#8a8a8a"


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
    figure, (axes,) = _figure(1, 1, width=7, height=4)
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
    axes.set(xlabel="epoch", ylabel=f"{column.replace('_', ' ')} (nats per datum)")
    axes.legend(frameon=False)
    return figure


def reconstructions(
    pairs: Mapping[str, Pair],
    batch: Tensor,
    *,
    image: Sequence[int] | None = None,
    count: int = 20,
    site: str = "x",
) -> "Figure":
    """Draw data, and under them a row per pair: the likelihood's means at one draw of the latent.

    Args:
        pairs: (model, guide) by name.
        batch: x, (N, ...), of which the first are drawn.
        image: The shape (C, H, W) of one datum; read off the batch, or a square, by default.
        count: How many data to draw.
        site: The observed site.

    Raises:
        ValueError: If the data have no image shape, naming the argument.

    Example:
        >>> from ppvae.guides import Normal
        >>> from ppvae.models import VAE
        >>> from ppvae.networks import MLP
        >>> model, guide = VAE(MLP(2, 64), latent_dim=2), Normal(MLP(64, 8), latent_dim=2)
        >>> figure = reconstructions({"normal": (model, guide)}, torch.ones(5, 64))
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['data', 'normal']
    """
    shape, some = _image(batch, image), batch[:count]
    rows = {"data": some}
    for name, (model, guide) in pairs.items():
        with evaluating(model, guide):
            model_trace, _ = trace_pair(model, guide, some)
        rows[name] = model_trace.nodes[site]["fn"].mean.squeeze(0)
    return _image_rows(rows, shape)


def prior_samples(
    models: Mapping[str, Model],
    batch: Tensor,
    *,
    image: Sequence[int] | None = None,
    count: int = 20,
    site: str = "x",
) -> "Figure":
    """Draw the likelihood's means at draws from the prior, a row per model.

    Args:
        models: By name; each samples p(x, z).
        batch: Any batch, for the shape, device and dtype of the data.
        image: As in `reconstructions`.
        count: How many samples to draw.
        site: The observed site.

    Raises:
        ValueError: If the data have no image shape, naming the argument.

    Example:
        >>> from ppvae.models import VAE
        >>> from ppvae.networks import MLP
        >>> model = VAE(MLP(2, 64), latent_dim=2)
        >>> len(prior_samples({"normal": model}, torch.ones(5, 64)).axes)
        1
    """
    shape, like, rows = _image(batch, image), _repeat(batch, count), {}
    for name, model in models.items():
        with evaluating(model):
            rows[name] = poutine.trace(model).get_trace(like).nodes[site]["fn"].mean
    return _image_rows(rows, shape)


def pareto_k(tails: Mapping[str, Pareto]) -> "Figure":
    """Draw every datum's Pareto k, sorted, a panel per guide, with the limits it must respect.

    Args:
        tails: By guide, as `diagnostics.pareto_k` returns them.

    Example:
        >>> tail = Pareto(torch.zeros(3), torch.ones(3), 0.667)
        >>> pareto_k({"normal": tail}).axes[0].get_title()
        'normal'
    """
    figure, panels = _figure(1, len(tails), width=2.4 * len(tails) + 1, height=3, sharey=True)
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


def kl_per_dimension(divergences: Mapping[str, Tensor]) -> "Figure":
    """Draw the KL of each latent dimension, in nats, the largest first, a panel per guide.

    Args:
        divergences: By guide, (D,) each, as `diagnostics.kl_per_dimension` returns them.

    Example:
        >>> kl_per_dimension({"normal": torch.ones(4)}).axes[0].get_title()
        'normal'
    """
    count = len(divergences)
    figure, panels = _figure(1, count, width=2.4 * count + 1, height=3, sharey=True)
    for axes, color, (name, kl) in zip(panels, COLORS, divergences.items(), strict=False):
        ordered = kl.detach().cpu().sort(descending=True).values.numpy()
        axes.bar(range(1, len(ordered) + 1), ordered, color=color)
        axes.set(title=name, xlabel="dimension, sorted")
    panels[0].set_ylabel("KL (nats)")
    return figure


def latent_map(
    guides: Mapping[str, Guide],
    batch: Batch,
    labels: Tensor,
    *,
    num_particles: int = 100,
    site: str = "z",
) -> "Figure":
    """Draw posterior means in the plane of their first two principal components, by label.

    Args:
        guides: By name.
        batch: x, (N, ...).
        labels: (N,) integers, which color the points.
        num_particles: The draws per datum that a mean is taken over.
        site: The latent.

    Example:
        >>> from ppvae.guides import Normal
        >>> from ppvae.networks import MLP
        >>> guide = Normal(MLP(8, 16), latent_dim=3)
        >>> len(latent_map({"normal": guide}, torch.rand(20, 8), torch.arange(20) % 2).axes)
        1
    """
    count = len(guides)
    figure, panels = _figure(1, count, width=2.6 * count + 1, height=3)
    names = labels.unique().tolist()
    for axes, (name, guide) in zip(panels, guides.items(), strict=True):
        means, _ = posterior_moments(guide, batch, num_particles=num_particles, site=site)
        plane, share = _principal_plane(means)
        for index, label in enumerate(names):
            color = _tab(index, len(names))
            axes.scatter(*plane(means)[labels.cpu() == label].T, s=6, color=color, label=label)
        axes.set(title=name, xlabel=f"{share:.0%} of variance", xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
    handles, texts = panels[-1].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right center", frameon=False, markerscale=2)
    return figure


def aggregate_posterior(
    splits: Mapping[str, AggregatePosterior], model: Model, batch: Batch, *, site: str = "z"
) -> "Figure":
    """Draw the aggregate posterior's draws over the prior's, in the former's principal plane.

    Where they part, prior samples come from places that the decoder has never seen.

    Args:
        splits: By guide, as `diagnostics.aggregate_posterior` returns them.
        model: Whose prior to draw; the same prior for all guides.
        batch: x, for N.
        site: The latent.

    Example:
        >>> from ppvae.models import LinearGaussian
        >>> draws = {"z": torch.randn(50, 2)}
        >>> split = AggregatePosterior(1.0, 0.5, 0.5, {}, draws)
        >>> model = LinearGaussian(torch.ones(3, 2))
        >>> len(aggregate_posterior({"normal": split}, model, torch.zeros(5, 3)).axes)
        1
    """
    count = len(splits)
    figure, panels = _figure(1, count, width=2.6 * count + 1, height=3)
    like = _repeat(batch, 1000)
    with evaluating(model):
        prior = latent_sites(poutine.trace(model).get_trace(like))[site]["value"]
    for axes, color, (name, split) in zip(panels, COLORS, splits.items(), strict=False):
        plane, _ = _principal_plane(split.draws[site])
        axes.scatter(*plane(prior).T, s=4, color=MUTED, alpha=0.5, linewidths=0, label="prior")
        axes.scatter(
            *plane(split.draws[site]).T,
            s=4,
            color=color,
            linewidths=0,
            label="aggregate posterior",
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{name}: KL {split.marginal_kl:.2f} nats", fontsize=10)
        axes.set_aspect("equal", adjustable="datalim")
    return figure


def _figure(
    rows: int, columns: int, *, width: float, height: float, sharey: bool = False
) -> "tuple[Figure, list[Axes]]":
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


def _tab(index: int, count: int) -> tuple[float, ...]:
    import matplotlib

    return matplotlib.colormaps["tab10" if count <= 10 else "turbo"](
        index if count <= 10 else index / (count - 1)
    )


def _image_rows(rows: Mapping[str, Tensor], image: tuple[int, ...]) -> "Figure":
    """Draw a titled row of images per name, dark ink on white."""
    from torchvision.utils import make_grid

    figure, panels = _figure(len(rows), 1, width=9, height=0.75 * len(rows))
    for axes, (name, values) in zip(panels, rows.items(), strict=True):
        pixels = values.detach().cpu().reshape(-1, *image).clamp(0, 1)
        ink = 1 - pixels if image[0] == 1 else pixels
        grid = make_grid(ink, nrow=len(ink), padding=1, pad_value=1)
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(name, loc="left", fontsize=8, color=INK, pad=2)
    return figure


def _image(batch: Tensor, image: Sequence[int] | None) -> tuple[int, ...]:
    if image is not None:
        return tuple(image)
    if batch.ndim == 4:
        return tuple(batch.shape[1:])
    side = math.isqrt(batch[0].numel())
    if side * side != batch[0].numel():
        raise ValueError(
            f"data of shape {tuple(batch.shape[1:])} are no square images: pass image=(C, H, W)"
        )
    return 1, side, side


def _principal_plane(points: Tensor) -> tuple[Callable[[Tensor], np.ndarray], float]:
    """Return the projection on the first two principal components, and their share of variance."""
    from sklearn.decomposition import PCA

    pca = PCA(n_components=min(2, points.shape[1])).fit(points.cpu())

    def project(values: Tensor) -> np.ndarray:
        flat = pca.transform(values.cpu())
        return flat if flat.shape[1] == 2 else np.c_[flat, np.zeros(len(flat))]

    return project, float(pca.explained_variance_ratio_.sum())


def _repeat(batch: Batch, count: int) -> Batch:
    rows = torch.arange(count) % batch_size(batch)
    return map_batch(lambda leaf: leaf[rows.to(leaf.device)], batch)
