import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scrimp_trainers.common import heartbeat, metrics_log

WORKER = Path(__file__).with_name("trainers_worker.py")


def test_a_process_that_hangs_with_the_interpreter_held_is_ended_and_says_where(digits_dataset, tmp_path):
    child = subprocess.run([sys.executable, WORKER, "hangs", digits_dataset.folder, tmp_path, "10"], timeout=300)
    assert child.returncode == 1
    assert metrics_log.read_rows(tmp_path / "metrics.jsonl")  # it had begun to train
    told = (tmp_path / "stacks.txt").read_text()
    assert "in stuck" in told
    assert "in train_to" in told
    assert heartbeat.timeout_message(tmp_path / "stacks.txt") == (
        f"no progress for 0:00:10, so its process was ended; where it hung is in {tmp_path / 'stacks.txt'}"
    )


PATIENT = """
import sys, time
from pathlib import Path
from scrimp_trainers.common import heartbeat
stacks = Path(sys.argv[1])
try:
    with heartbeat.watched(stacks, 2):
        time.sleep(2.5)  # nothing has begun yet
        for _ in range(30):
            heartbeat.beat()
            time.sleep(0.1)
        heartbeat.pause()
        time.sleep(2.5)
        heartbeat.beat()
        raise RuntimeError
except RuntimeError:
    heartbeat.beat()
    time.sleep(2.5)  # nobody watches any more
assert not stacks.exists()
"""


def test_whoever_shows_life_or_rests_or_is_done_is_left_alone(tmp_path):
    child = subprocess.run([sys.executable, "-c", PATIENT, tmp_path / "stacks.txt"], capture_output=True)
    assert child.returncode == 0, child.stderr


def test_ranks_that_end_at_the_same_time_leave_nothing_and_do_not_mind(tmp_path):
    def rank(_: int) -> None:
        for _ in range(300):
            with heartbeat.watched(tmp_path / "stacks.txt", 60):
                pass

    with ThreadPoolExecutor(4) as ranks:
        list(ranks.map(rank, range(4)))
    assert not (tmp_path / "stacks.txt").exists()
    assert heartbeat.timeout_message(tmp_path / "stacks.txt") == ""
