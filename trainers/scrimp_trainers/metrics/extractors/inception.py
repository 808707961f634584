"""Inception-v3 as torch-fidelity has it: FID, KID and the inception score mean this network and nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING

from scrimp_trainers.metrics.extractors.extractor import ExtractorFacts, PublishedWeights

if TYPE_CHECKING:  # importing it takes seconds
    from torch.nn import Module

FACTS = ExtractorFacts(layer="2048", logits=True, score_names={"fd": "fid", "kd": "kid"})


def source() -> PublishedWeights:
    """Return where its weights are published."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return PublishedWeights(URL_INCEPTION_V3)


def build(path: Path) -> "Module":
    """Return the network of a weight file."""
    from torch_fidelity import FeatureExtractorInceptionV3

    from scrimp_trainers.metrics.weight_files import rewritten

    layers = [FACTS.layer, "logits_unbiased"]
    return FeatureExtractorInceptionV3("inception-v3-compat", layers, rewritten(path))
