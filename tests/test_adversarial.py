"""The adversarial step: two optimizers, one backward, exact resume of both."""

import copy
import math
from functools import partial

import pyro
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from zoo import binary, train, vae

from ppvae import SVI, fit
from ppvae.guides import Normal
from ppvae.networks import MLP
from ppvae.objectives import MixtureELBO, PenalizedELBO, ReconstructionCritic
from ppvae.weights import trace_pair


class Undecided(nn.Module):
    """Zero logits, whatever the image; a parameter that multiplies them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x):
        return self.layer(x)


class Normalized(nn.Sequential):
    """A critic with batch statistics and dropout."""

    def __init__(self):
        super().__init__(
            nn.Linear(8, 6),
            nn.BatchNorm1d(6),
            nn.LeakyReLU(0.3),
            nn.Dropout(0.25),
            nn.Linear(6, 1),
        )


def made(loss, seed=0, **kwargs):
    """An SVI of a fresh pair."""
    pyro.set_rng_seed(seed)
    return SVI(
        vae(),
        Normal(MLP(8, 16), latent_dim=2),
        partial(torch.optim.Adam, lr=1e-2, betas=(0.5, 0.999)),
        loss,
        critic_optim=partial(torch.optim.SGD, lr=1e-3),
        **kwargs,
    )


def tensors(svi):
    """All tensors that training moves."""
    sides = (svi.model, svi.guide, svi.loss)
    return [t.clone() for side in sides for t in (*side.parameters(), *side.buffers())]


def test_an_undecided_critic_costs_ln_2_a_side():
    """loss_G's term 69.3147, loss_D 138.6294 at D = 1/2; the loss itself does not hold them."""
    goal = MixtureELBO(critic=ReconstructionCritic(Undecided()))
    svi = made(goal)
    pyro.set_rng_seed(1)
    loss = svi.step(binary(6, 8))
    assert float(goal.record["generator"]) == pytest.approx(100 * math.log(2), abs=1e-4)
    assert float(goal.record["critic"]) == pytest.approx(200 * math.log(2), abs=1e-4)
    plain = made(MixtureELBO())
    pyro.set_rng_seed(1)
    assert float(loss) == pytest.approx(float(plain.step(binary(6, 8))), abs=1e-5)


def test_both_gradients_are_those_of_their_own_losses():
    """By hand, at the same parameters: loss_G for the pair, loss_C for the critic."""
    network = MLP(8, 5, 2)
    goal = PenalizedELBO(critic=ReconstructionCritic(network, weight=3.0), num_particles=1)
    svi = made(goal)
    batch = binary(6, 8)
    svi.optimizer, svi.critic_optimizer = (
        torch.optim.SGD(o.param_groups[0]["params"], lr=0.0)
        for o in (svi.optimizer, svi.critic_optimizer)
    )
    pyro.set_rng_seed(1)
    svi.step(batch)
    found = {name: p.grad.clone() for name, p in svi.parameters.items()}

    pair = {n: p for n, p in svi.parameters.items() if not n.startswith("loss")}
    critic = {n: p for n, p in svi.parameters.items() if n.startswith("loss")}
    plain = PenalizedELBO()
    pyro.set_rng_seed(1)
    elbo = plain.differentiable_loss(svi.model, svi.guide, batch) / len(batch)
    pyro.set_rng_seed(1)
    model_trace, _ = trace_pair(svi.model, svi.guide, batch)
    fake = model_trace.nodes["x"]["fn"].mean.squeeze(0)
    on_fake, on_real = network(fake), network(batch)
    ones, zeros = torch.ones_like(on_real), torch.zeros_like(on_real)
    generator = elbo + 3 * bce(on_fake, ones)
    critics = 3 * (bce(on_real, ones) + bce(network(fake.detach()), zeros))
    for loss, parameters in ((generator, pair), (critics, critic)):
        expected = torch.autograd.grad(loss, parameters.values(), retain_graph=True)
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_without_weight_it_is_the_plain_step_bit_for_bit():
    """Also with dropout in the critic: nothing is drawn."""
    pairs = []
    for penalties in ({}, {"critic": ReconstructionCritic(Normalized(), weight=0.0)}):
        svi = made(MixtureELBO(**penalties))
        pyro.set_rng_seed(1)
        losses = [float(svi.step(binary(6, 8))) for _ in range(4)]
        pairs.append(
            (losses, [*svi.model.state_dict().values(), *svi.guide.state_dict().values()])
        )
    assert pairs[0][0] == pairs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(pairs[0][1], pairs[1][1], strict=True))


def test_each_side_has_its_own_optimizer():
    """The kinds asked for; groups reach either; the same optimizer by default."""
    goal = MixtureELBO(critic=ReconstructionCritic(Normalized()))
    svi = made(goal, groups={"loss.penalty_modules.critic": {"lr": 0.3}, "guide": {"lr": 0.2}})
    assert isinstance(svi.optimizer, torch.optim.Adam)
    assert isinstance(svi.critic_optimizer, torch.optim.SGD)
    assert [g["lr"] for g in svi.critic_optimizer.param_groups] == [0.3]
    assert [g["lr"] for g in svi.optimizer.param_groups] == [1e-2, 0.2]
    default = train(vae(), Normal(MLP(8, 16), latent_dim=2), goal)
    assert isinstance(default.critic_optimizer, torch.optim.Adam)
    assert train(vae(), Normal(MLP(8, 16), latent_dim=2), MixtureELBO()).critic_optimizer is None


def test_every_step_moves_both():
    """And both losses are recorded."""
    svi = made(MixtureELBO(critic=ReconstructionCritic(Normalized())), clip_norm=1.0)
    before = {name: p.detach().clone() for name, p in svi.parameters.items()}
    svi.step(binary(6, 8))
    unmoved = {name for name, p in svi.parameters.items() if torch.equal(p, before[name])}
    assert unmoved <= {
        "loss.penalty_modules.critic.divergence.network.0.bias"
    }  # before batch norm
    assert {"generator", "critic", "population", "individual"} <= svi.loss.record.keys()


def test_evaluation_leaves_the_critic_alone():
    """Parameters, batch statistics and modes."""
    svi = made(MixtureELBO(critic=ReconstructionCritic(Normalized())))
    svi.step(binary(6, 8))
    before = copy.deepcopy(svi.loss.state_dict())
    svi.evaluate(binary(6, 8))
    after = svi.loss.state_dict()
    assert all(
        torch.equal(before[n], after[n]) for n in after if isinstance(after[n], torch.Tensor)
    )
    assert all(module.training for module in svi.loss.modules())


def test_resume_is_exact_for_both(tmp_path):
    """Weights, optimizers, critic and its batch statistics, bit for bit."""
    data, options = binary(40, 8), {"batch_size": 16, "progress": False}

    def fresh(seed):
        pyro.set_rng_seed(seed)
        return made(MixtureELBO(critic=ReconstructionCritic(Normalized())), seed=seed)

    whole = fresh(0)
    fit(whole, data, epochs=4, validation=data[:9], **options)
    first = fresh(0)
    fit(first, data, epochs=2, validation=data[:9], checkpoint=tmp_path, **options)
    second = fresh(5)
    pyro.set_rng_seed(9)
    fit(second, data, epochs=4, validation=data[:9], checkpoint=tmp_path, resume=True, **options)
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(second), strict=True))
    timeless = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in svi.records]
        for svi in (whole, second)
    ]
    assert timeless[0] == timeless[1]


def test_the_best_epoch_is_the_objective_s(tmp_path):
    """Under penalties the validation loss is recorded, in batches of the training's size."""
    svi = made(MixtureELBO())
    history = fit(
        svi, binary(40, 8), epochs=2, validation=binary(20, 8), batch_size=8, progress=False
    )
    assert {"validation_elbo", "validation_loss"} <= history.records[-1].keys()
    plain = fit(
        made(PenalizedELBO()), binary(40, 8), epochs=1, validation=binary(9, 8), progress=False
    )
    assert "validation_loss" not in plain.records[-1]


def test_bad_input_is_refused_in_words():
    with pytest.raises(ValueError, match="weight must not be negative"):
        ReconstructionCritic(MLP(8, 1), weight=-1.0)
    with pytest.raises(TypeError, match="critic_optim must make the optimizer"):
        SVI(
            vae(),
            Normal(MLP(8, 16), latent_dim=2),
            partial(torch.optim.Adam, lr=1e-2),
            MixtureELBO(),
            critic_optim=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1),
        )
    with pytest.raises(ValueError, match="match no parameter"):
        made(MixtureELBO(), groups={"loss.critic": {"lr": 1.0}})
