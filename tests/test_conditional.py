"""Joint, marginal and conditional evidence of any subset, whatever is missing."""

import pyro
import pytest
import torch
from modalities import SUBSETS, Bent, data, linear_model
from pyro import poutine
from zoo import multimodal, multimodal_guide, views

from ppvae import WeightlessError
from ppvae.diagnostics import conditional_evidence
from ppvae.guides import Exact
from ppvae.protocols import hide

NAMES = ["a", "b", "c"]


def exact(model, batch, of, given):
    """Return ln p(x_C | x_S) in closed form."""
    return model.log_evidence(hide(batch, of | given)) - model.log_evidence(hide(batch, given))


def named(subset):
    """Return a subset's names."""
    return [name for name, on in zip(NAMES, subset.tolist(), strict=True) if on]


@pytest.mark.parametrize("given", SUBSETS, ids=str)
def test_with_the_exact_posterior_it_is_exact(given):
    """Every C beside every S, two draws, no error; of nothing the evidence is 0."""
    model, batch = linear_model(), data()
    for of in SUBSETS:
        if (of & given).any():
            continue
        found = conditional_evidence(
            model, Exact(model), batch, named(of), named(given), num_particles=2
        )
        expected = exact(model, batch, of, given)
        torch.testing.assert_close(found.log_evidence, expected, rtol=0, atol=1e-10)
        assert found.standard_error.max() < 1e-10 and found.num_particles == 2
        assert (found.log_evidence[0] == 0).all()  # nothing is seen of row 0


def test_joint_and_marginal_are_special_cases():
    """Without S; and without C, all that is not given."""
    model, batch = linear_model(), data()
    guide, everything = Exact(model), torch.ones(3) > 0
    joint = conditional_evidence(model, guide, batch, num_particles=2)
    torch.testing.assert_close(
        joint.log_evidence, exact(model, batch, everything, ~everything), rtol=0, atol=1e-10
    )
    first = torch.tensor([True, False, False])
    rest = conditional_evidence(model, guide, batch, given=["a"], num_particles=2)
    torch.testing.assert_close(
        rest.log_evidence, exact(model, batch, ~first, first), rtol=0, atol=1e-10
    )
    alone = conditional_evidence(model, guide, batch, of="a", num_particles=2)
    torch.testing.assert_close(
        joint.log_evidence, alone.log_evidence + rest.log_evidence, rtol=0, atol=1e-10
    )


def test_with_another_guide_the_error_is_what_it_says():
    """A wider, shifted guide, 4,000 draws: within 4.5 of the standard errors it reports."""
    model, batch = linear_model(), data()
    guide = Bent(model, 0.2, widen=1.5)
    keep = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]]) > 0
    found = conditional_evidence(model, guide, batch, ~keep, keep, num_particles=4000)
    expected = exact(model, batch, ~keep, keep)
    asked = found.standard_error > 0
    assert asked.tolist() == [False, False, True, True, True, False]  # else nothing is hidden
    error = (found.log_evidence - expected)[asked] / found.standard_error[asked]
    assert error.abs().max() < 4.5
    assert found.standard_error.max() < 0.1
    assert (found.log_evidence[~asked] == 0).all()


def test_errors_of_both_estimates_are_counted():
    """In quadrature: those of evidence of joint and marginal, of the same draws."""
    model, batch, guide = linear_model(), data(), Bent(linear_model(), 0.2, widen=1.5)

    def run(**kwargs):
        pyro.set_rng_seed(0)
        return conditional_evidence(model, guide, batch, num_particles=50, **kwargs)

    joint, both = run(), run(of=["b", "c"], given=["a"])
    seen_a = ~batch["a"].isnan().all(1)
    there = joint.standard_error > 0
    assert (both.standard_error[seen_a & there] > joint.standard_error[seen_a & there]).all()
    lone = ~seen_a & there  # of these nothing is given
    torch.testing.assert_close(both.standard_error[lone], joint.standard_error[lone])
    torch.testing.assert_close(both.log_evidence[lone], joint.log_evidence[lone])


def test_a_trained_kind_of_pair_is_judged_and_left_alone():
    """Of pixels, numbers and labels, some missing; parameters stay where they are."""
    model, guide = multimodal(), multimodal_guide()
    before = [p.clone() for p in (*model.parameters(), *guide.parameters())]
    found = conditional_evidence(model, guide, views(), ["c"], ["a", "b"], num_particles=50)
    assert found.log_evidence.isfinite().all() and found.standard_error.isfinite().all()
    assert found.log_evidence[[1, 3]].tolist() == [0.0, 0.0]  # labels are missing there
    after = [*model.parameters(), *guide.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"of": ["d"]}, r"of names \['d'\], but the batch has the modalities \['a', 'b', 'c'\]"),
        ({"given": ["x"]}, r"given names \['x'\]"),
        ({"of": ["a", "b"], "given": ["b"]}, r"\['b'\] are both in of and in given"),
        ({"given": torch.ones(2) > 0}, r"given must be names, or booleans of shape"),
        ({"given": torch.ones(3)}, r"given must be names, or booleans of shape"),
        ({"num_particles": 1}, r"K >= 2"),
    ],
)
def test_bad_input_is_refused(kwargs, message):
    """In words."""
    model = linear_model()
    with pytest.raises(ValueError, match=message):
        conditional_evidence(model, Exact(model), data(), **kwargs)


def test_integers_cannot_be_hidden():
    """In words, with the mend."""
    model = linear_model()
    batch = {**data(), "c": torch.zeros(6, 4, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"'c' holds torch.int64, and no integer is NaN.*one-hot"):
        conditional_evidence(model, Exact(model), batch, ["a"], ["b"])


def test_a_guide_without_a_density_is_refused():
    """As by `log_weights`."""
    model = linear_model()

    def point(batch):
        p = model.posterior(batch)
        with pyro.plate("data", 6, dim=-1):
            pyro.sample("z", pyro.distributions.Delta(p.mean, event_dim=1))

    with pytest.raises(WeightlessError, match="Delta"):
        conditional_evidence(model, poutine.mask(point, mask=True), data())
