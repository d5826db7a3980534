"""Figures show what they are given, and leave no state."""

import matplotlib.pyplot as plt
import pytest
import torch

from ppvae import History, plots
from ppvae.data import digits
from ppvae.diagnostics import judge
from ppvae.guides import FullRank, Normal
from ppvae.models import VAE
from ppvae.networks import MLP


@pytest.fixture(scope="module")
def judged():
    torch.manual_seed(0)
    model = VAE(MLP(3, 16, 64), latent_dim=3)
    guides = {name: G(MLP(64, 8), latent_dim=3) for name, G in (("a", Normal), ("b", FullRank))}
    batch = digits().test[:30]
    verdicts = {n: judge(model, g, batch, num_particles=50) for n, g in guides.items()}
    return model, guides, batch, verdicts


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
        "kl_per_dimension": plots.kl_per_dimension(
            {n: v.kl_per_dimension for n, v in verdicts.items()}
        ),
        "latent_map": plots.latent_map(guides, batch, torch.arange(30) % 3),
        "aggregate_posterior": plots.aggregate_posterior(
            {n: v.split for n, v in verdicts.items()}, model, batch
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


def test_plots_refuse_in_words(judged):
    model, guides, batch, _ = judged
    with pytest.raises(ValueError, match=r"pass image=\(C, H, W\)"):
        plots.reconstructions({"a": (model, guides["a"])}, batch[:, :60])
    with pytest.raises(KeyError, match="no 'validation_elbo' in the history 'a'"):
        plots.training_curves({"a": History([{"epoch": 1, "loss": 1.0, "seconds": 0.1}])})


def test_one_latent_dimension_can_be_drawn():
    guide = Normal(MLP(64, 8), latent_dim=1)
    assert plots.latent_map({"a": guide}, digits().test[:30], torch.arange(30) % 3).axes
