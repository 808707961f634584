"""A diffusion transformer trains, resumes, samples, is exported and read back, with the techniques that it takes."""

import re
import subprocess
import sys

import pytest
import torch
from techniques_small import NAMES, train_and_resume, with_techniques
from trainers_small import CPU, random_batches, small, small_state

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.conditioning.conditions import Conditions
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.export import export_model, load_model
from scrimp_trainers.ingest import prepare
from scrimp_trainers.networks.dit import build
from scrimp_trainers.recipe.networks import DiT
from scrimp_trainers.sampling import generate
from scrimp_trainers.training.loop import read_losses, train

TRANSFORMER = {"network.kind": "dit", "network.channels": 16, "network.layers": 2, "network.heads": 2}
REFUSED = {
    "mafp": "mafp needs augmentation labels; use network.kind unet, or turn mafp off",
    "masking": "masking needs tokens that can be hidden; use network.kind mdt, or turn masking off",
    "patches": "patches needs coordinates; use network.kind unet, or turn patches off",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("dit")


@pytest.fixture(scope="module")
def few_digits(files):
    prepare("digits", files / "digits", Options(limit=96, classifier=False))
    return open_dataset(files / "digits")


def awake(classes: int = 10, section: DiT | None = None):
    """Make a network with weights as if it had been trained, so that every input matters."""
    torch.manual_seed(0)
    network = build(section or DiT(channels=16, layers=2, heads=2), image_size=8, channels=1, classes=classes).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("preset", ["tiny-edm", "tiny-ddpm"])
def test_training_lowers_the_loss(preset):
    long = {"training__kimg": 1.6, "optimizer__lr": 3e-3, "optimizer__warmup_kimg": 0}
    recipe = small(preset, **long).replace(TRANSFORMER)
    losses = read_losses(list(train(recipe, small_state(recipe), random_batches(8), device=CPU)))
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.mark.parametrize("names", [(), *((name,) for name in NAMES)], ids=lambda names: "-".join(names) or "plain")
def test_it_trains_resumes_bit_exactly_and_samples_with_each_technique_that_it_takes(
    names, files, few_digits, tmp_path, monkeypatch
):
    monkeypatch.setattr("scrimp_trainers.metrics.cost.forward_flops", lambda *_: 1)
    recipe = with_techniques((), files).replace(TRANSFORMER | {"network.dropout": 0.1})
    added = with_techniques(names, files).model_dump()
    values = {name: added[name] for name in names}
    if set(names) & set(REFUSED):
        with pytest.raises(UserError, match=re.escape(REFUSED[names[0]])):
            recipe.replace(values)
        return

    recipe = recipe.replace(values)
    whole = train_and_resume(recipe, few_digits, tmp_path / "run", 40, 80)
    assert whole.state.step == 10
    drawn = torch.cat(list(generate(whole.state.ema, recipe, 2, seed=1, codec=whole.prepared.codec)))
    assert drawn.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("classes", [pytest.param(0, marks=pytest.mark.slow), 10])
@pytest.mark.parametrize("preset", ["tiny-edm", "tiny-ddpm"])
def test_its_card_samples_without_our_code_and_it_is_read_back(preset, classes, few_digits, tmp_path):
    recipe = small(preset, conditioning__classes=bool(classes)).replace(TRANSFORMER)
    network = awake(classes)
    export_model(tmp_path / "model", network, recipe, few_digits.manifest, {})
    assert not (tmp_path / "model" / "model_index.json").exists()  # every pipeline leaves the labels out

    card = (tmp_path / "model" / "README.md").read_text()
    code = re.findall("```python\n(.*?)```", card, re.DOTALL)[0]
    check = "\nimport sys\nassert images.shape == (16, 1, 8, 8), images.shape\nassert images.float().std() > 5\n"
    check += "assert not any(name.startswith('scrimp') for name in sys.modules)\n"
    environment = {"PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", code + check]
    subprocess.run(command, check=True, cwd=tmp_path / "model", env=environment)

    loaded, again = load_model(tmp_path / "model", "cpu")
    assert again == recipe
    assert loaded.classes == classes
    x = torch.randn(3, 1, 8, 8)
    labels = torch.tensor([0, 1, classes - 1]) if classes else None
    with torch.no_grad():
        assert torch.equal(loaded(x, torch.ones(3), Conditions(labels)), network(x, torch.ones(3), Conditions(labels)))


@torch.no_grad()
def test_labels_matter_and_none_means_hidden_ones():
    network = awake()
    x, levels = torch.randn(2, 1, 8, 8), torch.tensor([0.1, -0.5])
    plain = network(x, levels)
    assert torch.equal(plain, network(x, levels, Conditions(torch.tensor([10, 10]))))
    assert not torch.allclose(plain, network(x, levels, Conditions(torch.tensor([3, 4]))))


@torch.no_grad()
def test_diffusers_own_dropping_of_labels_is_off():
    network = awake().train()
    x, levels, conditions = torch.randn(64, 1, 8, 8), torch.zeros(64), Conditions(torch.arange(64) % 10)
    assert torch.equal(network(x, levels, conditions), network(x, levels, conditions))


@torch.no_grad()
def test_it_starts_as_the_papers_code_does():
    torch.manual_seed(0)
    network = build(DiT(channels=32, layers=3, heads=4), image_size=8, channels=1, classes=10)
    assert network(torch.randn(2, 1, 8, 8), torch.zeros(2)).abs().max() == 0
    tokens = torch.randn(2, 16, 32)
    block = network.transformer.transformer_blocks[0]
    out = block(tokens, timestep=torch.zeros(2), class_labels=torch.zeros(2, dtype=torch.long))
    assert torch.equal(out, tokens)


@pytest.mark.parametrize(
    ("section", "message"),
    [(DiT(patch_size=3), "network.patch_size: 3 does not divide 8 pixels"),
     (DiT(channels=16, heads=3), "network.heads: 3 does not divide the 16 of network.channels")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(section, message):
    with pytest.raises(UserError, match=message):
        build(section, image_size=8, channels=1)


def test_its_size_is_the_papers_but_for_the_embedders_that_diffusers_gives_every_block():
    xl = DiT(channels=1152, layers=28, heads=16)
    with torch.device("meta"):
        network = build(xl, image_size=32, channels=4, classes=1000).transformer
    count = sum(parameter.numel() for parameter in network.parameters())
    first = network.get_submodule("transformer_blocks.0.norm1.emb")
    embedder = sum(parameter.numel() for parameter in first.parameters())
    # The paper's code counts the fixed positions, and its last layer also gives four channels of variances.
    positions = 256 * 1152
    variances = 4 * 2 * 2 * (1152 + 1)
    assert count - 27 * embedder + positions + variances == 675_129_632
