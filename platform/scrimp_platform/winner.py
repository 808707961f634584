"""The models of a sweep that others load: a folder that MLflow, diffusers and the Hugging Face hub take as it is.

`model/` holds the recommended trial's model; if another trial has the better mean, `model-best/` holds that one's.
"""

import contextlib
import hashlib
import importlib.metadata
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scrimp_platform import store
from scrimp_platform.report import leaderboard
from scrimp_platform.report.leaderboard import TrialRow
from scrimp_platform.report.ranking import as_minimized
from scrimp_platform.store import RepeatFolder, SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.codecs import autoencoder_files
from scrimp_trainers.common import file_sums
from scrimp_trainers.common.errors import DiskFull, UserError
from scrimp_trainers.common.files import atomic_folder
from scrimp_trainers.recipe import recipe as recipes
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.recipe.techniques import Autoencoder

MLMODEL = "MLmodel"
PYTHON_MODEL = "python_model.py"
"""What MLflow runs to load the model; it stands in `tracking/`."""
CARD = "README.md"
IDENTITY = "scrimp.model"
"""The entry of MLmodel's metadata that says which repeat's model it is, and what its card says."""
LIBRARIES = ("mlflow", "torch", "diffusers", "safetensors", "numpy")
CAPTION_LIBRARIES = ("transformers", "peft")
"""What sampling needs besides, of a model that takes captions."""


def winners(rows: Sequence[TrialRow], space: Space) -> dict[str, TrialRow]:
    """Return the trials whose models others are to load, by alias: the recommended one, and that of the best mean.

    With several objectives no mean is the best, so it is the same trial. There is none without a ranked trial.
    """
    recommended = leaderboard.best(rows)
    if recommended is None:
        return {}
    name, direction = next(iter(space.objectives.items()))
    equal = [recommended]
    if len(space.objectives) == 1:
        equal += [row for row in rows if row.status == "tied"]
    best = min(equal, key=lambda row: as_minimized(row.summaries[name].mean, direction))
    return {"recommended": recommended, "best": best}


def write_models(folder: SweepFolder, rows: Sequence[TrialRow], space: Space) -> list[str]:
    """Write the folders of the models that others load, and remove outdated ones; return what they lack, in words.

    A folder that holds the same model already stays as it is, with what its owner has written on the card.

    Raises
    ------
    DiskFull
        If there is no room for them.
    """
    problems = []
    trials = winners(rows, space)
    for alias, target in folder.models.items():
        row = trials.get(alias)
        if row is None or (alias != "recommended" and row is trials["recommended"]):
            shutil.rmtree(target, ignore_errors=True)
            continue

        typical = leaderboard.typical_repeat(row, space)
        repeat = folder.repeat(typical.trial, typical.repeat)
        verdict = leaderboard.verdict(rows, space)
        identity = _identity(folder, repeat, verdict)
        held = identity_of(target)
        is_same_repeat = held.rpartition(" ")[0] == identity.rpartition(" ")[0]
        is_exported = (repeat.model / CARD).is_file()
        if held == identity or (is_same_repeat and not is_exported):
            fault = file_sums.fault_of(target)
            if fault:
                problems.append(f"{fault}; remove {target} to have it written again by `scrimp report`")
            continue
        shutil.rmtree(target, ignore_errors=True)
        if not is_exported:
            continue
        try:
            with atomic_folder(target) as part:
                problem = _fill(part, repeat, identity, folder, verdict)
        except DiskFull:
            raise
        except UserError as error:
            problem = f"the recommended model could not be copied: {error}"
        if problem:
            problems.append(f"{target}: {problem}")
    return problems


def identity_of(model: Path) -> str:
    """Return which model a folder holds; empty if it is none that `write_models` wrote."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return str(yaml.safe_load((model / MLMODEL).read_text())["metadata"][IDENTITY])
    return ""


def _identity(folder: SweepFolder, repeat: RepeatFolder, verdict: str) -> str:
    """Name a repeat's model: by the sweep, the repeat, and a hash of its card, which names all that it depends on."""
    sweep = store.read_json(folder.description)
    card = repeat.model / CARD
    text = card.read_bytes() if card.is_file() else b""
    digest = hashlib.sha256(text + verdict.encode()).hexdigest()
    return f"{sweep['id']} {repeat.label} {digest[:16]}"


def _fill(part: Path, repeat: RepeatFolder, identity: str, folder: SweepFolder, verdict: str) -> str:
    """Copy a repeat's model into a folder, and add what MLflow and the hub need; return what is missing, in words."""
    # The model, with the autoencoder that decodes its latents.
    file_sums.require_intact(repeat.model)
    shutil.copytree(repeat.model, part, dirs_exist_ok=True)
    recipe = recipes.read(repeat.recipe)
    problem = _add_decoder(part, recipe)

    # A picture, and what the sweep says of it.
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(repeat.samples_png, part / "samples.png")
    sweep = store.read_json(folder.description)
    name = registered_name(sweep["dataset"]["name"])
    with (part / CARD).open("a") as card:
        card.write(_sweep_section(sweep["name"], name, verdict))

    # MLflow's part.
    takes_captions = bool(recipe.conditioning.text)
    shutil.copyfile(Path(__file__).with_name("tracking") / PYTHON_MODEL, part / PYTHON_MODEL)
    libraries = [*LIBRARIES, *(CAPTION_LIBRARIES if takes_captions else ())]
    if not (part / "sample.py").exists():
        libraries.append("scrimp")
    versions = [f"{library}=={version}" for library in libraries if (version := _version(library))]
    (part / "requirements.txt").write_text("\n".join(versions) + "\n")
    _write_mlmodel(part, identity, sweep["dataset"].get("picture"), takes_captions)
    return problem


def _add_decoder(part: Path, recipe: Recipe) -> str:
    """Copy the decoder of a model in latents into its folder, unless it is there; return why not, if it cannot be."""
    codec = recipe.codec
    if not isinstance(codec, Autoencoder) or codec.kind not in autoencoder_files.KINDS:
        return ""
    if (part / autoencoder_files.PART).is_dir():
        return ""
    try:
        autoencoder_files.find(codec, "decoder").copy(part)
    except UserError as error:
        return f"lacks the decoder of its latents: {error}"
    return ""


def registered_name(dataset: str) -> str:
    """Return the name under which MLflow's registry has the models of a dataset, safe in addresses and filters."""
    return "scrimp-" + re.sub(r"[^\w. -]", "-", dataset)


def _sweep_section(sweep: str, name: str, verdict: str) -> str:
    return f"""
## Sweep

The model of the winning trial of the sweep {sweep}: {verdict}

![Samples](samples.png)

In MLflow, with images as uint8 [n, height, width, channels]:

```python
import mlflow

images = mlflow.pyfunc.load_model("models:/{name}@recommended").predict(16)
```
"""


def _write_mlmodel(part: Path, identity: str, picture: Sequence[int] | None, takes_captions: bool) -> None:
    """Write `MLmodel`: how MLflow loads the folder, and what the model takes and returns.

    `picture` is the shape [C, H, W] of an image, None if it is not known.
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    channels, height, width = picture or (-1, -1, -1)
    params = [ParamSpec("seed", DataType.long, 0)]
    if takes_captions:
        params.append(ParamSpec("captions", DataType.string, [], (-1,)))
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.long)]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, height, width, channels))]),
        params=ParamSchema(params),
    )
    model = Model(signature=signature, metadata={IDENTITY: identity})
    mlflow.pyfunc.add_to_model(model, loader_module="mlflow.pyfunc.model", model_code_path=PYTHON_MODEL)
    model.save(str(part / MLMODEL))


def _version(library: str) -> Any:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(library)
    return None
