"""Chains in ArviZ: R-hat, ESS and moments mean something here."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from zoo import Ladder, binary, linear, real

from ppvae.arviz import from_langevin
from ppvae.models import LinearGaussian


@pytest.mark.parametrize(("kernel", "draws"), [("mala", 1500), ("hmc", 600)], ids=["mala", "hmc"])
def test_chains_reach_the_posterior(kernel, draws):
    """R-hat below 1.01, moments within three standard errors, on correlated latents."""
    weight = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -0.4]])
    model = LinearGaussian(weight, bias=torch.tensor([0.1, -0.2, 0.3]), scale=0.5)
    x = torch.tensor([[0.7, -1.1, 0.4], [0.0, 0.5, 2.0]])
    tree = from_langevin(model, x, kernel=kernel, draws=draws, warmup=300, leapfrog=5)
    z = tree["posterior"].dataset
    assert float(az.rhat(z)["z"].max()) < 1.01
    assert float(az.ess(z)["z"].min()) > 400
    exact = model.posterior(x)
    for moment, truth in ((z, exact.mean), (z**2, exact.variance + exact.mean**2)):
        error = az.mcse(moment, method="mean")["z"].values
        found = moment["z"].mean(("chain", "draw")).values
        assert (abs(found - truth.detach().numpy()) < 3 * error).all()
    rate = tree["sample_stats/acceptance_rate"]
    low, high = (0.45, 0.7) if kernel == "mala" else (0.7, 0.95)
    assert low < float(rate.mean()) < high
    assert tree["sample_stats/step_size"].shape == (4, draws, 2)
    lp = tree["log_likelihood/x"] + tree["log_prior/z"]
    assert abs(lp - tree["sample_stats/lp"]).max() < 1e-4


def test_lp_is_of_what_the_chain_walks_in():
    """A rate, walked in its logarithm: log p(x, z) + ln z, as its docstring says."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Poisson(z), obs=x)

    tree = from_langevin(model, torch.tensor([1.0, 4.0]), draws=20, warmup=20)
    joint = tree["log_likelihood/x"] + tree["log_prior/z"]
    jacobian = np.log(tree["posterior/z"])
    assert abs(joint + jacobian - tree["sample_stats/lp"]).max() < 1e-4
    assert abs(jacobian).max() > 0.1


def test_unadjusted_chains_settle_elsewhere():
    """Check 1 in the long run: v = 1 / (lam (1 - s^2 lam / 4)), .25 for .2 at s = .4."""
    model = LinearGaussian(torch.ones(1, 1), scale=0.5)
    tree = from_langevin(
        model, torch.full((50, 1), 1.25), kernel="ula", step_size=0.4, draws=200, warmup=20
    )
    z = tree["posterior/z"]
    assert float(z.var()) == pytest.approx(0.25, abs=0.008)
    assert "unadjusted" in tree["posterior"].attrs["note"]
    assert "sample_stats" not in tree


def test_r_hat_of_a_short_run_is_large():
    """Pitfall 12: 20 steps from the prior, s = .2, above 2; on long runs 1.000 at s = .6."""
    model = LinearGaussian(torch.ones(1, 1), scale=0.5)
    kwargs = {"kernel": "ula", "chains": 16, "warmup": 0}
    short = from_langevin(model, torch.full((1, 1), 1.25), step_size=0.2, draws=20, **kwargs)
    assert float(az.rhat(short["posterior"].dataset, method="identity")["z"].max()) > 1.4
    long = from_langevin(model, torch.full((1, 1), 1.25), step_size=0.6, draws=1000, **kwargs)
    assert float(az.rhat(long["posterior"].dataset)["z"].max()) < 1.005


def test_the_tree_has_the_names_of_the_others():
    """Sites, plates, coords, dims; ArviZ's own plots and summaries take it."""
    tree = from_langevin(
        linear(),
        real(5, 3),
        draws=30,
        warmup=10,
        coords={"data": list("abcde")},
        dims={"z": ["d"]},
    )
    assert tree["posterior/z"].dims == ("chain", "draw", "data", "d")
    assert tree["observed_data/x"].sizes["data"] == 5
    assert tree["log_likelihood/x"].dims == ("chain", "draw", "data")
    assert len(az.summary(tree, coords={"data": "a"})) == 2
    az.plot_rank(tree, coords={"data": "a"})
    az.plot_trace(tree, coords={"data": "a"})


def test_hierarchies_supports_and_mappings():
    """Every latent has its own variable, on its own support; the rest of a mapping is constant."""
    tree = from_langevin(Ladder(), binary(3, 8), draws=10, warmup=5, chains=2)
    assert set(tree["posterior"].data_vars) == {"z_1", "z_2"}

    class Rates(nn.Module):
        def forward(self, batch):
            with pyro.plate("data", len(batch["x"]), dim=-1):
                z = pyro.sample("z", dist.Gamma(2.0, torch.ones(())))
                pyro.sample("x", dist.Poisson(batch["time"] * z), obs=batch["x"])

    batch = {"x": torch.tensor([0.0, 2.0, 9.0]), "time": torch.full((3,), 3.0)}
    tree = from_langevin(Rates(), batch, draws=1500, warmup=300)
    z = tree["posterior/z"]
    assert float(z.min()) > 0
    error = az.mcse(tree["posterior"].dataset, method="mean")["z"].values
    assert (abs(z.mean(("chain", "draw")).values - [0.5, 1.0, 2.75]) < 4 * error).all()
    assert list(tree["constant_data"].data_vars) == ["time"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kernel": "nuts"}, "kernel must be one of"),
        ({"chains": 0}, "chains must be at least 1"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"step_size": 0.0}, "step_size must be positive and finite, but is 0.0"),
        ({"kernel": "ula", "step_size": -0.1}, "step_size must be positive and finite"),
    ],
)
def test_arguments_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        from_langevin(linear(), real(5, 3), **kwargs)


def test_modes_and_gradients_are_left_alone():
    """Nothing trains."""
    model = Ladder()
    model.decoder.eval()
    before = [part.training for part in model.modules()]
    from_langevin(model, binary(2, 8), draws=2, warmup=2, chains=2)
    assert [part.training for part in model.modules()] == before
    assert all(p.grad is None for p in model.parameters())
