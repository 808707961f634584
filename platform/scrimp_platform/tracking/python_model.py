"""Draws images from the model in this file's folder, for MLflow: by its `sample.py`, or else with Scrimp.

MLflow runs this file (models from code), so that nothing is unpickled.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

FOLDER = Path(__file__).resolve().parent


class ImageModel(PythonModel):
    """A model whose input is a number of images."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the model.

        Raises
        ------
        ImportError
            If Scrimp alone can sample it, and is not installed.
        """
        script = FOLDER / "sample.py"
        self._sample = _load_script(script).sample if script.exists() else _load_with_scrimp()

    def predict(self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return images, uint8 [n, height, width, channels]; `model_input` is n, as a number or as MLflow has it."""
        (n,) = np.asarray(model_input).reshape(-1).tolist()
        options = {name: value for name, value in (params or {}).items() if name != "captions" or len(value)}
        return self._sample(int(n), **options)


def _load_script(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("scrimp_sample", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file}: cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_with_scrimp() -> Any:
    try:
        from scrimp_platform.model import Model
    except ImportError:
        raise ImportError(
            "diffusers has no code for this model, so Scrimp has to sample it: pip install scrimp"
        ) from None

    def sample(n: int, seed: int = 0, captions: Any = ()) -> np.ndarray:
        model = Model.load(FOLDER, captions=[str(caption) for caption in captions])
        return model.sample(n, seed=seed).transpose(0, 2, 3, 1)

    return sample


set_model(ImageModel())
