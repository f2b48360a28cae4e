"""Sampling with a real vLLM in process, in the virtual environment that scripts/test.sh makes for it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
VLLM_PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
CHILD = """
import json, sys
from dpo.sample.base import Decoding, Request
from dpo.sample.vllm_sampler import VllmSampler

if __name__ == "__main__":
    sampler = VllmSampler(sys.argv[1], sys.argv[3], {"enforce_eager": True, "max_model_len": 512})
    messages = [{"role": "user", "content": "Name three colours."}]
    requests = [Request("a", messages, 3, 7), Request("b", messages, 1, 8)]
    found = {r.prompt_id: [vars(d) for d in draws] for r, draws in sampler.answer(requests, Decoding(1.0, 1.0, 12))}
    found["window"] = sampler.window
    greedy = Decoding(0.0, max_new_tokens=8)
    found["greedy"] = next(draws[0].text for _, draws in sampler.answer(requests[:1], greedy))
    open(sys.argv[2], "w").write(json.dumps(found))
    sampler.close()
"""


needs_vllm = pytest.mark.skipif(not VLLM_PYTHON.is_file(), reason="no virtual environment with vLLM")


def drawn(tmp_path: Path, model: str, dtype: str = "bfloat16") -> dict[str, Any]:
    script, out = tmp_path / "child.py", tmp_path / "found.json"
    script.write_text(CHILD)
    done = subprocess.run(
        [str(VLLM_PYTHON), str(script), model, str(out), dtype],
        capture_output=True, text=True, timeout=540,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1"},
    )  # fmt: skip
    assert out.is_file(), done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.slow
@pytest.mark.vllm
@needs_vllm
def test_every_answer_can_be_drawn_again_from_its_recorded_seed(tmp_path: Path):
    from judge_pipeline.common.bundled_models import resolve_model

    found = drawn(tmp_path, resolve_model("smollm2"))
    assert found["window"] == 512
    assert [draw["seed"] for draw in found["a"]] == [7, 8, 9]
    assert len({draw["text"] for draw in found["a"]}) == 3
    assert found["b"][0]["text"] == found["a"][1]["text"]


@pytest.mark.slow
@pytest.mark.vllm
@needs_vllm
def test_an_adapter_is_sampled_as_transformers_samples_it(tmp_path: Path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from dpo.sample.base import Decoding, Request
    from dpo.sample.transformers_sampler import TransformersSampler
    from judge_pipeline.common.bundled_models import resolve_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(resolve_model("smollm2"))
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)  # far from the base, so that leaving it out shows
    adapted.save_pretrained(tmp_path / "adapter")
    request = Request("a", [{"role": "user", "content": "Name three colours."}], 1, 0)
    how = Decoding(0.0, max_new_tokens=8)
    expected, plain = (
        next(iter(TransformersSampler(model, "cpu", "float32").answer([request], how)))[1][0].text  # type: ignore[index, union-attr]
        for model in (str(tmp_path / "adapter"), "smollm2")
    )
    assert expected != plain
    assert drawn(tmp_path, str(tmp_path / "adapter"), "float32")["greedy"] == expected
