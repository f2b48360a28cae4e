"""`--method probe` end to end, and training that starts from a probe and is kept only where it beats it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts, read_rows, write_records
from judge_pipeline.common.records import DIMENSIONS
from reward_model.modeling.model import read_manifest
from reward_model.modeling.readout import READOUT_FILE
from reward_model.scoring.scorer import RewardModel
from reward_model.training import feature_store, probe_run
from reward_model.training.keep_probe import REPORT, probe_wins, trained_score
from reward_model.training.probe_figures import held_out_figures, pair_score, remarks
from reward_model.training.probe_run import ProbeResult, scored_rows
from reward_model.training.run_data import encode_data, read_data
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig
from reward_model.training.trainable import build_backbone

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(run: Path, base: Path, output: Path, **changes) -> TrainConfig:
    values = {"method": "probe", "token_budget": 800, "device": "cpu", "eval_fraction": 0.3}
    return TrainConfig(labels=run, base_model=str(base), output=output, **(values | changes))


def held_out_points(config: TrainConfig, readout: str, base) -> tuple[list, torch.Tensor]:
    """(encoded held-out prompts, their points by the saved model)."""
    data = read_data(config)
    backbone = build_backbone(config, data.dimensions, {})
    items = encode_data(config, data, backbone).held_out
    model = RewardModel.from_pretrained(config.output, "cpu", readout=readout)
    return items, torch.from_numpy(np.concatenate(list(model.score_encoded(items))))


def test_a_probe_is_a_plain_checkpoint_with_a_better_readout(label_run, tiny_base, tmp_path, capsys):
    run = label_run(count=40, answers=5)
    config = settings(run, tiny_base, tmp_path / "out")
    out = train(config)
    report = json.loads((out / REPORT).read_text())
    manifest = read_manifest(out)
    assert manifest.readout.model_dump() == report["readout"]
    assert {"run.yaml", "README.md", "metrics.jsonl", READOUT_FILE} <= {file.name for file in out.iterdir()}
    assert not (out / "checkpoints").exists()
    before = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=4).state_dict()
    plain = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert plain.config.id2label == dict(enumerate(DIMENSIONS))
    for name, value in plain.state_dict().items():
        assert name == "score.weight" or torch.equal(value, before[name])

    figures = report["held_out"]
    for readout, scorer in (("best", "readout"), ("plain", "plain")):
        items, points = held_out_points(config, readout, tiny_base)
        found = held_out_figures(
            items,
            [item.prompt_id for item in items],
            {"readout": points, "withheld": points},
            DIMENSIONS,
            torch.ones(4),
        )
        for name in (*DIMENSIONS, "reward"):
            for kind in ("spearman", "pairs"):
                value = found["outputs"][name]["readout"][kind]["value"]
                assert value == pytest.approx(figures["outputs"][name][scorer][kind]["value"], abs=1e-6)
    assert figures["outputs"]["reward"]["readout"]["pairs"]["value"] > 0.8
    assert figures["outputs"]["reward"]["plain"]["pairs"]["value"] > 0.6

    # The plain head, as transformers runs it with no code of ours, answer by answer.
    ours = RewardModel.from_pretrained(out, "cpu", readout="plain")
    prompt = next(read_prompts(run.parent / "prompts.jsonl"))
    answers = [item.text for item in prompt.responses]
    prefix = ours.render(prompt.context, prompt.query)
    with torch.no_grad():
        alone = [plain(torch.tensor([prefix + ours.render_answer(text)])).logits for text in answers]
    np.testing.assert_allclose(
        ours.score(prompt.context, prompt.query, answers), torch.cat(alone).numpy(), atol=1e-4
    )
    card, said = (out / "README.md").read_text(), capsys.readouterr().err
    for text in ("plain head", "document withheld", "correlation between outputs"):
        assert text in card
        assert text in said
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["eval_reward_pair_accuracy"] == pytest.approx(
        figures["outputs"]["reward"]["readout"]["pairs"]["value"], abs=1e-6
    )
    assert "plain_reward_pair_accuracy" in rows[-1]


def test_a_stopped_run_goes_on_with_the_features_it_has(label_run, tiny_base, tmp_path, monkeypatch):
    run = label_run(count=40, answers=3)
    whole = train(settings(run, tiny_base, tmp_path / "whole"))
    config, read = settings(run, tiny_base, tmp_path / "out"), feature_store.read_features
    calls = []

    def stops(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return read(*args, **kwargs)

    monkeypatch.setattr(feature_store, "read_features", stops)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert len(list((config.checkpoints / "features").glob("*.safetensors"))) == 2
    rest = []
    monkeypatch.setattr(feature_store, "read_features", lambda *a, **k: rest.append(1) or read(*a, **k))
    out = train(config)
    assert len(rest) == 3
    for name in (READOUT_FILE, "model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_that_does_not_beat_the_probe_is_dropped(label_run, tiny_base, tmp_path, capsys, method):
    run = label_run(count=40, answers=5)
    hopeless = {"learning_rate": 1e-9, "epochs": 0.2}
    out = train(settings(run, tiny_base, tmp_path / "out", method=method, **hopeless))
    assert read_manifest(out).readout is not None
    assert not (out / "adapter").exists()
    said, card = capsys.readouterr().err, (out / "README.md").read_text()
    for text in (said, card):
        assert "training did not beat the probe, which is kept" in text
    alone = train(settings(run, tiny_base, tmp_path / "alone"))
    for name in (READOUT_FILE, "model.safetensors"):
        assert (out / name).read_bytes() == (alone / name).read_bytes()


def test_training_that_beats_the_probe_is_kept(label_run, tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("reward_model.training.export.probe_wins", lambda metrics, probe: False)
    run = label_run(count=12, answers=3)
    out = train(settings(run, tiny_base, tmp_path / "out", method="lora", epochs=1))
    assert read_manifest(out).readout is None
    assert (out / "adapter").exists()
    assert "head starts at the probe" in capsys.readouterr().err
    assert "by the probe of the frozen model" in (out / "README.md").read_text()


def test_the_better_one_wins_by_pairs_in_order(tmp_path):
    outputs = {"a": {"readout": {"pairs": {"value": 0.7}}}, "reward": {"readout": {"pairs": {"value": 0.8}}}}
    probe = ProbeResult(None, torch.zeros(1, 1), {"held_out": {"outputs": outputs}})
    assert pair_score(probe.figures, "readout") == pytest.approx(0.75)
    metrics = {"eval_pair_accuracy": 0.7, "eval_loss": 9.0}
    assert trained_score(metrics) == pytest.approx(0.7)
    assert probe_wins(metrics, probe)
    assert not probe_wins(metrics | {"eval_pair_accuracy": 0.8}, probe)
    assert not probe_wins(metrics, ProbeResult(None, torch.zeros(1, 1), {"held_out": None}))


def test_a_model_of_the_answers_alone_is_told_so(label_run, tiny_base, tmp_path, capsys):
    """The tests' labels count words of the answer: no document is needed for them."""
    run = label_run(count=40, answers=5)
    train(settings(run, tiny_base, tmp_path / "out"))
    said = capsys.readouterr().err
    for name in ("faithfulness", "completeness"):
        assert f"{name} is not shown to rest on the document" in said


def test_how_far_outputs_are_separated_can_be_asked_for(label_run, tiny_base, tmp_path, capsys):
    run = label_run(count=20, answers=4)
    found = {}
    for strength in (0.0, 1.0, "auto"):
        config = settings(run, tiny_base, tmp_path / f"s{strength}", separate=strength, log_probs="off")
        found[strength] = json.loads((train(config) / REPORT).read_text())["separated"]
        assert ("outputs separated at strength" in capsys.readouterr().err) is (found[strength] > 0)
    # These labels are one number in four places: there is nothing that auto would bring apart.
    assert found == {0.0: 0.0, 1.0: 1.0, "auto": 0.0}


def test_a_view_can_be_asked_for(label_run, tiny_base, tmp_path):
    run = label_run(count=16)
    out = train(settings(run, tiny_base, tmp_path / "out", view="difference", eval_fraction=0))
    assert read_manifest(out).readout.view == "difference"
    assert "nothing is known about new ones" in (out / "README.md").read_text()


def test_human_scores_and_preferences_are_fitted_too(tiny_base, tmp_path):
    rows = []
    for index in range(24):
        texts = [("good", "yes yes yes"), ("bad", "no no no"), ("so so", "yes no no")]
        points = {"good": 9.0, "bad": 1.0, "so so": 5.0}
        rows.append(
            {
                "id": f"p{index}",
                "context": f"document {index} about nothing",
                "query": "?",
                "responses": [
                    {"id": name, "text": f"{text} {index}", "human": {"overall": points[name]}}
                    for name, text in texts
                ],
                "preferences": [{"winner": "good", "loser": "bad"}, {"winner": "so so", "loser": "bad"}],
            }
        )
    write_records(tmp_path / "human.jsonl", rows)
    for targets in ("human", "preferences"):
        out = train(settings(tmp_path / "human.jsonl", tiny_base, tmp_path / targets, targets=targets))
        pairs = json.loads((out / REPORT).read_text())["held_out"]["outputs"]["overall"]["readout"]["pairs"]
        assert pairs["value"] == 1.0
    assert "People's choices predicted: 100.0%" in (tmp_path / "preferences/README.md").read_text()


def test_unlabelled_answers_teach_the_head_but_not_those_of_held_out_documents(
    label_run, tiny_base, tmp_path, monkeypatch
):
    run = label_run(count=20, answers=3)
    labelled = [row for _, row in read_rows(run.parent / "prompts.jsonl")]
    config = settings(run, tiny_base, tmp_path / "out", unlabelled=tmp_path / "more.jsonl")
    held_out = read_data(config.model_copy(update={"unlabelled": None})).held_out
    leak = {**labelled[0], "id": "new", "document_id": "another", "context": held_out[0].context}
    more = [
        {**row, "id": f"more{row['id']}", "document_id": f"more{row['id']}", "context": f"More: {row['id']}"}
        for row in labelled
    ]
    write_records(tmp_path / "more.jsonl", [*more, leak, labelled[0]])
    seen = []
    fit = probe_run.fit_probe
    monkeypatch.setattr(
        probe_run, "fit_probe", lambda training, *rest: seen.append(training) or fit(training, *rest)
    )
    train(config)
    (training,) = seen
    names = [item.prompt_id for item in training.store.prompts[training.labelled : len(training.documents)]]
    assert names == [row["id"] for row in more]
    assert training.rows.prompt_R.max() < training.labelled


def test_flags_that_contradict_are_refused(label_run, tiny_base, tmp_path):
    with pytest.raises(ValueError, match="head_init"):
        settings(label_run(count=4), tiny_base, tmp_path / "out", head_init="mean")


def test_outputs_that_move_together_are_said_to(tiny_base, label_run, tmp_path):
    """Four outputs that are multiples of one vector, where the targets are not, are named."""
    data = read_data(settings(label_run(count=40, answers=5), tiny_base, tmp_path / "out"))
    backbone = build_backbone(settings(tmp_path, tiny_base, tmp_path), data.dimensions, {})
    items = encode_data(settings(tmp_path, tiny_base, tmp_path), data, backbone).train
    generator = torch.Generator().manual_seed(0)
    count = sum(len(item.answers) for item in items)
    apart = torch.rand(count, 4, generator=generator) * 10
    items = [
        type(item)(*item.ids, item.prompt_id, piece.numpy(), item.confidence_N_D)
        for item, piece in zip(items, apart.split([len(i.answers) for i in items]), strict=True)
    ]
    # Two of them turned round: a mean of signed correlations would call these four scores.
    one = torch.rand(count, 1, generator=generator) * torch.tensor([1.0, 2.0, -1.1, -0.9])
    documents = [item.prompt_id for item in items]
    points = {"readout": one, "plain": one, "withheld": one}
    said = remarks(held_out_figures(items, documents, points, DIMENSIONS, torch.ones(4)))
    assert sum("move together" in line for line in said) == 2
    points = {"readout": apart, "plain": apart, "withheld": one}
    figures = held_out_figures(items, documents, points, DIMENSIONS, torch.ones(4))
    assert not any("move together" in line or "rest on" in line for line in remarks(figures))
    assert scored_rows(items, apart)[0]["predictions"].shape == (5, 4)


def test_where_weights_are_sharded_the_first_process_reads_a_copy(
    label_run, tiny_base, tmp_path, monkeypatch
):
    run = label_run(count=20)
    whole = train(settings(run, tiny_base, tmp_path / "whole"))
    monkeypatch.setattr(probe_run, "weights_are_sharded", lambda: True)
    out = train(settings(run, tiny_base, tmp_path / "out"))
    assert (out / READOUT_FILE).read_bytes() == (whole / READOUT_FILE).read_bytes()


def test_sharded_weights_are_not_read_by_zero(label_run, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr("reward_model.training.train.probe_starts", lambda config: False)
    with pytest.raises(UserError, match="ZeRO-3"):
        train(settings(label_run(count=6), tiny_base, tmp_path / "out"))
