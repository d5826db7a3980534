"""What every test starts from: one seed, one thread, no leftovers."""

import shutil

import matplotlib.pyplot as plt
import pyro
import pytest
import torch
from real import real

plt.switch_backend("Agg")
torch.set_num_threads(1)  # the tensors are tiny: threads cost more than they bring


ARCHIVES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A function to copy archives: torchvision unpacks beside them, ours stay as they are."""
    folder = tmp_path_factory.mktemp("data")

    def with_archives(name):
        source = real(ARCHIVES[name]) / "raw"
        target = folder / ARCHIVES[name] / "raw"
        target.mkdir(parents=True, exist_ok=True)
        for archive in source.glob("*.gz"):
            if not (target / archive.name).exists():
                shutil.copyfile(archive, target / archive.name)
        return folder

    return with_archives


@pytest.fixture(autouse=True)
def clean_slate():
    """Fix the seed before a test, and see afterwards that it left nothing behind."""
    pyro.set_rng_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    plt.close("all")
    # never cleared: a leak must show
    assert not list(pyro.get_param_store().keys()), "the parameter store is no longer empty"
    assert torch.distributions.Distribution._validate_args, "argument validation was left off"


def pytest_collection_modifyitems(items):
    """Skip what needs CUDA where there is none, and say so."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and this machine has none")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)
