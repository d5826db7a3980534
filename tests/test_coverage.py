"""Intervals of 95 % hold what they are of: `tests/benchmarks/coverage.py`, in small."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parent / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("k", "plain"), [(0.3, 0.9), (0.6, 0.78)])
def test_intervals_hold(benchmark, k, plain):
    """One datum's at k = 0.6 too, where sd(w) / sqrt(K) falls short; and those of `compare`."""
    found = benchmark.coverage(k, repetitions=20, size=30, draws=1000)
    ordinary, single, *means = (found[name] for name in benchmark.COLUMNS)
    assert found["k"] == pytest.approx(k, abs=0.06)
    assert single > 0.9 and single > ordinary > plain  # of 600; +- 0.01
    assert ordinary < 0.9 or k < 0.5
    assert all(mean >= 0.8 for mean in means)  # of 20: 0.95 gives less once in 400
