"""A readout is the same before and after saving, alone or in a shared sequence, on a whole model or one cut there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from judge_pipeline.common.errors import UserError
from reward_model.modeling.features import decoder_layers
from reward_model.modeling.model import load_backbone_for_rm, read_manifest, save_reward_model
from reward_model.modeling.readout import READOUT_FILE, Readout, ReadoutSpec, view_features
from reward_model.modeling.ridge import LinearProbe
from reward_model.scoring.scorer import RewardModel

PROMPTS = [
    ("A document of a few words.", "What is it?", ["yes yes", "no", "perhaps it is"]),
    ("Another one. " * 9, "And this?", ["no no", "yes"]),
]
VIEWS = ["document", "difference", "both"]
POOLINGS = ["mean", "last", "mean+last"]


def save_model(base, folder, layer=1, pooling="mean", view="both") -> Readout:
    backbone = load_backbone_for_rm(str(base), dtype=torch.float32)
    spec = ReadoutSpec(layer=layer, pooling=pooling, view=view)
    size = 32 * (2 if pooling == "mean+last" else 1) * (2 if view == "both" else 1)
    torch.manual_seed(1)
    readout = Readout(spec, LinearProbe(torch.randn(4, size).double(), torch.randn(4).double()))
    save_reward_model(backbone.model, backbone.tokenizer, folder, backbone.manifest, readout)
    return readout


@torch.no_grad()
def by_hand(folder, readout) -> list[np.ndarray]:
    """The same readout from transformers' own hidden states, answer by answer."""
    plain = RewardModel.from_pretrained(folder, "cpu", readout="plain", shared_prefix="off")
    rows = []
    for context, query, answers in PROMPTS:
        sides = []
        for document in (context, ""):
            pooled = []
            for answer in answers:
                prefix, own = plain.render(document, query), plain.render_answer(answer)
                states = plain.model.base_model(
                    input_ids=torch.tensor([prefix + own]), output_hidden_states=True, use_cache=False
                ).hidden_states[readout.spec.layer][0, len(prefix) :]
                parts = {"mean": [states.mean(0)], "last": [states[-1]]}
                pooled.append(torch.cat(parts.get(readout.spec.pooling) or [states.mean(0), states[-1]]))
            sides.append(torch.stack(pooled))
        rows.append(readout.apply(*sides).numpy())
    return rows


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layer", [1, 2])
def test_a_saved_readout_scores_as_its_weights_say_however_it_is_read(
    tiny_base, tmp_path, view, pooling, layer
):
    readout = save_model(tiny_base, tmp_path, layer, pooling, view)
    expected = by_hand(tmp_path, readout)
    for options in ({}, {"shared_prefix": "off"}):
        model = RewardModel.from_pretrained(tmp_path, "cpu", **options)
        assert len(decoder_layers(model.model)) == layer
        for budget in (2000, 30):
            for found, wanted in zip(model.score_batch(PROMPTS, budget), expected, strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_plain_head_is_what_it_was_and_can_be_asked_for(tiny_base, tmp_path):
    save_model(tiny_base, tmp_path / "with")
    backbone = load_backbone_for_rm(str(tiny_base), dtype=torch.float32)
    plain = RewardModel.from_pretrained(tmp_path / "with", "cpu", readout="plain")
    best = RewardModel.from_pretrained(tmp_path / "with", "cpu")
    assert len(decoder_layers(plain.model)) == 2
    assert np.abs(plain.score(*PROMPTS[0]) - best.score(*PROMPTS[0])).max() > 0.1
    save_reward_model(plain.model, plain.tokenizer, tmp_path / "without", backbone.manifest)
    without = RewardModel.from_pretrained(tmp_path / "without", "cpu")
    np.testing.assert_allclose(without.score(*PROMPTS[0]), plain.score(*PROMPTS[0]), atol=1e-6)
    assert read_manifest(tmp_path / "without").readout is None


def test_cost_counts_the_second_reading_and_the_layers(tiny_base, tmp_path):
    save_model(tiny_base, tmp_path, layer=1, view="difference")
    model = RewardModel.from_pretrained(tmp_path, "cpu")
    encoded = [model.encode(*prompt) for prompt in PROMPTS]
    list(model.score_encoded(encoded))
    expected = sum(item.shape.total + item.withheld().shape.total for item in encoded)
    assert (model.tokens_read, model.layers, model.depth) == (expected, 1, 2)


def test_a_difference_says_nothing_where_the_document_is_withheld(tiny_base, tmp_path):
    save_model(tiny_base, tmp_path, view="difference", pooling="mean+last")
    scores = RewardModel.from_pretrained(tmp_path, "cpu").score("", "What is it?", ["yes", "no no no"])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_a_missing_readout_is_named(tiny_base, tmp_path):
    save_model(tiny_base, tmp_path)
    (tmp_path / READOUT_FILE).unlink()
    with pytest.raises(UserError, match=r"readout\.safetensors"):
        RewardModel.from_pretrained(tmp_path, "cpu")
    assert RewardModel.from_pretrained(tmp_path, "cpu", readout="plain").layers == 2


def test_views():
    document, withheld = torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 1.0]])
    assert view_features("difference", document, withheld).tolist() == [[2.0, 4.0]]
    assert view_features("both", document, withheld).tolist() == [[3.0, 5.0, 2.0, 4.0]]
    assert view_features("document", document, None) is document
