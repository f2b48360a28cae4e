"""The base model's likelihood of answers, against plain transformers on whole sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reward_model.modeling.likelihood import answer_log_probs, base_model_is_local, load_language_model
from reward_model.modeling.model import Manifest
from reward_model.modeling.prompt_format import PromptFormat, PromptRenderer


@pytest.fixture(scope="module")
def manifest(tiny_base: Path) -> Manifest:
    prompt_format = PromptFormat.from_tokenizer(AutoTokenizer.from_pretrained(tiny_base))
    return Manifest(max_length=1024, prompt_format=prompt_format, base_model=str(tiny_base))


@pytest.mark.parametrize(("token_budget", "shared"), [(4096, True), (40, True), (4096, False)])
def test_sums_and_means_equal_transformers_one_sequence_at_a_time(manifest, token_budget, shared):
    """Packed, in chunks, and one by one."""
    tokenizer = AutoTokenizer.from_pretrained(manifest.base_model)
    renderer = PromptRenderer(tokenizer, manifest.prompt_format)
    prompts = [
        renderer.encode("A river runs. " * 9, "Where?", ["In the valley.", "No", "Down to the old harbour."]),
        renderer.encode("", "Where?", ["In the valley."]),
    ]
    sums, means = answer_log_probs(
        load_language_model(manifest, "cpu", shared), prompts, token_budget=token_budget, shared=shared
    )
    plain = AutoModelForCausalLM.from_pretrained(manifest.base_model).eval()
    place = 0
    for prompt in prompts:
        for answer in prompt.answers:
            ids = torch.from_numpy(np.concatenate([prompt.prefix, answer]).astype(np.int64))[None]
            with torch.no_grad():
                logits = plain(ids).logits[0].log_softmax(-1)
            start = len(prompt.prefix)
            wanted = [logits[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])]
            assert sums[place].item() == pytest.approx(sum(wanted), abs=1e-3)
            assert means[place].item() == pytest.approx(np.mean(wanted), abs=1e-4)
            place += 1
    assert place == len(sums) == len(means) == 4


def test_a_base_model_that_would_have_to_be_downloaded_is_not_local(tiny_base):
    assert base_model_is_local(str(tiny_base))
    assert not base_model_is_local("nobody/such-a-model")
    assert not base_model_is_local("/no/such/folder")
