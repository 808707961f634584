"""CLIPScore: how well samples agree with the captions that they were drawn of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_trainers_text import opened, recipe_of, session
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import VisionTransformer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from benchmarks import text_digits
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.metrics import names
from scrimp_trainers.metrics.extractors import clip
from scrimp_trainers.metrics.families import clip_score
from scrimp_trainers.metrics.score import Scorer
from scrimp_trainers.recipe.scoring import Scoring

WIDTH = 128
"""Of the text network, which has two attention heads."""
VOCABULARY = 514
"""That of the stand-in's tokenizer."""


def text_network() -> Any:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=text_digits.LENGTH,
        projection_dim=8,
        hidden_act="quick_gelu",
        initializer_factor=5.0,
        eos_token_id=VOCABULARY - 1,
    )
    return CLIPTextModelWithProjection(config).eval()


def published_names(network: Any) -> dict[str, Tensor]:
    """Return transformers' weights as CLIP's own file has them."""
    theirs = {name.removeprefix("text_model."): tensor for name, tensor in network.state_dict().items()}
    state = {
        "token_embedding.weight": theirs["embeddings.token_embedding.weight"],
        "positional_embedding": theirs["embeddings.position_embedding.weight"],
        "ln_final.weight": theirs["final_layer_norm.weight"],
        "ln_final.bias": theirs["final_layer_norm.bias"],
        "text_projection": theirs["text_projection.weight"].T,
    }
    layers = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    layers["self_attn.out_proj"] = "attn.out_proj"
    for layer in range(2):
        block, own = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            projections = [theirs[f"{block}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            state[f"{own}attn.in_proj_{kind}"] = torch.cat(projections)
            for name, own_name in layers.items():
                state[f"{own}{own_name}.{kind}"] = theirs[f"{block}{name}.{kind}"]
    return {name: tensor.contiguous() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a small CLIP of random weights, under the published names."""
    torch.manual_seed(1)
    visual = nn.ModuleDict({"visual": VisionTransformer(32, 16, 64, 1, 1, 8)})
    state = {**visual.state_dict(), **published_names(text_network()), "logit_scale": torch.ones(())}
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(state, path)
    return path


def scoring(weights: Path, **values: Any) -> Scoring:
    return Scoring(**{"extractor": "clip", "weights": weights, "also": ("clip_score",), "samples": 24} | values)


def test_the_features_of_captions_are_those_of_transformers(weights: Path, captioned_digits: Dataset, stand_in: Path):
    tokens = opened(captioned_digits, stand_in).tokens(60).unique(dim=0)
    expected = text_network()(input_ids=tokens).text_embeds
    assert len(expected) > 2
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(clip.build_text(weights)(tokens), expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing_and_longer_captions_than_clip_reads_are_refused(weights: Path):
    network = clip.build_text(weights)
    tokens = torch.tensor([[512, 70, 71, 513]])
    padded = nn.functional.pad(tokens, (0, 9), value=513)
    torch.testing.assert_close(network(tokens), network(padded))
    with pytest.raises(UserError, match=r"clip reads 40 tokens of a caption, not 41"):
        network(torch.zeros(1, 41, dtype=torch.int64))


def test_the_score_is_the_mean_cosine_of_an_image_and_its_caption():
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    captions = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    assert clip_score.agreement(images, captions) == pytest.approx(100 * (1 + 0.5**0.5 + 0) / 3)


def test_samples_are_compared_with_their_own_captions(weights: Path, captioned_digits: Dataset, stand_in: Path):
    """Training images as samples have the score that is stated for them; those of other captions have another."""
    judge = Scorer(captioned_digits, scoring(weights), "cpu")
    tokens = opened(captioned_digits, stand_in).tokens(24)
    images = torch.from_numpy(captioned_digits.images("train")[0])
    values = judge.score([images[:24]], tokens=tokens).values
    assert values["clip_score"] == pytest.approx(values["clip_score_training"], rel=1e-6)

    labels = captioned_digits.images("train")[1]
    assert labels is not None
    others = np.flatnonzero(labels != labels[0])[:24]
    assert len(set(labels[:24])) < 10
    changed = judge.score([images[:24]], tokens=opened(captioned_digits, stand_in).tokens(len(images))[others]).values
    assert changed["clip_score"] != pytest.approx(values["clip_score"], rel=1e-4)


def test_a_training_reports_it(weights: Path, captioned_digits: Dataset, stand_in: Path, tmp_path: Path):
    recipe = recipe_of(stand_in)
    made = session(recipe, captioned_digits, tmp_path / "run", scoring=scoring(weights))
    made.train_to(8, made.steps(), 60.0)
    row = made.score_rung(made.metrics_row(0.008))
    assert set(names.score_names(scoring(weights))) >= {"clip_score", "clip_score_training"}
    assert 0 <= row.value("clip_score") <= 100
    assert 0 < row.value("clip_score_training") <= 100


def test_what_cannot_be_scored_is_refused(
    weights: Path, captioned_digits: Dataset, digits_dataset: Dataset, stand_in: Path
):
    asked = scoring(weights)
    names.check_scoring(asked, captioned_digits.manifest)
    with pytest.raises(UserError, match=r"scoring.also clip_score: dataset digits has no captions; leave it out"):
        names.check_scoring(asked, digits_dataset.manifest)
    with pytest.raises(UserError, match=r"scoring.also clip_score: extractor inception reads no captions; use clip"):
        names.check_scoring(scoring(weights, extractor="inception"), captioned_digits.manifest)
    with pytest.raises(UserError, match=r"needs samples of captions; set conditioning.text"):
        names.scores_captions(asked, captioned=False)
    assert names.scores_captions(asked, captioned=True)
    assert not names.scores_captions(scoring(weights, also=()), captioned=False)
