"""How finely a log probability must be known to be weighed."""

import torch
from pyro.poutine import Trace
from torch import Tensor

from ppvae.pairing import sample_sites

__all__ = ["require_precision"]

COARSE = (torch.bfloat16, torch.float16)


def require_precision(*traces: Trace) -> None:
    """Raise if a site scores in half precision, where nats are lost that nobody sees missing.

    At 500 nats bfloat16 knows multiples of 2, float16 of a quarter: weights that differ tie, and
    their tail says nothing. Adding up in float32 does not bring back what each site has lost.

    Raises:
        ValueError: If so, with the site and its dtype.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import LinearGaussian
        >>> from ppvae.weights import trace_pair
        >>> model = LinearGaussian(torch.ones(3, 2))
        >>> require_precision(*trace_pair(model, Exact(model), torch.zeros(5, 3)))
    """
    for trace in traces:
        for name, site in sample_sites(trace).items():
            log_prob = site["log_prob"]
            if isinstance(log_prob, Tensor) and log_prob.dtype in COARSE:
                raise ValueError(
                    f"site {name!r} scores in {log_prob.dtype}, in which weights lose whole nats: "
                    "judge the pair in torch.float32 or torch.float64, by model.float(), "
                    "guide.float() and batch.float(), outside of autocast"
                )
