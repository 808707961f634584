import os

# Before anything imports torch: the tests share few cores, where threads that spin while they wait starve the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Ray's workers run at niceness 15, where the tests beside them leave them almost nothing.
os.environ.setdefault("RAY_worker_niceness", "0")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from small_disk import SmallDisk

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from scrimp_trainers.data.dataset import Dataset

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of its own, to be filled up; mounting one needs root."""
    disk = SmallDisk(tmp_path / "disk")
    if not disk.mount():
        pytest.skip("needs root, to mount a tmpfs")
    yield disk
    disk.unmount()


@pytest.fixture(scope="session")
def vq_f4(autoencoders: Path) -> Path:
    """Folder of latent diffusion's VQ-f4 where SCRIMP_VQ_DIR names it, or else of a small VQModel of random weights."""
    return Path(os.environ.get("SCRIMP_VQ_DIR", autoencoders / "vq"))


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Stable Diffusion's classes in its layout, small and with random weights."""
    from benchmarks import text_digits

    folder = tmp_path_factory.mktemp("stable-diffusion")
    text_digits.write_model(folder)
    return folder


@pytest.fixture(scope="session")
def stable_diffusion(stand_in: Path) -> Path:
    """Folder of Stable Diffusion where SCRIMP_SD_DIR names it, or else of the stand-in."""
    return Path(os.environ.get("SCRIMP_SD_DIR", stand_in))


@pytest.fixture(scope="session")
def captioned_digits(tmp_path_factory: pytest.TempPathFactory) -> "Dataset":
    """Digits, each with its caption: a photo of the digit seven."""
    from benchmarks.text_digits import write_images
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.data.options import Options
    from scrimp_trainers.ingest import prepare

    folder = tmp_path_factory.mktemp("captioned")
    write_images(folder / "images")
    prepare(str(folder / "images"), folder / "digits", Options(near=0, classifier=False))
    return open_dataset(folder / "digits")


@pytest.fixture(scope="session")
def scored_captions(tmp_path_factory: pytest.TempPathFactory) -> "Dataset":
    """The same with the classifier that scores them."""
    from benchmarks.text_digits import write_images
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.data.options import Options
    from scrimp_trainers.ingest import prepare

    folder = tmp_path_factory.mktemp("scored_captions")
    write_images(folder / "images")
    prepare(str(folder / "images"), folder / "digits", Options(near=0))
    return open_dataset(folder / "digits")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real datasets, which are no part of the project; tests that use one skip where it is missing."""
    return Path(os.environ.get("SCRIMP_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def digits_dataset(tmp_path_factory: pytest.TempPathFactory) -> "Dataset":
    """scikit-learn's digits, prepared without the classifier."""
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.data.options import Options
    from scrimp_trainers.ingest import prepare

    folder = tmp_path_factory.mktemp("datasets") / "digits"
    prepare("digits", folder, Options(classifier=False))
    return open_dataset(folder)


@pytest.fixture(scope="session")
def scored_digits(tmp_path_factory: pytest.TempPathFactory) -> "Dataset":
    """scikit-learn's digits, prepared with the classifier that scores them."""
    from scrimp_trainers.data.dataset import open_dataset
    from scrimp_trainers.data.options import Options
    from scrimp_trainers.ingest import prepare

    folder = tmp_path_factory.mktemp("scored") / "digits"
    prepare("digits", folder, Options())
    return open_dataset(folder)


@pytest.fixture(scope="session")
def autoencoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of small autoencoders with random weights: kl, other, three, tiny and vq."""
    from autoencoders_small import save_autoencoders

    folder = tmp_path_factory.mktemp("autoencoders")
    save_autoencoders(folder)
    return folder


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server of the module's own."""
    from scrimp_platform.store import Storage
    from scrimp_platform.tracking import mlflow_server

    server = mlflow_server.join_or_start(Storage(tmp_path_factory.mktemp("storage")))
    server.wait_until_ready()
    server.log_in()
    yield server.uri
    server.release()


@pytest.fixture(scope="module")
def client(uri: str) -> "MlflowClient":
    """A client of that server."""
    from mlflow import MlflowClient

    return MlflowClient(uri)
