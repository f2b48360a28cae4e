"""Figures by folds: nothing of an answer's document is read by the fit that scores it, and a model learns from all."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import DIMENSIONS
from reward_model.cli import main
from reward_model.data.contrasts import read_pairs
from reward_model.modeling.model import read_manifest
from reward_model.modeling.readout import VIEWS
from reward_model.training.folds import FOLDER, fold_points, without_fold
from reward_model.training.probe import Training, fit_probe, fold_numbers
from reward_model.training.train_config import TrainConfig
from tests.reward_model.conftest import make_prompts, scores_of
from tests.reward_model.training.test_probe import (  # noqa: F401 - fixtures
    ANSWERS,
    examples,
    planted,
    read,
    silent,
    training_on,
)

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDS = 3


@pytest.fixture(scope="module")
def training(read, examples) -> Training:  # noqa: F811
    store = read[1]
    spec = fit_probe(
        training_on(store, examples, np.random.default_rng(0).normal(5, 2, (200, 2))), silent
    ).readout.spec
    return training_on(store, examples, planted(store, replace_view(spec)))


def replace_view(spec):
    return spec.model_copy(update={"layer": 1, "pooling": "mean", "view": "document"})


def fold_of_answers(training: Training) -> torch.Tensor:
    return fold_numbers(training.documents, training.seed, FOLDS).repeat_interleave(ANSWERS)


def test_a_planted_signal_is_found_without_the_document_scored(training):
    points = fold_points(training, FOLDS, silent, VIEWS, 0.0)
    assert set(points) == {"readout", "plain", "withheld"}
    targets = training.rows.targets_R_D
    for column in range(2):
        assert np.corrcoef(points["readout"][:, column], targets[:, column])[0, 1] > 0.8


def test_labels_of_a_document_do_not_reach_its_own_scores(training):
    """Another document's labels do: what is scored is a fit to the others."""
    fold_A = fold_of_answers(training)
    changed = training.rows.targets_R_D.clone()
    changed[fold_A == 1] = changed[fold_A == 1].flip(0) * 3 - 7
    other = replace(training, rows=replace(training.rows, targets_R_D=changed))
    before, after = (fold_points(one, FOLDS, silent, ["document"], "auto") for one in (training, other))
    for name in before:
        torch.testing.assert_close(after[name][fold_A == 1], before[name][fold_A == 1])
        assert (after[name][fold_A != 1] - before[name][fold_A != 1]).abs().max() > 0.05


def test_features_of_held_documents_are_not_looked_at(training, monkeypatch):
    fold_A = fold_of_answers(training)
    held = without_fold(training, fold_A, 2)
    before = fit_probe(held, silent, ["document"])
    own = type(training.store).states

    def shifted(store, layer, pooling):
        sides = own(store, layer, pooling)
        return tuple(torch.where((fold_A == 2)[:, None], 100.0, side) for side in sides)

    monkeypatch.setattr(type(training.store), "states", shifted)
    after = fit_probe(held, silent, ["document"])
    assert after.readout.spec == before.readout.spec
    torch.testing.assert_close(after.readout.probe.weight_D_H, before.readout.probe.weight_D_H)
    torch.testing.assert_close(after.head.folded(), before.head.folded())


def test_a_pair_goes_when_either_of_its_answers_is_held_out(training):
    fold_A = fold_of_answers(training)
    first, second = (int((fold_A == fold).nonzero()[0]) for fold in (0, 1))
    rows = training.rows
    values = {name: torch.cat([value[:1], value]) for name, value in vars(rows).items()}
    values["first_R"][0], values["second_R"][0] = first, second
    both = replace(training, rows=replace(rows, **values))
    for fold, kept in ((0, False), (1, False), (2, True)):
        pairs = without_fold(both, fold_A, fold).rows
        assert bool((~pairs.level_R).any()) is kept


@pytest.fixture(scope="module")
def trained(tiny_base, tmp_path_factory):
    """(labels, answers made worse, a model of all of them with figures by folds)."""
    folder = tmp_path_factory.mktemp("folds")
    prompts = make_prompts(24, 4)
    for prompt in prompts:
        first = prompt["responses"][0]
        first["text"] = "yes yes yes yes river"
        change = {
            "from": first["id"],
            "dimension": "faithfulness",
            "strength": 2,
            "damage": "words",
            "keeps": [],
        }
        prompt["responses"].append({"id": "worse", "text": "no no no no river", "augmented": change})
    write_records(folder / "changed.jsonl", prompts)
    plain = [{**prompt, "responses": prompt["responses"][:-1]} for prompt in prompts]
    write_records(folder / "prompts.jsonl", plain)
    rows = [
        {
            "prompt_id": prompt["id"],
            "response_id": item["id"],
            "scores": scores_of(item["text"]),
            "reward": float(np.mean([*scores_of(item["text"]).values()])),
            "status": "labelled",
        }
        for prompt in plain
        for item in prompt["responses"]
    ]
    write_records(folder / "labels.jsonl", rows)
    command = [
        "train",
        folder / "labels.jsonl",
        "--prompts",
        folder / "prompts.jsonl",
        "--base-model",
        tiny_base,
    ]
    command += ["--augment", folder / "changed.jsonl", "--output", folder / "model", "--device", "cpu"]
    command += ["--method", "probe", "--folds", FOLDS, "--allow-constant"]
    assert main([str(part) for part in command]) == 0
    return folder


def evaluate(folder, output, *more) -> int:
    command = ["evaluate", folder / "model", folder / "labels.jsonl", "--prompts", folder / "prompts.jsonl"]
    command += ["--output", output, "--likelihood", "off", "--embedding-model", "none", *more]
    return main([str(part) for part in command])


def test_the_model_learns_from_every_document_and_its_figures_are_of_every_document(trained):
    report = json.loads((trained / "model" / "probe.json").read_text())
    assert report["folds"] == FOLDS
    assert report["held_out"]["prompts"] == 24
    assert report["held_out"]["documents"] == 12
    assert len(read_manifest(trained / "model").trained_documents) == 24  # by id and by text
    assert "12 documents" in (trained / "model" / "README.md").read_text()
    scored = list(read_prompts(trained / "model" / FOLDER / "scored.jsonl"))
    assert [len(prompt.responses) for prompt in scored] == [5] * 24
    assert all(set(item.scores) == set(DIMENSIONS) for prompt in scored for item in prompt.responses)


def test_evaluate_takes_the_scores_of_the_folds_and_the_answers_made_worse(trained, tmp_path, capsys):
    assert evaluate(trained, tmp_path / "no") == 2
    assert "trained on every document" in capsys.readouterr().err
    assert evaluate(trained, tmp_path / "o", "--folds", "--contrasts", trained / "changed.jsonl") == 0
    found = json.loads((tmp_path / "o" / "fidelity.json").read_text())
    rows = {row["name"]: row for row in found["results"][0]["rows"]}
    assert rows["reward model"]["within"]["spearman"]["value"] > 0.5
    assert rows["document withheld"]["kind"] == "control"
    (changed,) = found["changed"]
    assert (changed["target"], changed["pairs"]) == ("answers made worse in faithfulness", 24)
    pairs = {row["name"]: row["within"]["pairs"]["value"] for row in changed["rows"]}
    assert pairs["reward model"] > 0.9
    assert pairs["longer answer"] == pytest.approx(0.5)  # both have five words
    page = (tmp_path / "o" / "report.html").read_text()
    assert "nswers made worse in faithfulness" in page
    assert "answers made worse in faithfulness" in (tmp_path / "o" / "fidelity.md").read_text()
    # What is told without the document as well is not told by it, and the report says so.
    assert any("answers made worse in faithfulness: not shown" in remark for remark in found["remarks"])


def test_a_model_reads_answers_made_worse_itself_when_their_documents_are_new(trained, tmp_path):
    """Without --folds the model scores them, with its controls."""
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for name in ("changed.jsonl", "prompts.jsonl"):
        rows = [json.loads(line) for line in (trained / name).read_text().splitlines()]
        for row in rows:
            row["document_id"], row["context"] = "new " + row["document_id"], "New. " + row["context"]
        write_records(fresh / name, rows)
    command = ["evaluate", trained / "model", trained / "labels.jsonl", "--prompts", fresh / "prompts.jsonl"]
    command += ["--contrasts", fresh / "changed.jsonl", "--output", tmp_path / "o", "--likelihood", "off"]
    command += ["--embedding-model", "none", "--no-card"]
    assert main([str(part) for part in command]) == 0
    (changed,) = json.loads((tmp_path / "o" / "fidelity.json").read_text())["changed"]
    names = {row["name"] for row in changed["rows"]}
    assert {"reward model", "document withheld", "another document", "bigram support"} <= names


def test_answers_made_worse_over_documents_it_was_trained_on_are_not_measured(trained, tmp_path, capsys):
    rows = [json.loads(line) for line in (trained / "prompts.jsonl").read_text().splitlines()]
    for row in rows:
        row["document_id"], row["context"] = "new " + row["document_id"], "New. " + row["context"]
    write_records(tmp_path / "prompts.jsonl", rows)
    command = [
        "evaluate",
        trained / "model",
        trained / "labels.jsonl",
        "--prompts",
        tmp_path / "prompts.jsonl",
    ]
    command += ["--contrasts", trained / "changed.jsonl", "--output", tmp_path / "o", "--likelihood", "off"]
    command += ["--embedding-model", "none", "--no-card"]
    assert main([str(part) for part in command]) == 2
    assert f"trained on every document of {trained / 'changed.jsonl'}" in capsys.readouterr().err


def test_pairs_are_between_the_answers_of_the_file(trained):
    _, pairs = read_pairs(trained / "changed.jsonl")
    assert {pair.worse[1] for pair in pairs} == {"worse"}


def test_folds_of_a_model_without_them_are_asked_for(trained, tmp_path, capsys):
    for file in (trained / "model" / FOLDER).iterdir():
        file.rename(file.with_suffix(".gone"))
    try:
        assert evaluate(trained, tmp_path / "o", "--folds") == 2
    finally:
        for file in (trained / "model" / FOLDER).iterdir():
            file.rename(file.with_suffix(".jsonl"))
    assert "--folds 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"folds": 1}, "2 or more"),
        ({"method": "lora", "folds": 3}, "method=probe"),
        ({"separate": 2.0}, "from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, word):
    values = {"labels": "l", "base_model": "b", "output": "o", "method": "probe"}
    with pytest.raises(ValidationError, match=word):
        TrainConfig(**(values | changes))


def test_a_text_is_embedded_once():
    from reward_model.fidelity.evaluate import remembered

    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.array([[float(len(text)), 1.0] for text in texts])

    memory = remembered(embed)
    for texts in (["a", "bb", "a"], ["bb", "ccc"]):
        np.testing.assert_array_equal(memory(texts), [[len(text), 1.0] for text in texts])
    assert asked == ["a", "bb", "ccc"]
