"""Features equal transformers' own hidden states of each answer alone, whichever way the prompts are read."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification as Classifier
from transformers import GemmaConfig, LlamaConfig, MistralConfig

from reward_model.modeling.features import decoder_layers, read_features
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from reward_model.shared_prefix.layout import EncodedPrompt

DEPTH, WIDTH = 3, 32
PROMPTS = [
    EncodedPrompt.of(range(5, 45), [[7, 8, 9], [10], [11, 12, 13, 14, 15]]),
    EncodedPrompt.of(range(20, 28), [[3, 4]]),
    EncodedPrompt.of(range(30, 47), [[9, 3, 2], [1, 2]]),
]


def make_model(kind=LlamaConfig, **options):
    torch.manual_seed(0)
    config = kind(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_labels=4,
        pad_token_id=0,
        **options,
    )
    return Classifier.from_config(config).eval()


@torch.no_grad()
def alone(model, layers, pooling):
    rows = []
    for prompt in PROMPTS:
        for answer in prompt.answers:
            ids = torch.tensor([[*prompt.prefix.tolist(), *answer.tolist()]])
            states = model.base_model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            own = [states[layer][0, len(prompt.prefix) :] for layer in layers]
            rows.append(torch.stack([x[-1] if pooling == "last" else x.mean(0) for x in own]))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", [LlamaConfig, GemmaConfig])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(("budget", "shared"), [(1000, True), (25, True), (7, True), (1000, False)])
def test_one_reading_gives_every_layer(kind, pooling, budget, shared):
    model, layers = make_model(kind), [0, 2, -1, -2, 1]
    expected = alone(model, layers, pooling)
    if shared:
        prepare_shared_prefix(model, chunked=True)
    found = read_features(model, PROMPTS, token_budget=budget, shared=shared, layers=layers, pooling=pooling)
    assert (found.shape, found.dtype) == ((6, len(layers), WIDTH), torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_document_is_read_once_for_all_layers_and_answers():
    model = make_model()
    prepare_shared_prefix(model, chunked=True)
    read = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    read_features(model, PROMPTS, token_budget=16, layers=range(DEPTH + 1))
    assert sum(read) == sum(prompt.shape.total for prompt in PROMPTS)
    assert max(read) <= 16
    assert not any(layer._forward_pre_hooks for layer in decoder_layers(model))


def test_half_precision_models_give_fp32_and_windows_are_kept():
    model = make_model(MistralConfig, sliding_window=8)
    expected = alone(model, [1, -1], "mean")
    prepare_shared_prefix(model, chunked=True)
    found = read_features(model, PROMPTS, token_budget=20, layers=[1, -1], pooling="mean")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    half = read_features(model.bfloat16(), PROMPTS, token_budget=20, layers=[1, -1], pooling="mean")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("layers", [[4], [-5], []])
def test_a_layer_that_is_not_there_is_named(layers):
    with pytest.raises(IndexError, match="0 to 3"):
        read_features(make_model(), PROMPTS, token_budget=100, layers=layers)


def test_training_mode_is_refused_where_the_cache_would_be_dropped():
    model = make_model()
    prepare_shared_prefix(model)
    with pytest.raises(ValueError, match="eval"):
        read_features(model.train(), PROMPTS, token_budget=16)
