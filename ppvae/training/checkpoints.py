"""Checkpoints that survive a kill at any moment: written aside, renamed, verified when read.

A run is a folder:

    checkpoint-000012/   weights.safetensors   model and guide
                         training.pt           optimizer, schedules, random streams, order, records
                         meta.json             epoch, seed, versions, sizes and hashes
    last.json best.json  which checkpoint is which: replaced in one rename
    history.jsonl        one record per epoch, for whoever watches

A checkpoint is one folder for one moment, so that best weights never meet another moment's
optimizer. `training.pt` is read with `weights_only=True`: it can hold no code.
"""

import hashlib
import json
import os
import platform
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyro
import torch
from torch import Tensor

from ppvae.training.svi import SVI

__all__ = [
    "CheckpointError",
    "append_history",
    "exists",
    "load",
    "random_state",
    "read_meta",
    "replace_text",
    "save",
    "set_random_state",
    "write_history",
]

FORMAT = 1
WEIGHTS, TRAINING, META = "weights.safetensors", "training.pt", "meta.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or belongs to something else; the message says why."""


def save(
    folder: str | Path,
    svi: SVI,
    *,
    sampler: Mapping[str, int] | None = None,
    meta: Mapping[str, object] | None = None,
    best: bool = False,
) -> Path:
    """Write a checkpoint of this moment, make it the last one, and drop those that nothing names.

    Args:
        folder: The run's folder; made if need be.
        svi: What to save: weights, optimizer, schedules and records.
        sampler: The state of the data's order, of `Batches.state_dict`.
        meta: What else to say of it, as JSON.
        best: Whether this is the best one so far, too.

    Returns:
        The checkpoint's own folder.

    Raises:
        OSError: If it cannot be written; the previous checkpoint then stands untouched.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"checkpoint-{len(svi.records):06d}"
    aside = folder / f".{name}.writing"
    shutil.rmtree(aside, ignore_errors=True)  # what a kill left behind
    aside.mkdir()
    try:
        _write_parts(aside, svi, dict(sampler or {}), dict(meta or {}))
        _sync(aside)
        shutil.rmtree(folder / name, ignore_errors=True)  # of a run that was resumed before it
        aside.rename(folder / name)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    # the best first: between the two a kill must not leave a best one that the last has outdone
    for pointer in ("best", "last") if best or not exists(folder, "best") else ("last",):
        replace_text(folder / f"{pointer}.json", json.dumps({"checkpoint": name}))
    _prune(folder)
    return folder / name


def load(folder: str | Path, svi: SVI, which: str = "last") -> dict[str, object]:
    """Take up a checkpoint, with optimizer and records; return its meta data and sampler.

    Args:
        folder: The run's folder.
        svi: Built as when it was saved.
        which: "last" or "best".

    Returns:
        The meta data, with the keys "sampler" and "random" beside what was saved.

    Raises:
        CheckpointError: If there is none, it is damaged, or its tensors are not those of `svi`.
    """
    place = _find(folder, which)
    meta = read_meta(folder, which)
    weights = _weights(place, svi.device)
    _check_architecture(weights, _modules_state(svi), place)
    training = torch.load(place / TRAINING, map_location="cpu", weights_only=True)
    state = training["svi"] | _nested(weights)
    try:
        svi.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint {place} does not fit what is to be resumed: {error}"
        ) from error
    svi.records[:] = training["records"]
    return meta | {"sampler": training["sampler"], "random": training["random"]}


def exists(folder: str | Path, which: str = "last") -> bool:
    """Return whether a run's folder names such a checkpoint."""
    return (Path(folder) / f"{which}.json").exists()


def read_meta(folder: str | Path, which: str = "last") -> dict[str, object]:
    """Return what a checkpoint says of itself, after verifying its files.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    place = _find(folder, which)
    try:
        meta = json.loads((place / META).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the checkpoint {place} is damaged: {META}: {error}") from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"the checkpoint {place} has format {meta.get('format')}, this version reads {FORMAT}"
        )
    for name, expected in meta["files"].items():
        found = _fingerprint(place / name) if (place / name).exists() else {"bytes": 0}
        if found != expected:
            raise CheckpointError(
                f"the checkpoint {place} is damaged: {name} has {found['bytes']} bytes of "
                f"{expected['bytes']}, or others; resume from the other one, best or last, or anew"
            )
    return meta


def write_history(folder: str | Path, records: list[dict[str, float]]) -> None:
    """Replace the run's history by these records, a line of JSON each."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    replace_text(Path(folder) / "history.jsonl", lines)


def append_history(folder: str | Path, record: dict[str, float]) -> None:
    """Add a record to the run's history, a line of JSON."""
    with (Path(folder) / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def random_state() -> dict[str, object]:
    """Return the state of every random stream: torch's, CUDA's, Python's and NumPy's."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
    }


def set_random_state(state: Mapping[str, object]) -> None:
    """Take up what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


def _write_parts(place: Path, svi: SVI, sampler: dict[str, int], meta: dict[str, object]) -> None:
    from safetensors.torch import save_file

    state = svi.state_dict()
    weights = _modules_state(svi)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in weights.items()}, place / WEIGHTS
    )
    training = {
        "svi": {name: part for name, part in state.items() if name not in ("model", "guide")},
        "sampler": sampler,
        "random": random_state(),
        "records": svi.records,
    }
    torch.save(training, place / TRAINING)
    said = {
        "format": FORMAT,
        "epoch": len(svi.records),
        "seed": torch.initial_seed(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pyro": pyro.__version__,
        },
        "files": {name: _fingerprint(place / name) for name in (WEIGHTS, TRAINING)},
    }
    (place / META).write_text(json.dumps(meta | said, indent=2), encoding="utf-8")


def _modules_state(svi: SVI) -> dict[str, Tensor]:
    state = svi.state_dict()
    return {
        f"{side}.{name}": tensor
        for side in ("model", "guide")
        for name, tensor in state.get(side, {}).items()
    }


def _nested(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    nested: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        side, _, rest = name.partition(".")
        nested.setdefault(side, {})[rest] = tensor
    return nested


def _weights(place: Path, device: torch.device) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(place / WEIGHTS, device=str(device))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the checkpoint {place} is damaged: {WEIGHTS}: {error}") from error


def _check_architecture(
    saved: Mapping[str, Tensor], present: Mapping[str, Tensor], place: Path
) -> None:
    faults = [f"{name} is missing in it" for name in present.keys() - saved.keys()]
    faults += [f"{name} is unknown here" for name in saved.keys() - present.keys()]
    faults += [
        f"{name} has shape {tuple(saved[name].shape)} in it and {tuple(tensor.shape)} here"
        for name, tensor in present.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:5]) + (" ..." if len(faults) > 5 else "")
        raise CheckpointError(
            f"the checkpoint {place} is of another architecture: {shown}. Build model and guide "
            "with the arguments they were trained with"
        )


def _find(folder: str | Path, which: str) -> Path:
    pointer = Path(folder) / f"{which}.json"
    try:
        return Path(folder) / json.loads(pointer.read_text(encoding="utf-8"))["checkpoint"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"there is no {which} checkpoint in {folder}: train with fit(..., "
            f"checkpoint={str(folder)!r})"
        ) from error
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{pointer} is damaged: {error}") from error


def _fingerprint(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def replace_text(path: Path, text: str) -> None:
    """Write a file aside and rename it into place: a reader finds the old or the new one."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _sync(place: Path) -> None:
    for path in (*place.iterdir(), place):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prune(folder: Path) -> None:
    named = {_find(folder, which).name for which in ("last", "best") if exists(folder, which)}
    for place in folder.glob("checkpoint-*"):
        if place.name not in named:
            shutil.rmtree(place, ignore_errors=True)
