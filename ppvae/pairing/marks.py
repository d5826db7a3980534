"""What a site, or a whole model, says of its own density: one mark, with one reader each."""

from dataclasses import dataclass, fields

from ppvae.protocols import Model, modules_of

__all__ = ["Claims", "Mark"]


@dataclass(frozen=True)
class Mark:
    """What a site says in its `infer`, under these names.

    Attributes:
        weightless: Why its draws have no density to be weighed with.
        conditional: On which random numbers, drawn on the way, its density depends: it has
            weights, but no density at given points.
        relaxed: Whether its draws leave the prior's support in training, though not in evaluation.
        q_function: Whether it stands for draws of the posterior, with which the ELBO is
            Q = E[log p(x, z)] and bounds nothing.
        is_auxiliary: Whether only the guide needs it.

    Example:
        >>> Mark.of({"infer": {"weightless": "it is a chain's end"}}).weightless
        "it is a chain's end"
    """

    weightless: str = ""
    conditional: str = ""
    relaxed: bool = False
    q_function: bool = False
    is_auxiliary: bool = False

    @classmethod
    def of(cls, site: dict) -> "Mark":
        """Read the mark of a site of a trace."""
        infer = site["infer"]
        return cls(**{f.name: infer[f.name] for f in fields(cls) if infer.get(f.name)})


@dataclass(frozen=True)
class Claims:
    """What a model says of itself in its attributes, or those of its parts, in words.

    Attributes:
        reads_data: Why its prior depends on the batch: its weights bound no evidence.
        unnormalized: Why its density does not integrate to one: its evidence lacks ln Z.

    Example:
        >>> Claims.of(lambda batch: None)
        Claims(reads_data='', unnormalized='')
    """

    reads_data: str = ""
    unnormalized: str = ""

    @classmethod
    def of(cls, model: Model) -> "Claims":
        """Read the claims of a model."""
        parts = modules_of(model)
        said = {f.name: [getattr(part, f.name, "") for part in parts] for f in fields(cls)}
        return cls(**{name: next(filter(None, words), "") for name, words in said.items()})
