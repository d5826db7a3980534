"""Every pair on another device than the CPU: torch's `meta`, which needs no GPU.

A tensor on `meta` has a shape, a dtype and no numbers. So a tensor that was left on the CPU and a
number that is read on the way, which would stall a GPU, are errors there.
"""

import pyro
import pytest
import torch
from zoo import PAIRS, named

from ppvae.objectives import BetaELBO

META = torch.device("meta")


@pytest.mark.parametrize("pair", named(p for p in PAIRS if p.name in ("vae-normal", "ladder")))
def test_an_empty_sum_is_of_the_pairs_device(pair):
    """Where each latent's KL has a closed form, nothing is left to draw."""
    model, guide, loss = (part.to(META) for part in (*pair.make(), BetaELBO(beta=2.0)))
    with pyro.validation_enabled(False):
        value = loss.differentiable_loss(model, guide, pair.batch.to(META))
    value.backward()
    assert value.device == META
    assert all(p.grad is not None for p in guide.parameters())
