"""What training recorded."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["History"]


class History:
    """What training recorded: one row per epoch, in nats per datum.

    Columns: `epoch`, `loss`, the terms that the objective names, `validation_elbo` where asked for
    (with `validation_bound`, the importance-weighted one, under `IWELBO`; with `validation_loss`,
    the objective's own, under penalties, which the ELBO leaves out; only that for a guide without
    a density, or a prior that reads the data), and `seconds`. With a guide without an entropy, as
    `guides.Langevin` is trained, there are `q`, the loss with its sign turned, and `validation_q`
    instead of an ELBO, and `cross_entropy`, -E[log p(z)], instead of the KL: Q = E[log p(x, z)]
    bounds nothing, and may rise as the model gets worse.

    Example:
        >>> history = History([{"epoch": 1, "loss": 3.0, "seconds": 0.1}])
        >>> history["loss"]
        [3.0]
    """

    def __init__(self, records: list[dict[str, float]]) -> None:
        self.records = records

    def __len__(self) -> int:
        """The number of epochs."""
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Yield the records."""
        return iter(self.records)

    def __getitem__(self, column: str) -> list[float]:
        """Return a column by name."""
        return [record[column] for record in self.records]

    @property
    def frame(self) -> "pd.DataFrame":
        """The records as a DataFrame, indexed by epoch."""
        import pandas as pd

        return pd.DataFrame(self.records).set_index("epoch")

    def _repr_html_(self) -> str:
        return self.frame._repr_html_() if self.records else "History of no epochs"

    def __repr__(self) -> str:
        return f"History of {len(self)} epochs" + (f", last {self.records[-1]}" if self else "")
