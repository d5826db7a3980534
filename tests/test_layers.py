"""Which module of ppvae may import which: held by a table, not by goodwill."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "ppvae": ROOT / "ppvae",
    "ppvae.models": ROOT / "models",
    "ppvae.guides": ROOT / "guides",
}


# Where code may go on importing from what now lives in ppvae.training.
FORMER = ("svi", "lagging", "callbacks", "batches", "checkpoints")


def _layers():
    """The table: module -> what it may import of ppvae, besides itself and its own folder."""
    bottom = {
        *("distributions", "networks", "likelihoods", "priors"),
        *("divergences", "langevin", "pairing"),
    }
    zero = {"protocols"} | bottom
    judges = {"objectives", "weights"}
    tools = {"training", "arviz", "diagnostics"}
    below_plots = zero | judges | tools | {"aggregation", "models", "guides"}
    return {
        "protocols": set(),
        **{name: {"protocols"} for name in bottom},
        "priors": {"protocols", "distributions"},
        "aggregation": zero,
        "models": zero | {"aggregation"},
        "guides": zero | {"aggregation"},
        "weights": zero | {"aggregation"},
        "objectives": zero | {"aggregation", "weights"},
        "training": zero | judges | {"diagnostics"},
        **{name: {"training"} for name in FORMER},
        "arviz": zero | judges,
        "diagnostics": zero | judges,
        "data": zero | {"training"},
        "plots": below_plots,
        "recipes": below_plots | {"data", "plots"},
        "report": below_plots | {"plots"},
        "runs": below_plots | {"data", "recipes"},
        "cli": {"data", "diagnostics", "protocols", "recipes", "report", "runs", "training"},
    }


LAYERS = _layers()


def module_of(name):
    """Return the table's word for a dotted name: `ppvae.models.vae` is `models`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "the package itself"


def imports(source, package):
    """Return every `ppvae...` name that a source in `package` imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            # `from ppvae import svi` names a module only in its second half
            found |= {f"{base}.{a.name}" for a in node.names} if base == "ppvae" else {base}
    return {name for name in found if name.split(".")[0] == "ppvae"}


def violations(name, source):
    """Return what module `name` imports against the table, in words."""
    package = name.rpartition(".")[0]
    me = name.removesuffix(".__init__").split(".")[1]
    if me not in LAYERS:
        return [f"{name} is not in the table of layers: give it a place in tests/test_layers.py"]
    allowed = LAYERS[me] | {me}
    wrong = {n for n in imports(source, package) if module_of(n) not in allowed}
    return [f"{name} may not import {n}: see tests/test_layers.py" for n in sorted(wrong)]


def files():
    """Yield the dotted name and the path of every module, ppvae/__init__.py aside."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            name = ".".join([package, *path.relative_to(folder).with_suffix("").parts])
            if name != "ppvae.__init__":
                yield name, path


@pytest.mark.parametrize(("name", "path"), [pytest.param(n, p, id=n) for n, p in files()])
def test_imports_follow_the_layers(name, path):
    """Every import of every file is one that the table allows."""
    assert violations(name, path.read_text(encoding="utf-8")) == []


def test_the_table_is_a_ladder():
    """No two modules may import each other, directly or in a ring."""
    left = {name: allowed & LAYERS.keys() for name, allowed in LAYERS.items()}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert left == {}


@pytest.mark.parametrize(
    ("name", "source", "culprit"),
    [
        ("ppvae.networks", "import ppvae.svi", "ppvae.svi"),
        ("ppvae.networks", "from ppvae import svi", "ppvae.svi"),
        ("ppvae.networks", "from .svi import SVI", "ppvae.svi"),
        ("ppvae.networks", "from . import svi", "ppvae.svi"),
        ("ppvae.svi", "from ppvae import fit", "ppvae.fit"),
        ("ppvae.svi", "import ppvae", "ppvae"),
        ("ppvae.weights", "from ppvae.objectives import IWELBO", "ppvae.objectives"),
        ("ppvae.guides.exact", "def f():\n    from ppvae.models import VAE", "ppvae.models"),
        ("ppvae.guides.exact", "from ..models.vae import VAE", "ppvae.models.vae"),
        ("ppvae.guides.__init__", "from ..models import VAE", "ppvae.models"),
        ("ppvae.cli", "if True:\n    from ppvae.weights import log_weights", "ppvae.weights"),
    ],
)
def test_the_checker_sees_a_violation(name, source, culprit):
    """Each way to write an import against the table is found and named."""
    assert violations(name, source) == [
        f"{name} may not import {culprit}: see tests/test_layers.py"
    ]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ppvae.objectives", "import torch\nfrom ppvae.weights import log_weights"),
        ("ppvae.guides.normal", "from ppvae.guides.amortized import Amortized"),
        ("ppvae.guides.__init__", "from .normal import Normal"),
        ("ppvae.networks.mlp", "from ppvae.protocols import Batch\nfrom .base import Network"),
        ("ppvae.cli", "from ppvae import recipes, report"),
        ("ppvae.arviz", "import arviz\nfrom pyro import poutine"),
    ],
)
def test_the_checker_lets_the_rest_pass(name, source):
    """What the table allows is no violation."""
    assert violations(name, source) == []


def test_a_file_outside_the_table_fails():
    """A new module must take its place in the table before it passes."""
    assert "not in the table" in violations("ppvae.novelty", "import torch")[0]


@pytest.mark.parametrize("name", FORMER)
def test_a_former_place_gives_the_same_names(name):
    """What was imported from `ppvae.svi` and the like is what the training wing has."""
    former = importlib.import_module(f"ppvae.{name}")
    now = importlib.import_module(f"ppvae.training.{name}")
    assert former.__all__
    assert all(getattr(former, each) is getattr(now, each) for each in former.__all__)
