"""How the score depends on single fields: what the curve model expects, on the score's own scale, with a band."""

from typing import Any

import numpy as np
import pytest
from made_up_rows import make_row
from made_up_sweep import make_space

from scrimp_platform.report import field_plots, sections
from scrimp_platform.report.dependence import dependences
from scrimp_platform.search.records import Repeat, Trial
from scrimp_spaces.space import Space

SEARCH = {
    "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    "network.dropout": {"uniform": [0.0, 0.4]},
    "network.channels": {"choice": [16, 24, 32]},
    "mafp.p1": {"choice": [0.0, 0.1]},
    "mafp.p2": {"uniform": [0.0, 0.5], "when": {"mafp.p1": [0.1]}},
}
FIELDS = list(SEARCH)


def searched(**changes: Any) -> Space:
    return make_space(search=SEARCH, **changes)


def trials_of(space: Space, count: int = 60, scores: dict[str, Any] | None = None) -> list[Trial]:
    """Trials that were trained to the end; by default the score is 10, and 10 more at a dropout of 0.4."""
    scores = scores or {"fd_classifier": lambda values: 10 + 25 * values["network.dropout"]}
    chance = np.random.default_rng(0)
    trials = []
    for number in range(count):
        values: dict[str, Any] = {
            "optimizer.lr": float(10 ** chance.uniform(-4, -2)),
            "network.dropout": float(chance.uniform(0, 0.4)),
            "network.channels": int(chance.choice([16, 24, 32])),
            "mafp.p1": float(chance.choice([0.0, 0.1])),
        }
        if values["mafp.p1"]:
            values["mafp.p2"] = float(chance.uniform(0, 0.5))
        row = make_row(**{name: score(values) for name, score in scores.items()})
        repeat = Repeat(number, 0, 0, "search", "finished", rungs={space.budget.rungs_kimg[-1]: row})
        trials.append(Trial(number, values, "complete", [repeat]))
    return trials


def test_the_dependence_is_the_function_and_flat_for_what_does_not_matter():
    space = searched()
    dropout, rate = dependences(trials_of(space), space, ["network.dropout", "optimizer.lr"])
    assert (dropout.objective, dropout.path) == ("fd_classifier", "network.dropout")
    assert dropout.values == pytest.approx(np.linspace(0, 0.4, 49).tolist())
    inner = slice(1, 40)  # the worst scores are levelled
    wanted = 10 + 25 * np.array(dropout.values)
    assert np.allclose(dropout.means[inner], wanted[inner], rtol=0.05)
    assert max(rate.means) / min(rate.means) < 1.05
    assert rate.values[24] == pytest.approx(1e-3)
    for own in (dropout, rate):
        assert all(low <= mean <= high for low, mean, high in zip(own.lows, own.means, own.highs, strict=True))
        assert len(own.tried) == 60


def test_the_band_is_wide_where_there_are_no_trials():
    space = searched()
    near = [trial for trial in trials_of(space, 200) if trial.params["network.dropout"] < 0.1][:40]
    (dropout,) = dependences(near, space, ["network.dropout"])
    widths = np.array(dropout.highs) / np.array(dropout.lows)
    assert widths[-1] > 1.5 * widths[2]


def test_what_is_to_be_maximised_is_not_turned_around():
    space = searched(objectives={"isc_classifier": "maximize"})
    trials = trials_of(space, scores={"isc_classifier": lambda values: 5 - 10 * values["network.dropout"]})
    (dropout,) = dependences(trials, space, ["network.dropout"])
    assert dropout.means[0] == pytest.approx(5, rel=0.1)
    assert dropout.means[0] > dropout.means[24] > dropout.means[40]
    assert dropout.lows[5] < dropout.means[5] < dropout.highs[5]


def test_choices_and_conditional_fields_have_their_own_values():
    space = searched()
    channels, p2 = dependences(trials_of(space), space, ["network.channels", "mafp.p2"])
    assert channels.values == [16, 24, 32]
    assert min(p2.values) == 0.0
    assert max(p2.values) == 0.5
    assert 10 < len(p2.tried) < 50  # only where it exists


def test_several_objectives_have_a_model_each_whoever_proposes():
    space = searched(objectives={"fd_classifier": "minimize", "seconds": "minimize"})
    scores = {
        "fd_classifier": lambda values: 10 + 25 * values["network.dropout"],
        "seconds": lambda values: 100 - 100 * values["network.dropout"],
    }
    first, _, second, _ = dependences(trials_of(space, scores=scores), space, FIELDS[1::-1])
    assert (first.objective, second.objective) == ("fd_classifier", "seconds")
    assert first.means[0] < first.means[-1]
    assert second.means[0] > second.means[-1]


def test_too_few_scores_give_nothing():
    space = searched()
    assert dependences(trials_of(space, 1), space, FIELDS) == []


@pytest.mark.parametrize("path", ["optimizer.lr", "network.channels"])
def test_the_plot_shows_the_line_or_the_options_with_their_band(path):
    space = searched()
    (own,) = dependences(trials_of(space), space, [path])
    figure: Any = field_plots.partial_dependence(own, space.search[path])
    if path == "optimizer.lr":
        band, shown, ticks = figure.data
        assert list(band.y) == own.lows + own.highs[::-1]
        assert len(ticks.x) == 60
        assert figure.layout.xaxis.type == "log"
    else:
        (shown,) = figure.data
        assert list(shown.x) == ["16", "24", "32"]
        assert shown.error_y.array[1] == pytest.approx(own.highs[1] - own.means[1])
    assert list(shown.y) == own.means


def test_the_report_leaves_arms_out_with_a_sentence():
    tree = {"one": {"network.dropout": 0.0}, "two": {"network.dropout": 0.1}}
    space = searched().model_copy(update={"arms": tree})
    (plot,) = sections.dependences([], space, FIELDS)
    assert plot.caption == "Left out: arms are compared as they are."
