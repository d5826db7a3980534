"""Epochs: what they record, what they leave alone, and how they end."""

import math
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset
from zoo import GUIDES, PAIRS, Point, binary, squared, train, vae

from ppvae import SVI, Batches, PairError, fit
from ppvae.data import digits
from ppvae.networks import MLP
from ppvae.objectives import IWELBO, BetaELBO, PenalizedELBO, warmup
from ppvae.training import History

DATA = binary(40, 8)


def quiet(svi, data, **options):
    """Fit without a bar, in batches of 16 where the data come whole."""
    if isinstance(data, (torch.Tensor, dict)):
        options.setdefault("batch_size", 16)
    return fit(svi, data, **{"progress": False, **options})


def svi(loss=Trace_ELBO, seed=0, **kwargs):
    """Return a fresh SVI over the smallest VAE."""
    pyro.set_rng_seed(seed)
    return train(vae(), GUIDES["normal"](MLP(8, 16)), loss(), **kwargs)


def weights(svi):
    """Return a copy of all that is trained."""
    return [p.detach().clone() for p in svi.parameters.values()]


def equal(a, b):
    """Return whether two lists of tensors agree bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# What is recorded


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        (Trace_ELBO, set()),
        (BetaELBO, {"log_likelihood", "kl"}),
        (partial(IWELBO, 4), {"log_likelihood", "kl"}),
        (partial(PenalizedELBO, squared=squared), {"log_likelihood", "kl", "squared"}),
    ],
)
def test_the_history_has_a_row_per_epoch_and_a_column_per_term(loss, terms):
    """Numbers, in the order of the epochs."""
    history = quiet(svi(loss), DATA, epochs=3, validation=DATA[:10])
    frame = history.frame
    assert frame.index.tolist() == [1, 2, 3]
    assert set(frame.columns) >= {"loss", "validation_elbo", "seconds"} | terms
    assert all(isinstance(value, float) for name in frame for value in history[name])
    assert history["loss"] == frame["loss"].tolist()
    assert len(history) == len(list(history)) == 3


def test_the_loss_of_an_epoch_is_a_mean_over_its_data():
    """Batches count by their size: 16, 16 and 8; the terms add up to it."""
    seen = []
    trainee = svi(BetaELBO)
    step = trainee.step
    trainee.step = lambda batch: seen.append((len(batch), step(batch))) or seen[-1][1]
    history = quiet(trainee, DATA, epochs=1)
    assert [count for count, _ in seen] == [16, 16, 8]
    expected = sum(count * loss.item() for count, loss in seen) / 40
    assert history["loss"] == [pytest.approx(expected)]
    assert history["kl"][0] - history["log_likelihood"][0] == pytest.approx(expected, rel=1e-5)


def test_training_trains():
    """The validation ELBO rises."""
    data = (torch.arange(8) % 2).float().expand(200, 8)
    history = quiet(svi(), data, epochs=10, validation=data[:20])
    assert history["validation_elbo"][-1] > history["validation_elbo"][0] + 1


def test_a_guide_without_a_density_is_validated_by_its_loss():
    """There is no ELBO to record."""
    pyro.set_rng_seed(0)
    history = quiet(train(vae(), Point(), Trace_ELBO()), DATA, epochs=1, validation=DATA[:10])
    assert "validation_loss" in history.frame.columns
    assert "validation_elbo" not in history.frame.columns


def test_a_history_shows_itself():
    """As a table in a notebook, as a line elsewhere."""
    history = History([{"epoch": 1, "loss": 2.5, "seconds": 0.1}])
    assert "History of 1 epochs" in repr(history)
    assert "<table" in history._repr_html_()
    assert "no epochs" in History([])._repr_html_()


# What is left alone


@pytest.mark.parametrize("pair", ["vae-normal", "vae-batch-norm-dropout"])
def test_validation_touches_nothing(pair):
    """With and without it the weights and buffers are bitwise the same."""
    pair = next(row for row in PAIRS if row.name == pair)
    results = []
    for validation in (None, DATA[:10]):
        model, guide = pair.make()
        trainee = train(model, guide, Trace_ELBO())
        quiet(trainee, DATA, epochs=3, validation=validation)
        results.append([*weights(trainee), *guide.buffers(), torch.rand(3)])
    assert equal(*results)


def test_validation_repeats_its_random_numbers():
    """Epochs without a step between them agree."""
    trainee = svi()
    for group in trainee.optimizer.param_groups:
        group["lr"] = 0.0
    elbo = quiet(trainee, DATA, epochs=3, validation=DATA[:10])["validation_elbo"]
    assert elbo[0] == elbo[1] == elbo[2]


def test_a_second_fit_goes_on():
    """The epochs count on, and the order of the data is that of one longer fit."""
    parts, whole = svi(), svi()
    pyro.set_rng_seed(5)
    quiet(parts, DATA, epochs=2)
    history = quiet(parts, DATA, epochs=1)
    pyro.set_rng_seed(5)
    long = quiet(whole, DATA, epochs=3)
    assert history["epoch"] == [1, 2, 3]
    assert history["loss"] == pytest.approx(long["loss"])


def test_no_epochs_change_nothing():
    """The history is that of before."""
    trainee = svi()
    before = weights(trainee)
    assert len(quiet(trainee, DATA, epochs=0)) == 0
    assert equal(before, weights(trainee))
    with pytest.raises(ValueError, match="epochs must not be negative, but is -1"):
        quiet(trainee, DATA, epochs=-1)


def test_the_same_seed_gives_the_same_weights():
    """Bit for bit; another seed, others."""
    runs = []
    for seed in (1, 1, 2):
        trainee = svi(seed=seed)
        quiet(trainee, DATA, epochs=2)
        runs.append(weights(trainee))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


# How it ends


def test_an_interruption_loses_nothing():
    """What was recorded stays, and training can go on."""
    trainee = svi()

    def interrupt(svi, history):
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet(trainee, DATA, epochs=5, callbacks=[interrupt])
    assert [record["epoch"] for record in trainee.records] == [1, 2]
    assert quiet(trainee, DATA, epochs=1)["epoch"] == [1, 2, 3]


def test_callbacks_see_every_epoch():
    """With the record of it in place, in the order given."""
    calls = []
    callbacks = [lambda svi, history, n=n: calls.append((n, len(history))) for n in "ab"]
    quiet(svi(), DATA, epochs=2, callbacks=callbacks)
    assert calls == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_a_loss_that_is_not_finite_stops_training():
    """Naming the terms; no epoch is recorded of it."""
    trainee = svi(BetaELBO)

    def spoil(svi, history):
        svi.parameters["guide.head.bias"].data.fill_(math.nan)
        svi.validate = False

    with pytest.raises((FloatingPointError, ValueError), match="(?s)finite|nan|NaN"):
        quiet(trainee, DATA, epochs=3, callbacks=[spoil])
    assert [record["epoch"] for record in trainee.records] == [1]


@pytest.mark.parametrize("infinite", [math.nan, math.inf])
def test_a_penalty_that_is_not_finite_is_named(infinite):
    """So that its owner can be found."""
    spoiled = partial(PenalizedELBO, broken=lambda *_: torch.tensor(infinite))
    with pytest.raises(FloatingPointError, match=r"(nan|inf|not finite).*broken"):
        quiet(svi(spoiled), DATA, epochs=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA[:0], "the batch is empty: N = 0"),
        ({"x": DATA[:0]}, "the batch is empty: N = 0"),
        ([], "no data to train on: the iterable of batches is empty"),
        ([DATA[:0]], "the batch is empty: N = 0"),
    ],
    ids=["tensor", "mapping", "iterable", "batch"],
)
def test_empty_data_are_refused(data, message):
    """In words."""
    with pytest.raises(ValueError, match=message):
        quiet(svi(), data, epochs=1)


def test_a_generator_that_is_used_up_is_refused():
    """In the second epoch, when it shows; the first is kept."""
    trainee = svi()
    with pytest.raises(ValueError, match="a generator that was used up"):
        quiet(trainee, (DATA[i : i + 8] for i in range(0, 40, 8)), epochs=2)
    assert len(trainee.records) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.full((40, 8), math.nan), "hold NaN"),
        (torch.full((40, 8), 0.5), "outside the likelihood's support"),
        (binary(40, 9), "does not run on the batch"),
        (binary(40, 8).double(), "dtype torch.float64"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    """By `check_pair`, before the first step."""
    trainee = svi()
    before = weights(trainee)
    with pytest.raises(PairError, match=message):
        quiet(trainee, data, epochs=1)
    assert equal(before, weights(trainee))


def test_bad_data_in_a_later_batch_are_found_in_the_first_epoch():
    """Pyro's validation is on while every datum passes once."""
    spoiled = DATA.clone()
    spoiled[33] = 0.5
    with pytest.raises(ValueError, match="support"):
        quiet(svi(), Batches(spoiled, 16, shuffle=False), epochs=1)


# Schedules


def test_a_schedule_of_the_objective_counts_steps():
    """Three per epoch here."""
    trainee = svi(lambda: BetaELBO(warmup(6)))
    betas = []
    quiet(trainee, DATA, epochs=2, callbacks=[lambda s, _: betas.append(s.loss.beta.item())])
    assert betas == [0.5, 1.0]


def test_a_learning_rate_scheduler_steps_every_epoch():
    """Whatever it is."""
    trainee = svi(scheduler=partial(StepLR, step_size=2, gamma=0.1))
    rates = []
    look = [lambda svi, _: rates.append(svi.optimizer.param_groups[0]["lr"])]
    quiet(trainee, DATA, epochs=4, callbacks=look)
    assert rates == pytest.approx([1e-2, 1e-3, 1e-3, 1e-4])


@pytest.mark.parametrize("validation", [None, DATA[:10]])
def test_a_plateau_is_one_of_what_is_judged(validation):
    """The validation ELBO, else the loss: with neither moving, the rate falls."""
    plateau = partial(ReduceLROnPlateau, patience=0, factor=0.5, threshold=10.0)
    trainee = svi(scheduler=plateau)
    quiet(trainee, DATA, epochs=3, validation=validation)
    assert trainee.optimizer.param_groups[0]["lr"] < 1e-2


# Data


def test_batches_cover_all_rows_once():
    """In an order that changes; the last batch is smaller."""
    batches = Batches(torch.arange(10), 4, seed=0)
    first, second = (list(batches) for _ in range(2))
    assert [len(batch) for batch in first] == [4, 4, 2] and len(batches) == 3
    for epoch in (first, second):
        assert torch.cat(epoch).sort().values.tolist() == list(range(10))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    in_order = torch.cat(list(Batches(torch.arange(10), 4, shuffle=False)))
    assert in_order.tolist() == list(range(10))


def test_the_order_depends_on_seed_and_epoch_alone():
    """Not on other random numbers; no two seeds or epochs share one."""

    def orders(seed):
        batches = Batches(torch.arange(50), 25, seed=seed)
        found = []
        for _ in range(3):
            torch.rand(7)
            found.append(tuple(torch.cat([*batches]).tolist()))
        return found

    assert orders(3) == orders(3)
    everything = [order for seed in range(4) for order in orders(seed)]
    assert len(set(everything)) == 12
    torch.manual_seed(3)
    default = Batches(torch.arange(50), 25)
    assert tuple(torch.cat([*default]).tolist()) == orders(3)[0]
    whole = Batches(torch.arange(50), 50)  # all at once: nothing to reorder
    assert next(iter(whole)).tolist() == list(range(50))


def test_batches_of_a_mapping_keep_rows_together():
    """Each batch is a mapping too."""
    data = {"x": torch.arange(10), "y": 10 * torch.arange(10)}
    for batch in Batches(data, 4):
        assert set(batch) == {"x", "y"}
        assert torch.equal(batch["y"], 10 * batch["x"])


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (torch.zeros(0, 3), 4, "the batch is empty"),
        (torch.zeros(3), 0, "batch_size must be at least 1, but is 0"),
        ({"x": torch.zeros(3), "y": torch.zeros(2)}, 4, "differ in their number of data"),
        (torch.tensor(0.0), 4, "needs a data axis"),
    ],
)
def test_batches_of_what_is_no_data_are_refused(data, size, message):
    """In words."""
    with pytest.raises(ValueError, match=message):
        Batches(data, size)


def test_loaders_and_lists_serve_as_data():
    """Anything that can be iterated anew; of whole sets, `fit` makes the batches."""
    results = []
    for data in (list(DATA.split(16)), Batches(DATA, 16, shuffle=False)):
        trainee = svi()
        results.append(quiet(trainee, data, epochs=2)["loss"])
    assert results[0] == results[1]
    loader = DataLoader(DATA, batch_size=16)  # draws a seed of its own, and so disturbs ours
    assert len(quiet(svi(), loader, epochs=2)) == 2


def test_a_loader_of_tuples_is_refused():
    """With labels it yields tuples: the message says what to take."""
    loader = DataLoader(TensorDataset(DATA, torch.zeros(40)), batch_size=16)
    with pytest.raises(TypeError, match=r"'x' is a (list|tuple): .*\(image, label\)"):
        quiet(svi(), loader, epochs=1)


def test_a_mapping_is_a_whole_set():
    """Modules see mappings then."""

    class Of(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, batch):
            self.module(batch["image"])

    pyro.set_rng_seed(0)
    trainee = train(Of(vae()), Of(GUIDES["normal"](MLP(8, 16))), Trace_ELBO())
    assert len(quiet(trainee, {"image": DATA}, epochs=2, validation={"image": DATA[:5]})) == 2


def test_the_bar_may_be_switched_off(capsys):
    """And shows nothing then, whatever the terminal."""
    quiet(svi(), DATA, epochs=1)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_the_bar_shows_loss_and_validation(monkeypatch, capsys):
    """In a terminal."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    quiet(svi(), DATA, epochs=2, validation=DATA[:10], progress=True)
    shown = capsys.readouterr().err
    assert "epochs" in shown and "2/2" in shown
    assert "loss=" in shown and "validation_elbo=" in shown


def test_a_pyro_svi_would_not_have_trained():
    """Why this package has its own: plain modules stay where they are there."""
    model, guide = vae(), GUIDES["normal"](MLP(8, 16))
    before = [p.clone() for p in guide.parameters()]
    pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(DATA)
    assert equal(before, list(guide.parameters()))
    ours = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    ours.step(DATA)
    assert not equal(before, list(guide.parameters()))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (digits(), {}, r"is a Split: of a Split pass split\.train"),
        ([torch.ones(4, 8)], {"batch_size": 2}, "batch_size=2 is for a whole data set, but list"),
    ],
)
def test_data_of_another_kind_are_said(data, options, message):
    svi = train(*PAIRS[0].make(), Trace_ELBO())
    with pytest.raises((TypeError, ValueError), match=message):
        fit(svi, data, epochs=1, progress=False, **options)


def test_a_loss_is_made_not_named():
    with pytest.raises(TypeError, match=r"write Trace_ELBO\(\)"):
        train(*PAIRS[0].make(), Trace_ELBO)
