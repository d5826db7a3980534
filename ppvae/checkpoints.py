"""The former place of `ppvae.training.checkpoints`, for code that imports from here."""

from ppvae.training.checkpoints import (
    CheckpointError,
    append_history,
    exists,
    load,
    random_state,
    read_meta,
    replace_text,
    save,
    set_random_state,
    write_history,
)

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
