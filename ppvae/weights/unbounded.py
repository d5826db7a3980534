"""Log weights whose mean bounds no evidence, since the prior has seen the data."""

from collections.abc import Callable

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppvae.pairing import WeightlessError

__all__ = ["Unbounded", "require_evidence"]


class Unbounded(Tensor):
    """Log weights under a prior that reads the data, and whatever is computed of them.

    With p(z) made of x, the integral of p(x|z) p(z) over z is no density of x. Numbers like any
    others, but `evidence` refuses them, and says the reason.

    Example:
        >>> log_w = Unbounded.marked(torch.zeros(3, 2), "the prior is a mixture of posteriors")
        >>> log_w[:, :1].double().reason
        'the prior is a mixture of posteriors'
    """

    reason: str = ""
    note: str = ""  # what the evidence lacks, where the model is unnormalized

    @classmethod
    def marked(cls, log_w: Tensor, reason: str, note: str = "") -> Tensor:
        """Return log weights with their reason and note, or as they are where there is none."""
        if not (reason or note):
            return log_w
        marked = log_w.as_subclass(cls)
        marked.reason, marked.note = reason, note
        return marked

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = super().__torch_function__(func, types, args, kwargs or {})
        marked = [t for t in tree_leaves((args, kwargs)) if isinstance(t, cls)]
        for leaf in tree_leaves(out):
            if isinstance(leaf, cls):
                leaf.reason = next((t.reason for t in marked if t.reason), "")
                leaf.note = next((t.note for t in marked if t.note), "")
        return out


def require_evidence(log_w: Tensor) -> None:
    """Raise if log weights bound no evidence.

    Raises:
        WeightlessError: If the model's prior reads the data, with the reason.

    Example:
        >>> require_evidence(torch.zeros(3, 2))
    """
    if reason := getattr(log_w, "reason", ""):
        raise WeightlessError(
            f"these log weights bound no evidence: {reason}. Their mean is the objective, never "
            "to be compared with ln p(x): judge the pair by its reconstructions and by coherence, "
            "or train it with guide=None, whose evidence is one"
        )
