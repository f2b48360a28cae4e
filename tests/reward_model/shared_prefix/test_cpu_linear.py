"""oneDNN's products in a reading: the same numbers, only without gradients, only while it lasts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reward_model.modeling.features import read_features
from reward_model.modeling.model import load_backbone_for_rm
from reward_model.scoring.scorer import RewardModel
from reward_model.shared_prefix import cpu_linear
from reward_model.shared_prefix.cpu_linear import available, onednn_linears
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from tests.reward_model.conftest import make_prompts

pytestmark = pytest.mark.skipif(not available(), reason="this build of torch has no oneDNN")


@pytest.fixture
def counted(monkeypatch) -> list[nn.Module]:
    """Layers that multiplied with oneDNN."""
    calls, own = [], cpu_linear._linear

    def linear(self, inputs):
        calls.append(self)
        return own(self, inputs)

    monkeypatch.setattr(cpu_linear, "_linear", linear)
    return calls


@pytest.mark.parametrize("bias", [True, False])
def test_products_are_the_same_within_rounding(bias):
    layer, inputs = nn.Linear(300, 500, bias=bias), torch.randn(2, 70, 300)
    expected = layer(inputs)
    with torch.no_grad(), onednn_linears(layer) as number:
        found = layer(inputs)
    assert number == 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert "forward" not in vars(layer)


def test_gradients_and_other_types_go_the_usual_way():
    layer, inputs = nn.Linear(8, 4), torch.randn(3, 8)
    with onednn_linears(layer):
        layer(inputs).sum().backward()
    assert layer.weight.grad is not None
    half = nn.Linear(8, 4).bfloat16()
    hooked = nn.Linear(8, 4)
    hooked.forward = lambda inputs: inputs
    with onednn_linears(nn.ModuleList([half, hooked])) as number:
        assert number == 0
    assert "forward" in vars(hooked)


def test_readings_and_scores_use_it(counted, tiny_base, label_run, tmp_path):
    backbone = load_backbone_for_rm(str(tiny_base), dtype=torch.float32)
    model = prepare_shared_prefix(backbone.model.eval())
    row = make_prompts(1)[0]
    texts = [item["text"] for item in row["responses"]]
    prompt = backbone.renderer.encode(row["context"], row["query"], texts)
    read_features(model, [prompt], token_budget=800)
    assert len(set(counted)) == 14  # seven layers in each of two blocks
    counted.clear()
    scorer = RewardModel(backbone)
    scorer.score(row["context"], row["query"], texts)
    assert len(set(counted)) >= 14
    assert not any("forward" in vars(one) for one in model.modules() if type(one) is nn.Linear)
