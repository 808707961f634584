"""Class weights: the update's closed forms, a game whose end is known, what reference and proxy leave behind."""

import json
import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from techniques_small import TRANSFORMER, autoencoder
from trainers_small import CPU, random_batches, small, small_state

from scrimp_trainers import fit
from scrimp_trainers.common import metrics_log
from scrimp_trainers.common.errors import Diverged, UserError
from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.export import export_model, load_model
from scrimp_trainers.precompute import dro
from scrimp_trainers.precompute import reweighting as class_weighting
from scrimp_trainers.precompute.class_weights import excess_losses, loss_factors, relative_excess, update_class_weights
from scrimp_trainers.precompute.reweighting import compute_class_weights, reference_folder
from scrimp_trainers.recipe.techniques import Reweighting
from scrimp_trainers.run import train_repeat

numbers = st.lists(st.floats(0.01, 3), min_size=2, max_size=8)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- the update


@given(numbers, st.floats(0.01, 2), st.integers(1, 50))
@settings(max_examples=30)
def test_constant_excess_gives_the_softmax_of_its_sum(values: list[float], eta: float, steps: int):
    """Without smoothing alpha_T = softmax(eta T e)."""
    alpha = torch.full((len(values),), 1 / len(values), dtype=torch.float64)
    for _ in range(steps):
        alpha = update_class_weights(alpha, f64(*values), eta, 0.0)
    torch.testing.assert_close(alpha, torch.softmax(eta * steps * f64(*values), 0), rtol=1e-9, atol=1e-12)


@given(numbers, st.floats(0.01, 2), st.floats(0.01, 1))
@settings(max_examples=30)
def test_smoothing_is_a_floor_and_weights_sum_to_one(values: list[float], eta: float, smoothing: float):
    alpha = torch.full((len(values),), 1 / len(values), dtype=torch.float64)
    for _ in range(20):
        alpha = update_class_weights(alpha, f64(*values), eta, smoothing)
        assert float(alpha.sum()) == pytest.approx(1)
        assert float(alpha.min()) >= smoothing / len(values) * (1 - 1e-12)


def test_with_smoothing_weights_settle_where_gain_and_mixing_balance():
    """Two classes, the first better off by r = exp(eta gap): a = (1 - c) a r / (a r + 1 - a) + c / 2."""
    eta, gap, smoothing = 0.1, 0.5, 0.02
    alpha = f64(0.5, 0.5)
    for _ in range(3000):
        alpha = update_class_weights(alpha, f64(gap, 0.0), eta, smoothing)
    r = math.exp(eta * gap)
    # (r - 1) a^2 + (1 - (1 - c) r - (r - 1) c / 2) a - c / 2 = 0
    b = 1 - (1 - smoothing) * r - (r - 1) * smoothing / 2
    expected = (-b + math.sqrt(b * b + 2 * (r - 1) * smoothing)) / (2 * (r - 1))
    assert float(alpha[0]) == pytest.approx(expected, rel=1e-9)


def test_the_class_that_is_furthest_behind_gains_and_the_others_lose():
    alpha = update_class_weights(f64(0.25, 0.25, 0.25, 0.25), f64(0.1, 0.4, 0.1, 0.0), 1.0, 0.0)
    assert alpha.argmax() == 1
    assert alpha[1] > 0.25 > alpha[3]


def test_excess_is_clipped_by_image_before_the_classes_are_averaged():
    losses, theirs = f64(1.0, 0.0, 0.5, 2.0), f64(0.5, 0.5, 0.5, 1.0)
    labels = torch.tensor([0, 0, 2, 2])
    torch.testing.assert_close(excess_losses(losses, theirs, labels, f64(9, 7, 9)), f64(0.25, 7.0, 0.5))


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=40))
@settings(max_examples=50)
def test_excess_is_the_mean_over_each_class_that_is_there(rows: list[tuple[int, float, float]]):
    labels = torch.tensor([label for label, _, _ in rows])
    ours, theirs = f64(*[a for _, a, _ in rows]), f64(*[b for _, _, b in rows])
    found = excess_losses(ours, theirs, labels, f64(-1, -1, -1, -1, -1))
    for label in range(5):
        own = [max(a - b, 0) for other, a, b in rows if other == label]
        assert float(found[label]) == pytest.approx(np.mean(own) if own else -1)


def test_relative_excess_has_mean_one_and_no_excess_moves_nothing():
    torch.testing.assert_close(relative_excess(f64(1e-3, 3e-3)), f64(0.5, 1.5))
    torch.testing.assert_close(update_class_weights(f64(0.3, 0.7), relative_excess(f64(0, 0)), 1.0, 0.0), f64(0.3, 0.7))


def test_the_proxys_loss_is_doremis_or_group_dros():
    alpha, labels, losses = f64(0.5, 0.3, 0.2), torch.tensor([0, 1, 1, 0, 0]), f64(1, 2, 3, 4, 5)
    doremi = (0.5 * (1 + 4 + 5) + 0.3 * (2 + 3)) / (3 * 0.5 + 2 * 0.3)
    assert float(loss_factors(alpha, labels, grouped=False) @ losses) == pytest.approx(doremi)
    group = 0.5 * (1 + 4 + 5) / 3 + 0.3 * (2 + 3) / 2
    assert float(loss_factors(alpha, labels, grouped=True) @ losses) == pytest.approx(group)


# --- a game whose end is known


def test_dro_on_a_toy_with_known_losses_finds_the_minimax_weights():
    """Class c's loss is (theta - m_c)^2 + s_c, the reference is at 0 everywhere.

    With m = (0, 1) and s = (0.5, 0) the worst class's loss is least where both are alike: theta^2 + 0.5 =
    (theta - 1)^2, so theta = 1/4. The proxy's gradient sum_c alpha_c (theta - m_c) vanishes there: alpha = (3/4, 1/4).
    """
    centres, floors = f64(0, 1), f64(0.5, 0)
    labels, theta = torch.tensor([0, 1, 1]), torch.zeros((), dtype=torch.float64, requires_grad=True)
    alpha, total, last = f64(0.5, 0.5), f64(0, 0), f64(0, 0)
    for number in range(4000):
        values = (theta - centres[labels]).square() + floors[labels]
        last = excess_losses(values.detach(), torch.zeros(3), labels, last)
        alpha = update_class_weights(alpha, last, 0.02, 0.0)
        (gradient,) = torch.autograd.grad(loss_factors(alpha, labels, grouped=True) @ values, theta)
        with torch.no_grad():
            theta -= 0.02 * gradient
        total += alpha if number >= 1000 else 0
    torch.testing.assert_close(total / 3000, f64(0.75, 0.25), rtol=0.02, atol=0)
    assert theta.item() == pytest.approx(0.25, abs=0.02)


# --- proxy and reference


LABELLED: dict[str, Any] = {"conditioning__classes": True}


def played(recipe, steps: int, other=None, eta: float = 0.1) -> tuple[dro.ClassWeightState, dro.State]:
    recipe = recipe.replace({"training.kimg": steps * recipe.training.batch_size / 1000})
    state = small_state(recipe, classes=10)
    weighing = dro.uniform_state(10, CPU)
    batches = random_batches(recipe.training.batch_size)
    reweighting = Reweighting(method="dro", eta=eta * steps, smoothing=0.0)
    for _ in dro.train_steps(recipe, state, batches, weighing, other, reweighting, CPU):
        pass
    return weighing, state


@pytest.mark.parametrize("preset", ["tiny-edm", "tiny-ddpm"])
def test_a_proxy_that_equals_its_reference_has_no_excess(preset: str):
    """They see the same noise at the same level, so at the first step the losses are equal to the last bit."""
    recipe = small(preset, **LABELLED)
    weighing, state = played(recipe, 1, small_state(recipe, classes=10).network)
    assert weighing.last.tolist() == [0] * 10
    torch.testing.assert_close(weighing.alpha, torch.full((10,), 0.1).double())
    assert state.images == recipe.training.batch_size


@pytest.mark.parametrize("grouped", [False, True])
def test_parts_of_a_batch_give_the_weights_and_the_network_of_the_whole(grouped: bool):
    whole = small("tiny-edm", **LABELLED, optimizer__kind="adam", network__dropout=0.2)
    halved = whole.replace({"training.microbatch": 3})
    other = None if grouped else small_state(whole, 1, classes=10).network
    (first, one), (second, two) = played(whole, 3, other), played(halved, 3, other)
    torch.testing.assert_close(first.alpha, second.alpha, rtol=1e-4, atol=1e-6)
    for parameter, same in zip(one.network.parameters(), two.network.parameters(), strict=True):
        torch.testing.assert_close(parameter, same, rtol=1e-3, atol=1e-4)


def test_a_class_counts_as_an_average_one_until_it_is_seen():
    recipe = small(training__batch_size=2)
    weighing, _ = played(recipe, 1)
    assert len(set(weighing.last.tolist())) <= 3
    assert len(set(weighing.alpha.tolist())) <= 3


# --- what is kept in the dataset's cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reweighting")


@pytest.fixture(scope="module")
def dataset(digits_dataset: Dataset, folder: Path) -> Dataset:
    """Digits with a cache of their own."""
    shutil.copytree(digits_dataset.folder, folder / "digits", ignore=shutil.ignore_patterns("cache"))
    return open_dataset(folder / "digits")


@pytest.fixture(scope="module")
def reweighting(folder: Path) -> Reweighting:
    """DRO with a recipe that trains in a second."""
    recipe = small(**LABELLED, training__batch_size=32, sampler__steps=1, optimizer__warmup_kimg=0.0)
    (folder / "small.yaml").write_text(recipe.to_yaml())
    return Reweighting(method="dro", recipe=str(folder / "small.yaml"), kimg=0.75, eta=1.0)


@pytest.fixture(scope="module")
def found(dataset: Dataset, reweighting: Reweighting) -> list[float]:
    return weights(dataset, reweighting)


def weights(dataset: Dataset, reweighting: Reweighting, seed: int = 0, kept: np.ndarray | None = None) -> list[float]:
    return compute_class_weights(dataset, reweighting, seed, CPU, kept).weights.tolist()


def using(reweighting: Reweighting, **values: object) -> Reweighting:
    return reweighting.model_copy(update=values)


def newest(dataset: Dataset) -> Path:
    return max((dataset.folder / "cache").glob("reweighting-*/*.json"), key=lambda file: file.stat().st_mtime_ns)


def test_the_record_says_how_the_weights_came_about(dataset, found):
    file = newest(dataset)
    facts = json.loads(file.read_text())
    assert facts["weights"] == pytest.approx(found)
    assert facts["classes"] == dataset.manifest.classes
    assert facts["images"] == dataset.manifest.splits["train"].count
    assert [point[0] for point in facts["path"]] == list(range(1, 25))
    average = np.mean([point[1:] for point in facts["path"]], 0)
    assert found == pytest.approx(average / average.mean())
    assert facts["seconds"] > 0
    assert not file.with_suffix("").exists()
    assert (file.parent / "reference" / "model").is_dir()


def test_controls_are_made_of_the_same_weights_and_nothing_is_trained_twice(dataset, reweighting, found, monkeypatch):
    assert np.mean(found) == pytest.approx(1)
    assert 0.1 < max(found) - min(found) < 3
    monkeypatch.setattr(dro, "train_proxy", lambda *_: pytest.fail("trained again"))
    assert weights(dataset, reweighting, seed=7) == found
    assert weights(dataset, using(reweighting, enters="sampling")) == found
    shuffled = [weights(dataset, using(reweighting, method="random"), seed) for seed in (0, 1)]
    assert shuffled[0] != found
    assert shuffled[0] != shuffled[1]
    assert sorted(shuffled[0]) == sorted(shuffled[1]) == pytest.approx(sorted(found))
    assert shuffled[0] == weights(dataset, using(reweighting, method="random"), 0)
    inverse = 1 / np.array(found)
    assert weights(dataset, using(reweighting, method="inverse")) == pytest.approx(inverse / inverse.mean())


def test_a_reference_serves_all_proxies(dataset, reweighting, found, monkeypatch):
    monkeypatch.setattr(dro, "Session", lambda *_, **__: pytest.fail("trained again"))
    stronger = weights(dataset, using(reweighting, eta=2.0))
    assert max(stronger) > max(found)
    fewer = weights(dataset, reweighting, kept=np.arange(0, 1600, 4))
    assert fewer != found
    assert json.loads(newest(dataset).read_text())["images"] == 400


@pytest.fixture
def trained_before(dataset: Dataset, found: list[float], tmp_path: Path) -> Path:
    """A copy of the model that is the reference of `found`."""
    (model,) = (
        file.parent / "reference" / "model"
        for file in (dataset.folder / "cache").glob("reweighting-*/dro-*.json")
        if (file.parent / "reference").is_dir() and json.loads(file.read_text())["weights"] == pytest.approx(found)
    )
    shutil.copytree(model, tmp_path / "model")
    return tmp_path / "model"


def test_a_reference_that_was_trained_before_takes_the_place_of_one(
    dataset, reweighting, found, trained_before, monkeypatch
):
    monkeypatch.setattr(dro, "train_reference", lambda *_: pytest.fail("trained a reference"))
    given_one = using(reweighting, reference=trained_before)
    assert weights(dataset, given_one) == pytest.approx(found)

    monkeypatch.setattr(dro, "train_proxy", lambda *_: pytest.fail("trained again"))
    assert weights(dataset, given_one) == pytest.approx(found)
    shutil.copytree(trained_before, trained_before.parent / "moved")
    assert weights(dataset, using(given_one, reference=trained_before.parent / "moved")) == pytest.approx(found)


def test_another_reference_gives_other_weights(dataset, reweighting, found, trained_before):
    network, recipe = load_model(trained_before, CPU)
    torch.nn.init.normal_(network.get_parameter("unet.conv_out.weight"), std=0.1)
    shutil.rmtree(trained_before)
    export_model(trained_before, network, recipe, dataset.manifest, {})
    assert weights(dataset, using(reweighting, reference=trained_before)) != pytest.approx(found, rel=1e-3)


def test_a_reference_that_cannot_be_compared_with_the_proxy_is_refused(dataset, reweighting, trained_before, tmp_path):
    given_one = using(reweighting, reference=trained_before)
    fit.check_class_weights(given_one, dataset.manifest)
    with pytest.raises(UserError, match="group_dro has no reference"):
        fit.check_class_weights(using(given_one, method="group_dro"), dataset.manifest)
    with pytest.raises(UserError, match=r"nowhere is not a model"):
        fit.check_class_weights(using(given_one, reference=tmp_path / "nowhere"), dataset.manifest)

    chain = small("tiny-ddpm", **LABELLED, training__batch_size=32)
    (tmp_path / "chain.yaml").write_text(chain.to_yaml())
    with pytest.raises(UserError, match="was trained with another process"):
        weights(dataset, using(given_one, recipe=str(tmp_path / "chain.yaml")))

    shutil.rmtree(trained_before)
    recipe = small(**LABELLED)
    network = small_state(recipe, classes=7).network
    export_model(trained_before, network, recipe, dataset.manifest, {})
    with pytest.raises(UserError, match=r"is not for items of dataset digits, .* of 10 classes"):
        weights(dataset, given_one)


def test_reference_and_proxy_may_be_trained_in_latents_and_masked(dataset, found, folder, tmp_path):
    codec = autoencoder(folder)
    more = {"codec.kind": "kl", "codec.encoder": codec, "codec.decoder": codec, "masking.ratio": 0.3}
    recipe = small(**LABELLED, training__batch_size=32, sampler__steps=1, optimizer__warmup_kimg=0.0)
    (tmp_path / "latents.yaml").write_text(recipe.replace(TRANSFORMER | more).to_yaml())
    settings = Reweighting(method="dro", recipe=str(tmp_path / "latents.yaml"), kimg=0.1, eta=1.0)

    in_latents = weights(dataset, settings)
    assert sum(in_latents) == pytest.approx(10)
    assert in_latents != found
    assert load_model(reference_folder(dataset, settings) / "model", CPU)[0].shape == (4, 4, 4)

    # A reference in pixels is not for a proxy in latents.
    given_one = using(settings, reference=tmp_path / "before")
    plain = small(**LABELLED)
    export_model(tmp_path / "before", small_state(plain, classes=10).network, plain, dataset.manifest, {})
    with pytest.raises(UserError, match=r"is not for items of dataset digits, .* with the codec of"):
        weights(dataset, given_one)


def test_group_dro_needs_no_reference(dataset, reweighting, found, monkeypatch):
    monkeypatch.setattr(dro, "train_reference", lambda *_: pytest.fail("trained a reference"))
    assert weights(dataset, using(reweighting, method="group_dro")) != found


def test_a_proxy_that_was_killed_goes_on_where_it_was(dataset, reweighting, monkeypatch):
    group = using(reweighting, method="group_dro", eta=3.0)
    whole = weights(dataset, group)
    file = newest(dataset)
    path = json.loads(file.read_text())["path"]
    file.unlink()
    taken, train_steps = [], dro.train_steps

    def killed_at(number: int):
        def steps(*arguments):
            for step in train_steps(*arguments):
                taken.append(step.step)
                if step.step == number:
                    raise KeyboardInterrupt
                yield step

        return steps

    monkeypatch.setattr(dro, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(dro, "train_steps", killed_at(21))
    with pytest.raises(KeyboardInterrupt):
        weights(dataset, group)
    monkeypatch.setattr(dro, "train_steps", killed_at(-1))
    assert weights(dataset, group) == whole
    assert taken == [*range(1, 22), *range(17, 25)]
    assert json.loads(file.read_text())["path"] == path


@pytest.mark.parametrize("text", ["", "[]", '{"weights": [1, 1]}', '{"weights": [NaN, 1, 1, 1, 1, 1, 1, 1, 1, 1]}'])
def test_weights_that_are_not_those_of_the_classes_are_made_again(dataset, reweighting, text):
    group = using(reweighting, method="group_dro", eta=6.0)
    whole = weights(dataset, group)
    newest(dataset).write_text(text)
    assert weights(dataset, group) == whole


def test_weights_of_another_format_are_made_again(dataset, reweighting, monkeypatch):
    group = using(reweighting, method="group_dro", eta=6.0)
    weights(dataset, group)
    monkeypatch.setattr(class_weighting, "FORMAT", class_weighting.FORMAT + 1)
    trained, train_proxy = [], dro.train_proxy
    monkeypatch.setattr(dro, "train_proxy", lambda *arguments: trained.append(1) or train_proxy(*arguments))
    weights(dataset, group)
    assert trained == [1]


def test_who_asks_at_the_same_time_waits_for_the_one_that_trains(dataset, reweighting, monkeypatch):
    trained, train_proxy = [], dro.train_proxy
    monkeypatch.setattr(dro, "train_proxy", lambda *arguments: trained.append(1) or train_proxy(*arguments))
    group = using(reweighting, method="group_dro", eta=4.0)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda seed: weights(dataset, group, seed), range(3)))
    assert answers[0] == answers[1] == answers[2]
    assert len(trained) == 1


@pytest.mark.parametrize("method", [pytest.param("dro", marks=pytest.mark.slow), "group_dro"])
def test_two_ranks_find_the_weights_that_one_finds_and_pay_for_both(digits_dataset, reweighting, tmp_path, method):
    settings = using(reweighting, method=method, kimg=0.2)
    for name in ("one", "two"):
        shutil.copytree(digits_dataset.folder, tmp_path / name, ignore=shutil.ignore_patterns("cache"))
    script = Path(__file__).with_name("trainers_worker.py")
    arguments = ("2", tmp_path / "meeting", tmp_path / "two", settings.model_dump_json())
    processes = [
        subprocess.Popen([sys.executable, str(script), "weights", str(rank), *map(str, arguments)]) for rank in range(2)
    ]
    alone = compute_class_weights(open_dataset(tmp_path / "one"), settings, 0, CPU)
    assert [process.wait() for process in processes] == [0, 0]

    told = [json.loads((tmp_path / "two" / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    together, device_hours = told[0]
    assert together == pytest.approx(alone.weights.tolist(), rel=1e-3)
    assert max(together) > 1.001
    facts = json.loads(newest(open_dataset(tmp_path / "two")).read_text())
    assert facts["device_hours"] == pytest.approx(2 * facts["seconds"] / 3600)
    assert device_hours == pytest.approx(facts["device_hours"] + facts["reference_device_hours"])


def test_weights_cost_what_reference_and_proxy_took_whoever_trained_them(dataset, reweighting, found, trained_before):
    folder = newest(dataset).parent
    records = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    of_our_own = [facts for facts in records if facts["reference_device_hours"]]  # others were given theirs
    (row,) = metrics_log.read_rows(folder / "reference" / "metrics.jsonl")
    assert {facts["reference_device_hours"] for facts in of_our_own} == {row.value("device_hours")}
    assert row.value("device_hours") == row.seconds / 3600 > 0
    read = compute_class_weights(dataset, reweighting, 0, CPU)
    costs = [(row.seconds + facts["seconds"]) / 3600 for facts in of_our_own]
    assert any(read.device_hours == pytest.approx(cost) for cost in costs)

    given_one = compute_class_weights(dataset, using(reweighting, reference=trained_before), 0, CPU)
    records = [json.loads(file.read_text()) for file in folder.parent.glob("reweighting-*/*.json")]
    with_theirs = [facts["device_hours"] for facts in records if not facts["reference_device_hours"]]
    assert any(given_one.device_hours == pytest.approx(cost) for cost in with_theirs)


def test_every_rung_of_a_repeat_pays_for_reference_and_proxy(dataset, reweighting, found, tmp_path):
    recipe = small(**LABELLED, training__batch_size=32, training__kimg=0.064, sampler__steps=1)
    weighed = recipe.replace({"reweighting": reweighting.model_dump()})
    shared = compute_class_weights(dataset, reweighting, 0, CPU).device_hours
    for seed in (1, 2):
        for row in train_repeat(weighed, dataset, tmp_path / f"{seed}", seed, rungs_kimg=[0.032]):
            assert row.value("prepared_device_hours") == shared
            assert row.value("device_hours") == pytest.approx(shared + row.seconds / 3600)
    for row in train_repeat(recipe, dataset, tmp_path / "plain", 1, rungs_kimg=[]):
        assert "prepared_device_hours" not in row.scores
        assert row.value("device_hours") == pytest.approx(row.seconds / 3600)


def test_a_reference_that_does_not_say_what_it_cost_is_refused(dataset, reweighting, found, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="does not say what the reference cost; remove "):
        dro.reference_hours(tmp_path)


def test_a_damaged_record_is_made_anew(dataset, reweighting):
    group = using(reweighting, method="group_dro", eta=5.0)
    found = weights(dataset, group)
    newest(dataset).write_text('{"weights": [1, ')
    assert weights(dataset, group) == found


def test_a_proxy_without_a_finite_loss_is_given_up(dataset, reweighting, folder):
    recipe = small(training__batch_size=32, optimizer__lr=1e30, optimizer__warmup_kimg=0.0)
    (folder / "wild.yaml").write_text(recipe.to_yaml())
    with pytest.raises(Diverged, match="proxy, step 16"):
        weights(dataset, using(reweighting, method="group_dro", recipe=str(folder / "wild.yaml")))


def test_a_dataset_that_cannot_be_written_is_named(digits_dataset, reweighting, tmp_path):
    shutil.copy(digits_dataset.folder / "dataset.json", tmp_path)
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(UserError, match="cannot be created"):
        weights(open_dataset(tmp_path), reweighting)


# --- mistakes


def test_a_dataset_without_classes_is_refused(dataset, reweighting):
    bare = dataset.manifest.model_copy(update={"classes": None})
    with pytest.raises(UserError, match=r"^reweighting.method: dataset digits has no classes to weigh"):
        fit.check_class_weights(reweighting, bare)
    fit.check_class_weights(Reweighting(), bare)
    fit.check_class_weights(reweighting, dataset.manifest)


def test_a_recipe_that_is_missing_or_has_techniques_is_refused(dataset, reweighting, tmp_path):
    with pytest.raises(UserError, match="no such preset"):
        fit.check_class_weights(using(reweighting, recipe="dpm"), dataset.manifest)
    recipe = small(mafp__p1=0.1, sparsity__method="static")
    (tmp_path / "techniques.yaml").write_text(recipe.to_yaml())
    with pytest.raises(UserError, match=r"has mafp, sparsity; .* without them"):
        fit.check_class_weights(using(reweighting, recipe=str(tmp_path / "techniques.yaml")), dataset.manifest)


def test_the_check_costs_no_heavy_import():
    code = "import scrimp_trainers.fit, sys; print({'torch', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
