"""What does not fit together is refused, naming the site and the mend."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from zoo import (
    GUIDES,
    PAIRS,
    Bits,
    BitsGuide,
    Ladder,
    LadderGuide,
    binary,
    counts,
    named,
    real,
    vae,
)

from ppvae import PairError, check_pair, resolve_device
from ppvae.models import VAE
from ppvae.networks import MLP, ConvDecoder
from ppvae.protocols import batch_size, leaves, map_batch


def normal(features=8, **kwargs):
    """Return a Normal guide."""
    return GUIDES["normal"](MLP(features, 16), **kwargs)


class Story(nn.Module):
    """A model or a guide told by a function of (module, batch); it has one parameter."""

    def __init__(self, tell):
        super().__init__()
        self.loc, self.tell = nn.Parameter(torch.zeros(2)), tell

    def forward(self, batch):
        self.tell(self, batch)


def story(*, size=None, plate="data", dim=-1, latent=None, auxiliary=None):
    """Return a guide of z, bent in one respect."""

    def tell(self, batch):
        with pyro.plate(plate, size or len(batch), dim=dim):
            if auxiliary is not None:
                pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": auxiliary})
            pyro.sample("z", latent(self) if latent else dist.Normal(self.loc, 1.0).to_event(1))

    return Story(tell)


def without_plate(self, batch):
    """Sample z for each datum, but outside a plate."""
    pyro.sample("z", dist.Normal(self.loc.expand(len(batch), 2), 1.0).to_event(1))


def with_axes(self, batch):
    """Sample z with its coordinates as a plate."""
    with pyro.plate("coordinates", 2, dim=-2), pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Normal(self.loc[:, None], 1.0))


def scalar_model(self, batch):
    """Draw z ~ N(loc, 1), one number per datum, and x ~ Bernoulli(sigmoid(z))."""
    with pyro.plate("data", len(batch), dim=-1):
        z = pyro.sample("z", dist.Normal(self.loc.sum(), 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z).to_event(0), obs=batch)


def idle(module):
    """Return a module with a parameter that nothing uses."""
    module.idle = nn.Parameter(torch.zeros(3))
    return module


X = binary(5, 8)
NAN = X.clone()
NAN[1, 2] = NAN[3, 4] = math.nan

MISFITS = {
    "missing": (
        lambda: (Ladder(), normal(), X),
        r"site 'z_2': the model samples it, but the guide, with \['z'\], does not: take a guide",
    ),
    "unknown": (
        lambda: (vae(), story(auxiliary=False), X),
        r"site 'u': the guide samples it, but the model, with \['z'\], does not know it: .*",
    ),
    "another-model": (
        lambda: (vae(), LadderGuide(), X),
        r"site 'z': the model samples it, but the guide, with \['z_1', 'z_2'\], does not",
    ),
    "latent-sizes": (
        lambda: (VAE(MLP(3, 8), latent_dim=3), normal(), X),
        r"site 'z': the model's events have shape \(3,\), the guide's \(2,\): give both",
    ),
    "decoder-size": (
        lambda: (VAE(MLP(3, 8), latent_dim=2), normal(), X),
        r"the model does not run on the batch \(x: \(5, 8\) float32\): a network with",
    ),
    "support": (
        lambda: (Bits(), story(), X),
        r"site 'z': the guide draws values outside the model's support",
    ),
    "no-plate": (
        lambda: (vae(), Story(without_plate), X),
        (
            r"site 'z': the guide must sample it in pyro.plate.*, but its plates are \[\]: "
            r"add the plate"
        ),
    ),
    "plate-name": (
        lambda: (vae(), story(plate="batch"), X),
        r"site 'z': the guide must sample it in pyro.plate\(\"data\", N, dim=-1\), but its",
    ),
    "plate-dim": (
        lambda: (vae(), story(dim=-2), X),
        r"site 'z': the guide must sample it .* but it is at dim -2",
    ),
    "plate-size": (
        lambda: (vae(), story(size=1), X),
        (
            r"site 'z': the guide's plate \"data\" has size 1, but the batch 5 data: "
            r"take the size from"
        ),
    ),
    "axes": (
        lambda: (Story(scalar_model), Story(with_axes), binary(5)),
        r"site 'z': the guide gives it batch shape \(2, 5\) where \(5,\) is due: declare",
    ),
    "nan": (
        lambda: (vae(), normal(), NAN),
        r"2 of 5 data .*hold NaN: remove or fill them",
    ),
    "nan-seen-by-the-model-alone": (
        lambda: (vae(), story(), NAN),
        r"site 'x': 2 of 5 data hold NaN: remove or fill them",
    ),
    "grays": (
        lambda: (vae(), normal(), X / 2),
        r"site 'x': 5 of 5 data lie outside the likelihood's support .*\[0, 0.5\]: binarize or",
    ),
    "negative-counts": (
        lambda: (vae(likelihood="poisson"), normal(), counts(5, 8) - 1),
        r"site 'x': 5 of 5 data lie outside .* values in \[-1, 3\]",
    ),
    "bytes": (
        lambda: (vae(), normal(), X.to(torch.uint8)),
        r"the guide does not run on the batch \(x: \(5, 8\) uint8\): .*data.float\(\)",
    ),
    "double": (
        lambda: (vae(), normal(), X.double()),
        r"the batch's 'x' has dtype torch.float64, but model.decoder.0.weight torch.float32:",
    ),
    "double-guide": (
        lambda: (vae(), normal().double(), X),
        r"has dtype torch.float32, but guide.encoder.0.weight torch.float64",
    ),
    "device": (
        lambda: (vae(), normal().to("meta"), X),
        r"is on cpu, but guide.encoder.0.weight on meta: move one with model.to\(device\)",
    ),
    "batch-device": (
        lambda: (vae(), normal(), X.to("meta")),
        r"the batch's 'x' is on meta, but model.decoder.0.weight on cpu",
    ),
    "encoder-size": (
        lambda: (vae(), normal(9), X),
        r"the guide does not run on the batch \(x: \(5, 8\) float32\): .*in_features=9",
    ),
    "shape": (
        lambda: (vae(), normal(16), binary(5, 16)),
        r"site 'x': the likelihood has shape \(5, 8\), but the data \(5, 16\): let the decoder's",
    ),
    "flat-images": (
        lambda: (VAE(ConvDecoder(2, (1, 8, 8)), latent_dim=2), normal(64), binary(5, 64)),
        r"the model does not run on the batch \(x: \(5, 64\) float32\): .*site x",
    ),
    "idle-guide": (
        lambda: (vae(), idle(normal()), X),
        r"no gradient reaches guide.idle: use them in the forward pass, or exclude them",
    ),
    "idle-model": (
        lambda: (idle(vae()), normal(), X),
        r"no gradient reaches model.idle",
    ),
    "cut-off": (
        lambda: (
            vae(),
            story(latent=lambda self: dist.Normal(self.loc.detach(), 1.0).to_event(1)),
            X,
        ),
        r"no gradient reaches guide.loc",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_misfit_is_refused(name):
    """In words that name site, or tensor, and mend; and nothing has changed."""
    make, message = MISFITS[name]
    model, guide, batch = make()
    with pytest.raises(PairError, match=f"(?s)^.*{message}"):
        check_pair(model, guide, batch)
    assert all(p.grad is None for side in (model, guide) for p in side.parameters())
    assert model.training and guide.training


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (X[:0], ValueError, "the batch is empty: N = 0 data; give at least one"),
        ({}, ValueError, "a batch needs a data axis"),
        (torch.tensor(1.0), ValueError, "needs a data axis (N, ...), but ['x'] has none"),
        ({"a": X, "b": X[:3]}, ValueError, "differ in their number of data: {'a': 5, 'b': 3}"),
        (
            (X, X),
            TypeError,
            "'x' is a tuple: convert it with torch.as_tensor, and take the tensor",
        ),
        ({"a": X.numpy()}, TypeError, "'a' is a ndarray: convert it"),
    ],
    ids=["empty", "nothing", "scalar", "sizes", "tuple", "array"],
)
def test_what_is_no_batch_is_refused(batch, error, message):
    """By everything that takes one."""
    for use in (lambda: check_pair(vae(), normal(), batch), lambda: batch_size(batch)):
        with pytest.raises(error, match=re.escape(message)):
            use()


def test_the_message_goes_into_the_traceback_of_the_cause():
    """What torch or Pyro said stays to be seen."""
    with pytest.raises(PairError) as caught:
        check_pair(vae(), normal(9), X)
    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("pair", named(PAIRS))
def test_a_fitting_pair_passes_untouched(pair):
    """Random numbers, modes, gradients and buffers are as before; unlike a mere forward pass."""
    model, guide = pair.make()
    for part in list(guide.modules())[1::2]:
        part.eval()
    modes = [m.training for side in (model, guide) for m in side.modules()]
    buffers = [b.clone() for side in (model, guide) for b in side.buffers()]
    state = torch.get_rng_state()
    check_pair(model, guide, pair.batch)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for side in (model, guide) for m in side.modules()]
    assert all(p.grad is None for side in (model, guide) for p in side.parameters())
    after = [b for side in (model, guide) for b in side.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(buffers, after, strict=True))


def test_what_the_messages_advise_helps():
    """An idle parameter that is frozen, a larger batch."""
    guide = idle(normal())
    guide.idle.requires_grad_(False)
    check_pair(vae(), guide, X)
    check_pair(vae(), story(size=5), X)
    check_pair(Bits(), BitsGuide(), X)


def test_plain_functions_are_checked_too():
    """They have no parameters to look at."""
    model, guide = vae(), normal()
    check_pair(lambda batch: model(batch), lambda batch: guide(batch), X)
    with pytest.raises(PairError, match="site 'z'"):
        check_pair(lambda batch: model(batch), lambda batch: None, X)


def test_masked_data_may_hold_anything():
    """A missing row is all NaN, and its likelihood masked out."""

    def tell(self, batch):
        seen = batch.isfinite().all(-1)
        with pyro.plate("data", len(batch), dim=-1):
            p_x = dist.Normal(self.loc, 1.0).to_event(1).mask(seen)
            with pyro.poutine.mask(mask=seen):
                pyro.sample("x", p_x.base_dist, obs=batch.nan_to_num())

    batch = real(5, 2)
    batch[2] = math.nan
    check_pair(Story(tell), lambda batch: None, batch)


def test_a_check_works_without_gradients_at_hand():
    """Inside `torch.no_grad()`, where notebooks like to be."""
    with torch.no_grad():
        check_pair(vae(), normal(), X)


# Batches and devices


def test_leaves_are_named():
    """A bare tensor is the paper's x."""
    assert list(leaves(X)) == ["x"]
    assert list(leaves({"image": X, "text": X})) == ["image", "text"]
    assert set(map_batch(lambda leaf: leaf[:1], {"a": X})) == {"a"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_that_is_absent_is_refused(device):
    """In words, where torch would speak of drivers."""
    with pytest.raises(
        ValueError, match=r"'cuda.*' was asked for, but .*: choose 'cpu', or 'auto'"
    ):
        resolve_device(device)


def test_devices_by_name():
    """`auto` takes what there is."""
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="unknown device 'gpu': choose 'auto', 'cpu' or 'cuda'"):
        resolve_device("gpu")
