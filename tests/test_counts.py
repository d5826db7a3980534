"""ArviZ's rootogram on the counts of a pair."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae.arviz import count_groups, from_pyro_svi

RATES = torch.tensor([0.5, 2.0])


class Spikes(nn.Module):
    """z ~ Poisson(0.5, 2), x ~ Poisson(z_1 + z_2 + 0.1), four times."""

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Poisson(RATES, validate_args=False).to_event(1))
            rate = (z.sum(-1, keepdim=True) + 0.1).expand(*z.shape[:-1], batch.shape[-1])
            pyro.sample("x", dist.Poisson(rate).to_event(1), obs=batch)


class Prior(nn.Module):
    """A guide that says what the prior says, or half counts."""

    def __init__(self, step=1.0):
        super().__init__()
        self.step = step

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            counts = dist.Poisson(RATES.expand(len(batch), 2)).to_event(1)
            if self.step == 1:
                pyro.sample("z", counts)
            else:
                pyro.sample("z", dist.Delta(self.step * counts.sample(), event_dim=1))


@pytest.fixture(scope="module")
def tree():
    torch.manual_seed(0)
    return from_pyro_svi(Spikes(), Prior(), torch.poisson(torch.full((30, 4), 2.5)), draws=20)


@pytest.mark.parametrize(
    ("site", "size", "predictive"), [("z", 60, "prior"), ("x", 120, "posterior_predictive")]
)
def test_counts_are_those_of_the_tree(tree, site, size, predictive):
    groups = count_groups(tree, site)
    expected, found = groups["posterior_predictive"][site], groups["observed_data"][site]
    assert dict(expected.sizes) == {"chain": 1, "draw": 20, "count": size}
    assert dict(found.sizes) == {"count": size}
    assert expected.dtype == found.dtype == np.int64
    assert np.array_equal(expected[0, 7], tree[predictive][site][0, 7].values.ravel())
    own = tree["posterior/z"][0, 0] if site == "z" else tree["observed_data/x"]
    assert np.array_equal(found, own.values.ravel())


@pytest.mark.parametrize("site", ["z", "x"])
def test_the_rootogram_is_drawn(tree, site, tmp_path):
    """The points are the numbers of each count, on a scale of roots."""
    groups = count_groups(tree, site)
    figure = az.plot_ppc_rootogram(groups, backend="matplotlib")
    figure.savefig(tmp_path / "rootogram.png")
    values = groups["observed_data"][site].values
    points = figure.viz["observed_markers"][site].item().get_offsets()
    assert points[:, 1].sum() == pytest.approx(values.size)
    for count, number in points.tolist():
        assert number == (values == count).sum()


def test_what_is_no_count_is_refused(tree):
    with pytest.raises(KeyError, match=r"no site 'y' in the tree; there are \['z', 'x'\]"):
        count_groups(tree, "y")
    relaxed = from_pyro_svi(Spikes(), Prior(0.5), torch.ones(30, 4), draws=2)
    with pytest.raises(ValueError, match="site 'z' holds other numbers than counts"):
        count_groups(relaxed)
