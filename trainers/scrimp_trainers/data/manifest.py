"""`dataset.json`: the content of a prepared dataset, and the hashes that identify it."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from scrimp_trainers.common.errors import UserError, printable
from scrimp_trainers.common.files import read_regular
from scrimp_trainers.recipe.recipe import explain

MANIFEST_FILE = "dataset.json"
FILE_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"
"""Names of files, which are in the dataset's folder itself and not in subfolders."""
MAX_NAME_LENGTH = 100
MAX_SIZE = 4096
MAX_MESSAGE_LENGTH = 300
RESIDENT = 2 * 2**30
"""Training items of at most this many bytes are kept in memory; larger datasets are streamed from their shards."""
SplitName = Literal["train", "holdout", "reference"]


def _require_printable(text: str) -> str:
    if printable(text) != text:
        raise ValueError("has control characters, which could steer a terminal")
    return text


PlainText = Annotated[str, AfterValidator(_require_printable)]
CAPTIONED = "captioned"
"""The modality of images with captions beside them."""


class ManifestModel(BaseModel):
    """Base of the manifest's models: frozen, and unknown fields are errors."""

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
    """A set of images. Training and held-out images are disjoint; a reference set may contain both."""

    count: int = Field(ge=1)
    """Images in it."""
    per_class: list[Annotated[int, Field(ge=0)]] | None
    """Images of each class, in the order of `Manifest.classes`; None without labels."""
    shards: list[Shard]
    """Its shards, in order."""


class ClassifierRecord(ManifestModel):
    """The small CNN trained on the labels, a feature extractor for scores."""

    file: str = Field(pattern=FILE_NAME)
    """Its safetensors file inside the dataset's folder."""
    sha256: str
    """Hash of the file."""
    accuracy: float
    """Fraction of held-out images that it classifies correctly."""
    baseline: float = 0.0
    """Fraction of held-out images that are of the largest class."""
    better_than_chance: bool = True
    """Whether always predicting the largest class would reach this accuracy with a probability below 5%."""
    usable: bool = True
    """Whether scores may use it: it is better than chance, or `scrimp prepare --classifier` asked for it."""
    seed: int
    """Seed of its training."""


class EncoderRecord(ManifestModel):
    """The small CNN trained without labels, a feature extractor for scores."""

    file: str = Field(pattern=FILE_NAME)
    """Its safetensors file inside the dataset's folder."""
    sha256: str
    """Hash of the file."""
    degradations: dict[str, float]
    """Of each known degradation, how many times as far from the training images the degraded held-out images are as the
    held-out images themselves: a ratio of Fréchet distances."""
    seed: int
    """Seed of its training."""

    @property
    def unseen(self) -> list[str]:
        """The degradations that it takes for no change, or for an improvement."""
        return [name for name, ratio in self.degradations.items() if ratio <= 1]


class SourceSummary(ManifestModel):
    """What `scrimp prepare` read from its sources."""

    images: int = 0
    """Images in them."""
    skipped: dict[str, int] = {}
    """Files that were not read as images, by reason."""
    bad: list[str] = []
    """Images that cannot be used, each with the reason."""
    notes: list[str] = []
    """Other remarks of the reader."""
    sizes: dict[str, int] = {}
    """Number of images of each original size (width x height), for the most frequent sizes."""
    other_sizes: int = 0
    """Images of other sizes."""
    cropped: int = 0
    """Images that were not square."""
    resized: int = 0
    """Images whose square was resized."""
    brightest_of_16_bits: int | None = None
    """Largest value, of 255, after scaling 16 bits to 8; None if no image had 16 bits."""
    near_limit: float = 0
    """Largest mean absolute difference of images that count as near."""
    equal: int = 0
    """Images that equal an earlier one."""
    near: int = 0
    """Images that nearly equal others: in a pair one is counted."""
    largest_group: int = 1
    """Images in the largest group of duplicates."""
    beside_test: int = 0
    """Training images left out because they duplicate one of the source's own test images."""


class Manifest(ManifestModel):
    """Everything about a dataset except its pixels."""

    schema_version: Literal[1] = 1
    """Version of this format."""
    modality: str = "images"
    """What the items are: a kind of `data/modalities/`, or a user's own."""
    name: PlainText = Field(min_length=1, max_length=MAX_NAME_LENGTH)
    """Name in experiments and reports."""
    content_hash: str
    """SHA-256 over every split's keys, classes and pixels: equal hashes mean equal data."""
    size: int = Field(ge=1, le=MAX_SIZE)
    """Height and width of the images, in pixels; of drawings, the points of the longest after its first."""
    channels: int = Field(ge=1)
    """1 for grey images, 3 for RGB and for the points of drawings."""
    lengths: list[Annotated[int, Field(ge=0)]] | None = None
    """How many training items have 0, 1, ... and up to `size` points; None for items of one size."""
    classes: list[PlainText] | None
    """Names of the classes 0, 1, ...; None without labels."""
    splits: dict[SplitName, Split]
    """Training images, held-out images (never trained on), and the reference set if it is another one."""
    reference: Literal["train", "reference"]
    """The split that scores compare with: LD-Diffusion's case 2 (train) or case 1 (the full set it came from)."""
    classifier: ClassifierRecord | None = None
    """The dataset's own feature extractor, if it has labels and one was trained."""
    encoder: EncoderRecord | None = None
    """The same of a dataset without labels."""
    summary: SourceSummary = SourceSummary()
    """What `scrimp prepare` read from the sources."""
    provenance: dict[str, str | int | float | bool | None]
    """Source and options from which the dataset was made."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the items are: their modality; and images, if these have captions besides."""
        return (CAPTIONED, "images") if self.modality == CAPTIONED else (self.modality,)

    @property
    def mean_length(self) -> float | None:
        """Mean length of the training items; None for items of one size."""
        if self.lengths is None:
            return None
        return sum(length * count for length, count in enumerate(self.lengths)) / sum(self.lengths)

    def to_json(self) -> str:
        """Return the text of `dataset.json`."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def load_manifest(folder: Path) -> Manifest:
    """Read a dataset's manifest.

    Raises
    ------
    UserError
        If the folder is not a dataset, or is one that this version cannot read.
    """
    file = folder / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(read_regular(file))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder}: not a dataset (no {MANIFEST_FILE}); make one with `scrimp prepare SOURCE {folder}`"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        reason = explain(error)
        if len(reason) > MAX_MESSAGE_LENGTH:
            reason = f"{reason[:MAX_MESSAGE_LENGTH]}..."
        raise UserError(f"{file}: {reason}; prepare the dataset again") from None

    contradiction = _contradiction(manifest)
    if contradiction:
        raise UserError(f"{file}: {contradiction}; prepare the dataset again")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    """Describe the first contradiction within a manifest; None if there is none."""
    for name in ("train", manifest.reference):
        if name not in manifest.splits:
            return f"splits: there is no split {name}"

    lengths = manifest.lengths
    if lengths is not None and (len(lengths) != manifest.size + 1 or sum(lengths) != manifest.splits["train"].count):
        return "lengths: are not those of the training items"

    classes = len(manifest.classes or [])
    for name, split in manifest.splits.items():
        shard_images = sum(shard.count for shard in split.shards)
        if shard_images != split.count:
            return f"splits.{name}.count: is {split.count:,}, but the shards hold {shard_images:,}"
        if split.per_class is None:
            continue
        if len(split.per_class) != classes:
            return f"splits.{name}.per_class: has {len(split.per_class)} classes, `classes` {classes}"
        if sum(split.per_class) != split.count:
            return f"splits.{name}.per_class: adds up to {sum(split.per_class):,}, but count is {split.count:,}"
    return None
