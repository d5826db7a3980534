"""Probabilistic PCA with a free mean: the model whose posterior and evidence are known exactly."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae.protocols import DATA_PLATE

__all__ = ["LinearGaussian"]


class LinearGaussian(nn.Module):
    """A linear decoder with Gaussian noise, the yardstick of tests and teaching.

        z ~ N(0, I_D),  x | z ~ N(W z + b, s^2 I_F)
        ln p(x) = ln N(x; b, W W' + s^2 I)
        p(z | x) = N(z; S W' (x - b) / s^2, S),  S = (I + W' W / s^2)^-1

    Args:
        weight: W, (F, D), in units of x per unit of z.
        bias: b, (F,), in units of x; zero by default.
        scale: s, the standard deviation of the noise, in units of x.

    Sites:
        z: (N, D) the latent.
        x: (N, F) the data, observed.

    Raises:
        ValueError: If `weight` is no matrix or `scale` is not positive.

    References:
        Tipping, Bishop (1999), Probabilistic principal component analysis, equations 5 to 8.

    Example:
        >>> model = LinearGaussian(torch.tensor([[1.0]]))
        >>> model.log_evidence(torch.zeros(1, 1))  # ln N(0; 0, 2)
        tensor([-1.2655], grad_fn=<ToCopyBackward0>)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, scale: float = 1.0) -> None:
        super().__init__()
        if weight.ndim != 2 or scale <= 0:
            raise ValueError(
                f"LinearGaussian needs a matrix W and a positive scale, but got a weight of shape "
                f"{tuple(weight.shape)} and scale {scale}"
            )
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(weight.new_zeros(len(weight)) if bias is None else bias.clone())
        self.log_scale = nn.Parameter(weight.new_tensor(scale).log())

    def forward(self, batch: Tensor) -> None:
        """Sample z ~ p(z), and observe x at the batch `(N, F)`."""
        with pyro.plate(DATA_PLATE, len(batch), dim=-1):
            z = pyro.sample("z", self._prior())
            mean = z @ self.weight.mT + self.bias  # (..., N, F)
            pyro.sample("x", dist.Normal(mean, self.log_scale.exp()).to_event(1), obs=batch)

    def _prior(self) -> dist.Independent:
        zeros = torch.zeros_like(self.weight[0])
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    def log_evidence(self, batch: Tensor) -> Tensor:
        """Return ln p(x), `(N,)` in nats, of the batch's type, computed in double precision."""
        weight, bias, variance = self._doubles()
        noise = variance * torch.eye(len(weight)).to(weight)
        covariance = weight @ weight.mT + noise
        found = dist.MultivariateNormal(bias, covariance_matrix=covariance).log_prob(
            batch.double()
        )
        return found.to(self.weight)

    def posterior(self, batch: Tensor) -> dist.MultivariateNormal:
        """Return p(z|x), of batch shape (N,) and event shape (D,), computed likewise."""
        weight, bias, variance = self._doubles()
        precision = torch.eye(weight.shape[1]).to(weight) + weight.mT @ weight / variance
        mean = torch.linalg.solve(precision, weight.mT @ (batch.double() - bias).mT / variance)
        exact = dist.MultivariateNormal(mean.mT, precision_matrix=precision)
        return dist.MultivariateNormal(
            exact.loc.to(self.weight), scale_tril=exact.scale_tril.to(self.weight)
        )

    def _doubles(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, b and s^2: where s is small, single precision cannot invert what they make."""
        return self.weight.double(), self.bias.double(), (2 * self.log_scale.double()).exp()
