"""Scoring a file: the same numbers whatever the batching, nothing lost, nothing silently left out."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import reward_model.scoring.score as score_module
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import DIMENSIONS
from reward_model.modeling.head import score_weight
from reward_model.modeling.model import load_backbone_for_rm, save_reward_model
from reward_model.modeling.readout import Readout, ReadoutSpec
from reward_model.modeling.ridge import LinearProbe
from reward_model.scoring.score import run, score_file
from reward_model.scoring.score_config import ScoreConfig
from reward_model.scoring.scorer import RewardModel
from reward_model.scoring.trl_reward import LongContextReward

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved reward model with outputs inside the scale, faithfulness counting twice."""
    backbone = load_backbone_for_rm(str(tiny_base), weights={"faithfulness": 2.0})
    torch.manual_seed(3)
    with torch.no_grad():
        score_weight(backbone.model).normal_(0, 0.3)
    path = tmp_path_factory.mktemp("model")
    save_reward_model(backbone.model, backbone.tokenizer, path, backbone.manifest)
    return path


def prompts_file(path: Path, count: int = 7, **changes) -> Path:
    rows = []
    for index in range(count):
        texts = [f"answer {place} " + "word " * (place * index % 5) for place in range(index % 4 + 1)]
        responses = [{"id": f"r{place}", "text": text, "source": "m"} for place, text in enumerate(texts)]
        context = "the document says " * (index + 1)
        rows.append(
            {"id": f"p{index}", "context": context, "query": "?", "responses": responses, "note": index}
        )
    rows[0] |= changes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def points(path: Path) -> np.ndarray:
    rows = [r.scores for p in read_prompts(path) for r in p.responses]
    return np.array([[row[name] for name in DIMENSIONS] for row in rows], dtype=float)


@pytest.mark.parametrize("budget", [60, 300, 100_000])
def test_scores_are_those_of_each_answer_alone(model, tmp_path, budget):
    source = prompts_file(tmp_path / "in.jsonl")
    output = tmp_path / f"out{budget}.jsonl"
    summary = score_file(ScoreConfig(model=model, prompts=source, output=output, token_budget=budget))
    reference = RewardModel.from_pretrained(model, shared_prefix="off")
    alone = np.concatenate(
        [reference.score(p.context, p.query, [r.text]) for p in read_prompts(source) for r in p.responses]
    )
    np.testing.assert_allclose(points(output), np.clip(alone, 0, 10), atol=1e-4)
    for prompt in read_prompts(output):
        for response in prompt.responses:
            weighted = [response.scores[name] * (2 if name == "faithfulness" else 1) for name in DIMENSIONS]
            if all(0 < value < 10 for value in response.scores.values()):
                assert response.reward == pytest.approx(sum(weighted) / 5, abs=1e-5)
    assert summary.scored == len(alone)
    assert summary.tokens_read < summary.tokens_one_by_one
    written = json.loads(Path(f"{output}.summary.json").read_text())
    assert written["tokens_read"] == summary.tokens_read
    assert written["responses"] == len(alone)
    assert not Path(f"{output}.part").exists()


def test_records_come_back_whole_and_in_order(model, tmp_path):
    source = prompts_file(tmp_path / "in.jsonl", extra={"kept": [1, 2]})
    output = tmp_path / "out.jsonl"
    score_file(ScoreConfig(model=model, prompts=source, output=output, token_budget=80))
    before = [json.loads(line) for line in source.read_text().splitlines()]
    after = [json.loads(line) for line in output.read_text().splitlines()]
    for old, new in zip(before, after, strict=True):
        for response in new["responses"]:
            assert list(response.pop("scores")) == list(DIMENSIONS)
            assert isinstance(response.pop("reward"), float)
        new.pop("document_id")  # made up where the record had none
        assert new == old


def test_parquet_and_gzip_in_and_out(model, tmp_path):
    source = prompts_file(tmp_path / "in.jsonl")
    score_file(ScoreConfig(model=model, prompts=source, output=tmp_path / "a.jsonl"))
    for suffix in ("parquet", "jsonl.gz"):
        given, output = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
        write_records(given, read_prompts(source))
        score_file(ScoreConfig(model=model, prompts=given, output=output))
        np.testing.assert_allclose(points(output), points(tmp_path / "a.jsonl"))


def test_a_stopped_run_goes_on_where_it_was(model, tmp_path, monkeypatch, capsys):
    source = prompts_file(tmp_path / "in.jsonl")
    config = ScoreConfig(model=model, prompts=source, output=tmp_path / "out.jsonl", token_budget=60)
    original, scored = RewardModel.score_encoded, []

    def stop_at_four(self, prompts, token_budget):
        for item in original(self, prompts, token_budget):
            if len(scored) == 4:
                raise KeyboardInterrupt
            scored.append(item)
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(RewardModel, "score_encoded", stop_at_four)
        with pytest.raises(KeyboardInterrupt):
            score_file(config)
    part = tmp_path / "out.jsonl.part"
    kept = part.read_bytes()
    assert kept.count(b"\n") == 4
    part.write_bytes(kept + b'{"id": "p4", "con')  # torn by kill -9

    counted = []
    monkeypatch.setattr(
        RewardModel, "score_encoded", lambda self, p, b: counted.extend(p) or original(self, p, b)
    )
    summary = score_file(config)
    assert len(counted) == 3  # only what was missing
    assert summary.prompts == 7
    assert (tmp_path / "out.jsonl").read_bytes().startswith(kept)
    whole = ScoreConfig(model=model, prompts=source, output=tmp_path / "whole.jsonl", token_budget=60)
    reference = score_file(whole)
    np.testing.assert_allclose(points(tmp_path / "out.jsonl"), points(tmp_path / "whole.jsonl"), atol=1e-5)
    assert summary.tokens_one_by_one == reference.tokens_one_by_one

    counted.clear()
    score_file(config)
    assert not counted
    assert "nothing to do" in capsys.readouterr().out


def test_another_configuration_is_refused(model, tmp_path):
    source = prompts_file(tmp_path / "in.jsonl")
    config = ScoreConfig(model=model, prompts=source, output=tmp_path / "out.jsonl")
    score_file(config)
    other = config.model_copy(update={"weights": {"helpfulness": 1.0, "logicality": 0.0}})
    with pytest.raises(UserError, match="weights"):
        score_file(other)
    score_file(other.model_copy(update={"existing": "replace"}))
    first = next(read_prompts(config.output)).responses[0]
    prompt = next(read_prompts(source))
    raw = RewardModel.from_pretrained(model).score(prompt.context, prompt.query, [prompt.responses[0].text])
    assert first.reward == pytest.approx(raw[0, [0, 2, 3]].mean(), abs=1e-4)
    with pytest.raises(UserError, match="'style', which the model does not score"):
        score_file(config.model_copy(update={"weights": {"style": 1.0}}))


def test_answers_over_the_window(model, tmp_path):
    long = [{"id": "short", "text": "ok"}, {"id": "long", "text": "word " * 300}]
    source = prompts_file(tmp_path / "in.jsonl", responses=long)
    config = ScoreConfig(model=model, prompts=source, output=tmp_path / "out.jsonl")
    with pytest.raises(
        UserError, match=r"1 of 7 prompts are longer than the model's window of 1024 tokens.*'p0'"
    ):
        score_file(config)
    assert not list(tmp_path.glob("out*"))  # so the next line needs no --existing
    summary = score_file(config.model_copy(update={"overflow": "skip"}))
    assert summary.over_window == 1
    short, over = next(read_prompts(config.output)).responses
    assert short.reward is not None
    assert over.reward is None
    assert set(over.scores.values()) == {None}
    assert over.flags == ["over_window"]


def test_empty_answers_get_nulls(model, tmp_path):
    responses = [{"id": "a", "text": "", "flags": ["empty"]}, {"id": "b", "text": "fine"}]
    source = prompts_file(tmp_path / "in.jsonl", responses=responses)
    summary = score_file(ScoreConfig(model=model, prompts=source, output=tmp_path / "out.jsonl"))
    empty, fine = next(read_prompts(tmp_path / "out.jsonl")).responses
    assert empty.reward is None
    assert empty.scores == dict.fromkeys(DIMENSIONS)
    assert fine.reward is not None
    assert summary.empty == 1


def test_scores_stay_on_the_scale_and_rewards_keep_their_order(model, tmp_path, monkeypatch):
    source = prompts_file(tmp_path / "in.jsonl", count=1, responses=[{"id": i, "text": i} for i in "ab"])
    beyond = np.array([[11.0, 10.5, 12.0, 10.2], [-1.0, 13.0, 13.0, 13.0]], np.float32)
    monkeypatch.setattr(RewardModel, "score_encoded", lambda self, p, b: iter([beyond]))
    score_file(ScoreConfig(model=model, prompts=source, output=tmp_path / "out.jsonl"))
    one, other = next(read_prompts(tmp_path / "out.jsonl")).responses
    assert set(one.scores.values()) == {10.0}
    assert other.scores["helpfulness"] == 0.0
    assert one.reward == pytest.approx((11 + 10.5 + 24 + 10.2) / 5)


def test_bad_input_is_named(model, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "p", "context": "c", "query": "q", "responses": []}\n')
    config = ScoreConfig(model=model, prompts=source, output=tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="no responses"):
        score_file(config)
    with pytest.raises(UserError, match="not a finished reward model"):
        score_file(config.model_copy(update={"model": tmp_path}))
    prompts_file(source)
    if importlib.util.find_spec("vllm") is not None:
        return
    with pytest.raises(UserError, match="vLLM is not installed"):
        score_file(config.model_copy(update={"engine": "vllm", "output": tmp_path / "v.jsonl"}))


def test_out_of_memory_names_the_knobs(model, tmp_path, monkeypatch):
    def fail(self, prompts, token_budget):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(RewardModel, "score_encoded", fail)
    config = ScoreConfig(
        model=model, prompts=prompts_file(tmp_path / "in.jsonl"), output=tmp_path / "out.jsonl"
    )
    with pytest.raises(UserError, match=r"20.00 GiB(.|\n)*--token-budget"):
        score_file(config)
    assert score_module.SCORING_KNOBS


def test_a_readout_scores_unless_the_plain_head_is_asked_for(tiny_base, tmp_path, capsys):
    backbone = load_backbone_for_rm(str(tiny_base), dtype=torch.float32)
    torch.manual_seed(3)
    spec = ReadoutSpec(layer=1, pooling="mean", view="both")
    readout = Readout(spec, LinearProbe(torch.randn(4, 64).double(), torch.full((4,), 5.0).double()))
    save_reward_model(backbone.model, backbone.tokenizer, tmp_path / "model", backbone.manifest, readout)
    source = prompts_file(tmp_path / "in.jsonl")
    found = {}
    for choice in ("best", "plain"):
        output = tmp_path / f"{choice}.jsonl"
        run(ScoreConfig(model=tmp_path / "model", prompts=source, output=output, readout=choice))
        found[choice] = points(output)
    said = capsys.readouterr().out
    assert "layer 1, mean of the answer's states" in said
    assert "1 of 2 layers run" in said
    assert "plain head; 2 of 2 layers run" in said
    model = RewardModel.from_pretrained(tmp_path / "model", shared_prefix="off")
    alone = [model.score(p.context, p.query, [r.text]) for p in read_prompts(source) for r in p.responses]
    np.testing.assert_allclose(found["best"], np.clip(np.concatenate(alone), 0, 10), atol=1e-4)
    assert np.abs(found["best"] - found["plain"]).max() > 0.1
    summaries = [json.loads((tmp_path / f"{name}.jsonl.summary.json").read_text()) for name in found]
    assert summaries[0]["tokens_read"] > summaries[1]["tokens_read"]
    assert summaries[0]["tokens_one_by_one"] == model.tokens_one_by_one
    reward = LongContextReward(tmp_path / "model")
    prompt = next(read_prompts(source))
    texts = [item.text for item in prompt.responses]
    rewards = reward(
        [""] * len(texts), texts, context=[prompt.context] * len(texts), query=[prompt.query] * len(texts)
    )
    np.testing.assert_allclose(
        rewards, model.reward(model.score(prompt.context, prompt.query, texts)), atol=1e-4
    )
