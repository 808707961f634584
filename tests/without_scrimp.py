"""The code on a model's card, run in a process of its own in which no package of Scrimp can be imported."""

import re
import subprocess
import sys
from pathlib import Path

PACKAGES = ("scrimp", "scrimp_trainers", "scrimp_platform", "scrimp_spaces", "scrimp_cluster")
HIDDEN = f"import sys\nsys.modules.update(dict.fromkeys({PACKAGES!r}))\n"
"""Importing what stands for nothing in `sys.modules` is an error."""


def run_card(model: Path, then: str) -> None:
    """Run the card's code in the model's folder, and then some more."""
    code = re.findall("```python\n(.*?)```", (model / "README.md").read_text(), re.DOTALL)[0]
    environment = {"PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(model)}
    subprocess.run([sys.executable, "-c", HIDDEN + code + then], check=True, cwd=model, env=environment)
