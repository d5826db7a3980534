"""from_pyro: a finished MCMC in ArviZ, against closed forms."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS, Predictive

from ppvae.arviz import from_pyro

X = torch.tensor([0.5, -1.0, 2.0, 0.3, 1.2])


@pytest.fixture(autouse=True, scope="module")
def seed():
    torch.manual_seed(0)


def shared_mean(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(X), dim=-1):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def sample(model, *args, draws=100, kernel=NUTS, **kwargs):
    mcmc = MCMC(kernel(model), num_samples=draws, warmup_steps=draws, disable_progbar=True)
    mcmc.run(*args, **kwargs)
    return mcmc


@pytest.fixture(scope="module")
def mcmc():
    torch.manual_seed(0)
    return sample(shared_mean, X, draws=200)


@pytest.fixture(scope="module")
def tree(mcmc):
    return from_pyro(mcmc)


def test_groups_and_dims(tree):
    dims = {group: {name: v.dims for name, v in node.items()} for group, node in tree.items()}
    assert dims == {
        "posterior": {"mean": ("chain", "draw")},
        "log_likelihood": {"x": ("chain", "draw", "data")},
        "log_prior": {"mean": ("chain", "draw")},
        "sample_stats": {"diverging": ("chain", "draw")},
        "observed_data": {"x": ("data",)},
    }
    assert tree.posterior.attrs["inference_library"] == "pyro"
    assert "note" not in tree.log_likelihood.attrs  # all draws at once
    assert 0 < tree.sample_stats.attrs["acceptance_rate"][0] <= 1


def test_the_posterior_is_the_exact_one(tree):
    mean = tree["posterior/mean"].values
    ess = float(az.ess(tree)["mean"])
    variance = 1 / (1 + len(X))
    assert abs(mean.mean() - X.sum() * variance) < 5 * (variance / ess) ** 0.5
    assert abs(mean.var() / variance - 1) < 5 * (2 / ess) ** 0.5


def test_scores_are_the_densities_of_the_draws(tree):
    mean = torch.as_tensor(tree["posterior/mean"].values)
    log_likelihood = dist.Normal(mean[..., None], 1.0).log_prob(X)
    np.testing.assert_allclose(tree["log_likelihood/x"].values, log_likelihood, rtol=1e-5)
    log_prior = dist.Normal(0.0, 1.0).log_prob(mean)
    np.testing.assert_allclose(tree["log_prior/mean"].values, log_prior, rtol=1e-5)


@pytest.mark.parametrize("function", [az.summary, az.loo, az.psense_summary, az.diagnose])
def test_arviz_reads_it(tree, function):
    assert function(tree) is not None


def test_divergences_are_marked_where_they_were(mcmc, monkeypatch):
    monkeypatch.setattr(mcmc, "_diagnostics", [{"divergences": [0, 7, 7], "acceptance rate": 0.9}])
    tree = from_pyro(mcmc)
    assert tree.sample_stats.diverging.dtype == bool
    assert list(np.flatnonzero(tree.sample_stats.diverging)) == [0, 7]
    assert tree.sample_stats.attrs["acceptance_rate"] == [0.9]


SCHOOLS = list("ABCDEFGH")
Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])


def eight_schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.fixture(scope="module")
def schools():
    """Two chains, one after the other as on a machine with one core to spare."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 1)
        with pytest.warns(UserWarning, match="Chains will be drawn sequentially"):
            mcmc = MCMC(
                NUTS(eight_schools), 50, warmup_steps=50, num_chains=2, disable_progbar=True
            )
    mcmc.run(SIGMA, y=Y)
    prior = Predictive(eight_schools, num_samples=30)(SIGMA)
    return mcmc, from_pyro(
        mcmc,
        prior=prior,
        posterior_predictive=Predictive(eight_schools, mcmc.get_samples())(SIGMA),
        constant_data={"sigma": SIGMA},
        coords={"school": SCHOOLS},
        dims={"sigma": ["school"]},
    )


def test_eight_schools(schools):
    _, tree = schools
    draws = {"chain": 2, "draw": 50}
    assert dict(tree["posterior/mu"].sizes) == draws
    assert dict(tree["posterior/eta"].sizes) == draws | {"school": 8}
    assert dict(tree["posterior/theta"].sizes) == draws | {"school": 8}
    assert dict(tree["log_likelihood/y"].sizes) == draws | {"school": 8}
    assert dict(tree["posterior_predictive/y"].sizes) == draws | {"school": 8}
    assert set(tree["prior"].data_vars) == {"mu", "tau", "eta", "theta"}
    assert dict(tree["prior/mu"].sizes) == {"chain": 1, "draw": 30}
    assert dict(tree["prior_predictive/y"].sizes) == {"chain": 1, "draw": 30, "school": 8}
    assert tree["constant_data/sigma"].sel(school="C") == 16
    assert tree["observed_data/y"].sel(school="C") == -3


def test_chains_stay_apart_and_draws_in_order(schools):
    mcmc, tree = schools
    by_chain = mcmc.get_samples(group_by_chain=True)
    for name, draws in by_chain.items():
        np.testing.assert_array_equal(tree["posterior"][name].values, draws.numpy())
    post = tree.posterior
    np.testing.assert_allclose(post.theta, post.mu + post.tau * post.eta, rtol=1e-4, atol=1e-5)
    expected = dist.Normal(torch.as_tensor(post.theta.values), SIGMA).log_prob(Y)
    np.testing.assert_allclose(tree["log_likelihood/y"].values, expected, rtol=1e-4)


# The 0.7 that these few draws may exceed is not what is tested.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.parametrize(
    "function",
    [az.summary, az.loo, az.loo_pit, az.psense_summary, az.plot_prior_posterior, az.plot_rank],
)
def test_arviz_reads_eight_schools(schools, function):
    assert function(schools[1]) is not None


@pytest.mark.parametrize(
    ("total", "reason"),
    [
        (lambda weights: weights[0] + weights[1], "Error"),  # not weights[..., 0]: fails
        (lambda weights: weights.sum(), "other numbers"),  # over the draws too: fails in silence
    ],
)
def test_a_model_that_cannot_take_all_draws_at_once_is_run_for_each(total, reason):
    def model(x):
        weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(total(weights), 1.0), obs=x)

    tree = from_pyro(sample(model, X, draws=12))
    assert tree["posterior/weights"].dims == ("chain", "draw", "weights_dim_0")
    mean = torch.as_tensor(tree["posterior/weights"].values).sum(-1, keepdim=True)
    expected = dist.Normal(mean, 1.0).log_prob(X)
    np.testing.assert_allclose(tree["log_likelihood/x"].values, expected, rtol=1e-5)
    assert "one draw at a time, since" in tree.log_likelihood.attrs["note"]
    assert reason in tree.log_likelihood.attrs["note"]


def test_axes_without_a_plate_and_nested_plates():
    def model(x):
        with pyro.plate("group", 3, dim=-2):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))  # (3, 1)
            with pyro.plate("data", 4, dim=-1):
                pyro.sample("x", dist.Normal(level, 1.0), obs=x)
        pyro.sample("free", dist.Normal(torch.zeros(2), 1.0))

    x = torch.randn(3, 4)
    tree = from_pyro(sample(model, x, draws=12), dims={"free": ["axis"]})
    assert tree["posterior/level"].dims == ("chain", "draw", "group")
    assert tree["posterior/free"].dims == ("chain", "draw", "axis")
    level = torch.as_tensor(tree["posterior/level"].values)[..., None]
    expected = dist.Normal(level, 1.0).log_prob(x)
    np.testing.assert_allclose(tree["log_likelihood/x"].values, expected, rtol=1e-5)
    assert tree["log_likelihood/x"].dims == ("chain", "draw", "group", "data")
    assert "note" not in tree.log_likelihood.attrs


def test_a_potential_has_draws_only():
    kernel = HMC(potential_fn=lambda z: z["z"].square().sum() / 2)
    mcmc = MCMC(kernel, 10, initial_params={"z": torch.zeros(2)}, disable_progbar=True)
    mcmc.run()
    with pytest.raises(ValueError, match="log_likelihood needs the model.*log_likelihood=False"):
        from_pyro(mcmc)
    tree = from_pyro(mcmc, log_likelihood=False)
    assert set(tree.children) == {"posterior", "sample_stats"}
    assert tree["posterior/z"].shape == (1, 10, 2)


def test_latents_that_were_summed_out_have_no_likelihood():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            side = pyro.sample("side", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mean * (2 * side - 1), 1.0), obs=x)

    mcmc = sample(model, X, draws=6)
    with pytest.raises(ValueError, match=r"draws of the sites \['side'\].*log_likelihood=False"):
        from_pyro(mcmc)
    assert "log_likelihood" not in from_pyro(mcmc, log_likelihood=False).children


def test_an_mcmc_that_was_not_run_is_refused():
    with pytest.raises(ValueError, match=r"holds no draws: call mcmc.run\(...\) first"):
        from_pyro(MCMC(NUTS(shared_mean), 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"posterior_predictive": {"x": torch.zeros(7, 5)}},
            r"'x' have shape \(7, 5\).*\(200, 5\)",
        ),
        (
            {"prior": {"x": torch.zeros(7, 4)}},
            r"prior_predictive: .*\(7, 4\), but \(7, 5\) is due",
        ),
        ({"coords": {"data": [1]}}, r"coords\['data'\] has 1 labels, but 'data' has 5 entries"),
        ({"dims": {"median": ["a"]}}, r"dims names axes of \['median'\], unknown here"),
    ],
)
def test_bad_arguments_are_named(mcmc, arguments, message):
    with pytest.raises(ValueError, match=message):
        from_pyro(mcmc, **arguments)


def test_no_parameter_store():
    assert not list(pyro.get_param_store().keys())
