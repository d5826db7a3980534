"""What modalities share, judged: coherence, linear readouts, identifiability, imputation."""

import math

import pyro.distributions as dist
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import one_hot

from ppvae import plots
from ppvae.data import digits, linear_views
from ppvae.diagnostics import (
    coherence,
    generate,
    imputation_error,
    latent_classification,
    linear_classifier,
    mean_correlation,
    train_classifier,
)
from ppvae.guides import ModalLatents as Guide
from ppvae.guides import Normal
from ppvae.likelihoods import Normal as FixedScale
from ppvae.models import VAE, ModalLatents, Multimodal
from ppvae.networks import MLP
from ppvae.protocols import hide, seen

CLASSES = 5


class Oracle(nn.Module):
    """Reads the label off the first view seen, and writes it, turned by `shift`, in every view."""

    def __init__(self, shift=None):
        super().__init__()
        self.shift = shift or {}

    def joint(self, batch):
        said = [torch.nan_to_num(x).argmax(1) for x in batch.values()]
        first = seen(batch).int().argmax(1)
        label = torch.stack(said, 1).gather(1, first[:, None])[:, 0]
        return dist.Normal(one_hot(label, CLASSES).float(), 1e-6).to_event(1)

    def decode(self, z):
        views = {name: z.roll(self.shift.get(name, 0), -1) for name in ("a", "b", "c")}
        return {name: dist.Normal(mean, 1.0).to_event(1) for name, mean in views.items()}


def labeled(count=1000):
    labels = torch.arange(count) % CLASSES
    return {name: one_hot(labels, CLASSES).float() for name in ("a", "b", "c")}, labels


def largest(x):
    return x.argmax(1)


JUDGES = dict.fromkeys(("a", "b", "c"), largest)


# Coherence


def test_an_oracle_is_coherent():
    """All ones, on the diagonal and off."""
    batch, labels = labeled()
    found = coherence(Oracle(), Oracle(), batch, labels, JUDGES)
    assert found.names == ("a", "b", "c")
    assert found.matrix.tolist() == [[1.0] * 3] * 3
    assert (found.off_diagonal, found.diagonal) == (1.0, 1.0)


def test_rows_are_given_and_columns_generated():
    """A view that says the wrong label spoils its row; one written wrongly spoils its column."""
    batch, labels = labeled()
    model = Oracle({"c": 1})
    found = coherence(model, model, batch, labels, JUDGES).matrix
    assert found.tolist() == [[1, 1, 0]] * 3
    wrong = labels.clone()
    wrong[:300] = (wrong[:300] - 1) % CLASSES
    batch["b"] = one_hot(wrong, CLASSES).float()
    result = coherence(model, model, batch, labels, JUDGES)
    assert result.matrix.tolist() == [[1, 1, 0], [0.7, 0.7, 0.3], [1, 1, 0]]
    assert result.off_diagonal == pytest.approx((1 + 0 + 0.7 + 0.3 + 1 + 1) / 6)
    assert result.diagonal == pytest.approx((1 + 0.7 + 0) / 3)


def test_what_shares_nothing_is_at_chance():
    """A constant class gives its share; labels at random give 1/C, within 4 standard errors."""
    batch, labels = labeled()
    constant = dict.fromkeys(JUDGES, lambda x: torch.zeros(len(x)).long())
    found = coherence(Oracle(), Oracle(), batch, labels, constant)
    assert found.matrix.tolist() == [[1 / CLASSES] * 3] * 3
    shuffled = {n: x[torch.randperm(len(x))] for n, x in labeled(10_000)[0].items()}
    found = coherence(Oracle(), Oracle(), shuffled, labeled(10_000)[1], JUDGES)
    error = math.sqrt(1 / CLASSES * (1 - 1 / CLASSES) / 10_000)
    assert ((found.matrix - 1 / CLASSES).abs() < 4 * error).all()


def test_the_commonest_label_gains_nothing_when_balanced():
    """Most data have it: who always says it is right for them, and 1/C of the time balanced."""
    batch, labels = labeled(1000)
    common = torch.where(torch.arange(1000) < 900, torch.zeros_like(labels), labels)
    batch = {name: one_hot(common, CLASSES).float() for name in batch}
    constant = dict.fromkeys(JUDGES, lambda x: torch.zeros(len(x)).long())
    found = coherence(Oracle(), Oracle(), batch, common, constant)
    assert found.off_diagonal == pytest.approx(0.92)
    assert found.balanced_off_diagonal == pytest.approx(1 / CLASSES)
    assert (
        coherence(Oracle(), Oracle(), batch, common, JUDGES).balanced.tolist() == [[1.0] * 3] * 3
    )
    skewed = Oracle({"c": 1})  # c is always wrong; of labels 0 and 3 alone, the mean is over two
    some = (common == 0) | (common == 3)
    two = {name: x[some] for name, x in batch.items()}
    found = coherence(skewed, skewed, two, common[some], JUDGES).balanced
    assert found.tolist() == [[1, 1, 0]] * 3


def test_data_without_the_given_view_are_left_out():
    """A row is of those that have it; the column does not need to be there."""
    batch, labels = labeled(100)
    batch["a"][:40] = torch.nan
    batch["b"][40:] = torch.nan
    assert coherence(Oracle(), Oracle(), batch, labels, JUDGES).matrix.tolist() == [[1.0] * 3] * 3
    batch["c"][:] = torch.nan
    with pytest.raises(ValueError, match="no datum has the modality 'c' to generate others from"):
        coherence(Oracle(), Oracle(), batch, labels, JUDGES)


def test_classifiers_trained_here_judge():
    """`train_classifier` returns features when called, and labels by `predict`."""
    split = digits(binarize=False, flat=False)
    judge = train_classifier(split.train, split.train_labels, steps=150)

    class Copy(Oracle):
        def joint(self, batch):
            (x,) = (x for x, there in zip(batch.values(), seen(batch)[0], strict=True) if there)
            return dist.Normal(x.flatten(1), 1e-6).to_event(1)

        def decode(self, z):
            return {n: dist.Normal(z.reshape(-1, 1, 8, 8), 1.0).to_event(3) for n in "ab"}

    batch = {"a": split.test, "b": split.test}
    found = coherence(Copy(), Copy(), batch, split.test_labels, dict.fromkeys("ab", judge))
    right = (judge.predict(split.test) == split.test_labels).double().mean()
    assert (found.matrix - right).abs().max() < 0.01 and right > 0.85


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": None}, ValueError, "coherence is about labels, and there are none"),
        ({"labels": torch.zeros(3)}, ValueError, r"one for each of 1000 data, but have shape \(3"),
        ({"classifiers": {"a": largest}}, ValueError, r"no classifier of \['b', 'c'\]"),
        ({"guide": Normal(MLP(5, 4), 2)}, TypeError, "Normal has no method joint"),
        ({"model": VAE(MLP(2, 5), 2)}, TypeError, "VAE has no method decode"),
    ],
)
def test_coherence_refuses_in_words(change, error, message):
    batch, labels = labeled()
    arguments = {"model": Oracle(), "guide": Oracle(), "batch": batch, "labels": labels}
    with pytest.raises(error, match=message):
        coherence(**{**arguments, "classifiers": JUDGES, **change})
    with pytest.raises(ValueError, match="the batch has no modality 'd'"):
        generate(Oracle(), Oracle(), batch, ["d"])


# Linear readouts


def test_a_linear_classifier_is_logistic_regression():
    """scikit-learn's own numbers, of data of any shape."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 2, 3, generator=draw), torch.arange(90) % 3
    x[:, 0, 0] += y
    fitted = LogisticRegression(max_iter=10_000).fit(x.flatten(1).double(), y)
    fresh = torch.randn(50, 2, 3, generator=draw)
    due = torch.from_numpy(fitted.predict(fresh.flatten(1).double()))
    assert torch.equal(linear_classifier(x, y)(fresh), due)
    with pytest.raises(ValueError, match="one label for each of 90 data"):
        linear_classifier(x, y[:5])


def test_codes_are_read_linearly_by_subset():
    """1 where a view has the label, chance where it has not; of data that have any of the set."""
    batch, labels = labeled()
    batch["b"] = torch.zeros_like(batch["b"])
    batch["b"][:, 0] = 1
    parts = batch, labels, batch, labels
    found = latent_classification(Oracle(), *parts)
    assert found == {"a": 1.0, "b": 1 / CLASSES, "c": 1.0, "a+b+c": 1.0}
    batch["a"][500:] = torch.nan
    found = latent_classification(Oracle(), *parts, [["a"], ["a", "c"]], most_data=200)
    assert found == {"a": 1.0, "a+c": 1.0}
    batch["a"][:] = torch.nan
    with pytest.raises(ValueError, match="no datum has any of .'a'."):
        latent_classification(Oracle(), *parts, [["a"]])


# Identifiability


@pytest.mark.parametrize("extra", [0, 3])
def test_a_permuted_scaled_copy_is_identified(extra):
    """1, whatever the order, signs, scales and shifts, and whatever is left over."""
    s = torch.randn(200, 4, dtype=torch.float64)
    found = torch.cat([torch.randn(200, extra).double(), s[:, [2, 0, 3, 1]]], 1)
    found = 3 - found * torch.tensor([1e-3, 2.0, -1.0, 50.0, 7.0, 1.0, 4.0])[: 4 + extra]
    assert mean_correlation(found, s) == pytest.approx(1, abs=1e-12)


def test_correlation_is_of_the_rows_not_matched_on():
    """Exact in a case by hand: matched on even rows, scored on odd ones."""
    s = torch.tensor([[0.0, 0], [1, 1], [1, 0], [0, 1], [0, 1], [1, 0], [1, 1], [0, 0]]).double()
    z = s.clone()
    z[1::2] = z[1::2].flip(1)  # the odd half disagrees about the order
    odd = s[1::2]
    corr = torch.corrcoef(odd.T)[0, 1].abs().item()
    assert mean_correlation(z, s) == pytest.approx(corr)


def test_a_mixed_latent_is_half_identified():
    """A rotation by 45 degrees of independent sources correlates 1/sqrt 2 with each."""
    s = torch.randn(200_000, 2)
    turned = s @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    assert mean_correlation(turned, s) == pytest.approx(0.5**0.5, abs=0.01)
    assert mean_correlation(torch.randn(200_000, 2), s) < 0.01


def test_correlation_refuses_in_words():
    with pytest.raises(ValueError, match="d' >= d and N >= 6, but got shapes"):
        mean_correlation(torch.randn(10, 1), torch.randn(10, 2))
    with pytest.raises(ValueError, match="is constant, and correlates with nothing"):
        mean_correlation(torch.zeros(10, 2), torch.randn(10, 2))


# Imputation


class Exact(nn.Module):
    """The exact posterior of a linear-Gaussian model."""

    def __init__(self, model):
        super().__init__()
        self._model = (model,)

    def joint(self, batch):
        return self._model[0].posterior(batch)


def test_imputation_in_the_linear_case():
    """The residual at the posterior mean, and 1/K of the posterior's variance: 4 s.e."""
    made = linear_views(800, sizes=(3, 4, 5), latent_dim=2, gain=2.0, dtype=torch.float64)
    decoders = {name: nn.Linear(2, x.shape[1]).double() for name, x in made.data.items()}
    model = Multimodal(decoders, 2, FixedScale(1.0)).double()
    with torch.no_grad():
        for name, layer in model.decoders.items():
            layer.weight.copy_(made.weights[name])
            layer.bias.copy_(made.biases[name])
    keep = torch.tensor([True, False, True])
    posterior = model.posterior(hide(made.data, keep))
    weight, x = made.weights["x_2"], made.data["x_2"]
    rest = (x - made.biases["x_2"] - posterior.mean @ weight.mT).square().mean()
    spread = (weight @ posterior.covariance_matrix @ weight.mT).diagonal(dim1=1, dim2=2).mean()
    for draws in (1, 20):
        found = [
            imputation_error(model, Exact(model), made.data, keep, draws=draws) for _ in range(10)
        ]
        assert all(list(each) == ["x_2"] for each in found)
        values = torch.tensor([each["x_2"] for each in found])
        error = values.std() / 10**0.5
        assert abs(values.mean() - (rest + spread / draws)) < 4 * error
    perfect = rest.item()
    assert perfect == pytest.approx((1 + spread).item(), rel=0.1)  # noise and the posterior's own


def test_imputation_is_of_hidden_rows_whose_truth_is_known():
    """Rows of a mask of their own; exact for the oracle."""
    batch, _ = labeled(50)
    keep = torch.ones(50, 3, dtype=torch.bool)
    keep[:10, 1] = False
    batch["b"][:5] = torch.nan  # hidden anyway: not counted
    batch["b"][5:10] += 2.0
    found = imputation_error(Oracle(), Oracle(), batch, keep)
    assert found == {"b": pytest.approx(4.0, abs=1e-4)}
    with pytest.raises(ValueError, match="nothing is hidden whose truth is known"):
        imputation_error(Oracle(), Oracle(), batch, torch.ones(3).bool())
    with pytest.raises(ValueError, match="50 of 50 rows keep no modality"):
        imputation_error(Oracle(), Oracle(), batch, torch.zeros(3).bool())
    with pytest.raises(ValueError, match="draws must be at least 1"):
        imputation_error(Oracle(), Oracle(), batch, keep, draws=0)


# The pictures


def test_the_curves_are_those_of_the_forms():
    """Costs and slopes of check 1 of `test_moe_prior` at d = 1 and 4."""
    left, right = plots.kl_to_mixture(4.0, 5).axes
    found = [
        (line.get_ydata()[[1, 4]], dy.get_ydata()[[1, 4]])
        for line, dy in zip(left.lines[:3], right.lines, strict=True)
    ]
    due = [
        ((0.111421, 0.632720), (0.19899, 0.06860)),
        ((0.219070, 0.692812), None),
        ((0.25, 4.0), (0.5, 2.0)),
    ]
    for (cost, slope), (costs, slopes) in zip(found, due, strict=True):
        assert cost.tolist() == pytest.approx(costs, abs=1e-5)
        assert slopes is None or slope.tolist() == pytest.approx(slopes, abs=1e-5)
    with pytest.raises(ValueError, match="furthest must be positive"):
        plots.kl_to_mixture(0.0)


def test_the_picture_has_a_row_per_given_view():
    """The given one, then each generated; accuracies where they are passed; gray on white."""
    guide = Guide({"a": MLP(16, 8), "b": MLP(12, 8)}, latent_dim=2)
    model = ModalLatents({"a": MLP(2, 16), "b": MLP(2, 12)}, 2, guide=guide)
    batch = {"a": torch.rand(9, 16), "b": torch.rand(9, 12)}
    batch["a"][0, 0], batch["a"][1, 0] = 0.0, 1.0
    shapes = {"a": (1, 4, 4), "b": (3, 2, 2)}
    judges = dict.fromkeys(batch, lambda x: torch.zeros(len(x)).long())
    shared = coherence(model, guide, batch, torch.arange(9) % 2, judges)
    figure = plots.cross_generation(model, guide, batch, images=shapes, count=4, coherence=shared)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["a given", "a to a: 0.56", "a to b: 0.56", "b given", "b to a: 0.56"] + [
        "b to b: 0.56"
    ]
    canvas = torch.tensor(figure.axes[0].images[0].get_array())[..., 0]
    assert torch.allclose(canvas[1:5, 1:5], 1 - batch["a"][0].reshape(4, 4))
    assert torch.allclose(canvas[1:5, 6:10], 1 - batch["a"][1].reshape(4, 4))
    with pytest.raises(ValueError, match=r"pass image=\(C, H, W\)"):
        plots.cross_generation(model, guide, batch)
    one = plots.cross_generation(model, guide, batch, images={"a": (1, 4, 4)})
    assert len(one.axes) == 2
    batch["a"] = 6 * batch["a"] - 3  # real numbers are scaled, also where a row is missing
    batch["a"][2] = torch.nan
    figure = plots.cross_generation(model, guide, batch, images=shapes, count=4)
    canvas = torch.tensor(figure.axes[0].images[0].get_array())[..., 0]
    x = batch["a"][[0, 1, 3]]
    due = 1 - (x[0] - x.min()) / (x.max() - x.min())
    assert torch.allclose(canvas[1:5, 1:5], due.reshape(4, 4))


def test_each_bound_is_in_the_legend_once():
    """Also one that the first aggregation has no runs of."""
    gaps = {"PoE": {"masked": [1e-4]}, "MoE": {"masked": [1e-3], "mixture": [1e-2]}}
    legend = plots.likelihood_gaps(gaps).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["masked", "mixture"]
