import hashlib
import pkgutil
from pathlib import Path
from typing import get_args
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorCLIP, FeatureExtractorInceptionV3, FeatureExtractorVGG16, calculate_metrics
from torch_fidelity import feature_extractor_inceptionv3 as inception
from torch_fidelity.feature_extractor_clip import VisionTransformer
from torchvision import models, transforms
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import to_pil_image

from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest, Split
from scrimp_trainers.metrics import dinov2, extractors, fidelity, weight_files
from scrimp_trainers.metrics.extractors import sscd, vitg14
from scrimp_trainers.metrics.extractors.extractor import ExtractorFacts, PublishedWeights, facts
from scrimp_trainers.metrics.features import open_extractor
from scrimp_trainers.recipe.scoring import Builtin, Extractor, Scoring

CPU = torch.device("cpu")
FROM_FILE = [name for name in get_args(Builtin) if hasattr(parts.module("metrics.extractors", name), "source")]
MANIFEST = Manifest(
    name="fake",
    content_hash="0" * 64,
    size=16,
    channels=3,
    classes=None,
    splits={"train": Split(count=100, per_class=None, shards=[])},
    reference="train",
    provenance={},
)


class Pixels(torch.utils.data.Dataset[Tensor]):
    """Images in the form that torch-fidelity takes."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def pictures(count: int, seed: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, channels, 4, 4), generator=generator).float()
    return nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear").to(torch.uint8)


def opened(extractor: Extractor, path: Path):
    return open_extractor(Scoring(extractor=extractor, weights=path), path.parent, MANIFEST, CPU)


def source(extractor: Extractor) -> PublishedWeights:
    return parts.module("metrics.extractors", extractor).source()


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded random weights in the published file's form, scaled so that activations neither die nor explode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        state = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()
    generator = torch.Generator().manual_seed(0)
    for value in state.values():
        if value.dim() >= 2:
            value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return path


def test_each_file_of_an_extractor_has_its_name_in_the_union_and_each_name_its_file():
    files = {module.name for module in pkgutil.iter_modules(extractors.__path__)} - {"extractor", "building"}
    assert files == set(get_args(Builtin))


@pytest.mark.parametrize("extractor", get_args(Builtin))
def test_an_extractor_takes_its_weights_from_a_file_or_from_the_dataset(extractor: Extractor):
    part = parts.module("metrics.extractors", extractor)
    from_file = {"source", "build"} <= set(vars(part))
    from_dataset = {"load", "digest"} <= set(vars(part))
    assert from_file != from_dataset
    assert isinstance(facts(extractor), ExtractorFacts)


def test_of_a_users_own_extractor_nothing_is_known_before_it_is_loaded():
    assert facts("not_loaded:Edges") == ExtractorFacts()


def test_inception_scores_equal_torch_fidelitys_own(inception_file: Path):
    samples, real = pictures(22, seed=1), pictures(26, seed=2) // 2
    extractor = opened("inception", inception_file)
    features, logits = extractor.features(samples)
    reference, _ = extractor.features(real)
    ours = fidelity.scores(fidelity.Compared("inception", features, logits, reference, fidelity.statistics(reference)))
    theirs = calculate_metrics(
        input1=Pixels(samples),
        input2=Pixels(real),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_file),
        kid_subset_size=22,
        **dict.fromkeys(("fid", "kid", "isc", "prc"), True),
        **dict.fromkeys(("cuda", "cache", "verbose"), False),
        save_cpu_ram=True,
    )
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours["kid_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
    assert ours["isc"] == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert ours["precision"] == pytest.approx(theirs["precision"], rel=1e-3)
    assert ours["recall"] == pytest.approx(theirs["recall"], rel=1e-3)


def test_grey_images_are_seen_as_rgb(inception_file: Path):
    extractor = opened("inception", inception_file)
    grey = pictures(2, seed=3, channels=1)
    torch.testing.assert_close(extractor.features(grey)[0], extractor.features(grey.repeat(1, 3, 1, 1))[0])


def test_vgg16_is_torch_fidelitys(tmp_path: Path):
    # Views of one short row keep the file small: it has the published names and shapes, not the published size.
    row = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    state = {
        name: row.as_strided(value.shape, [7] + [1] * (value.dim() - 1)) * (2 / max(1, value[0].numel())) ** 0.5
        if value.numel() < 2**20
        else row[: value.shape[1] + 7 * value.shape[0]].mul(0.01).as_strided(value.shape, [7] + [1] * (value.dim() - 1))
        for name, value in models.vgg16().state_dict().items()
    }
    path = tmp_path / "vgg16.pth"
    torch.save(state, path)
    images = pictures(2, seed=4)
    features, logits = opened("vgg16", path).features(images)
    (theirs,) = FeatureExtractorVGG16("vgg16", ["fc2_relu"], str(path))(images)
    assert logits is None
    assert theirs.std() > 0
    torch.testing.assert_close(features, theirs)


def test_resnet18_is_torchvisions_up_to_its_pooled_features(tmp_path: Path):
    torch.manual_seed(0)
    theirs, path = models.resnet18().eval(), tmp_path / "resnet18.pth"
    torch.save(theirs.state_dict(), path)
    images = pictures(2, seed=8)
    features, logits = opened("resnet18", path).features(images)
    preset = ImageClassification(crop_size=224, resize_size=224)  # of square images nothing is cropped
    expected = theirs(preset(images / 255))
    assert logits is None
    assert features.shape == (2, 512)
    assert expected.std() > 0
    torch.testing.assert_close(theirs.fc(features), expected)


class TinyCLIP(nn.Module):
    """A CLIP of one small layer with the published names; a script holds it as the published file does."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = VisionTransformer(32, 16, 64, 1, 1, 8)
        self.text_projection = nn.Parameter(torch.zeros(64, 8))
        self.logit_scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x)


@pytest.fixture
def clip_files(tmp_path: Path) -> tuple[Path, Path]:
    """The same weights as TorchScript and as a state dict."""
    torch.manual_seed(0)
    network, script, state = TinyCLIP().eval(), tmp_path / "clip.pt", tmp_path / "state.pt"
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 32, 32)), str(script))
    torch.save(network.state_dict(), state)
    return script, state


def test_clip_is_torch_fidelitys(clip_files, monkeypatch: pytest.MonkeyPatch):
    script, state = clip_files
    images = pictures(3, seed=5)
    (theirs,) = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], str(script))(images)
    assert theirs.std() > 0
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    monkeypatch.setattr(weight_files, "published_hash", lambda _: digest)
    for path in (script, state):
        features, logits = opened("clip", path).features(images)
        assert logits is None
        torch.testing.assert_close(features, theirs)


def test_of_torchscript_only_clips_published_file_is_loaded(clip_files, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    published = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
    assert weight_files.published_hash(source("clip").file) == published
    for extractor in FROM_FILE:
        with pytest.raises(
            UserError, match=rf"clip\.pt: not the weights of extractor {extractor}: TorchScript, which can"
        ):
            opened(extractor, clip_files[0])


def test_dinov2_is_the_vision_transformer_of_torchvision_with_scaled_layers():
    """With the scales folded into the layers before them, both are the same network on a grid of the table's size."""
    torch.manual_seed(0)
    ours = dinov2.VisionTransformer(width=128, depth=2, patch=14, positions=17)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.1)
    theirs = models.VisionTransformer(56, 14, num_layers=2, num_heads=2, hidden_dim=128, mlp_dim=512)
    theirs.heads = nn.Identity()  # type: ignore[assignment]
    source, target = ours.state_dict(), {}
    for name in ("weight", "bias"):
        target[f"conv_proj.{name}"] = source[f"patch_embed.proj.{name}"]
        target[f"encoder.ln.{name}"] = source[f"norm.{name}"]
        for i in range(2):
            old, new = f"blocks.{i}", f"encoder.layers.encoder_layer_{i}"
            first, second = (source[f"{old}.ls{k}.gamma"] for k in (1, 2))
            if name == "weight":
                first, second = first[:, None], second[:, None]
            target[f"{new}.ln_1.{name}"] = source[f"{old}.norm1.{name}"]
            target[f"{new}.self_attention.in_proj_{name}"] = source[f"{old}.attn.qkv.{name}"]
            target[f"{new}.self_attention.out_proj.{name}"] = first * source[f"{old}.attn.proj.{name}"]
            target[f"{new}.ln_2.{name}"] = source[f"{old}.norm2.{name}"]
            target[f"{new}.mlp.0.{name}"] = source[f"{old}.mlp.fc1.{name}"]
            target[f"{new}.mlp.3.{name}"] = second * source[f"{old}.mlp.fc2.{name}"]
    target |= {"class_token": source["cls_token"], "encoder.pos_embedding": source["pos_embed"]}
    theirs.load_state_dict(target)
    images = torch.randn(3, 3, 56, 56)
    torch.testing.assert_close(ours(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


def test_dinov2_reads_its_size_from_a_weight_file_and_needs_nothing_else(tmp_path: Path):
    torch.manual_seed(0)
    network = dinov2.VisionTransformer(width=64, depth=3, patch=14, positions=1 + 37 * 37)
    nn.init.normal_(network.pos_embed)
    path = tmp_path / "dinov2.pth"
    torch.save(network.state_dict(), path)
    images = pictures(3, seed=6)
    features, logits = opened("dinov2", path).features(images)
    assert features.shape == (3, 64)
    assert logits is None
    assert (features[0] - features[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("side", "padded"), [(14, 14), (32, 42), (64, 70), (9, 14)])
def test_images_for_vitg14_are_reflected_to_a_multiple_of_its_patches(side: int, padded: int):
    images = pictures(2, seed=9)[..., :1].expand(-1, -1, -1, side).float()
    images = nn.functional.interpolate(images, size=(side, side)) + torch.rand(side)
    reflected = vitg14.reflected(images, 14)
    before = (padded - side) // 2
    after = padded - side - before
    borders = ((0, 0), (0, 0), (before, after), (before, after))
    np.testing.assert_array_equal(reflected.numpy(), np.pad(images.numpy(), borders, mode="reflect"))


def test_the_pixels_that_vitg14_is_shown_are_those_of_the_papers_code():
    """Neither resized nor normalised, in [0, 1]; of an odd remainder the larger part is at the bottom and the right."""
    row = [0, 30, 60, 90, 120, 150, 180, 210, 255]
    images = torch.tensor(row, dtype=torch.uint8).expand(1, 3, 9, 9)
    shown: list[Tensor] = []
    network = dinov2.VisionTransformer(width=64, depth=1, patch=14, positions=2, gated=True)
    network.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    vitg14.shown(network)(images)
    expected = torch.tensor([60, 30, *row, 210, 180, 150]) / 255
    torch.testing.assert_close(shown[0], expected.expand(1, 3, 14, 14), rtol=0, atol=1e-7)


def test_vitg14_has_the_published_size_and_maps_images_to_its_width():
    with torch.device("meta"):
        network = dinov2.VisionTransformer(width=1536, depth=40, patch=14, positions=1 + 37 * 37, gated=True)
        features = network(torch.empty(2, 3, 42, 42))
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_136_480_768
    assert network.state_dict()["blocks.39.mlp.w12.weight"].shape == (8192, 1536)
    assert network.state_dict()["blocks.39.mlp.w3.weight"].shape == (1536, 4096)
    assert features.shape == (2, 1536)


def test_vitg14_is_read_from_a_weight_file(tmp_path: Path):
    torch.manual_seed(0)
    network = dinov2.VisionTransformer(width=64, depth=2, patch=14, positions=1 + 37 * 37, gated=True)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    path = tmp_path / "vitg14.pth"
    torch.save(network.state_dict(), path)
    images = pictures(3, seed=6)
    features, logits = opened("vitg14", path).features(images)
    assert logits is None
    assert features.std() > 0.01
    padded = nn.functional.pad(images / 255, (6, 6, 6, 6), mode="reflect")
    torch.testing.assert_close(features, network(padded))


def test_a_gated_layer_is_the_silu_of_one_half_times_the_other():
    torch.manual_seed(0)
    layer = dinov2._GatedMLP(64)
    x = torch.randn(5, 64)
    gate, value = (
        x @ half.T + bias for half, bias in zip(layer.w12.weight.chunk(2), layer.w12.bias.chunk(2), strict=True)
    )
    expected = (gate / (1 + (-gate).exp()) * value) @ layer.w3.weight.T + layer.w3.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_without_network_one_line_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    for extractor in FROM_FILE:
        name = source(extractor).file
        with pytest.raises(UserError, match="no network") as caught:
            open_extractor(Scoring(extractor=extractor), tmp_path, MANIFEST, CPU)
        assert f"put {name} into {tmp_path / 'checkpoints'}, or name the file with `weights`" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_in_torchs_cache_is_found_without_download_and_known_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "dinov2_vitl14_pretrain.pth").write_bytes(b"no hash in the name")
    assert weight_files.weight_file("dinov2", None) == folder / "dinov2_vitl14_pretrain.pth"
    name = source("inception").file
    assert weight_files.published_hash(name) == "6726825d"
    (folder / name).write_bytes(b"half a download")
    with pytest.raises(UserError, match=rf"{name}: is damaged .*6726825d.*delete it"):
        weight_files.weight_file("inception", None)


def test_a_path_that_does_not_exist_or_holds_something_else_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.pth: no such file"):
        opened("inception", tmp_path / "nowhere.pth")
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    for extractor in FROM_FILE:
        with pytest.raises(UserError, match=rf"other\.pth: not the weights of extractor {extractor}") as caught:
            opened(extractor, path)
        assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path(self.target),)

    def __init__(self, target: Path) -> None:
        self.target = str(target)


@pytest.mark.parametrize("extractor", FROM_FILE)
def test_a_weight_file_cannot_run_code(extractor: Extractor, tmp_path: Path):
    path, trace = tmp_path / "bomb.pth", tmp_path / "exploded"
    torch.save({"state": Bomb(trace)}, path)
    with pytest.raises(UserError, match=r"not the weights of extractor .*: damaged, or more than tensors"):
        opened(extractor, path)
    assert not trace.exists()


def test_the_pixels_that_sscd_is_shown_are_those_of_dcrs_code():
    images = pictures(3, seed=8)
    theirs = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    )
    expected = torch.stack([theirs(to_pil_image(image)) for image in images])
    torch.testing.assert_close(sscd.as_shown(images), expected, rtol=0, atol=2 / 127.5)  # theirs rounds to 8 bits


def test_sscd_is_read_from_a_file_of_the_published_form(tmp_path: Path):
    """Its descriptor is the generalised mean over the grid, of power 3, and a linear layer."""
    torch.manual_seed(0)
    network = models.resnet50(num_classes=512).eval()
    path = tmp_path / "sscd_disc_mixup.torchvision.pt"
    torch.save({f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    images = pictures(2, seed=6)
    features, logits = opened("sscd", path).features(images)
    assert logits is None

    grid = nn.Sequential(*list(network.children())[:-2])(sscd.as_shown(images))
    pooled = ((grid.double() ** 3).sum(dim=(2, 3)) / 49) ** (1 / 3)
    expected = pooled @ network.fc.weight.double().T + network.fc.bias.double()
    expected = expected / expected.square().sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(features.double(), expected, rtol=1e-4, atol=1e-5)
