"""Who stands where on the leaderboard and what is said of it, on trials made by hand."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from made_up_rows import make_row
from made_up_sweep import make_space
from rich.console import Console

from scrimp_platform.report import formatting, leaderboard
from scrimp_platform.report.leaderboard import TrialRow
from scrimp_platform.search import posterior, stats, verdict
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space

LAST = 60.0
TWO = {"fd_classifier": "minimize", "precision_classifier": "maximize"}


def repeat(number: int, i: int, status: str, seconds: float = 36.0, **scores: float) -> Repeat:
    rungs = {LAST: make_row(seconds=seconds, **scores)} if scores else {}
    return Repeat(number, i, i, "race" if i else "search", status, rungs=rungs)  # pyright: ignore[reportArgumentType]


def trained(
    number: int, chosen_at: float, *values: float, failed: int = 0, seconds: float = 36.0, **more: float
) -> Trial:
    """A trial with its score in the search, and those of the race."""
    scores = (chosen_at, *values)
    repeats = [repeat(number, i, "finished", seconds, fd_classifier=value, **more) for i, value in enumerate(scores)]
    repeats += [repeat(number, len(scores) + i, "failed") for i in range(failed)]
    return Trial(number, {"optimizer.lr": 1e-3 * (number + 1)}, "complete", repeats)


def stopped(number: int, kimg: float, value: float) -> Trial:
    rungs = {kimg: make_row(fd_classifier=value, seconds=9.0)}
    first = Repeat(number, 0, 0, "search", "stopped", rungs=rungs)
    return Trial(number, {"optimizer.lr": 1e-3}, "pruned", [first])


def failed(number: int) -> Trial:
    return Trial(number, {"optimizer.lr": 1e-3}, "failed", [repeat(number, 0, "failed")])


def ranked(*trials: Trial, **changes) -> tuple[list[TrialRow], Space]:
    space = make_space(**changes)
    return leaderboard.rank(trials, space), space


def summary(rows: list[TrialRow]) -> list[tuple[int, int, str]]:
    return [(row.rank, row.number, row.status) for row in rows]


def test_raced_trials_come_first_then_single_pruned_and_failed_ones():
    rows, _ = ranked(
        failed(0), stopped(1, 20, 1.0), stopped(2, 40, 90.0), stopped(3, 40, 80.0), trained(4, 2.0),
        trained(5, 4.0, 9.2, 9.1), trained(6, 5.0, 5.1, 4.9), trained(7, 3.0),
    )  # fmt: skip
    assert summary(rows) == [
        (1, 6, "recommended"), (2, 5, "beaten"), (3, 4, "single"), (4, 7, "single"),
        (5, 3, "pruned"), (6, 2, "pruned"), (7, 1, "pruned"), (8, 0, "failed"),
    ]  # fmt: skip


def test_a_summary_is_that_of_the_finished_repeats_at_the_last_rung():
    rows, _ = ranked(trained(0, 1.0, 5.0, 6.0, 8.0, failed=1))
    assert rows[0].summaries["fd_classifier"] == posterior.of_scores([[5.0, 6.0, 8.0]], "minimize").summaries[0]
    assert rows[0].summaries["fd_classifier"].std == stats.summarize([5.0, 6.0, 8.0]).std
    assert (rows[0].repeat_count, rows[0].failed, rows[0].kimg, rows[0].gpu_hours) == (3, 1, LAST, pytest.approx(0.01))


def test_the_score_by_which_a_trial_was_chosen_is_shown_and_not_counted():
    rows, _ = ranked(trained(0, 1.0, 5.0, 5.1, 5.2), trained(1, 2.0, 4.0, 4.1, 4.2))
    assert [row.number for row in rows] == [1, 0]
    assert [leaderboard.chosen_at_text(row, "fd_classifier") for row in rows] == ["2", "1"]
    assert rows[1].summaries["fd_classifier"].mean == pytest.approx(5.1, rel=0.01)


def test_constraints_too_are_judged_by_fresh_seeds():
    trial = trained(0, 1.0, 1.1, 1.2, memorized_fraction=0.2)
    trial.repeats[0].rungs[LAST].scores["memorized_fraction"] = 0.0
    rows, _ = ranked(trial, constraints={"memorized_fraction": {"max": 0.15}})
    assert rows[0].status == "infeasible"


def interval(row: TrialRow) -> str:
    return formatting.interval(row.summaries["fd_classifier"])


def test_a_cheaper_trial_with_a_worse_mean_is_not_recommended_because_too_few_seeds_can_tell():
    rows, space = ranked(
        trained(1, 4.0, 65.0, 70.0, seconds=90.0, parameters=396_000.0),
        trained(2, 4.1, 83.0, 91.0, seconds=39.0, parameters=177_000.0),
        trained(3, 4.1, 65.5, 71.0, seconds=78.0, parameters=380_000.0),
    )
    assert summary(rows)[:2] == [(1, 3, "recommended"), (2, 1, "tied")]
    assert "Of those with a mean within 2% of the best it is the cheapest: 380k" in leaderboard.verdict(rows, space)


def test_of_trials_that_cannot_be_told_apart_the_cheapest_is_recommended():
    rows, space = ranked(
        trained(1, 4.0, 5.0, 5.4, 5.2, seconds=90.0, parameters=396_000.0),
        trained(2, 4.1, 5.2, 5.3, 5.2, seconds=60.0, parameters=280_000.0),
        trained(6, 4.1, 5.0, 5.4, 5.3, seconds=39.0, parameters=177_000.0),
        trained(7, 4.2, 9.0, 9.1, 9.2, seconds=1.0, parameters=9.0),
    )
    assert summary(rows) == [(1, 6, "recommended"), (2, 1, "tied"), (3, 2, "tied"), (4, 7, "beaten")]
    assert leaderboard.verdict(rows, space) == (
        f"Trial 6 is within 2% of the best of these with probability {rows[0].probability:.2f}; trials 1 and 2 "
        "cannot be told from it. It is the cheapest of the three: 177k parameters, 39 s. "
        f"Its fd_classifier is {interval(rows[0])} over 3 fresh seeds."
    )


def test_or_the_one_with_the_best_mean_where_the_space_prefers_it():
    trials = [
        trained(0, 4.0, 5.0, 5.4, 5.2, seconds=90.0),
        trained(1, 4.1, 5.1, 5.5, 5.4, seconds=39.0),
        trained(2, 4.2, 9.0, 9.1, 9.2),
    ]
    rows, space = ranked(*trials, prefer="best")
    assert summary(rows) == [(1, 0, "recommended"), (2, 1, "tied"), (3, 2, "beaten")]
    assert leaderboard.verdict(rows, space).startswith(
        f"Trial 0 is within 2% of the best of these with probability {rows[0].probability:.2f}; "
        "trial 1 cannot be told from it. It has the best mean. "
    )


@pytest.mark.parametrize(
    ("seconds", "parameters", "reason"),
    [
        ((90.0, 39.0), (9.0, 8.0), "It is the cheaper of the two: 8 parameters, 39 s."),
        ((39.0, 42.0), (9.0, 8.0), "It is the cheaper of the two: 8 parameters, 42 s."),
        ((0.0, 0.0), (9.0, 8.0), "It is the cheaper of the two: 8 parameters."),
        ((0.0, 39.0), (9.0, 8.0), "It is the cheaper of the two: 8 parameters, 39 s."),
        ((39.0, 39.0), (8.0, 8.0), ""),
        ((0.0, 0.0), (math.nan, math.nan), ""),
    ],
)
def test_cheaper_is_faster_or_where_times_are_equal_or_missing_smaller(seconds, parameters, reason):
    rows, space = ranked(
        trained(0, 4.0, 5.0, 5.4, 5.2, seconds=seconds[0], parameters=parameters[0]),
        trained(1, 4.1, 5.1, 5.5, 5.4, seconds=seconds[1], parameters=parameters[1]),
    )
    assert rows[0].number == (1 if reason else 0)
    said = leaderboard.verdict(rows, space)
    assert reason in said
    assert ("cheap" in said) is bool(reason)


def test_one_repeat_on_a_busy_machine_does_not_make_a_recipe_dear():
    one = trained(0, 4.0, 5.0, 5.4, 5.2, seconds=90.0)
    other = trained(1, 4.1, 5.1, 5.5, 5.4, seconds=39.0)
    other.repeats[2].rungs[LAST] = replace(other.repeats[2].rungs[LAST], seconds=1800.0)
    rows, _ = ranked(one, other)
    assert rows[0].number == 1
    assert rows[0].gpu_hours == pytest.approx(39 / 3600)


def test_who_stands_alone_is_the_best_with_a_probability():
    rows, space = ranked(trained(0, 4.0, 5.0, 5.4, 5.2), trained(2, 4.2, 9.0, 9.1, 9.2, seconds=1.0))
    assert summary(rows) == [(1, 0, "recommended"), (2, 2, "beaten")]
    assert leaderboard.verdict(rows, space) == (
        "Trial 0 is the best of these with probability over 0.99. "
        f"Its fd_classifier is {interval(rows[0])} over 3 fresh seeds."
    )


def test_the_probabilities_of_the_leaderboard_are_those_of_the_posterior():
    samples = [[5.0, 5.4, 5.2], [5.1, 5.5, 5.4], [5.9, 5.6, 6.1]]
    rows, space = ranked(*[trained(n, 4.0, *values) for n, values in enumerate(samples)])
    known = posterior.of_scores(samples, "minimize")
    by_number = {row.number: row for row in rows}
    for number in range(3):
        assert by_number[number].probability == known.near_best(verdict.MARGIN)[number]
        assert by_number[number].probability_best == known.near_best(0.0)[number]
        is_tied = known.worse(number, 0) < verdict.SURE
        assert (by_number[number].status in ("tied", "recommended")) is is_tied
    entries = leaderboard.entries(rows, space)
    assert [entry["probability"] for entry in entries] == [row.probability for row in rows]


def test_the_only_trial_with_fresh_seeds_only_leads():
    rows, space = ranked(trained(0, 4.0, 5.0, 5.4, 5.2), trained(1, 5.5))
    assert summary(rows) == [(1, 0, "leader"), (2, 1, "single")]
    assert leaderboard.verdict(rows, space) == (
        f"Trial 0 leads: fd_classifier {interval(rows[0])} over 3 fresh seeds, which no other trial got."
    )


def test_with_two_repeats_there_is_one_fresh_seed_and_no_interval():
    rows, space = ranked(trained(0, 4.0, 5.0), trained(1, 4.5, 9.0))
    assert summary(rows) == [(1, 0, "leader"), (2, 1, "tied")]
    assert leaderboard.verdict(rows, space) == (
        "Trial 0 leads with fd_classifier 5 over 1 fresh seed, so its lead may be luck."
    )


def test_a_better_single_repeat_is_not_recommended_but_mentioned():
    rows, space = ranked(trained(0, 4.5, 5.0, 5.4, 5.2), trained(1, 4.0))
    assert rows[0].number == 0
    assert "may be luck: trial 1 (4)" in leaderboard.verdict(rows, space)


def test_a_single_repeat_only_leads():
    rows, space = ranked(trained(0, 5.0), trained(1, 4.0))
    assert summary(rows) == [(1, 1, "leader"), (2, 0, "single")]
    assert leaderboard.verdict(rows, space) == (
        "Trial 1 leads with fd_classifier 4 in the repeat by which it was chosen, so its lead may be luck."
    )


def test_nobody_is_recommended_while_a_repeat_is_open():
    racing = trained(0, 5.0, 5.4, 5.5)
    racing.repeats.append(repeat(0, 3, "running"))
    rows, space = ranked(racing, trained(1, 9.0, 9.1, 9.2))
    assert rows[0].status == "leader"
    assert leaderboard.verdict(rows, space).startswith("Trial 0 leads so far")


def test_a_maximised_objective_is_best_at_its_highest():
    def precise(number: int, *values: float) -> Trial:
        repeats = [repeat(number, i, "finished", precision_classifier=v) for i, v in enumerate(values)]
        return Trial(number, {}, "complete", repeats)

    objectives = {"precision_classifier": "maximize"}
    rows, _ = ranked(precise(0, 0.1, 0.1, 0.11), precise(1, 0.9, 0.9, 0.91), objectives=objectives)
    assert summary(rows) == [(1, 1, "recommended"), (2, 0, "beaten")]


def test_what_breaks_a_constraint_comes_after_all_that_keep_it_by_how_much():
    constraints = {"memorized_fraction": {"max": 0.1}}
    rows, _ = ranked(
        trained(0, 1.0, 1.1, memorized_fraction=0.5),
        trained(1, 9.0, memorized_fraction=0.1),
        trained(2, 2.0, memorized_fraction=0.2),
        trained(3, 1.0),
        stopped(4, 40, 3.0),
        constraints=constraints,
    )
    assert [(row.number, row.status) for row in rows] == [
        (1, "leader"), (2, "infeasible"), (0, "infeasible"), (3, "infeasible"), (4, "pruned"),
    ]  # fmt: skip
    assert [row.excess for row in rows[1:4]] == [pytest.approx(1.0), pytest.approx(4.0), math.inf]


def test_constraints_of_other_units_count_alike():
    """Twice the parameters are worse than a copied share that is 1.5 times the limit, although that is 0.05 more."""
    constraints = {"memorized_fraction": {"max": 0.1}, "parameters": {"max": 1e6}}
    rows, _ = ranked(
        trained(0, 1.0, memorized_fraction=0.15, parameters=1e6),
        trained(1, 1.0, memorized_fraction=0.1, parameters=2e6),
        trained(2, 1.0, memorized_fraction=0.4, parameters=1e6),
        constraints=constraints,
    )
    assert [row.number for row in rows] == [0, 1, 2]


def test_when_all_break_a_constraint_none_is_the_best_and_the_closest_is_named():
    rows, space = ranked(trained(0, 1.0, memorized_fraction=0.5), constraints={"memorized_fraction": {"max": 0.0}})
    assert leaderboard.best(rows) is None
    assert "trial 0 comes closest, with memorized_fraction 0.500 (at most 0)" in leaderboard.verdict(rows, space)


def test_a_pareto_front_shares_its_rank():
    def pair(number: int, fd: float, precision: float) -> Trial:
        repeats = [
            repeat(number, i, "finished", fd_classifier=fd + noise, precision_classifier=precision + noise / 100)
            for i, noise in enumerate((0.0, -0.01, 0.0, 0.01))
        ]
        return Trial(number, {}, "complete", repeats)

    rows, space = ranked(pair(0, 9, 0.9), pair(1, 1, 0.1), pair(2, 10, 0.05), pair(3, 5, 0.5), objectives=TWO)
    assert summary(rows) == [(1, 1, "front"), (1, 3, "front"), (1, 0, "front"), (2, 2, "beaten")]
    assert leaderboard.verdict(rows, space) == (
        "Trials 0, 1 and 3 form the Pareto front of fd_classifier and precision_classifier."
    )


def test_equal_cost_does_not_save_a_trial_that_is_clearly_worse():
    def costly(number: int, *values: float) -> Trial:
        return trained(number, *values, train_flops=1e12)

    objectives = {"fd_classifier": "minimize", "train_flops": "minimize"}
    rows, _ = ranked(
        costly(0, 1.0, 1.0, 1.1), costly(1, 9.0, 90.0, 90.1), costly(2, 1.0, 1.1, 1.2), objectives=objectives
    )
    assert summary(rows) == [(1, 0, "front"), (2, 2, "tied"), (3, 1, "beaten")]


def test_without_trials_or_results_the_verdict_says_so():
    assert leaderboard.verdict(*ranked()) == "No trial has begun."
    rows, space = ranked(failed(0), failed(1), stopped(2, 20, 5.0))
    assert leaderboard.best(rows) is None
    assert leaderboard.verdict(rows, space) == "No trial has been trained to the end: 1 pruned and 2 failed."
    assert [row.rank for row in rows] == [1, 2, 2]


def test_the_csv_has_the_promised_columns_and_whole_numbers(tmp_path):
    lists = {"network.multipliers": {"choice": [[1, 2], [1, 1]]}, "optimizer.lr": {"loguniform": [5e-4, 1e-2]}}
    trial = trained(0, 4.0, 5.0, 6.1, failed=1)
    trial.params["network.multipliers"] = [1, 2]
    rows, space = ranked(trial, trained(1, 7.0), search=lists)
    folder = SweepFolder(tmp_path)
    leaderboard.write_csv(rows, space, folder)
    text = folder.leaderboard.read_text()
    assert text.splitlines()[0] == (
        "rank,trial,status,repeats,fd_classifier_mean,fd_classifier_std,fd_classifier_ci_low,fd_classifier_ci_high,"
        "fd_classifier_chosen_at,kimg,gpu_hours,parameters,probability,network.multipliers,optimizer.lr"
    )
    first, second = csv.DictReader(io.StringIO(text))
    expected = posterior.of_scores([[5.0, 6.1]], "minimize").summaries[0]
    assert [float(first[f"fd_classifier_{part}"]) for part in ("mean", "std", "ci_low", "ci_high")] == [
        expected.mean, expected.std, expected.low, expected.high,
    ]  # fmt: skip
    assert (first["status"], first["repeats"]) == ("leader (1 repeat failed)", "2")
    assert float(first["fd_classifier_chosen_at"]) == 4.0
    assert json.loads(first["network.multipliers"]) == [1, 2]
    assert (second["fd_classifier_ci_low"], second["probability"], second["network.multipliers"]) == ("", "", "")


def test_the_csv_has_constraints_and_parameters_and_a_constrained_objective_once(tmp_path):
    constraints = {"memorized_fraction": {"max": 0.1}, "fd_classifier": {"max": 9.0}}
    first_trial = trained(0, 4.0, 5.0, 6.1, memorized_fraction=0.05, parameters=700.0)
    rows, space = ranked(first_trial, failed(1), constraints=constraints)
    leaderboard.write_csv(rows, space, SweepFolder(tmp_path))
    names, *_ = csv.reader(io.StringIO((tmp_path / "leaderboard.csv").read_text()))
    assert len(names) == len(set(names))
    first, second = csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text()))
    assert (first["memorized_fraction_mean"], first["parameters"]) == ("0.05", "700.0")
    assert (second["memorized_fraction_mean"], second["parameters"]) == ("", "")


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_fits_the_terminal_with_every_score_whole(width):
    trial = trained(0, 4.5, 5.0, 5.4, 5.2, failed=1)
    trial.params |= {"network.channels": 32, "ema.halflife_kimg": 3.456, "network.dropout": 0.000123}
    rows, space = ranked(trial, stopped(1, 20, 123.0))
    console = Console(width=width, file=io.StringIO())
    console.print(leaderboard.table(rows, space, width))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert ("4.50" in text) is (width > 80)  # where there is room
    for part in (interval(rows[0]), "1 failed", "123 at 20 kimg", "pruned", "0.000123", "3.46"):
        assert part in text
    assert "…" not in text


def test_many_fields_are_folded_into_one_column():
    names = ("optimizer.beta1", "optimizer.beta2", "network.dropout", "training.loss_scale", "optimizer.weight_decay")
    rows, space = ranked(trained(0, 5.0), search={name: {"uniform": [0.1, 0.5]} for name in names})
    console = Console(width=70, file=io.StringIO())
    console.print(leaderboard.table(rows, space, 70))
    assert "weight_decay -" in " ".join(console.file.getvalue().split())  # pyright: ignore[reportAttributeAccessIssue]


def test_fields_are_left_out_where_each_word_would_have_its_own_line():
    constraints = {name: {"max": 9.0} for name in ("memorized_fraction", "train_flops", "parameters")}
    search = {"optimizer.beta1": {"uniform": [0.1, 0.9]}, "network.dropout": {"uniform": [0.1, 0.5]}}
    trial = trained(0, 5.0)
    trial.params |= {"optimizer.beta1": 0.123, "network.dropout": 0.456}
    rows, space = ranked(trial, search=search, constraints=constraints)
    for width, shown in ((60, False), (110, True)):
        console = Console(width=width, file=io.StringIO())
        console.print(leaderboard.table(rows, space, width))
        text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert ("0.456" in text) is shown
        assert len([line for line in text.splitlines() if line.strip()]) <= 4


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], ""), ([12.345], "12.3"), ([11.8, 12.3, 12.8], "12.3 [11.1, 13.5]"),
        ([12.31, 12.3101, 12.3102], "12.3101 [12.3099, 12.3103]"), ([6e11, 6e11], "6e+11"),
    ],
)  # fmt: skip
def test_a_mean_shows_as_many_digits_as_its_interval_needs(values, text):
    assert formatting.interval(stats.summarize(values)) == text


def test_fields_are_named_by_their_last_part_unless_two_share_it():
    names = formatting.short_names(["optimizer.lr", "network.dropout", "augment.dropout"])
    assert list(names.values()) == ["lr", "network.dropout", "augment.dropout"]
