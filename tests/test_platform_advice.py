"""The advice of `scrimp inspect`: plain rules about made-up datasets, each with its reason."""

from types import SimpleNamespace

import pytest

from scrimp_platform.machine import parse_machine
from scrimp_platform.search import advice, forecast
from scrimp_platform.search.advice import Learned, MachinesAtHand
from scrimp_platform.search.resolution import SeedNoise
from scrimp_spaces import space as spaces
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import CAPTIONED, Manifest, Split


def made_up(
    count: int, size: int = 32, classes: tuple[int, ...] = (), modality: str = "images", channels: int = 3
) -> Manifest:
    """Return the manifest of a dataset; `classes` are the shares of the images of each class."""
    per_class = None
    if classes:
        per_class = [count * share // sum(classes) for share in classes]
        per_class[0] += count - sum(per_class)
    return Manifest(
        modality=modality,
        name="made-up",
        content_hash="0" * 64,
        size=size,
        channels=channels,
        classes=[f"class {number}" for number in range(len(classes))] or None,
        splits={"train": Split(count=count, per_class=per_class, shards=[])},
        reference="train",
        provenance={},
    )


def lines_of(manifest: Manifest, **options) -> dict[str, advice.Advised]:
    return {line.what: line for line in advice.advise(manifest, "data/made-up", **{"own": None, **options}).lines}


SPACES = [
    (made_up(1438, 8, (1, 1)), "scrimp-small", "8x8 pixels"),
    (made_up(1438, 8), "quickstart", "without classes"),
    (made_up(100, 256), "ld-diffusion", "100 images are few"),
    (made_up(2000, 256), "ld-diffusion-ffhq", "2,000 images"),
    (made_up(10_598, 256), "ldm", "latents are cheaper"),
    (made_up(3000, 32), "ambient", "3,000 images are few"),
    (made_up(50_000, 32, (1, 1, 1)), "scrimp", "50,000 labelled images"),
    (made_up(50_000, 32), "sparse-to-sparse", "without classes"),
    (made_up(50_000, 32, (10, 5, 1)), "prune-reweight", "10 times the images of the smallest"),
    (made_up(10_000, 256, modality=CAPTIONED), "sd-ambient", "captions"),
    (made_up(100_000, 299, modality="strokes"), "chirodiff", "pen drawings"),
    (made_up(1000, 299, (1, 1), "strokes"), "chirodiff-small", "1,000 labelled pen drawings"),
]


@pytest.mark.parametrize(("manifest", "space", "reason"), SPACES, ids=[space for _, space, _ in SPACES])
def test_the_space_follows_from_number_size_labels_and_modality(manifest, space, reason):
    name, why = advice.choose_space(manifest)
    assert name == space
    assert reason in why


def test_for_data_of_a_users_own_no_space_is_named():
    advised = advice.advise(made_up(100, modality="sounds:Sounds"), "data/sounds", own=None)
    assert [line.value for line in advised.lines] == ["none"]
    assert "docs/extending.md" in advised.lines[0].reason
    assert advised.commands == ()


@pytest.mark.parametrize("name", sorted({space for _, space, _ in SPACES}))
def test_on_the_dataset_that_a_space_is_made_for_its_budget_stays(name):
    space = spaces.load_space(name)
    manifest = forecast.made_up_manifest(space)
    assert advice._with_rungs(space, manifest)[0] == space
    assert advice._with_repeats(space, None)[0] == space


def test_of_many_images_each_is_seen_ten_times():
    # 1,590 kimg see each of 1,000,000 images 1.59 times: 10 / 1.59 = 6.29 times as long
    advised = advice.advise(made_up(1_000_000, 256), "data/made-up", own=None)
    assert advised.space is not None
    assert advised.space.budget.rungs_kimg == (1260.0, 3330.0, 10000.0)
    assert {line.what: line.value for line in advised.lines}["rungs"] == "1,260, 3,330, 10,000 kimg"
    assert "--rungs 1260,3330,10000" in advised.commands[-1]


def test_a_batch_is_no_larger_than_the_dataset():
    advised = advice.advise(made_up(40, 256), "data/made-up", own=None)
    base = spaces.load_space("ld-diffusion").base().training.batch_size
    assert base > 32
    assert advised.space is not None
    assert advised.space.base().training.batch_size == 32
    assert advised.space.base().training.flip == spaces.load_space("ld-diffusion").base().training.flip
    assert f"the recipe's {base} are more than the dataset's 40 images" in str(advised.lines)
    assert advised.commands[0].startswith("scrimp spaces ld-diffusion --yaml > ld-diffusion.yaml")
    assert "batch_size: 32" in advised.commands[0]
    assert "--space ld-diffusion.yaml" in advised.commands[1]


def test_repeats_follow_from_the_noise_between_seeds():
    space = spaces.load_space("ldm")
    manifest = made_up(10_598, 256)
    # 2 * ((1.645 + 0.842) * 0.04 / 0.05)^2 = 7.9: eight fresh seeds, and that of the search
    advised = lines_of(manifest, learned=Learned(noise=SeedNoise(0.04, "earlier")))
    assert advised["repeats"].value == "9"
    assert "seeds differ by 4.0% in sweep earlier" in advised["repeats"].reason
    assert lines_of(manifest, learned=Learned(noise=SeedNoise(0.001, "earlier")))["repeats"].value == "4"
    assert lines_of(manifest, learned=Learned(noise=SeedNoise(0.9, "earlier")))["repeats"].value == "11"
    unknown = lines_of(manifest)["repeats"]
    assert unknown.value == str(space.budget.repeats)
    assert "first sweep" in unknown.reason


@pytest.mark.parametrize(("own", "extractor"), [("contrastive", "contrastive"), (None, "inception")])
def test_a_space_is_scored_by_what_the_dataset_has(own, extractor):
    advised = advice.advise(made_up(1438, 8, channels=1), "data/made-up", own)
    assert advised.space is not None
    assert advised.space.scoring.extractor == extractor
    score = "fid" if extractor == "inception" else "fd_contrastive"
    assert list(advised.space.objectives) == [score]
    assert f"objectives: {{{score}: minimize}}, scoring.extractor: {extractor}" in advised.commands[0]
    spaces.parse_space(advised.space.model_dump(mode="json", exclude_defaults=True), "as advised")


def test_a_classifier_of_ones_own_is_kept():
    advised = advice.advise(made_up(1438, 8, (1, 1), channels=1), "data/made-up", "classifier")
    assert advised.space == spaces.load_space("scrimp-small")
    assert advised.commands == ("scrimp sweep --space scrimp-small --data data/made-up --dry-run",)


def test_hours_are_those_of_the_forecast_shared_by_the_nodes(monkeypatch):
    step = SimpleNamespace(fits=True, microbatch=16, images=64)
    hours = SimpleNamespace(total=100.0), SimpleNamespace(total=280.0)
    expected = SimpleNamespace(search=hours[0], references=20.0, race=hours[1], step=step, faults=["too much"])
    monkeypatch.setattr(forecast, "forecast", lambda space, manifest, machine: expected)
    lines = lines_of(made_up(10_598, 256), at_hand=MachinesAtHand(parse_machine("2x24GB"), 10, "as stated"))
    assert lines["hours"].value == "about 20.0 h"  # (100 + 20 + 280) / 20 GPUs
    assert "10 nodes of 2 x 24 GB (as stated): 120 GPU-hours for the search and at most 280" in lines["hours"].reason
    assert "nothing is measured" in lines["hours"].reason
    assert lines["microbatch"].value == "16"
    assert lines["exceeds"].reason == "too much"


def test_a_size_that_the_network_cannot_have_is_said_in_place_of_hours(monkeypatch):
    def refuse(space, manifest, machine):
        raise UserError("its size 33 is not a multiple of 8")

    monkeypatch.setattr(forecast, "forecast", refuse)
    line = lines_of(made_up(50_000, 33), at_hand=MachinesAtHand(parse_machine("1x24GB"), 1, "as stated"))["hours"]
    assert line.value == "not known"
    assert line.reason == "the space does not fit: its size 33 is not a multiple of 8"


@pytest.mark.slow
@pytest.mark.parametrize(("manifest", "space"), [(manifest, space) for manifest, space, _ in SPACES])
def test_every_space_that_is_advised_fits_its_dataset(manifest, space):
    own = "classifier" if manifest.classes else None
    lines = lines_of(manifest, own=own, at_hand=MachinesAtHand(parse_machine("2x24GB"), 1, "as stated"))
    assert lines["hours"].value.startswith("about "), lines["hours"].reason
