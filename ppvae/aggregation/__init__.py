"""From what the encoders say of any subset of modalities to one posterior: h, seen -> q(z|x_S).

One signature, `(h (..., N, M, E), seen (..., N, M) booleans) -> distribution` of batch shape
(..., N) and event shape (D,); the order of the modalities does not matter, and each datum may have
its own subset, the empty one included.
"""

from ppvae.aggregation.attention import SelfAttention
from ppvae.aggregation.base import Aggregation
from ppvae.aggregation.experts import MoE, MoPoE, PoE
from ppvae.aggregation.pooling import SumPooling

__all__ = ["Aggregation", "MoE", "MoPoE", "PoE", "SelfAttention", "SumPooling"]
