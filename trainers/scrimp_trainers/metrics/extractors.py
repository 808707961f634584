"""Feature extractors: torch-fidelity's networks, ResNet-18, the dataset's own classifier, behind one small object.

A weight file is looked for where the setting says, then in torch's hub cache, and then it is downloaded. Files are read
without unpickling; what torch-fidelity would unpickle itself it gets from us, written anew from what was read safely.
TorchScript can run code, so of that form only CLIP's published file is accepted, by its hash.
"""

import hashlib
import io
import pickle
import re
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.hub
import torch.nn.functional as F
from torch import Tensor, nn

from scrimp_trainers.common import parts, weights
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics import dinov2
from scrimp_trainers.metrics.classifier import load_classifier
from scrimp_trainers.recipe.scoring import Extractor, Scoring

TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class FeatureExtractor:
    """A frozen network that turns images into features."""

    name: Extractor
    """Which one."""
    layer: str
    """The layer whose activations the features are."""
    weights: str
    """SHA-256 of the weight file."""
    network: nn.Module
    """Maps uint8 images to a tuple of features and, if it has classes, logits."""
    device: torch.device
    """Where it runs."""

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Extract features.

        Parameters
        ----------
        images
            uint8 [b, 1 or 3, H, W]; grey is repeated to RGB for the networks that expect it.

        Returns
        -------
        tuple
            float32 features [b, d], and logits [b, classes] where the network has classes.
        """
        images = images.to(self.device)
        if self.name != "classifier" and not parts.is_own(self.name):
            images = images.expand(-1, 3, -1, -1)
        features, *logits = self.network(images)
        return features.float(), logits[0].float() if logits else None


def open_extractor(scoring: Scoring, folder: Path, manifest: Manifest, device: torch.device) -> FeatureExtractor:
    """Open the extractor that the settings name, for the dataset in `folder`.

    Raises
    ------
    UserError
        If its weights cannot be had, or are not its weights; the line says which file to put where.
    """
    if scoring.extractor == "classifier":
        network = load_classifier(folder, manifest)
        layer = "features"
        digest = weights_hash(scoring, manifest)
    elif parts.is_own(scoring.extractor):
        network = parts.own(scoring.extractor)(scoring.weights)
        layer = "features"
        digest = weights_hash(scoring, manifest)
    else:
        path = weight_file(scoring.extractor, scoring.weights)
        digest = _sha256(path)
        try:
            network, layer = _BUILD[scoring.extractor](path)
        except Exception as error:  # a damaged or foreign file fails in a different way in each library
            why = weights.one_line(error)
            raise UserError(f"{path}: not the weights of extractor {scoring.extractor}: {why}") from error
    network = network.requires_grad_(False).eval().to(device)
    return FeatureExtractor(scoring.extractor, layer, digest, network, device)


def weights_hash(scoring: Scoring, manifest: Manifest) -> str:
    """Return the SHA-256 of the weight file that `open_extractor` would read.

    Raises
    ------
    UserError
        If its weights cannot be had.
    """
    if scoring.extractor == "classifier":
        return manifest.classifier.sha256 if manifest.classifier else ""
    if parts.is_own(scoring.extractor):
        # The code counts, too: features are cached under this.
        code = parts.digest_of(scoring.extractor)
        return hashlib.sha256((code + (_sha256(scoring.weights) if scoring.weights else "")).encode()).hexdigest()
    return _sha256(weight_file(scoring.extractor, scoring.weights))


def weight_file(extractor: Extractor, setting: Path | None) -> Path:
    """Find an extractor's weight file: the setting, torch's hub cache, a download into that cache.

    Raises
    ------
    UserError
        If there is none, or the cached one is damaged.
    """
    if setting is not None:
        if not setting.is_file():
            raise UserError(f"weights {setting}: no such file; it must hold the weights of extractor {extractor}")
        return setting
    url, name = source(extractor)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / name
    prefix = published_hash(name)
    if path.is_file():
        if not _sha256(path).startswith(prefix):
            raise UserError(f"{path}: is damaged (its SHA-256 should begin with {prefix}); delete it")
        return path
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix or None, progress=False)
    except (OSError, RuntimeError) as error:  # no network, no such page, a full disk; a wrong hash
        raise UserError(
            f"extractor {extractor}: its weights could not be downloaded ({error}); "
            f"put {name} into {folder}, or name the file with `weights`"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def source(extractor: Extractor) -> tuple[str, str]:
    """Where an extractor's weights are published, and their file name in torch's hub cache."""
    if extractor == "inception":
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        url = URL_INCEPTION_V3
    elif extractor == "vgg16":
        from torchvision.models import VGG16_Weights

        url = VGG16_Weights.IMAGENET1K_V1.url
    elif extractor == "resnet18":
        from torchvision.models import ResNet18_Weights

        url = ResNet18_Weights.IMAGENET1K_V1.url
    elif extractor == "clip":
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS

        return MODEL_URLS["clip-vit-b-32"], f"clip-vit-b-32-{MODEL_METADATA['clip-vit-b-32']['hash']}.pt"
    else:
        size = {"dinov2": "vitl14", "vitg14": "vitg14"}[extractor]
        url = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_{size}/dinov2_{size}_pretrain.pth"
    return url, url.rpartition("/")[2]


def published_hash(name: str) -> str:
    """Return the beginning of a file's SHA-256 that its name states; empty if it states none."""
    found = re.search(r"-([0-9a-f]{8,})\.pth?$", name)
    return found[1] if found else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors. torch's own errors advise to load what it has refused, code and all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a file is a TorchScript archive
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError("damaged, or more than tensors, which could run code") from None
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise
        raise UserError("TorchScript, which can run code; save the tensors alone, as a state dict") from None


def _rewritten(path: Path) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(_state(path), buffer)
    buffer.seek(0)
    return buffer


def _inception(path: Path) -> tuple[nn.Module, str]:
    from torch_fidelity import FeatureExtractorInceptionV3

    layers = ["2048", "logits_unbiased"]
    return FeatureExtractorInceptionV3("inception-v3-compat", layers, _rewritten(path)), "2048"


def _vgg16(path: Path) -> tuple[nn.Module, str]:
    from torch_fidelity import FeatureExtractorVGG16

    return FeatureExtractorVGG16("vgg16", ["fc2_relu"], _rewritten(path)), "fc2_relu"


def _clip(path: Path) -> tuple[nn.Module, str]:
    from torch_fidelity import FeatureExtractorCLIP
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.feature_extractor_clip import build_model

    # torch-fidelity's own __init__ runs whatever TorchScript the file holds; the rest of its class is used as it is.
    extractor = FeatureExtractorCLIP.__new__(FeatureExtractorCLIP)
    FeatureExtractorBase.__init__(extractor, "clip-vit-b-32", ["clip"])
    extractor.feature_extractor_internal_dtype = torch.float32
    extractor.model = build_model(_clip_state(path), torch.float32)
    extractor.resolution = extractor.model.visual.input_resolution
    return extractor, "clip"


def _clip_state(path: Path) -> dict[str, Tensor]:
    """Read CLIP's tensors. To load a TorchScript archive is to run its code, so only the published one is accepted."""
    content = path.read_bytes()  # what is loaded is what was hashed
    if hashlib.sha256(content).hexdigest() == published_hash(source("clip")[1]):
        return dict(torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict())
    return _state(path)


def _dinov2(path: Path) -> tuple[nn.Module, str]:
    from torch_fidelity import FeatureExtractorDinoV2
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    # torch-fidelity's own __init__ runs code from GitHub; the rest of its class (resize, normalise) is used as it is.
    extractor = FeatureExtractorDinoV2.__new__(FeatureExtractorDinoV2)
    FeatureExtractorBase.__init__(extractor, "dinov2-vit-l-14", ["dinov2"])
    extractor.feature_extractor_internal_dtype = torch.float32
    extractor.model = dinov2.from_state(_state(path))
    return extractor, "dinov2"


class _ViTg14(nn.Module):
    """DINOv2's ViT-g/14 as the code of Shah et al. (2025) asks it: for images in [0, 1] of their own size."""

    def __init__(self, network: dinov2.VisionTransformer) -> None:
        super().__init__()
        self.body = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map uint8 images [b, 3, H, W] to features [b, 1536]."""
        return (self.body(reflected(images / 255, self.body.patch)),)


def reflected(images: Tensor, multiple: int) -> Tensor:
    """Reflect images [b, C, H, W] at their borders, so that their sides are multiples of a number.

    An odd remainder is at the bottom and at the right.
    """
    height, width = (-side % multiple for side in images.shape[-2:])
    left = width // 2
    top = height // 2
    return F.pad(images, (left, width - left, top, height - top), mode="reflect")


def _vitg14(path: Path) -> tuple[nn.Module, str]:
    return _ViTg14(dinov2.from_state(_state(path))), "class_token"


class _ResNet18(nn.Module):
    """torchvision's ResNet-18 up to its pooled features, with the resize and the colours that it was trained on."""

    mean: Tensor
    std: Tensor

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.body = resnet18()
        self.body.load_state_dict(state)
        self.body.fc = nn.Identity()  # type: ignore[assignment]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map uint8 images [b, 3, H, W] to features [b, 512]."""
        x = F.interpolate(images.float() / 255, size=(224, 224), mode="bilinear", antialias=True)
        return (self.body((x - self.mean) / self.std),)


def _resnet18(path: Path) -> tuple[nn.Module, str]:
    return _ResNet18(_state(path)), "avgpool"


_BUILD = {
    "inception": _inception,
    "vgg16": _vgg16,
    "clip": _clip,
    "dinov2": _dinov2,
    "vitg14": _vitg14,
    "resnet18": _resnet18,
}
