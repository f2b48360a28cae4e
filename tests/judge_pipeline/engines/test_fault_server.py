"""A judge that fails in every way at 30% of calls, over real HTTP, with the run killed three times on the way.

What a user relies on: every answer ends with a row, a row has its scores or says why not, and no call that was
answered is ever made again.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from judge_servers import Handler, JudgeServer, completion, is_check, sane_text, write_prompts

from judge_pipeline.common.record_files import read_labels

KINDS = (
    "429",
    "429 later",
    "500",
    "503",
    "reset",
    "hang",
    "malformed",
    "empty",
    "no choices",
    "truncated",
    "wrong schema",
    "refusal",
    "filter",
    "nonsense",
)


def faults(handler: Handler, body: dict, attempt: int) -> bool:
    """30% of calls meet a fault; those that may pass do so at the first or the third attempt."""
    asked = {
        name: value for name, value in body.items() if name != "max_tokens"
    }  # more room cures nothing here
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()
    if digest[0] >= 0.30 * 256 or is_check(body):
        return False
    kind = KINDS[digest[1] % len(KINDS)]
    server = handler.server
    lasting = kind in ("truncated", "wrong schema", "refusal", "filter", "nonsense", "empty")
    if not lasting and attempt > 1 + digest[2] % 2:
        return False
    server.met[kind] += 1
    match kind:
        case "429":
            handler.send_json({"error": {"message": "slow down"}}, 429)
        case "429 later":
            handler.send_json({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.2"})
        case "500" | "503":
            handler.send_json({"error": {"message": "trouble"}}, int(kind))
        case "reset":
            handler.reset()
        case "hang":
            time.sleep(1.0)
            handler.reset()
        case "malformed":
            handler.send_text('{"choices": [{"mess')
        case "no choices":
            handler.send_json({"object": "error"})
        case "empty":
            handler.send_json(completion(""))
        case "truncated":
            handler.send_json(completion(sane_text(body)[:20], finish="length"))
        case "wrong schema":
            handler.send_json(completion('{"verdicts": "all good", "rating": "many"}'))
        case "refusal":
            handler.send_json(completion("", refusal="I cannot help with that."))
        case "filter":
            handler.send_json(completion("This reply was filtered.", finish="content_filter"))
        case "nonsense":
            handler.send_json(completion("[[85]] and [[Not fully supported]] [[Supported]] [[8/10]]"))
    return True


@pytest.mark.slow
def test_faults_and_kills_lose_nothing(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    write_prompts(prompts, prompts=50, answers=4)
    run = tmp_path / "run"
    with JudgeServer(faults) as server:
        server.met = Counter()
        command = [
            *(sys.executable, "-m", "judge_pipeline.cli", "label", str(prompts), "--output", str(run)),
            *("--judge.base-url", server.url, "--judge.model", "judge", "--retrieval", "bm25"),
            *("--judge.timeout", "0.7", "--judge.retries", "3", "--judge.backoff", "0.02"),
        ]
        before, in_flight_at_kills = 0, []
        for kill in range(3):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            goal = before + 150 + 40 * kill
            while server.requests < goal and process.poll() is None:
                time.sleep(0.01)
            assert process.poll() is None, "the run was over before it could be killed"
            in_flight_at_kills.append(server.in_flight + 1)
            process.send_signal(signal.SIGKILL)
            process.wait()
            before = server.requests
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "Traceback" not in done.stderr

        expected = [(f"p{p}", f"r{r}") for p in range(50) for r in range(4)]
        labels = list(read_labels(run))
        assert [(label.prompt_id, label.response_id) for label in labels] == expected
        for label in labels:
            for name, score in label.scores.items():
                reasons = [failure.reason for failure in label.failures if failure.dimension == name]
                assert (score is None) == (len(reasons) == 1), label
        summary = json.loads((run / "summary.json").read_text())
        reasons = Counter()
        for found in summary["failures"].values():
            reasons.update(found)
        assert {"truncated", "refused", "unparsable", "empty_reply"} <= set(reasons)
        assert summary["labelled"] + summary["partial"] + summary["failed"] == 200
        assert summary["labelled"] > 0
        assert set(server.met) == set(KINDS)

        # A call in flight at a kill may have been answered with nobody left to hear it; no other is made twice.
        again = sum(count - 1 for count in server.succeeded.values())
        assert again <= 2 * sum(in_flight_at_kills)
        answered = server.requests
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 3
        assert server.requests == answered
