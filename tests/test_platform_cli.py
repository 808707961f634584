"""The command line: help and mistakes answer at once, in one line, and leave nothing behind."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scrimp_platform.cli import commands, main

HEAVY = ("torch", "ray", "mlflow", "diffusers", "sklearn", "torch_fidelity")
PROBE = """
import sys
from scrimp_platform.cli.main import main
try:
    main(sys.argv[1:])
    status = 0
except SystemExit as leave:
    status = leave.code
loaded = [name for name in {heavy!r} if name in sys.modules]
print(f"heavy imports: {{loaded}}")
sys.exit(status)
"""


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "lab.yaml").write_text("recipe: tiny-edm\nsearch: {optimizer.speed: {uniform: [0, 1]}}\n")
    (tmp_path / "tree.yaml").write_text("recipe: [\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


MISTAKES = [
    (["sweep", "--space", "nope"], "space nope: no such space or file; spaces are ambient"),
    (["sweep", "--space", "lab.yaml"], "space lab.yaml: objectives: Field required"),
    (["sweep", "--space", "tree.yaml"], "space tree.yaml: not YAML"),
    (["sweep", "--data", "photos"], "--data photos: not a dataset; make one with `scrimp prepare photos OUT`"),
    (["sweep", "--data", "empty"], "--data empty: not a dataset"),
    (["sweep", "--gpus-per-repeat", "99"], "--gpus-per-repeat 99: no node has that many; there are "),
    (["sweep", "--name", "a/b"], "--name a/b: use letters, digits"),
    (["sweep", "--rungs", "60,20"], "budget: rungs_kimg must rise, not [60.0, 20.0]"),
    (["sweep", "--rungs", "a,b"], "'a,b' is not a list of numbers"),
    (["sweep", "--trials", "0"], "0 is not in the range x>=1"),
    (["sweep", "--speed", "9"], "No such option"),
    (["sweep", "--storage", "lab.yaml"], "lab.yaml is not a writable folder; make it one, or name another"),
    (["sweep", "--storage", "a?b"], "a?b: ? in its name leads MLflow's database elsewhere; use another folder"),
    (["sweep", "--storage", "a%20b"], "a%20b: % in its name leads MLflow's database elsewhere; use another folder"),
    (["sweep", "--dry-run", "--tracking-uri", "host:5000"], "--tracking-uri host:5000: not the address of an MLflow"),
    (["sweep", "--warm-start", "empty"], "--warm-start empty: not the folder of a sweep (no sweep.json)"),
    (["prepare", "nothing", "out"], "nothing: no such folder or file"),
    (["prepare", "digits", "empty"], "empty"),
    (["prepare", "empty", "out"], "empty: "),
    (["train", "nope", "empty", "out"], "recipe nope: no such preset or file; presets are "),
    (["train", "edm", "empty", "out"], "empty: not a dataset (no dataset.json)"),
    (["sample", "empty", "out"], "empty: not a model"),
    (["evaluate", "empty", "empty"], "empty: not a model"),
    (["score", "empty"], "empty: not a dataset (no dataset.json)"),
    (["score", "empty", "--keep", "1.5"], "keep: Input should be less than or equal to 1, not 1.5"),
    (["score", "empty", "--score", "best"], "score: Input should be 'gaussian', 'ppca'"),
    (["report", "empty"], "empty: not the folder of a sweep"),
    (["report", "lab.yaml"], "lab.yaml: not the folder of a sweep (no sweep.json)"),
    (["ui", "--storage", "nowhere"], "--storage nowhere: no such folder"),
    (["ui", "--service", "--port", "5001"], "--service: takes neither --port nor --study"),
    (["ui", "--study", "nowhere"], "--study nowhere: has no study.journal; name the folder of a sweep"),
    (["status", "--storage", "empty"], "--storage empty: no sweep there; give the folder that holds the sweeps"),
    (["sweep", "--data", "/my", "pandas"], "pandas: belongs to no option; quote values that contain spaces"),
    (["doctor", "--data", "empty"], "empty: not a dataset (no dataset.json)"),
    (["doctor", "--storage", "lab.yaml"], "--storage lab.yaml: not a folder"),
    (["doctor", "--tracking-uri", "host:5000"], "--tracking-uri host:5000: not the address of an MLflow server"),
    (["spaces", "nope"], "space nope: no such space or file"),
    (["spaces", "quickstart", "--on", "2x24"], "--on 2x24: write GPUs and the memory of each, such as 2x24GB"),
    (["recipes", "nope"], "recipe nope: no such preset or file"),
    (["dance"], "No such command 'dance'"),
]


@pytest.mark.parametrize(("arguments", "complaint"), MISTAKES, ids=[" ".join(mistake) for mistake, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_exit_status_2(folder, arguments, complaint):
    before = sorted(folder.rglob("*"))
    answer = run(*arguments, cwd=folder)
    assert answer.returncode == 2
    assert complaint in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.startswith("scrimp: ")
    assert answer.stdout == "heavy imports: []\n"
    assert sorted(folder.rglob("*")) == before


WORDS = st.from_regex(r"[^\s-][^\s]*( [^\s-][^\s]*)*", fullmatch=True)


@given(
    st.lists(
        st.one_of(st.just(["--dry-run"]), WORDS.map(lambda v: ["--data", v]), WORDS.map(lambda v: [f"--name={v}"]))
    )
)
def test_what_ray_submit_takes_apart_is_put_together_again(options):
    sent = [word for option in options for word in option]
    assert main.rejoin_values(" ".join(sent).split(" ") if sent else []) == sent


@pytest.mark.parametrize("spare", [0, 100_000])
def test_a_full_disk_gets_one_line_and_exit_status_1(digits_dataset, small_disk, capsys, spare):
    small_disk.fill(spare)
    with pytest.raises(SystemExit) as left:
        main.main(["train", "tiny-edm", str(digits_dataset.folder), str(small_disk.path / "out"), "--kimg", "0.1"])
    told = capsys.readouterr().err
    assert (left.value.code, told.count("\n")) == (1, 1)
    assert "No space left on device" in told


@pytest.mark.parametrize("name", [None, *main.scrimp.commands])
def test_help_answers_without_a_heavy_import(name):
    answer = run(*([name] if name else []), "--help")
    assert answer.returncode == 0
    assert "Usage:" in answer.stdout
    assert answer.stdout.endswith("heavy imports: []\n")


def test_the_recipes_schema_describes_every_field():
    answer = run("recipes", "--schema")
    schema = json.loads(answer.stdout.replace("heavy imports: []", ""))
    assert schema["$defs"]["Optimizer"]["properties"]["lr"]["exclusiveMinimum"] == 0
    assert all("description" in field for part in schema["$defs"].values() for field in part["properties"].values())


def test_a_printed_space_is_one_that_loads(folder):
    answer = run("spaces", "quickstart", "--yaml")
    (folder / "mine.yaml").write_text(answer.stdout.replace("heavy imports: []\n", ""))
    assert run("spaces", "mine.yaml", cwd=folder).returncode == 0


def test_a_space_is_printed_with_its_conditions_and_the_papers_values(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    answer = run("spaces", "sparse-to-sparse").stdout
    lines = {line.split()[0]: line for line in answer.splitlines() if line.strip()}
    assert "dense, static, rigl or magran" in lines["sparsity.method"]
    for piece in ("0.1 to 0.9", "method is not dense", "0.25 to 0.5"):
        assert piece in lines["sparsity.level"]
    assert lines["objective"].strip() == "objective  minimize fid, minimize train_flops"
    assert max(map(len, answer.splitlines())) <= 100


def test_score_tells_what_a_coreset_keeps_in_a_table_a_list_and_a_picture(scored_digits, tmp_path, capsys):
    data, out = tmp_path / "digits", tmp_path / "coreset.png"
    shutil.copytree(scored_digits.folder, data)
    main.main(["score", str(data), "--features", "classifier", "--keep", "0.25", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line.strip()[:1].isdigit()]
    (written,) = (Path(line.split(maxsplit=1)[1]) for line in lines if line.startswith("list"))
    with written.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for digit, kept, of, *_ in table:
        fates = [row["kept"] for row in rows if row["class"] == digit]
        assert (fates.count("1"), len(fates)) == (int(kept), int(of))
        assert int(kept) == round(0.25 * int(of))
    assert len(table) == 10
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"


def test_the_doctor_shows_each_node_and_leaves_nothing_behind(scored_digits, tmp_path, capsys, monkeypatch):
    from scrimp_cluster import faults

    for room in ("MEMORY_LEAST", "TMP_LEAST", "STORAGE_LEAST"):
        monkeypatch.setattr(faults, room, 0)  # whatever else this machine does
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    arguments = ["doctor", "--storage", str(tmp_path / "lab" / "runs"), "--data", str(scored_digits.folder)]
    main.main([*arguments, "--tracking-uri", "http://127.0.0.1:9"])
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line.split() for line in lines if line.split()[:1] == [os.uname().nodename])
    assert row[1] in ("ok", "usable")
    assert any(line.startswith("note   MLflow: http://127.0.0.1:9 does not answer; start it") for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("well", "status"), [(True, None), (False, 1)])
def test_the_doctors_exit_status_says_whether_a_sweep_can_run(monkeypatch, well, status):
    monkeypatch.setattr(commands, "doctor", lambda *_: well)
    with contextlib.nullcontext() if well else pytest.raises(SystemExit) as left:
        main.main(["doctor"])
    assert getattr(left and left.value, "code", None) == status


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--max-gpu-hours"], ["sweep", "--rungs"], ["prepare", "digits", "OUT", "--holdout"],
        ["train", "tiny-edm", "DATA", "OUT", "--kimg"], ["evaluate", "MODEL", "DATA", "--threshold"],
    ],
)  # fmt: skip
def test_a_number_that_is_not_finite_is_refused_in_a_line(arguments, value, capsys):
    with pytest.raises(SystemExit) as ending:
        main.main([*arguments, value])
    assert ending.value.code == 2
    assert "finite" in (text := capsys.readouterr().err)
    assert text.count("\n") == 1
