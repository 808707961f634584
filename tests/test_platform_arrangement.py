"""`--gpus-per-repeat auto`: how many GPUs a repeat takes follows from what a node trains in an hour."""

from dataclasses import replace

import pytest
from trainers_small import small

from scrimp_cluster import nodes
from scrimp_cluster.nodes import Answer, Node
from scrimp_platform import arrangement_times, cluster, plan, store
from scrimp_platform import sweep as the_sweep
from scrimp_platform.arrangement import Arrangement, Choice, candidates, choose, name
from scrimp_platform.cli import plan_view
from scrimp_platform.plan import SweepOptions
from scrimp_platform.sweep_record import CHOICE_KEY, recorded_choice, sweep_record
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import load_manifest
from scrimp_trainers.training import load

WORKSTATIONS = tuple(Node(f"ws{number}", 16, 2, f"id{number}") for number in range(10))


def arrangements(rates: dict[float, float | str]) -> tuple[Arrangement, ...]:
    """Return arrangements that train so many kimg an hour, or could not be measured for this reason."""
    made = []
    for gpus, rate in rates.items():
        if isinstance(rate, str):
            made.append(Arrangement(gpus, problem=rate))
        else:
            made.append(Arrangement(gpus, rate))
    return tuple(made)


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({2: 200, 1: 196, 0.5: 180, 0.25: 150}, 2),  # a large network fills both GPUs
        ({2: 110, 1: 200, 0.5: 190, 0.25: 170}, 1),
        ({2: 40, 1: 80, 0.5: 150, 0.25: 240}, 0.25),  # a small one is as slow as it is launched
        ({2: 100, 1: 104, 0.5: 106, 0.25: 104}, 0.5),  # 4% more is not worth it, 6% is
        ({2: 100, 1: 200, 0.5: 300, 0.25: "no room"}, 0.5),
        ({2: "out of memory", 1: 200, 0.5: 180, 0.25: "no room"}, 1),
        ({1: 100, 0.5: 104, 0.25: 104}, 1),
    ],
)
def test_what_trains_most_is_taken_unless_fewer_repeats_at_once_train_almost_as_much(rates, best):
    chosen = choose(arrangements(rates))
    assert chosen is not None
    assert chosen.gpus == best
    assert choose(tuple(reversed(arrangements(rates)))) == chosen


def test_nothing_is_chosen_if_nothing_could_be_measured():
    assert choose(arrangements({2: "out of memory", 1: "out of memory"})) is None


def test_a_repeat_may_have_all_gpus_of_a_node_one_of_them_or_a_share():
    assert candidates(4) == [4, 1, 0.5, 0.25]
    assert candidates(1) == [1, 0.5, 0.25]
    assert [arrangement_times.repeats_at_once(gpus, 4) for gpus in candidates(4)] == [1, 4, 8, 16]
    assert [name(gpus) for gpus in candidates(2)] == ["2 GPUs", "1 GPU", "1/2 GPU", "1/4 GPU"]


def test_repeats_that_share_gpus_are_as_many_as_their_shares_and_cost_their_shares():
    placement = cluster.place(WORKSTATIONS, 0.25)
    assert (placement.places, placement.devices) == (80, 0.25)
    assert placement.describe() == "10 nodes with 20 GPUs, 80 repeats at once, 4 on each GPU"


def test_without_gpus_there_is_nothing_to_choose():
    with pytest.raises(UserError, match=r"--gpus-per-repeat auto: no node has GPUs, .* leave it out"):
        cluster.place((Node("laptop", 8, 0),), "auto")


def test_until_it_is_measured_a_repeat_has_all_gpus_of_a_node():
    assert cluster.place(WORKSTATIONS, "auto") == cluster.place(WORKSTATIONS, None)


def test_other_words_than_auto_are_refused(tmp_path):
    with pytest.raises(UserError, match="--gpus-per-repeat most: must be a number, or auto"):
        plan.check_options(SweepOptions(storage=tmp_path, gpus_per_repeat="most"))


# What is ruled out before it is measured.


@pytest.fixture
def options(scored_digits, tmp_path) -> SweepOptions:
    return SweepOptions(data=str(scored_digits.folder), storage=tmp_path, gpus_per_repeat="auto")


def test_shares_need_a_core_for_each_repeat_and_gpus_whose_memory_is_known():
    assert arrangement_times._obstacle(0.25, 2, 8, 24576) == ""
    assert arrangement_times._obstacle(0.25, 2, 7, 24576) == "8 repeats at once need as many CPU cores"
    assert arrangement_times._obstacle(0.5, 2, 8, None) == "the memory of the GPUs is not known"
    assert arrangement_times._obstacle(1, 2, 8, None) == ""


def test_a_share_must_have_room_for_every_recipe_of_the_space(options):
    the_plan = plan.make_plan(options)
    manifest = load_manifest(the_plan.dataset)
    loads = [(the_plan.base, load.load_of(the_plan.base, manifest))]

    def obstacle(gpus: float, memory: int) -> str:
        return arrangement_times._too_large(gpus, 2, memory, loads, manifest, the_plan.space)

    assert obstacle(0.25, 24 * 1024) == ""
    # CUDA's context alone takes one of the GiB of a share.
    assert obstacle(0.25, 4 * 1024) == "1 GiB have room for 0 images of a recipe that needs 1 at once"
    assert obstacle(0.5, 8 * 1024) == ""
    # What the user would have without `auto` is measured, whatever was counted.
    assert obstacle(2, 1024) == ""


# What the sweep makes of it.

CHOICE = Choice("ws0", arrangements({2: 100.0, 1: 150.0, 0.5: 240.0, 0.25: "no room"}))


@pytest.fixture
def measuring(monkeypatch):
    """Let the node answer the question whether its GPUs are free, and then what it has measured, with these."""

    def install(*answers: Answer) -> list[str]:
        asked = []
        left = list(answers)

        def start(node, function, *_, gpus):
            assert (node, gpus) == (WORKSTATIONS[0], 2)
            asked.append(function.__name__)
            return function

        monkeypatch.setattr(nodes, "start", start)
        monkeypatch.setattr(nodes, "wait_for", lambda started, _: dict.fromkeys(started, left.pop(0)))
        return asked

    return install


def test_one_node_measures_and_all_nodes_get_what_it_chose(options, measuring):
    asked = measuring(Answer(value=True), Answer(value=list(CHOICE.arrangements)))
    placement = the_sweep.measured(plan.make_plan(options), cluster.place(WORKSTATIONS, "auto"))
    assert asked == ["is_free", "measure"]
    assert (placement.gpus_per_repeat, placement.places) == (0.5, 40)
    assert placement.choice == CHOICE


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([Answer(error="no answer", late=True)], "the GPUs of ws0 are in use; wait, or give a number"),
        ([Answer(value=True), Answer(error="died")], "not measured on ws0: died; give a number"),
        (
            [Answer(value=True), Answer(value=arrangements({2: "no room", 1: "none"}))],
            "the base recipe does not train on ws0: no room",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(options, measuring, answers, message):
    measuring(*answers)
    with pytest.raises(UserError, match=f"^--gpus-per-repeat auto: {message}$"):
        the_sweep.measured(plan.make_plan(options), cluster.place(WORKSTATIONS, "auto"))


def test_a_resumed_sweep_keeps_what_was_chosen_and_a_number_goes_before_it(options):
    the_plan = plan.make_plan(options)
    placement = cluster.place(WORKSTATIONS, "auto")
    assert the_sweep.as_recorded(the_plan, placement) == placement

    store.write_json(the_plan.folder.description, sweep_record(the_plan, CHOICE))
    record = store.read_json(the_plan.folder.description)
    assert record
    assert record[CHOICE_KEY]["gpus"] == 0.5
    resumed = plan.make_plan(options)
    placement = the_sweep.as_recorded(resumed, placement)
    assert (placement.gpus_per_repeat, placement.choice) == (0.5, CHOICE)

    # A run with a number leaves the record for later ones.
    numbered = plan.make_plan(replace(options, gpus_per_repeat=1))
    one_each = cluster.place(WORKSTATIONS, 1)
    assert the_sweep.as_recorded(numbered, one_each) == one_each
    store.write_json(the_plan.folder.description, sweep_record(numbered))
    assert recorded_choice(the_plan.folder) == CHOICE


def test_the_plan_says_that_it_will_be_measured_and_then_what_was(options, capsys):
    the_plan = plan.make_plan(options)
    placement = cluster.place(WORKSTATIONS, "auto")
    plan_view.show_plan(the_plan, placement, None)
    assert "to measure" in capsys.readouterr().out

    plan_view.show_plan(the_plan, the_sweep.with_choice(placement, CHOICE), None)
    printed = " ".join(capsys.readouterr().out.split())
    assert "to measure" not in printed
    assert the_plan.space.budget.rungs_kimg[-1] == 45  # and 100 / 45 is 2.22
    assert "on ws0, without scores: 2 GPUs: 2.22 repeats an hour" in printed
    assert "1/4 GPU: no room" in printed


def test_repeats_are_spread_over_the_gpus_that_ray_gave_and_ranks_take_one_each(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")

    def taken(processes: int, together: int) -> list[tuple[str, str]]:
        environments = [arrangement_times._environment(number, together, 2) for number in range(processes)]
        return [(own["CUDA_VISIBLE_DEVICES"], own["LOCAL_RANK"]) for own in environments]

    assert taken(4, 1) == [("3", "0"), ("5", "0"), ("3", "0"), ("5", "0")]
    assert taken(2, 2) == [("3,5", "0"), ("3,5", "1")]


# The measurement, in processes on CPU cores: GPUs that Ray counts need not be there.


@pytest.mark.slow
def test_two_ranks_and_two_repeats_side_by_side_are_timed(scored_digits):
    job = {"dataset": str(scored_digits.folder), "seed": 0, "parts": [], "seconds": 0.2}
    recipe = small(training__batch_size=8, training__kimg=arrangement_times.ENDLESS_KIMG)
    for gpus in (2, 1):
        timed = arrangement_times.time_steps(recipe, job, gpus, 2, 2)
        assert timed.problem == ""
        assert timed.gpus == gpus
        assert 0.1 < timed.kimg_an_hour < 100_000

    odd = recipe.replace({"training.batch_size": 7})
    timed = arrangement_times.time_steps(odd, job, 2, 2, 2)
    assert "7 cannot be split evenly over 2 devices" in timed.problem
