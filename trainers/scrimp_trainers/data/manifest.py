"""`dataset.json`: what a prepared dataset holds, and the hashes that identify it."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from scrimp_trainers.errors import UserError
from scrimp_trainers.recipe import explain

FILE = "dataset.json"
SplitName = Literal["train", "holdout", "reference"]


class Part(BaseModel):
    """A part of the manifest: frozen, and closed to fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Shard(Part):
    """One WebDataset tar file."""

    file: str
    """Name inside the dataset's folder."""
    count: int
    """Images in it."""
    sha256: str
    """Hash of the file."""


class Split(Part):
    """A set of images. Training and held-out ones are disjoint; a reference set may hold both."""

    count: int
    """Images in it."""
    per_class: list[int] | None
    """Images of each class, in the order of `Manifest.classes`; none without labels."""
    shards: list[Shard]
    """Its shards, in order."""


class Classifier(Part):
    """The small CNN that was trained on the labels, a feature extractor for scores."""

    file: str
    """Its safetensors file inside the dataset's folder."""
    sha256: str
    """Hash of the file."""
    accuracy: float
    """Share of held-out images that it classifies correctly."""
    seed: int
    """Seed of its training."""


class Manifest(Part):
    """Everything about a dataset but its pixels."""

    schema_version: Literal[1] = 1
    """Version of this format."""
    name: str
    """Name in experiments and reports."""
    content_hash: str
    """SHA-256 over every split's keys, classes and pixels: equal hashes mean equal data."""
    size: int
    """Height and width of the images, in pixels."""
    channels: Literal[1, 3]
    """Grey or RGB."""
    classes: list[str] | None
    """Names of the classes 0, 1, ...; none without labels."""
    splits: dict[SplitName, Split]
    """Training images, held-out images (never shown to a model), and the reference set where that is another."""
    reference: Literal["train", "reference"]
    """The split that scores compare with: LD-Diffusion's case 2 (train) or case 1 (the set it was taken from)."""
    classifier: Classifier | None = None
    """The dataset's own feature extractor, if one was trained."""
    provenance: dict[str, str | int | float | bool | None]
    """Source and options that made the dataset."""

    def to_json(self) -> str:
        """Return the text of `dataset.json`."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def load(folder: Path) -> Manifest:
    """Read a dataset's manifest.

    Raises
    ------
    UserError
        If the folder is not a dataset, or one that this version cannot read.
    """
    try:
        return Manifest.model_validate_json((folder / FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder}: not a dataset (no {FILE}); make one with `scrimp prepare SOURCE {folder}`"
        ) from None
    except ValidationError as error:
        raise UserError(f"{folder / FILE}: {explain(error)}; prepare the dataset again") from None
