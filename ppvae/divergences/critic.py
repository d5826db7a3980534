"""A critic that tells two samples apart: the adversarial estimate of their divergence."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import logsigmoid

__all__ = ["Critic"]


class Critic(nn.Module):
    """The Jensen-Shannon divergence as a critic C sees it, for one backward of both sides.

        D(fake, real) = ln 2 - (BCE(1, C(real)) + BCE(0, C(fake))) / 2,  at the best C in [0, ln 2]

    The number returned has two gradients. The samples go *down* D, through a critic that stands
    still; by default not that of D itself, which vanishes where the critic is sure, but of
    BCE(1, C(fake)) / 2. The critic's parameters go down (BCE(1, C(real)) + BCE(0, C(fake))) / 2,
    on detached samples, and so *up* D. Give them an optimizer of their own:
    `SVI(..., critic_optim=...)`.

    Not a bound: a critic that lags behind underestimates D. Reals and fakes go through the network
    one after the other, since batch statistics would tell them apart if mixed; its buffers move in
    these two passes only. Without gradients or in evaluation mode nothing in the critic moves.

    Args:
        network: C, from samples `(B, *event)` to logits of any shape, a mean of which is taken:
            (B, 1), or a patch each. High means real.
        event_dim: How many axes one sample has, 1 for latents and 3 for images; the axes before
            them are data and particles, flattened to B. By default all of `real` but the first.
        saturating: Whether the samples follow D itself.

    Raises:
        ValueError: On a call, if the samples differ in their event's shape.

    References:
        Goodfellow et al. (2014), Generative Adversarial Networks, arXiv:1406.2661.
        Makhzani et al. (2015), Adversarial Autoencoders, arXiv:1511.05644.

    Example:
        >>> critic = Critic(nn.Linear(2, 1))
        >>> _ = nn.init.zeros_(critic.network.weight), nn.init.zeros_(critic.network.bias)
        >>> critic(torch.randn(5, 2), torch.randn(5, 2))  # an undecided critic sees no difference
        tensor(0., grad_fn=<AddBackward0>)
        >>> {name: round(float(value), 4) for name, value in critic.record.items()}
        {'generator': 0.6931, 'critic': 1.3863}
    """

    def __init__(
        self, network: nn.Module, *, event_dim: int | None = None, saturating: bool = False
    ) -> None:
        super().__init__()
        self.network, self.event_dim, self.saturating = network, event_dim, saturating
        self.record: dict[str, Tensor] = {}  # of the last call: the losses of both sides

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Return D of samples `(..., *event)` each, 0-d in nats."""
        fake, real = self._flatten(fake, real)
        learns = self.training and torch.is_grad_enabled()
        network = self.network if learns else self._still
        on_real, on_fake = network(real.detach()), network(fake.detach())
        loss = (_bce(on_real, 1) + _bce(on_fake, 0)) / 2
        self.record = {"generator": _bce(on_fake, 1).detach(), "critic": 2 * loss.detach()}
        value = math.log(2) - loss.detach()
        if learns:
            value = value + _gradient_of(loss)
        for samples, label in ((fake, 0), (real, 1)):  # reals move too, where a prior is learned
            if samples.requires_grad and torch.is_grad_enabled():
                value = value + _gradient_of(self._descent(self._still(samples), label))
        return value

    def _descent(self, logits: Tensor, label: int) -> Tensor:
        """What samples of a label descend: D itself, or how well they pass for the other."""
        return -_bce(logits, label) / 2 if self.saturating else _bce(logits, 1 - label) / 2

    def _still(self, samples: Tensor) -> Tensor:
        """Return the logits by a network that neither learns nor moves its buffers."""
        tensors = {name: p.detach() for name, p in self.network.named_parameters()}
        tensors |= {name: b.clone() for name, b in self.network.named_buffers()}
        return functional_call(self.network, tensors, (samples,))

    def _flatten(self, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        event_dim = real.ndim - 1 if self.event_dim is None else self.event_dim
        event = real.shape[real.ndim - event_dim :]
        if event_dim < 1 or fake.ndim <= event_dim or fake.shape[-event_dim:] != event:
            raise ValueError(
                f"the critic compares samples of one event shape, but fake is "
                f"{tuple(fake.shape)} and real {tuple(real.shape)}: give both as (B, *event), and "
                "the number of the event's axes as event_dim where particles come before"
            )
        return fake.reshape(-1, *event), real.reshape(-1, *event)


def _bce(logits: Tensor, label: int) -> Tensor:
    """The mean binary cross entropy of logits to one label, 0-d in nats."""
    return -logsigmoid(logits if label else -logits).mean()


def _gradient_of(loss: Tensor) -> Tensor:
    """Zero, with the gradient of a loss."""
    return loss - loss.detach()
