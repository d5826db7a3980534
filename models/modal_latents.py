"""One VAE per modality, tied by a prior that mixes the posteriors of all."""

from collections.abc import Collection, Mapping
from typing import Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ppvae.distributions import MoEPrior
from ppvae.likelihoods import Likelihood, likelihood_head, neutral
from ppvae.priors import StandardNormal
from ppvae.protocols import DATA_PLATE, Batch, batch_size, modalities, require_names, seen

__all__ = ["ModalLatents", "Posterior"]

REASON = (
    "the prior of each latent is the mixture of the posteriors of all, and so made of the data"
)


class Posterior(Protocol):
    """A guide that knows the posteriors of all modalities at once, as `guides.ModalLatents`."""

    names: tuple[str, ...]

    def posteriors(self, batch: Batch, /) -> tuple[Tensor, Tensor, Tensor]:
        """Return means and standard deviations (N, M, D), and what was seen (N, M)."""


class ModalLatents(nn.Module):
    """M VAEs, each z_m drawn to the mixture of the posteriors of all modalities of its row.

        p(x, z) = prod_m h(z_m|x) p(x_m|z_m)
        h(z|x) = alpha N(z; 0, I) + (1 - alpha)/|S| sum_(k in S) q_k(z|x_k),  S: what was seen

    Soft sharing instead of a joint posterior: where the posteriors agree, the prior costs nothing,
    wherever they are. Since h reads x, the loss bounds no evidence: it is no ELBO, `log_weights`
    are finite and `evidence` refuses. There is no prior to draw new data from.

    The KL to h is chosen by `prior` and the objective. `MoEPrior` has the mean of the KLs between
    the posteriors, alpha KL(q_m || N(0, I)) + (1 - alpha)/|S| sum_k KL(q_m || q_k), which shares;
    `VariationalMoEPrior` a bound on the KL. The KL itself, by draws, is that of `Trace_ELBO`. The
    last two are at most ln |S| each: in more than a few dimensions they hold nothing together.

    A missing row, all NaN, weighs nothing in h, and its sites are masked. The guide's parameters
    stay the guide's, and receive gradients in both roles; its encoders run twice per step.

    Args:
        decoders: By the names of the modalities: each maps latents `(..., D)` to h_m, of the
            event shape of x_m.
        latent_dim: The size D of every latent.
        likelihoods: As in `VAE`, by name, or one for all, each with a scale of its own where that
            is learned by a name such as "normal".
        guide: Whose posteriors the prior mixes, `guides.ModalLatents`; None for N(0, I), which
            are M independent VAEs with an honest evidence.
        alpha: The share of N(0, I), a buffer: `callbacks.anneal("model.alpha", cosine(...))`.
        prior: Makes the mixture: `MoEPrior`, or `VariationalMoEPrior`.

    Sites:
        z_<name>: (N, D) the latent of a modality.
        <name>: (N, ...) the modality, observed.

    Raises:
        ValueError: If names differ between decoders, likelihoods and guide, a likelihood is
            unknown, alpha is not between 0 and 1, or is asked for without a guide.
        ModalityError: On a batch that is no mapping, lacks a modality or has another.

    References:
        Sutter et al. (2024), Unity by Diversity: Improved Representation Learning for Multimodal
        VAEs, arXiv:2403.05300.

    Example:
        >>> from ppvae.guides import ModalLatents as Guide
        >>> from ppvae.networks import MLP
        >>> guide = Guide({"image": MLP(8, 16), "sound": MLP(3, 16)}, latent_dim=2)
        >>> model = ModalLatents({"image": MLP(2, 8), "sound": MLP(2, 3)}, 2, guide=guide)
        >>> model.decode(torch.zeros(5, 2))["sound"].event_shape
        torch.Size([3])
    """

    def __init__(
        self,
        decoders: Mapping[str, nn.Module],
        latent_dim: int,
        likelihoods: Mapping[str, str | Likelihood] | str | Likelihood = "normal",
        guide: Posterior | None = None,
        alpha: float = 0.0,
        prior: type[MoEPrior] = MoEPrior,
    ) -> None:
        super().__init__()
        if not isinstance(likelihoods, Mapping):
            likelihoods = dict.fromkeys(decoders, likelihoods)
        _require_same("decoders", decoders, "likelihoods", likelihoods)
        if guide is not None:
            _require_same("decoders", decoders, "the guide's encoders", guide.names)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie between 0 and 1, but is {alpha}")
        if guide is None and alpha:
            raise ValueError(
                f"alpha={alpha} is the share of N(0, I) beside a guide's posteriors, and there is "
                "no guide: pass one, or leave alpha out, for N(0, I) is all of the prior then"
            )
        require_names(decoders)
        self.names = tuple(decoders if guide is None else guide.names)  # sites in one order
        self.latent_dim = latent_dim
        self.decoders = nn.ModuleDict(decoders)
        self.likelihoods = {name: likelihood_head(each) for name, each in likelihoods.items()}
        self.likelihood_modules = nn.ModuleDict(  # these move and train with the model
            {n: each for n, each in self.likelihoods.items() if isinstance(each, nn.Module)}
        )
        self.reads_data = "" if guide is None else REASON
        self._guide = (guide,)  # a tuple keeps the guide's parameters out of ours
        self.mixture, self.standard = prior, StandardNormal(latent_dim)
        self.register_buffer("alpha", torch.tensor(float(alpha)))

    def forward(self, batch: Batch) -> None:
        """Sample every z_m ~ h(z|x), and observe the modalities at the batch, `(N, ...)` each."""
        named = modalities(batch, self.names)
        obs = seen(named)
        prior = self._prior(named)
        with pyro.plate(DATA_PLATE, batch_size(batch), dim=-1):
            for m, (name, x) in enumerate(named.items()):
                with poutine.mask(mask=obs[:, m]):
                    z = pyro.sample(f"z_{name}", prior)
                    p_x = self._likelihood(name, z)
                    rows = obs[:, m].reshape(-1, *(1,) * (x.ndim - 1))
                    pyro.sample(name, p_x, obs=torch.where(rows, x, neutral(p_x, x)))

    def decode(self, z: Tensor) -> dict[str, dist.TorchDistribution]:
        """Return p(x_m|z) of every modality at one z `(..., D)`, batch shape (...)."""
        return {name: self._likelihood(name, z) for name in self.names}

    def _likelihood(self, name: str, z: Tensor) -> dist.TorchDistribution:
        p_x = self.likelihoods[name](self.decoders[name](z))
        return p_x.to_event(len(p_x.batch_shape) - (z.ndim - 1))

    def _prior(self, batch: Batch) -> dist.TorchDistribution:
        (guide,) = self._guide
        if guide is None:
            return self.standard()
        return self.mixture.of(*guide.posteriors(batch), self.alpha)


def _require_same(one: str, these: Collection, other: str, those: Collection) -> None:
    if set(these) != set(those):
        raise ValueError(
            f"{one} and {other} must be of the same modalities, but are of {sorted(these)} and "
            f"{sorted(those)}: give each all of them"
        )
