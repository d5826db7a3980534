"""from_pyro_svi: exact numbers, every function of ArviZ, and nothing disturbed."""

import inspect

import arviz as az
import arviz_stats
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae.arviz
from ppvae.arviz import from_pyro_svi
from ppvae.guides import Exact, Normal
from ppvae.models import VAE, LinearGaussian
from ppvae.networks import MLP

matplotlib.use("Agg")

# ArviZ informs about the fit of these small pairs, or about better plots for counts
INFORMATIVE = [
    "ignore:Estimated shape parameter of Pareto distribution:UserWarning",
    "ignore:Variables x in .* look discrete:UserWarning",
    "ignore:No status variable found for x:UserWarning",
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    yield
    plt.close("all")


# Exact numbers


def linear_gaussian(features=3, size=6):
    model = LinearGaussian(0.5 * torch.randn(features, 2), torch.randn(features), scale=0.8)
    return model, Exact(model), torch.randn(size, features)


@pytest.fixture(scope="module")
def exact():
    torch.manual_seed(0)
    model, guide, x = linear_gaussian()
    return model.requires_grad_(False), x, from_pyro_svi(model, guide, x, draws=4000)


def array(tree, path):
    return torch.as_tensor(tree[path].values)[0]  # (S, N, ...)


def close_in_mean(draws, mean, variance):
    error = (variance / len(draws)).sqrt()
    return bool(((draws.mean(0) - mean).abs() < 5 * error).all())


def test_groups_and_dims(exact):
    _, _, tree = exact
    dims = {group: {name: v.dims for name, v in node.items()} for group, node in tree.items()}
    draws, data = ("chain", "draw", "data"), ("data",)
    assert dims == {
        "posterior": {"z": (*draws, "z_dim_0")},
        "sample_stats": {"log_weight": draws},
        "log_likelihood": {"x": draws},
        "log_prior": {"z": draws},
        "posterior_predictive": {"x": (*draws, "x_dim_0")},
        "prior": {"z": (*draws, "z_dim_0")},
        "prior_predictive": {"x": (*draws, "x_dim_0")},
        "observed_data": {"x": (*data, "x_dim_0")},
    }
    assert dict(tree.posterior.sizes) == {"chain": 1, "draw": 4000, "data": 6, "z_dim_0": 2}
    assert tree.posterior.attrs["inference_library"] == "pyro"
    assert "R-hat" in tree.posterior.attrs["note"]


def test_log_weights_are_the_evidence(exact):
    model, x, tree = exact
    weights = array(tree, "sample_stats/log_weight")
    torch.testing.assert_close(
        weights, model.log_evidence(x).expand_as(weights), atol=1e-4, rtol=0
    )


def test_scores_are_the_densities_of_the_draws(exact):
    model, x, tree = exact
    z = array(tree, "posterior/z")
    p_x = dist.Normal(z @ model.weight.T + model.bias, model.log_scale.exp()).to_event(1)
    torch.testing.assert_close(array(tree, "log_likelihood/x"), p_x.log_prob(x))
    p_z = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    torch.testing.assert_close(array(tree, "log_prior/z"), p_z.log_prob(z))


def test_draws_have_the_moments_of_posterior_and_prior(exact):
    model, x, tree = exact
    noise, posterior = (2 * model.log_scale).exp(), model.posterior(x)
    weight, covariance = model.weight, posterior.covariance_matrix[0]
    prior_variance = (weight @ weight.T).diagonal() + noise
    replicate_variance = (weight @ covariance @ weight.T).diagonal() + noise
    moments = {
        "posterior/z": (posterior.mean, covariance.diagonal()),
        "posterior_predictive/x": (posterior.mean @ weight.T + model.bias, replicate_variance),
        "prior/z": (torch.zeros(2), torch.ones(2)),
        "prior_predictive/x": (model.bias, prior_variance),
    }
    for path, (mean, variance) in moments.items():
        draws = array(tree, path)
        assert close_in_mean(draws, mean, variance), path
        assert close_in_mean((draws - mean) ** 2, variance, 2 * variance**2), path


def test_observed_data_are_the_batch(exact):
    _, x, tree = exact
    np.testing.assert_array_equal(tree["observed_data/x"].values, x.numpy())


@pytest.mark.filterwarnings(*INFORMATIVE)
def test_loo_estimates_the_evidence_of_each_datum():
    model = LinearGaussian(0.3 * torch.ones(3, 2))
    x = torch.randn(6, 3)
    loo = az.loo(from_pyro_svi(model, Exact(model), x, draws=4000), pointwise=True)
    evidence = model.log_evidence(x).detach()
    torch.testing.assert_close(
        torch.as_tensor(loo.elpd_i.values), evidence, atol=0.05, rtol=0, check_dtype=False
    )


@pytest.mark.parametrize("chunk", [1, 3, 7, 12, 1000])
def test_chunks_change_nothing(monkeypatch, chunk):
    monkeypatch.setattr(ppvae.arviz.svi, "CHUNK", chunk)
    model, guide, x = linear_gaussian()
    tree = from_pyro_svi(model, guide, x, draws=4)
    weights = array(tree, "sample_stats/log_weight")
    evidence = model.log_evidence(x).detach().expand(4, 6)
    torch.testing.assert_close(weights, evidence, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(tree["observed_data/x"].values, x.numpy())
    assert len(np.unique(tree["posterior/z"].values)) == 4 * 6 * 2


# Every function of ArviZ


class Panel(nn.Module):
    """Two latents and a scalar x per datum, with a covariate: what most functions want."""

    def __init__(self, likelihood):
        super().__init__()
        self.likelihood = likelihood

    def forward(self, batch):
        with pyro.plate("data", len(batch["x"]), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            slope = pyro.sample("slope", dist.Normal(0.0, 0.5))
            h = 0.3 * z.sum(-1) + slope * batch["age"]
            pyro.sample("x", self.likelihood(h), obs=batch["x"])


class PanelGuide(nn.Module):
    def forward(self, batch):
        x = batch["x"]
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.2 * x[:, None].expand(-1, 2), 0.95).to_event(1))
            pyro.sample("slope", dist.Normal(0.1 * x, 0.48))


def panel(likelihood, x):
    torch.manual_seed(0)
    batch = {"x": x, "age": torch.linspace(-1, 1, len(x))}
    return from_pyro_svi(Panel(likelihood), PanelGuide(), batch, draws=200)


def images():
    torch.manual_seed(0)
    return from_pyro_svi(*linear_gaussian(), draws=200)


TREES = {
    "real": lambda: panel(lambda h: dist.Normal(h, 1.0), torch.randn(6)),
    "binary": lambda: panel(
        lambda h: dist.Bernoulli(logits=h), torch.tensor([0.0, 1, 0, 1, 1, 0])
    ),
    "count": lambda: panel(lambda h: dist.Poisson(h.exp()), torch.tensor([0.0, 1, 0, 2, 1, 3])),
    "vector": images,
}


@pytest.fixture(scope="module")
def tree_of():
    trees = {}
    return lambda name: trees.setdefault(name, trees.get(name) or TREES[name]())


def pair_of_latents(tree):
    return tree.posterior.z[0, :, 0, 0], tree.posterior.z[0, :, 0, 1]


def subsampled(tree):
    return az.loo_subsample(tree, observations=3, pointwise=True)


def joint_log_weight(tree):
    return tree.sample_stats.log_weight.sum("data")


# How a function is called, where its tree alone will not do.
CALLS = {
    "bayes_factor": lambda f, t: f(t, var_names="z"),
    "ci_in_rope": lambda f, t: f(t, rope=(-1, 1)),
    "compare": lambda f, t: f({"a": t, "b": t}),
    "ecdf": lambda f, t: f(t.posterior.dataset),
    "generate_survival_curves": lambda f, t: f(t, var_names="x"),
    "get_function": lambda f, t: f("mean")(t.posterior.dataset),
    "hexbin": lambda f, t: f(*pair_of_latents(t), dim="draw"),
    "histogram2d": lambda f, t: f(*pair_of_latents(t), dim="draw"),
    "kaplan_meier": lambda f, t: f(t, var_names="x"),
    "kde2d": lambda f, t: f(*pair_of_latents(t), dim=["draw"]),
    "kl_divergence": lambda f, t: f(t, t, num_samples=100),
    "loo": lambda f, t: f(t, pointwise=True),
    "loo_approximate_posterior": lambda f, t: f(
        t, log_p=joint_log_weight(t), log_q=0 * joint_log_weight(t)
    ),
    "loo_i": lambda f, t: f(0, t),
    "loo_r2": lambda f, t: f(t, var_name="x"),
    "loo_subsample": lambda f, t: f(t, observations=3),
    "residual_r2": lambda f, t: f(t, pred_mean="x", group="posterior_predictive"),
    "rhat_nested": lambda f, t: f(t, superchain_ids=[0]),
    "update_subsample": lambda f, t: f(subsampled(t), t, observations=1),
    "wasserstein": lambda f, t: f(t, t, num_samples=100),
    "weight_predictions": lambda f, t: f([t, t], weights=[0.5, 0.5]),
    "plot_bf": lambda f, t: f(t, var_names="z"),
    "plot_compare": lambda f, t: f(az.compare({"a": t, "b": t})),
    "plot_khat": lambda f, t: f(az.loo(t, pointwise=True)),
    "plot_lm": lambda f, t: f(t, x="age", y="x"),
    "plot_pair": lambda f, t: f(t, coords={"data": [0]}),
    "plot_pair_focus": lambda f, t: f(
        t, focus_var="z", focus_var_coords={"data": 0, "z_dim_0": 0}
    ),
    "plot_ppc_pava_residuals": lambda f, t: f(t, x_var="age"),
    "plot_rank": lambda f, t: f(t, method="envelope"),  # the default compares chains
}

# The tree a function is for, where that is not the one of real numbers.
SUITED = dict.fromkeys(
    ["plot_loo_pava", "plot_ppc_pava", "plot_ppc_pava_residuals", "plot_lm"], "binary"
) | {"plot_ppc_rootogram": "count"}

DOES_NOT_APPLY = {
    "bayesian_r2": "needs a posterior variable that is the residual scale of a regression",
    "bfmi": "needs the energies of Hamiltonian Monte Carlo",
    "lfo_cv": "refits: needs a wrapper around a sampler and a time axis",
    "loo_kfold": "refits: needs a wrapper around a sampler",
    "loo_moment_match": "needs densities as functions of unconstrained draws",
    "reloo": "refits: needs a wrapper around a sampler",
    "plot_ecdf_pit": "shows simulation-based calibration, from a group prior_sbc",
    "plot_energy": "needs the energies of Hamiltonian Monte Carlo",
    "plot_rank_dist": "compares chains (its test needs two), and a guide draws one",
}

# What ArviZ 1.3 computes number by number, while x_n is a vector with one log likelihood.
NEEDS_SCALARS = {
    *("loo_metrics", "loo_pit", "loo_score", "metrics", "residual_r2"),
    *("plot_loo_interval", "plot_loo_pava", "plot_loo_pit", "plot_ppc_censored"),
    *("plot_ppc_dist_pit", "plot_ppc_interval", "plot_ppc_pava", "plot_ppc_pava_residuals"),
    *("plot_ppc_pit", "plot_ppc_rootogram", "kaplan_meier", "generate_survival_curves"),
}
# What fails in ArviZ 1.3 where the posterior has one variable, and what needs the covariate.
NEEDS_MORE_VARIABLES = {"plot_psense_dist", "plot_psense_quantities", "plot_lm"}


def public_functions():
    stats = {
        name
        for name, function in inspect.getmembers(arviz_stats, inspect.isfunction)
        if not name.startswith("_")
    }
    return stats | {
        name for name in dir(az) if name.startswith("plot_") and callable(vars(az)[name])
    }


APPLIES = sorted(public_functions() - set(DOES_NOT_APPLY))


def call(name, tree):
    function = getattr(az, name)
    return CALLS.get(name, lambda f, t: f(t))(function, tree)


def test_the_lists_name_functions_of_arviz():
    """A new function of ArviZ lands in APPLIES by itself; one that is gone is crossed out."""
    named = {*CALLS, *SUITED, *DOES_NOT_APPLY, *NEEDS_SCALARS, *NEEDS_MORE_VARIABLES}
    assert named <= public_functions()
    assert all(DOES_NOT_APPLY.values())


@pytest.mark.filterwarnings(*INFORMATIVE)
@pytest.mark.parametrize("name", APPLIES)
def test_every_function_of_arviz_runs(tree_of, name):
    assert call(name, tree_of(SUITED.get(name, "real"))) is not None


@pytest.mark.filterwarnings(*INFORMATIVE)
@pytest.mark.parametrize("name", sorted(set(APPLIES) - NEEDS_SCALARS - NEEDS_MORE_VARIABLES))
def test_functions_of_arviz_run_on_vectors(tree_of, name):
    assert call(name, tree_of("vector")) is not None


@pytest.mark.filterwarnings(*INFORMATIVE)
@pytest.mark.parametrize("name", ["plot_ppc_dist", "loo_pit", "plot_ppc_pit", "plot_loo_pit"])
def test_functions_of_arviz_run_on_counts(tree_of, name):
    assert call(name, tree_of("count")) is not None


def test_counts_are_integers_and_log_likelihoods_are_not(tree_of):
    tree = tree_of("count")
    for group in ("observed_data", "posterior_predictive", "prior_predictive"):
        assert tree[group]["x"].dtype.kind == "i"
    assert tree["log_likelihood/x"].dtype.kind == "f"
    assert tree["posterior/z"].dtype.kind == "f"


# Other pairs


def vae(likelihood="bernoulli"):
    decoder = nn.Sequential(MLP(2, 8, 16), nn.Unflatten(-1, (4, 4)))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8))
    encoder.out_features = 8
    return VAE(decoder, 2, likelihood), Normal(encoder, 2), torch.rand(5, 4, 4).round()


def test_dims_and_coords_name_what_plates_do_not():
    names = ["a", "b", "c", "d", "e"]
    tree = from_pyro_svi(
        *vae(),
        draws=3,
        coords={"data": names, "row": torch.arange(4) * 10},
        dims={"x": ["row", "column"]},
    )
    assert tree["posterior_predictive/x"].dims == ("chain", "draw", "data", "row", "column")
    assert tree["observed_data/x"].sel(data="c", row=20).dims == ("column",)
    assert list(tree["log_likelihood/x"]["data"].values) == names
    assert list(tree["posterior/z"]["data"].values) == names


def test_soft_targets_stay_fractions():
    model, guide, _ = vae()
    model.likelihood = lambda h: dist.Bernoulli(logits=h, validate_args=False)
    x = torch.rand(5, 4, 4)
    with pyro.validation_enabled(False):
        tree = from_pyro_svi(model, guide, x, draws=2)
    np.testing.assert_array_equal(tree["observed_data/x"].values, x.numpy())


def test_nothing_is_disturbed():
    model, guide, x = vae("normal")
    guide.train()
    guide.head.eval()
    model.eval()
    parts = [*model.modules(), *guide.modules()]
    modes = [part.training for part in parts]
    state = {
        k: v.clone()
        for module in (model, guide)
        for k, v in module.state_dict(prefix=f"{id(module)}.").items()
    }
    from_pyro_svi(model, guide, x, draws=7)
    after = {
        k: v
        for module in (model, guide)
        for k, v in module.state_dict(prefix=f"{id(module)}.").items()
    }
    assert [part.training for part in parts] == modes
    assert state.keys() == after.keys()
    assert all(torch.equal(state[name], after[name]) for name in state)
    assert all(
        p.requires_grad and p.grad is None for p in [*model.parameters(), *guide.parameters()]
    )
    assert not list(pyro.get_param_store().keys())


class Point(nn.Module):
    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Delta(batch[:, :2], event_dim=1))


def test_a_guide_without_density_has_no_weights_and_the_rest():
    model, _, x = linear_gaussian()
    tree = from_pyro_svi(model, Point(), x, draws=4)
    assert "sample_stats" not in tree.children
    assert {"posterior", "log_likelihood", "posterior_predictive", "prior"} < set(tree.children)
    np.testing.assert_array_equal(tree["posterior/z"][0, 3].values, x[:, :2].numpy())
    assert "no density" in tree.posterior.attrs["note"]


def shared_mean(batch):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(batch), dim=-1):
        pyro.deterministic("residual", batch - mean)
        pyro.sample("x", dist.Normal(mean, 1.0), obs=batch)


def shared_mean_guide(batch):
    precision = torch.tensor(1.0 + len(batch))
    pyro.sample("mean", dist.Normal(batch.sum() / precision, precision.rsqrt()))


def test_a_latent_outside_of_the_plate_is_drawn_once_for_all_data():
    x = torch.randn(6)
    tree = from_pyro_svi(shared_mean, shared_mean_guide, x, draws=5)
    assert tree["posterior/mean"].dims == ("chain", "draw")
    assert tree["log_likelihood/x"].dims == ("chain", "draw", "data")
    residual = array(tree, "posterior/residual")
    torch.testing.assert_close(residual, x - array(tree, "posterior/mean")[:, None])
    assert tree["prior/residual"].shape == (1, 5, 6)
    assert tree["sample_stats/log_weight"].dims == ("chain", "draw")
    covariance = torch.eye(6) + torch.ones(6, 6)
    evidence = dist.MultivariateNormal(torch.zeros(6), covariance).log_prob(x)
    torch.testing.assert_close(array(tree, "sample_stats/log_weight"), evidence.expand(5))


def test_plates_of_one_datum_and_one_draw():
    model, guide, x = linear_gaussian(size=1)
    tree = from_pyro_svi(model, guide, x, draws=1)
    assert tree["posterior/z"].shape == (1, 1, 1, 2)
    assert tree["sample_stats/log_weight"].shape == (1, 1, 1)


def test_what_no_site_observes_is_constant_data(tree_of):
    tree = tree_of("real")
    assert list(tree["constant_data"].data_vars) == ["age"]
    assert tree["constant_data/age"].dims == ("data",)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": 0}, "draws must be at least 1, but is 0"),
        ({"coords": {"data": [1, 2]}}, r"coords\['data'\] has 2 labels, but 'data' has 6 entries"),
        ({"coords": {"datum": [1, 2]}}, "coords labels 'datum', which is no dim: choose from"),
        ({"dims": {"y": ["pixel"]}}, r"dims names axes of \['y'\], unknown here: choose from"),
        ({"dims": {"x": ["data", "pixel"]}}, r"dims\['x'\] .* 1 that no plate names"),
        ({"dims": {"x": "p"}}, r"dims\['x'\] is 'p'.* give a list"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    model, guide, x = linear_gaussian()
    with pytest.raises(ValueError, match=message):
        from_pyro_svi(model, guide, x, **{"draws": 2, **arguments})


def test_an_empty_batch_is_refused():
    model, guide, x = linear_gaussian()
    with pytest.raises(ValueError, match="the batch is empty"):
        from_pyro_svi(model, guide, x[:0])


def test_a_mapping_that_a_model_reshapes_keeps_its_numbers():
    """Holes are those of a leaf of the site's own shape; another is not laid over it."""

    def model(batch):
        x = batch["x"].flatten(1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.repeat_interleave(2, -1), 1.0).to_event(1), obs=x)

    def guide(batch):
        with pyro.plate("data", len(batch["x"]), dim=-1):
            pyro.sample("z", dist.Normal(batch["x"].new_zeros(2), 1.0).to_event(1))

    x = torch.arange(12.0).reshape(3, 2, 2)
    tree = from_pyro_svi(model, guide, {"x": x}, draws=5)
    assert tree.observed_data["x"].values.tolist() == x.flatten(1).tolist()
