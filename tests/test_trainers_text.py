"""Captions as conditions: text encoders, their cached embeddings, and Stable Diffusion's U-Net."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from techniques_worker import CAPTIONED_NETWORK
from trainers_small import small

from benchmarks import text_digits
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning import text, text_files
from scrimp_trainers.conditioning.conditioner import hide
from scrimp_trainers.conditioning.text import Texts, load_encoder, open_texts, texts_of
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.fit import check_fit
from scrimp_trainers.metrics import cost
from scrimp_trainers.metrics.classifier import load_classifier
from scrimp_trainers.networks import unet2d_condition
from scrimp_trainers.precompute.prepare import prepare_techniques
from scrimp_trainers.recipe import networks
from scrimp_trainers.recipe.recipe import Recipe, load
from scrimp_trainers.sampling import generate
from scrimp_trainers.training.session import Session

CPU = torch.device("cpu")


def recipe_of(folder: Path, **values: object) -> Recipe:
    """A small recipe on pixels that takes captions."""
    given: dict[str, Any] = {"conditioning.text": str(folder), "conditioning.label_drop": 0.1}
    return small("tiny-ddpm", training__kimg=0.08, sampler__steps=4).replace(
        given | CAPTIONED_NETWORK | {name.replace("__", "."): value for name, value in values.items()}
    )


def fine_tuned(folder: Path, **values: object) -> Recipe:
    """A recipe in latents that begins with the weights in a folder, of which it takes all parts."""
    base: dict[str, Any] = {"conditioning.text": str(folder), "conditioning.label_drop": 0.1}
    base |= {"network.pretrained": str(folder), "sampler.steps": 4, "sampler.guidance": 1}
    base |= {"training.kimg": 0.08, "training.batch_size": 8, "training.precision": "fp32"}
    base |= {"codec.encoder": str(folder), "codec.decoder": str(folder)}
    return load("sd-finetune").replace(base | {name.replace("__", "."): value for name, value in values.items()})


def opened(dataset: Dataset, folder: Path) -> Texts:
    return open_texts(dataset, text_files.find(str(folder), "here"), CPU)


def session(recipe: Recipe, dataset: Dataset, folder: Path, seed: int = 3, **options: Any) -> Session:
    prepared = prepare_techniques(recipe, dataset, seed, CPU)
    return Session(recipe, dataset, folder, seed, prepared, device=CPU, **options)


def trained(recipe: Recipe, dataset: Dataset, folder: Path, images: int | None = None) -> Session:
    """Train to the end, or to this number of images."""
    made = session(recipe, dataset, folder)
    made.resume()
    end = round(1000 * recipe.training.kimg)
    steps = made.steps()
    made.train_to(min(end, images or end), steps, 1e9)
    return made


# --- embeddings


def test_each_image_gets_the_embedding_of_its_own_caption(captioned_digits: Dataset, stable_diffusion: Path):
    texts = opened(captioned_digits, stable_diffusion)
    encoder = load_encoder(text_files.find(str(stable_diffusion), "here"), CPU)
    captions = captioned_digits.captions("train")
    assert len(texts.embeddings) == 11  # ten captions and the empty one
    for number in (0, 1, 17, 500):
        given = texts.for_samples([number], CPU)
        torch.testing.assert_close(given, encoder.encode([captions[number]]).half().float())
    torch.testing.assert_close(texts.null(1, CPU), encoder.encode([""]).half().float())
    assert texts.shape == (encoder.length, encoder.width)


def test_a_dropped_caption_is_the_empty_one(captioned_digits: Dataset, stand_in: Path):
    texts = opened(captioned_digits, stand_in)
    known = texts.for_samples(range(4), CPU)
    hidden = hide(texts, known, torch.tensor([False, True, False, True]))
    assert torch.equal(hidden[::2], known[::2])
    assert torch.equal(hidden[1::2], texts.null(2, CPU))
    assert not torch.equal(known[1], texts.null(1, CPU)[0])


def test_embeddings_are_made_once_for_captions_encoder_and_tokenizer(
    captioned_digits: Dataset, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = opened(captioned_digits, stand_in)
    made: list[Path] = []

    def counted(files: text_files.TextFiles, device: torch.device) -> text.TextEncoder:
        made.append(files.encoder)
        return load_encoder(files, device)

    monkeypatch.setattr(text, "load_encoder", counted)
    copy = tmp_path / "copy"
    shutil.copytree(stand_in, copy)
    assert torch.equal(opened(captioned_digits, copy).embeddings, first.embeddings)
    assert not made  # the same files elsewhere are the same

    config = copy / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 20}))
    assert opened(captioned_digits, copy).shape == (20, text_digits.WIDTH)
    text_digits.write_text_encoder(tmp_path / "other", seed=1)
    assert not torch.equal(opened(captioned_digits, tmp_path / "other").embeddings, first.embeddings)
    assert len(made) == 2


def test_samples_are_drawn_of_the_captions_in_turn(stand_in: Path):
    encoder = load_encoder(text_files.find(str(stand_in), "here"), CPU)
    texts = texts_of(["one", "two"], encoder)
    given = texts.for_samples([0, 1, 2], CPU)
    assert torch.equal(given[0], given[2])
    torch.testing.assert_close(given[1:2], encoder.encode(["two"]).half().float())


def test_weights_saved_by_older_transformers_are_read(stand_in: Path, tmp_path: Path):
    """Stable Diffusion's own folders name each tensor `text_model.` and keep the positions' numbers."""
    shutil.copytree(stand_in, tmp_path / "old")
    file = tmp_path / "old" / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name}": tensor.clone() for name, tensor in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(text_digits.LENGTH)[None]
    save_file(tensors, file, {"format": "pt"})
    old, new = (load_encoder(text_files.find(str(f), "here"), CPU) for f in (tmp_path / "old", stand_in))
    assert torch.equal(old.encode(["a cat"]), new.encode(["a cat"]))


# --- refusals


def test_pickled_weights_are_not_read(stand_in: Path, tmp_path: Path, captioned_digits: Dataset):
    copy = tmp_path / "pickled"
    shutil.copytree(stand_in, copy)
    for part, name in (("text_encoder", "model.safetensors"), ("unet", "diffusion_pytorch_model.safetensors")):
        file = copy / part / name
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"here: has no model.safetensors"):
        opened(captioned_digits, copy)
    with pytest.raises(UserError, match=r"network.pretrained .*pickled: has no diffusion_pytorch_model.safetensors"):
        unet2d_condition.build(networks.UNet2DCondition(pretrained=str(copy)), image_size=4, channels=4)


def test_damaged_files_are_named_in_one_line(stand_in: Path, tmp_path: Path):
    for number, (name, content) in enumerate(
        [("text_encoder/model.safetensors", b"no"), ("text_encoder/config.json", b"{"), ("tokenizer/vocab.json", b"[")]
    ):
        copy = tmp_path / str(number)
        shutil.copytree(stand_in, copy)
        (copy / name).write_bytes(content)
        with pytest.raises(UserError, match=r"here: cannot be loaded") as raised:
            load_encoder(text_files.find(str(copy), "here"), CPU)
        assert "\n" not in str(raised.value)

    file = tmp_path / "0" / "text_encoder" / "model.safetensors"
    tensors = load_file(stand_in / "text_encoder" / "model.safetensors")
    del tensors["final_layer_norm.bias"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks final_layer_norm.bias"):
        load_encoder(text_files.find(str(tmp_path / "0"), "here"), CPU)


def test_a_model_that_is_not_there_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"here: no such folder; name one with its config.json and model.safetensors"):
        text_files.find(str(tmp_path / "none"), "here")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"no such folder, and cannot be had from the hub") as raised:
        text_files.find("someone/stable-diffusion", "here")
    assert "\n" not in str(raised.value)


def test_what_does_not_fit_together_is_refused(captioned_digits: Dataset, digits_dataset: Dataset, stand_in: Path):
    with pytest.raises(UserError, match=r"conditioning needs a network that takes captions; use network.kind unet2d"):
        small("tiny-ddpm", conditioning__text=str(stand_in))
    with pytest.raises(UserError, match=r"'unet2d_condition' takes captions; name conditioning.text"):
        recipe_of(stand_in, conditioning__text=None)
    with pytest.raises(UserError, match=r"classes and text exclude each other"):
        recipe_of(stand_in, conditioning__classes=True)
    with pytest.raises(UserError, match=r"needs conditioning.classes or text, and a conditioning.label_drop above 0"):
        recipe_of(stand_in, conditioning__label_drop=0, sampler__guidance=2)
    with pytest.raises(UserError, match=r"channels is given by the config of pretrained"):
        recipe_of(stand_in, network__pretrained=str(stand_in))
    with pytest.raises(UserError, match=r"has no captions, but the recipe sets conditioning.text"):
        check_fit(recipe_of(stand_in), digits_dataset.manifest)
    check_fit(recipe_of(stand_in), captioned_digits.manifest)
    with pytest.raises(UserError, match=r"its tokens have 32 numbers, but the network takes 64"):
        session(recipe_of(stand_in, network__text_width=64), captioned_digits, Path("unused"))
    with pytest.raises(UserError, match=r"takes 4 channels, but x has 1"):
        session(fine_tuned(stand_in, codec__kind="none"), captioned_digits, Path("unused"))


# --- the network


def test_the_default_shape_has_the_parameters_of_stable_diffusion_1():
    with torch.device("meta"):
        network = unet2d_condition.build(networks.UNet2DCondition(), image_size=64, channels=4)
    assert cost.parameters(network) == 859_520_964


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("config", ["{", "[" * 100_000])
def test_a_damaged_config_of_the_pretrained_network_is_named(stable_diffusion: Path, tmp_path: Path, device, config):
    """Also on the meta device, where its costs are counted."""
    copy = shutil.copytree(stable_diffusion, tmp_path / "copy")
    (copy / "unet" / "config.json").write_text(config)
    section = networks.UNet2DCondition(pretrained=str(copy))
    with torch.device(device), pytest.raises(UserError, match=r"config\.json: not the config of"):
        unet2d_condition.build(section, image_size=8, channels=4)


def test_training_begins_with_the_pretrained_weights(captioned_digits: Dataset, stable_diffusion: Path):
    made = session(fine_tuned(stable_diffusion), captioned_digits, Path("unused"))
    file = stable_diffusion / "unet" / "diffusion_pytorch_model.safetensors"
    network: Any = made.state.network
    begun = network.unet.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in load_file(file).items()} == {
        name: tuple(tensor.shape) for name, tensor in begun.items()
    }
    for name, tensor in load_file(file).items():
        assert torch.equal(begun[name], tensor.to(begun[name].dtype)), name


@pytest.mark.parametrize(
    ("sigma_n", "prediction"),
    [
        (0.0, "epsilon"),
        (0.5, "v"),
        pytest.param(0.0, "v", marks=pytest.mark.slow),
        pytest.param(0.5, "epsilon", marks=pytest.mark.slow),
    ],
)
def test_the_loss_falls_on_64_items(
    captioned_digits: Dataset, stand_in: Path, tmp_path: Path, prediction: str, sigma_n: float
):
    recipe = recipe_of(
        stand_in,
        diffusion__prediction=prediction,
        ambient__sigma_n=sigma_n,
        training__kimg=6.4,
        training__batch_size=64,
        optimizer__lr=3e-3,
        optimizer__warmup_kimg=0,
    )
    made = session(recipe, captioned_digits, tmp_path / "run")
    batch = next(iter(made_batches(captioned_digits)))
    from scrimp_trainers.training.loop import read_losses, train

    def endless():
        while True:
            yield batch

    losses = read_losses(list(train(recipe, made.state, endless(), made.prepared, device=CPU)))
    # A part of each image stays unknown, which counts more where the velocity is predicted.
    assert sum(losses[-10:]) < {"epsilon": 0.5, "v": 0.7}[prediction] * sum(losses[:10])


def made_batches(dataset: Dataset):
    from scrimp_trainers.data.loading import batches

    return batches(dataset, batch_size=64, seed=0, device="cpu")


@pytest.mark.parametrize("kind", ["new", "fine-tuned"])
def test_an_interrupted_training_ends_with_the_same_bits(
    captioned_digits: Dataset, stand_in: Path, tmp_path: Path, kind: str
):
    recipe = recipe_of(stand_in) if kind == "new" else fine_tuned(stand_in)
    whole = trained(recipe, captioned_digits, tmp_path / "whole")
    half = trained(recipe, captioned_digits, tmp_path / "half", images=40)
    half.save("last")
    resumed = trained(recipe, captioned_digits, tmp_path / "half")
    assert resumed.state.step == whole.state.step == 10
    for one, other in ((whole.state.network, resumed.state.network), (whole.state.ema, resumed.state.ema)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_real_weights_are_used_where_they_are(stable_diffusion: Path, stand_in: Path):
    assert (stable_diffusion == stand_in) == ("SCRIMP_SD_DIR" not in os.environ)


@pytest.mark.slow
@pytest.mark.parametrize("sigma_n", [0.0, 0.2])
def test_the_caption_changes_the_image(scored_captions: Dataset, stand_in: Path, tmp_path: Path, sigma_n: float):
    """A classifier that no training saw agrees with the captions, and with none where they are hidden."""
    recipe = recipe_of(
        stand_in,
        ambient__sigma_n=sigma_n,
        network__channels=32,
        training__kimg=40,
        training__batch_size=64,
        optimizer__lr=2e-3,
        optimizer__warmup_kimg=0,
        ema__halflife_kimg=2,
        sampler__steps=20,
        sampler__guidance=2,
    )
    made = trained(recipe, scored_captions, tmp_path / "run")
    count = 200
    images = torch.cat(list(generate(made.state.ema, recipe, count, seed=1, conditioner=made.prepared.conditioner)))
    classifier = load_classifier(scored_captions.folder, scored_captions.manifest)
    with torch.no_grad():
        named = classifier(images)[1].argmax(1)
    _, labels = scored_captions.entries("train")
    assert labels is not None
    agreement = (named.numpy() == labels[:count]).mean()
    print(f"sigma_n {sigma_n}: {agreement:.0%} of {count} samples are named as their caption says")
    assert agreement > 0.5  # chance is 0.1
