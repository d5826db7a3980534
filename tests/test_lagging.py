"""Lagging inference: who moves when, when it ends, and that it resumes exactly."""

import copy
import math
from functools import partial

import pyro
import pytest
import torch
from torch.optim import SGD, Adam

from ppvae import SVI, Batches, fit
from ppvae.data import SentenceBatches
from ppvae.diagnostics import mutual_information
from ppvae.guides import Normal
from ppvae.models import VAE, Sentence
from ppvae.networks import MLP, RecurrentDecoder, RecurrentEncoder
from ppvae.objectives import BetaELBO, warmup
from ppvae.training import LaggingSVI
from ppvae.training.lagging import observed_scalars

X = (torch.rand(60, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def parts(seed=0):
    """A fresh model and guide."""
    pyro.set_rng_seed(seed)
    return VAE(MLP(2, 8), latent_dim=2), Normal(MLP(8, 16), latent_dim=2)


def lagging(pair=None, optim=Adam, loss=None, **kwargs):
    """A fresh LaggingSVI."""
    inner = Batches(X, 10, seed=1)
    options = {"inner": inner, "held_out": X[:20], **kwargs}
    return LaggingSVI(*(pair or parts()), partial(optim, lr=1e-2), loss or BetaELBO(), **options)


def weights(module):
    """A copy of all parameters."""
    return [p.detach().clone() for p in module.parameters()]


def same(a, b):
    """Whether two lists of tensors are bitwise equal."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_guide_moves_first_and_the_model_alone():
    """Of algorithm 1: inner steps leave the model in place, the outer step leaves the guide."""
    svi, seen = lagging(most=10), []
    descend = svi._descend

    def watched(*args, **kwargs):
        before = weights(svi.model), weights(svi.guide)
        loss = descend(*args, **kwargs)
        seen.append((same(before[0], weights(svi.model)), same(before[1], weights(svi.guide))))
        return loss

    svi._descend = watched
    svi.step(X[:10])
    assert seen == [(True, False)] * 10 + [(False, True)]
    assert svi.inner_steps == 10
    assert all(p.requires_grad for p in svi.parameters.values())
    assert not [p for p in svi.guide.parameters() if p.grad is not None]


def test_an_inner_step_is_a_step_of_the_guide_on_its_own_batches():
    """Bitwise those of a guide trained with the model held, on the same batches and draws."""
    svi = lagging(most=20, window=20)
    pyro.set_rng_seed(5)
    svi.step(X[:10])
    model, guide = parts()
    model.requires_grad_(False)
    plain = SVI(model, guide, partial(Adam, lr=1e-2), BetaELBO())
    pyro.set_rng_seed(5)
    batches, done = Batches(X, 10, seed=1), 0
    while done < 20:
        for batch in batches:
            if done < 20:
                plain.step(batch)
            done += 1
    assert same(weights(svi.guide), weights(guide))
    model.requires_grad_(True)
    guide.requires_grad_(False)
    SVI(model, guide, partial(Adam, lr=1e-2), BetaELBO()).step(X[:10])
    assert same(weights(svi.model), weights(model))


@pytest.mark.parametrize(
    ("means", "steps"),
    [([3.0, 2.0, 1.0, 0.5], 8), ([3.0, 3.0, 1.0], 4), ([3.0, 2.0, 2.5], 6), ([math.nan], 2)],
)
def test_the_inner_loop_ends_when_a_window_is_no_better(means, steps):
    """Means of windows of 2 losses, at most 8 inner steps; NaN ends it, for `fit` to say why."""
    svi, losses = lagging(window=2, most=8), iter([m for mean in means for m in (mean, mean)])
    svi._descend = lambda *_: torch.tensor(next(losses, 9.0))
    svi._catch_up()
    assert svi.inner_steps == steps


@pytest.mark.parametrize("kind", ["tokens", "modalities"])
def test_windows_of_other_sizes_compare_by_what_they_observe(kind):
    """The loss per scalar falls, however much longer the next windows' data are; then it rises."""
    tokens = torch.ones(6, 8, dtype=torch.long) * (torch.arange(8) < torch.arange(2, 8)[:, None])
    views = {
        name: torch.where(tokens.bool() == (name == "a"), 1.0, math.nan) for name in ("a", "b")
    }
    views["b"][:] = math.nan
    inner = Batches(tokens if kind == "tokens" else views, 1, shuffle=False)
    svi = lagging(window=1, most=6, inner=inner)
    per_scalar = iter([1.0, 0.9, 0.8, 0.7, 0.75])  # of 2, 3, 4, ... scalars: their sums rise
    svi._descend = lambda batch: next(per_scalar) * observed_scalars(batch)
    svi._catch_up()
    assert svi.inner_steps == 5
    per_scalar = iter([1.0, 0.9])
    svi = lagging(window=1, most=6, inner=inner, size=lambda _: 1.0)  # per datum, as asked
    svi._descend = lambda batch: next(per_scalar) * observed_scalars(batch)
    svi._catch_up()
    assert svi.inner_steps == 2


def test_it_becomes_plain_svi_when_the_information_falls(monkeypatch):
    """After the epoch in which I_q(x; z) is below that of the epoch before; bitwise from there."""
    found = iter([0.5, 0.7, 0.6])
    monkeypatch.setattr("ppvae.training.lagging.mutual_information", lambda *_: next(found))
    svi = lagging(most=10)
    history = fit(svi, X[:20], epochs=2, batch_size=10, progress=False)
    assert svi.aggressive and history["mutual_information"] == [0.5, 0.7]
    fit(svi, X[:20], epochs=2, batch_size=10, progress=False)
    assert not svi.aggressive
    assert [record.get("mutual_information") for record in history] == [0.5, 0.7, 0.6, None]
    before = svi.inner_steps
    plain = SVI(*parts(1), partial(Adam, lr=1e-2), BetaELBO())
    state = copy.deepcopy(svi.state_dict())
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    losses = []
    for each in (svi, plain):
        pyro.set_rng_seed(2)
        losses.append([float(each.step(X[:10])) for _ in range(3)])
    assert losses[0] == losses[1]
    assert same(weights(svi.model), weights(plain.model))
    assert svi.inner_steps == before


def test_the_information_is_that_of_the_held_out_data():
    """On common random numbers, and without touching those of training."""
    svi = lagging()
    state = torch.get_rng_state()
    found = svi.reconsider()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert found == mutual_information(svi.model, svi.guide, X[:20])


def test_inner_steps_leave_schedules_alone():
    """Beta advances with the model's steps."""
    svi = lagging(loss=BetaELBO(warmup(10)), most=10)
    for _ in range(3):
        svi.step(X[:10])
    assert svi.loss.steps == 3
    assert float(svi.loss.beta) == pytest.approx(0.3)


@pytest.mark.parametrize("optim", [Adam, SGD])
def test_a_run_resumes_exactly(tmp_path, optim):
    """Bitwise, from the middle of the inner stream, flags and all."""

    def run(folder, *epochs):
        for resume, until in enumerate(epochs):
            svi = lagging(optim=optim, window=3, most=6)
            options = {"checkpoint": folder, "resume": bool(resume), "progress": False}
            history = fit(svi, X[:40], epochs=until, batch_size=10, **options)
        places = svi.inner.state_dict()
        return history["loss"], history["mutual_information"], places, weights(svi.model)

    *one, weights_one = run(tmp_path / "a", 3)
    *other, weights_other = run(tmp_path / "b", 1, 3)
    assert one == other
    assert one[2]["place"] > 0  # not at the start of an epoch
    assert same(weights_one, weights_other)


def test_it_serves_sentences():
    """The method's own case: an LSTM guide, batches of equal lengths inside and outside."""
    tokens = torch.tensor([[3, 4, 1], [4, 1, 0], [5, 4, 1], [3, 1, 0]] * 4)
    model = Sentence(RecurrentDecoder(5, 2, 4, 8), 2)
    guide = Normal(RecurrentEncoder(5, 4, 8), 2)
    inner = SentenceBatches(tokens, 4, equal=True, seed=1)
    optim = partial(Adam, lr=1e-2)
    svi = LaggingSVI(model, guide, optim, BetaELBO(), inner=inner, held_out=tokens, window=2)
    history = fit(svi, SentenceBatches(tokens, 4, equal=True, seed=2), epochs=2, progress=False)
    assert history["loss"][1] < history["loss"][0]
    assert svi.inner_steps >= 16


@pytest.mark.parametrize("bad", [{"window": 0}, {"most": 0}, {"window": 11, "most": 10}])
def test_windows_out_of_range_are_refused(bad):
    """Both numbers are named."""
    with pytest.raises(ValueError, match="window must be at least 1 and at most `most`"):
        lagging(**bad)
