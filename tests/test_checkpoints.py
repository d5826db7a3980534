"""Interrupted and resumed equals uninterrupted, bit for bit; a damaged checkpoint says so."""

import errno
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from ppvae import SVI, Batches, CheckpointError, checkpoints, fit
from ppvae.guides import Flow, GaussianMixture, Normal
from ppvae.models import VAE
from ppvae.networks import MLP
from ppvae.objectives import IWELBO, BetaELBO, PenalizedELBO, warmup

DATA = (torch.rand(50, 12, generator=torch.Generator().manual_seed(0)) > 0.5).float()


def build(loss=Trace_ELBO, guide=Normal, scheduler=None, optimizer=torch.optim.Adam, hidden=8):
    pyro.set_rng_seed(0)
    model, q = VAE(MLP(2, hidden, 12), latent_dim=2), guide(MLP(12, hidden), latent_dim=2)
    return SVI(model, q, partial(optimizer, lr=1e-2), loss(), scheduler=scheduler)


def train(svi, epochs, folder=None, data=DATA, **kwargs):
    sizes = {"batch_size": 16} if isinstance(data, torch.Tensor) else {}
    kwargs = {**sizes, "validation": DATA[:10], **kwargs}
    return fit(svi, data, epochs=epochs, checkpoint=folder, resume=True, progress=False, **kwargs)


def assert_same(a, b, where="state"):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "seconds":
                assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same(left, right, f"{where}[{i}]")
    else:
        assert a == b, where


def everything(svi):
    return {"state": svi.state_dict(), "records": svi.records, "random": torch.get_rng_state()}


def penalized():
    return PenalizedELBO(warmup(9), size=lambda m, g: g.nodes["z"]["value"].square().mean())


STEPS = {
    "elbo": {},
    "mean field": {"loss": TraceMeanField_ELBO},
    "mixture": {"guide": GaussianMixture},
    "flow": {"guide": Flow},
    "iw dreg": {"loss": partial(IWELBO, 3, estimator="dreg")},
    "warm-up": {"loss": lambda: BetaELBO(warmup(13))},
    "penalized": {"loss": penalized},
    "step rate": {"scheduler": partial(StepLR, step_size=1, gamma=0.5)},
    "plateau": {"scheduler": partial(ReduceLROnPlateau, patience=0)},
    "momentum": {"optimizer": partial(torch.optim.SGD, momentum=0.9)},
}


class Stop(Exception):
    """An interruption that no code expects."""


@pytest.mark.parametrize("kind", STEPS)
def test_resumed_equals_uninterrupted(tmp_path, kind, monkeypatch):
    whole = build(**STEPS[kind])
    train(whole, 4, tmp_path / "whole")
    expected = everything(whole)

    broken, steps = build(**STEPS[kind]), iter(range(100))
    step = SVI.step

    def stops_in_mid_epoch(self, batch):
        if next(steps) == 10:  # the third epoch's third step
            raise Stop
        return step(self, batch)

    monkeypatch.setattr(SVI, "step", stops_in_mid_epoch)
    with pytest.raises(Stop):
        train(broken, 4, tmp_path / "broken")
    monkeypatch.undo()
    torch.manual_seed(99)
    resumed = build(**STEPS[kind])
    train(resumed, 4, tmp_path / "broken")
    assert_same(everything(resumed), expected)


def test_a_data_loader_resumes_too(tmp_path):
    def loader():
        return DataLoader(DATA, batch_size=16, shuffle=True)

    whole = build()
    train(whole, 4, tmp_path / "whole", data=loader())
    expected = everything(whole)
    train(build(), 2, tmp_path / "parts", data=loader())
    resumed = build()
    train(resumed, 4, tmp_path / "parts", data=loader())
    assert_same(everything(resumed), expected)


def test_dynamic_binarization_resumes_too(tmp_path):
    def batches():
        return Batches(
            DATA * 0.8,
            16,
            seed=3,
            transform=lambda batch, generator: torch.bernoulli(batch, generator=generator),
        )

    whole = build()
    train(whole, 4, tmp_path / "whole", data=batches(), validation=None)
    train(build(), 2, tmp_path / "parts", data=batches(), validation=None)
    resumed = build()
    train(resumed, 4, tmp_path / "parts", data=batches(), validation=None)
    assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_interruption_keeps_what_was_recorded(tmp_path, interruption):
    def stop(svi, history):
        if len(history) == 3:
            raise interruption

    svi = build()
    with pytest.raises(interruption):
        train(svi, 5, tmp_path, callbacks=[stop])
    assert len(svi.records) == 3
    assert checkpoints.read_meta(tmp_path)["epoch"] == 2
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_random_kills_in_processes():
    script = Path(__file__).parent / "benchmarks" / "kills.py"
    if not script.exists():
        pytest.skip("the benchmark is not beside these tests")
    command = [sys.executable, str(script), "--kills", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bitwise equal to the undisturbed ones" in done.stdout


# Best and last


def test_best_and_last_are_moments_of_their_own(tmp_path):
    svi, moments = build(), {}

    def remember(svi, history):
        moments[len(history)] = {k: v for k, v in _copied(svi.state_dict()).items()}
        history.records[-1]["validation_elbo"] = [-5.0, -3.0, -4.0, -6.0][len(history) - 1]

    train(svi, 4, tmp_path, callbacks=[remember])
    for which, epoch in (("best", 2), ("last", 4)):
        loaded = build()
        meta = checkpoints.load(tmp_path, loaded, which)
        assert meta["epoch"] == epoch
        assert len(loaded.records) == epoch
        assert_same(loaded.state_dict(), moments[epoch])
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-000002",
        "checkpoint-000004",
    ]


def _copied(state):
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [_copied(value) for value in state]
    return state


@pytest.mark.parametrize("kept", [True, False])
def test_patience_stops_and_goes_back_to_the_best(tmp_path, kept):
    svi, moments = build(), {}

    def worsen(svi, history):
        moments[len(history)] = _copied(svi.state_dict())
        history.records[-1]["validation_elbo"] = [-5.0, -3.0, -4.0, -3.5, -9.0][len(history) - 1]

    folder = {"folder": tmp_path} if kept else {}
    history = train(svi, 50, **folder, patience=2, callbacks=[worsen])
    assert len(history) == 4
    assert_same(svi.state_dict(), moments[2])


def test_patience_counts_the_epochs_of_each_call():
    svi = build()

    def worsen(svi, history):
        history.records[-1]["validation_elbo"] = -float(len(history))

    for total in (3, 6):  # the first epoch of a call is its best
        history = fit(
            svi,
            DATA,
            epochs=9,
            validation=DATA[:9],
            patience=2,
            callbacks=[worsen],
            progress=False,
        )
        assert len(history) == total


def test_a_second_run_is_not_overwritten(tmp_path):
    train(build(), 2, tmp_path)
    with pytest.raises(FileExistsError, match=r"run of 2 epochs: pass resume=True"):
        fit(build(), DATA, epochs=1, checkpoint=tmp_path, progress=False)


# What can be wrong with a checkpoint


@pytest.fixture
def saved(tmp_path):
    train(build(), 2, tmp_path)
    return tmp_path


def place(folder):
    return folder / json.loads((folder / "last.json").read_text())["checkpoint"]


@pytest.mark.parametrize("name", ["weights.safetensors", "training.pt"])
def test_truncated_file_is_said(saved, name):
    path = place(saved) / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=rf"is damaged: {name} has \d+ bytes of \d+"):
        train(build(), 3, saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "training.pt", "meta.json"])
def test_missing_file_is_said(saved, name):
    (place(saved) / name).unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        train(build(), 3, saved)


def test_damaged_pointer_is_said(saved):
    (saved / "last.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"last\.json is damaged"):
        train(build(), 3, saved)


def test_other_architecture_is_said(saved):
    with pytest.raises(CheckpointError, match=r"another architecture: .*has shape .* in it and"):
        train(build(hidden=9), 3, saved)


def test_missing_keys_are_said(saved):
    with pytest.raises(CheckpointError, match=r"guide\.posterior.* is missing in it"):
        train(build(guide=Flow), 3, saved)


def test_extra_keys_are_said(tmp_path):
    train(build(guide=Flow), 1, tmp_path)
    with pytest.raises(CheckpointError, match=r"guide\.posterior.* is unknown here"):
        train(build(), 2, tmp_path)


def test_other_loss_or_scheduler_is_said(saved):
    with pytest.raises(CheckpointError, match="does not fit what is to be resumed"):
        train(build(scheduler=partial(StepLR, step_size=1)), 3, saved)


def test_other_data_are_said(saved):
    with pytest.raises(ValueError, match=r"saved batches have size=50"):
        train(build(), 3, saved, data=DATA[:40])


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="there is no last checkpoint"):
        checkpoints.load(tmp_path, build())


def test_training_state_holds_no_code(saved):
    torch.load(place(saved) / "training.pt", weights_only=True)


@pytest.mark.parametrize(
    "target", ["torch.save", "pathlib.Path.rename", "pathlib.Path.write_text"]
)
def test_a_full_disk_leaves_the_previous_checkpoint(saved, monkeypatch, target):
    before = checkpoints.read_meta(saved)

    def full(*args, **kwargs):
        if target == "torch.save":
            Path(args[1]).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    svi = build()
    checkpoints.load(saved, svi)
    monkeypatch.setattr(target, full)
    with pytest.raises(OSError, match="No space left on device"):
        train(svi, 4, saved)
    monkeypatch.undo()
    assert checkpoints.read_meta(saved) == before
    assert not list(saved.glob(".*writing"))
    resumed = build()
    train(resumed, 4, saved)
    whole = build()
    train(whole, 4)
    assert_same(resumed.state_dict(), whole.state_dict())


# A loss that is not finite


def test_not_finite_names_step_term_and_site(tmp_path):
    data = DATA.clone()
    svi = build(loss=partial(BetaELBO, 1.0))

    def poison(svi, history):
        with torch.no_grad():
            svi.guide.head.bias[2:] = 1e30  # scales that no float can square

    with pytest.raises(FloatingPointError) as caught:
        train(svi, 4, tmp_path, data=data, callbacks=[poison])
    message = str(caught.value)
    assert "step 1 of 4 in epoch 2" in message
    assert "site 'x' of the model" in message or "site 'z'" in message
    assert "term " in message
    assert checkpoints.read_meta(tmp_path)["epoch"] == 1


def test_a_gradient_that_is_not_finite_is_not_saved(tmp_path):
    """Also in the last step of an epoch, whose loss is fine."""
    svi, steps = build(), iter(range(100))
    weight = svi.guide.head.weight
    weight.register_hook(lambda g: g * float("nan") if next(steps) == 7 else g)
    with pytest.raises(FloatingPointError, match=r"guide\.head\.weight.* after epoch 2"):
        train(svi, 4, tmp_path)
    assert checkpoints.read_meta(tmp_path)["epoch"] == 1
    assert weight.isfinite().all()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (DATA[:9] * float("nan"), "validation: .* hold NaN"),
        (DATA[:9] + 3, "validation: .* outside the likelihood's support"),
        (DATA[:9, :5], "validation: .* does not run"),
        (DATA[:0], "N = 0"),
    ],
)
def test_bad_validation_data_are_said_before_an_epoch_is_spent(broken, message):
    svi = build()
    with pytest.raises(ValueError, match=message):
        fit(svi, DATA, epochs=1, validation=broken, progress=False)
    assert svi.records == []


def test_not_finite_leaves_the_pair_before_the_step():
    svi, states = build(), []
    step = SVI.step

    def breaks(self, batch):
        states.append(_copied(self.state_dict()))
        loss = step(self, batch)
        return loss * float("nan") if len(states) == 3 else loss

    svi.step = partial(breaks, svi)
    with pytest.raises(FloatingPointError, match="step 3 of 4 in epoch 1"):
        train(svi, 1)
    assert_same(svi.state_dict(), states[2])


def test_a_temperature_that_a_callback_lowers_resumes_too(tmp_path):
    """A schedule of a module's own is a buffer, changed in place: weights hold it."""

    def cooled():
        svi = build()
        svi.model.register_buffer("temperature", torch.tensor(1.0))
        head = svi.model.likelihood
        svi.model.likelihood = lambda h: head(h / svi.model.temperature)
        return svi

    def cool(svi, history):
        svi.model.temperature.mul_(0.7)

    whole = cooled()
    train(whole, 4, tmp_path / "whole", callbacks=[cool])
    expected = everything(whole)
    train(cooled(), 2, tmp_path / "parts", callbacks=[cool])
    resumed = cooled()
    train(resumed, 4, tmp_path / "parts", callbacks=[cool])
    assert_same(everything(resumed), expected)
    assert float(resumed.model.temperature) == pytest.approx(0.7**4)
