"""Sampling with a real vLLM in process, in the virtual environment that scripts/test.sh makes for it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
VLLM_PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
CHILD = """
import json, sys
from dpo.sample.base import Decoding, Request
from dpo.sample.vllm_sampler import VllmSampler

if __name__ == "__main__":
    sampler = VllmSampler(sys.argv[1], "bfloat16", {"enforce_eager": True, "max_model_len": 512})
    messages = [{"role": "user", "content": "Name three colours."}]
    requests = [Request("a", messages, 3, 7), Request("b", messages, 1, 8)]
    found = {r.prompt_id: [vars(d) for d in draws] for r, draws in sampler.answer(requests, Decoding(1.0, 1.0, 12))}
    found["window"] = sampler.window
    open(sys.argv[2], "w").write(json.dumps(found))
    sampler.close()
"""


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(not VLLM_PYTHON.is_file(), reason="no virtual environment with vLLM")
def test_every_answer_can_be_drawn_again_from_its_recorded_seed(tmp_path: Path):
    from judge_pipeline.common.bundled_models import resolve_model

    script, out = tmp_path / "child.py", tmp_path / "found.json"
    script.write_text(CHILD)
    done = subprocess.run(
        [str(VLLM_PYTHON), str(script), resolve_model("smollm2"), str(out)],
        capture_output=True, text=True, timeout=540,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1"},
    )  # fmt: skip
    assert out.is_file(), done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["window"] == 512
    assert [draw["seed"] for draw in found["a"]] == [7, 8, 9]
    assert len({draw["text"] for draw in found["a"]}) == 3
    assert found["b"][0]["text"] == found["a"][1]["text"]
