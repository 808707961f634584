"""A user's own parts: the examples of docs/extending.md, from a folder outside the checkout, and what is refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import scrimp
from scrimp_platform import store
from scrimp_platform.plan import SweepOptions, make_plan, sweep_record
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
    assert rest[-1]["loss"] == whole[-1]["loss"] < first["loss"]

    model = scrimp.load_model(tmp_path / "out" / "model")
    assert model.recipe == recipe
    assert model.sample(3).shape == (3, 1, 8, 8)
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert 'scrimp.load_parts("my_parts.py")' in card


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
    assert last["fd_my_parts_MyExtractor"] > 0
    assert last["extractor"] == extractor


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
