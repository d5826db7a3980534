"""Where real data are looked for: the folder PPVAE_DATA, or beside the checkout."""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[2] / "shared" / "data"
REAL = Path(os.environ.get("PPVAE_DATA", BESIDE))


def real(name):
    """Return the folder of a real data set, or skip the test."""
    if not (REAL / name).is_dir():
        pytest.skip(f"needs {name} in {REAL}: set PPVAE_DATA to the folder that holds it")
    return REAL / name
