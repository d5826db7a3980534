"""The guide of any subset of modalities."""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae.aggregation import Aggregation
from ppvae.guides.amortized import activation_after
from ppvae.protocols import DATA_PLATE, Batch, Encoder, modalities, require_names, seen

__all__ = ["Multimodal"]


class Multimodal(nn.Module):
    """One encoder for each modality, and an aggregation of what the seen ones say.

        q(z|x_S) = aggregation({h_m: m in S}),  h_m = V_m a(encoder_m(x_m)) + v_m

    A modality is missing from a datum where its row is all NaN. Zeros then take its place in the
    encoder, for networks take whole batches, and the result is dropped: neither value nor gradient
    depends on it, but the running means of a batch norm do.

    `features` runs the encoders, and `sample` and `posterior` make of them what any subset of the
    seen modalities would say: `objectives.MaskedELBO` runs each encoder once, however many subsets
    it takes.

    Args:
        encoders: By modality, from `(N, ...)` to features `(N, encoder.out_features)`.
        aggregation: Of `ppvae.aggregation`, such as `PoE(latent_dim)`.
        latent_dim: The size D of the shared latent.
        private_dim: The size P of the latents of each modality's own, Normal given x_m, and as
            their prior N(0, I) where it is missing; none by default.
        min_scale: Of private latents: the smallest s, in units of z_m.
        activation: a, as in `Amortized`, for all encoders.

    Sites:
        z: (N, D) the shared latent, of the aggregation's distribution.
        z_<name>: (N, P) the private ones, if any: real, pathwise gradients.

    Raises:
        TypeError: If an encoder has no `out_features`.
        ValueError: If there are no encoders, or the aggregation is of another latent; on the first
            call, if the features of modalities differ in size.
        ModalityError: On a batch that is no mapping, lacks a modality or has another.

    References:
        Hirt et al. (2024), Learning Multi-Modal Generative Models with Permutation-Invariant
        Encoders, arXiv:2309.00380.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.aggregation import PoE
        >>> from ppvae.networks import MLP
        >>> guide = Multimodal({"a": MLP(8, 16), "b": MLP(3, 16)}, PoE(2), latent_dim=2)
        >>> batch = {"a": torch.rand(5, 8), "b": torch.full((5, 3), torch.nan)}
        >>> poutine.trace(guide).get_trace(batch).nodes["z"]["value"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        aggregation: Aggregation,
        latent_dim: int,
        *,
        private_dim: int = 0,
        min_scale: float = 1e-3,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("Multimodal needs an encoder for each modality, but got none")
        if aggregation.latent_dim != latent_dim:
            raise ValueError(
                f"the aggregation {type(aggregation).__name__} is of a latent of size "
                f"{aggregation.latent_dim}, but latent_dim={latent_dim}: make them the same"
            )
        require_names(encoders)
        self.names = tuple(encoders)
        self.activations = nn.ModuleDict(
            {name: activation_after(encoder, activation) for name, encoder in encoders.items()}
        )
        self.encoders = nn.ModuleDict(encoders)
        size = aggregation.in_features + 2 * private_dim
        self.heads = nn.ModuleDict(
            {name: nn.Linear(encoder.out_features, size) for name, encoder in encoders.items()}
        )
        self.aggregation = aggregation
        self.latent_dim, self.private_dim, self.min_scale = latent_dim, private_dim, min_scale

    def forward(self, batch: Batch) -> None:
        """Sample z ~ q(z|x_S), S being what is seen of the batch, `(N, ...)` by modality."""
        self.sample(*self.features(batch))

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return h, `(N, M, E)`, and what was seen, `(N, M)` booleans, in the order of `names`."""
        batch = modalities(batch, self.names, "guide")
        there = seen(batch)
        said = {}
        for (name, x), obs in zip(batch.items(), there.unbind(1), strict=True):
            x = torch.where(obs.reshape(-1, *(1,) * (x.ndim - 1)), x, x.new_zeros(()))
            said[name] = self.heads[name](self.activations[name](self.encoders[name](x)))
        sizes = {name: h.shape[-1] for name, h in said.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"the features of the modalities differ in size, {sizes}, and an aggregation "
                "takes one: end each of guide.heads in as many"
            )
        h = torch.stack([*said.values()], dim=-2)  # (N, M, E)
        return torch.where(there.unsqueeze(-1), h, 0.0), there

    def sample(self, h: Tensor, seen: Tensor) -> None:
        """Sample z ~ q(z|x_S) from features `(N, M, E)` for any S, `(N, M)` booleans."""
        with pyro.plate(DATA_PLATE, len(h), dim=-1):
            pyro.sample("z", self.posterior(h, seen))
            for m, name in enumerate(self.names if self.private_dim else ()):
                pyro.sample(f"z_{name}", self._private(h[:, m], seen[:, m, None]))

    def posterior(self, h: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """Return q(z|x_S), of batch shape (N,), from features for any S, as in `sample`."""
        return self.aggregation(h[..., : h.shape[-1] - 2 * self.private_dim], seen)

    def joint(self, batch: Batch) -> dist.TorchDistribution:
        """Return q(z|x_S), of batch shape (N,) and event shape (D,), S being what is seen."""
        return self.posterior(*self.features(batch))

    def _private(self, h: Tensor, seen: Tensor) -> dist.Independent:
        loc, log_scale = h[..., -2 * self.private_dim :].chunk(2, dim=-1)
        scale = torch.where(seen, self.min_scale + log_scale.exp(), 1.0)
        return dist.Normal(torch.where(seen, loc, 0.0), scale).to_event(1)
