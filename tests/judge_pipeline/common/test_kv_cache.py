"""The cache is handed to models under the name this transformers has for it, so nobody reads a warning."""

from __future__ import annotations

import logging
import warnings

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from judge_pipeline.common.kv_cache import cache_argument


def test_a_model_takes_the_cache_without_a_word(monkeypatch):
    said = []
    monkeypatch.setattr(
        logging.Logger, "warning_once", lambda logger, *args: said.append(args), raising=False
    )
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model, cache = LlamaForCausalLM(config).eval(), DynamicCache()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", FutureWarning)
        for _ in range(2):
            model(torch.tensor([[1, 2, 3]]), use_cache=True, **cache_argument(cache))
    assert cache.get_seq_length() == 6
    assert not said
