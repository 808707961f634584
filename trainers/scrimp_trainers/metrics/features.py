"""Features of images: the extractor that a scoring names, with its weights, behind one small object.

Each extractor is a file in `extractors/`, or a user's own module.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from scrimp_trainers.common import parts, weights
from scrimp_trainers.common.device import float32_products
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.metrics.extractors.extractor import facts
from scrimp_trainers.metrics.names import needs
from scrimp_trainers.metrics.weight_files import sha256, weight_file
from scrimp_trainers.recipe.scoring import Extractor, Scoring


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
    rgb: bool
    """Whether grey images are repeated to RGB for it."""
    device: torch.device
    """Where it runs."""
    text: nn.Module | None = None
    """Maps tokens of captions to features in the same space; none if no score needs it."""

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Extract features in true float32, whatever the precision of training.

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
        if self.rgb:
            images = images.expand(-1, 3, -1, -1)
        with float32_products("fp32"):
            features, *logits = self.network(images)
        return features.float(), logits[0].float() if logits else None

    @torch.no_grad()
    def of_captions(self, tokens: Tensor) -> Tensor:
        """Extract features, float32 [b, d], of captions by their tokens, int64 [b, L]."""
        with float32_products("fp32"):
            return cast(nn.Module, self.text)(tokens.to(self.device)).float()


def open_extractor(scoring: Scoring, folder: Path, manifest: Manifest, device: torch.device) -> FeatureExtractor:
    """Open the extractor that the settings name, for the dataset in `folder`.

    Raises
    ------
    UserError
        If its weights cannot be had, or are not its weights; the line says which file to put where.
    """
    name = scoring.extractor
    part = parts.module("metrics.extractors", name)
    rgb = False
    text = None
    if parts.is_own(name):
        network = part(scoring.weights)
        digest = weights_hash(scoring, manifest)
    elif hasattr(part, "source"):
        path = weight_file(name, scoring.weights)
        digest = sha256(path)
        try:
            network = part.build(path)
            text = part.build_text(path).to(device).eval() if needs(scoring, "CAPTIONS") else None
        except Exception as error:  # a damaged or foreign file fails in a different way in each library
            why = weights.one_line(error)
            raise UserError(f"{path}: not the weights of extractor {name}: {why}") from error
        rgb = True
    else:
        network = part.load(folder, manifest)
        digest = part.digest(manifest)
    network = network.requires_grad_(False).eval().to(device)
    return FeatureExtractor(name, facts(name).layer, digest, network, rgb, device, text)


def weights_hash(scoring: Scoring, manifest: Manifest) -> str:
    """Return the SHA-256 of the weight file that `open_extractor` would read.

    Raises
    ------
    UserError
        If its weights cannot be had.
    """
    name = scoring.extractor
    if parts.is_own(name):
        # The code counts, too: features are cached under this.
        code = parts.digest_of(name)
        return hashlib.sha256((code + (sha256(scoring.weights) if scoring.weights else "")).encode()).hexdigest()
    part = parts.module("metrics.extractors", name)
    return sha256(weight_file(name, scoring.weights)) if hasattr(part, "source") else part.digest(manifest)
