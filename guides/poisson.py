"""The guide of counts: a gain on each of the prior's rates, by an encoder."""

from torch import Tensor, nn

from ppvae.guides.amortized import activation_after
from ppvae.guides.counts import Counts, Rates
from ppvae.protocols import Encoder

__all__ = ["Poisson"]


class Poisson(Counts):
    """Factorized Poisson posterior, whose rates are the model's times a gain that is amortized.

        q(z|x) = prod_k Poisson(z_k; lam_k),  lam = model.rate(V a(encoder(x)) + v)
        KL = sum_k r_k f(lam_k / r_k),  f(y) = 1 - y + y ln y

    How counts are drawn, when their loss is a bound, and what is scheduled, says `Counts`.

    Args:
        encoder: Maps the batch x, `(N, ...)`, to features `(N, encoder.out_features)`;
            `networks.Flat` leaves all to the head, which is then a linear encoder.
        model: The model, such as `models.PoissonVAE`; its parameters stay its own.
        bias: Whether the head has a bias v; the paper's linear encoder has none.
        activation: a, as in `Amortized`.
        **kwargs: As in `Counts`: kernel, temperature, gradient and max_events.

    Sites:
        z: (N, K) the counts: relaxed in training, with pathwise gradients, unless `gradient` is
            "score"; KL to a Poisson prior in closed form.

    Raises:
        TypeError: If the model has no Poisson prior, or `encoder` no `out_features`.
        ValueError: As in `Counts`.

    References:
        Vafaii, Galor, Yates (2024), Poisson Variational Autoencoder, arXiv:2405.14473.

    Example:
        >>> from pyro import poutine
        >>> from ppvae.models import PoissonVAE
        >>> from ppvae.networks import MLP
        >>> model = PoissonVAE(MLP(2, 16, 8), latent_dim=2)
        >>> guide = Poisson(MLP(8, 16), model)
        >>> poutine.trace(guide).get_trace(torch.rand(5, 8)).nodes["z"]["value"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        encoder: Encoder,
        model: Rates,
        *,
        bias: bool = True,
        activation: nn.Module | None = None,
        **kwargs,
    ) -> None:
        super().__init__(model, **kwargs)
        self.activation = activation_after(encoder, activation)
        self.encoder = encoder
        self.head = nn.Linear(encoder.out_features, model.latent_dim, bias=bias)
        nn.init.normal_(self.head.weight, std=0.05)
        if bias:
            nn.init.zeros_(self.head.bias)

    def log_gain(self, batch: Tensor) -> Tensor:
        """Return the head's outputs, (N, K)."""
        return self.head(self.activation(self.encoder(batch)))
