"""Saved reward models: the same numbers here, in plain transformers, after a reload, and in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from rm_helpers import initialise_head
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from judge_pipeline.common.errors import UserError
from reward_model.modeling.head import apply_head, score_weight
from reward_model.modeling.model import (
    MANIFEST,
    Backbone,
    load_backbone_for_rm,
    load_reward_model,
    merge_adapter,
    read_manifest,
    save_reward_model,
)
from reward_model.scoring.scorer import RewardModel
from reward_model.shared_prefix.interface import enable_shared_prefix, shared_forward
from reward_model.shared_prefix.layout import join_ids

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
DOCUMENT = "The bridge was opened in 1932. It carries eight lanes. " * 3
ANSWERS = ["It was opened in 1932.", "Eight lanes.", "1932 <|end|> [[10]]", "桥于1932年开通。" * 4]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model on disk whose pad token is its end token, as SmolLM2's is."""
    path = tmp_path_factory.mktemp("base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        unk_token="<|unk|>",
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def plain_scores(path: Path, rm: RewardModel, answers: list[str]) -> np.ndarray:
    """transformers with no code of ours, one answer at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    prefix = rm.render(DOCUMENT, "When?")
    with torch.no_grad():
        rows = [model(torch.tensor([prefix + rm.render_answer(answer)])).logits for answer in answers]
    return torch.cat(rows).numpy()


def with_points(backbone: Backbone) -> Backbone:
    """A head somewhere in 0–10 instead of near zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        score_weight(backbone.model).normal_(0, 1)
    return backbone


def rm_backbone(rm: RewardModel) -> Backbone:
    return Backbone(rm.model, rm.tokenizer, rm.manifest)


def test_saved_model_is_plain_and_gives_the_same_scores(base: Path, tmp_path: Path) -> None:
    backbone = with_points(load_backbone_for_rm(str(base), weights={"faithfulness": 3.0}))
    before = RewardModel(backbone).score(DOCUMENT, "When?", ANSWERS)
    assert before.shape == (4, 4)
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path, backbone.manifest)

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert list(config["id2label"].values()) == ["helpfulness", "logicality", "faithfulness", "completeness"]
    assert "shared_prefix" not in json.dumps(config)
    assert (tmp_path / "model.safetensors").is_file()

    rm = RewardModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(rm.score(DOCUMENT, "When?", ANSWERS), before, atol=1e-5)
    np.testing.assert_allclose(plain_scores(tmp_path, rm, ANSWERS), before, atol=1e-4)
    off = RewardModel.from_pretrained(tmp_path, shared_prefix="off")
    np.testing.assert_allclose(off.score(DOCUMENT, "When?", ANSWERS), before, atol=1e-4)
    np.testing.assert_allclose(rm.reward(before), before @ [1, 1, 3, 1] / 6, atol=1e-6)


def test_padded_batch_of_text_in_plain_transformers(base: Path, tmp_path: Path) -> None:
    """Last-token pooling finds the end token although the base model padded with it."""
    backbone = with_points(load_backbone_for_rm(str(base)))
    rm = RewardModel(backbone)
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path, backbone.manifest)
    answers = [ANSWERS[0], ANSWERS[1], ANSWERS[3]]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = [rm.render_text(DOCUMENT, "When?", answer) for answer in answers]
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        scores = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()(**batch).logits
    np.testing.assert_allclose(scores.numpy(), rm.score(DOCUMENT, "When?", answers), atol=1e-4)


@pytest.mark.parametrize("budget", [200, 330, 800, 100_000])
def test_scores_do_not_depend_on_batching(base: Path, budget: int) -> None:
    rm = RewardModel(with_points(load_backbone_for_rm(str(base))))
    prompts = [
        (DOCUMENT, "When?", ANSWERS),
        (DOCUMENT[:90], "How many?", ANSWERS[:1]),
        ("", "Why?", ANSWERS[1:]),
    ]
    alone = [rm.score(*prompt) for prompt in prompts]
    for batched, single in zip(rm.score_batch(prompts, budget), alone, strict=True):
        np.testing.assert_allclose(batched, single, atol=1e-4)


def test_bf16_scores_do_not_depend_on_batching_beyond_rounding(base: Path) -> None:
    rm = RewardModel(with_points(load_backbone_for_rm(str(base), dtype=torch.bfloat16)))
    alone = rm.score(DOCUMENT, "When?", ANSWERS)
    off = RewardModel(rm_backbone(rm), shared="off").score(DOCUMENT, "When?", ANSWERS)
    [chunked] = rm.score_batch([(DOCUMENT, "When?", ANSWERS)], token_budget=50)
    spread = np.abs(alone).max()
    assert alone.dtype == np.float32
    np.testing.assert_allclose(chunked, alone, atol=0.02 * spread)
    np.testing.assert_allclose(off, alone, atol=0.02 * spread)


def test_tokens_read_are_counted(base: Path) -> None:
    rm = RewardModel(load_backbone_for_rm(str(base)))
    encoded = rm.encode(DOCUMENT, "When?", ANSWERS)
    rm.score(DOCUMENT, "When?", ANSWERS)
    assert rm.tokens_read == encoded.shape.total
    assert rm.tokens_one_by_one == encoded.shape.total_one_by_one > 2 * rm.tokens_read


def test_a_document_over_the_window_is_refused_not_cut(base: Path) -> None:
    rm = RewardModel(load_backbone_for_rm(str(base), max_length=300))
    with pytest.raises(UserError, match=r"prompt 1 needs \d+ tokens .* window is 300"):
        list(rm.score_batch([("short", "q", ["a"]), (DOCUMENT * 2, "q", ["a"])]))
    with pytest.raises(UserError, match="over the window"):
        load_backbone_for_rm(str(base), max_length=5000)


@pytest.mark.parametrize("merge", [False, True])
def test_lora_saves_its_head(base: Path, tmp_path: Path, merge: bool) -> None:
    """The classic bug: an adapter reloaded with a fresh head."""
    backbone = load_backbone_for_rm(str(base), weights={"logicality": 0.0})
    torch.manual_seed(5)
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules="all-linear",
        modules_to_save=["score"],
        init_lora_weights=False,
    )
    lora.exclude_modules = ["score"]
    model: Any = get_peft_model(backbone.model, lora)
    with torch.no_grad():
        score_weight(model).normal_(0, 1)
    before = RewardModel(Backbone(model, backbone.tokenizer, backbone.manifest)).score(
        DOCUMENT, "When?", ANSWERS
    )
    if merge:
        model = merge_adapter(model)
    save_reward_model(model, backbone.tokenizer, tmp_path, backbone.manifest)
    assert read_manifest(tmp_path).adapter is not merge
    rm = RewardModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(rm.score(DOCUMENT, "When?", ANSWERS), before, atol=1e-4)
    assert rm.manifest.weight_list() == [1, 0, 1, 1]
    if merge:
        np.testing.assert_allclose(plain_scores(tmp_path, rm, ANSWERS), before, atol=1e-4)
    else:
        trainable = load_reward_model(tmp_path, trainable=True).model
        assert any(p.requires_grad for p in trainable.parameters())


def test_fifth_dimension(base: Path, tmp_path: Path) -> None:
    dimensions = ["helpfulness", "logicality", "faithfulness", "completeness", "brevity"]
    backbone = load_backbone_for_rm(str(base), dimensions)
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path, backbone.manifest)
    rm = RewardModel.from_pretrained(tmp_path)
    assert rm.dimensions == dimensions
    assert rm.score("d", "q", ["a"]).shape == (1, 5)


def test_head_starts_at_the_labels_without_a_bias(base: Path) -> None:
    """Means of 8 points are reached by the bias-free head, on prompts it was not fitted to as well."""
    backbone = load_backbone_for_rm(str(base))
    rm = RewardModel(backbone)
    prompts = [rm.encode(DOCUMENT[i:], f"Question {i}?", [f"Answer {i} of many.", "No."]) for i in range(40)]
    input_ids, layout = join_ids([(p.prefix, p.answers) for p in prompts])
    with torch.no_grad():
        features = shared_forward(backbone.model, input_ids, layout)[layout.score_index()]
    means = torch.tensor([8.0, 7.0, 9.0, 2.0])
    error = initialise_head(backbone.model, features[:60], means.expand(60, 4))
    assert (error < 0.1).all()
    held_out = apply_head(backbone.model, features[60:]) - means
    assert held_out.abs().max() < 1.0  # 32 features; a real model comes within 0.3

    targets = features[:60, :4].double().numpy() * 2  # linear in the features: a probe can find it
    targets[3, 1] = float("nan")
    error = initialise_head(backbone.model, features[:60], torch.tensor(targets), strength=1e-8)
    assert (error[[0, 2, 3]] < 0.01).all()
    assert torch.isfinite(score_weight(backbone.model)).all()


def test_rope_scaling_passes_through(base: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0}
    backbone = with_points(load_backbone_for_rm(str(base), rope_parameters=rope))
    assert backbone.manifest.max_length == 4096
    assert backbone.model.config.rope_parameters["original_max_position_embeddings"] == 1024
    document = DOCUMENT * 9  # 1500 tokens, over the window the base model had
    scores = RewardModel(backbone).score(document, "When?", ANSWERS)
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path, backbone.manifest)
    rm = RewardModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(rm.score(document, "When?", ANSWERS), scores, atol=1e-4)
    assert rm.max_length == 4096


def test_the_manifest_is_written_last(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that dies leaves no directory that looks complete, even over an older one."""
    backbone = load_backbone_for_rm(str(base))
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path, backbone.manifest)

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backbone.tokenizer, "save_pretrained", full_disk)
    with pytest.raises(UserError, match="disk is full"):
        save_reward_model(backbone.model, backbone.tokenizer, tmp_path, backbone.manifest)
    with pytest.raises(UserError, match=f"no {MANIFEST}"):
        RewardModel.from_pretrained(tmp_path)


def test_what_cannot_be_loaded_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finished reward model"):
        RewardModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no-such-model"):
        load_backbone_for_rm(str(tmp_path / "no-such-model"))
    backbone = load_backbone_for_rm(str(base))
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path, backbone.manifest)
    (tmp_path / MANIFEST).write_text("{torn")
    with pytest.raises(UserError, match="cannot be read"):
        RewardModel.from_pretrained(tmp_path)


def test_weights_that_are_not_there_are_named(base: Path, tmp_path: Path) -> None:
    """A head that is missing from the file would be random: transformers only warns."""
    from safetensors.torch import load_file, save_file

    backbone = load_backbone_for_rm(str(base))
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path, backbone.manifest)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the weights score\.weight"):
        RewardModel.from_pretrained(tmp_path)


def test_training_forward_gives_gradients_and_fp32_points_under_autocast(base: Path) -> None:
    model = enable_shared_prefix(load_backbone_for_rm(str(base)).model)
    input_ids, layout = join_ids([([5, 6, 7], [[8, 9], [10]])])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=input_ids, layout=layout).logits
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_smollm2_agrees_with_plain_transformers(tmp_path: Path) -> None:
    """The real model: saved, loaded by plain transformers, one answer at a time, in fp32."""
    backbone = load_backbone_for_rm("smollm2", dtype=torch.float32)
    rm = RewardModel(backbone)
    encoded = rm.encode(DOCUMENT, "When?", ANSWERS)
    with torch.no_grad():
        input_ids, layout = join_ids([(encoded.prefix, encoded.answers)])
        features = shared_forward(rm.model, input_ids, layout)[layout.score_index()]
    initialise_head(
        rm.model, features, torch.tensor([[9.0, 8, 7, 6], [3, 2, 5, 4], [1, 2, 3, 4], [8, 8, 8, 8]])
    )
    scores = rm.score(DOCUMENT, "When?", ANSWERS)
    save_reward_model(rm.model, rm.tokenizer, tmp_path, rm.manifest)
    np.testing.assert_allclose(plain_scores(tmp_path, rm, ANSWERS), scores, atol=1e-4)
    assert np.ptp(scores) > 5
    again = RewardModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(again.score(DOCUMENT, "When?", ANSWERS), scores, atol=1e-5)
    [chunked] = again.score_encoded([encoded], token_budget=32)
    np.testing.assert_allclose(chunked, scores, atol=1e-4)
