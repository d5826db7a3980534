"""The base of the guides that read their posterior off an encoder."""

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppvae.protocols import DATA_PLATE, Batch, Encoder, batch_size

__all__ = ["Amortized", "activation_after"]


class Amortized(nn.Module):
    """An encoder, a linear head, and a map from its outputs to a distribution.

        q(z|x) = posterior(h),  h = V a(encoder(x)) + v

    Abstract: a guide is a leaf that says what the map is.

    Args:
        encoder: Maps the batch x, `(N, ...)`, to features `(N, encoder.out_features)`.
        posterior: Maps h, `(N, head_features)`, to q(z|x) of batch shape (N,); a module if it has
            parameters.
        head_features: The size of h.
        activation: a, applied to the features; by default what the encoder has between its layers,
            as `MLP` says, or else ReLU. `nn.Identity()` where the encoder ends in one already.
        infer: What the site says of itself, such as why it has no weights: see `ppvae.protocols`.

    Sites:
        z: (N, D) the latent.

    Raises:
        TypeError: If `encoder` is no encoder, for want of `out_features`.
    """

    def __init__(
        self,
        encoder: Encoder,
        posterior: Callable[[Tensor], dist.TorchDistribution],
        head_features: int,
        *,
        activation: nn.Module | None = None,
        infer: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation_after(encoder, activation)
        self.encoder = encoder
        self.head = nn.Linear(encoder.out_features, head_features)
        self.posterior = posterior
        self.infer = dict(infer or {})

    def forward(self, batch: Batch) -> None:
        """Sample z ~ q(z|x) at the batch `(N, ...)`."""
        h = self.head(self.activation(self.encoder(batch)))
        with pyro.plate(DATA_PLATE, batch_size(batch), dim=-1):
            pyro.sample("z", self.posterior(h), infer=dict(self.infer))


def activation_after(encoder: Encoder, activation: nn.Module | None = None) -> nn.Module:
    """Return what a guide applies to features: what is given, or what the encoder has within.

    Raises:
        TypeError: If `encoder` is no encoder, for want of `out_features`.

    Example:
        >>> from ppvae.networks import MLP
        >>> activation_after(MLP(8, 16, activation=nn.Tanh))
        Tanh()
    """
    if not isinstance(encoder, Encoder):
        raise TypeError(
            f"the encoder {type(encoder).__name__} has no out_features, from which a guide "
            "sizes its head: set encoder.out_features to the last axis of its output"
        )
    if activation is not None:
        return activation
    make = getattr(encoder, "activation", nn.ReLU)  # not every encoder has one to speak of
    return make if isinstance(make, nn.Module) else make()
