"""Draws of a fitted pair, by site: what the guide knows, and what the model makes of it."""

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import prune_subsample_sites, site_is_factor
from torch import Tensor

from ppvae.pairing import evaluating, is_deterministic, particles, sample_sites
from ppvae.protocols import Batch, Guide, Model, batch_size, leaves
from ppvae.weights.plan import plan_of

__all__ = ["Simulate", "predictive"]


class Simulate(UnconditionMessenger):
    """Sample what is observed, but not deterministic sites: Pyro would repeat their plates.

    In a plate without a size, as many are drawn as there are data.

    Args:
        size: N.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def _pyro_sample(self, msg: dict) -> None:
        if is_deterministic(msg):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.size == -1:
                rows = (self.size, *(1,) * (-frame.dim - 1))
                fn = msg["fn"]
                msg["fn"] = fn.expand(torch.broadcast_shapes(fn.batch_shape, rows))
        super()._pyro_sample(msg)


def predictive(
    model: Model, guide: Guide, batch: Batch, num_samples: int = 1000, *, observe: bool = False
) -> dict[str, Tensor]:
    """Return draws of the latents, and of new data given them.

        z_s ~ q(z | x),   x_s ~ p(x | z_s),   s = 1 .. S

    As Pyro's `Predictive(model, guide=guide)`, but of the parameters that these modules hold:
    Pyro's own goes by names across the process, and of two autoguides the second would take, and
    keep, those of the first. Modules run in evaluation mode, without gradients, and are left as
    they were.

    Args:
        model: Samples p(x, z).
        guide: Samples q(z | x).
        batch: x, `(N, ...)`; of a mapping, what is not known, as y at new inputs, may be None.
        num_samples: The number S of draws.
        observe: Whether observed sites keep the data of the batch instead of being drawn anew.

    Returns:
        Draws by site, `(S, ...)`: latents, observed and deterministic sites of the model.

    Raises:
        PairError: If the two are no pair.
        ValueError: If `num_samples` is not positive, or an autoguide was made for other data.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> model = LinearGaussian(torch.ones(3, 2))
        >>> draws = predictive(model, Exact(model), torch.zeros(5, 3), 7)
        >>> {name: tuple(values.shape) for name, values in draws.items()}
        {'z': (7, 5, 2), 'x': (7, 5, 3)}
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, but is {num_samples}")
    story = model if observe else Simulate(batch_size(batch))(model)
    with evaluating(model, guide):
        dim = _dim(model, guide, batch)
        alone = _values(_run(story, guide, batch, 1, None))
        if dim is None:
            runs = [_values(_run(story, guide, batch, 1, None)) for _ in range(num_samples)]
            return {name: torch.stack([run[name] for run in runs]) for name in alone}
        together = _values(_run(story, guide, batch, num_samples, dim))
    return {name: _leading(together[name], num_samples, value) for name, value in alone.items()}


def _dim(model: Model, guide: Guide, batch: Batch) -> int | None:
    """Return where the draws' plate goes; None where they are made one by one."""
    unknown = not isinstance(batch, Tensor) and any(leaf is None for leaf in batch.values())
    if unknown:  # nothing can be weighed
        leaves(batch)  # raises in words
        return None
    return plan_of(model, guide, batch).dim


def _run(story: Model, guide: Guide, batch: Batch, count: int, dim: int | None) -> Trace:
    guide_trace = poutine.trace(particles(guide, count, dim)).get_trace(batch)
    replayed = poutine.replay(particles(story, count, dim), trace=guide_trace)
    return poutine.trace(replayed).get_trace(batch)


def _values(trace: Trace) -> dict[str, Tensor]:
    """Return the values of all variables of the story, without factors."""
    sites = sample_sites(prune_subsample_sites(trace)).items()
    return {
        name: site["value"]
        for name, site in sites
        if is_deterministic(site) or not site_is_factor(site)
    }


def _leading(value: Tensor, count: int, alone: Tensor) -> Tensor:
    """Return draws (S, ...) with the axes that a single one has."""
    if value.numel() == count * alone.numel():
        return value.reshape(count, *alone.shape)
    return value.reshape(alone.shape).expand(count, *alone.shape)  # no latent stands behind it
