"""Several modalities of one thing: a shared latent, a decoder and a likelihood for each."""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ppvae.likelihoods import Likelihood, likelihood_head, neutral
from ppvae.models.linear_modalities import log_evidence, posterior
from ppvae.priors import Prior, StandardNormal, prior_head
from ppvae.protocols import DATA_PLATE, Batch, batch_size, modalities, require_names, seen

__all__ = ["Multimodal"]


class Multimodal(nn.Module):
    """One latent z decoded into M modalities, any of which may be missing from a datum.

        p(x, z) = p(z) prod_m p(x_m | decoder_m(z)),  and over the seen m alone: p(x_S, z)

    A modality is missing from a datum where its row is all NaN. It then adds nothing to the log
    probability, and no gradient reaches its decoder: nothing else says so, there is no flag.
    Labels are a modality like others: one-hot, in float, under the likelihood "one_hot". Together
    with a learned `priors.NormalMixture` they make the identifiable variant.

    Args:
        decoders: Modules by modality, from latents `(..., D)`, or `(..., D + P)` with private
            ones, to h of the modality's event shape.
        latent_dim: The size D of the shared latent.
        likelihoods: As in `VAE`, one for all or by modality; a name that learns a scale learns
            one for each.
        prior: p(z), as in `VAE`.
        private_dim: The size P of a latent z_m ~ N(0, I) of each modality's own, which its decoder
            finds after z; none by default.

    Sites:
        z: (N, D) the shared latent.
        z_<name>: (N, P) the private ones, if any.
        <name>: (N, ...) each modality, observed, masked where it is missing.

    Raises:
        ValueError: If there are no decoders, a likelihood has no decoder or the other way around,
            or as in `VAE`.
        ModalityError: On a batch that is no mapping, lacks a modality or has another.

    References:
        Wu, Goodman (2018), arXiv:1802.05335. Hirt et al. (2024), Learning Multi-Modal Generative
        Models with Permutation-Invariant Encoders, arXiv:2309.00380.

    Example:
        >>> from pyro import poutine
        >>> decoders = {"image": nn.Linear(2, 8), "label": nn.Linear(2, 3)}
        >>> model = Multimodal(decoders, 2, {"image": "bernoulli", "label": "one_hot"})
        >>> batch = {"image": torch.full((5, 8), torch.nan), "label": torch.eye(5, 3)}
        >>> batch["label"][3:] = torch.nan  # of these data nothing is seen
        >>> trace = poutine.trace(model).get_trace(batch)
        >>> trace.compute_log_prob(); trace.nodes["image"]["log_prob"]
        tensor([0., 0., 0., 0., 0.], grad_fn=<WhereBackward0>)
    """

    def __init__(
        self,
        decoders: Mapping[str, nn.Module],
        latent_dim: int,
        likelihoods: str | Likelihood | Mapping[str, str | Likelihood] = "normal",
        prior: dist.TorchDistribution | Prior | None = None,
        *,
        private_dim: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(likelihoods, Mapping):
            likelihoods = dict.fromkeys(decoders, likelihoods)
        if not decoders or decoders.keys() != likelihoods.keys():
            raise ValueError(
                f"each modality needs a decoder and a likelihood, but there are decoders for "
                f"{list(decoders)} and likelihoods for {list(likelihoods)}"
            )
        require_names(decoders)
        self.names = tuple(decoders)
        self.decoders = nn.ModuleDict(decoders)
        self.latent_dim, self.private_dim = latent_dim, private_dim
        self.likelihoods = {name: likelihood_head(likelihoods[name]) for name in decoders}
        self.likelihood_modules = nn.ModuleDict(  # these move with the model
            {name: h for name, h in self.likelihoods.items() if isinstance(h, nn.Module)}
        )
        self.prior = prior_head(prior, latent_dim)
        self.private_prior = StandardNormal(private_dim) if private_dim else None

    def forward(self, batch: Batch) -> None:
        """Sample z ~ p(z), and observe what is seen of the batch, `(N, ...)` by modality."""
        batch = modalities(batch, self.names)
        there = dict(zip(batch, seen(batch).unbind(1), strict=True))
        with pyro.plate(DATA_PLATE, batch_size(batch), dim=-1):
            z = pyro.sample("z", self.prior())
            private = {
                name: pyro.sample(f"z_{name}", self.private_prior())
                for name in (self.names if self.private_dim else ())
            }
            for name, p_x in self.decode(z, private).items():
                obs = there[name]
                rows = obs.reshape(-1, *(1,) * (batch[name].ndim - 1))
                x = torch.where(rows, batch[name], neutral(p_x, batch[name]))
                with poutine.mask(mask=obs):
                    pyro.sample(name, p_x, obs=x)

    def decode(
        self, z: Tensor, private: Mapping[str, Tensor] | None = None
    ) -> dict[str, dist.TorchDistribution]:
        """Return p(x_m|z) by modality, of batch shape (...), from z, `(..., D)`.

        Private latents, `(..., P)` by modality, are drawn from their prior if they are not given.
        """
        if self.private_dim and not private:
            p = self.private_prior().expand(z.shape[:-1])
            private = {name: p.sample() for name in self.names}
        decoded = {}
        for name in self.names:
            inputs = torch.cat([z, private[name]], -1) if self.private_dim else z
            p_x = self.likelihoods[name](self.decoders[name](inputs))
            decoded[name] = p_x.to_event(len(p_x.batch_shape) - (z.ndim - 1))
        return decoded

    def posterior(self, batch: Batch) -> dist.MultivariateNormal:
        """Return p(z|x_S), of batch shape (N,), for linear decoders and Normal likelihoods.

        Raises:
            TypeError: If it is not known: another decoder, likelihood or prior, private latents.
        """
        return posterior(self, modalities(batch, self.names))

    def log_evidence(self, batch: Batch) -> Tensor:
        """Return ln p(x_S), `(N,)` in nats, where `posterior` is known; 0 where nothing is seen.

        Raises:
            TypeError: As in `posterior`.
        """
        return log_evidence(self, modalities(batch, self.names))
