"""Figures show what they are given, and leave no state."""

import matplotlib.pyplot as plt
import pytest
import torch

from ppvae import History, plots
from ppvae.data import digits
from ppvae.diagnostics import (
    PopulationMoments,
    aggregate_posterior,
    judge,
    population_moments,
)
from ppvae.guides import Exact, FullRank, Normal
from ppvae.guides import ModalLatents as ModalGuide
from ppvae.models import VAE, LinearGaussian, ModalLatents
from ppvae.networks import MLP

PLANE = torch.ones(1, 3)


def plane():
    return LinearGaussian(torch.tensor([[2.0, 0.3], [-0.5, 1.0], [0.2, -0.4]]), scale=0.5)


@pytest.fixture(scope="module")
def judged():
    torch.manual_seed(0)
    model = VAE(MLP(3, 16, 64), latent_dim=3)
    guides = {name: G(MLP(64, 8), latent_dim=3) for name, G in (("a", Normal), ("b", FullRank))}
    batch = digits().test[:30]
    verdicts = {n: judge(model, g, batch, num_particles=50) for n, g in guides.items()}
    return model, guides, batch, verdicts


def views_pair():
    """Return a model, a guide and data of two square views."""
    sizes = {"left": 16, "right": 9}
    guide = ModalGuide({n: MLP(size, 8) for n, size in sizes.items()}, latent_dim=2)
    model = ModalLatents({n: MLP(2, size) for n, size in sizes.items()}, 2, guide=guide)
    return model, guide, {n: torch.rand(5, size) for n, size in sizes.items()}


def drawings(judged):
    """Return every figure of the module, by function."""
    model, guides, batch, verdicts = judged
    pairs = {name: (model, guide) for name, guide in guides.items()}
    history = History([{"epoch": e, "loss": 9.0 - e, "seconds": 0.1} for e in range(12)])
    return {
        "training_curves": plots.training_curves({"a": history}, "loss"),
        "reconstructions": plots.reconstructions(pairs, batch, count=5),
        "prior_samples": plots.prior_samples({"a": model}, batch, count=5),
        "pareto_k": plots.pareto_k({n: v.tail for n, v in verdicts.items()}),
        "kl_to_mixture": plots.kl_to_mixture(),
        "kl_per_dimension": plots.kl_per_dimension(
            {n: v.kl_per_dimension for n, v in verdicts.items()}
        ),
        "latent_map": plots.latent_map(guides, batch, torch.arange(30) % 3),
        "aggregate_posterior": plots.aggregate_posterior(
            {n: v.split for n, v in verdicts.items()}, model, batch
        ),
        "population_variances": plots.population_variances(
            {n: population_moments(g, batch) for n, g in guides.items()}
        ),
        "rate_distortion": plots.rate_distortion({"beta": [("1", 3.0, 9.0), ("2", 2.0, 11.0)]}),
        "not_a_bound": plots.not_a_bound({"masked": torch.randn(20), "mixture": -torch.rand(20)}),
        "likelihood_gaps": plots.likelihood_gaps({"PoE": {"masked": [1e-4], "mixture": [1e-2]}}),
        "cross_generation": plots.cross_generation(*views_pair(), count=3),
        "dictionary": plots.dictionary(torch.randn(64, 10), order=torch.rand(10)),
        "rate_histograms": plots.rate_histograms({"prior": torch.rand(20) + 0.1}),
        "error_by_sparsity": plots.error_by_sparsity({"LCA": [("0.5", 0.8, 40.0)]}),
        "relaxation": plots.relaxation(),
        "posterior_draws": plots.posterior_draws(plane(), {"exact": Exact(plane())}, PLANE),
        "chain_paths": plots.chain_paths(plane(), {"4 steps": [0.3] * 4}, PLANE, chains=3),
        "short_runs": plots.short_runs(chains=100),
        "densities": plots.densities({"normal": torch.distributions.Normal(0.0, 1.0)}),
        "penalty_and_kl": plots.penalty_and_kl(),
        "codes_and_box": plots.codes_and_box(guides, batch, 0.1),
        "spread_by_size": plots.spread_by_size({"ELBO": {500: (6.8, 2.2), 50_000: (3.0, 2.4)}}),
        "penalty_noise": plots.penalty_noise({"sampled": (1.0, 9.0)}, {"sampled": (157.0, 0.1)}),
        "aggregate_densities": plots.aggregate_densities(
            {"a": Normal(MLP(64, 8), latent_dim=1)}, batch
        ),
    }


def test_every_plot_returns_a_figure_that_is_not_open(judged, tmp_path):
    figures = drawings(judged)
    assert set(figures) == set(plots.__all__)
    assert plt.get_fignums() == []
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_pareto_panels_show_every_datum(judged):
    verdicts = judged[-1]
    figure = plots.pareto_k({n: v.tail for n, v in verdicts.items()})
    assert [len(axes.collections[0].get_offsets()) for axes in figure.axes] == [30, 30]


def test_kl_bars_are_sorted_and_sum_to_the_kl(judged):
    verdicts = judged[-1]
    (axes,) = plots.kl_per_dimension({"a": verdicts["a"].kl_per_dimension}).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == sorted(heights, reverse=True)
    assert sum(heights) == pytest.approx(float(verdicts["a"].kl_per_dimension.sum()), rel=1e-5)


def test_histograms_count_every_coordinate():
    """Each in both rows, the negative ones that draws may give too; the dead are named."""
    v = torch.tensor([-0.001, 0.5, 1.4])
    figure = plots.population_variances({"a": PopulationMoments(v, v, v + 0.2, v)})
    heights = [sum(bar.get_height() for bar in axes.patches) for axes in figure.axes]
    assert heights == [3, 3]
    assert figure.axes[0].texts[0].get_text() == "1 of 3 dead"


def test_curves_go_by_rate_and_each_run_has_its_label():
    points = [("1", 14.0, 112.0), ("0.2", 30.0, 95.0)]
    (axes,) = plots.rate_distortion({"beta": points, "ours": [("total", 40.0, 100.0)]}).axes
    assert axes.lines[0].get_xdata().tolist() == [14.0, 30.0]
    assert [text.get_text() for text in axes.texts] == ["1", "0.2", "total"]
    assert axes.lines[-1].get_xy1() == (30.0, 95.0)  # the best sum
    low, high = axes.get_xlim()
    assert low < 14 and high > 40 and axes.get_ylim()[1] < 120


def test_the_dictionary_is_sorted_and_scaled():
    """The unit of the largest KL first, each at its own contrast, a pixel between them."""
    weight = torch.arange(1.0, 25).reshape(4, 6) * torch.tensor([1.0, -1, 1, 1, 1, 1])
    order = torch.tensor([0.1, 0.9, 0.0, 0.3, 0.2, 0.05])
    (axes,) = plots.dictionary(weight, order=order, count=5, columns=3).axes
    canvas = torch.tensor(axes.images[0].get_array().filled(float("nan")))
    assert canvas.shape == (2 * 3 + 1, 3 * 3 + 1)
    for place, unit in enumerate([1, 3, 4, 0, 5]):
        top, left = place // 3 * 3 + 1, place % 3 * 3 + 1
        atom = weight[:, unit].reshape(2, 2)
        assert torch.allclose(canvas[top : top + 2, left : left + 2], atom / atom.abs().max())
    assert canvas[4:6, 7:9].isnan().all()  # a sixth is not drawn
    assert canvas[0].isnan().all() and canvas[:, 3].isnan().all()


def test_chains_are_drawn_from_start_to_end():
    """A line of K + 1 points per chain; the titles know the exact posterior from a wrong one."""
    (axes,) = plots.chain_paths(plane(), {"a": [0.2] * 7}, PLANE, chains=5).axes
    paths = [line for line in axes.lines if len(line.get_xdata()) == 8]
    assert len(paths) == 5
    guides = {"exact": Exact(plane()), "other": Exact(LinearGaussian(torch.zeros(3, 2)))}
    figure = plots.posterior_draws(plane(), guides, PLANE, draws=4000)
    exact, other = (axes.get_title() for axes in figure.axes)
    assert "mean off by 0.0" in exact and ("x 1.0" in exact or "x 0.9" in exact)
    assert "mean off by 0.0" not in other
    with pytest.raises(ValueError, match="a plane takes two latent coordinates"):
        plots.chain_paths(LinearGaussian(torch.ones(3, 1)), {"a": [0.2]}, PLANE)


def test_curves_of_q_say_that_they_are_no_bound():
    history = History([{"epoch": e, "q": e - 9.0, "validation_q": e - 9.5} for e in range(3)])
    for column in ("q", "validation_q"):
        (axes,) = plots.training_curves({"langevin": history}, column).axes
        assert axes.get_ylabel().endswith("Q, no bound (nats per datum)")


def test_rate_histograms_show_shares():
    rates = {"prior": torch.tensor([0.01, 0.5, 0.5, 40.0]), "guide": torch.rand(7, 3) + 0.01}
    (axes,) = plots.rate_histograms(rates, bins=8).axes
    filled = axes.patches[0].get_path().vertices  # two of four in one bin
    assert axes.get_xscale() == "log" and filled[:, 1].max() == 0.5
    assert axes.lines[0].get_xdata()[0] == 0.5
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["prior", "guide"]


def test_errors_go_by_sparsity_and_published_ones_are_hollow():
    ours = {"LCA": [("1", 0.9, 60.0), ("0.5", 0.8, 40.0)], "P-VAE": [("1", 0.7, 90.0)]}
    (axes,) = plots.error_by_sparsity(ours, {"LCA": [("", 0.92, 50.0)]}).axes
    line, _, theirs = axes.lines
    assert line.get_xydata().tolist() == [[0.8, 40.0], [0.9, 60.0]]
    assert [text.get_text() for text in axes.texts] == ["0.5", "1", "1", ""]
    assert theirs.get_color() == line.get_color() and theirs.get_markerfacecolor() == "none"
    assert theirs.get_label() == "LCA, published" and axes.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("kernel", "temperature", "expected"),
    [
        ("cubic", 0.1, (1.0, 0.97429, 6.01)),
        ("cubic", 1.0, (1.0, 0.74286, 0.686)),
        ("sigmoid", 1.0, (1.31326, 0.58220, 0.358)),
        ("sigmoid", 0.05, (1.0, 0.95, 3.344)),
        ("linear", 0.5, (1.0, 0.83333, None)),
    ],
)
def test_what_relaxing_does_is_that_of_the_moments(kernel, temperature, expected):
    """Campbell's theorem: mean and variance per rate, and the noise of the gradient."""
    panels = plots.relaxation([kernel], [temperature]).axes
    for axes, value, error in zip(panels, expected, (1e-5, 1e-5, 2e-3), strict=True):
        found = axes.lines[0].get_ydata()[0]
        assert value is None or found == pytest.approx(value, abs=error)


def test_dictionaries_and_rates_refuse_in_words():
    with pytest.raises(ValueError, match="pass decoder.weight"):
        plots.dictionary(torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="each of the 10 units"):
        plots.dictionary(torch.rand(16, 10), order=torch.rand(9))
    with pytest.raises(ValueError, match=r"pass image=\(C, H, W\)"):
        plots.dictionary(torch.rand(15, 10))
    with pytest.raises(ValueError, match="image has 3 channels"):
        plots.dictionary(torch.rand(12, 10), image=(3, 2, 2))
    with pytest.raises(ValueError, match="rates of 'a' must be positive"):
        plots.rate_histograms({"a": torch.zeros(3)})
    with pytest.raises(ValueError, match="unknown kernel 'quartic'"):
        plots.relaxation(["quartic"])


def test_plots_refuse_in_words(judged):
    model, guides, batch, _ = judged
    with pytest.raises(ValueError, match=r"pass image=\(C, H, W\)"):
        plots.reconstructions({"a": (model, guides["a"])}, batch[:, :60])
    with pytest.raises(KeyError, match="no 'validation_elbo' in the history 'a'"):
        plots.training_curves({"a": History([{"epoch": 1, "loss": 1.0, "seconds": 0.1}])})


def test_one_latent_dimension_can_be_drawn():
    guide = Normal(MLP(64, 8), latent_dim=1)
    assert plots.latent_map({"a": guide}, digits().test[:30], torch.arange(30) % 3).axes


def test_guides_of_other_models_are_drawn_over_their_own_priors():
    """Also where these have other sizes."""
    batch, models, splits = digits().test[:30], {}, {}
    for name, size in (("small", 2), ("large", 5)):
        models[name] = VAE(MLP(size, 64), latent_dim=size)
        guide = Normal(MLP(64, 8), latent_dim=size)
        splits[name] = aggregate_posterior(models[name], guide, batch)
    panels = plots.aggregate_posterior(splits, models, batch).axes
    assert [len(axes.collections[0].get_offsets()) for axes in panels] == [1000, 1000]
