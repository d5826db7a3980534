"""A run is a recipe, data and a seed in a folder: trained, resumed, loaded for analysis."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyro
import torch

from ppvae import data
from ppvae.data import Split
from ppvae.protocols import Guide, Model
from ppvae.recipes import RECIPES, kind_of
from ppvae.training import SVI, CheckpointError, History, checkpoints, fit, resolve_device

__all__ = ["Run", "Settings", "load", "load_data", "train"]

SETTINGS = "run.json"


class Settings(NamedTuple):
    """What makes a run what it is; `run.json` holds it, beside the versions it began with.

    Attributes:
        recipe: A name in `RECIPES`.
        options: The recipe's arguments.
        data: The arguments of `data.load`, without `root` and `download`: its seed is that of the
            parts, so that runs of different seeds can be judged on the same test data.
        seed: Of weights, draws and order.
        batch_size: The number of data in a batch.
    """

    recipe: str
    options: dict[str, object]
    data: dict[str, object]
    seed: int = 0
    batch_size: int = 128


class Run(NamedTuple):
    """A trained pair and where it comes from.

    Attributes:
        model: With the weights asked for, on the device asked for.
        guide: Likewise.
        svi: The two with loss and optimizer, of the same moment.
        history: Of all epochs up to that moment.
        settings: What made it.
    """

    model: Model
    guide: Guide
    svi: SVI
    history: History
    settings: Settings


def train(
    settings: Settings,
    out: str | Path,
    *,
    epochs: int,
    patience: int | None = None,
    root: str | Path = "data",
    download: bool = False,
    device: str = "auto",
    resume: bool = False,
    callbacks: Sequence[Callable[[SVI, History], None]] = (),
    progress: bool = True,
) -> History:
    """Train a recipe in a folder, or go on with it.

    Args:
        settings: The recipe, its options, the data and the seed.
        out: The run's folder.
        epochs: How many epochs the run has in all.
        patience: As in `fit`.
        root: The folder of the data sets.
        download: Whether torchvision may fetch what is missing.
        device: "auto", "cpu" or "cuda".
        resume: Whether to go on with the run in the folder, if there is one.
        callbacks: As in `fit`.
        progress: Whether to show a bar.

    Raises:
        ValueError: If recipe, data or an option is unknown, naming the known ones, or a run is
            resumed with other settings, naming what differs.
        FileExistsError: If the folder holds a run, and `resume` is not set.
        CheckpointError: If the checkpoint to resume from is damaged.
        OSError: If the folder cannot be written.
    """
    folder = Path(out)
    held = checkpoints.exists(
        folder
    )  # settings without a checkpoint are of a run that never began
    if held and resume:
        _require_same(_read(folder), settings, folder)
    elif held:
        raise FileExistsError(
            f"{folder} holds a run of {_read(folder).recipe}: pass --resume to go on, or name "
            "another folder"
        )
    split = load_data(settings, root=root, download=download)
    _require_kind(settings, split)
    if held:
        _require_features(_read(folder), split, folder)
    options = {"features": split.features, **settings.options}
    settings = settings._replace(options=options)
    svi = _build(settings, device)
    folder.mkdir(parents=True, exist_ok=True)
    if not held:
        _write(folder, settings)
    return fit(
        svi,
        split.batches(settings.batch_size, seed=settings.seed, device=svi.device),
        epochs=epochs,
        validation=split.validation,
        patience=patience,
        checkpoint=folder,
        resume=True,
        callbacks=callbacks,
        progress=progress,
    )


def load(path: str | Path, which: str = "best", *, device: str = "auto") -> Run:
    """Rebuild a recipe's model and guide from a run's folder.

    Args:
        path: The run's folder.
        which: "best" or "last".
        device: "auto", "cpu" or "cuda".

    Returns:
        The run, at that checkpoint.

    Raises:
        CheckpointError: If there is no run, or it is damaged.

    Example:
        >>> import tempfile
        >>> data = {"name": "digits", "binarize": "threshold"}
        >>> settings = Settings("vae", {"hidden": (8,), "latent_dim": 2}, data)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     history = train(settings, folder, epochs=1, device="cpu", progress=False)
        ...     run = load(folder, device="cpu")
        >>> run.settings.recipe, len(run.history)
        ('vae', 1)
    """
    folder = Path(path)
    settings = _read(folder)
    if settings.recipe not in RECIPES:
        raise CheckpointError(
            f"{folder} holds a run of {settings.recipe!r}, a recipe that is unknown here: there "
            f"are {', '.join(sorted(RECIPES))}"
        )
    svi = RECIPES[settings.recipe](**_recipe_options(settings), device=device)
    checkpoints.load(folder, svi, which)
    return Run(svi.model, svi.guide, svi, History(svi.records), settings)


def load_data(settings: Settings, *, root: str | Path = "data", download: bool = False) -> Split:
    """Return the data of a run."""
    return data.load(**settings.data, root=root, download=download)


def _require_kind(settings: Settings, split: Split) -> None:
    """Raise if the recipe is unknown, or for data of another kind."""
    if settings.recipe not in RECIPES:
        raise ValueError(
            f"unknown recipe {settings.recipe!r}: choose one of {', '.join(sorted(RECIPES))}"
        )
    if split.kind != kind_of(settings.recipe):
        fitting = [name for name in RECIPES if kind_of(name) == split.kind]
        raise ValueError(
            f"{settings.recipe} takes {kind_of(settings.recipe)}, but {settings.data['name']} "
            f"holds {split.kind}: take one of {', '.join(fitting)}, or other data"
        )


def _build(settings: Settings, device: str) -> SVI:
    pyro.set_rng_seed(settings.seed)
    return RECIPES[settings.recipe](**_recipe_options(settings), device=resolve_device(device))


def _recipe_options(settings: Settings) -> dict[str, object]:
    """Return the options as the recipe takes them: JSON makes lists of tuples."""
    return {name: _tuples(value) for name, value in settings.options.items()}


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _write(folder: Path, settings: Settings) -> None:
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
    }
    text = json.dumps(settings._asdict() | {"versions": versions}, indent=2)
    checkpoints.replace_text(folder / SETTINGS, text)


def _read(folder: Path) -> Settings:
    try:
        said = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return Settings(**{name: said[name] for name in Settings._fields})
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no run in {folder}: {SETTINGS} is missing") from error
    except (json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{folder / SETTINGS} is damaged: {error}") from error


def _require_same(old: Settings, new: Settings, folder: Path) -> None:
    before, now = (json.loads(json.dumps(_flat(s))) for s in (old, new))
    differing = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name != "options.features"  # they are the data's
    ]
    if differing:
        raise ValueError(
            f"{folder} cannot be resumed with other settings: {'; '.join(differing)}. Take the "
            "old ones, or another folder"
        )


def _require_features(old: Settings, split: Split, folder: Path) -> None:
    before, now = (json.loads(json.dumps(f)) for f in (old.options["features"], split.features))
    if before != now:
        what = "the words" if split.kind == "sentences" else "the sizes"
        raise ValueError(
            f"{what} of these data are not those that the run in {folder} was trained on: resume "
            "with the same files, or take another folder"
        )


def _flat(settings: Settings) -> Mapping[str, object]:
    flat = {}
    for name, value in settings._asdict().items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        flat |= {name if key is None else f"{name}.{key}": v for key, v in inner}
    return flat
