"""The wheel holds the package and works elsewhere; importing it is light and changes nothing."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(*command, cwd):
    """Run a command, show what it said if it fails, and return its output."""
    command = list(map(str, command))
    done = subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: building leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("ppvae", "models", "guides", "notebooks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", source / "dist")
    run(sys.executable, "-m", "pip", "wheel", *offline, ".", cwd=source)
    (built,) = (source / "dist").glob("ppvae-*.whl")
    return built


def test_pyproject_names_every_package():
    """Every folder with modules is in `packages`, which setuptools does not look for itself."""
    folders = {"ppvae": "ppvae", "models": "ppvae.models", "guides": "ppvae.guides"}
    found = set()
    for folder, package in folders.items():
        for path in (ROOT / folder).rglob("*.py"):
            found.add(".".join([package, *path.relative_to(ROOT / folder).parent.parts]))
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found


def test_wheel_holds_the_package_and_nothing_else(wheel):
    """Every module and py.typed are in the wheel; tests and notebooks are not."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"ppvae/py.typed"}
    for folder, prefix in {"ppvae": "", "models": "ppvae", "guides": "ppvae"}.items():
        paths = (ROOT / folder).rglob("*.py")
        expected |= {Path(prefix, path.relative_to(ROOT)).as_posix() for path in paths}
    assert names == expected


def test_wheel_works_in_an_empty_environment(wheel, tmp_path):
    """The installed wheel imports from another folder, and it is not the checkout that does."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # Lend it our dependencies. Python reads no .pth file in a folder that a .pth file adds, so the
    # editable install, itself a .pth file, stays behind: asserted below.
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(paths))
    program = """
import json, sys
editable = [name for name in sys.modules if name.startswith("__editable__")]
import ppvae, ppvae.models, ppvae.guides
files = [m.__file__ for m in (ppvae, ppvae.models, ppvae.guides)]
print(json.dumps([editable, files]))
"""
    editable, files = json.loads(run(python, "-I", "-c", program, cwd=tmp_path))
    assert editable == []
    assert [Path(file).relative_to(site).as_posix() for file in files] == [
        "ppvae/__init__.py",
        "ppvae/models/__init__.py",
        "ppvae/guides/__init__.py",
    ]


IMPORT = """
import importlib, json, sys, warnings
import torch, pyro

def state():
    return {
        "parameters": sorted(pyro.get_param_store().keys()),
        "settings": {name: repr(value) for name, value in pyro.settings.get().items()},
        "validation": torch.distributions.Distribution._validate_args,
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().tolist(),
        "warnings": list(map(repr, warnings.filters)),
    }

loaded, before = set(sys.modules), state()
for name in sys.argv[1:]:
    importlib.import_module(name)
new = {name.partition(".")[0] for name in set(sys.modules) - loaded}
print(json.dumps([sorted(new), before, state()]))
"""


def importing(*names, cwd):
    """Import `names` after torch and Pyro, in a new process: new modules, state before, after."""
    return json.loads(run(sys.executable, "-I", "-c", IMPORT, *names, cwd=cwd))


def test_import_is_light_and_changes_nothing(tmp_path):
    """Heavy dependencies wait for their first use; flags, store and filters stay as they were."""
    new, before, after = importing("ppvae", "ppvae.models", "ppvae.guides", cwd=tmp_path)
    assert not {"arviz", "pandas", "matplotlib", "torchvision", "zuko", "sklearn"}.intersection(
        new
    )
    assert after == before
    assert after["parameters"] == []


def test_the_import_check_can_fail(tmp_path):
    """The check sees that importing zuko switches torch's and Pyro's validation off."""
    new, before, after = importing("zuko", cwd=tmp_path)
    assert "zuko" in new
    assert before["validation"] != after["validation"]


def test_no_file_names_an_index_or_a_machine():
    """No tracked file says from which index, or in which folder of one machine, it was made."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # in pieces, or this file would name them too
    index = "|".join(
        ["--(?:extra-)?index" + "-url", "--find" + "-links", r"https?://\S*py" + "pi"]
    )
    folder = "|".join(rf"(?<![\w.]){'/' + name}/" for name in ("work", "root", "home/[a-z]"))
    pattern = re.compile(f"{index}|{folder}")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    paths = [ROOT / name for name in listed.split("\0") if (ROOT / name).is_file()]
    found = {
        f"{path.relative_to(ROOT)}: {match}"
        for path in paths
        for match in pattern.findall(path.read_text(encoding="utf-8", errors="ignore"))
    }
    assert paths
    assert found == set()
