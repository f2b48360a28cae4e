"""A judge that fails in every way at 30% of calls, over real HTTP, with the run killed five times on the way.

What a user relies on: every answer ends with a row, a row has its scores or says why not, no call that was answered is
ever made again, and every reply that the server's own log counts as paid is in the run's store.
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

PASSING = (
    *("429", "429 later", "500", "502", "503", "504", "reset", "hang", "malformed", "no choices"),
    *("a list of nothing",),
)
"""Met at a call's first attempt or its first two."""
LASTING = ("truncated", "wrong schema", "refusal", "filter", "nonsense", "empty", "403")
"""The call's own: met whenever it is asked."""
CURED = ("404", "echo")
"""Met until the test repairs the server."""
HARMLESS = ("list content", "thinking apart", "thinking closed", "thinking in a list", "no schema")
"""No faults at all, only other ways to answer."""
UNENDING = ("thinking unclosed",)
KINDS = (*PASSING, *LASTING, *CURED, *HARMLESS, *UNENDING)
TIMEOUT_S = 4.0
KILLS, CONCURRENCY = 5, 16


class FaultServer(JudgeServer):
    """Keeps a log of its own: replies that were paid for, and outages that the test asks for."""

    def __init__(self) -> None:
        super().__init__(faults)
        self.paid = self.checks = 0
        self.cured = False
        self.poor_after: int | None = None
        """Requests after which the account is empty."""
        self.down_until = 0.0
        self.outages = [300, 1500]
        """Requests at which everything answers 503 for a while."""

    def pay(self, handler: Handler, reply: dict) -> None:
        with self.lock:
            self.paid += 1
        handler.send_json(reply)


def refuse(handler: Handler, status: int, message: str, **headers: str) -> bool:
    handler.send_json({"error": {"message": message}}, status, headers)
    return True


def faults(handler: Handler, body: dict, attempt: int) -> bool:
    server = handler.server
    with server.lock:
        if server.outages and server.requests >= server.outages[0]:
            server.outages.pop(0)
            server.down_until = time.monotonic() + 2.0
    if time.monotonic() < server.down_until:
        server.met["outage"] += 1
        return refuse(handler, 503, "restarting")
    if server.poor_after is not None and server.requests >= server.poor_after:
        server.met["402"] += 1
        return refuse(handler, 402, "insufficient credit")
    if is_check(body):
        with server.lock:
            server.checks += 1
        return False
    digest = hashlib.sha256(json.dumps(body["messages"], sort_keys=True).encode()).digest()
    kind = KINDS[digest[1] % len(KINDS)] if digest[0] < 0.30 * 256 else None
    if kind is None or (kind in PASSING and attempt > 1 + digest[2] % 2) or (kind in CURED and server.cured):
        with server.lock:
            server.paid += 1
        return False
    server.met[kind] += 1
    return failed(handler, kind, body) if kind in (*PASSING, "403", *CURED) else answered(handler, kind, body)


def failed(handler: Handler, kind: str, body: dict) -> bool:
    """An answer that is no answer, and costs nothing."""
    match kind:
        case "429":
            return refuse(handler, 429, "slow down")
        case "429 later":
            return refuse(handler, 429, "slow down", **{"Retry-After": "0.2"})
        case "reset":
            handler.reset()
        case "hang":
            time.sleep(TIMEOUT_S + 0.5)
            handler.reset()
        case "malformed":
            handler.send_text('{"choices": [{"mess')
        case "no choices":
            handler.send_json({"object": "error"})
        case "a list of nothing":
            handler.send_json([])
        case "echo":
            sent = "temperature response_format max_completion_tokens " + json.dumps(body)
            handler.send_json({"error": {"message": "bad request", "param": None, "request": sent}}, 400)
        case status:
            return refuse(handler, int(status), "trouble")
    return True


def answered(handler: Handler, kind: str, body: dict) -> bool:
    """A reply that is paid for, whatever it is worth."""
    text = sane_text(body)
    reply = completion(text)
    message = reply["choices"][0]["message"]
    match kind:
        case "empty":
            reply = completion("")
        case "truncated":
            reply = completion(text[:20], finish="length")
        case "wrong schema":
            reply = completion('{"verdicts": "all good", "rating": "many"}')
        case "refusal":
            reply = completion("", refusal="I cannot help with that.")
        case "filter":
            reply = completion("This reply was filtered.", finish="content_filter")
        case "nonsense":
            reply = completion("[[85]] and [[Not fully supported]] [[Supported]] [[8/10]]")
        case "list content":
            message["content"] = [{"type": "text", "text": text}]
        case "thinking in a list":
            thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "[[3]]"}]}
            message["content"] = [thinking, {"type": "text", "text": text}]
        case "thinking apart":
            message["reasoning_content"] = "Rating: [[3]]"
        case "thinking closed":
            message["content"] = f"<think>Rating: [[3]]</think>\n{text}"
        case "thinking unclosed":
            message["content"] = f"<think>Rating: [[3]] {text}"
        case "no schema":
            message["content"] = sane_text({**body, "response_format": None})
    handler.server.pay(handler, reply)
    return True


def check_rows(run, answers):
    """Every answer has one row, in order, and a row its scores or the reasons why not; the reasons, counted."""
    labels = list(read_labels(run))
    assert [(label.prompt_id, label.response_id) for label in labels] == answers
    for label in labels:
        for name, score in label.scores.items():
            reasons = [failure.reason for failure in label.failures if failure.dimension == name]
            assert (score is None) == (len(reasons) == 1), label
    return Counter(failure.reason for label in labels for failure in label.failures)


def stored_replies(run):
    """Replies that the store holds as paid, answers and failed attempts: each cost 100 tokens of input."""
    return json.loads((run / "summary.json").read_text())["store"]["tokens"]["input"] // 100


@pytest.mark.slow
def test_faults_and_kills_lose_nothing(tmp_path):
    prompts, run = tmp_path / "prompts.jsonl", tmp_path / "run"
    write_prompts(prompts, prompts=125, answers=4)
    answers = [(f"p{p}", f"r{r}") for p in range(125) for r in range(4)]
    with FaultServer() as server:
        command = [
            *(sys.executable, "-m", "judge_pipeline.cli", "label", str(prompts), "--output", str(run)),
            *("--judge.base-url", server.url, "--judge.model", "judge", "--retrieval", "bm25"),
            *("--judge.max-concurrency", str(CONCURRENCY)),
            *("--judge.timeout", str(TIMEOUT_S), "--judge.retries", "3", "--judge.backoff", "0.02"),
        ]

        def label():
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 3, done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            return done

        for kill in range(KILLS):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            goal = server.requests + 120 + 40 * kill
            while server.requests < goal and process.poll() is None:
                time.sleep(0.01)
            assert process.poll() is None, "the run was over before it could be killed"
            process.send_signal(signal.SIGKILL)
            process.wait()

        server.poor_after = server.requests + 200
        label()
        assert "quota is spent" in json.loads((run / "summary.json").read_text())["stopped"]
        assert check_rows(run, answers)["stopped"] > 0

        server.poor_after = None
        done = label()
        reasons = check_rows(run, answers)
        assert {"truncated", "refused", "unparsable", "empty_reply", "http"} <= set(reasons)
        assert "stopped" not in reasons
        assert set(server.met) == {*KINDS, "outage", "402"}
        assert "insufficient" not in done.stderr
        # No error that sent the request back has taught anything; a judge was seen to think, and that is all.
        fields = json.loads((run / "summary.json").read_text())["fields"]
        assert list(fields.values()) == ["8,192 tokens more, to think with"]

        server.cured = True  # the same command does again what failed for the endpoint, and nothing else
        label()
        assert "http" not in check_rows(run, answers)

        # What a killed run had asked for, or had heard and not yet on the disk, may be asked again; no other call is
        # made twice, and every other reply that the server counts is in the store.
        asked = {key: count for key, count in server.succeeded.items() if not is_check(json.loads(key))}
        again, unheard = sum(asked.values()) - len(asked), server.paid - stored_replies(run)
        print(
            f"{server.paid} replies paid, {unheard} of them at {KILLS} kills to nobody, {again} asked again"
        )
        assert 0 <= again <= unheard <= KILLS * CONCURRENCY
        requests = server.requests
        label()
        assert server.requests == requests
