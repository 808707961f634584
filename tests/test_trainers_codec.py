"""A codec: draws from cached posteriors are as if every image were encoded anew, and latents come back as images."""

import itertools
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders_small import settings_of
from PIL import Image
from trainers_small import CPU, small

from scrimp_trainers import sampling
from scrimp_trainers.codecs import cache as caching
from scrimp_trainers.codecs import pretrained
from scrimp_trainers.codecs.autoencoder import AutoencoderCodec, draw_latents, open_codec
from scrimp_trainers.codecs.autoencoder_files import latent_shape
from scrimp_trainers.codecs.cache import Latents, latent_batches, open_latents
from scrimp_trainers.codecs.pixels import PIXEL_CODEC
from scrimp_trainers.common import cache_file
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.data.loading import batches
from scrimp_trainers.data.manifest import Manifest, Split
from scrimp_trainers.data.options import Options
from scrimp_trainers.export import export_model, load_codec, load_model
from scrimp_trainers.ingest import prepare
from scrimp_trainers.networks.unet import build
from scrimp_trainers.recipe.networks import UNet
from scrimp_trainers.recipe.techniques import Autoencoder
from scrimp_trainers.run import train_repeat

KINDS = ("kl", "tiny", "vq")
LATENTS = {"kl": (4, 8, 8), "tiny": (4, 4, 8), "vq": (3, 3, 4)}
"""Of each kind: a latent's channels, the numbers that are cached of a cell, and the pixels to a cell."""
COUNT, SIDE = 21, 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(folder / "pictures.npz", images=images, labels=np.arange(COUNT) % 3)
    return folder / "pictures.npz"


@pytest.fixture
def dataset(tmp_path, pictures) -> Dataset:
    prepare(str(pictures), tmp_path / "data", Options(holdout=0, classifier=False))
    return open_dataset(tmp_path / "data")


def pixels(dataset: Dataset) -> torch.Tensor:
    return torch.from_numpy(dataset.images("train")[0])


def encoded_by_diffusers(codec: AutoencoderCodec, images: torch.Tensor) -> Any:
    """What the encoder's own `encode` returns."""
    encoder: Any = codec.encoder
    with torch.no_grad():
        return encoder.encode(images / 127.5 - 1)


def count_encodings(monkeypatch) -> list[int]:
    """Count the images that are encoded from now on."""
    encoded: list[int] = []
    original = AutoencoderCodec.moments
    monkeypatch.setattr(
        AutoencoderCodec, "moments", lambda self, images: encoded.append(len(images)) or original(self, images)
    )
    return encoded


# --- the codec


@pytest.mark.parametrize("kind", KINDS)
def test_latents_have_the_shape_that_planning_expects(autoencoders, kind):
    channels, numbers, factor = LATENTS[kind]
    side = 48 // factor
    settings = settings_of(autoencoders, kind)
    codec = open_codec(settings, CPU, 3)
    moments = codec.moments(torch.zeros(2, 3, 48, 48, dtype=torch.uint8))
    assert latent_shape(settings, 48) == (channels, side) == (codec.channels, 48 // codec.factor)
    assert moments.shape == (2, numbers, side, side)
    latents = codec.encode(moments, torch.randn)
    assert latents.shape == (2, channels, side, side)
    assert codec.decoded(latents).shape == (2, 3, 48, 48)
    assert not any(parameter.requires_grad for parameter in codec.encoder.parameters())


def test_draws_are_diffusers_posterior_samples_as_its_pipelines_scale_them(autoencoders):
    codec = open_codec(settings_of(autoencoders, "kl"), CPU, 3)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    posterior = encoded_by_diffusers(codec, images).latent_dist
    drawn = posterior.sample(generator=torch.Generator().manual_seed(3))
    normal = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(3))
    expected = (drawn - 0.1) * 0.4
    torch.testing.assert_close(draw_latents(codec.moments(images), normal, 0.4, 0.1), expected)
    decoder: Any = codec.decoder
    with torch.no_grad():
        decoded = decoder.decode(drawn).sample
    torch.testing.assert_close(codec.decoded(expected), decoded, rtol=1e-4, atol=1e-4)


def test_a_tiny_autoencoder_draws_its_one_latent_exactly(autoencoders):
    codec = open_codec(settings_of(autoencoders, "tiny"), CPU, 3)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    latents = encoded_by_diffusers(codec, images).latents
    assert torch.equal(codec.encode(codec.moments(images).half().float(), torch.randn), latents.half().float() * 0.7)


def test_latents_of_vq_f4_are_those_before_quantisation_unscaled_and_are_quantised_when_decoded(vq_f4):
    """With the released weights where SCRIMP_VQ_DIR names their folder."""
    settings = Autoencoder(kind="vq", encoder=str(vq_f4), decoder=str(vq_f4))
    codec = open_codec(settings, CPU, 3)
    network: Any = codec.decoder
    assert (codec.scale, codec.shift) == (1, 0)
    assert (codec.channels, codec.factor, network.config["num_vq_embeddings"]) == (3, 4, 8192)

    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = codec.encode(codec.moments(images), torch.randn)
    assert torch.equal(latents, encoded_by_diffusers(codec, images).latents)

    codes = network.quantize.embedding.weight
    nearest = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 3), codes).argmin(1)
    quantised = codes[nearest].view(2, 8, 8, 3).permute(0, 3, 1, 2)
    assert not torch.equal(quantised, latents)
    with torch.no_grad():
        expected = network.decode(quantised, force_not_quantize=True).sample
    torch.testing.assert_close(codec.decoded(latents), expected, rtol=1e-4, atol=1e-4)


def test_many_images_go_through_in_parts(autoencoders, monkeypatch):
    codec = open_codec(settings_of(autoencoders, "kl"), CPU, 3)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    whole = codec.moments(images)
    monkeypatch.setattr("scrimp_trainers.codecs.autoencoder.MAX_PIXELS_AT_ONCE", 2 * 32**2)
    torch.testing.assert_close(codec.moments(images), whole)
    torch.testing.assert_close(codec.decoded(whole[:, :4]), torch.cat([codec.decoded(one[None, :4]) for one in whole]))


def test_grey_images_are_encoded_as_rgb_and_decoded_to_grey(autoencoders):
    settings = settings_of(autoencoders, "kl")
    grey, colour = open_codec(settings, CPU, 1), open_codec(settings, CPU, 3)
    images = torch.randint(256, (2, 1, 32, 32), dtype=torch.uint8)
    moments = grey.moments(images)
    assert torch.equal(moments, colour.moments(images.repeat(1, 3, 1, 1)))
    latents = grey.encode(moments, torch.randn)
    torch.testing.assert_close(grey.decoded(latents), colour.decoded(latents).mean(1, keepdim=True))


# --- the cache


@pytest.mark.parametrize("flip", [False, True])
def test_draws_from_the_cache_are_distributed_as_encoding_at_every_step(autoencoders, dataset, flip):
    """Against diffusers' own samples of each image, mirrored before encoding where the batch says so."""
    settings = settings_of(autoencoders, "kl")
    codec, latents = open_codec(settings, CPU, 3), open_latents(dataset, settings, CPU)
    batch = next(latent_batches(latents, None, batch_size=COUNT, seed=0, device=CPU, flip=flip))
    assert batch.flipped.any() == flip
    images = pixels(dataset)[batch.index]
    images[batch.flipped] = images[batch.flipped].flip(3)
    posterior = encoded_by_diffusers(codec, images).latent_dist
    generator, times = torch.Generator().manual_seed(0), 2000
    ours, theirs = [], []
    for _ in range(times):
        normal = torch.randn(posterior.mean.shape, generator=generator)
        ours.append(draw_latents(batch.values, normal, 1.0, 0.0))
        theirs.append(posterior.sample(generator))
    # Standard errors of the differences: of means sqrt(2 / n) std, of standard deviations sqrt(1 / n) std.
    ours, theirs = torch.stack(ours), torch.stack(theirs)
    spread = posterior.std
    assert spread.min() > 0.1
    assert ((ours.mean(0) - theirs.mean(0)) / spread).abs().max() < 6 * (2 / times) ** 0.5
    assert (ours.std(0) / theirs.std(0) - 1).abs().max() < 6 * (1 / times) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_holds_both_flips_of_every_image_in_order(autoencoders, dataset, kind):
    settings = settings_of(autoencoders, kind)
    codec, moments = open_codec(settings, CPU, 3), open_latents(dataset, settings, CPU).moments
    images = pixels(dataset)
    _, numbers, factor = LATENTS[kind]
    assert moments.shape == (COUNT, 2, numbers, SIDE // factor, SIDE // factor)
    assert moments.dtype == torch.float16
    torch.testing.assert_close(moments[:, 0].float(), codec.moments(images), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moments[:, 1].float(), codec.moments(images.flip(3)), rtol=1e-3, atol=1e-3)
    assert (moments[:, 1] - moments[:, 0].flip(3)).abs().max() > 0.01  # not the mirrored latents


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world": 2, "start": 3}, {"kept": np.arange(2, 20, 3)}])
def test_batches_are_of_the_images_that_pixels_would_be_of(autoencoders, dataset, options):
    latents = open_latents(dataset, settings_of(autoencoders, "kl"), CPU)
    labels = dataset.images("train")[1]
    values = {"batch_size": 8, "seed": 5, "device": CPU, "flip": True, **options}
    pairs = zip(batches(dataset, **values), latent_batches(latents, labels, **values), strict=False)
    for pixel, latent in itertools.islice(pairs, 9):
        for name in ("index", "flipped", "labels"):
            assert torch.equal(getattr(pixel, name), getattr(latent, name))
        expected = latents.moments[latent.index, latent.flipped.long()].float()
        assert torch.equal(latent.values, expected)


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"batch_size: 8 cannot be split evenly over 3"):
        next(latent_batches(Latents(torch.zeros(4, 2, 8, 4, 4)), None, batch_size=8, seed=0, device=CPU, world=3))


def test_the_cache_is_made_once(autoencoders, dataset, monkeypatch):
    encoded, told = count_encodings(monkeypatch), []
    settings = settings_of(autoencoders, "kl")
    first = open_latents(dataset, settings, CPU, progress=lambda *done: told.append(done))
    assert sum(encoded) == 2 * COUNT
    assert told[-1] == (COUNT, COUNT)
    again = open_latents(dataset, settings, CPU)
    assert sum(encoded) == 2 * COUNT
    assert torch.equal(first.moments, again.moments)
    assert not list((dataset.folder / "cache").glob("*.part"))


def test_a_cache_of_another_format_is_made_again(autoencoders, dataset, monkeypatch):
    settings = settings_of(autoencoders, "kl")
    open_latents(dataset, settings, CPU)
    monkeypatch.setattr(caching, "FORMAT", caching.FORMAT + 1)
    encoded = count_encodings(monkeypatch)
    open_latents(dataset, settings, CPU)
    assert sum(encoded) == 2 * COUNT


def test_another_encoder_or_dataset_has_a_cache_of_its_own(autoencoders, dataset, pictures, tmp_path, monkeypatch):
    settings = settings_of(autoencoders, "kl")
    open_latents(dataset, settings, CPU)
    encoded = count_encodings(monkeypatch)
    open_latents(dataset, settings.model_copy(update={"encoder": str(autoencoders / "other")}), CPU)
    assert sum(encoded) == 2 * COUNT
    prepare(str(pictures), tmp_path / "fewer", Options(holdout=0, limit=9, classifier=False))
    shutil.copytree(dataset.folder / "cache", tmp_path / "fewer" / "cache")
    assert len(open_latents(open_dataset(tmp_path / "fewer"), settings, CPU).moments) == 9
    # A copy of the autoencoder elsewhere is the same one.
    shutil.copytree(autoencoders / "kl", tmp_path / "copy")
    encoded.clear()
    open_latents(dataset, settings.model_copy(update={"encoder": str(tmp_path / "copy")}), CPU)
    assert not encoded


@pytest.mark.parametrize("harm", [lambda data: data[:-100], lambda data: data[:500] + b"x" + data[501:], lambda _: b""])
def test_a_damaged_cache_is_made_anew(autoencoders, dataset, harm):
    settings = settings_of(autoencoders, "kl")
    expected = open_latents(dataset, settings, CPU).moments.clone()
    (path,) = (dataset.folder / "cache").glob("*.npy")
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(harm(data))
    assert torch.equal(open_latents(dataset, settings, CPU).moments, expected)
    assert path.read_bytes() == data


@pytest.fixture
def several_shards(tmp_path, pictures, monkeypatch) -> Dataset:
    """Shards of nine images, blocks of four."""
    monkeypatch.setattr("scrimp_trainers.data.shards.MOST_IMAGES", 9)
    monkeypatch.setattr(caching, "BLOCK", 4)
    prepare(str(pictures), tmp_path / "shards", Options(holdout=0, classifier=False))
    dataset = open_dataset(tmp_path / "shards")
    assert len(dataset.manifest.splits["train"].shards) == 3
    return dataset


def interrupted(dataset: Dataset, settings: Autoencoder, after: int) -> None:
    """Encode until this many blocks are written, as they are and mirrored."""
    original, calls = AutoencoderCodec.moments, []

    def moments(self: AutoencoderCodec, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) > 2 * after:
            raise KeyboardInterrupt
        return original(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoencoderCodec, "moments", moments)
        with pytest.raises(KeyboardInterrupt):
            open_latents(dataset, settings, CPU)


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("after", [0, 1, 4, 6])
def test_an_interrupted_cache_goes_on_where_it_was_and_has_the_same_bytes(
    autoencoders, several_shards, tmp_path, monkeypatch, kind, after
):
    settings = settings_of(autoencoders, kind)
    shutil.copytree(several_shards.folder, tmp_path / "undisturbed")
    open_latents(open_dataset(tmp_path / "undisturbed"), settings, CPU)
    (expected,) = (tmp_path / "undisturbed" / "cache").glob("*.npy")

    interrupted(several_shards, settings, after)
    assert not list((several_shards.folder / "cache").glob("*.npy"))
    encoded, told = count_encodings(monkeypatch), []
    open_latents(several_shards, settings, CPU, progress=lambda *done: told.append(done))
    blocks = [4, 4, 1, 4, 4, 1, 3]
    assert sum(encoded) == 2 * sum(blocks[after:])
    assert told == [(sum(blocks[: i + 1]), COUNT) for i in range(after, len(blocks))]

    (path,) = (several_shards.folder / "cache").glob("*.npy")
    assert path.read_bytes() == expected.read_bytes()
    left = {file.name for file in path.parent.iterdir()}
    assert left == {path.name, f".{path.name}.lock"}


@pytest.mark.parametrize(
    ("harm", "kept"),
    [
        (lambda part, listed: part.write_bytes(part.read_bytes()[:-100]), 3),
        (lambda part, listed: part.write_bytes(part.read_bytes() + b"more"), 4),
        (lambda part, listed: part.write_bytes(part.read_bytes()[:200] + bytes(100) + part.read_bytes()[300:]), 0),
        (lambda part, listed: listed.write_bytes(listed.read_bytes()[:-70]), 2),
        (lambda part, listed: listed.unlink(), 0),
        (lambda part, listed: part.write_bytes(b""), 0),
    ],
)
def test_blocks_that_a_crash_has_damaged_are_encoded_again(autoencoders, several_shards, monkeypatch, harm, kept):
    settings = settings_of(autoencoders, "vq")
    expected = open_latents(several_shards, settings, CPU).moments.clone()
    (path,) = (several_shards.folder / "cache").glob("*.npy")
    path.unlink()

    interrupted(several_shards, settings, 4)
    harm(path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.blocks"))
    encoded = count_encodings(monkeypatch)
    assert torch.equal(open_latents(several_shards, settings, CPU).moments, expected)
    assert sum(encoded) == 2 * sum([4, 4, 1, 4, 4, 1, 3][kept:])


def test_where_files_cannot_be_locked_everyone_writes_a_file_of_his_own(autoencoders, dataset, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", flock)
    settings = settings_of(autoencoders, "vq")
    interrupted(dataset, settings, 0)
    assert [file.suffix for file in (dataset.folder / "cache").iterdir()] == [".lock"]
    assert len(open_latents(dataset, settings, CPU).moments) == COUNT


def test_those_who_want_the_same_latents_at_once_make_them_once(autoencoders, dataset, monkeypatch):
    both, writes, write = Barrier(2), [], cache_file.write

    def slowly(path, *content, **options):
        writes.append(path)
        time.sleep(0.3)  # so that the other one comes to the lock
        write(path, *content, **options)

    def want(_: int) -> torch.Tensor:
        both.wait()
        return open_latents(dataset, settings_of(autoencoders, "tiny"), CPU).moments

    monkeypatch.setattr(cache_file, "write", slowly)
    with ThreadPoolExecutor(2) as pool:  # the lock is one between open files, so threads are as good as processes
        one, other = pool.map(want, range(2))
    assert len(writes) == 1
    assert torch.equal(one, other)


def test_latents_that_cannot_be_written_say_what_they_need(autoencoders, dataset):
    (dataset.folder / "cache").write_text("a file in the place of the folder")
    with pytest.raises(UserError, match=r"cannot be written .* about 1 MiB there"):
        open_latents(dataset, settings_of(autoencoders, "tiny"), CPU)


# --- mistakes


def test_images_that_are_no_multiple_of_a_cell_are_refused(autoencoders):
    with pytest.raises(UserError, match=r"8 pixels wide, of which 28 is no multiple; prepare .* another --size"):
        latent_shape(settings_of(autoencoders, "kl"), 28)


def test_planning_needs_neither_torch_nor_the_hub(autoencoders):
    code = f"""
import sys
from scrimp_trainers.codecs.autoencoder_files import latent_shape
from scrimp_trainers.recipe.techniques import Autoencoder
local = Autoencoder(kind="kl", encoder={str(autoencoders / "kl")!r})
print(latent_shape(local, 64), latent_shape(Autoencoder(kind="kl"), 64))
print([name for name in ("torch", "diffusers", "huggingface_hub") if name in sys.modules])
"""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert answer.stdout.split("\n")[:2] == ["(4, 8) None", "[]"]


# --- sampling and the exported model


@pytest.mark.parametrize(("kind", "channels"), [("kl", 3), ("kl", 1), ("tiny", 3), ("vq", 3), ("vq", 1)])
def test_samples_are_decoded(autoencoders, kind, channels):
    recipe = small(sampler__steps=2, codec__kind=kind)
    assert isinstance(recipe.network, UNet)
    latent_channels, _, factor = LATENTS[kind]
    network = build(recipe.network, image_size=8, channels=latent_channels)
    codec = open_codec(settings_of(autoencoders, kind), CPU, channels)
    images = torch.cat(list(sampling.generate(network, recipe, 3, seed=0, batch_size=2, codec=codec)))
    assert images.shape == (3, channels, 8 * factor, 8 * factor)
    assert images.dtype == torch.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_a_models_card_decodes_as_the_codec_does(autoencoders, kind):
    channels, _, factor = LATENTS[kind]
    settings = settings_of(autoencoders, kind)
    latents = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(1))
    decoding = pretrained.decoding(settings, (3, 4 * factor, 4 * factor))
    code = f"import torch\nfrom diffusers import {decoding.imports}\n".replace(", \n", "\n") + decoding.loading
    lines = {"x": latents, "folder": Path("/no/copy")}
    exec(f"{code}with torch.no_grad():\n{decoding.lines}{decoding.result}", lines)  # noqa: S102
    expected = open_codec(settings, CPU, 3).decode(latents).values
    assert torch.equal(lines["images"], expected)
    assert expected.float().std() > 1


@pytest.mark.parametrize(
    ("preset", "kind", "channels"), [("tiny-ddpm", "kl", 1), ("tiny-edm", "tiny", 3), ("tiny-ddpm", "vq", 3)]
)
def test_a_models_card_decodes_and_its_codec_is_read_back(autoencoders, tmp_path, monkeypatch, preset, kind, channels):
    path = str(autoencoders / kind)
    latent_channels, _, factor = LATENTS[kind]
    size = 8 * factor
    recipe = small(preset, sampler__steps=2, codec__kind=kind, codec__encoder="/not/needed", codec__decoder=path)
    assert isinstance(recipe.network, UNet)
    network = build(recipe.network, image_size=8, channels=latent_channels)
    split = Split(count=300, per_class=None, shards=[])
    manifest = Manifest.model_validate(
        {"name": "dots", "content_hash": "c0ffee", "size": size, "channels": channels, "classes": None}
        | {"reference": "train", "provenance": {}, "splits": {"train": split}}
    )
    export_model(tmp_path / "model", network, recipe, manifest, {})
    assert not (tmp_path / "model" / "model_index.json").exists()  # a pipeline would show latents as images
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"300 images of {channels} x {size} x {size}" in card
    (code,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    lines = {}
    monkeypatch.chdir(tmp_path / "model")
    exec(code, lines)  # noqa: S102
    assert lines["images"].shape == (16, channels, size, size)

    _, read = load_model(tmp_path / "model")
    codec = load_codec(tmp_path / "model", read, CPU)
    assert isinstance(codec, AutoencoderCodec)
    assert isinstance(recipe.codec, Autoencoder)
    latents = torch.randn(2, *network.shape)
    assert torch.equal(codec.decoded(latents), open_codec(recipe.codec, CPU, channels).decoded(latents))
    assert load_codec(tmp_path, small(), CPU) is PIXEL_CODEC


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_repeat_trains_on_latents_and_shows_pixels(autoencoders, dataset, tmp_path, kind):
    path = str(autoencoders / kind)
    channels, _, factor = LATENTS[kind]
    recipe = small(codec__kind=kind, codec__encoder=path, codec__decoder=path, sampler__steps=2, training__flip=True)
    lines = list(train_repeat(recipe, dataset, tmp_path / "repeat", 0, rungs_kimg=[], device=CPU))
    assert lines[-1].images == 40
    assert np.isfinite(lines[-1].loss)
    network, _ = load_model(tmp_path / "repeat" / "model")
    assert network.shape == (channels, SIDE // factor, SIDE // factor)
    with Image.open(tmp_path / "repeat" / "samples.png") as image:
        assert image.size[0] == 8 * (SIDE + 2) + 2


def test_prepare_fills_the_cache_if_asked(autoencoders, pictures, tmp_path, monkeypatch):
    from scrimp_platform.cli import commands

    encoder = str(autoencoders / "kl")
    commands.prepare(str(pictures), tmp_path / "data", "kl", encoder, holdout=0, classifier=False)
    encoded = count_encodings(monkeypatch)
    open_latents(open_dataset(tmp_path / "data"), settings_of(autoencoders, "kl"), CPU)
    assert not encoded
    with pytest.raises(UserError, match=r"codec.encoder /no/such"):
        commands.prepare(str(pictures), tmp_path / "never", "kl", "/no/such")
    assert not (tmp_path / "never").exists()
    with pytest.raises(UserError, match=r"--encoder needs --codec"):
        commands.prepare(str(pictures), tmp_path / "never", None, encoder)
