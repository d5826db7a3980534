"""Docstrings are tests: every example runs, and whatever is public has one."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NAMES = {"torch": torch, "pyro": pyro, "dist": dist, "nn": nn, "np": np}
ABSTRACT = {"Aggregation", "Amortized", "Counts", "Objective"}
TERMS = {"Terms"}  # what an objective reads off its traces: made by Objective, for subclasses
DOORS = [  # what users import from: whatever is listed there shows an example
    *("ppvae", "ppvae.models", "ppvae.guides", "ppvae.objectives", "ppvae.networks"),
    *("ppvae.likelihoods", "ppvae.priors", "ppvae.distributions", "ppvae.divergences"),
    *("ppvae.diagnostics", "ppvae.arviz", "ppvae.data", "ppvae.aggregation"),
]


def modules():
    """Return the names of all modules, whichever folder they come from."""
    found = {"ppvae"}
    for root in ("ppvae", "ppvae.models", "ppvae.guides"):
        path = importlib.import_module(root).__path__
        found |= {root} | {info.name for info in pkgutil.walk_packages(path, f"{root}.")}
    return sorted(found)


MODULES = modules()


def public(name):
    """Yield what a module itself defines and lists in `__all__`."""
    module = importlib.import_module(name)
    for member in map(module.__dict__.get, getattr(module, "__all__", ())):
        if callable(member) and getattr(member, "__module__", None) == name:
            yield member


def documented(member):
    """Yield a member, and the public methods and properties of a class."""
    yield member.__qualname__, member
    for name, part in vars(member).items() if inspect.isclass(member) else ():
        part = part.fget if isinstance(part, property) else getattr(part, "func", part)
        own = inspect.isfunction(part) and part.__module__ == member.__module__
        if own and not name.startswith("_") and name != "forward":
            yield f"{member.__qualname__}.{name}", part


def without_example(members):
    """Return the names of classes and functions whose docstring shows no example."""
    return [m.__name__ for m in members if not exempt(m) and ">>>" not in (m.__doc__ or "")]


def exempt(member):
    """Return whether an example would say nothing: errors, protocols, records, abstract bases."""
    return (
        (inspect.isclass(member) and issubclass(member, BaseException))
        or (inspect.isclass(member) and getattr(member, "_is_protocol", False))
        or hasattr(member, "__dataclass_fields__")
        or not inspect.isclass(member)
        and not inspect.isfunction(member)
        or member.__name__ in ABSTRACT | TERMS
    )


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    """By import name: `--doctest-modules` would import models/ and guides/ twice."""
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    report = []
    for example in finder.find(module, name):
        example.globs.update(NAMES)
        pyro.set_rng_seed(0)
        runner.run(example, out=report.append)
    assert "".join(report) == ""


@pytest.mark.parametrize("name", MODULES)
def test_whatever_is_public_has_a_docstring(name):
    """Modules, classes, functions, methods."""
    assert importlib.import_module(name).__doc__
    bare = [
        q for m in public(name) for q, part in documented(m) if not (part.__doc__ or "").strip()
    ]
    assert bare == []


@pytest.mark.parametrize("name", DOORS)
def test_whatever_users_import_shows_an_example(name):
    """Errors, protocols, records and abstract bases aside."""
    module = importlib.import_module(name)
    assert without_example(map(module.__dict__.get, module.__all__)) == []


@pytest.mark.parametrize("name", MODULES)
def test_every_name_in_all_exists(name):
    """And every module that is meant to be read lists what is public."""
    module = importlib.import_module(name)
    assert [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)] == []
    assert len(set(getattr(module, "__all__", ()))) == len(getattr(module, "__all__", ()))
    if name not in {"ppvae.__main__"}:
        assert hasattr(module, "__all__")


@pytest.mark.parametrize("name", ["ppvae.models", "ppvae.guides"])
def test_models_and_guides_list_their_sites(name):
    """Other files rely on `name: (shape) role`."""
    package = importlib.import_module(name)
    bare = [n for n in package.__all__ if "Sites:" not in getattr(package, n).__doc__]
    assert bare == []


def test_the_checks_can_fail():
    """A function without an example is named; the modules are all there."""

    def plain():
        """Show nothing."""

    assert without_example([plain]) == ["plain"]
    assert {"ppvae.training.svi", "ppvae.models.vae", "ppvae.guides.normal"} <= set(MODULES)
    assert any(list(public(name)) for name in MODULES)
    assert exempt(ppvae.protocols.Model) and not exempt(ppvae.SVI)


@pytest.mark.parametrize(
    "heavy",
    [
        *("arviz", "arviz_stats", "arviz_plots", "pandas", "matplotlib", "torchvision"),
        *("zuko", "torchmetrics", "sklearn"),
    ],
)
def test_importing_ppvae_is_light(heavy, imported):
    """What one job needs is imported by that job."""
    assert heavy not in imported


@pytest.fixture(scope="module")
def imported():
    """The modules that `import ppvae` loads, in a process of its own, with settings unchanged."""
    code = (
        "import torch, pyro, sys; d = torch.distributions.Distribution;"
        "before = d._validate_args, torch.get_default_dtype(), torch.get_rng_state().tolist();"
        "import ppvae;"
        "assert before == (d._validate_args, torch.get_default_dtype(), "
        "torch.get_rng_state().tolist());assert not list(pyro.get_param_store().keys());"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
