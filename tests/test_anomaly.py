"""The area under the curve against its closed form, and its standard error against repetition."""

import math

import pytest
import torch

from ppvae.diagnostics import anomaly_auroc


@pytest.mark.parametrize("d", [0.0, 0.5, 2.0])
def test_auroc_of_two_normals(d):
    """N(d, 1) against N(0, 1): Phi(d / sqrt 2), within 4 of its standard errors."""
    found = anomaly_auroc(torch.randn(20_000) + d, torch.randn(10_000))
    exact = 0.5 * (1 + math.erf(d / 2))  # Phi(d / sqrt 2)
    assert found.value == pytest.approx(exact, abs=4 * found.standard_error)
    assert 0 < found.standard_error < 0.005


def test_the_standard_error_is_that_over_repetitions():
    """500 data sets of unequal sizes and spreads: the spread of the area is what is said of it."""
    runs = [anomaly_auroc(2 * torch.randn(60) + 1, torch.randn(30)) for _ in range(500)]
    spread = torch.tensor([run.value for run in runs]).std()
    said = torch.tensor([run.standard_error for run in runs]).square().mean().sqrt()
    assert float(spread / said) == pytest.approx(1, abs=0.13)  # 4 standard errors of the spread


def test_auroc_by_hand():
    """Ties count half; the order is all that counts; infinite scores have their place."""
    s, t = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])
    found = anomaly_auroc(s, t)
    assert found.value == pytest.approx((3 + 1 + 0.5) / 6)
    below, above = torch.tensor([0.5, 0.75, 1.0]), torch.tensor([1.0, 0.5])  # V10 and V01
    assert found.standard_error**2 == pytest.approx(float(below.var() / 3 + above.var() / 2))
    assert anomaly_auroc(s.exp(), t.exp()) == found
    assert anomaly_auroc(s, torch.tensor([-math.inf, 2.0])) == found
    assert anomaly_auroc(t, s).value == pytest.approx(1 - found.value)
    assert str(anomaly_auroc(s, t)).startswith("0.7500 +- ")


@pytest.mark.parametrize("bad", [torch.zeros(3, 2), torch.zeros(1), torch.tensor([0.0, math.nan])])
def test_auroc_refuses_in_words(bad):
    with pytest.raises(ValueError, match="anomalous must be scores"):
        anomaly_auroc(torch.zeros(3), bad)
    with pytest.raises(ValueError, match="normal must be scores"):
        anomaly_auroc(bad, torch.zeros(3))
