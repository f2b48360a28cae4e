"""`reward-model evaluate` on a tiny model with real files: figures, held-out documents, window, people's labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from judge_pipeline.common.config import main
from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import DIMENSIONS, Prompt
from judge_pipeline.common.run_dir import file_digest
from judge_pipeline.statistics.table import build_table
from reward_model.cli import COMMANDS
from reward_model.data.examples import load_examples
from reward_model.data.splits import split_by_document
from reward_model.fidelity.fidelity import evaluate_scores, summary_figures
from reward_model.fidelity.inputs import drop_training_documents, read_reference
from reward_model.modeling.fidelity_card import card_with_fidelity
from reward_model.modeling.model import Manifest, load_backbone_for_rm, save_reward_model
from reward_model.modeling.model_card import CardFacts, render_card
from reward_model.modeling.prompt_format import PromptFormat
from reward_model.scoring.scorer import RewardModel

RNG = np.random.default_rng(11)


@pytest.fixture(autouse=True)
def rng():
    """Drawn from anew in every test, so that none depends on which ran before it."""
    global RNG
    RNG = np.random.default_rng(11)


FORMAT = PromptFormat(head="", middle="", end="</s>")


def prompt_rows(documents: int = 6) -> list[dict]:
    return [
        {
            "id": f"p{number}-{question}",
            "document_id": f"d{number}",
            "context": f"Station {number} measured {number + 7} degrees. " * (number + 2),
            "query": f"What did station {number} measure, question {question}?",
            "responses": [{"id": str(i), "text": f"It measured {number + i} degrees."} for i in range(4)],
        }
        for number in range(documents)
        for question in range(2)
    ]


def label_rows(prompts: list[dict]) -> list[dict]:
    rows = []
    for prompt in prompts:
        for response in prompt["responses"]:
            scores = {name: float(RNG.integers(0, 11)) for name in DIMENSIONS}
            rows.append(
                {
                    "prompt_id": prompt["id"],
                    "response_id": response["id"],
                    "scores": scores,
                    "reward": float(np.mean(list(scores.values()))),
                    "status": "labelled",
                    "usage": {"calls": 4, "input_tokens": 1000, "output_tokens": 100},
                }
            )
    return rows


@pytest.fixture(scope="module")
def tiny_model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a fresh head, saved as a reward model."""
    folder = tmp_path_factory.mktemp("tiny") / "rm"
    backbone = load_backbone_for_rm(str(tiny_base))
    save_reward_model(backbone.model, backbone.tokenizer, folder, backbone.manifest)
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    prompts = prompt_rows()
    write_records(tmp_path / "prompts.jsonl", prompts)
    write_records(tmp_path / "labels" / "labels.jsonl", label_rows(prompts))
    run = {"config": {"prompts": str(tmp_path / "prompts.jsonl")}}
    (tmp_path / "labels" / "run.yaml").write_text(yaml.safe_dump(run))
    return tmp_path


def evaluate(*words: object) -> int:
    flags = ["--embedding-model", "none", "--bootstrap", "20"]
    return main("reward-model", COMMANDS, ["evaluate", *map(str, words), *flags])


def test_perfect_and_noisy_scores_beside_ceiling_and_baselines():
    prompts = [Prompt.model_validate(row) for row in prompt_rows()]
    table = build_table(prompts)
    target = RNG.integers(0, 11, table.rows).astype(float)
    found = evaluate_scores(
        table,
        {"faithfulness": target, "reward": target},
        {"faithfulness": target, "reward": RNG.random(table.rows)},
        ceilings={"judge, second run": {"faithfulness": target + RNG.normal(0, 1, table.rows)}},
        baselines={"constant": np.zeros(table.rows)},
        replicates=50,
    )
    figures = summary_figures(found)
    assert figures["faithfulness"]["spearman"]["value"] == pytest.approx(1.0)
    assert figures["faithfulness"]["set_mae"]["value"] == 0.0
    assert abs(figures["reward"]["spearman"]["value"]) < 0.5
    rows = {row["name"]: row for row in found["results"][0]["rows"]}
    assert 0.8 < rows["judge, second run"]["within"]["spearman"]["value"] < 1.0
    assert rows["constant"]["within"]["spearman"]["value"] == 0.0
    assert found["heads"]["faithfulness"]["faithfulness"]["value"] == pytest.approx(1.0)


def test_the_command_scores_with_the_model_and_writes_everything(run_dir, tiny_model, capsys):
    output = run_dir / "out"
    assert evaluate(tiny_model, run_dir / "labels", "--output", output) == 0
    found = json.loads((output / "fidelity.json").read_text())
    assert [result["target"] for result in found["results"]] == [*DIMENSIONS, "reward"]
    assert found["results"][0]["length_unit"] == "tokens"
    # The figures are those of the model's own scores.
    model = RewardModel.from_pretrained(tiny_model)
    scored = next(read_prompts(output / "scored.jsonl"))
    direct = model.score(scored.context, scored.query, [item.text for item in scored.responses])
    written = [[item.scores[name] for name in DIMENSIONS] for item in scored.responses]
    assert np.allclose(np.clip(direct, 0, 10), written, atol=1e-4)
    again = run_dir / "again"
    assert (
        evaluate(tiny_model, run_dir / "labels", "--output", again, "--scores", output / "scored.jsonl") == 0
    )
    other = json.loads((again / "fidelity.json").read_text())
    assert other["results"][4]["rows"][0]["within"] == found["results"][4]["rows"][0]["within"]
    page = (output / "report.html").read_text()
    assert "Which output follows which dimension" in page
    assert "output \\ target" in capsys.readouterr().out


def test_the_judges_second_run_and_its_votes_are_the_ceiling(run_dir, tiny_model, capsys):
    """Beside every baseline, in the terminal, the JSON and the page."""
    file = run_dir / "labels" / "labels.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    second = json.loads(json.dumps(rows))
    for row, other in zip(rows, second, strict=True):
        score = row["scores"]["faithfulness"]
        votes = [score, min(10.0, score + 1), max(0.0, score - 1)]
        row["evidence"] = {"faithfulness": {"votes": votes, "spread": 1.0}}
        other["scores"]["faithfulness"] = min(10.0, score + RNG.integers(0, 2))
    write_records(file, rows)
    write_records(run_dir / "second" / "labels.jsonl", second)
    output = run_dir / "ceiling"
    assert (
        evaluate(tiny_model, run_dir / "labels", "--output", output, "--second-labels", run_dir / "second")
        == 0
    )
    found = json.loads((output / "fidelity.json").read_text())
    result = next(item for item in found["results"] if item["target"] == "faithfulness")
    by_name = {row["name"]: row for row in result["rows"]}
    assert by_name["judge, second run"]["within"]["spearman"]["value"] > 0.9
    assert by_name["judge, second run"]["kind"] == "ceiling"
    baselines = {name for name, row in by_name.items() if row["kind"] == "baseline"}
    assert {"constant", "longer answer", "shorter answer", "bigram support"} <= baselines
    model_row = by_name["reward model"]
    figures = {"spearman", "kendall", "pairs", "best_of_n", "worst_of_n", "same_pair", "regret"}
    assert figures <= set(model_row["within"])
    assert {"spearman", "kendall", "mae", "kappa", "alpha"} == set(model_row["over_set"])
    assert {"slope", "intercept", "bins"} <= set(model_row["calibration"])
    assert model_row["within"]["spearman"]["low"] <= model_row["within"]["spearman"]["high"]
    assert found["votes"]["faithfulness"]["spearman"]["value"] > 0.8
    text, page = capsys.readouterr().out, (output / "report.html").read_text()
    for place in (text, page):
        assert "judge, second run" in place
        assert "judge's votes on faithfulness" in place.replace("&#39;", "'")
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_the_card_gets_the_tables_once(run_dir, tiny_model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    (copy / "README.md").write_text("# A model\n\nIts own words.\n")
    for number in (1, 2):
        assert evaluate(copy, run_dir / "labels", "--output", run_dir / f"o{number}") == 0
    card = (copy / "README.md").read_text()
    assert card.startswith("# A model\n\nIts own words.\n")
    assert card.count("## Fidelity") == 1
    assert (run_dir / "o2" / "fidelity.md").read_text().strip() in card
    assert evaluate(copy, run_dir / "labels", "--output", run_dir / "o3", "--no-card", "--seed", "5") == 0
    assert (copy / "README.md").read_text() == card


def test_an_evaluation_takes_the_place_of_the_figures_of_training():
    facts = CardFacts(
        Manifest(max_length=8, prompt_format=FORMAT, base_model="b"), {}, {}, 1, 2, 0, 0, {"seed": 3}
    )
    card = render_card(facts)
    assert "No documents were held out" in card
    measured = card_with_fidelity(card, "| a \\1 | b |", "labels")
    assert measured.count("## Fidelity") == 1
    assert "No documents were held out" not in measured
    assert measured.index("## Use") < measured.index("| a \\1 | b |") < measured.index("## Training")
    assert card_with_fidelity(measured, "| c |", "labels").count("## Fidelity") == 1


def test_training_documents_are_left_out(run_dir, tiny_model, tmp_path):
    labels = run_dir / "labels"
    trained = tmp_path / "trained"
    trained.mkdir()
    digest = {str(labels / "labels.jsonl"): file_digest(labels / "labels.jsonl")}
    config = {"labels": str(labels), "eval_fraction": 0.4, "seed": 0}
    (trained / "run.yaml").write_text(yaml.safe_dump({"config": config, "inputs": digest}))
    reference = read_reference(labels, [])
    drop_training_documents(reference, trained, labels, "auto")
    train, held_out = split_by_document(list(load_examples(labels).items), 0.4, 0)
    assert {prompt.id for prompt in reference.prompts} == {item.prompt_id for item in held_out}
    assert not {prompt.document_id for prompt in reference.prompts} & {item.document_id for item in train}
    assert "training documents are left out" in reference.notes[-1]
    everything = read_reference(labels, [])
    drop_training_documents(everything, trained, labels, "all")
    assert len(everything.prompts) == 12


def test_nothing_held_out_is_refused(run_dir, tiny_model, tmp_path, capsys):
    labels = run_dir / "labels"
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    digest = {"x": file_digest(labels / "labels.jsonl")}
    config = {"labels": str(labels), "eval_fraction": 0.0}
    (copy / "run.yaml").write_text(yaml.safe_dump({"config": config, "inputs": digest}))
    assert evaluate(copy, labels, "--output", tmp_path / "o") == 2
    assert "--documents all" in capsys.readouterr().err


def test_long_prompts_are_an_error_or_a_counted_skip(run_dir, tiny_model, capsys):
    rows = prompt_rows()
    rows[3]["context"] = "A very long report about the weather. " * 200
    write_records(run_dir / "prompts.jsonl", rows)
    assert evaluate(tiny_model, run_dir / "labels", "--output", run_dir / "o1") == 2
    assert f"the longest is '{rows[3]['id']}'" in capsys.readouterr().err
    assert evaluate(tiny_model, run_dir / "labels", "--output", run_dir / "o2", "--overflow", "skip") == 0
    found = json.loads((run_dir / "o2" / "fidelity.json").read_text())
    assert found["prompts"] == 11
    assert any("longer than the window" in note for note in found["notes"])


def test_peoples_values_and_choices_are_targets_too(run_dir, tiny_model):
    rows = prompt_rows()
    for row in rows:
        for i, response in enumerate(row["responses"]):
            response["human"] = {"faithfulness": float(i), "completeness": None}
        row["preferences"] = [{"winner": "3", "loser": "0"}]
    write_records(run_dir / "people.jsonl", rows)
    assert evaluate(tiny_model, run_dir / "people.jsonl", "--output", run_dir / "out") == 0
    found = json.loads((run_dir / "out" / "fidelity.json").read_text())
    assert [result["target"] for result in found["results"]] == ["faithfulness", "preferences"]
    model_row = found["results"][1]["rows"][0]
    assert model_row["within"]["pairs"]["count"] == 12
