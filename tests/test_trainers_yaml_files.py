"""The YAML reader: plain documents as PyYAML reads them, everything else in one line."""

import math
import random
import time

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from scrimp_spaces import space as spaces
from scrimp_trainers.common import yaml_files
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe import recipe as recipes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "a appears twice, in lines 1 and 3"),
        ("search:\n  x: 1\n  x: 2", "x appears twice, in lines 2 and 3"),
        ("{a: 1, a: 2}", "a appears twice, in lines 1 and 1"),
        ("a: &x 1\nb: *x", "line 2: *x repeats another part"),
        ("<<: {a: 1}", "line 1: << merges another part"),
        ("a: !!python/object/apply:os.system ['true']", "the tag"),
        ("a: !!float 1", "the tag"),
        ("1: a", "the key 1 is not text"),
        ("yes: a", "the key True is not text"),
        ("[a]: b", "is not text"),
        ("a: .nan", ".nan is not a number"),
        ("a: 1:30", "the number 1:30; write it in decimal digits"),
        ("a: 0x10", "the number 0x10"),
        ("a: 010", "the number 010"),
        ("a: 1_000", "the number 1_000"),
        ("a: " + "9" * 5000, "a number of 5,000 digits"),
        ("[" * 20_000, "more than 20 lists and mappings inside each other"),
        ("a:\n - " + "- " * 50 + "1", "more than 20"),
        ("a: b: c", "not YAML"),
        ("a: [1", "not YAML"),
        ("a: 1\n---\nb: 2", "a second document"),
        ("a: \x07", "not YAML"),
        ("x" * (2**20 + 1), "larger than 1 MiB"),
    ],
)
def test_what_is_not_plain_is_refused_in_a_line_within_a_second(text, message):
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        yaml_files.parse_yaml(text, "space lab.yaml")
    assert time.monotonic() - began < 1
    assert str(caught.value).startswith("space lab.yaml: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_expands_without_bound_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(UserError, match=r"line 2: \*a0 repeats another part"):
        yaml_files.parse_yaml("\n".join(lines), "space")


@pytest.mark.parametrize("text", ["a: 1e-3", "a: 1.0e-3", "a: .001", "a: 1E-3", "a: 0.001"])
def test_numbers_are_numbers_however_they_are_written(text):
    assert yaml_files.parse_yaml(text, "")["a"] == 0.001


def test_scalars_are_what_yaml_says():
    text = "{a: ~, b: true, c: off, d: 'no', e: -3, f: 2., g: .inf, h: none, i: 2026-11-29, j: '1e3', k: }"
    assert yaml_files.parse_yaml(text, "") == {
        "a": None, "b": True, "c": False, "d": "no", "e": -3, "f": 2.0, "g": math.inf, "h": "none",
        "i": "2026-11-29", "j": "1e3", "k": None,
    }  # fmt: skip


def test_encodings(tmp_path):
    file = tmp_path / "space.yaml"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_text("about: Größe", encoding=encoding)
        assert yaml_files.read_yaml(file, "space") == {"about": "Größe"}
    file.write_text("about: Größe", encoding="latin-1")
    with pytest.raises(UserError, match="not UTF-8 text"):
        yaml_files.read_yaml(file, "space")


WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | WORDS
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(PLAIN)
@example("08")
@example("0E0")
@example(["1:30", "0x1f", "1_000", ".inf", "-.5", "no", "~", ""])
def test_what_is_written_is_read_back(value):
    text = yaml_files.to_yaml(value)
    if "!!" in text or "<<" in text:  # control characters; a text that looks like a merge
        return
    assert yaml_files.parse_yaml(text, "") == value


@pytest.mark.parametrize("name", recipes.presets())
def test_a_preset_says_what_it_always_said(name):
    text = (recipes.PRESETS / f"{name}.yaml").read_text()
    assert yaml_files.parse_yaml(text, name) == yaml.safe_load(text)


def test_spaces_that_are_mangled_load_or_are_refused_in_a_line():
    """2,000 seeded changes of the spaces that ship: never a traceback, never more than a second."""
    rng = random.Random(0)
    texts = [spaces.space_yaml(name) for name in spaces.names()]
    pieces = ["{", "}", "[", ":", "&a ", "*a", "<<: ", "\n", "  ", ".nan", "1e999", "!!int ", "\x00", "é", "- ", "null"]
    messages: list[str] = []
    for _ in range(2000):
        text = rng.choice(texts)
        at = rng.randrange(len(text))
        cut = rng.choice([0, 1, 5, 40])
        text = text[:at] + rng.choice(pieces) + text[at + cut :]
        began = time.monotonic()
        try:
            yaml_files.parse_yaml(text, "space")
        except UserError as error:
            messages.append(str(error))
        assert time.monotonic() - began < 1
    assert messages
    assert all("\n" not in message and len(message) < 500 for message in messages)
