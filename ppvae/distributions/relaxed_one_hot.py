"""One of K classes as a vector, with a relaxed draw that has a gradient."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["RelaxedOneHot"]


class RelaxedOneHot(dist.OneHotCategorical):
    """The one-hot categorical, drawn by the Gumbel-softmax instead of exactly.

        z = softmax((ln pi + g) / T),  g_k ~ Gumbel(0, 1)

    Not Pyro's `RelaxedOneHotCategorical`, a density on the simplex: here ln q(z) = z . ln pi, the
    one-hot's logarithm continued linearly, and mean, variance and KL are those of the exact one.
    So with T > 0 an ELBO is a surrogate of its own, and no bound: E z is not pi.

    Args:
        temperature: T > 0, 0-d.
        logits: ln pi up to a constant, (..., K).

    References:
        Jang, Gu, Poole (2017), Categorical Reparameterization with Gumbel-Softmax,
        arXiv:1611.01144.
        Maddison, Mnih, Teh (2017), The Concrete Distribution, arXiv:1611.00712.

    Example:
        >>> q = RelaxedOneHot(torch.tensor(0.5), logits=torch.zeros(2, 4))
        >>> q.rsample().sum(-1)
        tensor([1., 1.])
        >>> p = dist.OneHotCategorical(logits=torch.zeros(4))
        >>> torch.distributions.kl_divergence(q, p)
        tensor([0., 0.])
    """

    has_rsample = True

    def __init__(
        self, temperature: Tensor, logits: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)
        _ = self.probs  # made here with and without validation, so that gradients add up alike

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "RelaxedOneHot":
        """Return the distribution with its batch shape expanded."""
        new = self._get_checked_instance(RelaxedOneHot, _instance)
        new.temperature = self.temperature
        return super().expand(batch_shape, _instance=new)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Coordinates in [0, 1]; that they sum to 1 is a matter of rounding."""
        return constraints.independent(constraints.unit_interval, 1)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z, `(*sample_shape, ..., K)`, with gradients to the logits."""
        logits = self.logits.expand(self._extended_shape(sample_shape))
        tiny = torch.finfo(logits.dtype).tiny
        gumbel = -torch.empty_like(logits).exponential_().clamp_(min=tiny).log()
        return ((logits + gumbel) / self.temperature).softmax(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw z without gradients, relaxed too."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return z . ln pi."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)
