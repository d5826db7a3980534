"""An encoder and a latent per modality: the guide of tied VAEs."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ppvae.distributions import MoEPrior
from ppvae.guides.amortized import activation_after
from ppvae.protocols import (
    DATA_PLATE,
    Batch,
    Encoder,
    batch_size,
    modalities,
    require_names,
    seen,
)

__all__ = ["ModalLatents", "Posteriors"]


class Posteriors(NamedTuple):
    """The posteriors of all modalities, side by side in the guide's order.

    Attributes:
        loc: Their means, (N, M, D).
        scale: Their standard deviations, (N, M, D).
        obs: Which were seen, (N, M) booleans; the others hold what a blank row gives.
    """

    loc: Tensor
    scale: Tensor
    obs: Tensor


class ModalLatents(nn.Module):
    """A factorized Normal posterior for each modality, of a latent that is its own.

        q(z_1, ..., z_M | x) = prod_m N(z_m; m_m(x_m), s_m(x_m)^2)

    A missing row, all NaN, reaches no encoder: a blank stands in for it, its site is masked, and
    no gradient comes back. Not a joint posterior: `joint` mixes those of what was seen.

    Args:
        encoders: By the names of the modalities: each maps x_m, `(N, ...)`, to features
            `(N, encoder.out_features)`.
        latent_dim: The size D of every latent.
        min_scale: The smallest s, in units of z: the pairwise KL grows as s^-2.
        scale: Makes s, less `min_scale`, of a head's outputs.
        activation: As in `Amortized`, for all encoders.

    Sites:
        z_<name>: (N, D) the latent of a modality: real, pathwise gradients.

    Raises:
        TypeError: If an encoder has no `out_features`.
        ValueError: If there are no encoders.
        ModalityError: On a batch that is no mapping, lacks a modality or has another.

    References:
        Sutter et al. (2024), Unity by Diversity: Improved Representation Learning for Multimodal
        VAEs, arXiv:2403.05300.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.networks import MLP
        >>> guide = ModalLatents({"image": MLP(8, 16), "sound": MLP(3, 16)}, latent_dim=2)
        >>> batch = {"image": torch.rand(5, 8), "sound": torch.rand(5, 3)}
        >>> batch["sound"][0] = torch.nan  # missing
        >>> poutine.trace(guide).get_trace(batch).nodes["z_sound"]["value"].shape
        torch.Size([5, 2])
        >>> guide.joint(batch).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        latent_dim: int,
        *,
        min_scale: float = 1e-3,
        scale: Callable[[Tensor], Tensor] = torch.exp,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("ModalLatents needs at least one encoder, by the modality's name")
        require_names(encoders)
        self.activations = nn.ModuleDict(
            {name: activation_after(encoder, activation) for name, encoder in encoders.items()}
        )
        self.names, self.encoders = tuple(encoders), nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict(
            {n: nn.Linear(e.out_features, 2 * latent_dim) for n, e in encoders.items()}
        )
        self.latent_dim, self.min_scale, self.scale = latent_dim, min_scale, scale

    def forward(self, batch: Batch) -> None:
        """Sample every z_m ~ q(z_m|x_m) at the batch, `(N, ...)` by name."""
        loc, scale, obs = self.posteriors(batch)
        with pyro.plate(DATA_PLATE, batch_size(batch), dim=-1):
            for m, name in enumerate(self.names):
                with poutine.mask(mask=obs[:, m]):
                    q = dist.Normal(loc[:, m], scale[:, m]).to_event(1)
                    pyro.sample(f"z_{name}", q)

    def posteriors(self, batch: Batch) -> Posteriors:
        """Return the moments of all posteriors, and which modalities were seen."""
        named = modalities(batch, self.names, "guide")
        obs = seen(named)
        outputs = [self._encode(n, x, obs[:, m]) for m, (n, x) in enumerate(named.items())]
        loc, raw = torch.stack(outputs, 1).chunk(2, -1)  # (N, M, D) each
        return Posteriors(loc, self.scale(raw) + self.min_scale, obs)

    def joint(self, batch: Batch) -> MoEPrior:
        """Return h(z|x), the even mixture of the posteriors of what was seen, batch shape (N,)."""
        return MoEPrior.of(*self.posteriors(batch))

    def _encode(self, name: str, x: Tensor, obs: Tensor) -> Tensor:
        x = torch.where(obs.reshape(-1, *(1,) * (x.ndim - 1)), x, x.new_zeros(()))
        return self.heads[name](self.activations[name](self.encoders[name](x)))
