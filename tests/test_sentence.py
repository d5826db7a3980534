"""Models of sentences: exact probabilities, what padding does not do, and what is written."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.optim import Adam

from ppvae import SVI, CheckpointError, PairError, check_pair, fit, from_pyro_svi, log_weights
from ppvae.data import Vocabulary
from ppvae.diagnostics import evidence, perplexity
from ppvae.distributions import TokenSequence
from ppvae.guides import Langevin, Normal
from ppvae.langevin import ChainError
from ppvae.models import LinearGaussian, Sentence
from ppvae.networks import RecurrentDecoder, RecurrentEncoder
from ppvae.objectives import BetaELBO
from ppvae.recipes.text import lstm_vae, released_steps, short_run_text
from ppvae.weights import trace_pair

V = 6
BATCH = torch.tensor([[3, 4, 5, 1], [6, 1, 0, 0], [3, 3, 1, 0]])
each_cell = pytest.mark.parametrize("cell", ["lstm", "gru"])


def decoder(words=V, latent_dim=2, **kwargs):
    """A small decoder."""
    return RecurrentDecoder(words, latent_dim, 4, kwargs.pop("hidden", 5), **kwargs)


class Prior(nn.Module):
    """A guide that is the prior: z tells nothing."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.dtype = dtype

    def forward(self, batch):
        zeros = torch.zeros(2, dtype=self.dtype)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(zeros, zeros + 1).to_event(1))


def by_hand(network, z, tokens):
    """ln p(x|z) of one sentence, token by token, by nn.LSTMCell or nn.GRUCell."""
    gated = isinstance(network.cell, nn.LSTM)
    kind = nn.LSTMCell if gated else nn.GRUCell
    cell = kind(network.cell.input_size, network.cell.hidden_size).to(z)
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in network.cell.named_parameters()})
    h = network.start(z)[None]
    c, before, total = torch.zeros_like(h), 0, 0.0
    for token in tokens.tolist():
        if token == 0:
            break
        inputs = torch.cat([network.embedding.weight[before], z])[None]
        if gated:
            h, c = cell(inputs, (h, c))
        else:
            h = cell(inputs, h)
        logits = network.weight @ h[0] + network.bias
        total = total + logits.log_softmax(0)[token - 1]
        before = token
    return total


@each_cell
def test_the_log_probability_is_that_of_a_loop_over_tokens(cell):
    """By torch's cells, one token after the other, in float64."""
    network = decoder(cell=cell).double()
    z = torch.randn(3, 2).double()
    found = TokenSequence(network, z, 4).log_prob(BATCH)
    expected = torch.stack([by_hand(network, *row) for row in zip(z, BATCH, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@each_cell
def test_the_probabilities_of_all_sentences_sum_to_one(cell):
    """Brute force over sentences that end within 4 tokens, and beginnings of 4."""
    words, length = 3, 4
    network = decoder(words, cell=cell).double()
    tokens = range(1, words + 1)
    ended = [
        (*start, 1, *(0,) * (length - n - 1))
        for n in range(length)
        for start in itertools.product(tokens, repeat=n)
        if 1 not in start
    ]
    broken_off = [s for s in itertools.product(tokens, repeat=length) if 1 not in s]
    outcomes = torch.tensor(ended + broken_off)
    z = torch.randn(2).double().expand(len(outcomes), 2)
    total = TokenSequence(network, z, length).log_prob(outcomes).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros(()).double(), rtol=0, atol=1e-12)


def test_draws_come_as_often_as_they_are_probable():
    """Within 4 standard errors, for each of the sentences of two words' alphabet."""
    network, length, count = decoder(2).double(), 3, 20_000
    z = torch.randn(2).double()
    p = TokenSequence(network, z, length)
    draws = p.sample((count,))
    outcomes, counts = draws.unique(dim=0, return_counts=True)
    assert {(1, 0, 0), (2, 1, 0), (2, 2, 1), (2, 2, 2)} == {tuple(o) for o in outcomes.tolist()}
    expected = TokenSequence(network, z.expand(4, 2), length).log_prob(outcomes).exp()
    error = (expected * (1 - expected) / count).sqrt()
    assert ((counts / count - expected).abs() < 4 * error).all()


def bigram():
    """A decoder whose state forgets all but the last word, and the table that it then is."""
    network = decoder().double()
    with torch.no_grad():
        for name, parameter in network.cell.named_parameters():
            if name.startswith("weight_hh"):
                parameter.zero_()
            if name.startswith("weight_ih"):
                parameter[:, -2:] = 0.0  # z
        network.cell.bias_ih_l0[5:10] = -1e9  # the forget gate
        i, _, g, o = (  # each (V + 1, 5), of the word before
            network.embedding.weight @ network.cell.weight_ih_l0[:, :4].T
            + network.cell.bias_ih_l0
            + network.cell.bias_hh_l0
        ).chunk(4, dim=1)
        h = o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()
        return network, (h @ network.weight.T + network.bias).log_softmax(-1)


def test_a_bigram_model_has_its_closed_form():
    """ln p(x) = sum_t ln P[x_(t-1), x_t], and the weights of the prior's draws are all that."""
    network, table = bigram()
    model = Sentence(network, 2).double()
    before = torch.cat([torch.zeros(3, 1, dtype=torch.long), BATCH[:, :-1]], dim=1)
    terms = table[before, BATCH - 1] * (BATCH > 0)
    log_w = log_weights(model, Prior(torch.float64), BATCH, 7)
    torch.testing.assert_close(log_w, terms.sum(1).expand(7, 3), rtol=0, atol=1e-12)
    found = perplexity(evidence(log_w).log_evidence, BATCH)
    assert math.isclose(found.per_token, math.exp(-float(terms.sum()) / 9), rel_tol=1e-12)
    assert math.isclose(found.nll, -float(terms.sum()) / 3, rel_tol=1e-12)
    assert found.tokens == 3.0


def test_the_perplexity_of_a_uniform_decoder_is_the_vocabulary():
    """Padding is no outcome, and <eos> is one."""
    network = decoder()
    nn.init.zeros_(network.own)
    log_w = log_weights(Sentence(network, 2), Prior(), BATCH, 2)
    assert math.isclose(perplexity(evidence(log_w).log_evidence, BATCH).per_token, V, rel_tol=1e-6)


@each_cell
def test_padding_changes_nothing(cell):
    """Neither the decoder's probabilities, nor the encoder's features, nor any gradient."""
    model, network = Sentence(decoder(cell=cell), 2), RecurrentEncoder(V, 4, 5, cell=cell)
    wide = nn.functional.pad(BATCH, (0, 6))
    z = torch.randn(3, 2)
    values = [model.decoder.log_prob(z, tokens).sum(-1) for tokens in (BATCH, wide)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(network(BATCH), network(wide))
    grads = [torch.autograd.grad(v.sum(), [*model.decoder.parameters()]) for v in values]
    torch.testing.assert_close(*grads)
    alone = torch.cat([network(row[row > 0][None]) for row in BATCH])
    torch.testing.assert_close(network(BATCH), alone)


@each_cell
def test_particles_fold_into_the_batch(cell):
    """(K, N) log probabilities, each that of its z alone."""
    network = decoder(cell=cell)
    z = torch.randn(4, 3, 2)
    together = TokenSequence(network, z, 4).log_prob(BATCH)
    apart = torch.stack([TokenSequence(network, each, 4).log_prob(BATCH) for each in z])
    assert together.shape == (4, 3)
    torch.testing.assert_close(together, apart)
    values = torch.stack([BATCH, BATCH.flip(0)])  # more draws of one distribution
    found = TokenSequence(network, z[0], 4).log_prob(values)
    torch.testing.assert_close(found[0], together[0])
    torch.testing.assert_close(found[1], TokenSequence(network, z[0], 4).log_prob(values[1]))
    tokens = BATCH.expand(4, 3, 4)
    encoder = RecurrentEncoder(V, 4, 5, cell=cell)
    torch.testing.assert_close(encoder(tokens), encoder(BATCH).expand(4, 3, 5))


def test_ids_of_any_width_are_taken():
    """Tokens of 32 bits, as a file may hold them."""
    network, z = decoder(), torch.randn(3, 2)
    torch.testing.assert_close(network.log_prob(z, BATCH.int()), network.log_prob(z, BATCH))


def test_few_logits_at_a_time_are_the_same(monkeypatch):
    """What evaluation does without gradients, where all logits would fill the memory."""
    network, z = decoder(), torch.randn(4, 3, 2)
    expected = network.log_prob(z, BATCH)
    monkeypatch.setattr("ppvae.networks.recurrent.LOGITS", 5 * V)
    with torch.no_grad():
        torch.testing.assert_close(network.log_prob(z, BATCH), expected.detach())
    pyro.set_rng_seed(0)
    assert network.generate(z, 4, temperature=0).shape == (4, 3, 4)


@each_cell
def test_the_log_probability_is_differentiable_twice_in_z(cell):
    """As mode C of the Langevin guide needs it, on a CPU: against finite differences."""
    network = decoder(cell=cell).double()
    z = torch.randn(3, 2).double().requires_grad_()

    def log_p(z):
        return network.log_prob(z, BATCH).sum(-1)

    assert torch.autograd.gradcheck(log_p, z)
    assert torch.autograd.gradgradcheck(log_p, z)


@each_cell
def test_greedy_sentences_are_those_of_brute_force(cell):
    """Each next word the likeliest of all, scored as if it stood in the sentence."""
    network, length = decoder(cell=cell).double(), 5
    for z in torch.randn(6, 2).double() * 3:
        written = []
        while len(written) < length and 1 not in written:
            options = torch.tensor([[*written, word] for word in range(1, V + 1)])
            scores = network.log_prob(z.expand(V, 2), options).sum(-1)
            written.append(1 + int(scores.argmax()))
        written += [0] * (length - len(written))
        assert network.generate(z[None], length, temperature=0).tolist() == [written]


def test_writing_ends_with_the_end():
    """After <eos> there is padding alone; the temperature bends, and 0 draws no number."""
    model = Sentence(decoder(), 2).double()
    z = torch.randn(200, 2).double()
    tokens = model.generate(z, 7)
    ended = (tokens == 1).cumsum(1) - (tokens == 1).long()
    assert ((tokens == 0) == (ended > 0)).all()
    state = torch.get_rng_state()
    greedy = model.generate(z, 7, temperature=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.generate(z, 7, temperature=1e-9), greedy)
    assert model.generate(z[:12].reshape(4, 3, 2), 7).shape == (4, 3, 7)
    for bad in ({"max_length": 0}, {"max_length": 3, "temperature": -1.0}):
        with pytest.raises(ValueError, match="max_length must be at least 1 and temperature"):
            model.generate(z, **bad)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_word_dropout_hides_none_or_all_words(share):
    """At 1 each word is read as <unk>, the start aside; at 0, and in evaluation, none is."""
    network = decoder(word_dropout=share)
    z = torch.randn(3, 2)
    dropped = network.log_prob(z, BATCH)
    plain = network.eval().log_prob(z, BATCH)
    assert torch.equal(dropped, plain) == (share == 0)
    read = torch.where(BATCH > 0, 2, 0)  # what stands before, all unknown
    states = network.states(z, read)
    expected = -nn.functional.cross_entropy(
        (states @ network.weight.T + network.bias).flatten(0, 1),
        BATCH.flatten() - 1,
        ignore_index=-1,
        reduction="none",
    )
    if share:
        torch.testing.assert_close(dropped, expected.reshape(3, 4))


def test_dropout_is_for_training():
    """Evaluation draws no random number; training draws anew."""
    network, z = decoder(dropout=0.5), torch.randn(3, 2)
    assert not torch.equal(network.log_prob(z, BATCH), network.log_prob(z, BATCH))
    network.eval()
    assert torch.equal(network.log_prob(z, BATCH), network.log_prob(z, BATCH))


def test_tied_weights_are_one():
    """What is read and what is written, padding left out; sizes must agree."""
    network = decoder(hidden=4, tied=True)
    assert network.weight.data_ptr() == network.embedding.weight[1:].data_ptr()
    assert network.log_prob(torch.zeros(3, 2), BATCH).isfinite().all()
    free = sum(p.numel() for p in decoder(hidden=4).parameters())
    assert free - sum(p.numel() for p in network.parameters()) == 4 * V
    with pytest.raises(ValueError, match="embedding_dim=4, and words written, of hidden=5"):
        decoder(tied=True)


def test_unknown_cells_and_shares_are_refused():
    """By name."""
    with pytest.raises(ValueError, match="unknown cell 'rnn'"):
        decoder(cell="rnn")
    with pytest.raises(ValueError, match=r"word_dropout must lie in \[0, 1\], but is 1.5"):
        decoder(word_dropout=1.5)


def test_cells_run_as_in_training_and_keep_their_mode():
    """cuDNN has a backward pass in training mode only, and there is no dropout in them."""
    network = decoder().eval()
    seen = []
    network.cell.register_forward_hook(lambda cell, *_: seen.append(cell.training))
    network.log_prob(torch.zeros(3, 2), BATCH)
    assert seen == [True]
    assert not network.cell.training


# The pair


def pair(words=V):
    """A model and the baseline's guide."""
    return Sentence(decoder(words), 2), Normal(RecurrentEncoder(words, 4, 5), 2)


def test_tokens_take_their_place_in_a_trace():
    """One site, one log probability per sentence, and under particles (K, N)."""
    for trace in trace_pair(*pair(), BATCH, 4):
        assert trace.nodes["z"]["log_prob"].shape == (4, 3)
    model_trace, _ = trace_pair(*pair(), BATCH, 4)
    assert model_trace.nodes["x"]["log_prob"].shape == (4, 3)
    assert model_trace.nodes["x"]["fn"].event_shape == (4,)


def test_what_the_model_samples_it_has_written_itself():
    """Teacher forcing does not generate: draws do not depend on the batch but for its length."""
    model = Sentence(decoder(), 2)
    draws = []
    for batch in (BATCH, BATCH.flip(0)):
        pyro.set_rng_seed(3)
        trace = poutine.trace(poutine.uncondition(model)).get_trace(batch)
        draws.append(trace.nodes["x"]["value"])
    assert torch.equal(*draws)
    assert draws[0].shape == BATCH.shape
    tree = from_pyro_svi(*pair(), BATCH, draws=5)
    assert dict(tree["posterior_predictive/x"].sizes) == {
        "chain": 1,
        "draw": 5,
        "data": 3,
        "x_dim_0": 4,
    }


def test_a_pair_learns_its_sentences():
    """Four sentences by heart: the bound comes near ln 4 per sentence."""
    batch = torch.tensor([[3, 4, 1], [4, 5, 1], [5, 6, 1], [6, 3, 1]])
    svi = SVI(*pair(), partial(Adam, lr=0.03), BetaELBO())
    for _ in range(300):
        loss = svi.step(batch)
    assert math.log(4) - 0.05 < float(loss) < math.log(4) + 0.3


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.tensor([[3, 7, 1]]), r"token 7 outside of the vocabulary of 6 \(ids 1 to 6"),
        (torch.tensor([[3, -1, 1]]), "token -1 outside of the vocabulary of 6"),
        (torch.tensor([[3, 1], [0, 0]]), "sentence at row 1 of the batch is empty"),
        (torch.tensor([[3, 1], [0, 1]]), "row 1 of the batch has padding, id 0, before a token"),
        (torch.tensor([[3, 1], [1, 4]]), "row 1 of the batch has <eos>, id 1, before a token"),
        (torch.tensor([[3, 4, 1], [3, 1, 1]]), "row 1 of the batch has <eos>, id 1, before a"),
        (torch.rand(2, 3), r"integer token ids \(N, T\), but is \(2, 3\) float32"),
        (torch.ones(2, dtype=torch.long), r"integer token ids \(N, T\), but is \(2,\) int64"),
    ],
)
def test_batches_of_what_is_no_sentence_are_refused(batch, message):
    """By the model, in the first step and by `check_pair`."""
    model, _ = pair()
    with pytest.raises(ValueError, match=message):
        SVI(model, Prior(), partial(Adam, lr=0.01), BetaELBO()).step(batch)
    with pytest.raises(PairError, match=message):
        check_pair(model, Prior(), batch)


@pytest.mark.parametrize("guide", [lambda _: pair()[1], Langevin], ids=["normal", "langevin"])
@pytest.mark.parametrize("batch", [[[3, 7, 1]], [[3, 7]], [[-1, 1]]])
def test_tokens_outside_of_the_vocabulary_are_named_by_guides_too(guide, batch):
    """They look at the batch before the model does; also where no validation is on."""
    model, batch = Sentence(decoder(), 2), torch.tensor(batch)
    svi = SVI(model, guide(model), partial(Adam, lr=0.01), Trace_ELBO())
    for svi.validate in (True, False):
        with pytest.raises(ValueError, match=r"token (7|-1) outside of the vocabulary of 6"):
            svi.step(batch)


def test_weights_of_another_vocabulary_are_refused():
    """In words, and nothing is loaded; where one side does not know, there is nothing to say."""
    words = [Vocabulary(words) for words in (["a", "b"], ["b", "a"])]
    one, other = (Sentence(decoder(4), 2, vocabulary=v.digest) for v in words)
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(ValueError, match="weights are of a model of another vocabulary"):
        other.load_state_dict(one.state_dict())
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())
    again = Sentence(decoder(4), 2, vocabulary=words[0].digest)
    again.load_state_dict(one.state_dict())
    unnamed = Sentence(decoder(4), 2)
    unnamed.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="another vocabulary"):
        other.load_state_dict(unnamed.state_dict())


def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path):
    """By `fit(resume=True)`."""

    def run(vocabulary, resume):
        model = Sentence(decoder(), 2, vocabulary=vocabulary)
        svi = SVI(model, pair()[1], partial(Adam, lr=0.01), BetaELBO())
        fit(svi, BATCH, epochs=1, checkpoint=tmp_path, resume=resume, progress=False)

    run("one", False)
    with pytest.raises(CheckpointError, match="another vocabulary"):
        run("other", True)


# Recipes

SMALL = {"latent_dim": 2, "embedding_dim": 4, "hidden": 5, "device": "cpu"}


def test_the_recipe_has_the_paper_numbers():
    """Sheet, section 3: steps, start, dropout, clipping, Adam, and the noise by epoch."""
    svi = short_run_text(10_000, device="cpu")
    steps = [0.8, 0.7, 0.6, 0.5, 0.2, 0.2, 0.1, 0.1, 0.05] + [0.05] * 11
    assert svi.guide.step_sizes.tolist() == pytest.approx(steps)
    assert list(released_steps(20)) == steps
    network = svi.model.decoder
    assert (network.in_features, network.dropout, svi.clip_norm) == (32, 0.5, 5.0)
    assert network.embedding.weight.shape == (10_001, 256)
    assert network.cell.weight_hh_l0.shape == (4 * 256, 256)
    assert svi.optimizer.param_groups[0]["lr"] == 1e-3
    largest = max(float(p.detach().abs().max()) for p in svi.parameters.values())
    assert 0.09 < largest <= 0.1
    noises = [float(svi.guide.noise)]
    for epochs in range(1, 20):
        svi.callbacks[0](svi, range(epochs))
        noises.append(float(svi.guide.noise))
    assert noises[:15] == pytest.approx([0.05] * 15)
    assert noises[15:] == pytest.approx([0.1, 0.15, 0.2, 0.2, 0.2])


@pytest.mark.parametrize(
    "make",
    [
        short_run_text,
        partial(short_run_text, cold_epochs=0, step_size=0.3, noise=1.0, steps=3),
        lstm_vae,
        partial(lstm_vae, annealing="cyclical", annealing_steps=8),
        partial(lstm_vae, annealing="none", free_bits=0.1, cell="gru"),
    ],
)
def test_recipes_train(make):
    """A few steps, from a vocabulary or from its size."""
    words = Vocabulary(["a", "b", "c", "d"])
    for features in (len(words), words.tokens):
        svi = make(features, **SMALL)
        losses = [float(svi.step(BATCH)) for _ in range(3)]
        assert all(math.isfinite(loss) for loss in losses)
        assert svi.model.vocabulary.any() == (features == words.tokens)


def test_an_unknown_annealing_is_refused():
    """By name."""
    with pytest.raises(ValueError, match="'none', 'linear' or 'cyclical', but is 'square'"):
        lstm_vae(10, annealing="square", **SMALL)


def test_the_released_steps_go_on_where_others_are_refused():
    """They throw some chains far, which their authors let pass; other steps are checked."""
    assert not short_run_text(6, **SMALL).guide.checked
    assert short_run_text(6, **SMALL, step_size=0.3).guide.checked
    steep = LinearGaussian(torch.ones(3, 2), scale=0.1)
    for checked in (True, False):
        svi = SVI(steep, Langevin(steep, 3, 0.8, checked=checked), Adam, Trace_ELBO())
        if checked:
            with pytest.raises(ChainError, match="diverges from step 1 of 3"):
                svi.step(torch.zeros(4, 3))
        else:
            svi.step(torch.zeros(4, 3))


def test_the_support_is_what_can_be_drawn():
    """Of all sequences of three tokens: nothing after <eos> but padding, and no empty sentence."""
    decoder = RecurrentDecoder(3, latent_dim=2, embedding_dim=4, hidden=8)
    p = TokenSequence(decoder, torch.zeros(2), length=3)
    everything = torch.cartesian_prod(*[torch.arange(4)] * 3)
    inside = p.support.check(everything)
    drawn = TokenSequence(decoder, torch.zeros(2000, 2), length=3).sample()
    assert p.support.check(drawn).all()
    ended = [[a, b, 1] for a in (2, 3) for b in (2, 3)] + [[a, 1, 0] for a in (2, 3)] + [[1, 0, 0]]
    whole = p.support.check(torch.tensor(ended))
    assert whole.all()
    full = everything[inside & (everything[:, -1] != 0) | inside & (everything == 1).any(-1)]
    assert p.log_prob(full).exp().sum().item() == pytest.approx(1, abs=1e-5)
    for bad in ([1, 2, 0], [2, 1, 1], [2, 0, 1], [0, 0, 0], [4, 1, 0]):
        with pytest.raises(ValueError, match="within the support"):
            p.log_prob(torch.tensor(bad))
