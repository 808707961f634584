"""A user's own parts: the examples of docs/extending.md, from a folder outside the checkout, and what is refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import scrimp
from scrimp_platform import store
from scrimp_platform.cli import commands
from scrimp_platform.plan import SweepOptions, make_plan
from scrimp_platform.sweep_record import sweep_record
from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe import recipe as recipes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()


def write_examples(folder: Path) -> None:
    """Write the page's blocks as one would: my_parts.py and lab.yaml."""
    (folder / "my_parts.py").write_text("\n\n".join(re.findall("```python\n(.*?)```", PAGE, re.DOTALL)))
    (space,) = re.findall("```yaml\n(.*?)```", PAGE, re.DOTALL)
    (folder / "lab.yaml").write_text(space)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    write_examples(folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(parts, "_own_files", {})


RECIPE = """
parts: [my_parts.py]
network: {kind: "my_parts:MyNetwork", width: 16}
sampler: {kind: "my_parts:MySampler", steps: 8}
technique: {kind: "my_parts:MyTechnique"}
optimizer: {lr: 2.0e-3, warmup_kimg: 1}
ema: {halflife_kimg: 1}
training: {kimg: 3, batch_size: 64}
"""


@pytest.fixture
def recipe(examples):
    (examples / "own.yaml").write_text(RECIPE)
    return scrimp.Recipe.load(examples / "own.yaml")


def test_a_recipe_with_own_parts_trains_resumes_samples_and_is_read_back(recipe, scored_digits, examples, tmp_path):
    lines = scrimp.train(recipe, scored_digits, tmp_path / "out", seed=1)
    first = next(lines)
    del lines
    rest = list(scrimp.train(recipe, scored_digits, tmp_path / "out", seed=1))
    whole = list(scrimp.train(recipe, scored_digits, tmp_path / "whole", seed=1))
    assert rest[-1].loss == whole[-1].loss < first.loss

    model = scrimp.load_model(tmp_path / "out" / "model")
    assert model.recipe == recipe
    assert model.sample(3).shape == (3, 1, 8, 8)
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert 'scrimp.load_parts("my_parts.py")' in card


def test_an_own_process_trains_and_samples_with_scrimps_network_and_samplers(examples, scored_digits, tmp_path):
    text = 'parts: [my_parts.py]\ndiffusion: {kind: "my_parts:MyProcess"}\nsampler: {kind: dpmpp, steps: 4}\n'
    (examples / "flow.yaml").write_text(text)
    small = {"network.channels": 8, "network.attention": [], "training.kimg": 0.2, "training.batch_size": 50}
    recipe = scrimp.Recipe.load(examples / "flow.yaml").replace(small)
    *_, last = scrimp.train(recipe, scored_digits, tmp_path / "out")
    assert last.loss < 2
    assert scrimp.load_model(tmp_path / "out" / "model").sample(2).shape == (2, 1, 8, 8)


def test_an_own_codec_trains_scrimps_network_and_samples_images(examples, scored_digits, tmp_path):
    (examples / "squares.yaml").write_text('parts: [my_parts.py]\ncodec: {kind: "my_parts:MyCodec"}\n')
    small = {"network.channels": 8, "network.multipliers": [1, 2], "network.attention": [], "sampler.steps": 4}
    small |= {"training.kimg": 0.2, "training.batch_size": 50, "training.flip": True}
    recipe = scrimp.Recipe.load(examples / "squares.yaml").replace(small)
    *_, last = scrimp.train(recipe, scored_digits, tmp_path / "out", extractor="classifier", samples=50)
    assert last.value("fd_classifier") > 0
    model = scrimp.load_model(tmp_path / "out" / "model")
    assert tuple(model.network.shape) == (4, 4, 4)
    assert model.sample(2).shape == (2, 1, 8, 8)


def test_a_sweep_of_own_parts_runs_from_another_folder(examples, scored_digits, tmp_path):
    """Network, sampler, technique, score and proposer, in processes that know them only through the sweep's copy."""
    command = [sys.executable, ROOT / "sweep.py", "--space", "lab.yaml", "--storage", tmp_path / "runs"]
    command += ["--data", scored_digits.folder, "--name", "own"]
    done = subprocess.run(command, cwd=examples, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "own"
    assert (folder / "parts" / "my_parts.py").read_bytes() == (examples / "my_parts.py").read_bytes()
    result = scrimp.Result.load(folder)
    assert result.reason == "complete"
    assert "mean_distance" in result.verdict
    # Reading the results runs nothing of the user's.
    with pytest.raises(UserError, match=r"my_parts\.py has not been loaded"):
        _ = result.best_recipe
    assert result.rank({"kimg": "minimize"}).verdict
    best = scrimp.Recipe.load(folder / "best_recipe.yaml")
    assert best.network.kind == "my_parts:MyNetwork"
    assert best.parts == (folder / "parts" / "my_parts.py",)


def test_a_changed_file_is_another_sweep(examples, scored_digits, tmp_path, monkeypatch):
    write_examples(tmp_path)
    options = SweepOptions(space=str(tmp_path / "lab.yaml"), data=str(scored_digits.folder), storage=tmp_path / "runs")
    plan = make_plan(options)
    store.write_json(plan.folder.description, sweep_record(plan))
    assert make_plan(options).resumed

    with (tmp_path / "my_parts.py").open("a") as file:
        file.write("# changed\n")
    monkeypatch.setattr(parts, "_own_files", {})
    with pytest.raises(UserError, match=r"exists and differs: parts\.my_parts\.py was "):
        make_plan(options)


def test_an_own_reader_and_an_own_extractor(examples, tmp_path):
    source = tmp_path / "rows"
    source.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(60):
        rows = torch.randint(10, (8, 8), generator=generator).tolist()
        (source / f"{number:02}.txt").write_text("\n".join(" ".join(map(str, row)) for row in rows))
    scrimp.load_parts(examples / "my_parts.py")
    dataset = scrimp.prepare(source, tmp_path / "data", reader="my_parts:MyReader", near=0)
    images, _, _ = dataset.images("train")
    assert images.shape[1:] == (1, 8, 8)
    assert set(images.flatten().tolist()) <= {28 * digit for digit in range(10)}

    recipe = recipes.load("tiny-edm").replace({"network.channels": 8, "training.kimg": 0.2, "sampler.steps": 2})
    extractor = "my_parts:MyExtractor"
    *_, last = scrimp.train(recipe, dataset, tmp_path / "out", extractor=extractor, samples=40)
    assert last.value("fd_my_parts_MyExtractor") > 0
    assert last.extractor == extractor


def test_no_file_is_run_that_the_user_did_not_name(recipe, scored_digits, tmp_path, monkeypatch):
    list(scrimp.train(recipe.replace({"training.kimg": 0.1}), scored_digits, tmp_path / "out"))
    monkeypatch.setattr(parts, "_own_files", {})
    with pytest.raises(UserError, match=r"my_parts:MyNetwork: the file my_parts\.py has not been loaded"):
        scrimp.load_model(tmp_path / "out" / "model")
    assert parts._own_files == {}


MISTAKES = [
    ("parts: [gone.py]", r"parts: .*gone\.py: not a Python file"),
    ("parts: [broken.py]", r"broken\.py: cannot be imported: SyntaxError"),
    ('parts: [my_parts.py]\nnetwork: {kind: "my_parts:Nothing"}', "my_parts.py has no 'Nothing'"),
    ('parts: [my_parts.py]\nnetwork: {kind: "my_parts:MySampler"}', "has to be a class that extends Network"),
    ('parts: [my_parts.py]\nnetwork: {kind: "my_parts:MyNetwork", depth: 3}', r"depth: Extra inputs are not permitted"),
    ('parts: [my_parts.py]\nnetwork: {kind: "my_parts:MyNetwork", width: x}', r"width: .*valid integer.*'x'"),
    ('parts: [my_parts.py]\nnetwork: {kind: "my_parts:MyNetwork"}\npatches: {real_p: 0.5, sizes: [0.5]}',
     "patches needs coordinates"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_one_line(examples, text, message):
    (examples / "broken.py").write_text("def")
    (examples / "wrong.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        scrimp.Recipe.load(examples / "wrong.yaml")
    assert "\n" not in str(raised.value)


def test_two_files_of_one_name_are_refused(examples, tmp_path):
    (tmp_path / "my_parts.py").write_text("x = 1\n")
    scrimp.load_parts(examples / "my_parts.py")
    scrimp.load_parts(examples / "my_parts.py")
    with pytest.raises(UserError, match=r"another my_parts\.py has been loaded"):
        scrimp.load_parts(tmp_path / "my_parts.py")


BROKEN = """
import torch
from torch import nn

from scrimp_trainers.codecs.pixels import scaled, to_pixels
from scrimp_trainers.data.modalities.modality import Items
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.networks import Network
from scrimp_trainers.recipe.samplers import Sampler
from scrimp_trainers.recipe.own_technique import Technique
from scrimp_trainers.recipe.techniques import CodecSection


class Forgetful(Network):
    def build(self, *, image_size, channels, classes, augment_labels, coordinates):
        return Net(channels, image_size)

    @staticmethod
    def load(folder):
        return Net.from_folder(folder)


class Net(Denoiser):
    def __init__(self, channels, image_size):
        super().__init__()
        self.config = {"channels": channels, "image_size": image_size}
        self.shape = torch.Size((channels, image_size, image_size))
        self.classes = 0
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = 1.0

    def forward(self, images, levels, conditions=None):
        self.scale *= 0.99  # neither saved nor restored
        return self.layer(images) * self.scale


class OneStep(Sampler):
    @staticmethod
    def sample(process, settings, predict, noise, *, clip):
        level = process.grid(settings.steps)[0]
        x = noise() * float(process.scales(torch.tensor([level]))[1])
        levels = torch.full((len(x),), level)
        return process.clean(predict(x, levels), x, levels)


class Undrawn(Technique):
    def augment(self, images, generator):
        return images + 0.1 * torch.randn_like(images)  # not from the generator


class Idle(Technique):
    strength: float = 0.0

    def augment(self, images, generator):
        return images + self.strength


class Wordy:
    @staticmethod
    def names(extractor):
        return ["one"]

    @staticmethod
    def scores(compared):
        return {"one": 1.0, "two": 2.0}


class Lossy(CodecSection):
    offers = frozenset({"a grid"})

    def shape(self, items):
        return items

    def item_shape(self, x):
        return x

    def encode(self, values, draw):
        return scaled(values).flip(2)

    def decode(self, x):
        return Items(to_pixels(x))


def drifting(space, seed, number):
    from optuna.samplers import RandomSampler

    return RandomSampler()
"""


def test_check_passes_the_examples_and_names_the_broken_promise(examples, tmp_path, capsys):
    assert commands.check(examples / "my_parts.py")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "my_parts:MyNetwork  network  ok",
        "my_parts:MySampler  sampler  ok",
        "my_parts:MyProcess  process  ok",
        "my_parts:MyCodec  codec  ok",
        "my_parts:MyTechnique  technique  ok",
        "my_parts:MyScore  score  ok",
        "my_parts:my_proposer  proposer  ok",
    ]

    (tmp_path / "broken_parts.py").write_text(BROKEN)
    assert not commands.check(tmp_path / "broken_parts.py")
    said = capsys.readouterr().out
    assert "broken_parts:Forgetful  network  a resumed training has other weights" in said
    assert re.search(r"broken_parts:OneStep  sampler  data of standard deviation 0\.25 come out with", said)
    assert "broken_parts:Lossy  codec  what it decodes is no more like the images than their mean is" in said
    assert "broken_parts:Undrawn  technique  a resumed training has other weights" in said
    assert "broken_parts:Idle  technique  training ends with the same weights without it" in said
    assert "broken_parts:Wordy  score  gives ['one', 'two'], but lists ['one']" in said
    assert "broken_parts:drifting  proposer  a resumed sweep proposes" in said


def test_a_file_without_parts_is_refused(tmp_path):
    (tmp_path / "empty_parts.py").write_text("import torch\n")
    with pytest.raises(UserError, match="defines no part"):
        commands.check(tmp_path / "empty_parts.py")
