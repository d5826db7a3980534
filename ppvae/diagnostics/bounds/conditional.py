"""The evidence of some modalities, alone or given others, whatever is missing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ppvae.diagnostics.bounds.importance import Evidence, evidence
from ppvae.protocols import Batch, Guide, Model, hide, leaves, seen
from ppvae.weights import CHUNK, log_weights

__all__ = ["conditional_evidence"]

Subset = Sequence[str] | Tensor


def conditional_evidence(
    model: Model,
    guide: Guide,
    batch: Batch,
    of: Subset | None = None,
    given: Subset = (),
    *,
    num_particles: int = 1000,
    chunk_size: int = CHUNK,
) -> Evidence:
    """Estimate ln p(x_C | x_S) of each datum by importance sampling, in nats.

        ln p(x_C|x_S) = ln p(x_C, x_S) - ln p(x_S),  each by draws of q(z|.) given as much

    With no S it is the marginal evidence of C, and with no C named either the joint one. A
    modality that is missing from a datum is in neither, and of nothing the evidence is exactly 0.
    Either estimate is biased low, so that the difference is no bound; its standard error counts
    both. What `evidence` says of trust holds for both as well: look at `pareto_k` of `log_weights`
    with the rest hidden.

    Args:
        model: Samples p(x, z), and masks what is missing.
        guide: Samples q(z | x_S) for any subset, such as `guides.Multimodal`.
        batch: x, `(N, ...)` by modality, NaN in missing rows.
        of: C: names, or booleans `(M,)` or `(N, M)` in the batch's order; all that is not given,
            by default.
        given: S, likewise.
        num_particles: The number K of draws per datum, at least 2, for each of the two.
        chunk_size: As in `log_weights`.

    Raises:
        WeightlessError: If the guide has no density, in words.
        ValueError: If a name is unknown, C and S share a modality, or as in `hide`.

    Example:
        >>> from ppvae.guides import Exact
        >>> from ppvae.models import Multimodal
        >>> model = Multimodal({"a": nn.Linear(1, 2), "b": nn.Linear(1, 3)}, latent_dim=1)
        >>> batch = {"a": torch.zeros(5, 2), "b": torch.full((5, 3), torch.nan)}
        >>> found = conditional_evidence(model, Exact(model), batch, of=["b"], given=["a"])
        >>> found.log_evidence  # of b nothing is seen
        tensor([0., 0., 0., 0., 0.], dtype=torch.float64)
    """
    there, names = seen(batch), list(leaves(batch))
    condition = _booleans("given", given, names, there)
    target = ~condition if of is None else _booleans("of", of, names, there)
    if bool((target & condition).any()):
        both = [n for n, on in zip(names, (target & condition).any(0).tolist(), strict=True) if on]
        raise ValueError(f"the modalities {both} are both in of and in given: leave them in one")

    def estimate(keep: Tensor) -> Tensor:  # evidence, squared error, bias, variance: (4, N)
        some = (keep & there).any(1)
        if not bool(some.any()):
            return torch.zeros(4, 1, dtype=torch.float64, device=there.device)
        log_w = log_weights(model, guide, hide(batch, keep), num_particles, chunk_size=chunk_size)
        found = evidence(log_w)
        square = found.standard_error.square()
        parts = torch.stack([found.log_evidence, square, found.bias, found.variance])
        return torch.where(some, parts, 0.0)

    joint, marginal = estimate(target | condition), estimate(condition)
    signs = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]).to(joint)
    asked = (target & there).any(1)
    found, square, bias, variance = torch.where(asked, joint + signs * marginal, 0.0)
    return Evidence(found, square.sqrt(), num_particles, bias, variance)


def _booleans(argument: str, subset: Subset, names: list[str], there: Tensor) -> Tensor:
    """Return a subset as booleans, (N, M)."""
    if not isinstance(subset, Tensor):
        subset = [subset] if isinstance(subset, str) else list(subset)
        if unknown := [name for name in subset if name not in names]:
            raise ValueError(
                f"{argument} names {unknown}, but the batch has the modalities {names}"
            )
        subset = torch.tensor([name in subset for name in names], device=there.device)
    if subset.dtype != torch.bool or subset.shape not in (there.shape, there.shape[1:]):
        raise ValueError(
            f"{argument} must be names, or booleans of shape (M,) or (N, M) = "
            f"{tuple(there.shape)}, but is {subset.dtype} of shape {tuple(subset.shape)}"
        )
    return subset.expand(there.shape)
