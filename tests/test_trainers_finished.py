"""A finished run: it is scored later, made longer, or left as it is."""

import dataclasses
import json
import re
import shutil
import warnings
from importlib import metadata
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file
from trainers_small import small

from scrimp_platform.cli import commands
from scrimp_trainers.common import checksums, environment, metrics_log
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.export import load_model
from scrimp_trainers.run import train_repeat

KIMG, LONGER = 0.064, 0.128
TIMING = {"seconds", "images_per_second", "device_hours"}


def recipe(**values):
    return small(**{"training__batch_size": 32, "training__kimg": KIMG, "sampler__steps": 1} | values)


def train(dataset, folder, recipe):
    kimg = recipe.training.kimg
    return list(train_repeat(recipe, dataset, folder, 5, rungs_kimg=[kimg]))


def timeless(line):
    return {name: value for name, value in line.to_entries().items() if name not in TIMING}


@pytest.mark.parametrize("sparse", [{}, {"sparsity__method": "static"}])
def test_a_longer_run_is_the_run_of_that_length(digits_dataset, tmp_path, sparse):
    longer = recipe(training__kimg=LONGER, **sparse)
    whole = train(digits_dataset, tmp_path / "whole", longer)
    train(digits_dataset, tmp_path / "continued", recipe(**sparse))
    known, *new = train(digits_dataset, tmp_path / "continued", longer)
    assert known.rung == KIMG
    assert [line.images for line in new] == [128]

    for name in ("network", "ema", "optimizer"):
        file = f"checkpoint/last/{name}.safetensors"
        one, other = (load_file(tmp_path / run / file) for run in ("whole", "continued"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    last = metrics_log.read_rows(tmp_path / "continued" / "metrics.jsonl")[-1]
    cost = ("kimg", "rung", "train_flops", "lr")
    assert [last.value(name) for name in cost] == [whole[-1].value(name) for name in cost]

    model, theirs = load_model(tmp_path / "continued" / "model")
    assert theirs == longer
    saved = load_file(tmp_path / "whole" / "checkpoint" / "last" / "ema.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_a_run_is_not_continued_on_another_dataset(digits_dataset, tmp_path):
    train(digits_dataset, tmp_path, recipe())
    changed = digits_dataset.manifest.model_copy(update={"content_hash": "0" * 64})
    other = dataclasses.replace(digits_dataset, manifest=changed)
    with pytest.raises(UserError, match=r"dataset is '\w+' there and '0{64}' here"):
        train(other, tmp_path, recipe(training__kimg=LONGER))


@pytest.mark.parametrize("method", ["rigl", "magran"])
def test_a_run_whose_masks_follow_a_schedule_does_not_become_longer(digits_dataset, tmp_path, method):
    train(digits_dataset, tmp_path, recipe(sparsity__method=method))
    with pytest.raises(UserError, match=r"kimg, which sets the masks' schedule, is 0\.064 there and 0\.128 here"):
        train(digits_dataset, tmp_path, recipe(sparsity__method=method, training__kimg=LONGER))


@pytest.mark.parametrize("file", ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "README.md"])
def test_a_finished_run_whose_model_is_damaged_exports_it_again(digits_dataset, tmp_path, file):
    train(digits_dataset, tmp_path, recipe())
    exported = tmp_path / "model" / file
    whole = exported.read_bytes()
    exported.write_bytes(whole[:-2] + b"\xff" + whole[-1:])
    train(digits_dataset, tmp_path, recipe())
    assert exported.read_bytes() == whole


def test_a_run_becomes_neither_shorter_nor_another(digits_dataset, tmp_path):
    train(digits_dataset, tmp_path, recipe())
    before = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match=r"has been trained for 0\.064 kimg, more than training\.kimg 0\.032"):
        train(digits_dataset, tmp_path, recipe(training__kimg=0.032))
    with pytest.raises(UserError, match=r"another run \(optimizer\.lr is "):
        train(digits_dataset, tmp_path, recipe(training__kimg=LONGER, optimizer__lr=0.5))
    assert (tmp_path / "recipe.yaml").read_bytes() == before


def test_a_finished_run_is_scored_as_it_would_have_been(scored_digits, tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text(recipe().to_yaml())

    def command(name, extractor, samples=64):
        commands.train(
            str(tmp_path / "recipe.yaml"), scored_digits.folder, tmp_path / name, None, 5, extractor, samples
        )
        return metrics_log.read_rows(tmp_path / name / "metrics.jsonl")[-1]

    scored = command("scored", "classifier")
    command("later", None)
    assert "fd_classifier" not in (tmp_path / "later" / "model" / "README.md").read_text()
    monkeypatch.setattr("scrimp_trainers.training.state.learning_rate", lambda *_: pytest.fail("trained"))
    later = command("later", "classifier")
    assert timeless(later) == timeless(scored)
    card = (tmp_path / "later" / "model" / "README.md").read_text()
    assert f"| fd_classifier | {scored.value('fd_classifier'):.6g} |" in card
    assert "finished already" not in capsys.readouterr().out

    assert command("later", "classifier") == later
    assert "was finished already; nothing was left to train or to score" in capsys.readouterr().out
    assert command("later", None) == later
    with pytest.raises(UserError, match=r"scored by 64 samples with extractor classifier; use `scrimp evaluate "):
        command("later", "classifier", samples=128)
    state = json.loads((tmp_path / "later" / "checkpoint" / "last" / "state.json").read_text())
    assert state["extra"]["lines"][-1] == later.to_entries()


def test_a_run_without_its_checkpoints_says_that_it_starts_again(digits_dataset, tmp_path):
    (whole,) = train(digits_dataset, tmp_path, recipe())
    shutil.rmtree(tmp_path / "checkpoint")
    note = f"{tmp_path / 'checkpoint'}: no checkpoint is left; training starts again"
    with pytest.warns(UserWarning, match=re.escape(note)):
        (again,) = train(digits_dataset, tmp_path, recipe())
    assert timeless(again) == timeless(whole)


def environments(folder):
    return checksums.unseal((folder / "environments.json").read_bytes())["attempts"]


def test_other_code_or_torch_on_resume_is_named_and_recorded(digits_dataset, tmp_path, monkeypatch):
    train(digits_dataset, tmp_path, recipe())
    (first,) = environments(tmp_path)
    assert first["images"] == 0
    assert first["torch"] == version("torch")
    assert first["dataset"] == digits_dataset.manifest.content_hash
    assert len(first["code"]) == 64

    monkeypatch.setattr(environment, "_code", lambda: "c0de" * 16)
    monkeypatch.setattr(metadata, "version", lambda name: {"torch": "9.9"}.get(name, first["diffusers"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(digits_dataset, tmp_path, recipe())  # nothing is left to train
    assert environments(tmp_path) == [first]
    code = first["code"][:12]
    was = f"code c0dec0dec0de (was {code}), torch 9.9 (was {first['torch']})"
    with pytest.warns(UserWarning, match=f"^changed since the last attempt: {re.escape(was)}$"):
        train(digits_dataset, tmp_path, recipe(training__kimg=LONGER))
    other = first | {"images": 64, "code": "c0de" * 16, "torch": "9.9"}
    assert environments(tmp_path) == [first, other]
    state = json.loads((tmp_path / "checkpoint" / "last" / "state.json").read_text())
    assert state["extra"]["environments"] == [first, other]
