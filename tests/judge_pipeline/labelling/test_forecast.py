"""Forecasts held against whole runs, with a judge over real HTTP that thinks, writes and finds more or less."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter

import pytest
from judge_servers import JudgeServer, completion, sane_value, write_prompts

from judge_pipeline.cli import main
from judge_pipeline.engines.calibration import Sampled, corrected, may_be_off, spread_out
from judge_pipeline.engines.call_counts import Amount
from judge_pipeline.engines.endpoint_checks import PROBE


class ThinkingJudge:
    """Finds a number of items that hangs on what it reads, thinks before it replies, and counts its tokens."""

    def __init__(self):
        self.asked = Counter()
        self.usage = Counter()

    def __call__(self, handler, body, attempt):
        text = json.dumps(body["messages"])
        dice = random.Random(hashlib.sha256(text.encode()).digest())
        schema = body["response_format"]["json_schema"]["schema"]
        value = sane_value(schema, dice.randint(0, 100))
        for name in value:
            if name in ("statements", "key_points"):
                value[name] = [f"Item {dice.random():.6f} has a colour." for _ in range(dice.randint(2, 4))]
        reply = json.dumps(value)
        answer = completion(reply)
        thought = dice.randint(80, 400)
        usage = {"prompt_tokens": len(text) // 3, "completion_tokens": thought + len(reply) // 3}
        answer["usage"] = usage
        if body["messages"] != [message.model_dump() for message in PROBE.messages]:
            self.asked[text] += 1
            self.usage.update(usage)
        handler.send_json(answer)
        return True


@pytest.fixture
def prompts(tmp_path):
    """Ten prompts over documents of one to four chunks."""
    rows = []
    for number in range(10):
        path = tmp_path / "part.jsonl"
        write_prompts(path, prompts=1, answers=2, sentences=20 + 16 * (number * 7 % 10))
        rows.append(
            json.loads(path.read_text().replace("ocument 0", f"ocument {number}")) | {"id": f"p{number}"}
        )
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def label(server, prompts, run, *more):
    judge = ["--judge.base-url", server.url, "--judge.model", "judge", "--retrieval", "bm25"]
    words = ["label", str(prompts), "--output", str(run), *judge, "--chunk-tokens", "512", *more]
    return main(words)


def foretold(told):
    """Calls, tokens in, tokens out of the forecast's last row."""
    line = next(line for line in told.splitlines() if re.match(r"all +[\d,]+ ", line))
    return [int(word.replace(",", "")) for word in line.split()[1:]]


def test_a_calibrated_forecast_is_within_a_tenth_of_the_run_and_its_calls_are_not_bought_again(
    prompts, tmp_path, capsys
):
    judge, run = ThinkingJudge(), tmp_path / "run"
    with JudgeServer(judge) as server:
        prices = ["--price-input", "1", "--price-output", "4"]
        assert label(server, prompts, run, "--dry-run", *prices) == 0
        bare = foretold(capsys.readouterr().out)
        assert not judge.asked
        assert label(server, prompts, run, "--dry-run", "--calibrate", "5", *prices) == 0
        told = capsys.readouterr().out
        sampled = sum(judge.asked.values())
        calls, asked, written = foretold(told)
        assert f"measured on 5 prompts with 10 answers: {sampled:,} calls" in told
        assert not (run / "labels.jsonl").exists()
        assert label(server, prompts, run) == 0
    assert max(judge.asked.values()) == 1
    summary = json.loads((run / "summary.json").read_text())
    assert summary["calls"]["made"] == sum(judge.asked.values()) - sampled
    assert calls == pytest.approx(sum(judge.asked.values()), rel=0.1)
    assert asked == pytest.approx(judge.usage["prompt_tokens"], rel=0.1)
    assert written == pytest.approx(judge.usage["completion_tokens"], rel=0.1)
    assert bare[2] < written / 2  # what it thinks cannot be known beforehand
    off = float(re.search(r"may be off by (\d+)%", told)[1]) / 100
    money = float(re.search(r"cost expected: ([\d.]+) ± ", told)[1])
    spent = (judge.usage["prompt_tokens"] + 4 * judge.usage["completion_tokens"]) / 1e6
    assert money == pytest.approx(spent, rel=0.1)
    assert 0 < off < 0.5


def test_calibration_that_cannot_be_is_refused_and_a_limit_ends_it_with_what_was_paid_kept(
    prompts, tmp_path, capsys
):
    judge, run = ThinkingJudge(), tmp_path / "run"
    with JudgeServer(judge) as server:
        assert label(server, prompts, run, "--calibrate", "1") == 2
        assert "--dry-run" in capsys.readouterr().err
        words = ["--dry-run", "--calibrate", "1", "--limit", "3"]
        assert label(server, prompts, run, *words, "--max-calls", "9") == 2
        assert "--max-calls 9 is reached" in capsys.readouterr().err
        assert sum(judge.asked.values()) == 9
        assert label(server, prompts, run, *words) == 0
        assert "fewer than 5 prompts" in capsys.readouterr().out
    assert max(judge.asked.values()) == 1


def test_a_thinking_budget_bounds_what_thinking_adds(prompts, tmp_path, capsys):
    with JudgeServer() as server:
        words = ["--dry-run", "--limit", "2", "--price-input", "1", "--price-output", "1"]
        assert label(server, prompts, tmp_path / "run", *words, "--judge.thinking-budget", "500") == 0
    told = capsys.readouterr().out
    calls, asked, written = foretold(told)
    most = int(re.search(r"budget of 500 tokens every time: ([\d,]+) tokens out", told)[1].replace(",", ""))
    assert most == written + 500 * calls
    cost = float(re.search(r"tokens out, cost ([\d.]+)", told)[1])
    assert cost == pytest.approx((asked + most) / 1e6, abs=1e-4)


def test_the_sample_holds_small_and_large_prompts():
    sizes = {f"p{n}": float((n * 7) % 100) for n in range(100)}
    chosen = sorted(sizes[name] for name in spread_out(sizes, 5))
    assert chosen == [10, 30, 50, 70, 90]
    assert len(spread_out(sizes, 1000)) == 100
    assert spread_out(sizes, 5) == spread_out(dict(reversed(sizes.items())), 5)


def test_each_template_has_its_own_factors_and_what_was_not_foreseen_grows_with_the_answers():
    foreseen = {"a": Amount(10, 1000, 100), "b": Amount(4, 400, 40)}
    sample = [
        Sampled({"a": Amount(1, 150, 30, 75), "c": Amount(1, 7, 7)}, {"a": Amount(1, 100, 10)}, 2),
        Sampled({"a": Amount(3, 150, 30, 75)}, {"a": Amount(1, 100, 10)}, 2),
    ]
    found = corrected(foreseen, 40, sample)
    assert found["a"].parts() == pytest.approx((20, 1500, 300, 750))
    assert found["b"] == foreseen["b"]  # never asked in the sample: as assumed
    assert found["c"].parts() == pytest.approx((10, 70, 70, 0))
    assert may_be_off(foreseen, 40, sample, 20, lambda amount: amount.calls) is None  # of two prompts


def test_the_error_told_is_about_the_error_made():
    """Of many samples, the truth lies within what they tell about as often as they say."""
    dice = random.Random(3)
    every = []
    for _ in range(400):
        size = dice.uniform(1, 5)
        every.append(Sampled({"t": Amount(1, size * dice.uniform(0.5, 1.5))}, {"t": Amount(1, size)}, 1))
    truth = sum(one.made["t"].input_tokens for one in every)
    foreseen = {"t": Amount(400, sum(one.foreseen["t"].input_tokens for one in every))}
    inside = 0
    for _ in range(200):
        sample = dice.sample(every, 20)
        told = corrected(foreseen, 400, sample)["t"].input_tokens
        off = may_be_off(foreseen, 400, sample, 400, lambda amount: amount.input_tokens)
        inside += abs(told - truth) <= off * told
    assert 0.88 < inside / 200 < 0.99
