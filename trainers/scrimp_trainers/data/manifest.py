"""`dataset.json`: what a prepared dataset holds, and the hashes that identify it."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe.recipe import explain

MANIFEST_FILE = "dataset.json"
FILE_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"
"""Files lie in the dataset's folder itself."""
LONGEST_NAME = 100
LARGEST_SIZE = 4096
LONGEST_MESSAGE = 300
RESIDENT = 2 * 2**30
"""Training images of at most so many bytes are kept in memory; larger datasets are streamed from their shards."""
SplitName = Literal["train", "holdout", "reference"]


class ManifestModel(BaseModel):
    """A part of the manifest: frozen, and closed to fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Shard(ManifestModel):
    """One WebDataset tar file."""

    file: str = Field(pattern=FILE_NAME)
    """Name inside the dataset's folder."""
    count: int = Field(ge=1)
    """Images in it."""
    sha256: str
    """Hash of the file."""


class Split(ManifestModel):
    """A set of images. Training and held-out ones are disjoint; a reference set may hold both."""

    count: int = Field(ge=1)
    """Images in it."""
    per_class: list[Annotated[int, Field(ge=0)]] | None
    """Images of each class, in the order of `Manifest.classes`; none without labels."""
    shards: list[Shard]
    """Its shards, in order."""


class Classifier(ManifestModel):
    """The small CNN that was trained on the labels, a feature extractor for scores."""

    file: str = Field(pattern=FILE_NAME)
    """Its safetensors file inside the dataset's folder."""
    sha256: str
    """Hash of the file."""
    accuracy: float
    """Share of held-out images that it classifies correctly."""
    baseline: float = 0.0
    """Share of held-out images that are of the largest class."""
    better_than_chance: bool = True
    """Whether a classifier that always names the largest class would be as good with a probability below 5%."""
    usable: bool = True
    """Whether scores may use it: if it is better than chance, or `scrimp prepare --classifier` asked for it."""
    seed: int
    """Seed of its training."""


class Summary(ManifestModel):
    """What `scrimp prepare` understood of its sources."""

    images: int = 0
    """Images in them."""
    skipped: dict[str, int] = {}
    """Files that were not taken as images, by reason."""
    bad: list[str] = []
    """Images that could not be used, each with the reason."""
    notes: list[str] = []
    """What else its reader noticed."""
    sizes: dict[str, int] = {}
    """Images of each size (width x height) as they were, the most frequent ones."""
    other_sizes: int = 0
    """Images of other sizes."""
    cropped: int = 0
    """Images that were not square."""
    resized: int = 0
    """Images whose square was resized."""
    brightest_of_16_bits: int | None = None
    """Largest value, of 255, after 16 bits were scaled to 8; none if no image had 16."""
    near_limit: float = 0
    """Largest mean absolute difference of images that count as near."""
    equal: int = 0
    """Images that equal an earlier one."""
    near: int = 0
    """Images that nearly equal others: in a pair one counts."""
    largest_group: int = 1
    """Images in the largest group of those that repeat each other."""
    beside_test: int = 0
    """Training images left out because they repeat one of the source's own test images."""


class Manifest(ManifestModel):
    """Everything about a dataset but its pixels."""

    schema_version: Literal[1] = 1
    """Version of this format."""
    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    """Name in experiments and reports."""
    content_hash: str
    """SHA-256 over every split's keys, classes and pixels: equal hashes mean equal data."""
    size: int = Field(ge=1, le=LARGEST_SIZE)
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
    summary: Summary = Summary()
    """What was understood of the sources."""
    provenance: dict[str, str | int | float | bool | None]
    """Source and options that made the dataset."""

    @property
    def train_bytes(self) -> int:
        """Size of the training images in memory, as uint8."""
        return self.splits["train"].count * self.channels * self.size**2

    def to_json(self) -> str:
        """Return the text of `dataset.json`."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def load_manifest(folder: Path) -> Manifest:
    """Read a dataset's manifest.

    Raises
    ------
    UserError
        If the folder is not a dataset, or one that this version cannot read.
    """
    file = folder / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder}: not a dataset (no {MANIFEST_FILE}); make one with `scrimp prepare SOURCE {folder}`"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        why = explain(error)
        why = why if len(why) <= LONGEST_MESSAGE else f"{why[:LONGEST_MESSAGE]}..."
        raise UserError(f"{file}: {why}; prepare the dataset again") from None
    wrong = _contradiction(manifest)
    if wrong:
        raise UserError(f"{file}: {wrong}; prepare the dataset again")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    """Say in what a manifest contradicts itself."""
    for name in ("train", manifest.reference):
        if name not in manifest.splits:
            return f"splits: there is no split {name}"
    for name, split in manifest.splits.items():
        held = sum(shard.count for shard in split.shards)
        if held != split.count:
            return f"splits.{name}.count: is {split.count:,}, but the shards hold {held:,}"
        if split.per_class is None:
            continue
        if len(split.per_class) != len(manifest.classes or []):
            return (
                f"splits.{name}.per_class: has {len(split.per_class)} classes, `classes` {len(manifest.classes or [])}"
            )
        if sum(split.per_class) != split.count:
            return f"splits.{name}.per_class: adds up to {sum(split.per_class):,}, but count is {split.count:,}"
    return None
