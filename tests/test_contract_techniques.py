"""What every technique promises, whoever adds it: it is found here by its section in the recipe."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawings_small import small_drawings
from safetensors.torch import load_file
from techniques_small import NAMES, PAIRS, examples, session, with_techniques
from techniques_worker import RANKED, gradients

from benchmarks import text_digits
from scrimp_trainers import techniques
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Autoencoder
from scrimp_trainers.sampling import generate
from scrimp_trainers.techniques.sparsity import layer_weights

FOLDER = Path(techniques.__file__).parent
ROOT = FOLDER.parents[2]
OF_UNET = tuple(name for name in NAMES if name != "masking")
OF_MDT = tuple(name for name in NAMES if name not in ("mafp", "patches"))
COMBINATIONS = [
    *(("tiny-edm", names) for names in [*((name,) for name in NAMES), *PAIRS, OF_UNET, OF_MDT]),
    *(("tiny-ddpm", (name,)) for name in NAMES),
]

REFUSED = {
    ("tiny-ddpm", ("ood",)): "ood needs an estimate of the clean image; use diffusion.kind edm, or turn ood off",
    ("tiny-edm", ("mafp", "masking")): "mafp needs augmentation labels; use network.kind unet, or turn mafp off",
    ("tiny-edm", ("patches", "masking")): "patches needs coordinates; use network.kind unet, or turn patches off",
}
"""The combinations that are refused, and what is said of them. All others train."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Where the examples' files lie."""
    return tmp_path_factory.mktemp("techniques")


@pytest.fixture(scope="module")
def few_digits(files):
    prepare("digits", files / "digits", Options(limit=96, classifier=False))
    return open_dataset(files / "digits")


def test_every_technique_has_a_file_and_every_file_is_used():
    folders = [FOLDER, FOLDER.parent / "precompute", FOLDER.parent / "codecs"]
    assert NAMES
    assert set(NAMES) - {"codec"} <= {path.stem for folder in folders for path in folder.glob("*.py")}
    code = "".join(path.read_text() for root in ("trainers", "platform") for path in (ROOT / root).rglob("*.py"))
    loaded_by_name = {Autoencoder(kind=kind).part for kind in ("none", "kl")}
    for path in (path for folder in folders for path in folder.glob("*.py") if path.stem != "__init__"):
        used = rf"{path.parent.name}(\.{path.stem}| import [\w, ]*\b{path.stem})\b"
        assert path.stem in loaded_by_name or re.search(used, code), path


def test_techniques_are_off_by_default_and_their_examples_turn_them_on(files):
    assert examples(files).keys() == set(NAMES)
    for name in NAMES:
        assert not getattr(Recipe(), name).on
        on = [other for other in NAMES if getattr(with_techniques((name,), files), other).on]
        assert on == [name]


@pytest.mark.parametrize(("preset", "names"), COMBINATIONS, ids=["-".join((p, *n)) for p, n in COMBINATIONS])
def test_techniques_train_resume_bit_exactly_and_sample_together_or_are_refused(
    preset, names, files, few_digits, tmp_path, monkeypatch
):
    if (preset, names) in REFUSED:
        with pytest.raises(UserError, match=re.escape(REFUSED[preset, names])):
            with_techniques(names, files, preset)
        return
    check_training(with_techniques(names, files, preset), few_digits, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_techniques_train_on_latents_of_a_vq_autoencoder_or_are_refused(name, files, few_digits, tmp_path, monkeypatch):
    if ("tiny-ddpm", (name,)) in REFUSED:
        with pytest.raises(UserError, match=re.escape(REFUSED["tiny-ddpm", (name,)])):
            with_techniques(("codec", name), files, "tiny-ddpm", codec="vq")
        return
    recipe = with_techniques(("codec", name), files, "tiny-ddpm", codec="vq")
    check_training(recipe, few_digits, tmp_path, monkeypatch)


def check_training(recipe, few_digits, tmp_path, monkeypatch):
    """Train ten steps at once and with a resume between, which has to give the same bits, and sample."""
    # Counting takes longer than ten steps.
    monkeypatch.setattr("scrimp_trainers.metrics.cost.forward_flops", lambda *_: 1)
    monkeypatch.setattr(
        "scrimp_trainers.metrics.cost.layer_flops", lambda network, *_: dict.fromkeys(layer_weights(network), 1)
    )
    whole, rest = (session(recipe, few_digits, tmp_path / "run") for _ in range(2))
    steps = whole.steps()
    whole.train_to(40, steps, 1e9)  # masks change at the next step, and gradients for it are being added up
    whole.save("last")
    whole.train_to(80, steps, 1e9)

    rest.resume()
    assert rest.state.step == 5
    rest.train_to(80, rest.steps(), 1e9)
    assert rest.state.step == whole.state.step == 10
    expected, resumed = tensors(whole), tensors(rest)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())

    drawn = generate(whole.state.ema, recipe, 2, seed=1, codec=whole.prepared.codec)
    assert torch.cat(list(drawn)).shape == (2, 1, 8, 8)


def tensors(repeat):
    state = repeat.state
    moments = {
        f"{name}/{kind}": torch.as_tensor(value)
        for name, parameter in state.network.named_parameters()
        for kind, value in state.optimizer.state[parameter].items()
    }
    averages = {f"ema/{name}": tensor for name, tensor in state.ema.state_dict().items()}
    return state.network.state_dict() | averages | moments | (state.masks.tensors() if state.masks else {})


def test_two_ranks_have_the_gradients_of_one_rank_with_twice_the_batch(files, few_digits):
    examples(files)  # the files that both ranks read
    examples(files, "vq")
    small_drawings(files)
    text_digits.write_images(files / "images")
    text_digits.write_text_encoder(files / "text")
    prepare(str(files / "images"), files / "captioned", Options(limit=96, classifier=False))
    script = Path(__file__).with_name("techniques_worker.py")
    arguments = [str(files / "meeting"), str(few_digits.folder), str(files)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank), *arguments], env=environment) for rank in range(2)
    ]
    alone = {name: gradients(name, few_digits.folder, files, files / "one") for name in RANKED}
    assert [rank.wait() for rank in ranks] == [0, 0]
    for name, expected in alone.items():
        one, other = (load_file(files / f"{name}-{rank}.safetensors") for rank in range(2))
        assert one.keys() == other.keys() == expected.keys()
        for path, tensor in expected.items():
            assert torch.equal(one[path], other[path]), f"{name}: {path}"
            if not path.startswith("masks/"):
                largest = tensor.abs().max()
                assert (tensor - one[path]).abs().max() <= 1e-3 * largest + 1e-6, f"{name}: {path}"
