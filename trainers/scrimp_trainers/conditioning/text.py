"""The caption of an image, as embeddings that a frozen text encoder makes of its tokens.

They are made once for a dataset, of every different caption, and kept in its `cache/` as latents are. The name of their
file holds what they depend on: the captions, the encoder and the tokenizer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.common import cache_file, weights
from scrimp_trainers.common.device import memory_left
from scrimp_trainers.common.errors import DiskFull, UserError
from scrimp_trainers.common.files import is_disk_full, locked
from scrimp_trainers.conditioning.text_files import TextFiles
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.data.dataset import Dataset

FORMAT = 1
"""Version of the cache. Raise it when embeddings are computed or kept in another way."""
BLOCK = 64
"""Captions that are encoded and written together."""
GPU_SHARE = 0.25
"""Embeddings are kept on a GPU if they take at most this share of the memory that is free there."""


@dataclass(frozen=True)
class Texts:
    """A conditioner by captions. The empty caption stands for a hidden one."""

    embeddings: Tensor
    """fp16 [U, L, D], of the tokens of each different caption; the first is the empty one."""
    rows: Tensor
    """int64 [N], which of them is that of each training image, or of each caption to sample."""
    captions: list[str]
    """The captions themselves, of the same order as `rows`."""
    files: TextFiles
    """The encoder and its tokenizer."""
    name: ClassVar[str] = "text"

    @property
    def shape(self) -> tuple[int, ...]:
        """Tokens of a caption, and numbers of a token."""
        return tuple(self.embeddings.shape[1:])

    def of(self, batch: Batch) -> Tensor:
        """Return the embeddings [B, L, D] of a batch's captions."""
        return self._take(self.rows[batch.index.to(self.rows.device)], batch.index.device)

    def null(self, count: int, device: torch.device) -> Tensor:
        """Return those of the empty caption."""
        return self._take(self.rows.new_zeros(count), device)

    def for_samples(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Return those of the captions of samples: the training images' in turn, or those to sample."""
        return self._take(self.rows[torch.tensor(numbers, device=self.rows.device) % len(self.rows)], device)

    def tokens(self, count: int) -> Tensor:
        """Return the tokens, int64 [count, L], of the captions that so many samples are drawn of."""
        captions = [self.captions[number % len(self.captions)] for number in range(count)]
        tokenizer = load_tokenizer(self.files)
        return tokenized(tokenizer, captions, tokenizer.model_max_length)

    def _take(self, rows: Tensor, device: torch.device) -> Tensor:
        return self.embeddings[rows].to(device).float()


@dataclass(frozen=True)
class TextEncoder:
    """A frozen text encoder of transformers', such as Stable Diffusion's, and its tokenizer."""

    files: TextFiles
    tokenizer: Any
    model: Any
    length: int
    """Tokens of a caption."""
    width: int
    """Numbers in the embedding of a token."""

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return the embeddings [b, L, D] of captions, as Stable Diffusion has them: the last hidden state."""
        tokens = tokenized(self.tokenizer, captions, self.length)
        return self.model(tokens.to(self.model.device)).last_hidden_state


def open_texts(dataset: Dataset, files: TextFiles, device: torch.device) -> Texts:
    """Read the embeddings of the training images' captions; the first process that needs them makes them.

    Raises
    ------
    UserError
        If the encoder cannot be loaded, the dataset has no captions, or the cache cannot be written.
    """
    captions = dataset.captions("train")
    different = ["", *sorted(set(captions) - {""})]
    path = dataset.folder / "cache" / _file_name(dataset, files)
    if not cache_file.is_sound(path):
        try:
            with locked(path) as alone:
                if not cache_file.is_sound(path):
                    _write(path, different, load_encoder(files, device), alone=alone)
        except OSError as error:
            kind = DiskFull if is_disk_full(error) else UserError
            raise kind(
                f"{path}: the embeddings of captions are cached there, but it cannot be written ({error.strerror})"
            ) from None

    embeddings = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    if device.type != "cuda" or embeddings.nbytes <= GPU_SHARE * memory_left(device)[0]:
        embeddings = embeddings.to(device)
    number_of = {caption: number for number, caption in enumerate(different)}
    rows = torch.tensor([number_of[caption] for caption in captions], device=embeddings.device)
    return Texts(embeddings, rows, captions, files)


def texts_of(captions: Sequence[str], encoder: TextEncoder) -> Texts:
    """Return the conditioner of samples that are drawn of these captions in turn."""
    embeddings = encoder.encode(["", *captions]).half()
    rows = torch.arange(1, len(captions) + 1, device=embeddings.device)
    return Texts(embeddings, rows, list(captions), encoder.files)


def load_encoder(files: TextFiles, device: torch.device) -> TextEncoder:
    """Load a text encoder and its tokenizer.

    Raises
    ------
    UserError
        If transformers is not installed, or a file is damaged.
    """
    try:
        from transformers import CLIPTextModel
        from transformers.utils import logging
    except ImportError:
        raise UserError("conditioning.text needs the package transformers: pip install 'scrimp[text]'") from None

    logging.disable_progress_bar()
    tokenizer = load_tokenizer(files)
    try:
        read: Any = CLIPTextModel.from_pretrained
        model, loaded = read(
            files.encoder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:  # each damaged file fails in a different way
        raise UserError(f"{files.where}: cannot be loaded ({weights.one_line(error)}); fetch it again") from error
    missing = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if missing:
        raise UserError(f"{files.where}: {files.encoder / 'model.safetensors'} lacks {missing[0]}; fetch it again")

    config = model.config
    length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return TextEncoder(files, tokenizer, model.requires_grad_(False).eval().to(device), length, config.hidden_size)


def load_tokenizer(files: TextFiles) -> Any:
    """Load a tokenizer; raises as `load_encoder` does, which it needs no weights for."""
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(files.tokenizer, local_files_only=True)
    except Exception as error:  # each damaged file fails in a different way
        raise UserError(f"{files.where}: cannot be loaded ({weights.one_line(error)}); fetch it again") from error


def tokenized(tokenizer: Any, captions: Sequence[str], length: int) -> Tensor:
    """Return the tokens of captions, int64 [b, length]: longer ones are cut, shorter ones padded."""
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(captions), **options).input_ids


def _file_name(dataset: Dataset, files: TextFiles) -> str:
    return f"{dataset.manifest.content_hash[:16]}-captions-{files.identity()[:16]}-v{FORMAT}.npy"


def _write(path: Path, captions: Sequence[str], encoder: TextEncoder, *, alone: bool) -> None:
    """Encode the captions, those that are not yet in the file, and write them."""
    blocks = [captions[start : start + BLOCK] for start in range(0, len(captions), BLOCK)]

    def encoded_from(number: int) -> Iterator[Tensor]:
        for block in blocks[number:]:
            yield encoder.encode(block).half().cpu()

    shape = (len(captions), encoder.length, encoder.width)
    cache_file.write(path, shape, [len(block) for block in blocks], encoded_from, alone=alone)
