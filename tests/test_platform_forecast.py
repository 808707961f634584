"""What a sweep takes on a machine that is not here: `scrimp spaces NAME --on 2x24GB`."""

import dataclasses
import re
from pathlib import Path

import pytest

from scrimp_platform.cli import main
from scrimp_platform.machine import parse_machine
from scrimp_platform.report import formatting
from scrimp_platform.search import forecast
from scrimp_platform.search.estimate import Speed
from scrimp_spaces import space as spaces
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.training import load

WORKSTATION = parse_machine("2x24GB")
PAPERS = (Path(__file__).parent.parent / "docs" / "papers.md").read_text()
SMALL = [name for name in spaces.names() if name.endswith("-small")]  # they have no GPU-hours as their budget
SPACES = [pytest.param(name, marks=pytest.mark.slow if name in SMALL else ()) for name in spaces.names()]


@pytest.mark.parametrize("name", SPACES)
def test_no_space_exceeds_two_gpus_of_24_gb_or_its_budget(name):
    space = spaces.load_space(name)
    expected = forecast.forecast(space, forecast.made_up_manifest(space), WORKSTATION)
    assert expected.faults == []
    assert expected.step.bytes < 24 * 2**30
    budget = space.budget
    if budget.max_gpu_hours is not None:
        searching = expected.search.total + expected.references
        assert searching <= (1 - budget.race_share) * budget.max_gpu_hours
        assert searching + expected.race.total <= budget.max_gpu_hours
        assert hours_in_comment(name) == (shown(expected.repeat.total), shown(searching), shown(expected.race.total))


def hours_in_comment(name: str) -> tuple[str, ...]:
    """Return the GPU-hours of a repeat, the search and the race that a space's file states."""
    text = " ".join(spaces.space_yaml(name).replace("\n#", "").split())
    match = re.search(r"([\d,.]+) GPU-hours a repeat, ([\d,.]+) for the search.*? ([\d,.]+) for the race", text)
    assert match, name
    return match.groups()


def shown(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else formatting.number(hours)


def networks_of_presets() -> dict[str, tuple[str, str]]:
    """Return a preset with each network of docs/papers.md, and the shape of what it sees."""
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| (\d+x\d+x\d+) \| [^|]+ \| ([\d,]+) \|$", PAPERS, re.MULTILINE)
    return {f"{shape} {weights}": (name, shape) for name, shape, weights in rows}


@pytest.mark.slow
def test_an_image_of_every_presets_network_fits_on_24_gb():
    scoring = Scoring.model_validate({"extractor": "inception"})
    networks = networks_of_presets()
    assert len(networks) > 8
    facts = forecast.made_up_manifest(spaces.load_space("scrimp"))
    for name, shape in networks.values():
        recipe = recipes.load(name)
        side = int(shape.rpartition("x")[2])
        if recipe.codec.on:
            side *= load.LATENTS[recipe.codec.kind].factor
        data = facts.model_copy(update={"size": side})
        asked = load.load_of(recipe, data)
        memory = load.gpu_memory(asked, recipe, data, scoring, WORKSTATION.gpu)
        assert memory.images_in(memory.total - memory.others) >= 1, name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("24GB", "write GPUs and the memory of each, such as 2x24GB"),
        ("2x24", "write GPUs and the memory of each, such as 2x24GB"),
        ("0x24GB", "a machine has 1 to 16 GPUs"),
        ("99x24GB", "a machine has 1 to 16 GPUs"),
        ("2x23GB", "the speed of a GPU with 23 GB is not known; take 16, 24, 48, 80, 141 GB"),
    ],
)
def test_a_machine_that_is_none_gets_a_line(text, complaint):
    with pytest.raises(UserError, match=f"--on {text}: {complaint}"):
        parse_machine(text)


def test_a_machine_is_gpus_and_the_memory_of_each():
    machine = parse_machine("2x24gb")
    assert (machine.gpus, machine.gpu.memory, machine.gpu.name) == (2, 24, "NVIDIA RTX A5000")


def made_forecast(max_gpu_hours: float | None, fit: int = 8) -> forecast.Forecast:
    """9 trials to 10 kimg of which 3 go on to 30, and 3 leaders with 2 more repeats; 36 s a kimg and a score."""
    space = spaces.load_space("quickstart")
    budget = {"trials": 9, "repeats": 3, "rungs_kimg": (10.0, 30.0), "max_gpu_hours": max_gpu_hours}
    space = space.model_copy(update={"budget": space.budget.model_copy(update=budget)})
    speed = Speed(seconds_per_kimg=36.0, seconds_per_score=36.0, bytes=100)
    memory = load.Memory(total=24 * 2**30, others=0, constant=0, image=1)
    return forecast.Forecast(
        WORKSTATION,
        forecast.made_up_manifest(space),
        "fp32",
        forecast.StepForecast(memory, images=8, least=1, fit=fit),
        speed,
        speed,
        forecast.estimate.work(space, speed, 2),
        space.budget,
    )


def test_gpu_hours_are_those_of_all_gpus_by_phase():
    expected = made_forecast(None)
    # 9 x 10 + 3 x 20 kimg and 12 scores of 36 s, on two GPUs.
    assert dataclasses.astuple(expected.search) == pytest.approx((3.0, 0.24))
    # 6 repeats of 30 kimg and 2 scores.
    assert dataclasses.astuple(expected.race) == pytest.approx((3.6, 0.24))
    assert dataclasses.astuple(expected.repeat) == pytest.approx((0.6, 0.04))
    assert expected.bytes == 15 * 100
    assert expected.faults == []


def test_what_exceeds_machine_or_budget_is_said():
    # Three quarters of 4 hours are the search's, which takes 3.24; of 6 the race gets what that leaves.
    assert [fault.split()[:2] for fault in made_forecast(4.0).faults] == [["the", "search"], ["the", "race"]]
    assert [fault.split()[:2] for fault in made_forecast(6.0).faults] == [["the", "race"]]
    assert made_forecast(8.0).faults == []
    assert made_forecast(8.0, fit=0).faults == ["a GPU has room for 0 images, and the recipe needs 1 at once"]
    limited = dataclasses.replace(made_forecast(8.0), most_device_hours=0.5)  # a repeat takes 0.64
    assert limited.faults == ["the base recipe takes 0.6 device-hours; constraints allow 0.5"]


def test_the_costliest_recipe_stands_for_all():
    space = spaces.load_space("quickstart")
    facts = forecast.made_up_manifest(space)
    expected = forecast.forecast(space, facts, WORKSTATION)
    widest = space.base().replace({"network.channels": 32, "network.dropout": 0.3})
    asked = load.load_of(widest, facts)
    assert expected.step.memory.image == asked.counted.image
    assert expected.speed.bytes == asked.bytes


def test_references_count_with_the_search():
    space = spaces.load_space("prune-reweight-small")
    expected = forecast.forecast(space, forecast.made_up_manifest(space), WORKSTATION)
    assert expected.references > 0


def test_the_page_fits_80_columns_and_says_that_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(forecast_console(), "width", 80)
    main.main(["spaces", "quickstart", "--on", "2x24GB"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for name in ("machine", "data", "memory", "microbatch", "repeats", "search", "race", "disk", "assumes"):
        assert any(line.startswith(name) for line in lines), name
    assert "Nothing is measured" in text
    assert "NVIDIA RTX A5000 at 11.1 TFLOP/s in fp32, 40% of its peak" in text
    assert "8 trials" in text
    assert "1438 images of 8x8, grey, 10 classes" in text


def forecast_console():
    from scrimp_platform.cli import terminal

    return terminal.console


def test_a_dataset_can_be_named(scored_digits, capsys):
    main.main(["spaces", "quickstart", "--on", "1x80GB", "--data", str(scored_digits.folder)])
    assert scored_digits.manifest.name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--on", "2x24GB"], "--on takes the NAME of a space"),
        (["quickstart", "--data", "here"], "--data is for --on"),
        (["chirodiff-small", "--on", "2x24GB", "--data", "DIGITS"], "is of images, but the space is for strokes"),
        (["SPACE", "--on", "2x24GB"], "the space has no made_for"),
    ],
)
def test_a_question_that_cannot_be_answered_gets_a_line(
    arguments: list[str], complaint: str, scored_digits, tmp_path, capsys
):
    mine = tmp_path / "mine.yaml"
    text = spaces.space_yaml("quickstart")
    mine.write_text(re.sub("^made_for.*\n", "", text, flags=re.MULTILINE))
    words = {"DIGITS": str(scored_digits.folder), "SPACE": str(mine)}
    with pytest.raises(SystemExit) as caught:
        main.main(["spaces", *(words.get(argument, argument) for argument in arguments)])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert complaint in message
    assert message.count("\n") == 1
