"""`judge-pipeline label` against a real vLLM server, started here in a virtual environment of its own (CPU build)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.record_files import read_labels

ROOT = Path(__file__).parents[3]
VLLM_PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
START_S = 420

pytestmark = [pytest.mark.slow, pytest.mark.vllm]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    if not VLLM_PYTHON.is_file():
        pytest.skip(f"no vLLM at {VLLM_PYTHON}; scripts/test.sh installs it, or set VLLM_PYTHON")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", resolve_model("smollm2")),
        *(
            "--served-model-name",
            "smollm2",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--dtype",
            "bfloat16",
        ),
        *("--enforce-eager", "--enable-prompt-tokens-details", "--max-model-len", "8192"),
    ]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    # Bound to one core, the engine starves whenever another process has that core.
    environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    environment.pop("PYTHONPATH", None)
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the group: vLLM's engine is a process of its own
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"vLLM ended:\n{log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"vLLM did not start in {START_S} s:\n{log.read_text()[-3000:]}")


def prompt_tokens(url: str) -> float:
    """The server's own count of prompt tokens read so far."""
    metrics = urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=10).read().decode()
    lines = [line for line in metrics.splitlines() if line.startswith("vllm:prompt_tokens_total")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_label_with_a_real_server_and_again_without_a_call(server, tmp_path):
    rows = {
        "id": "bridge",
        "context": "The bridge at Kell was built in 1907 from local stone. It carries a road and a footpath. "
        "In 1954 a flood took the eastern arch, which was rebuilt in concrete. " * 3,
        "query": "When was the bridge built, and what happened to it in 1954?",
        "responses": [
            {"id": "good", "text": "It was built in 1907. In 1954 a flood destroyed the eastern arch."},
            {"id": "bad", "text": "It was built in 1812. In 1954 it was painted red."},
        ],
    }
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps(rows) + "\n")
    run = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "judge_pipeline.cli", "label", str(prompts), "--output", str(run)),
        *("--judge.base-url", server, "--retrieval", "bm25", "--statements-per-call", "3"),
        *("--analysis-chars", "120", "--item-chars", "100", "--max-statements", "3", "--max-key-points", "3"),
        *("--max-tokens", "400"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    labels = list(read_labels(run))
    assert [label.response_id for label in labels] == ["good", "bad"]
    for label in labels:
        assert all(
            (score is None) == any(failure.dimension == name for failure in label.failures)
            for name, score in label.scores.items()
        )
    assert sum(score is not None for label in labels for score in label.scores.values()) >= 6
    summary = json.loads((run / "summary.json").read_text())
    assert summary["calls"]["made"] >= 7
    assert summary["tokens"]["cached_input"] > 0  # the second answer's calls begin like the first one's
    assert summary["tokens"]["input"] <= prompt_tokens(server)

    before = prompt_tokens(server)
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == done.returncode, again.stderr
    assert json.loads((run / "summary.json").read_text())["calls"]["made"] == 0
    assert prompt_tokens(server) == before
