"""Pictures of the latent: its dimensions, its classes, its aggregate posterior."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyro import poutine
from torch import Tensor

from ppvae.diagnostics import AggregatePosterior, posterior_moments
from ppvae.plots.canvas import (
    COLORS,
    MUTED,
    label_color,
    new_figure,
    principal_plane,
    repeat_rows,
)
from ppvae.protocols import Batch, Guide, Model
from ppvae.weights import evaluating, latent_sites

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["aggregate_posterior", "kl_per_dimension", "latent_map"]


def kl_per_dimension(divergences: Mapping[str, Tensor]) -> "Figure":
    """Draw the KL of each latent dimension, in nats, the largest first, a panel per guide.

    Args:
        divergences: By guide, (D,) each, as `diagnostics.kl_per_dimension` returns them.

    Example:
        >>> kl_per_dimension({"normal": torch.ones(4)}).axes[0].get_title()
        'normal'
    """
    count = len(divergences)
    figure, panels = new_figure(1, count, width=2.4 * count + 1, height=3, sharey=True)
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
    figure, panels = new_figure(1, count, width=2.6 * count + 1, height=3)
    names = labels.unique().tolist()
    for axes, (name, guide) in zip(panels, guides.items(), strict=True):
        means, _ = posterior_moments(guide, batch, num_particles=num_particles, site=site)
        plane, share = principal_plane(means)
        for index, label in enumerate(names):
            color = label_color(index, len(names))
            axes.scatter(*plane(means)[labels.cpu() == label].T, s=6, color=color, label=label)
        axes.set(title=name, xlabel=f"{share:.0%} of variance", xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
    handles, texts = panels[-1].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right center", frameon=False, markerscale=2)
    return figure


def aggregate_posterior(
    splits: Mapping[str, AggregatePosterior],
    model: Model | Mapping[str, Model],
    batch: Batch,
    *,
    site: str = "z",
) -> "Figure":
    """Draw the aggregate posterior's draws over the prior's, in the former's principal plane.

    Where they part, prior samples come from places that the decoder has never seen.

    Args:
        splits: By guide, as `diagnostics.aggregate_posterior` returns them.
        model: Whose prior to draw; one for all guides, or each guide's own by its name.
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
    figure, panels = new_figure(1, count, width=2.6 * count + 1, height=3)
    for axes, color, (name, split) in zip(panels, COLORS, splits.items(), strict=False):
        prior = _prior_draws(model[name] if isinstance(model, Mapping) else model, batch, site)
        plane, _ = principal_plane(split.draws[site])
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


def _prior_draws(model: Model, batch: Batch, site: str, count: int = 1000) -> Tensor:
    with evaluating(model):
        trace = poutine.trace(model).get_trace(repeat_rows(batch, count))
    return latent_sites(trace)[site]["value"]
