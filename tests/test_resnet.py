"""ResNetV2 and PatchGAN: the paper's sizes, shapes, receptive fields, and what is refused."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from ppvae import SVI
from ppvae.guides import Normal
from ppvae.models import VAE
from ppvae.networks import PatchCritic, ResNetDecoder, ResNetEncoder
from ppvae.objectives import MixtureELBO, ReconstructionCritic

FACES = (3, 256, 256)
SMALL = {"filters": (64, 64, 1), "strides": (2, 2, 1)}  # for 28 x 28


def encoder(image=(2, 8, 8), **kwargs):
    return ResNetEncoder(image, 32, channels=4, **kwargs)


def decoder(image=(2, 8, 8), **kwargs):
    return ResNetDecoder(3, image, channels=4, hidden_features=32, **kwargs)


def critic(image=(2, 8, 8), **kwargs):
    return PatchCritic(image, filters=(4, 4, 1), strides=(2, 1, 1), **kwargs)


NETWORKS = {
    "encoder": (encoder, (2, 8, 8)),
    "decoder": (decoder, (3,)),
    "critic": (critic, (128,)),
    "critic-of-batches": (lambda: critic(batch_statistics=True), (128,)),
}
each = pytest.mark.parametrize(("make", "event"), NETWORKS.values(), ids=NETWORKS)


def size(*modules):
    """Return the number of trainable parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


def averages(*modules):
    """Return the number of running averages of BatchNorm."""
    buffers = (item for module in modules for item in module.named_buffers())
    return sum(b.numel() for name, b in buffers if "running" in name)


# The paper's sizes


def test_the_vae_has_the_papers_parameters():
    """Encoder, two heads of 512 and decoder, at 256 x 256 x 3."""
    with torch.device("meta"):
        guide = Normal(ResNetEncoder(FACES), latent_dim=512, activation=nn.Identity())
        paper = guide, ResNetDecoder(512, FACES)
    assert size(guide.head) == 1_049_600
    assert size(*paper) == 10_957_740
    assert averages(*paper) == 24_326
    assert size(*paper) + averages(*paper) == 10_982_066


def test_the_critic_has_the_papers_parameters():
    with torch.device("meta"):
        paper = PatchCritic(FACES)
    assert size(paper) == 411_075
    assert size(paper) + averages(paper) == 412_101


def test_every_convolution_has_a_bias_and_norms_are_keras():
    """Keras' floor under variances, and its momentum .99, which PyTorch calls 0.01."""
    modules = [m for net in (encoder(), decoder(), critic()) for m in net.modules()]
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    assert all(m.bias is not None for m in modules if isinstance(m, kinds))
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    assert {m.eps for m in modules if isinstance(m, nn.LayerNorm)} == {1e-3}
    slopes = [m.negative_slope for m in modules if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.3, 0.3]  # of three layers


def test_a_guide_reads_its_head_off_the_features_as_they_are():
    guide = Normal(encoder(), latent_dim=3)
    assert isinstance(guide.activation, nn.Identity)


# Shapes


@pytest.mark.parametrize(("side", "levels"), [(32, 3), (64, 4), (128, 5), (256, 6)])
def test_levels_follow_from_the_side(side, levels):
    """With defaults, on the meta device."""
    image = (3, side, side)
    with torch.device("meta"):
        down, up = ResNetEncoder(image), ResNetDecoder(512, image)
        assert down(torch.zeros(2, *image)).shape == (2, 1024)
        assert up(torch.zeros(2, 512)).shape == (2, *image)
    strided = [m for m in down.modules() if getattr(m, "stride", None) == (2, 2)]
    assert len(strided) == 2 * levels  # both branches
    assert (down.in_features, down.out_features) == (up.out_features, 1024)
    assert up.in_features == 512


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_depth_and_width_are_arguments(blocks):
    """A block has three convolutions, a halving four, a doubling three; two are outside."""
    down, up = encoder(blocks=blocks), decoder(blocks=blocks)
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    count = [sum(isinstance(m, kinds) for m in net.modules()) for net in (down, up)]
    assert count == [3 * blocks + 4 + 2, 3 * blocks + 3 + 2]
    widths = {m.out_channels for m in down.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {4, 2}  # channels, and out_features / 16


@pytest.mark.parametrize(
    ("image", "options", "patches"),
    [
        (FACES, {}, (32, 32)),
        ((1, 28, 28), SMALL, (7, 7)),
        ((1, 28, 20), SMALL, (7, 5)),
        ((1, 15, 9), SMALL, (4, 3)),
    ],
)
def test_the_critic_gives_a_logit_per_patch(image, options, patches):
    with torch.device("meta"):
        network = PatchCritic(image, **options)
        assert network(torch.zeros(2, *image)).shape == (2, *patches)
        assert network(torch.zeros(2, image[0] * image[1] * image[2])).shape == (2, *patches)
    assert network.out_features == patches[0] * patches[1]


@pytest.mark.parametrize("leading", [(5,), (1,), (3, 5), (3, 1)])
@each
def test_leading_axes_are_one_batch(make, event, leading):
    """Under particles BatchNorm takes its moments over both axes, and the axes come back."""
    network = make().double()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(*leading, *event, dtype=torch.float64)
    y = network(x)
    flat = network(x.reshape(-1, *event))
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.reshape(flat.shape), flat)
    assert y.shape[: len(leading)] == leading
    network.eval()  # now each datum stands for itself
    slices = torch.cat([network(row[None]) for row in x.reshape(-1, *event)])
    torch.testing.assert_close(network(x).reshape(slices.shape), slices)


def test_flat_pixels_are_images():
    x = torch.rand(5, 2, 8, 8)
    for network in (encoder().eval(), critic().eval()):
        torch.testing.assert_close(network(x.flatten(1)), network(x))


# What a number depends on


def field(network, image, row, column):
    """Return the sides of the patch that a logit looks at, and where the patch starts."""
    x = torch.randn(1, *image, requires_grad=True)
    network.eval()(x)[0, row, column].backward()  # in training, BatchNorm looks at everything
    rows, columns = x.grad[0].abs().sum(0).nonzero().T
    heights, widths = (axis.max() - axis.min() + 1 for axis in (rows, columns))
    return (int(heights), int(widths)), (int(rows.min()), int(columns.min()))


@pytest.mark.parametrize(
    ("image", "options", "sides", "stride"),
    [
        (FACES, {"filters": (2, 2, 2, 2, 2, 1)}, 63, 8),
        ((1, 64, 64), SMALL, 15, 4),
    ],
)
def test_receptive_field_of_the_critic(image, options, sides, stride):
    """By the gradient of one logit, and of its neighbor."""
    network = PatchCritic(image, **options)
    place = network(torch.zeros(2, *image)).shape[-1] // 2
    one, start = field(network, image, place, place)
    other, moved = field(network, image, place + 1, place)
    assert one == other == (sides, sides)
    assert moved == (start[0] + stride, start[1])


def test_a_small_image_fits_into_a_few_patches():
    """At 28 x 28 the edge cuts the patch of the uppermost logit."""
    network = PatchCritic((1, 28, 28), **SMALL)
    assert field(network, (1, 28, 28), 0, 3) == ((8, 15), (0, 5))


# What trains


@pytest.mark.parametrize("training", [True, False])
@each
def test_a_gradient_reaches_every_parameter(make, event, training):
    """By name; while training BatchNorm subtracts the biases again of what goes into it."""
    network = make().double().train(training)
    network(torch.randn(6, *event, dtype=torch.float64)).pow(3).sum().backward()
    norms = {f"{n}." for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    subtracted = {
        name
        for name, _ in network.named_parameters()
        if training and name.endswith(".bias") and name.removesuffix("bias") not in norms
    }
    still = {n for n, p in network.named_parameters() if not p.grad.abs().max() > 1e-9}
    assert still <= (set() if frozen(network) else subtracted)
    assert bool(still) is (training and not frozen(network))


def frozen(network):
    """Return whether the norms take no moments of the batch."""
    return isinstance(network, PatchCritic) and not network.batch_statistics


@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_whole_of_gamix_trains(num_particles):
    """Networks, objective and critic: one step moves every weight, with and without particles."""
    model = VAE(decoder(), latent_dim=3, likelihood="laplace")
    guide = Normal(encoder(), latent_dim=3)
    loss = MixtureELBO(critic=ReconstructionCritic(critic()), num_particles=num_particles)
    svi = SVI(model, guide, partial(torch.optim.Adam, lr=1e-3), loss)
    before = {name: p.detach().clone() for name, p in svi.parameters.items()}
    assert svi.step(torch.rand(6, 2, 8, 8)).isfinite()
    weights = {n: p for n, p in svi.parameters.items() if n.endswith("weight")}
    still = [name for name, p in weights.items() if torch.equal(p, before[name])]
    assert still == []
    assert sum(name.startswith("loss.") for name in before) == 12  # 3 x convolution and norm


def test_dropout_and_norms_rest_in_evaluation():
    network, x = critic(), torch.rand(4, 2, 8, 8)
    assert not torch.equal(network(x), network(x))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.eval()
    assert torch.equal(network(x), network(x))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_logits_take_either_sign_alike():
    """Dropout sets a quarter of the logits to 0 while training; LeakyReLU leaves them alone."""
    logits = critic((2, 64, 64), batch_statistics=True)(torch.rand(8, 2, 64, 64)).detach()
    assert float((logits == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    kept = logits[logits != 0]
    assert float(kept.mean()) == pytest.approx(0.0, abs=0.05)  # BatchNorm's
    assert float(kept.std()) == pytest.approx(1 / 0.75, abs=0.1)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_batch_statistics_blind_a_critic(batch_statistics):
    """Of two sets that differ in brightness alone it sees nothing, and otherwise all."""
    network = critic(batch_statistics=batch_statistics, dropout=0.0)
    optim = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        noise = torch.randn(2, 50, 2, 8, 8)
        logits = network(noise[0] + 1), network(noise[1])
        loss = softplus(-logits[0]).mean() + softplus(logits[1]).mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
    apart = float((logits[0].mean() - logits[1].mean()).detach())
    if batch_statistics:
        assert apart == pytest.approx(0.0, abs=1e-4)
        assert float(loss.detach()) > 1.36  # 2 ln 2 = 1.386 for one that cannot tell
    else:
        assert apart > 2.0
        assert float(loss.detach()) < 0.5


def test_norms_of_the_critic_learn_but_keep_their_averages():
    """Whatever mode is set, and whoever sets it."""
    network = nn.Sequential(critic())
    for mode in (True, False, True):
        network.train(mode)
        network(torch.randn(4, 2, 8, 8))
    norm = network[0].layers[1]
    assert float(norm.running_mean.abs().max()) == 0
    assert int(norm.num_batches_tracked) == 0
    assert norm.weight.requires_grad


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNetEncoder((1, 28, 28)), "is (1, 28, 28): pad the image, or resize it"),
        (lambda: ResNetEncoder((3, 64, 32)), "image must be (channels, side, side)"),
        (lambda: ResNetEncoder((64, 64)), "such as 32, 64, 128 or 256, but is (64, 64)"),
        (lambda: ResNetEncoder((3, 4, 4)), "a side that halves down to 4"),
        (lambda: ResNetDecoder(2, (3, 96, 96)), "is (3, 96, 96): pad the image"),
        (lambda: ResNetEncoder((1, 8, 8), 100), "out_features must be a multiple of 16, the pix"),
        (
            lambda: ResNetDecoder(2, (1, 8, 8), hidden_features=8),
            "hidden_features must be a multiple of 16",
        ),
        (lambda: encoder()(torch.zeros(5, 127)), "in_features=128 got an input of shape (5, 127)"),
        (lambda: decoder()(torch.zeros(5, 4)), "in_features=3"),
        (lambda: PatchCritic((28, 28)), "image must be (channels, height, width), but is (28, 28"),
        (
            lambda: PatchCritic((1, 28, 28), filters=(64, 1)),
            "2 filters=(64, 1) for 6 strides=(2, 2, 2, 1, 1, 1)",
        ),
        (
            lambda: PatchCritic((1, 28, 28), filters=(64, 64), strides=(2, 2)),
            "filters must end in 1, the logit of a patch, but are (64, 64)",
        ),
        (lambda: critic()(torch.zeros(5, 9)), "do not hold 128 elements"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    """With the sizes, and the mend."""
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
