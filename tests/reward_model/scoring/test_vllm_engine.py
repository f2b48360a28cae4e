"""vLLM reads a saved model with no code of ours: in process (`--engine vllm`) and as a server (`/classify`)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rm_helpers import initialise_head
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import DIMENSIONS
from reward_model.modeling.model import load_backbone_for_rm, save_reward_model
from reward_model.scoring.score import score_file
from reward_model.scoring.score_config import ScoreConfig
from reward_model.scoring.scorer import RewardModel
from reward_model.shared_prefix.layout import join_ids
from reward_model.training.sharding import share_prefix

ROOT = Path(__file__).parents[3]
VLLM_PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(
        not VLLM_PYTHON.is_file(),
        reason=f"no vLLM at {VLLM_PYTHON}; scripts/test.sh installs it, or set VLLM_PYTHON",
    ),
]
TOLERANCE = 3e-4
"""Points, fp32 in both."""


@pytest.fixture(scope="module")
def model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that scores within 0–10, with heads of a size that vLLM's CPU attention takes."""
    from reward_model.shared_prefix.interface import shared_forward

    base = tmp_path_factory.mktemp("vllm_base")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(base)
    torch.manual_seed(0)
    changes = {"hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.1}
    config = LlamaConfig.from_pretrained(tiny_base, **changes, head_dim=32)
    LlamaForCausalLM(config).save_pretrained(base)
    backbone = load_backbone_for_rm(str(base), max_length=1024)
    share_prefix(backbone.model)
    renderer = backbone.renderer
    prefix = renderer.prefix_ids("some words " * 4, "?")
    ids, layout = join_ids([(prefix, [renderer.answer_ids(f"{word} answer") for word in "abcdefghij"])])
    with torch.no_grad():
        features = shared_forward(backbone.model, ids, layout)[layout.score_index()]
    generator = torch.Generator().manual_seed(1)
    initialise_head(backbone.model, features, torch.rand(10, 4, generator=generator) * 4 + 3)
    path = tmp_path_factory.mktemp("vllm_model") / "rm"
    save_reward_model(backbone.model, backbone.tokenizer, path, backbone.manifest)
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vllm_prompts") / "prompts.jsonl"
    rows = [
        {
            "id": f"p{i}",
            "context": "the document says something else here " * (8 + i),
            "query": "What?",
            "responses": [{"id": f"r{j}", "text": f"answer number {j} " * (j + 1)} for j in range(5)],
        }
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def points(path: Path) -> np.ndarray:
    rows = [r.scores for p in read_prompts(path) for r in p.responses]
    return np.array([[row[name] for name in DIMENSIONS] for row in rows], dtype=float)


def environment() -> dict[str, str]:
    """A small cache, our code on the path, and the environment's own tools first."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{VLLM_PYTHON.parent}:{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }


SCORE = """
import json, sys
from pathlib import Path
from reward_model.scoring.score import score_file
from reward_model.scoring.score_config import ScoreConfig
if __name__ == "__main__":
    model, prompts, output = map(Path, sys.argv[1:])
    config = ScoreConfig(
        model=model, prompts=prompts, output=output, engine="vllm", dtype="float32", vllm={"enforce_eager": True}
    )
    score_file(config)
"""


def test_the_vllm_engine_gives_the_same_scores(model: Path, prompts: Path, tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text(SCORE)
    output = tmp_path / "vllm.jsonl"
    done = subprocess.run(
        [str(VLLM_PYTHON), str(script), str(model), str(prompts), str(output)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    torch_output = tmp_path / "torch.jsonl"
    reference = score_file(ScoreConfig(model=model, prompts=prompts, output=torch_output))
    np.testing.assert_allclose(points(output), points(torch_output), atol=TOLERANCE)
    assert points(output).std() > 0.05
    summary = json.loads(Path(f"{output}.summary.json").read_text())
    assert summary["engine"] == "vllm"
    # The prefix cache works in blocks, so a few tokens of each prompt are read again.
    assert reference.tokens_read <= summary["tokens_read"] < reference.tokens_one_by_one / 2


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[str]:
    """The server that `vllm serve MODEL` starts; the CPU package cannot run that script, which asks for the
    version of a package named vllm, so the server's module is started instead."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "server.log"
    command = [str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--runner", "pooling", "--convert", "classify", "--enable-prefix-caching"]
    command += ["--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment(), stdout=file, stderr=file, start_new_session=True
        )
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(1)
        else:
            pytest.fail("the server did not start: " + log.read_text()[-4000:])
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def test_vllm_serve_gives_the_same_scores(model: Path, prompts: Path, server: str) -> None:
    ours = RewardModel.from_pretrained(model)
    prompt = next(read_prompts(prompts))
    answers = [item.text for item in prompt.responses]
    prefix = ours.render(prompt.context, prompt.query)
    as_ids = [prefix + ours.render_answer(text) for text in answers]
    as_text = [ours.render_text(prompt.context, prompt.query, text) for text in answers]
    expected = ours.score(prompt.context, prompt.query, answers)
    for given in (as_ids, as_text):
        request = urllib.request.Request(
            f"{server}/classify",
            json.dumps({"model": str(model), "input": given, "add_special_tokens": False}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            found = json.loads(reply.read())
        served = [row["probs"] for row in sorted(found["data"], key=lambda row: row["index"])]
        np.testing.assert_allclose(served, expected, atol=TOLERANCE)


def test_an_adapter_is_refused_before_vllm_is_loaded(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(model, adapter)
    manifest = json.loads((adapter / "reward_model.json").read_text())
    (adapter / "reward_model.json").write_text(json.dumps(manifest | {"adapter": True}))
    code = f"from reward_model.scoring.vllm_engine import VllmEngine; VllmEngine({str(adapter)!r})"
    done = subprocess.run(
        [str(VLLM_PYTHON), "-c", code], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert "is an adapter, and vLLM needs plain weights" in done.stderr
