"""Sentences: a latent, and words that follow from it one after the other."""

import hashlib
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from ppvae.distributions import TokenDecoder, TokenSequence
from ppvae.distributions.token_sequence import END, PADDING
from ppvae.priors import Prior, prior_head
from ppvae.protocols import DATA_PLATE

__all__ = ["Sentence"]


class Sentence(nn.Module):
    """A latent z decoded into a sentence x, word by word.

        p(x, z) = p(z) prod_t p(x_t | x_<t, z)

    A batch holds token ids (N, T), each sentence ended by <eos> and padded with 0: padding has no
    probability, so that it changes nothing. In its log probability each word is scored after those
    of the datum; sampled, it is scored after those that were sampled: `Predictive` and `generate`
    write sentences of their own.

    Args:
        decoder: Scores and writes tokens given z, such as `networks.RecurrentDecoder`.
        latent_dim: The size D of the latent.
        prior: p(z): a distribution (fixed), a module that returns one when called (learned), or
            None for N(0, I).
        vocabulary: What tells one vocabulary from another, such as `data.Vocabulary.digest`. It is
            saved with the weights, and weights of another vocabulary are refused.

    Sites:
        z: (N, D) the latent.
        x: (N, T) the tokens, observed, one log probability per sentence.

    Raises:
        ValueError: If the prior's event is not a vector of size D; in the first step, if a batch
            holds no token ids, ids outside of the vocabulary, an empty sentence, or padding or
            <eos> before a token; if a state of another vocabulary is loaded.

    References:
        Pang et al. (2021), Generative Text Modeling through Short Run Inference, arXiv:2106.02513.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.networks import RecurrentDecoder
        >>> model = Sentence(RecurrentDecoder(10, 2, embedding_dim=4, hidden=8), latent_dim=2)
        >>> batch = torch.tensor([[3, 4, 1], [5, 1, 0]])
        >>> trace = poutine.trace(model).get_trace(batch)
        >>> trace.compute_log_prob(); trace.nodes["x"]["log_prob"].shape
        torch.Size([2])
    """

    def __init__(
        self,
        decoder: TokenDecoder,
        latent_dim: int,
        *,
        prior: dist.TorchDistribution | Prior | None = None,
        vocabulary: str = "",
    ) -> None:
        super().__init__()
        self.decoder, self.latent_dim = decoder, latent_dim
        self.prior = prior_head(prior, latent_dim)
        digest = hashlib.sha256(vocabulary.encode()).digest()[:8] if vocabulary else bytes(8)
        self.register_buffer("vocabulary", torch.tensor(list(digest), dtype=torch.uint8))

    def forward(self, batch: Tensor) -> None:
        """Sample z ~ p(z), and observe x at the tokens `(N, T)`."""
        if is_validation_enabled():
            _check(batch, self.decoder.out_features)
        with pyro.plate(DATA_PLATE, len(batch), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", TokenSequence(self.decoder, z, batch.shape[-1]), obs=batch)

    def generate(self, z: Tensor, max_length: int, *, temperature: float = 1.0) -> Tensor:
        """Write a sentence for each latent `(..., D)`: tokens, `(..., max_length)`.

        Args:
            z: Latents.
            max_length: Of the sentences, their <eos> counted; longer ones are broken off.
            temperature: What logits are divided by; 0 takes the likeliest word each time.

        Example:
            >>> from ppvae.networks import RecurrentDecoder
            >>> model = Sentence(RecurrentDecoder(10, 2, embedding_dim=4, hidden=8), latent_dim=2)
            >>> model.generate(torch.zeros(3, 2), 5, temperature=0).shape
            torch.Size([3, 5])
        """
        return self.decoder.generate(z, max_length, temperature=temperature)

    def _load_from_state_dict(
        self, state: Mapping[str, Tensor], prefix: str, *args: object
    ) -> None:
        """Load, unless both sides know their vocabulary and it is not the same."""
        saved, own = state.get(f"{prefix}vocabulary"), self.vocabulary
        if saved is not None and saved.any() and own.any() and not torch.equal(saved.to(own), own):
            raise ValueError(
                "the weights are of a model of another vocabulary, under whose ids other words "
                "stand: build the model, and encode the text, with the vocabulary that the "
                "weights were trained with"
            )
        super()._load_from_state_dict(state, prefix, *args)


def _check(batch: Tensor, size: int) -> None:
    """Raise if a batch is not made of sentences."""
    if batch.ndim != 2 or batch.is_floating_point():
        raise ValueError(
            f"a batch of sentences holds integer token ids (N, T), but is {tuple(batch.shape)} "
            f"{str(batch.dtype).removeprefix('torch.')}: encode text with data.Vocabulary"
        )
    if bad := batch[(batch < 0) | (batch > size)].tolist():
        raise ValueError(
            f"there is a token {bad[0]} outside of the vocabulary of {size} (ids 1 to {size}, and "
            "0 for padding): encode the text with the model's own vocabulary"
        )
    if rows := (batch == 0).all(-1).nonzero().flatten().tolist():
        raise ValueError(
            f"the sentence at row {rows[0]} of the batch is empty, padding alone: leave it out"
        )
    for what, token in (("padding, id 0,", PADDING), ("<eos>, id 1,", END)):
        if rows := ((batch[:, :-1] == token) & (batch[:, 1:] != 0)).any(-1).nonzero().tolist():
            raise ValueError(
                f"the sentence at row {rows[0][0]} of the batch has {what} before a token: end "
                "sentences once, and pad them after their end"
            )
