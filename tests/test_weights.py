"""The log weights: what they are, in whatever chunks, and when there are none."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from zoo import GUIDES, PAIRS, Ladder, LadderGuide, binary, linear, named, real, vae

from ppvae import WeightlessError, log_weights
from ppvae.guides import Exact
from ppvae.networks import MLP
from ppvae.weights import (
    elbo_per_datum,
    evaluating,
    latent_sites,
    pairwise_log_density,
    per_datum,
    plan_of,
    trace_pair,
)

WEIGHED = [pair for pair in PAIRS if pair.density]


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("pair", named(WEIGHED))
def test_a_weight_is_the_difference_of_log_probabilities(pair, particles):
    """ln p(x, z) - ln q(z|x), site by site, on the same draws."""
    model, guide = pair.make()
    pyro.set_rng_seed(1)
    log_w = log_weights(model, guide, pair.batch, particles)
    pyro.set_rng_seed(1)
    with evaluating(model, guide):
        model_trace, guide_trace = trace_pair(model, guide, pair.batch, particles)
    sites = [
        sum(s["log_prob"] for s in trace.nodes.values() if s["type"] == "sample")
        for trace in (model_trace, guide_trace)
    ]
    torch.testing.assert_close(log_w, (sites[0] - sites[1]).reshape(particles, -1))


@pytest.mark.parametrize("chunk", [1, 2, 7, 10, 10_000])
@pytest.mark.parametrize("particles", [1, 6])
def test_chunks_change_nothing_but_the_memory(chunk, particles):
    """At the exact posterior every weight is known, whatever chunk it came in."""
    model, batch = linear().double(), real(5, 3).double()
    sizes = []
    watched = Exact(model)
    watched.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    plan_of(model, watched, batch)
    planning = len(sizes)
    log_w = log_weights(model, watched, batch, particles, chunk_size=chunk)
    expected = model.log_evidence(batch).expand(particles, 5)
    torch.testing.assert_close(log_w, expected, check_stride=False)
    assert (
        max(sizes[2 * planning :]) * min(particles, chunk) <= max(chunk, 1)
        or chunk >= 5 * particles
    )


@pytest.mark.parametrize("chunk", [4, 10_000])
def test_every_particle_of_every_datum_is_a_draw_of_its_own(chunk):
    """No chunk repeats another's random numbers."""
    guide = GUIDES["normal"](MLP(8, 16))
    assert len(log_weights(vae(), guide, binary(5, 8), 4, chunk_size=chunk).unique()) == 20


@pytest.mark.parametrize("pair", named(p for p in WEIGHED if p.latent == "z" and p.marginal))
def test_pairwise_densities_are_the_guides_own(pair):
    """On the diagonal, where draw and datum belong together; in any chunks."""
    model, guide = pair.make()
    with evaluating(model, guide):
        _, guide_trace = trace_pair(model, guide, pair.batch)
    sites = latent_sites(guide_trace)
    draws = {name: site["value"].reshape(5, -1) for name, site in sites.items()}
    own = sum(site["log_prob"].expand(1, 5).flatten() for site in sites.values())
    whole = pairwise_log_density(guide, pair.batch, draws)
    assert whole.shape == (5, 5)
    torch.testing.assert_close(whole.diagonal(), own, rtol=1e-4, atol=1e-4)
    for chunk in (1, 3, 12):
        parts = pairwise_log_density(guide, pair.batch, draws, chunk_size=chunk)
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_pairwise_densities_of_several_latents_multiply():
    """The guide of a ladder has two; one of them alone is an integral, and refused."""
    guide, batch = LadderGuide(), binary(5, 8)
    draws = {"z_1": real(3, 2), "z_2": real(3, 2)}
    assert pairwise_log_density(guide, batch, draws).shape == (3, 5)
    with pytest.raises(WeightlessError, match=r"samples 'z_2' on the way to \['z_1'\]"):
        pairwise_log_density(guide, batch, {"z_1": draws["z_1"]})
    assert log_weights(Ladder(), guide, batch, 2).shape == (2, 5)


class Marked(nn.Module):
    """A guide that says that it has no density, or draws z through an auxiliary site."""

    def __init__(self, reason=None, transported=False):
        super().__init__()
        self.reason, self.transported = reason, transported

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            q = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            if self.transported:
                e = pyro.sample("e", q, infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(e, event_dim=1))
            else:
                infer = {"weightless": self.reason} if self.reason else {}
                pyro.sample("z", q, infer=infer)


def test_a_guide_may_say_why_it_has_no_weights():
    """The reason is shown."""
    with pytest.raises(
        WeightlessError, match="'z' has no importance weights: a chain has no dens"
    ):
        log_weights(vae(), Marked("a chain has no density"), binary(5, 8), 2)
    assert log_weights(vae(), Marked(), binary(5, 8), 2).shape == (2, 5)


def test_a_point_behind_an_auxiliary_site_has_weights():
    """It transports a density."""
    log_w = log_weights(vae(), Marked(transported=True), binary(5, 8), 2)
    assert log_w.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_particles": 0}, "num_particles must be at least 1, but is 0"),
        ({"num_particles": 2, "chunk_size": 0}, "chunk_size must be at least 1, but is 0"),
    ],
)
def test_counts_must_be_positive(arguments, message):
    """In words."""
    with pytest.raises(ValueError, match=message):
        log_weights(*WEIGHED[0].make(), WEIGHED[0].batch, **arguments)


def test_an_empty_batch_has_no_weights():
    """In words."""
    with pytest.raises(ValueError, match="the batch is empty"):
        log_weights(*WEIGHED[0].make(), WEIGHED[0].batch[:0], 2)


def test_a_site_with_other_axes_is_named():
    """Its log probability is neither (N,) nor (K, N)."""
    message = "site 'z' has a log probability of shape (7,) where (K, N) = (2, 5) is due"
    with pytest.raises(ValueError, match=re.escape(message)):
        per_datum("z", torch.zeros(7), torch.Size((2, 5)))
    assert per_datum("z", 0.0, torch.Size((2, 5))).shape == (2, 5)


def test_modes_come_back_after_an_error():
    """Whatever happens inside."""
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    module[1].eval()
    with pytest.raises(RuntimeError, match="inside"), evaluating(module, len):
        assert not module[0].training and not torch.is_grad_enabled()
        raise RuntimeError("inside")
    assert [part.training for part in module.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


def test_a_weight_of_impossible_data_is_minus_infinity():
    """Not NaN: the datum has probability zero."""

    def model(batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            p_x = dist.Uniform(torch.zeros(3), 1.0, validate_args=False).to_event(1)
            pyro.sample("x", p_x, obs=batch)

    batch = torch.full((2, 3), 0.5)
    batch[1] = 2.0
    with pyro.validation_enabled(False):
        log_w = log_weights(model, Marked(), batch, 3)
    assert (log_w[:, 1] == -math.inf).all()
    torch.testing.assert_close(log_w[:, 0], torch.zeros(3))


@pytest.mark.parametrize("pair", named(WEIGHED))
def test_particles_reach_the_networks_as_leading_axes(pair):
    """`(K, N, ...)` for every latent, also where the guide's depend on one another."""
    model, guide = pair.make()
    with evaluating(model, guide):
        traces = trace_pair(model, guide, pair.batch, 3)
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not site["is_observed"]:
                assert site["value"].shape[:2] == (3, 5), name


def test_the_traces_are_without_plates():
    """What is not a variable of the story has no log probability to add."""
    traces = trace_pair(*WEIGHED[0].make(), WEIGHED[0].batch, 2)
    for trace in traces:
        assert "data" not in trace.nodes
    assert "x" in traces[0].nodes and "x" not in traces[1].nodes


def test_the_elbo_per_datum_is_a_mean_over_data():
    """Of an exact guide: the mean of ln p(x_n), whatever N; where data share z: of ln p(x) / N."""
    model, x = linear().double(), real(5, 3).double()
    found = elbo_per_datum(model, Exact(model), x, 3)
    torch.testing.assert_close(found, model.log_evidence(x).detach().mean())

    def shared(batch):
        z = pyro.sample("z", dist.Normal(batch.new_zeros(()), 1.0))
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch)

    def posterior(batch):
        precision = batch.new_tensor(1.0 + len(batch))
        pyro.sample("z", dist.Normal(batch.sum() / precision, precision.rsqrt()))

    y = real(4).double()
    ones = torch.ones(4, 4, dtype=torch.float64)
    exact = dist.MultivariateNormal(torch.zeros(4).double(), ones + torch.eye(4)).log_prob(y)
    torch.testing.assert_close(elbo_per_datum(shared, posterior, y, 3), exact / 4)
