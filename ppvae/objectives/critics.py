"""A critic of reconstructions: an adversarial gradient beside the likelihood's."""

import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from ppvae.divergences import Critic

__all__ = ["ReconstructionCritic"]


class ReconstructionCritic(nn.Module):
    """A penalty that sharpens reconstructions: a critic tells them from data.

        loss_G = weight BCE(1, C(xhat))                        moves model and guide
        loss_C = weight (BCE(1, C(x)) + BCE(0, C(xhat)))       moves the critic
        xhat = E[x|z]

    Both gradients are taken at the same parameters, from one forward pass of the pair. It is no
    likelihood, so that its value is left out of the loss, and both losses are recorded:
    "generator" and "critic". The critic is trained by the optimizer that `SVI(critic_optim=)`
    makes, and is left alone in evaluation.

    Args:
        network: C, from images to logits, one or one per patch, such as `networks.PatchCritic`.
        weight: The weight; 0 leaves the critic out, and draws no random number.
        site: The observed site.

    Raises:
        ValueError: If the weight is negative; on the first loss, if there is no such site.

    References:
        Rivera (2023), How to train your VAE, arXiv:2309.13160. Isola et al. (2017), Image-to-image
        translation with conditional adversarial networks, arXiv:1611.07004 (PatchGAN).

    Example:
        >>> from ppvae.networks import MLP
        >>> from ppvae.objectives import MixtureELBO
        >>> MixtureELBO(critic=ReconstructionCritic(MLP(64, 32, 1))).penalty_names
        ('population', 'individual', 'critic')
    """

    def __init__(self, network: nn.Module, weight: float = 100.0, site: str = "x") -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight must not be negative, but is {weight}")
        self.divergence = Critic(network)
        self.weight, self.site = weight, site
        self.record: dict[str, Tensor] = {}

    def forward(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        """Return zero, 0-d, whose gradient moves the pair and the critic."""
        if self.site not in model_trace.nodes:
            raise ValueError(
                f"the critic compares images at a site, but the model has no site {self.site!r}: "
                "name the observed one with site="
            )
        site = model_trace.nodes[self.site]
        if self.weight == 0 or not torch.is_grad_enabled():
            self.record = {}
            return site["value"].new_zeros(())
        # Critic's gradients are those of 1/2 BCE and 1/2 (BCE + BCE)
        loss = 2 * self.weight * self.divergence(site["fn"].mean, site["value"])
        self.record = {name: self.weight * v for name, v in self.divergence.record.items()}
        return loss - loss.detach()
