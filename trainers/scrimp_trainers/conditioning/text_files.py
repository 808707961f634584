"""The files of a text encoder and its tokenizer, in the layout of Stable Diffusion. This file imports no torch."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.hub import find_part

TOKENIZER, ENCODER = "tokenizer", "text_encoder"
"""Their folders."""
ENCODER_FILES = ("config.json", "model.safetensors")
TOKENIZER_CONFIG = "tokenizer_config.json"
WORDS = ("vocab.json", "merges.txt")
"""The tokens as Stable Diffusion's folders have them."""
WHOLE = "tokenizer.json"
"""The same in one file, which newer tokenizers write."""
CAPTIONS_FILE = "captions.json"
"""In the folder of a model: captions of the first training images, of which samples are drawn where none are given."""


@dataclass(frozen=True)
class TextFiles:
    """A text encoder and its tokenizer, on disk."""

    where: str
    """How a message names them: the field of the recipe and its value."""
    tokenizer: Path
    encoder: Path
    """Their folders."""

    @property
    def files(self) -> list[Path]:
        """All files that an embedding depends on, and no others."""
        names = (TOKENIZER_CONFIG, "special_tokens_map.json", *WORDS, WHOLE)
        there = [self.tokenizer / name for name in names if (self.tokenizer / name).is_file()]
        return there + [self.encoder / name for name in ENCODER_FILES]

    def identity(self) -> str:
        """Return the SHA-256 of all files."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def copy(self, folder: Path) -> None:
        """Copy both into the folder of a model."""
        for file in self.files:
            part = folder / (TOKENIZER if file.parent == self.tokenizer else ENCODER)
            part.mkdir(exist_ok=True)
            shutil.copyfile(file, part / file.name)


def find(name: str, where: str) -> TextFiles:
    """Find a text encoder and its tokenizer in a folder, or in a repository of the hub; raises as `find_part` does."""
    encoder = find_part(name, ENCODER, ENCODER_FILES, where)
    whole = (Path(name) / TOKENIZER / WHOLE).is_file()
    tokenizer = find_part(name, TOKENIZER, [TOKENIZER_CONFIG, *([WHOLE] if whole else WORDS)], where)
    return TextFiles(where, tokenizer, encoder)


def of_setting(text: str) -> TextFiles:
    """Find those that `conditioning.text` names; raises as `find_part` does."""
    return find(text, f"conditioning.text {text}")


def write_captions(folder: Path, captions: Sequence[str]) -> None:
    """Keep captions in the folder of a model."""
    (folder / CAPTIONS_FILE).write_text(json.dumps(list(captions), indent=2, ensure_ascii=False) + "\n")


def read_captions(folder: Path) -> list[str]:
    """Read the captions of a model.

    Raises
    ------
    UserError
        If they are missing or damaged.
    """
    file = folder / CAPTIONS_FILE
    try:
        captions = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        captions = None
    if not (isinstance(captions, list) and captions and all(isinstance(caption, str) for caption in captions)):
        raise UserError(f"{file}: missing or damaged; it holds a list of captions to draw samples of")
    return captions
