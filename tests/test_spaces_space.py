"""Spaces: every one that ships loads, and what does not fit is refused with the reason."""

import itertools

import pytest
import yaml

from scrimp_spaces import space as spaces
from scrimp_trainers.errors import UserError

GOOD = {
    "recipe": "tiny-edm",
    "search": {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}},
    "objectives": {"fd_classifier": "minimize"},
    "scoring": {"extractor": "classifier"},
}


@pytest.mark.parametrize("name", spaces.names())
def test_a_space_that_ships_loads_and_survives_a_round_trip(name):
    space = spaces.load(name)
    assert space.about
    assert spaces.parse(yaml.safe_load(space.to_yaml()), name) == space


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
        ({"constraints": {"memorized_fraction": {}}}, "a constraint needs max, min or both"),
        ({"budget": {"rungs_kimg": [4, 2]}}, "rungs_kimg must rise"),
        ({"recipe": "nonsense"}, "recipe nonsense: no such preset or file"),
        ({"override": {"sampler.kind": "ddim"}}, "sampler.kind: 'ddim' cannot sample 'edm'"),
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
        spaces.parse(GOOD | changes, "space lab.yaml")
    assert str(caught.value).startswith("space lab.yaml: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_conditions_decide_which_fields_are_searched():
    search = {
        "optimizer.kind": {"choice": ["adam", "adamw"]},
        "optimizer.weight_decay": {"uniform": [0, 0.1], "when": {"optimizer.kind": ["adamw"]}},
    }
    space = spaces.parse(GOOD | {"search": search}, "space")
    assert space.active({"optimizer.kind": "adam"}) == ["optimizer.kind"]
    assert space.active({"optimizer.kind": "adamw"}) == ["optimizer.kind", "optimizer.weight_decay"]


GUIDED = {
    "conditioning.classes": {"choice": [False, True]},
    "conditioning.label_drop": {"choice": [0.1, 0.2], "when": {"conditioning.classes": [True]}},
    "sampler.guidance": {"uniform": [1, 3], "when": {"conditioning.label_drop": [0.1, 0.2]}},
}


def test_conditions_make_ranges_that_would_contradict_each_other_fit():
    space = spaces.parse(GOOD | {"search": GUIDED}, "space")
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
    corners = list(spaces.parse(GOOD | {"search": search}, "space").corners())
    for decay, channels in itertools.product((0, 0.1), (8, 16)):
        assert {"optimizer.kind": "adamw", "optimizer.weight_decay": decay, "network.channels": channels} in corners
    assert not any({"optimizer.weight_decay", "optimizer.eps"} <= corner.keys() for corner in corners)


def test_the_base_recipe_is_as_long_as_the_last_rung_and_has_the_overrides():
    space = spaces.parse(GOOD | {"override": {"network.channels": 16}, "budget": {"rungs_kimg": [1, 7]}}, "space")
    assert (space.base().training.kimg, space.base().network.channels) == (7, 16)


def test_a_bound_says_by_how_much_it_is_broken():
    bound = spaces.Bound(min=1.0, max=3.0)
    assert [bound.excess(value) for value in (0.5, 1.0, 2.0, 3.0, 5.0)] == [0.5, 0.0, -1.0, 0.0, 2.0]
