"""Train, compare and report: recipes with typed flags.

Exit codes: 0 done, 2 something you can mend (said in one line), 130 interrupted.
"""

import inspect
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pyro
import torch
import tyro

from ppvae import data as data_sets
from ppvae import runs
from ppvae.data import Split
from ppvae.diagnostics.bounds.importance import LEAST_DRAWS
from ppvae.protocols import batch_size, map_batch
from ppvae.recipes import RECIPES, five_guides, kind_of, multimodal_pair, pair
from ppvae.report import format_table, writable_folder, write_report
from ppvae.training import SVI, callbacks

__all__ = ["compare", "list_all", "main", "report", "train"]

SHARED = {"arrays": pair, "modalities": multimodal_pair}  # what recipes with **kwargs hand on to
DATA = {"arrays": "digits", "modalities": "digit_halves", "sentences": "ptb"}  # by default


def compare(
    *,
    data: str = "digits",
    root: Path = Path("data"),
    download: bool = False,
    binarize: data_sets.Binarize = "threshold",
    epochs: int = 300,
    latent_dim: int = 8,
    hidden: int = 256,
    num_particles: int = 1000,
    seed: int = 0,
    seeds: int = 1,
    device: str = "auto",
    out: Path = Path("report"),
) -> None:
    """Train one VAE with five guides, and compare them: a table, and a page with figures.

    Args:
        data: The data set; `ppvae list` names them.
        root: The folder of the data sets.
        download: Whether torchvision may fetch what is missing.
        binarize: How gray images become binary.
        epochs: How many times to go through the data, per guide.
        latent_dim: The size of the latent.
        hidden: The width of the hidden layer in encoder and decoder.
        num_particles: The number of draws per test datum that the verdict rests on, at least 30.
        seed: Of weights, draws and the split.
        seeds: How many seeds of weights and draws to train with, from `seed` on, on one split: a
            ranking that one of them reverses is then told from one that they share.
        device: "auto", "cpu" or "cuda".
        out: The folder to write comparison.csv and index.html to.
    """
    _require(num_particles=(num_particles, LEAST_DRAWS), epochs=(epochs, 1), seeds=(seeds, 1))
    writable_folder(out)  # before the work, not after it
    split = data_sets.load(data, root=root, download=download, binarize=binarize, seed=seed)
    svis, interrupted = {}, False
    options = {"latent_dim": latent_dim, "hidden": hidden, "epochs": epochs}
    try:
        for one in range(seed, seed + seeds):
            for name, svi in five_guides(split, device=device, seed=one, **options):
                svis.setdefault(name, []).append(svi)
    except KeyboardInterrupt:
        if not svis:
            raise
        interrupted = True
        print(f"\ninterrupted: reporting on what is trained, {', '.join(svis)}", file=sys.stderr)
    facts = {
        "data": f"{data}, {len(split):,} to train and {len(split.test):,} to test",
        **options,
        "seed" if seeds == 1 else "seeds": ", ".join(map(str, range(seed, seed + seeds))),
    }
    _report(svis, split, out, num_particles, "Five guides on one model", facts)
    if interrupted:
        raise KeyboardInterrupt


def train(
    recipe: str,
    *,
    data: str = "digits",
    root: Path = Path("data"),
    download: bool = False,
    binarize: data_sets.Binarize = "threshold",
    validation_share: float = 0.1,
    data_seed: int = 0,
    epochs: int = 100,
    batch_size: int = 128,
    patience: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path,
    resume: bool = False,
    tensorboard: bool = False,
    **options,
) -> None:
    """Train a recipe in a folder that keeps its best and its last epoch.

    Args:
        recipe: What to train.
        data: The data set; `ppvae list` names them.
        root: The folder of the data sets.
        download: Whether torchvision may fetch what is missing.
        binarize: How gray images become binary; "none" for a likelihood of real numbers.
        validation_share: The share of the training data held out to choose the best epoch by,
            where there is no official validation part. The test part is never looked at.
        data_seed: Of the parts and of fixed binarization.
        epochs: How many epochs the run has in all.
        batch_size: The number of data in a batch.
        patience: Stop after so many epochs without a better one.
        seed: Of weights, draws and order.
        device: "auto", "cpu" or "cuda".
        out: The run's folder.
        resume: Go on with the run in that folder, if there is one.
        tensorboard: Whether to write curves for TensorBoard to OUT/tensorboard, too.
        **options: Of the recipe.
    """
    _require(epochs=(epochs, 1), latent_dim=(options.get("latent_dim", 1), 1))
    gray = data != "binarized_mnist" and data not in data_sets.OTHER_KINDS
    chosen = {"name": data, "binarize": binarize if gray else "none"}
    if data not in data_sets.OFFICIAL_VALIDATION:
        chosen["validation_share"] = validation_share
    chosen["seed"] = data_seed
    settings = runs.Settings(recipe, options, chosen, seed, batch_size)
    writable_folder(out)
    try:
        history = runs.train(
            settings,
            out,
            epochs=epochs,
            patience=patience,
            root=root,
            download=download,
            device=device,
            resume=resume,
            callbacks=[callbacks.tensorboard(out / "tensorboard")] if tensorboard else [],
        )
    except KeyboardInterrupt:
        again = shlex.join(word for word in sys.argv[1:] if word != "--resume")
        print(f"\ninterrupted; go on with: ppvae {again} --resume", file=sys.stderr)
        raise
    last = ", ".join(f"{name} {value:.4g}" for name, value in history.records[-1].items())
    print(f"{recipe}: {last}\nThe run is in {out.resolve()}: ppvae report {out}")


def report(
    folders: tyro.conf.Positional[tuple[Path, ...]],
    *,
    root: Path = Path("data"),
    which: Literal["best", "last"] = "best",
    num_particles: int = 1000,
    most_data: int = 1000,
    device: str = "auto",
    out: Path = Path("report"),
) -> None:
    """Judge trained runs on the test part of their data, side by side.

    Args:
        folders: The runs' folders; their data must be the same.
        root: The folder of the data sets.
        which: Which checkpoint of each.
        num_particles: The number of draws per test datum that the verdict rests on, at least 30.
        most_data: How many test data to judge on, drawn by seed 0.
        device: "auto", "cpu" or "cuda".
        out: The folder to write comparison.csv and index.html to.
    """
    _require(num_particles=(num_particles, LEAST_DRAWS), most_data=(most_data, 2))
    writable_folder(out)
    if not folders:
        raise ValueError("name at least one folder of `ppvae train`")
    loaded = {
        _name(folder, folders): runs.load(folder, which, device=device) for folder in folders
    }
    data = {tuple(sorted(run.settings.data.items())) for run in loaded.values()}
    if len(data) > 1:
        raise ValueError(
            f"the runs were trained on different data: {sorted(map(dict, data), key=str)}"
        )
    split = runs.load_data(next(iter(loaded.values())).settings, root=root)
    facts = {name: run.settings.recipe for name, run in loaded.items()}
    svis = {name: run.svi for name, run in loaded.items()}
    _report(svis, split, out, num_particles, "Runs compared", facts, most_data)


def list_all() -> None:
    """List recipes and data sets."""
    for kind, default in DATA.items():
        print(f"recipes of {kind} (ppvae train NAME; --data {default} by default)")
        for name, recipe in RECIPES.items():
            if kind_of(name) == kind:
                print(f"  {name:<18}{inspect.getdoc(recipe).splitlines()[0]}")
    print("data sets (--data NAME)")
    for name in data_sets.NAMES:
        print(f"  {name}")


def main() -> None:
    """Run a subcommand."""
    words = sys.argv[1:]
    commands, prog, about = (
        {"compare": compare, "report": report, "list": list_all},
        "ppvae",
        __doc__,
    )
    if words[:1] == ["train"]:  # its own subcommands are the recipes, each with its own flags
        commands = {name: _trainer(recipe) for name, recipe in RECIPES.items()}
        prog, about, words = "ppvae train", inspect.getdoc(train).splitlines()[0], words[1:]
    else:
        commands = {"train": _train_help, **commands}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog=prog, description=about, args=words)
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"ppvae: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _train_help() -> None:
    """Train a recipe in a folder that keeps its best and its last epoch."""


def _trainer(recipe: Callable[..., SVI]) -> Callable[..., None]:
    """Return `train` with a recipe's own options, and those recipes share, among its flags."""
    parts = ("guide", "loss", "prior", "encoder", "decoder", "optim", "aggregation")
    hidden = ("recipe", "features", "options", "kwargs", *parts)  # what recipes decide
    sources = [train, recipe]  # the last word on a default is the recipe's
    if any(p.kind == p.VAR_KEYWORD for p in inspect.signature(recipe).parameters.values()):
        sources.insert(1, SHARED[kind_of(recipe.__name__)])
    flags = {n: p for f in sources for n, p in inspect.signature(f).parameters.items()}

    def command(**chosen) -> None:
        train(recipe.__name__, **chosen)

    flags["data"] = flags["data"].replace(default=DATA[kind_of(recipe.__name__)])
    shown = {name: p for name, p in flags.items() if name not in hidden}
    command.__signature__ = inspect.Signature(list(shown.values()))
    command.__annotations__ = {name: p.annotation for name, p in shown.items()}
    command.__doc__ = "\n".join(
        [
            inspect.getdoc(recipe).split("Args:")[0].strip(),
            "\nArgs:",
            *(line for f in sources for line in _described(f, hidden)),
        ]
    )
    return command


def _described(function: Callable, hidden: tuple[str, ...]) -> list[str]:
    """Return the lines of a docstring on its arguments, less the hidden ones."""
    section = inspect.getdoc(function).split("Args:\n")[1].split("\n\n")[0]
    kept, lines = True, []
    for line in section.splitlines():
        if not line.startswith("     "):  # a new argument
            kept = line.strip().lstrip("*").split(":")[0] not in hidden
        lines += [line] * kept
    return lines


def _require(**limits: tuple[int, int]) -> None:
    for name, (value, least) in limits.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but is {value}")


def _name(folder: Path, folders: tuple[Path, ...]) -> str:
    """Return the last part of a run's path, or all of it where that is not enough."""
    return folder.name if [f.name for f in folders].count(folder.name) == 1 else str(folder)


def _report(
    svis: Mapping[str, SVI | Sequence[SVI]],
    split: Split,
    out: Path,
    num_particles: int,
    title: str,
    facts: dict[str, object],
    most_data: int | None = None,
) -> None:
    """Write a report, print its table, and say where it is."""
    first = next(iter(svis.values()))
    where = (first if isinstance(first, SVI) else first[0]).device
    size = batch_size(split.test)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    some = order[:most_data] if most_data else torch.arange(size)
    labels = None if split.test_labels is None else split.test_labels[some]
    table = write_report(
        svis,
        map_batch(lambda leaf: leaf[some].to(where), split.test),
        out,
        labels=labels if labels is not None and labels.ndim == 1 else None,
        image=split.image,
        num_particles=num_particles,
        title=title,
        facts={
            **facts,
            "judged on": f"{len(some):,} test data",
            "draws": num_particles,
            "device": where,
            "torch": torch.__version__,
            "pyro": pyro.__version__,
            "python": platform.python_version(),
        },
    )
    print(f"\n{format_table(table)}\n\nThe report is in {out.resolve() / 'index.html'}")
