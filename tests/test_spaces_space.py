"""Spaces: every one that ships loads, and what does not fit is refused with the reason."""

import itertools

import pytest
import yaml
from optuna.trial import FixedTrial

from scrimp_platform.search.searched_values import suggest
from scrimp_spaces import space as spaces
from scrimp_spaces.constraints import Bound
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.diffusion import DDPM
from scrimp_trainers.recipe.samplers import Heun

CHANNELS = {"network.channels": {"choice": [16, 24, 32]}}
GOOD = {
    "recipe": "tiny-edm",
    "search": {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
    "objectives": {"fd_classifier": "minimize"},
    "scoring": {"extractor": "classifier"},
}


@pytest.mark.parametrize("name", spaces.names())
def test_a_space_that_ships_loads_and_survives_a_round_trip(name):
    space = spaces.load_space(name)
    assert space.about
    assert spaces.parse_space(yaml.safe_load(space.to_yaml()), name) == space


def test_a_list_of_scorings_has_objectives_that_name_their_extractor():
    scoring = [{"extractor": "classifier", "samples": 500}, {"extractor": "dinov2"}]
    objectives = {"fd_classifier": "minimize", "memorized_fraction_dinov2": "minimize"}
    space = spaces.Space.of(**GOOD | {"scoring": scoring, "objectives": objectives})
    assert space.scoring.extractors == "classifier, dinov2"
    assert [each.samples for each in space.scoring.each] == [500, 500]
    assert spaces.parse_space(yaml.safe_load(space.to_yaml()), "copy") == space
    with pytest.raises(UserError, match="memorized_fraction: several extractors score here; name it in full"):
        spaces.Space.of(**GOOD | {"scoring": scoring, "objectives": {"memorized_fraction": "minimize"}})
    with pytest.raises(UserError, match="scoring: lists an extractor twice: clip, clip"):
        spaces.Space.of(**GOOD | {"scoring": [{"extractor": "clip"}, {"extractor": "clip"}]})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"search": {"optimizer.speed": {"uniform": [0, 1]}}}, "optimizer.speed: a recipe has no such field"),
        (
            {"search": {"network.dropout": {"uniform": [0, 1.5]}}},
            "network.dropout: Input should be less than 1, not 1.5",
        ),
        ({"search": {"optimizer.lr": {"uniform": [2, 1]}}}, "the lower bound 2.0 is not below the upper 1.0"),
        ({"search": {"optimizer.lr": {"uniform": [1, 2], "choice": [1, 2]}}}, "a range is one of"),
        ({"search": {"optimizer.lr": {"loguniform": [0, 1]}}}, "loguniform needs bounds above 0"),
        ({"search": {}}, "a space needs fields to search, or arms to compare"),
        ({"objectives": {"fid": "minimize"}}, "fid: is measured with extractor inception"),
        ({"objectives": {"beauty": "maximize"}}, "beauty: no such score"),
        ({"constraints": {"memorized_fraction": {}}}, "a constraint needs max, min, max_ratio or min_ratio"),
        ({"budget": {"rungs_kimg": [4, 2]}}, "rungs_kimg must rise"),
        ({"budget": {"rung_shares": [0.5, 0.25]}}, "rung_shares must rise"),
        ({"budget": {"rung_shares": [0.5, 2]}}, "budget.rung_shares.1: Input should be less than or equal to 1, not 2"),
        ({"budget": {"rung_shares": [0.5, 0.50000001]}}, "rungs_kimg must rise"),
        ({"budget": {"rung_shares": [1], "rungs_kimg": [1]}}, "so set rungs_kimg or rung_shares, not both"),
        ({"recipe": "nonsense"}, "recipe nonsense: no such preset or file"),
        ({"override": {"sampler.kind": "ddim"}}, "sampler.kind: 'ddim' needs a chain of steps"),
        ({"colour": "blue"}, "colour: Extra inputs are not permitted"),
        (
            {"search": {"optimizer.lr": {"uniform": [1, 2], "when": {"network.channels": [8]}}}},
            "search.optimizer.lr.when: network.channels must be searched before optimizer.lr",
        ),
        (
            {
                "search": {
                    "optimizer.kind": {"choice": ["adam", "adamw"]},
                    "optimizer.weight_decay": {"uniform": [0, 0.1], "when": {"optimizer.kind": ["adam", "sgd"]}},
                }
            },
            "search.optimizer.weight_decay.when: optimizer.kind is never 'sgd'",
        ),
        (
            {"search": {"conditioning.classes": {"choice": [False, True]}, "sampler.guidance": {"choice": [1, 3]}}},
            "search: sampler.guidance 3 may be proposed, but recipe: sampler.guidance needs conditioning.classes",
        ),
    ],
)
def test_a_space_that_does_not_hold_is_refused_with_the_reason(changes, complaint):
    with pytest.raises(UserError) as caught:
        spaces.parse_space(GOOD | changes, "space lab.yaml")
    assert str(caught.value).startswith("space lab.yaml: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rungs_as_shares_are_marks_in_the_whole_training_of_the_recipe():
    changes = {"override": {"training.kimg": 900}, "budget": {"rung_shares": [0.1, 1 / 3, 1]}}
    space = spaces.parse_space(GOOD | changes, "space")
    assert space.budget.rungs_kimg == (90.0, 300.0, 900.0)
    assert space.base().training.kimg == 900
    assert spaces.parse_space(yaml.safe_load(space.to_yaml()), "copy") == space

    part = spaces.parse_space(GOOD | changes | {"budget": {"rung_shares": [0.1, 0.5]}}, "space")
    assert part.base().training.kimg == 450


@pytest.mark.parametrize(("name", "kimg"), [("ld-diffusion", 40_000), ("ld-diffusion-ffhq", 20_000)])
def test_the_spaces_of_ld_diffusion_judge_no_recipe_before_a_ninth_of_the_papers_training(name, kimg):
    rungs = spaces.load_space(name).budget.rungs_kimg
    assert rungs[0] == pytest.approx(kimg / 9, rel=0.01)
    assert rungs[-1] == recipes.load(spaces.load_space(name).recipe).training.kimg == kimg


def test_conditions_decide_which_fields_are_searched():
    search = {
        "optimizer.kind": {"choice": ["adam", "adamw"]},
        "optimizer.weight_decay": {"uniform": [0, 0.1], "when": {"optimizer.kind": ["adamw"]}},
    }
    space = spaces.parse_space(GOOD | {"search": search}, "space")
    assert space.active({"optimizer.kind": "adam"}) == ["optimizer.kind"]
    assert space.active({"optimizer.kind": "adamw"}) == ["optimizer.kind", "optimizer.weight_decay"]


GUIDED = {
    "conditioning.classes": {"choice": [False, True]},
    "conditioning.label_drop": {"choice": [0.1, 0.2], "when": {"conditioning.classes": [True]}},
    "sampler.guidance": {"uniform": [1, 3], "when": {"conditioning.label_drop": [0.1, 0.2]}},
}


def test_conditions_make_ranges_that_would_contradict_each_other_fit():
    space = spaces.parse_space(GOOD | {"search": GUIDED}, "space")
    corners = list(space.corners())
    assert {"conditioning.classes": True, "conditioning.label_drop": 0.1, "sampler.guidance": 3.0} in corners
    assert all(space.active(corner) == list(corner) for corner in corners)


def test_every_two_ends_of_ranges_meet_in_a_corner_where_their_conditions_allow_it():
    search = {
        "optimizer.kind": {"choice": ["adam", "adamw"]},
        "optimizer.weight_decay": {"uniform": [0, 0.1], "when": {"optimizer.kind": ["adamw"]}},
        "optimizer.eps": {"choice": [1e-8, 1e-6], "when": {"optimizer.kind": ["adam"]}},
        "network.channels": {"int": [8, 16]},
    }
    corners = list(spaces.parse_space(GOOD | {"search": search}, "space").corners())
    for decay, channels in itertools.product((0, 0.1), (8, 16)):
        assert {"optimizer.kind": "adamw", "optimizer.weight_decay": decay, "network.channels": channels} in corners
    assert not any({"optimizer.weight_decay", "optimizer.eps"} <= corner.keys() for corner in corners)


def test_fields_of_another_kind_are_searched_where_that_kind_is():
    search = {
        "network.kind": {"choice": ["unet", "dit"]},
        "network.patch_size": {"choice": [1, 2, 4], "when": {"network.kind": ["dit"]}},
        "network.heads": {"int": [2, 6], "step": 2, "when": {"network.kind": ["dit"]}},
        "network.blocks": {"int": [1, 2], "when": {"network.kind": ["unet"]}},
    }
    space = spaces.parse_space(GOOD | {"search": search}, "space")
    corners = list(space.corners())
    assert {"network.kind": "dit", "network.patch_size": 4, "network.heads": 2} in corners
    assert {"network.kind": "unet", "network.blocks": 2} in corners
    assert not any({"network.blocks", "network.heads"} <= corner.keys() for corner in corners)

    search["network.patch_size"] = {"choice": [1, 2]}
    with pytest.raises(UserError, match=r"network\.patch_size: a recipe has no such field"):
        spaces.parse_space(GOOD | {"search": search}, "space")


def test_the_base_recipe_is_as_long_as_the_last_rung_and_has_the_overrides():
    space = spaces.parse_space(GOOD | {"override": {"network.channels": 16}, "budget": {"rungs_kimg": [1, 7]}}, "space")
    base = space.base()
    assert (base.training.kimg, spaces.value_of(base, "network.channels")) == (7, 16)


def test_a_bound_says_by_which_share_of_the_limit_it_is_broken():
    bound = Bound(min=1.0, max=4.0)
    assert [bound.excess(value) for value in (0.5, 1.0, 2.0, 4.0, 5.0)] == [0.5, 0.0, -0.5, 0.0, 0.25]
    assert Bound(max=0.0).excess(3.0) == 3.0


def test_a_section_in_override_keeps_the_recipes_other_fields():
    base = recipes.load("tiny-edm")
    for override in ({"optimizer": {"lr": 0.002}}, {"optimizer.lr": 0.002}):
        optimizer = spaces.parse_space(GOOD | {"search": CHANNELS, "override": override}, "space").base().optimizer
        assert (optimizer.lr, optimizer.warmup_kimg) == (0.002, 2.0)
        assert optimizer == base.optimizer.model_copy(update={"lr": 0.002})


def test_a_section_in_an_arm_or_a_choice_keeps_the_other_fields():
    arms = {"a": {"optimizer": {"lr": 0.002}}, "b": {"optimizer.lr": 0.004}}
    tree = {name: value for name, value in GOOD.items() if name != "search"}
    space = spaces.parse_space(tree | {"arms": arms}, "space")
    assert space.arms == {"a": {"optimizer.lr": 0.002}, "b": {"optimizer.lr": 0.004}}

    space = spaces.parse_space(GOOD | {"search": {"optimizer": {"choice": [{"lr": 0.002}, {"lr": 0.004}]}}}, "space")
    assert space.base().replace({"optimizer": {"lr": 0.004}}).optimizer.warmup_kimg == 2.0


def test_a_field_that_is_set_twice_is_refused():
    override = {"optimizer": {"lr": 0.002}, "optimizer.lr": 0.003}
    with pytest.raises(UserError, match=r"optimizer\.lr: is set twice"):
        spaces.parse_space(GOOD | {"override": override}, "space")


def test_another_process_takes_its_own_defaults_and_nothing_of_the_other():
    recipe = recipes.load("tiny-edm").replace({"diffusion": {"kind": "ddpm", "timesteps": 500}, "sampler.kind": "ddim"})
    assert recipe.diffusion == DDPM(kind="ddpm", timesteps=500)
    assert recipes.load("tiny-edm").replace({"diffusion.p_mean": -1.0}).diffusion.kind == "edm"


@pytest.mark.parametrize(
    ("path", "span", "values"),
    [
        ("training.batch_size", {"loguniform": [16, 64]}, range(16, 65)),
        ("training.batch_size", {"uniform": [16, 20]}, range(16, 21)),
        ("network.channels", {"int": [16, 64]}, range(16, 65, 8)),
        ("network.channels", {"loguniform": [16, 64]}, range(16, 65, 8)),
    ],
)
def test_whole_numbers_are_searched_in_whole_numbers_and_steps(path, span, values):
    space = spaces.parse_space(GOOD | {"search": {path: span}}, "space")
    searched = space.search[path]
    assert searched.int == (values[0], values[-1])
    assert searched.log is ("loguniform" in span)
    proposed = {suggest(FixedTrial({path: value // searched.step}), path, searched) for value in values}
    assert proposed == set(values)
    for value in values:
        space.base().replace({path: value})
    assert spaces.parse_space(space.model_dump(mode="json"), "space") == space


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"network.channels": {"int": [16, 60]}}, "takes a multiple of 8, so the bound 60 is never reached"),
        ({"training.batch_size": {"uniform": [1.5, 4]}}, "takes a whole number, so the bound 1.5"),
        ({"network.dropout": {"uniform": [0, float("inf")]}}, "finite number"),
        ({"network.dropout": {"uniform": [0, float("nan")]}}, "finite number"),
    ],
)
def test_ranges_of_which_some_values_cannot_be_are_refused(search, message):
    with pytest.raises(UserError, match=message):
        spaces.parse_space(GOOD | {"search": search}, "space")


@pytest.mark.parametrize(
    "changes",
    [
        {"constraints": {"memorized_fraction": {"max": float("nan")}}},
        {"constraints": {"memorized_fraction": {"max": float("inf")}}},
        {"budget": {"rungs_kimg": [1, float("nan")]}},
        {"budget": {"rungs_kimg": [1, float("inf")]}},
        {"budget": {"max_gpu_hours": float("inf")}},
        {"override": {"optimizer.lr": float("nan")}},
    ],
)
def test_no_limit_or_field_is_nan_or_infinite(changes):
    with pytest.raises(UserError, match="finite number"):
        spaces.parse_space(GOOD | changes, "space")


def test_the_samplers_highest_churn_may_be_infinite():
    sampler = recipes.load("tiny-edm").replace({"sampler.s_max": float("inf")}).sampler
    assert sampler == Heun(steps=18, s_max=float("inf"))


def test_a_file_with_a_key_twice_is_refused(tmp_path):
    file = tmp_path / "lab.yaml"
    file.write_text(spaces.space_yaml("quickstart") + "search:\n  optimizer.lr: {loguniform: [1.0e-4, 1.0e-3]}\n")
    with pytest.raises(UserError, match="search appears twice, in lines"):
        spaces.load_space(file)
