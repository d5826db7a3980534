"""Runs by the command line: trained, interrupted, resumed, reported, loaded; one-line errors."""

import json
import os
import sys
import types

import pytest
import torch

import ppvae
from ppvae import cli, data, recipes, runs
from ppvae.data import NAMES
from ppvae.protocols import batch_size
from ppvae.recipes import RECIPES, kind_of
from ppvae.training import SVI

SMALL = ("--hidden", 8, "--latent-dim", 2, "--device", "cpu")
EXTRA = {"iwae": ("--particles", 3)}


@pytest.fixture
def ppvae_command(monkeypatch, capsys):
    """A function that runs the command as a shell would: exit code, output, what it said."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["ppvae", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def text(tmp_path):
    """Flags for sentences: a folder of lines."""
    for part, lines in {"train": "a cat sat\na dog\na cat\n" * 7, "test": "a dog sat\n"}.items():
        (tmp_path / f"{part}.txt").write_text(lines)
    return ("--data", "text", "--root", tmp_path, "--embedding-dim", 4, "--batch-size", 8)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_resumes_and_loads(ppvae_command, tmp_path, text, recipe):
    extra = text if kind_of(recipe) == "sentences" else EXTRA.get(recipe, ())
    flags = ("train", recipe, *SMALL, *extra, "--out", tmp_path)
    code, out, err = ppvae_command(*flags, "--epochs", 1)
    assert code == 0, err
    assert f"ppvae report {tmp_path}" in out
    assert ppvae_command(*flags, "--epochs", 3, "--resume")[0] == 0
    run = ppvae.load(tmp_path, "last", device="cpu")
    assert (run.settings.recipe, len(run.history)) == (recipe, 3)
    assert (
        json.loads((tmp_path / "run.json").read_text())["versions"]["torch"] == torch.__version__
    )


def test_resumed_by_the_command_equals_uninterrupted(ppvae_command, tmp_path):
    whole = ("train", "vae", *SMALL, "--out", tmp_path / "whole")
    parts = ("train", "vae", *SMALL, "--out", tmp_path / "parts")
    ppvae_command(*whole, "--epochs", 4)
    ppvae_command(*parts, "--epochs", 2)
    torch.manual_seed(77)
    ppvae_command(*parts, "--epochs", 4, "--resume")
    a, b = (ppvae.load(tmp_path / name, "last", device="cpu") for name in ("whole", "parts"))
    assert all(
        torch.equal(p, q) for p, q in zip(a.guide.parameters(), b.guide.parameters(), strict=True)
    )
    assert a.history["validation_elbo"] == b.history["validation_elbo"]


def test_interruption_says_how_to_go_on(ppvae_command, tmp_path, monkeypatch):
    step, steps = SVI.step, iter(range(1000))

    def interrupted(self, batch):
        if next(steps) == 20:  # in the second epoch
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(SVI, "step", interrupted)
    flags = ("train", "vae", *map(str, SMALL), "--epochs", "3", "--out", str(tmp_path))
    code, _, err = ppvae_command(*flags)
    monkeypatch.setattr(SVI, "step", step)
    assert code == 130
    said = next(line for line in err.splitlines() if "go on with: ppvae " in line)
    assert ppvae_command(*said.split("go on with: ppvae ")[1].split())[0] == 0
    assert len(ppvae.load(tmp_path, "last", device="cpu").history) == 3


def test_tensorboard_gets_every_record(ppvae_command, tmp_path, monkeypatch):
    """A stand-in for the writer: TensorBoard itself is not among our dependencies."""
    written = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def add_scalar(self, *scalar):
            written.append(scalar)

    stand_in = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    flags = ("train", "vae", *SMALL, "--epochs", 2, "--out", tmp_path, "--tensorboard")
    assert ppvae_command(*flags)[0] == 0
    history = ppvae.load(tmp_path, "last", device="cpu").history
    assert [s for s in written if s[0] == "loss"] == [
        ("loss", record["loss"], record["epoch"]) for record in history
    ]


def test_absent_tensorboard_is_said(ppvae_command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = ppvae_command("train", "vae", *SMALL, "--out", tmp_path, "--tensorboard")
    assert code == 2
    assert "pip install tensorboard" in err


def test_report_compares_runs(ppvae_command, tmp_path):
    for recipe in ("vae", "flow_vae"):
        ppvae_command("train", recipe, *SMALL, "--epochs", 1, "--out", tmp_path / recipe)
    folders = (tmp_path / "vae", tmp_path / "flow_vae")
    options = (
        "--num-particles",
        30,
        "--most-data",
        40,
        "--device",
        "cpu",
        "--out",
        tmp_path / "r",
    )
    code, out, _ = ppvae_command("report", *folders, *options)
    assert code == 0
    assert "flow_vae" in out
    assert (tmp_path / "r" / "index.html").exists()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_images_by_the_same_command(ppvae_command, tmp_path, root, name):
    data = ("--data", name, "--root", root(name), "--download", "--binarize", "dynamic")
    flags = ("--epochs", 1, "--batch-size", 250, "--out", tmp_path)
    code, _, err = ppvae_command("train", "vae", *SMALL, *data, *flags)
    assert code == 0, err
    assert ppvae.load(tmp_path, device="cpu").history["validation_elbo"][0] > -450


def test_sentences_are_reported(ppvae_command, tmp_path, text):
    flags = (*SMALL, *text, "--epochs", 1, "--out", tmp_path / "run")
    ppvae_command("train", "lstm_vae", *flags)
    (tmp_path / "test.txt").write_text("a cat sat\na dog sat\na cat\n" * 20)
    where = ("--root", tmp_path, "--device", "cpu", "--out", tmp_path / "r")
    code, _, err = ppvae_command("report", tmp_path / "run", "--num-particles", 30, *where)
    assert code == 0, err
    page = (tmp_path / "r" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 4  # images of sentences are none


def test_other_words_are_another_run(ppvae_command, tmp_path, text):
    flags = ("train", "lstm_vae", *SMALL, *text, "--out", tmp_path / "run")
    ppvae_command(*flags, "--epochs", 1)
    (tmp_path / "train.txt").write_text("a cow sat\na dog\na cow\n" * 7)
    code, _, err = ppvae_command(*flags, "--epochs", 2, "--resume")
    assert code == 2
    assert "the words of these data are not those" in err


@pytest.mark.parametrize("seed", [0, 1])
def test_a_share_of_modalities_validates(seed):
    split = data.load("digit_halves", validation_share=0.1, seed=seed)
    sizes = [batch_size(part) for part in (split.train, split.validation, split.test)]
    assert sizes == [1295, 143, 359]
    assert split.features == {"top": 32, "bottom": 32}
    with pytest.raises(ValueError, match="validation_share must leave both parts data"):
        data.load("digit_halves", validation_share=1.0)


ARRAYS = [name for name in RECIPES if kind_of(name) == "arrays"]


@pytest.mark.parametrize("recipe", ARRAYS)
def test_recipes_take_color_images(recipe):
    images = torch.rand(20, 3072)
    svi = RECIPES[recipe](3072, hidden=(8,), likelihood="normal", device="cpu")
    history = ppvae.fit(svi, images, epochs=30, progress=False)
    assert history["loss"][-1] < history["loss"][0] - 5


def test_list_names_recipes_and_data(ppvae_command):
    code, out, _ = ppvae_command("list")
    assert code == 0
    assert all(name in out for name in (*RECIPES, *NAMES))


def test_help_shows_a_recipe_its_own_flags(ppvae_command):
    code, out, _ = ppvae_command("train", "iwae", "--help")
    assert code == 0
    assert "--particles" in out
    assert "--learning-rate" in out
    assert "--features" not in out
    code, out, _ = ppvae_command("train", "betavae", "--help")
    assert "0.0001" in out  # the recipe's own default, not the shared one


def test_papers_numbers_are_the_defaults():
    svi = recipes.iwae(784, device="cpu")
    assert svi.loss.num_particles == 50
    assert svi.model.latent_dim == 50
    assert [
        layer.out_features for layer in svi.guide.encoder if hasattr(layer, "out_features")
    ] == [
        200,
        200,
    ]
    assert svi.optimizer.defaults["eps"] == 1e-4


# Mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data", "mnits"), "unknown data 'mnits': choose one of digits, mnist"),
        (("--batch-size", 5000), "batch_size"),
        (("--batch-size", 0), "batch_size"),
        (("--epochs", -1), "epochs must be at least 1"),
        (("--patience", 0), "patience must be at least 1"),
        (("--data", "mnist", "--root", "/nowhere"), "download"),
        (("--binarize", "none"), "outside the likelihood's support"),
        (("--epochs", 0), "epochs must be at least 1"),
        (("--latent-dim", 0), "latent_dim must be at least 1"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--data", "digit_halves"), "vae takes arrays, but digit_halves holds modalities"),
        (("--data", "ptb", "--root", "/nowhere"), "there is no text in '/nowhere/ptb'"),
    ],
)
def test_mistakes_are_one_line(ppvae_command, tmp_path, flags, message):
    small = SMALL if "--device" not in flags else SMALL[:-2]
    code, _, err = ppvae_command("train", "vae", *small, "--out", tmp_path, *flags)
    assert code == 2
    assert err.startswith("ppvae: ")
    assert message in err
    assert err.count("\n") == 1


def test_unknown_recipe_lists_the_known_ones(ppvae_command, tmp_path):
    code, _, err = ppvae_command("train", "vea", "--out", tmp_path)
    assert code == 2
    assert all(name in err for name in RECIPES)
    with pytest.raises(ValueError, match="unknown recipe 'vea': choose one of aae, betavae"):
        runs.train(runs.Settings("vea", {}, {"name": "digits"}), tmp_path, epochs=1)


def test_a_mistake_leaves_the_folder_free(ppvae_command, tmp_path):
    flags = ("train", "vae", *SMALL, "--epochs", 1, "--out", tmp_path)
    assert ppvae_command(*flags, "--batch-size", 99999)[0] == 2
    assert ppvae_command(*flags)[0] == 0


def test_an_unknown_recipe_in_a_folder_is_said(ppvae_command, tmp_path):
    ppvae_command("train", "vae", *SMALL, "--epochs", 1, "--out", tmp_path)
    settings = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(settings | {"recipe": "vea"}))
    with pytest.raises(
        ppvae.CheckpointError, match="holds a run of 'vea', a recipe that is unknown"
    ):
        ppvae.load(tmp_path)


def test_the_test_part_chooses_nothing(ppvae_command, tmp_path):
    """The best epoch is chosen on held-out training data, the same for every seed."""
    ppvae_command("train", "vae", *SMALL, "--epochs", 1, "--seed", 5, "--out", tmp_path)
    settings = ppvae.load(tmp_path, device="cpu").settings
    split = runs.load_data(settings)
    assert (len(split.train), len(split.validation), len(split.test)) == (1295, 143, 359)
    assert torch.equal(split.test, runs.load_data(settings._replace(seed=6)).test)


def test_a_run_is_neither_overwritten_nor_changed(ppvae_command, tmp_path):
    flags = ("train", "vae", *SMALL, "--epochs", 1, "--out", tmp_path)
    ppvae_command(*flags)
    code, _, err = ppvae_command(*flags)
    assert code == 2
    assert "holds a run of vae: pass --resume" in err
    changed = ("train", "vae", "--hidden", 9, *SMALL[2:], "--epochs", 2, "--out", tmp_path)
    code, _, err = ppvae_command(*changed, "--resume")
    assert code == 2
    assert "options.hidden was [8] and is [9]" in err
    code, _, err = ppvae_command("train", "flow_vae", *flags[2:], "--resume")
    assert "recipe was 'vae' and is 'flow_vae'" in err


@pytest.mark.skipif(os.geteuid() != 0 and not os.path.isdir("/proc"), reason="needs /proc")
def test_unwritable_folder_is_said(ppvae_command):
    code, _, err = ppvae_command("train", "vae", *SMALL, "--out", "/proc/nowhere")
    assert code == 2
    assert "cannot write to the folder /proc/nowhere" in err


def test_report_of_nothing_is_said(ppvae_command, tmp_path):
    code, _, err = ppvae_command("report", tmp_path, "--out", tmp_path / "r")
    assert code == 2
    assert f"there is no run in {tmp_path}" in err


def test_reports_of_different_data_are_refused(ppvae_command, tmp_path):
    ppvae_command("train", "vae", *SMALL, "--epochs", 1, "--out", tmp_path / "a")
    fixed = ("--binarize", "fixed", "--out", tmp_path / "b")
    ppvae_command("train", "vae", *SMALL, "--epochs", 1, *fixed)
    code, _, err = ppvae_command("report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "r")
    assert code == 2
    assert "trained on different data" in err
