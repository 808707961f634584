"""Every space has a `-small` form for digits or a few drawings, which searches fields of the same techniques."""

import pytest
from drawings_small import small_drawings

from scrimp_platform import plan
from scrimp_spaces import space as spaces

LARGE = [name for name in spaces.names() if name != "quickstart" and not name.endswith("-small")]


def techniques(space):
    return {path.partition(".")[0] for path in space.search}


@pytest.mark.parametrize("name", LARGE)
def test_a_space_has_a_small_form(name, scored_digits, scored_captions, stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text-digits").mkdir()
    (tmp_path / "text-digits" / "model").symlink_to(stand_in)
    large, small = spaces.load_space(name), spaces.load_space(f"{name}-small")
    assert techniques(small) == techniques(large)
    assert len(small.objectives) == len(large.objectives)
    # Whatever it may propose fits the dataset.
    data = scored_digits.folder
    if small.base().codec.modality == "strokes":
        small_drawings(tmp_path, classifier=True)
        data = tmp_path / "data"
    if small.base().conditioning.text:
        data = scored_captions.folder
    options = plan.SweepOptions(space=f"{name}-small", data=str(data), storage=tmp_path)
    assert plan.make_plan(options).space.search == small.search


def test_the_space_of_all_techniques_searches_whatever_the_others_search():
    together = techniques(spaces.load_space("scrimp"))
    for name in LARGE:
        space = spaces.load_space(name)
        if space.base().codec.modality == "images":
            assert techniques(space) <= together, name


@pytest.mark.parametrize("name", LARGE)
def test_a_space_can_propose_to_leave_every_technique_off(name):
    space = spaces.load_space(name)
    base = space.base()
    off = dict.fromkeys(techniques(space), False)
    for values in space.corners():
        recipe = base.replace(values)
        off = {section: done or not getattr(recipe, section).on for section, done in off.items()}
    assert all(off.values())


@pytest.mark.parametrize("name", LARGE)
def test_every_field_of_a_paper_has_the_papers_value_beside_it(name):
    assert all(span.paper for span in spaces.load_space(name).search.values())
