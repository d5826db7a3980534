"""Encoders, decoders and critics, made outside of models, guides and objectives and passed in.

Every network accepts extra leading dimensions, `(K, N, ...)` under K particles, and says its
`in_features` and `out_features`. None ends in an activation: a decoder's output is the natural
parameter of the likelihood, and a guide applies the activation to an encoder's features itself.
"""

from ppvae.networks.bounded import bounded_exp
from ppvae.networks.convolutional import ConvDecoder, ConvEncoder
from ppvae.networks.critics import PatchCritic
from ppvae.networks.entries import Entries
from ppvae.networks.flat import Flat
from ppvae.networks.folded import Folded
from ppvae.networks.linear import follows, linear_layer
from ppvae.networks.mlp import MLP, flatten_event
from ppvae.networks.recurrent import RecurrentDecoder, RecurrentEncoder
from ppvae.networks.resnet import ResNetDecoder, ResNetEncoder

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "Entries",
    "Flat",
    "Folded",
    "PatchCritic",
    "RecurrentDecoder",
    "RecurrentEncoder",
    "ResNetDecoder",
    "ResNetEncoder",
    "bounded_exp",
    "flatten_event",
    "follows",
    "linear_layer",
]
