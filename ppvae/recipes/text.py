"""Sentences from a latent: by short runs of Langevin dynamics, or with an encoder."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from pyro.infer import Trace_ELBO
from torch import nn

from ppvae.data.vocabulary import Vocabulary
from ppvae.guides import Langevin, Normal
from ppvae.models import Sentence
from ppvae.networks import RecurrentDecoder, RecurrentEncoder
from ppvae.objectives import BetaELBO, cyclical, warmup
from ppvae.training import SVI, resolve_device
from ppvae.training.callbacks import anneal

__all__ = ["lstm_vae", "released_steps", "short_run_text"]

FIRST, REST = (0.8, 0.7, 0.6, 0.5, 0.2, 0.2, 0.1, 0.1), 0.05  # bpucla/sri_text, set by hand
UNIFORM = 0.1  # parameters start within it, as in the released code

Words = int | tuple[str, ...]


def short_run_text(
    features: Words,
    *,
    latent_dim: int = 32,
    embedding_dim: int = 256,
    hidden: int = 256,
    cell: Literal["lstm", "gru"] = "lstm",
    steps: int = 20,
    step_size: float | None = None,
    noise: float = 0.2,
    cold_epochs: int = 15,
    dropout: float = 0.5,
    word_dropout: float = 0.0,
    tied: bool = False,
    learning_rate: float = 1e-3,
    device: str | torch.device = "auto",
) -> SVI:
    """Short-run inference of sentences: no encoder, 20 Langevin steps from the prior.

    Defaults are those of the authors' code for Penn Treebank, trained for 60 epochs on batches of
    32 sentences of equal length, gradients of norm 5 at most: the noise T is a quarter of its last
    value for 15 epochs, and then rises by another quarter per epoch. Embedding and hidden sizes
    were 128 and 512 for SNLI and Yelp (s = .4, 40 steps, no noise), 512 and 1,024 for Yahoo. A
    setting for two cores is `latent_dim=16, embedding_dim=64, hidden=128, cold_epochs=0,
    learning_rate=2e-3` on 2,000 words and 10,000 sentences of 3 to 15. T < 1 targets a colder
    posterior than the paper's equation 7, which has T = 1. The loss is -Q, and no bound. The long
    first steps of the released code throw the chains of some sentences far away, where nothing
    brings them back: seen on the small setting as losses that jump, and let pass here.

    Args:
        features: The words by token id, `data.Vocabulary.tokens`, or the number V of tokens.
        latent_dim: The size D of the latent.
        embedding_dim: The size of a word's embedding.
        hidden: The size of the decoder's state.
        cell: Of the decoder.
        steps: K, of the chain.
        step_size: s of all steps, with drift s^2/2; None for those of the released code.
        noise: T at the end, what the noise of a step is multiplied by.
        cold_epochs: For how many epochs T is a quarter of it; 0 for none.
        dropout: On embeddings and states, not in the chain.
        word_dropout: The share of words that the decoder does not get to read.
        tied: Whether words read and written share their weights; needs equal sizes.
        learning_rate: Adam's.
        device: Where to train: "auto" takes CUDA where there is one.

    References:
        Pang, Nijkamp, Han, Wu (2021), Generative Text Modeling through Short Run Inference,
        arXiv:2106.02513.

    Example:
        >>> svi = short_run_text(50, latent_dim=4, embedding_dim=8, hidden=8, device="cpu")
        >>> svi.step(torch.tensor([[3, 4, 1], [5, 6, 1]])).isfinite()
        tensor(True)
    """
    where = resolve_device(device)
    model = _sentence(
        features, latent_dim, embedding_dim, hidden, cell, dropout, word_dropout, tied
    ).to(where)
    sizes = released_steps(steps) if step_size is None else step_size
    quarter = 0.25 * noise
    start = quarter if cold_epochs else noise
    checked = step_size is not None  # the released steps are long for some data, and go on
    guide = Langevin(model, steps, sizes, noise=start, checked=checked).to(where)
    callbacks = []
    if cold_epochs:

        def warmer(epochs: int) -> float:
            return quarter * min(max(epochs - cold_epochs + 2, 1), 4)

        callbacks.append(anneal("guide.noise", warmer))
    optim = partial(torch.optim.Adam, lr=learning_rate)
    return SVI(model, guide, optim, Trace_ELBO(), clip_norm=5.0, callbacks=callbacks)


def lstm_vae(
    features: Words,
    *,
    annealing: Literal["none", "linear", "cyclical"] = "linear",
    annealing_steps: int = 13_000,
    free_bits: float = 0.0,
    latent_dim: int = 32,
    embedding_dim: int = 256,
    hidden: int = 256,
    cell: Literal["lstm", "gru"] = "lstm",
    dropout: float = 0.5,
    word_dropout: float = 0.0,
    tied: bool = False,
    learning_rate: float = 1e-3,
    device: str | torch.device = "auto",
) -> SVI:
    """The amortized baseline of `short_run_text`: the same model, with a recurrent encoder.

    Its posterior collapses onto the prior if nothing is done about it: the KL is annealed, over
    ten epochs on Penn Treebank by default, or kept from falling below free bits. Lagging inference
    is `ppvae.training.LaggingSVI` on this model and guide.

    Args:
        features: As in `short_run_text`.
        annealing: How beta rises to 1: not at all, once, or four times.
        annealing_steps: In how many training steps.
        free_bits: As in `BetaELBO`, in nats per coordinate.
        latent_dim: The size D of the latent.
        embedding_dim: The size of a word's embedding.
        hidden: The size of the states, of encoder and decoder.
        cell: Of both.
        dropout: On embeddings and states of the decoder.
        word_dropout: The share of words that the decoder does not get to read.
        tied: Whether words read and written share their weights; needs equal sizes.
        learning_rate: Adam's.
        device: Where to train: "auto" takes CUDA where there is one.

    References:
        Bowman et al. (2016), Generating Sentences from a Continuous Space, arXiv:1511.06349.
        Fu et al. (2019), Cyclical Annealing Schedule, arXiv:1903.10145. Li et al. (2019), A
        Surprisingly Effective Fix for Deep Latent Variable Modeling of Text, arXiv:1909.00868.

    Example:
        >>> svi = lstm_vae(50, latent_dim=4, embedding_dim=8, hidden=8, device="cpu")
        >>> svi.step(torch.tensor([[3, 4, 1], [5, 6, 1]])).isfinite()
        tensor(True)
    """
    schedules: dict[str, Callable] = {"linear": warmup, "cyclical": cyclical}
    if annealing not in ("none", *schedules):
        raise ValueError(f"annealing must be 'none', 'linear' or 'cyclical', but is {annealing!r}")
    beta = 1.0 if annealing == "none" else schedules[annealing](annealing_steps)
    where = resolve_device(device)
    model = _sentence(
        features, latent_dim, embedding_dim, hidden, cell, dropout, word_dropout, tied
    ).to(where)
    encoder = RecurrentEncoder(model.decoder.out_features, embedding_dim, hidden, cell=cell)
    guide = _started(Normal(encoder, latent_dim)).to(where)
    loss = BetaELBO(beta, free_bits=free_bits).to(where)
    optim = partial(torch.optim.Adam, lr=learning_rate)
    return SVI(model, guide, optim, loss, clip_norm=5.0)


def released_steps(steps: int = 20) -> tuple[float, ...]:
    """Return the step sizes of the short-run text model's released code, set by hand.

    Example:
        >>> released_steps(10)
        (0.8, 0.7, 0.6, 0.5, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05)
    """
    return (FIRST + (REST,) * steps)[:steps]


def _sentence(
    features: Words,
    latent_dim: int,
    embedding_dim: int,
    hidden: int,
    cell: Literal["lstm", "gru"],
    dropout: float,
    word_dropout: float,
    tied: bool,
) -> Sentence:
    """Return the model that the recipes share, started as in the released code."""
    named = not isinstance(features, int)
    vocabulary = Vocabulary(features[3:]) if named else None
    decoder = RecurrentDecoder(
        len(vocabulary) if named else features,
        latent_dim,
        embedding_dim,
        hidden,
        cell=cell,
        dropout=dropout,
        word_dropout=word_dropout,
        tied=tied,
    )
    return _started(Sentence(decoder, latent_dim, vocabulary=vocabulary.digest if named else ""))


def _started(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -UNIFORM, UNIFORM)
    return module
