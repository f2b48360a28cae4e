"""Comparing two models: matching, votes, intervals, facts, the judge in both orders over HTTP, a real reward model."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_helpers import make_tokenizer, prompt_rows, read_jsonl, write_jsonl
from transformers import BertConfig, BertForSequenceClassification

from dpo.cli import main
from judge_pipeline.common.records import DIMENSIONS


def answered(count: int, base: float, step: float = 0.0, length: int = 3) -> list[dict[str, Any]]:
    rows = prompt_rows(count)
    for i, row in enumerate(rows):
        reward = base + step * i
        row["responses"] = [
            {"id": f"r{k}", "text": f"Answer {k} of {base}. " * length, "reward": reward, "scores": dict.fromkeys(DIMENSIONS, reward)}
            for k in range(2)
        ]  # fmt: skip
    return rows


def evaluate(
    tmp_path: Path, a: list[dict[str, Any]], b: list[dict[str, Any]], *flags: str
) -> tuple[int, dict[str, Any]]:
    first, second = write_jsonl(tmp_path / "a.jsonl", a), write_jsonl(tmp_path / "b.jsonl", b)
    code = main(["evaluate", str(first), str(second), "--output", str(tmp_path / "out"), *flags])
    path = tmp_path / "out" / "evaluation.json"
    return code, json.loads(path.read_text()) if path.is_file() else {}


def test_rewards_decide_win_tie_loss(tmp_path: Path, capsys):
    # A's reward is 5; B's is 4, 4.5, … 8.5: two wins, one tie, seven losses
    code, found = evaluate(
        tmp_path, answered(10, 5.0), answered(10, 4.0, 0.5), "--name-a", "after", "--name-b", "before"
    )
    assert code == 0
    assert [found[name]["value"] for name in ("win", "tie", "loss")] == pytest.approx(
        [2 / 10, 1 / 10, 7 / 10]
    )
    assert found["reward"]["difference"]["value"] == pytest.approx(-1.25)
    assert found["win"]["low"] <= 2 / 10 <= found["win"]["high"]
    assert found["documents"] == 5
    assert found["facts"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "after minus before" in page
    assert "Answer 1 of 5.0." in page
    assert "win" in capsys.readouterr().out


def test_interval_is_the_plain_bootstrap_over_documents(tmp_path: Path):
    import numpy as np

    rows_a, rows_b = answered(40, 5.0), answered(40, 5.0)
    rng = np.random.default_rng(3)
    for row in rows_b:
        shift = float(rng.normal(0.3, 1))
        for response in row["responses"]:
            response["reward"] = 5.0 + shift
    _, found = evaluate(tmp_path, rows_a, rows_b)
    by_document: dict[str, list[float]] = {}
    for row in rows_b:
        by_document.setdefault(row["document_id"], []).append(5.0 - row["responses"][0]["reward"])
    groups = list(by_document.values())
    means = []
    for _ in range(4000):
        drawn = [value for i in rng.integers(0, len(groups), len(groups)) for value in groups[i]]
        means.append(np.mean(drawn))
    low, high = np.quantile(means, [0.025, 0.975])
    got = found["reward"]["difference"]
    assert (got["low"], got["high"]) == pytest.approx((low, high), abs=0.05)


def test_hostile_answers_stay_text(tmp_path: Path):
    rows = answered(2, 5.0)
    rows[0]["responses"][0]["text"] = "<script>alert(1)</script>"
    evaluate(tmp_path, rows, answered(2, 4.0))
    assert "<script>alert" not in (tmp_path / "out" / "report.html").read_text()


def test_prompts_without_a_partner_are_counted_and_others_refused(tmp_path: Path, capsys):
    rows_a, rows_b = answered(4, 5.0), answered(3, 4.0)
    _code, found = evaluate(tmp_path, rows_a, rows_b)
    assert found["left_out"]["only in the first file"] == 1
    rows_b[1]["query"] = "Another question?"
    assert evaluate(tmp_path, rows_a, rows_b, "--existing", "replace")[0] == 2
    assert "prompt 'p1' has another question" in capsys.readouterr().err
    for row in rows_b:
        row["id"] = "x" + row["id"]
    assert evaluate(tmp_path, rows_a, rows_b, "--existing", "replace")[0] == 2
    assert "no answered prompt in common" in capsys.readouterr().err


def test_empty_answers_are_counted_by_side(tmp_path: Path, capsys):
    rows_a, rows_b = answered(4, 5.0), answered(4, 4.0)
    for response in (rows_b[0]["responses"][1], *rows_b[1]["responses"]):
        response |= {"text": "", "flags": ["empty"]}
    code, found = evaluate(tmp_path, rows_a, rows_b)
    assert code == 0
    assert found["prompts"] == 3
    assert found["left_out"]["without an answer"] == 1
    assert found["left_out"]["empty answers of the first file"] == 0
    assert found["left_out"]["empty answers of the second file"] == 3
    assert "left out, empty answers of the second file: 3" in capsys.readouterr().out


def test_batch_files_are_refused(tmp_path: Path, capsys):
    flags = ("--pairwise", "--judge.batch-out", str(tmp_path / "batch"), "--judge.model", "m")
    assert evaluate(tmp_path, answered(1, 5.0), answered(1, 4.0), *flags)[0] == 2
    assert "batch files serve" in capsys.readouterr().err


def test_no_rewards_says_what_to_give(tmp_path: Path, capsys):
    rows = answered(2, 5.0)
    for row in rows:
        for response in row["responses"]:
            response.pop("reward")
    assert evaluate(tmp_path, rows, rows)[0] == 2
    assert "--reward-model" in capsys.readouterr().err


def label_run(folder: Path, rows: list[dict[str, Any]], reward: float, verdicts: list[str]) -> Path:
    folder.mkdir()
    labels = [
        {
            "prompt_id": row["id"], "response_id": response["id"], "reward": reward, "status": "labelled",
            "scores": dict.fromkeys(DIMENSIONS, reward),
            "evidence": {"faithfulness": {"statements": [{"id": str(i), "text": "s", "verdict": v} for i, v in enumerate(verdicts)]}},
        }
        for row in rows
        for response in row["responses"]
    ]  # fmt: skip
    write_jsonl(folder / "labels.jsonl", labels)
    return folder


def test_labels_give_rewards_and_the_two_figures_of_factscore(tmp_path: Path):
    rows = answered(4, 1.0)
    a = label_run(tmp_path / "la", rows, 8.0, ["full", "full", "partial", "none"])
    b = label_run(tmp_path / "lb", rows, 6.0, ["full", "none"])
    code, found = evaluate(tmp_path, rows, rows, "--labels-a", str(a), "--labels-b", str(b))
    assert code == 0
    assert found["win"]["value"] == 1.0
    assert found["facts"]["a"]["facts_per_answer"]["value"] == 4.0
    assert found["facts"]["a"]["share_supported"]["value"] == pytest.approx(2.5 / 4)
    assert found["facts"]["b"]["share_supported"]["value"] == 0.5


class Judge(BaseHTTPRequestHandler):
    """An endpoint whose judge prefers the answer that says 5.0, wherever it stands; or always the first."""

    biased = False

    def do_GET(self) -> None:
        self.reply(
            {"object": "list", "data": [{"id": "judge", "object": "model", "created": 0, "owned_by": "x"}]}
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        better_first = text.rfind("of 5.0") < text.rfind("of 4.0")
        choice = "A" if type(self).biased or better_first else "B"
        content = f"Because.\n[[{choice}]]"
        message = {"role": "assistant", "content": content}
        self.reply(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "judge",
             "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
             "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}}
        )  # fmt: skip

    def reply(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize("biased", [False, True])
def test_the_judge_is_asked_in_both_orders(tmp_path: Path, biased: bool):
    handler = type("Handler", (Judge,), {"biased": biased})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        flags = ("--pairwise", "--judge.base-url", url, "--judge.model", "judge", "--judge.structured", "off")
        code, found = evaluate(tmp_path, answered(4, 5.0), answered(4, 4.0), *flags)
    finally:
        server.shutdown()
        server.server_close()
    assert code == 0
    if biased:  # always the first answer: swapping the order shows it, and nobody wins
        assert found["tie"]["value"] == 1.0
        assert found["pairwise"]["inconsistent"] == 4
    else:
        assert found["win"]["value"] == 1.0
        assert found["pairwise"]["inconsistent"] == 0


def test_a_reward_model_scores_both(tmp_path: Path, tiny_model: Path):
    from reward_model.modeling.model import load_backbone_for_rm, save_reward_model

    torch.manual_seed(0)
    backbone = load_backbone_for_rm(str(tiny_model), dtype=torch.float32)
    torch.nn.init.normal_(backbone.model.score.weight, std=0.3)
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path / "rm", backbone.manifest)
    a, b = answered(3, 5.0), answered(3, 4.0)
    code, found = evaluate(tmp_path, a, b, "--reward-model", str(tmp_path / "rm"))
    assert code == 0
    from reward_model.scoring.scorer import RewardModel

    model = RewardModel.from_pretrained(tmp_path / "rm")
    expected = [
        float(
            model.reward(
                model.score(row["context"], row["query"], [r["text"] for r in row["responses"]])
            ).mean()
        )
        for row in a
    ]
    assert found["reward"]["a"]["value"] == pytest.approx(sum(expected) / 3, abs=1e-4)


def test_short_context_rewards_feed_their_arm(tmp_path: Path):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    rows = prompt_rows(3)
    for row in rows:
        row["responses"] = [{"id": str(k), "text": "word " * (k + 1), "reward": 5.0} for k in range(5)]
    prompts = write_jsonl(tmp_path / "p.jsonl", rows)
    scored = tmp_path / "s.jsonl"
    assert (
        main(["score-short", str(prompts), "--reward-model", str(tmp_path / "rm"), "--output", str(scored)])
        == 0
    )
    found = read_jsonl(scored)
    assert found[0]["responses"][0]["reward"] == 5.0
    rewards = [response["short_context_reward"] for response in found[0]["responses"]]
    pairs = tmp_path / "pairs.jsonl"
    assert main(["pairs", str(scored), "--output", str(pairs), "--arm", "short-context-rm"]) == 0
    assert read_jsonl(pairs)[0]["chosen_reward"] == pytest.approx(max(rewards))
    assert read_jsonl(pairs)[0]["rejected_reward"] == pytest.approx(min(rewards))
    write_jsonl(prompts, rows[:2])
    again = ["score-short", str(prompts), "--reward-model", str(tmp_path / "rm"), "--output", str(scored)]
    assert main(again) == 2  # of other prompts than before
    assert read_jsonl(scored) == found
    assert main([*again, "--existing", "replace"]) == 0
    assert len(read_jsonl(scored)) == 2
