"""How much of the possible prefix caching the order of our calls gets out of a real vLLM server.

The calls of a labelling run (documents that Python carries, plans driven with stand-in replies) go to a vLLM server whose
cache holds less than the run reads, once in our order and once shuffled, through the same engine. The hit rate is the
server's own (`vllm:prefix_cache_hits` over `…_queries`, in tokens). The ideal is computed from the token lists: every
block of tokens that some earlier call began with too is a hit, as in a cache without bounds.

    python scripts/bench/prefix_cache.py [--documents 5] [--answers 3]     (vLLM's Python: $VLLM_PYTHON or .venv-vllm)
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from judge_pipeline.calls.call import Call, Reply
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.records import Prompt, Response
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.registry import build_dimensions
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.engines.base import Routing
from judge_pipeline.engines.concurrency import Priority
from judge_pipeline.engines.endpoint import EndpointEngine
from judge_pipeline.labelling.forecast import Forecast
from scripts.bench.evidence_common import command_line, environment, write_result

HERE = Path(__file__)
BLOCK = 32
CONCURRENCY = 8
DOCUMENTS = [
    "calls",
    "context-managers",
    "exprlists",
    "imaginary",
    "import",
    "function",
    "class",
    "sequences",
]


class Recorder(Forecast):
    """Drives plans and keeps every call with its place in the order."""

    def __init__(self, builder: DocumentIndexer) -> None:
        super().__init__(builder)
        self.seen: dict[str, tuple[Priority, Call]] = {}
        self.position = 0

    def stand_in_reply(self, call: Call, answers: tuple[int, ...], prompt: Prompt) -> Reply:
        """One call of the prompt at `position`."""
        order: Priority = (call.template, self.position, min(answers, default=0))
        short = call.model_copy(update={"sampling": call.sampling.model_copy(update={"max_tokens": 4})})
        self.seen.setdefault(call.key(""), (order, short.model_copy(update={"json_schema": None})))
        return super().stand_in_reply(call, answers, prompt)


def workload(documents: int, answers: int) -> list[tuple[Priority, Call]]:
    """The calls of labelling `answers` answers to each of some documents of 1k–3k tokens."""
    builder = DocumentIndexer(retrieval="bm25")
    dimensions = build_dimensions(["paper"], JudgeOptions(structured=True))
    recorder = Recorder(builder)
    for position, name in enumerate(DOCUMENTS[:documents]):
        text = topics[name][:9000]
        sentences = [part for part in re.split(r"(?<=[.])\s+", text) if 40 < len(part) < 200]
        dice = random.Random(position)
        texts = [" ".join(dice.sample(sentences, min(4, len(sentences)))) for _ in range(answers)]
        responses = [Response(id=str(n), text=answer) for n, answer in enumerate(texts)]
        prompt = Prompt(id=name, context=text, query=f"What are the rules of '{name}'?", responses=responses)
        recorder.position = position
        recorder.add(prompt, dimensions)
    return list(recorder.seen.values())


def ideal(calls: list[tuple[Priority, Call]]) -> dict[str, float]:
    """Share of the tokens that an unbounded cache of whole blocks would have."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_model("smollm2"))
    seen: set[tuple[int, ...]] = set()
    hits = total = 0
    for _, call in sorted(calls, key=lambda row: row[0]):
        messages = [message.model_dump() for message in call.messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        total += len(tokens)
        # The last token is always computed: its logits are the answer.
        whole = (len(tokens) - 1) // BLOCK * BLOCK
        known = True
        for end in range(BLOCK, len(tokens) + 1, BLOCK):
            prefix = tuple(tokens[:end])
            known = known and prefix in seen
            hits += BLOCK if known and end <= whole else 0
            seen.add(prefix)
    return {"tokens": total, "hit_tokens": hits, "rate": hits / total}


class Server:
    """A vLLM server of our own, with a small cache that can be emptied; or one that runs already."""

    def __init__(self, python: Path, log: Path, blocks: int, url: str | None = None) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        if url:
            self.url = url
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", resolve_model("smollm2")),
            *("--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", "bfloat16", "--enforce-eager", "--enable-prompt-tokens-details"),
            *("--max-model-len", "4096", "--block-size", str(BLOCK)),
            *("--num-gpu-blocks-override", str(blocks)),
        ]
        env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        env["VLLM_SERVER_DEV_MODE"] = "1"
        self._process = subprocess.Popen(
            command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=env, start_new_session=True
        )

    def wait(self, seconds: float = 480) -> None:
        """Until the server answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.url + "/health", timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        raise SystemExit(f"vLLM did not start:\n{self._log.read_text()[-2000:]}")

    def counters(self) -> tuple[float, float]:
        """Tokens looked up in the prefix cache, and tokens found."""
        text = urllib.request.urlopen(self.url + "/metrics", timeout=30).read().decode()

        def value(name: str) -> float:
            found = re.findall(rf"^vllm:{name}_total{{.*}} (\S+)$", text, re.MULTILINE)
            return sum(map(float, found))

        return value("prefix_cache_queries"), value("prefix_cache_hits")

    def empty_cache(self) -> None:
        """Forget everything cached."""
        request = urllib.request.Request(self.url + "/reset_prefix_cache", method="POST")
        urllib.request.urlopen(request, timeout=30).close()

    def stop(self) -> None:
        """End the server and its engine process."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)


async def issue(server: Server, calls: list[tuple[Priority, Call]]) -> None:
    """All calls through the endpoint engine, as the scheduler hands them over."""
    url = server.url + "/v1"
    engine = EndpointEngine([url], "smollm2", "none", timeout_s=1800, max_concurrency=CONCURRENCY)
    replies = await asyncio.gather(*(engine.answer(call, Routing(order)) for order, call in calls))
    await engine.close()
    bad = [reply for reply in replies if reply.failure not in (None, "truncated")]
    if bad:
        raise SystemExit(f"{len(bad)} calls failed: {bad[0].detail}")


def measure(server: Server, calls: list[tuple[Priority, Call]]) -> dict[str, float]:
    """One run from an empty cache."""
    server.empty_cache()
    before = server.counters()
    started = time.monotonic()
    asyncio.run(issue(server, calls))
    seconds = time.monotonic() - started
    queries, hits = (after - start for after, start in zip(server.counters(), before, strict=True))
    tokens = {"queried_tokens": queries, "hit_tokens": hits}
    return {**tokens, "rate": hits / queries, "seconds": round(seconds, 1)}


def main() -> int:
    """Run, print, and write the results beside this file."""
    parser = command_line(__doc__)
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--answers", type=int, default=3)
    parser.add_argument(
        "--cache-blocks", type=int, default=512, help=f"cache size in blocks of {BLOCK} tokens"
    )
    started_with = f"VLLM_SERVER_DEV_MODE=1, --block-size {BLOCK} --num-gpu-blocks-override BLOCKS"
    parser.add_argument("--url", help=f"a server that runs already, started with {started_with}")
    options = parser.parse_args()
    python = Path(os.environ.get("VLLM_PYTHON", HERE.parents[2] / ".venv-vllm" / "bin" / "python"))
    calls = workload(options.documents, options.answers)
    best = ideal(calls)
    shuffled: list[tuple[Priority, Call]] = [
        ((n,), call) for n, (_, call) in enumerate(random.Random(0).sample(calls, len(calls)))
    ]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(python, Path(folder) / "server.log", options.cache_blocks, options.url)
        try:
            server.wait()
            version = json.load(urllib.request.urlopen(server.url + "/version", timeout=30))["version"]
            ordered, unordered = measure(server, calls), measure(server, shuffled)
        finally:
            server.stop()
    result = {
        "what": "prefix-cache hit rate of a labelling run's calls, by the server's own counters",
        "workload": {"documents": options.documents, "answers": options.answers, "calls": len(calls)},
        "cache_tokens": BLOCK * options.cache_blocks,
        "most_calls_at_a_time": CONCURRENCY,
        "ideal": best,
        "ordered": ordered,
        "unordered": unordered,
        "ordered_of_ideal": ordered["rate"] / best["rate"],
        "unordered_of_ideal": unordered["rate"] / best["rate"],
        "vllm": version,
        "model": "SmolLM2-135M-Instruct, bf16",
        **environment(),
    }
    file = HERE.with_suffix(".json")
    runs = json.loads(file.read_text()) if file.is_file() else {}
    runs[f"cache of {BLOCK * options.cache_blocks} tokens"] = result  # one entry a cache size; others stay
    write_result(file, runs)
    print(
        f"{len(calls)} calls, {best['tokens']:,.0f} tokens; cache of {BLOCK * options.cache_blocks:,} tokens"
    )
    for name in ("ideal", "ordered", "unordered"):
        row: Any = result[name]
        print(f"{name:<10} {100 * row['rate']:5.1f}%  {100 * row['rate'] / best['rate']:5.1f}% of the ideal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
