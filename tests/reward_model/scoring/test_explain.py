"""Evidence from labels to `--explain`: what verdicts teach is found again, exactly placed, in one reading."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import DIMENSIONS
from reward_model.data.evidence import answer_sentences
from reward_model.modeling.model import read_manifest
from reward_model.modeling.support import SUPPORT_FILE
from reward_model.scoring.explain import Explainer, PromptText, sample
from reward_model.scoring.score import score_file
from reward_model.scoring.score_config import ScoreConfig
from reward_model.scoring.scorer import RewardModel
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["river", "stone", "lantern", "garden", "copper", "winter", "ladder", "market", "signal", "harbour"]


def write_evidence_run(
    folder: Path, documents: int = 8, *, evidence: bool = True, shuffled: bool = False
) -> Path:
    """Answers of three sentences, each with a verdict: full where it says "yes", none where it says "no".

    `shuffled` gives sentences each other's verdicts: nothing can be learnt from those.
    """
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    prompts, labels = [], []
    for number in range(documents):
        context = " ".join(f"Report {number} says {rng.choice(NAMES)}." for _ in range(6))
        responses = []
        for place in range(3):
            words = rng.sample(NAMES, 3)
            marks = [rng.random() < 0.5 for _ in words]
            sentences = [
                f"The {word} is {'yes yes yes' if mark else 'no no no'}."
                for word, mark in zip(words, marks, strict=True)
            ]
            responses.append({"id": f"r{place}", "text": " ".join(sentences)})
            told = [rng.random() < 0.5 for _ in marks] if shuffled else marks
            statements = [
                {"id": i, "text": text, "verdict": "full" if mark else "none"}
                for i, (text, mark) in enumerate(zip(sentences, told, strict=True))
            ]
            labels.append(
                {
                    "prompt_id": f"p{number}",
                    "response_id": f"r{place}",
                    "scores": {name: 3.0 * sum(marks) + 0.2 * i for i, name in enumerate(DIMENSIONS)},
                    "reward": None,
                    "status": "labelled",
                    "evidence": {"faithfulness": {"statements": statements}} if evidence else {},
                }
            )
        prompts.append(
            {
                "id": f"p{number}",
                "document_id": f"d{number}",
                "context": context,
                "query": "Is it?",
                "responses": responses,
            }
        )
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    run = folder / "labels"
    run.mkdir(exist_ok=True)
    (run / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    (run / "run.yaml").write_text(yaml.safe_dump({"config": {"prompts": str(folder / "prompts.jsonl")}}))
    return run


def settings(run: Path, base: Path, output: Path, **changes) -> TrainConfig:
    values = {"method": "probe", "token_budget": 2000, "device": "cpu", "eval_fraction": 0.2}
    return TrainConfig(labels=run, base_model=str(base), output=output, **(values | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evidence_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module", params=["off", "on"], ids=["states", "log-probabilities too"])
def model(
    request: pytest.FixtureRequest, run: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A probe whose readout sees hidden states alone, or log-probabilities as well."""
    out = tmp_path_factory.mktemp("model") / "out"
    return train(settings(run, tiny_base, out, log_probs=request.param))


def explained(model: Path, source: Path, output: Path, **changes) -> list[dict]:
    score_file(ScoreConfig(model=model, prompts=source, output=output, device="cpu", **changes))
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_the_verdicts_are_learnt_and_the_answers_explained(model, run, tmp_path):
    figures = read_manifest(model).support.figures
    assert figures.auc > 0.95
    assert figures.balanced_accuracy > 0.9
    assert "--explain" in (model / "README.md").read_text()
    rows = explained(model, run.parent / "prompts.jsonl", tmp_path / "out.jsonl", explain=True)
    right = total = 0
    for row in rows:
        for response in row["responses"]:
            text = response["text"]
            notes = response["explain"]
            assert [text[n["start"] : n["end"]] for n in notes] == [
                text[s.start : s.end] for s in answer_sentences(text)
            ]
            for note in notes:
                assert 0 <= note["support"] <= 1
                look = note["document"]
                assert 0 <= look["start"] < look["end"] <= len(row["context"])
                assert 0 < look["share"] <= 1
                right += note["flagged"] == ("no no" in text[note["start"] : note["end"]])
                total += 1
    assert right / total > 0.95
    assert "flagged as unsupported" in sample(tmp_path / "out.jsonl")


def test_evidence_that_is_ignored_fails(run, tiny_base, tmp_path):
    """The same answers with each other's verdicts teach nothing: the figures come from the evidence, not the words."""
    other = write_evidence_run(tmp_path / "shuffled", shuffled=True)
    out = train(settings(other, tiny_base, tmp_path / "out"))
    assert read_manifest(out).support.figures.auc < 0.75


def test_no_evidence_no_support(run, tiny_base, tmp_path, capsys):
    """Switched off, or not there: the model is saved without, and says so when it is asked to explain."""
    off = train(settings(run, tiny_base, tmp_path / "off", evidence="off"))
    bare = write_evidence_run(tmp_path / "bare", evidence=False)
    without = train(settings(bare, tiny_base, tmp_path / "without"))
    for path in (off, without):
        assert read_manifest(path).support is None
        assert not (path / SUPPORT_FILE).exists()
    few = write_evidence_run(tmp_path / "few", documents=2)
    train(settings(few, tiny_base, tmp_path / "few_out"))
    assert "too few to learn the support" in capsys.readouterr().err
    with pytest.raises(UserError, match="trained without the judge's evidence"):
        explained(off, run.parent / "prompts.jsonl", tmp_path / "x.jsonl", explain=True)
    with pytest.raises(UserError, match="shared pass"):
        explained(off, run.parent / "prompts.jsonl", tmp_path / "y.jsonl", explain=True, shared_prefix="off")


@pytest.mark.parametrize("budget", [40, 100_000])
@pytest.mark.parametrize("readout", ["best", "plain"])
def test_scores_are_the_same_and_chunks_change_nothing(model, run, budget, readout):
    reward_model = RewardModel.from_pretrained(model, device="cpu", readout=readout)
    explainer = Explainer(reward_model)
    prompts = list(read_prompts(run.parent / "prompts.jsonl"))[:3]
    texts = [PromptText(p.context, p.query, [r.text for r in p.responses]) for p in prompts]
    encoded = [reward_model.encode(t.context, t.query, t.responses) for t in texts]
    plain = list(reward_model.score_encoded(encoded))
    before = explainer.explain(list(zip(texts, encoded, strict=True)), 100_000)
    found = explainer.explain(list(zip(texts, encoded, strict=True)), budget)
    for points, (same, notes), (_, whole) in zip(plain, found, before, strict=True):
        np.testing.assert_allclose(same, points, atol=1e-4)
        for answer, expected in zip(notes, whole, strict=True):
            for one, other in zip(answer, expected, strict=True):
                assert (one.start, one.end, one.document.start) == (
                    other.start,
                    other.end,
                    other.document.start,
                )
                assert one.support == pytest.approx(other.support, abs=1e-4)
                assert one.document.share == pytest.approx(other.document.share, abs=1e-4)


def test_answers_over_one_document_are_explained_as_each_alone(model):
    """Chinese, white space in front, no document: offsets stay exact and neighbours change nothing."""
    reward_model = RewardModel.from_pretrained(model, device="cpu")
    explainer = Explainer(reward_model)
    answers = ["  大桥由莫罗设计。造价为两百万！", "The river is no no no.\n\nThe stone is yes.", "..."]
    for context in ("大桥于1887年开通。" * 30, ""):
        text = PromptText(context, "?", answers)
        together = explainer.explain([(text, reward_model.encode(context, "?", answers))], 10_000)[0][1]
        for place, answer in enumerate(answers):
            one = PromptText(context, "?", [answer])
            alone = explainer.explain([(one, reward_model.encode(context, "?", [answer]))], 10_000)[0][1][0]
            assert [answer[n.start : n.end] for n in together[place]] == [
                answer[s.start : s.end] for s in answer_sentences(answer)
            ]
            for a, b in zip(alone, together[place], strict=True):
                assert (a.start, a.end) == (b.start, b.end)
                assert a.support == pytest.approx(b.support, abs=1e-4)
                assert (a.document is None) == (not context)
        assert together[2] == []


def test_a_trained_model_explains_too(run, tiny_base, tmp_path):
    """LoRA that beat nothing or everything: what is saved, merged or not, holds the support of the model it is."""
    out = train(
        settings(
            run, tiny_base, tmp_path / "out", method="lora", head_init="mean", epochs=1, learning_rate=1e-3
        )
    )
    assert read_manifest(out).support == read_manifest(out / "adapter").support is not None
    rows = explained(out, run.parent / "prompts.jsonl", tmp_path / "out.jsonl", explain=True)
    assert all(response["explain"] for row in rows for response in row["responses"])
