"""The no-document controls: a model that ignores its document is called so, one that uses it is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from judge_pipeline.common.record_files import write_records
from judge_pipeline.common.records import DIMENSIONS, Prompt
from judge_pipeline.statistics.table import build_table
from reward_model.data.splits import document_digests, document_groups
from reward_model.fidelity.controls import OTHER, WITHHELD, exchanged_contexts
from reward_model.modeling.model import Backbone, load_backbone_for_rm, read_manifest, save_reward_model
from reward_model.scoring.scorer import RewardModel
from tests.reward_model.fidelity.test_fidelity import evaluate, label_rows, prompt_rows


def save(backbone: Backbone, folder: Path) -> Path:
    save_reward_model(backbone.model, backbone.tokenizer, folder, backbone.manifest)
    (folder / "README.md").write_text("# A model\n")
    return folder


@pytest.fixture(scope="module")
def models(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(one that reads the document, the same one deaf to all that stands before an answer)."""
    folder = tmp_path_factory.mktemp("controls")
    backbone = load_backbone_for_rm(str(tiny_base))
    with torch.no_grad():
        backbone.model.score.weight.mul_(3.0)
    reader = save(backbone, folder / "reader")
    with torch.no_grad():
        for layer in backbone.model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    return reader, save(backbone, folder / "deaf")


@pytest.fixture(scope="module")
def labels_of_reader(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that are the reading model's own scores, on 12 documents."""
    folder = tmp_path_factory.mktemp("labels")
    prompts = prompt_rows(12)
    model = RewardModel.from_pretrained(models[0])
    rows = label_rows(prompts)
    for row in rows:
        prompt = next(item for item in prompts if item["id"] == row["prompt_id"])
        text = next(item["text"] for item in prompt["responses"] if item["id"] == row["response_id"])
        (points,) = model.score(prompt["context"], prompt["query"], [text])
        # On the scale of records; the order is the model's own.
        values = np.round(5 + np.tanh(points) * 5, 9)
        row["scores"] = dict(zip(DIMENSIONS, map(float, values), strict=True))
        row["reward"] = float(np.mean(values))
    write_records(folder / "prompts.jsonl", prompts)
    write_records(folder / "labels" / "labels.jsonl", rows)
    (folder / "labels" / "run.yaml").write_text(f"config: {{prompts: {folder / 'prompts.jsonl'}}}\n")
    return folder / "labels"


def rows_of(found: dict, target: str) -> dict[str, dict]:
    result = next(item for item in found["results"] if item["target"] == target)
    return {row["name"]: row for row in result["rows"]}


def test_a_model_that_reads_its_document_is_ahead_of_both_controls(
    models, labels_of_reader, tmp_path, capsys
):
    assert evaluate(models[0], labels_of_reader, "--output", tmp_path / "o") == 0
    found = json.loads((tmp_path / "o" / "fidelity.json").read_text())
    rows = rows_of(found, "faithfulness")
    assert rows["reward model"]["within"]["spearman"]["value"] == pytest.approx(1.0, abs=0.02)
    for name in (WITHHELD, OTHER):
        gain = rows[name]["ahead"]["spearman"]
        expected = (
            rows["reward model"]["within"]["spearman"]["value"] - rows[name]["within"]["spearman"]["value"]
        )
        assert gain["value"] == pytest.approx(expected)
        assert gain["low"] > 0
        assert rows[name]["kind"] == "control"
    assert not any("does not use the document for faithfulness" in remark for remark in found["remarks"])
    assert found["control_tokens"] > 0
    assert "the controls read" in capsys.readouterr().out


def test_a_model_that_ignores_its_document_is_called_so_everywhere(
    models, labels_of_reader, tmp_path, capsys
):
    """A control that only copied the model, or drew noise, would fail here or in the test before."""
    assert evaluate(models[1], labels_of_reader, "--output", tmp_path / "o") == 0
    found = json.loads((tmp_path / "o" / "fidelity.json").read_text())
    gains = rows_of(found, "faithfulness")
    for name in (WITHHELD, OTHER):
        assert gains[name]["ahead"]["spearman"]["value"] == pytest.approx(0.0, abs=1e-9)
    texts = [capsys.readouterr().out, (tmp_path / "o" / "fidelity.md").read_text()]
    texts += [(tmp_path / "o" / "report.html").read_text(), (models[1] / "README.md").read_text()]
    for target in ("faithfulness", "completeness"):
        for text in texts:
            assert f"does not use the document for {target}" in " ".join(text.split())
    for text in texts:
        assert WITHHELD in text
        assert OTHER in text
        assert "Are four scores four?" in text


def test_controls_are_the_models_own_scores_of_these_inputs(models, labels_of_reader, tmp_path):
    from reward_model.fidelity.controls import score_controls

    model = RewardModel.from_pretrained(models[0])
    table = build_table([Prompt.model_validate(row) for row in prompt_rows(5)])
    found = score_controls(model, table, 4096, seed=3)
    contexts = exchanged_contexts(table, 3)
    for number, part in table.slices():
        prompt = table.prompts[number]
        texts = [item.text for item in prompt.responses]
        for name, context in ((WITHHELD, ""), (OTHER, contexts[number])):
            wanted = model.score(context, prompt.query, texts)
            got = np.stack([found.columns[name][dimension][part] for dimension in DIMENSIONS], axis=1)
            assert got == pytest.approx(wanted, abs=1e-4)


def test_no_document_keeps_its_own_text_and_neighbours_in_length_change_places():
    rows = prompt_rows(11)
    rows[5]["context"] = rows[4]["context"]  # the same text under another name is the same document
    rows.append({**rows[0], "id": "again", "document_id": "d0"})
    prompts = [Prompt.model_validate(row) for row in rows]
    table = build_table(prompts)
    contexts = exchanged_contexts(table, 0)
    names = document_groups(prompts)
    text_of = {prompt.context: name for prompt, name in zip(prompts, names, strict=True)}
    assert all(text_of[context] != name for context, name in zip(contexts, names, strict=True))
    assert exchanged_contexts(table, 0) == contexts != exchanged_contexts(table, 1)
    used = {(name, context) for name, context in zip(names, contexts, strict=True)}
    assert len({context for _, context in used}) == len(set(names))  # every document is used
    longest = max(len(prompt.context) for prompt in prompts)
    gaps = [
        abs(len(context) - len(prompt.context)) for context, prompt in zip(contexts, prompts, strict=True)
    ]
    assert max(gaps) < 0.6 * longest
    assert exchanged_contexts(build_table(prompts[:2]), 0) is None


def test_controls_can_be_left_out_and_a_scored_file_has_none(models, labels_of_reader, tmp_path, capsys):
    assert evaluate(models[0], labels_of_reader, "--output", tmp_path / "o", "--controls", "off") == 0
    found = json.loads((tmp_path / "o" / "fidelity.json").read_text())
    assert WITHHELD not in rows_of(found, "faithfulness")
    assert found["control_tokens"] == 0
    scored = tmp_path / "o" / "scored.jsonl"
    assert evaluate(models[0], labels_of_reader, "--output", tmp_path / "p", "--scores", scored) == 0
    assert "controls are left out: --scores" in capsys.readouterr().out


def test_the_base_models_likelihood_and_the_stack_of_all_baselines_are_rows(
    models, labels_of_reader, tmp_path, capsys
):
    assert evaluate(models[0], labels_of_reader, "--output", tmp_path / "o", "--controls", "off") == 0
    rows = rows_of(json.loads((tmp_path / "o" / "fidelity.json").read_text()), "faithfulness")
    names = {"log-prob., mean", "log-prob., sum", "log-prob. gain, mean", "log-prob. gain, sum"}
    assert names | {"ridge of all baselines"} <= set(rows)
    assert np.isfinite(rows["log-prob. gain, sum"]["within"]["spearman"]["value"])
    run = ("--output", tmp_path / "p", "--controls", "off", "--likelihood", "off")
    assert evaluate(models[0], labels_of_reader, *run) == 0
    rows = rows_of(json.loads((tmp_path / "p" / "fidelity.json").read_text()), "faithfulness")
    assert not names & set(rows)
    assert "ridge of all baselines" in rows


def test_the_stack_is_fitted_to_training_labels_of_other_documents(
    models, labels_of_reader, tmp_path, capsys
):
    run = ("--output", tmp_path / "o", "--controls", "off", "--likelihood", "off", "--stack-labels")
    assert evaluate(models[0], labels_of_reader, *run, labels_of_reader) == 2
    assert "every document of these labels is evaluated" in capsys.readouterr().err
    prompts = prompt_rows(20)
    write_records(tmp_path / "more.jsonl", prompts)
    write_records(tmp_path / "more" / "labels.jsonl", label_rows(prompts))
    (tmp_path / "more" / "run.yaml").write_text(f"config: {{prompts: {tmp_path / 'more.jsonl'}}}\n")
    assert evaluate(models[0], labels_of_reader, *run[:1], tmp_path / "p", *run[2:], tmp_path / "more") == 0
    found = json.loads((tmp_path / "p" / "fidelity.json").read_text())
    assert "ridge of all baselines" in rows_of(found, "reward")
    assert any("fitted to 16 prompts" in note for note in found["notes"])


def test_a_changed_label_file_turns_no_training_document_into_a_held_out_one(
    models, labels_of_reader, tmp_path, capsys
):
    """The manifest says what was read, by id and by text; the label file may have been changed or grown since."""
    folder = tmp_path / "trained"
    backbone = load_backbone_for_rm(read_manifest(models[0]).base_model)
    rows = prompt_rows(12)
    read = document_digests([Prompt.model_validate(row) for row in rows[:12]])
    backbone.manifest = backbone.manifest.model_copy(update={"trained_documents": read})
    save(backbone, folder)
    prompts = prompt_rows(12)
    for number, row in enumerate(prompts):
        if number < 4:
            row["document_id"] = f"renamed {row['document_id']}"
        elif number < 8:
            row["context"] += " A note was added."
    labels = label_rows(prompts)[1:]
    write_records(tmp_path / "p.jsonl", prompts)
    write_records(tmp_path / "changed" / "labels.jsonl", labels)
    (tmp_path / "changed" / "run.yaml").write_text(f"config: {{prompts: {tmp_path / 'p.jsonl'}}}\n")
    flags = ("--controls", "off", "--likelihood", "off")
    assert evaluate(folder, tmp_path / "changed", "--output", tmp_path / "o", *flags) == 0
    found = json.loads((tmp_path / "o" / "fidelity.json").read_text())
    assert found["prompts"] == 12
    assert any("12 prompts over its 6 training documents are left out" in note for note in found["notes"])
    assert (
        evaluate(folder, tmp_path / "changed", "--output", tmp_path / "a", *flags, "--documents", "all") == 0
    )
    assert json.loads((tmp_path / "a" / "fidelity.json").read_text())["prompts"] == 24
    write_records(tmp_path / "p.jsonl", prompts[:12])
    write_records(tmp_path / "changed" / "labels.jsonl", label_rows(prompts[:12]))
    assert evaluate(folder, tmp_path / "changed", "--output", tmp_path / "n", *flags) == 2
    assert "--documents all" in capsys.readouterr().err
