"""Who may read what Scrimp writes is the umask's business, for all files alike."""

import os
import stat

import pytest
from autoencoders_small import settings_of
from trainers_small import CPU, small

from scrimp_platform import store
from scrimp_trainers.codecs.cache import open_latents
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.run import train_repeat


@pytest.fixture(params=[0o077, 0o027, 0o022])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_datasets_caches_checkpoints_and_models_follow_the_umask(umask, tmp_path, autoencoders):
    root = tmp_path / "storage"
    prepare("digits", root / "data", Options(limit=300))
    dataset = open_dataset(root / "data")
    recipe = small(
        training__batch_size=32,
        training__kimg=0.064,
        sampler__steps=1,
        sparsity__method="static",
        coreset__keep=0.5,
        coreset__features="classifier",
        coreset__score="closest",
    )
    scoring = Scoring(extractor="classifier", samples=20)
    list(train_repeat(recipe, dataset, root / "run", 0, rungs_kimg=[0.032], scoring=scoring, objective="fd_classifier"))
    open_latents(dataset, settings_of(autoencoders, "tiny"), CPU)
    store.write_json(root / "sweep.json", {})

    paths = list(root.rglob("*"))
    names = {path.name for path in paths}
    assert {"classifier.safetensors", "masks.safetensors", "diffusion_pytorch_model.safetensors", "best"} <= names
    assert sum(path.suffix == ".npy" for path in paths) == 1
    for path in paths:
        most = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == most & ~umask, path
