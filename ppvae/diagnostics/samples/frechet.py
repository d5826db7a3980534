"""The Frechet distance between two sets of images in the features of a network, under its name."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ppvae.diagnostics.samples.classifier import Classifier
from ppvae.diagnostics.samples.features import features_of

SIDE = 299  # of Inception's images
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels
CLASSES = {1008: "FID", 1000: "FID (torchvision Inception)"}  # by the size of the last layer

__all__ = ["Distance", "Inception", "frechet_distance"]


@dataclass(frozen=True)
class Distance:
    """A Frechet distance, and what it may be called.

    Attributes:
        name: "FID" for the weights that FID is defined by, "FID-r" for a `Classifier`, or else a
            name that says the features.
        value: The distance, squared as in FID.
    """

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g}"


def frechet_distance(real: Tensor, fake: Tensor, extractor: nn.Module | None = None) -> Distance:
    """Return the Frechet distance between the Normals that have the features' moments.

        |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)),  S with 1/(N - 1)

    By torchmetrics, in float64. Biased upward, by about 1/N: compare at equal N only. The result
    bears its name: FID is what FID's own Inception weights give, and FID-r, in the features of a
    classifier trained here, is to be compared with none but those of the same classifier.

    Args:
        real: Features (N, F), or images if there is an extractor.
        fake: Likewise, (M, F).
        extractor: Maps images to features: `Inception`, `Classifier`, or any module.

    Raises:
        ValueError: If features are not (N, F), or a set has no more than F of them.

    References:
        Heusel et al. (2017), GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500.

    Example:
        >>> x = torch.randn(1000, 2)
        >>> print(frechet_distance(x, x + torch.tensor([3.0, 4.0])))
        Frechet distance 25
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    sets = [features_of(images, extractor).double() for images in (real, fake)]
    if sets[0].shape[1] != sets[1].shape[1]:
        raise ValueError(
            f"real and fake have {sets[0].shape[1]} and {sets[1].shape[1]} features: take both "
            "from one extractor"
        )
    least = sets[0].shape[1] + 1
    if min(map(len, sets)) < least:
        raise ValueError(
            f"frechet_distance of {least - 1} features needs {least} samples of each set, but "
            f"there are {len(sets[0])} real and {len(sets[1])} fake, so that a covariance would "
            "lack rank: give more samples, or an extractor with fewer features"
        )
    as_they_are = nn.Identity()
    as_they_are.num_features = least - 1
    metric = FrechetInceptionDistance(as_they_are).to(sets[0].device)
    center = sets[0].mean(0)  # the distance does not change, and large means would cost digits
    for features, is_real in zip(sets, (True, False), strict=True):
        metric.update(features - center, real=is_real)
    return Distance(
        _name_of(extractor), max(0.0, float(metric.compute()))
    )  # rounding may fall below


class Inception(nn.Module):
    """Inception v3 from a file of weights: 2048 features of images in [0, 1].

    FID is defined by the weights `pt_inception-2015-12-05`, with 1008 classes, whose network is
    torch-fidelity's: it must be installed. Those of torchvision's `inception_v3`, with 1000, give
    another distance, and it is named so. Gray images become RGB; all are resized to 299 x 299.

    Args:
        path: Of the state dict.

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If the weights are those of FID, and torch-fidelity is missing.
        ValueError: If the file holds another network, or what is given is no images.

    References:
        Szegedy et al. (2016), Rethinking the Inception Architecture, arXiv:1512.00567.

    Example:
        >>> Inception("nowhere.pt")
        Traceback (most recent call last):
        FileNotFoundError: no weights at nowhere.pt: ...
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no weights at {path}: download pt_inception-2015-12-05-6726825d.pth, of "
                "torch-fidelity's releases, for FID, or use train_classifier for FID-r"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        last = state.get("fc.weight") if isinstance(state, dict) else None
        if last is None or len(last) not in CLASSES:
            raise ValueError(
                f"{path} holds no Inception v3: its fc.weight should have 1008 rows (FID's) or "
                f"1000 (torchvision's), but is {None if last is None else tuple(last.shape)}"
            )
        self.name = CLASSES[len(last)]
        self.network = (_fidelity if len(last) == 1008 else _torchvision)(path, state)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images in [0, 1], (N, 1 or 3, H, W), to features (N, 2048)."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"Inception takes images (N, 1 or 3, H, W), but these are {tuple(images.shape)}: "
                "reshape them, or load them with flat=False"
            )
        images = images.to(self.mean).expand(-1, 3, -1, -1)
        if self.name == "FID":  # its network resizes and scales, from bytes
            return self.network((images.clamp(0, 1) * 255).byte())[0].flatten(1)
        images = interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.network((images - self.mean) / self.std)


def _fidelity(path: str | Path, state: dict[str, Tensor]) -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "FID's own Inception is torch-fidelity's: pip install torch-fidelity, or pass "
            "torchvision's weights, or use train_classifier for FID-r"
        ) from error
    return FeatureExtractorInceptionV3("inception", ["2048"], str(path))


def _torchvision(path: str | Path, state: dict[str, Tensor]) -> nn.Module:
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, init_weights=False, aux_logits=True)
    network.AuxLogits = None  # not trained here, and some files lack it
    network.load_state_dict({k: v for k, v in state.items() if "AuxLogits" not in k})
    network.fc = nn.Identity()
    return network


def _name_of(extractor: nn.Module | None) -> str:
    if isinstance(extractor, Inception):
        return extractor.name
    if isinstance(extractor, Classifier):
        return "FID-r"
    where = "" if extractor is None else f" in {type(extractor).__name__} features"
    return f"Frechet distance{where}"
