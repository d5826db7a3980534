"""Pictures of data: what a pair reconstructs, and what a model draws from its prior."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pyro import poutine
from torch import Tensor

from ppvae.diagnostics.samples.features import image_shape
from ppvae.plots.canvas import image_rows, repeat_rows
from ppvae.protocols import Guide, Model
from ppvae.weights import evaluating, trace_pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["prior_samples", "reconstructions"]

Pair = tuple[Model, Guide]


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
    shape, some = image_shape(batch, image), batch[:count]
    rows = {"data": some}
    for name, (model, guide) in pairs.items():
        with evaluating(model, guide):
            model_trace, _ = trace_pair(model, guide, some)
        rows[name] = model_trace.nodes[site]["fn"].mean.squeeze(0)
    return image_rows(rows, shape)


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
    shape, like, rows = image_shape(batch, image), repeat_rows(batch, count), {}
    for name, model in models.items():
        with evaluating(model):
            rows[name] = poutine.trace(model).get_trace(like).nodes[site]["fn"].mean
    return image_rows(rows, shape)
