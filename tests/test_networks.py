"""Encoders and decoders: shapes, leading axes, sizes, and what is refused."""

import re

import pytest
import torch
from torch import nn

from ppvae.guides import Normal
from ppvae.networks import MLP, ConvDecoder, ConvEncoder, flatten_event

NETWORKS = {
    "mlp": (lambda: MLP(6, 5, 4), (6,), (4,)),
    "mlp-image": (lambda: MLP(64, 4), (1, 8, 8), (4,)),
    "mlp-gray": (lambda: MLP(64, 4), (8, 8), (4,)),
    "encoder-28": (lambda: ConvEncoder((1, 28, 28), 7), (1, 28, 28), (7,)),
    "encoder-32": (lambda: ConvEncoder((3, 32, 32), 7), (3, 32, 32), (7,)),
    "encoder-64": (lambda: ConvEncoder((3, 64, 64), 7), (3, 64, 64), (7,)),
    "encoder-flat": (lambda: ConvEncoder((1, 28, 28), 7), (784,), (7,)),
    "encoder-wide": (lambda: ConvEncoder((2, 8, 16), 7, channels=(4, 4, 4)), (2, 8, 16), (7,)),
    "encoder-odd": (lambda: ConvEncoder((3, 7, 10), 5, channels=(4, 4, 4), kernel=3),)
    + ((3, 7, 10), (5,)),
    "decoder-28": (lambda: ConvDecoder(3, (1, 28, 28)), (3,), (1, 28, 28)),
    "decoder-odd": (lambda: ConvDecoder(3, (3, 7, 10), channels=(4, 4, 4), kernel=3),)
    + ((3,), (3, 7, 10)),
    "decoder-32": (lambda: ConvDecoder(3, (3, 32, 32)), (3,), (3, 32, 32)),
    "decoder-64": (lambda: ConvDecoder(3, (3, 64, 64)), (3,), (3, 64, 64)),
    "decoder-wide": (lambda: ConvDecoder(3, (2, 8, 16), channels=(4, 4, 4)), (3,), (2, 8, 16)),
}
each = pytest.mark.parametrize(("make", "event", "out"), NETWORKS.values(), ids=NETWORKS)


LEADING = [
    (name, leading)
    for name in NETWORKS
    for leading in [(1,), (5,), (2, 3), (2, 1), (1, 1, 2)]
    if (name, leading) != ("mlp-gray", (2, 1))  # the 1 before the sides counts as the channel
]


@pytest.mark.parametrize(("name", "leading"), LEADING)
def test_leading_axes_are_evaluated_slice_by_slice(name, leading):
    """Under particles a network gives what it gives for each alone."""
    make, event, out = NETWORKS[name]
    network = make().double()
    x = torch.randn(*leading, *event, dtype=torch.float64)
    y = network(x)
    assert y.shape == (*leading, *out)
    slices = torch.cat([network(each[None]) for each in x.reshape(-1, *event)])
    torch.testing.assert_close(y, slices.reshape(y.shape))


@each
def test_sizes_are_known(make, event, out):
    """The numbers of elements that go in and come out."""
    network = make()
    assert network.in_features == torch.Size(event).numel()
    assert network.out_features == torch.Size(out).numel()


@each
def test_a_gradient_reaches_every_parameter(make, event, out):
    """By name."""
    network = make()
    network(torch.randn(4, *event)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if not p.grad.any()] == []


def test_activations_lie_between_layers_alone():
    """A decoder's output is unbounded; the guide applies the encoder's last activation."""
    layers = [type(layer) for layer in MLP(4, 3, 2, activation=nn.Tanh)]
    assert layers == [nn.Linear, nn.Tanh, nn.Linear]
    assert [type(layer) for layer in MLP(4, 3)] == [nn.Linear]
    for network in (ConvEncoder((1, 8, 8), 3), ConvDecoder(3, (1, 8, 8))):
        assert not isinstance(network.layers[-1], nn.ReLU)


@pytest.mark.parametrize(
    ("shape", "features", "flat"),
    [
        ((5, 784), 784, (5, 784)),
        ((5, 28, 28), 784, (5, 784)),
        ((5, 1, 28, 28), 784, (5, 784)),
        ((1, 1, 28, 28), 784, (1, 784)),
        ((1, 28, 28), 784, (1, 784)),
        ((1, 784), 784, (1, 784)),
        ((5, 1, 784), 784, (5, 1, 784)),
        ((2, 5, 3, 8, 8), 192, (2, 5, 192)),
        ((5, 2, 3, 4, 4), 96, (5, 96)),
        ((784,), 784, (784,)),
    ],
)
def test_events_are_flattened_and_the_rest_is_left(shape, features, flat):
    """The first axis is never an event's, unless it is the only one."""
    assert flatten_event(torch.zeros(shape), features).shape == flat


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(784), "MLP needs in_features and out_features, but got sizes (784,)"),
        (lambda: ConvEncoder((1, 30, 30), 4), "sides divisible by 4 = 2^2"),
        (lambda: ConvEncoder((28, 28), 4), "image must be (channels, height, width)"),
        (lambda: ConvEncoder((28, 28), 4, kernel=3), "image must be (channels, height, width)"),
        (lambda: ConvDecoder(2, (1, 28, 28), kernel=5), "kernel must be 4, for even sides, or 3"),
        (lambda: ConvDecoder(2, (1, 28, 28), channels=(8, 8, 8)), "choose fewer channels, or pad"),
        (
            lambda: MLP(784, 4)(torch.zeros(5, 783)),
            "in_features=784 got an input of shape (5, 783)",
        ),
        (lambda: ConvEncoder((1, 28, 28), 4)(torch.zeros(5, 27, 27)), "do not hold 784 elements"),
        (lambda: ConvDecoder(2, (1, 28, 28))(torch.zeros(5, 3)), "in_features=2"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    """With the sizes, and the mend."""
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_any_module_with_out_features_is_an_encoder():
    """And one without is refused, before it fails in a matrix product."""
    assert Normal(nn.Linear(8, 4), latent_dim=2).head.in_features == 4
    with pytest.raises(TypeError, match="the encoder Sequential has no out_features"):
        Normal(nn.Sequential(nn.Linear(8, 4)), latent_dim=2)


def test_kernels_of_three_are_the_published_small_pair():
    """28, 14, 7, 4 pixels a side: 2,048 features of 128 channels, and back."""
    encoder = ConvEncoder((3, 28, 28), 64, channels=(32, 64, 128), kernel=3)
    decoder = ConvDecoder(64, (3, 28, 28), channels=(128, 64, 32), kernel=3)
    assert encoder.layers[-1].in_features == decoder.layers[0].out_features == 2048
    sides, images = [], decoder.layers[:2](torch.zeros(1, 64))
    for layer in decoder.layers[2:]:
        images = layer(images)
        sides.append(images.shape[-1])
    assert sides[1::2] == [7, 14, 28]
