"""`make soak`: short repeats on many workstations, faults of a seeded list, and at the end counts that are exact."""

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import workstations
import yaml
from sweeps import Sweep, lines, result, wait_for
from workstations import ALIVE, CONTROLLER, FREE, RAYLET, ROOT, WORKER, Fleet

TRIALS, REPEATS = 25, 4
SPACE = {
    "recipe": "tiny-edm",
    "override": {"network.channels": 16, "sampler.steps": 2},
    "arms": {f"lr-{i}": {"optimizer.lr": 1e-4 * (i + 1)} for i in range(TRIALS)},
    "objectives": {"fd_classifier": "minimize"},
    "scoring": {"extractor": "classifier", "samples": 64},
    "budget": {"repeats": REPEATS, "rungs_kimg": [0.5, 2.0], "retries": 30},
}
FAULTS = {"worker": 8, "controller": 4, "raylet": 3, "power": 3, "cable": 3, "driver": 2, "head": 1}
"""How often each strikes."""
COMMAND = "ray submit cluster.yaml sweep.py --space /mnt/soak.yaml --data digits --name soak"
LIMIT = 3600.0  # seconds without a finished repeat until it is given up


@dataclass
class Soak:
    """A sweep under fire, and what was seen of it."""

    fleet: Fleet
    sweep: Sweep
    chance: random.Random
    driver: subprocess.Popen[bytes]
    submitted: int = 1
    finished: dict[str, object] = field(default_factory=dict)
    """What each repeat had written when it was first seen finished."""

    def watch(self) -> int:
        """Note which repeats are finished, send the same command again if it has ended, and count them."""
        new = {name: path for name, path in self.sweep.done().items() if name not in self.finished}
        self.finished |= {name: result(path) for name, path in new.items()}
        if self.driver.poll():
            self.driver = submit(self.fleet)
            self.submitted += 1
        return len(self.finished)

    def strike(self, fault: str) -> str:
        """Let something happen to a workstation; returns its name."""
        hosts = self.chance.sample(self.fleet.hosts, len(self.fleet.hosts))
        head, other = self.fleet.hosts[0], next(host for host in hosts if host is not self.fleet.hosts[0])
        match fault:
            case "worker" | "controller" | "raylet":
                name = {"worker": WORKER, "controller": CONTROLLER, "raylet": RAYLET}[fault]
                candidates = [host for host in hosts if fault != "raylet" or host is not head]
                return wait_for(fault, lambda: next((h.name for h in candidates if h.kill(name)), None), LIMIT)
            case "power":
                other.crash()
                time.sleep(self.chance.uniform(5, 60))
                other.boot()
            case "cable":
                other.plug("down")
                time.sleep(60)
                other.plug("up")
            case "driver":
                head.run(f"kill -9 {self.sweep.driver()} || true")
            case "head":
                head.crash()
                head.boot()
                self.fleet.laptop.run("ray up --yes cluster.yaml", timeout=LIMIT)
        return head.name if fault in ("driver", "head") else other.name


def submit(fleet: Fleet) -> subprocess.Popen[bytes]:
    """Type the command, once more if need be."""
    with (fleet.folder / "soak.log").open("ab") as log:
        return subprocess.Popen(fleet.laptop.command(COMMAND), stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def soak(fleet: Fleet, seed: int) -> dict[str, int]:
    """Train all repeats, strike as often as FAULTS says, evenly over the sweep, and count."""
    (fleet.folder / "shared" / "soak.yaml").write_text(yaml.safe_dump(SPACE))
    fleet.laptop.run("ray up --yes cluster.yaml", timeout=LIMIT)
    wait_for("every workstation joins", lambda: fleet.ask(ALIVE) == str(len(fleet.hosts)), LIMIT, every=10)
    chance, began = random.Random(seed), time.monotonic()
    faults = list(Counter(FAULTS).elements())
    chance.shuffle(faults)
    soak = Soak(fleet, Sweep(fleet.storage / "soak"), chance, submit(fleet))
    for i, fault in enumerate(faults):
        due = TRIALS * REPEATS * (i + 1) // (len(faults) + 1)
        wait_for(f"{due} repeats are finished", lambda due=due: soak.watch() >= due, LIMIT)
        host = soak.strike(fault)
        print(f"{time.monotonic() - began:6.0f} s  {len(soak.finished):3d} finished  {fault} on {host}", flush=True)
    wait_for("the sweep ends", lambda: soak.watch() and soak.driver.poll() == 0, LIMIT)
    return counts(soak)


def counts(soak: Soak) -> dict[str, int]:
    """Return what `make soak` prints."""
    asked, sweep, slots = TRIALS * REPEATS, soak.sweep, 2 * len(soak.fleet.hosts)
    ends = {status: sweep.repeats(status) for status in ("finished", "failed")}
    images = {name: [line["images"] for line in lines(path)] for name, path in ends["finished"].items()}
    anew = {name for name, before in soak.finished.items() if result(sweep.repeats()[name]) != before}
    anew |= {name for name, seen in images.items() if seen != sorted(set(seen))}

    deadline = time.monotonic() + 180
    while (leaked := slots - int(float(soak.fleet.ask(FREE)))) and time.monotonic() < deadline:
        time.sleep(10)
    return {
        "repeats asked": asked,
        "finished": len(ends["finished"]),
        "failed": len(ends["failed"]),
        "trained twice": len(anew),
        "lost": asked - sum(map(len, ends.values())),
        "leaked slots": leaked,
        "faults injected": sum(FAULTS.values()),
        "commands typed": soak.submitted,
    }


def main() -> None:
    """Print the counts; exit status 1 if one is not as it has to be."""
    parser = argparse.ArgumentParser(description="A hundred short repeats while workstations fail.")
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    fleet = workstations.up(arguments.hosts, ROOT / ".fleet")
    try:
        counted = soak(fleet, arguments.seed)
    finally:
        workstations.down()
    for name, count in counted.items():
        print(f"{name:>16} {count}")
    wrong = [name for name in ("failed", "trained twice", "lost", "leaked slots") if counted[name]]
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
