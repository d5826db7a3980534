"""Sparse coding's codes are the lasso's, and its dictionaries those that made the data."""

import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

PATH = Path(__file__).parent / "benchmarks" / "sparse_coding.py"
coding = SimpleNamespace(**runpy.run_path(str(PATH)))
energy, ista, lca, shrink = coding.energy, coding.ista, coding.lca, coding.shrink
learn_dictionary, score, unit_columns = coding.learn_dictionary, coding.score, coding.unit_columns

METHODS = {"lca": partial(lca, steps=10_000, rate=0.3), "ista": partial(ista, steps=10_000)}
each_method = pytest.mark.parametrize("name", METHODS)


def problem(units=10, size=8, data=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(size, units, generator=generator, dtype=torch.float64)
    return torch.randn(data, size, generator=generator, dtype=torch.float64), unit_columns(
        dictionary
    )


@each_method
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_codes_are_those_of_the_lasso(name, nonnegative, threshold):
    """Of scikit-learn's, whose alpha is the threshold by the size of x: code by code."""
    from sklearn.linear_model import Lasso

    x, dictionary = problem()
    codes = METHODS[name](x, dictionary, threshold, nonnegative=nonnegative)
    options = {"fit_intercept": False, "tol": 1e-12, "max_iter": 200_000, "positive": nonnegative}
    lasso = Lasso(alpha=threshold / x.shape[1], **options)
    expected = torch.stack(
        [torch.tensor(lasso.fit(dictionary.numpy(), row.numpy()).coef_) for row in x]
    )
    assert torch.allclose(codes, expected, atol=1e-5)
    assert torch.equal(codes == 0, expected.abs() < 1e-7)


@each_method
@pytest.mark.parametrize("nonnegative", [False, True])
def test_fixed_points_are_optimal(name, nonnegative):
    """Phi^T (x - Phi a) is threshold sign(a) where a is not 0, and no larger elsewhere."""
    x, dictionary = problem(seed=1)
    codes = METHODS[name](x, dictionary, 0.3, nonnegative=nonnegative)
    slope = (x - codes @ dictionary.T) @ dictionary
    active = codes != 0
    assert 0.1 < float(active.double().mean()) < 0.9
    assert torch.allclose(slope[active], 0.3 * codes[active].sign(), atol=1e-6)
    still = slope if nonnegative else slope.abs()
    assert bool((still[~active] <= 0.3 + 1e-6).all())
    assert bool((codes >= 0).all()) is nonnegative


@each_method
def test_the_energy_falls(name):
    x, dictionary = problem(seed=2)
    method = {"lca": partial(lca, rate=0.05), "ista": ista}[name]
    found = [
        energy(x, dictionary, method(x, dictionary, 0.3, steps=n), 0.3).mean()
        for n in (1, 20, 200)
    ]
    assert found[0] > found[1] > found[2]


def test_the_soft_threshold():
    u = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    assert shrink(u, 0.7).tolist() == pytest.approx([-1.3, 0, 0, 0, 1.3])
    assert shrink(u, 0.7, nonnegative=True).tolist() == pytest.approx([0, 0, 0, 0, 1.3])


@each_method
def test_the_dictionary_that_made_the_data_is_found(name):
    """Each of 12 columns up to its sign, from codes of two active units in ten dimensions."""
    torch.manual_seed(0)
    truth = unit_columns(torch.randn(10, 12))
    codes = torch.zeros(4000, 12)
    chosen = torch.rand(4000, 12).topk(2).indices
    codes.scatter_(1, chosen, torch.randn(4000, 2).sign() * (1 + torch.rand(4000, 2)))
    x = codes @ truth.T
    infer = {"lca": partial(lca, steps=60, rate=0.1), "ista": partial(ista, steps=60)}[name]
    infer = partial(infer, threshold=0.15)
    start = score(x, unit_columns(torch.randn(10, 12)), infer)
    learned = learn_dictionary(x, 12, infer, steps=400, batch_size=200)
    assert torch.allclose(learned.norm(dim=0), torch.ones(12))
    assert float((truth.T @ learned).abs().amax(1).min()) > 0.97
    end = score(x, learned, infer)
    assert end["mse_map"] < start["mse_map"] / 3 and end["zeros"] > 0.6


@pytest.mark.gpu
@each_method
def test_codes_are_those_of_the_device(name):
    x, dictionary = problem()
    here = METHODS[name](x, dictionary, 0.3)
    there = METHODS[name](x.cuda(), dictionary.cuda(), 0.3)
    assert there.device.type == "cuda" and torch.allclose(here, there.cpu(), atol=1e-8)
