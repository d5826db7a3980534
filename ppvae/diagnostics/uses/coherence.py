"""What modalities share: generated from one another, do they keep the label?"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ppvae.protocols import Batch, Guide, Model, batch_size, hide, leaves, map_batch, rows_of, seen
from ppvae.weights import evaluating

__all__ = ["Coherence", "coherence", "generate", "given_only"]

ROWS = 500  # data decoded at once


@dataclass(frozen=True)
class Coherence:
    """How often what is generated from one modality has the label of the datum.

    Attributes:
        names: Of the modalities.
        matrix: (M, M) accuracies: given the row's modality, of the column's as generated.
        balanced: (M, M) the means over labels of each label's accuracy: 1 / C by chance for C
            labels, however unevenly the data have them.
    """

    names: tuple[str, ...]
    matrix: Tensor
    balanced: Tensor

    @property
    def off_diagonal(self) -> float:
        """The mean over pairs of different modalities: what is meant by coherence."""
        return _off_diagonal(self.matrix)

    @property
    def balanced_off_diagonal(self) -> float:
        """The same of `balanced`: what always says the commonest label gains nothing by it."""
        return _off_diagonal(self.balanced)

    @property
    def diagonal(self) -> float:
        """The mean over modalities generated from themselves; private latents are drawn anew."""
        return float(self.matrix.diagonal().mean())


def _off_diagonal(matrix: Tensor) -> float:
    return float(matrix[~torch.eye(len(matrix), dtype=torch.bool)].mean())


def coherence(
    model: Model,
    guide: Guide,
    batch: Batch,
    labels: Tensor | None,
    classifiers: Mapping[str, Callable[[Tensor], Tensor]],
) -> Coherence:
    """Return the share of labels kept from each modality to each, at one draw of the latent.

        C_mm' = mean_n [classifier_m'(E[x_m'|z_n]) = label_n],  z_n ~ q(z|x_nm)
        balanced: the same mean over the data of each label, then over labels

    Data that lack the given modality are left out of its row. Compare with the classifiers' own
    accuracy, which is what a perfect model reaches. Random numbers are drawn from torch's global
    generators.

    Args:
        model: With a method `decode`, such as `models.Multimodal` or `models.ModalLatents`.
        guide: With a method `joint`, such as those of the same names.
        batch: Held-out data, (N, ...) by name.
        labels: (N,) integers.
        classifiers: By modality, those of `train_classifier`, or functions from (N, ...) to labels
            (N,).

    Raises:
        ValueError: If there are no labels, or not one for each datum, or a modality lacks its
            classifier or is never seen.
        TypeError: If the model has no `decode` or the guide no `joint`.

    References:
        Shi et al. (2019), Variational Mixture-of-Experts Autoencoders, arXiv:1911.03393.

    Example:
        >>> from ppvae.guides import ModalLatents as Guide
        >>> from ppvae.models import ModalLatents
        >>> from ppvae.networks import MLP
        >>> guide = Guide({"a": MLP(3, 8), "b": MLP(4, 8)}, latent_dim=2)
        >>> model = ModalLatents({"a": MLP(2, 3), "b": MLP(2, 4)}, latent_dim=2, guide=guide)
        >>> batch = {"a": torch.rand(9, 3), "b": torch.rand(9, 4)}
        >>> judges = dict.fromkeys(batch, lambda x: x.argmax(1))
        >>> coherence(model, guide, batch, torch.zeros(9).long(), judges).matrix.shape
        torch.Size([2, 2])
    """
    named, obs = leaves(batch), seen(batch)
    if labels is None:
        raise ValueError(
            "coherence is about labels, and there are none: pass labels, (N,) integers, such as "
            "split.test_labels, or judge unlabeled data by imputation_error"
        )
    if labels.shape != (batch_size(batch),):
        raise ValueError(
            f"labels must be (N,), one for each of {batch_size(batch)} data, but have shape "
            f"{tuple(labels.shape)}"
        )
    if missing := [name for name in named if name not in classifiers]:
        raise ValueError(f"there is no classifier of {missing}: pass one for each modality")
    labels = labels.to(obs.device)
    matrix = torch.empty(len(named), len(named), dtype=torch.float64)
    balanced = matrix.clone()
    for row, name in enumerate(named):
        if not bool((rows := obs[:, row]).any()):
            raise ValueError(f"no datum has the modality {name!r} to generate others from")
        given = map_batch(lambda leaf, rows=rows: leaf[rows], batch)
        generated = generate(model, guide, given, [name])
        for column, other in enumerate(named):
            found = _labels(classifiers[other], generated[other])
            right = (found == labels[rows]).double()
            matrix[row, column] = right.mean()
            balanced[row, column] = _mean_by_label(right, labels[rows])
    return Coherence(tuple(named), matrix, balanced)


def generate(
    model: Model, guide: Guide, batch: Batch, given: Collection[str], *, mean: bool = False
) -> dict[str, Tensor]:
    """Return the means of all modalities' likelihoods at one draw of q(z|x_given), (N, ...) each.

    Args:
        model: As in `coherence`.
        guide: As in `coherence`.
        batch: x, (N, ...) by name; what is not given is not looked at.
        given: The names of the modalities to generate from.
        mean: Whether to decode the mean of q(z|x_given) instead of a draw.

    Raises:
        ValueError: If a given modality is not in the batch.
        TypeError: If the model has no `decode` or the guide no `joint`.

    Example:
        >>> from ppvae.guides import ModalLatents as Guide
        >>> from ppvae.models import ModalLatents
        >>> from ppvae.networks import MLP
        >>> guide = Guide({"a": MLP(3, 8), "b": MLP(4, 8)}, latent_dim=2)
        >>> model = ModalLatents({"a": MLP(2, 3), "b": MLP(2, 4)}, latent_dim=2, guide=guide)
        >>> batch = {"a": torch.rand(9, 3), "b": torch.rand(9, 4)}
        >>> generate(model, guide, batch, ["a"])["b"].shape
        torch.Size([9, 4])
    """
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, batch_size(batch), ROWS):
        q = given_only(guide, rows_of(batch, start, ROWS), given)
        with evaluating(model, guide):
            decode = getattr(model, "decode", None)
            if decode is None:
                raise TypeError(
                    f"{type(model).__name__} has no method decode(z) that returns each modality's "
                    "likelihood: take models.Multimodal or models.ModalLatents"
                )
            for name, p_x in decode(q.mean if mean else q.sample()).items():
                parts.setdefault(name, []).append(p_x.mean)
    return {name: torch.cat(some) for name, some in parts.items()}


def given_only(guide: Guide, batch: Batch, given: Collection[str]) -> dist.TorchDistribution:
    """Return q(z|x_given), batch shape (N,): the guide's `joint` with the others hidden.

    Raises:
        ValueError: If a given modality is not in the batch.
        TypeError: If the guide has no `joint`.

    Example:
        >>> from ppvae.guides import ModalLatents
        >>> from ppvae.networks import MLP
        >>> guide = ModalLatents({"a": MLP(3, 8), "b": MLP(4, 8)}, latent_dim=2)
        >>> batch = {"a": torch.rand(9, 3), "b": torch.rand(9, 4)}
        >>> given_only(guide, batch, ["a"]).mean.shape
        torch.Size([9, 2])
    """
    named = leaves(batch)
    if unknown := [name for name in given if name not in named]:
        raise ValueError(f"the batch has no modality {unknown[0]!r}, but {sorted(named)}")
    if not callable(getattr(guide, "joint", None)):
        raise TypeError(
            f"{type(guide).__name__} has no method joint(batch) that returns q(z|x) of the seen "
            "modalities: take guides.Multimodal or guides.ModalLatents"
        )
    keep = torch.tensor([name in given for name in named], device=seen(batch).device)
    with evaluating(guide):
        return guide.joint(hide(batch, keep))


def _mean_by_label(values: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over labels of values' means, (N,) each."""
    _, places = labels.unique(return_inverse=True)
    sums = torch.zeros(int(places.max()) + 1).to(values).index_add(0, places, values)
    return (sums / places.bincount()).mean()


def _labels(classifier: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    predict = getattr(classifier, "predict", classifier)  # a Classifier called returns features
    with torch.no_grad():
        return torch.cat([predict(some) for some in x.split(ROWS)]).to(x.device)
