"""The distillation benchmark on made-up features: folds keep documents apart, controls are controls, aims are computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from judge_pipeline.common.record_files import read_prompts, write_records
from judge_pipeline.common.records import DIMENSIONS, Prompt
from judge_pipeline.statistics.bootstrap import Ratio
from judge_pipeline.statistics.table import build_table
from reward_model.data.batches import EncodedExample
from reward_model.data.examples import Example
from scripts.bench.distil_data import Material
from scripts.bench.distil_figures import Ruler, mean_ratio, with_reward
from scripts.bench.distil_fit import CONTROLS, HALF, NARROW, PROBE, MemoryStore, first_prompts, run_folds
from scripts.bench.distil_tables import aims
from scripts.bench.summedits import predicted_sides, some_edits

PROMPTS, ANSWERS, HIDDEN = 24, 4, 12


@pytest.fixture(scope="module")
def made():
    """(material, store, encoded): what answers are worth stands in what the document changes at layer 2, nowhere else."""
    rng = np.random.default_rng(0)
    prompts, examples, encoded = [], [], []
    targets = rng.normal(5, 2, (PROMPTS, ANSWERS, len(DIMENSIONS))).astype(np.float32)
    for number in range(PROMPTS):
        texts = [f"answer {place}" for place in range(ANSWERS)]
        prompts.append(
            Prompt.model_validate(
                {
                    "id": f"p{number}",
                    "document_id": f"d{number // 2}",
                    "context": f"document {number // 2}",
                    "query": "What?",
                    "responses": [{"id": text, "text": text} for text in texts],
                }
            )
        )
        ones = np.ones_like(targets[number])
        examples.append(
            Example(
                f"p{number}",
                f"d{number // 2}",
                f"document {number // 2}",
                "What?",
                tuple(texts),
                tuple(texts),
                targets[number],
                ones,
            )
        )
        ids = tuple(np.array([place + 1], np.int32) for place in range(ANSWERS))
        encoded.append(EncodedExample(np.array([1], np.int32), ids, f"p{number}", targets[number], ones))
    material = Material(
        "made", build_table(prompts), examples, [item.document_id for item in examples], DIMENSIONS
    )
    flat = torch.from_numpy(targets.reshape(-1, len(DIMENSIONS)))
    generator = torch.Generator().manual_seed(0)
    states = {}
    for layer in (1, 2, 3):
        document, withheld, other = torch.randn(3, len(flat), 2 * HIDDEN, generator=generator)
        if layer == 2:
            document = withheld + 0.1 * document
            document[:, : len(DIMENSIONS)] += flat
        states[layer] = torch.stack([document, withheld, other])
    return material, MemoryStore(Path("nowhere"), [1, 2, 3], encoded, states_L=states), encoded


@pytest.fixture(scope="module")
def folded(made):
    material, store, encoded = made
    return run_folds(material, store, encoded, 0, folds=3, sizes=[4], ablations=True)


def spearman(made, folded, scorer, name="faithfulness"):
    material = made[0]
    ruler = Ruler(material.table, material.targets)
    ruler.add(name, scorer, [folded.points[scorer][name]])
    return ruler.figure(name, scorer, "spearman")["value"]


def test_the_probe_finds_what_the_document_changes_and_its_controls_do_not(made, folded):
    assert set(folded.layers) == {2}
    assert spearman(made, folded, PROBE) > 0.9
    for control in CONTROLS.values():
        assert abs(spearman(made, folded, control)) < 0.35


def test_narrower_readouts_and_fewer_prompts_are_measured_too(made, folded):
    assert {*NARROW, HALF, "4 prompts"} <= set(folded.points)
    assert spearman(made, folded, "view: difference") > 0.9
    assert spearman(made, folded, "readout: last token, final layer") < 0.5


def test_every_answer_gets_a_score(folded):
    assert all(np.isfinite(points).all() for own in folded.points.values() for points in own.values())


def test_another_document_is_never_the_own_one(made):
    material = made[0]
    for own, other in zip(material.examples, material.behind_another(), strict=True):
        assert own.context != other.context
        assert (own.query, own.responses) == (other.query, other.responses)


def test_smaller_training_sets_are_nested():
    names = [f"d{number}" for number in range(20)]
    small, large = (first_prompts(range(20), names, count, 0) for count in (5, 10))
    assert set(small) < set(large)
    assert small == sorted(small)


def test_a_part_of_a_store_holds_the_answers_of_its_prompts(made):
    _, store, _ = made
    part = store.part([2, 5])
    rows = [*range(8, 12), *range(20, 24)]
    assert torch.equal(part.states(2, "mean")[0], store.states(2, "mean")[0][rows])
    assert part.states(2, "last")[0].shape == (8, HIDDEN)


def test_seeds_are_averaged_prompt_by_prompt():
    first, second = Ratio(np.array([1.0, 0.0]), np.ones(2)), Ratio(np.array([0.0, 0.5]), np.ones(2))
    assert mean_ratio([first, second]).value == pytest.approx(0.375)


def test_the_reward_is_the_mean_of_the_outputs():
    points = with_reward({"a": np.array([2.0]), "b": np.array([4.0])})
    assert points["reward"] == pytest.approx(3.0)


def figure(value, low):
    return {"value": value, "low": low, "high": value + 0.1, "count": 9, "against": "length"}


def test_aims_are_read_from_the_figures():
    def target(low):
        minus = {name: figure(0.1, low) for name in ("length", HALF, *CONTROLS.values())}
        return {
            "best_free_baseline": "length",
            "probe_minus": minus,
            "stacked_minus": {"length": figure(0.1, low)},
        }

    judge = {"the judge itself": figure(-0.02, -0.1)}
    qa = {
        "targets": {name: target(-0.1 if name == "completeness" else 0.05) for name in DIMENSIONS},
        "together": {PROBE: {"outputs": 0.6, "targets": 0.3}},
        "preferences": {"probe_minus": judge, "stacked_minus": judge},
    }
    reached = {one["aim"]: one["reached"] for one in aims({"base": {"qa": qa}})}
    assert reached["faithfulness: probe above the best free baseline"]
    assert not reached["completeness: probe above the best free baseline"]
    assert not reached[f"completeness: above its own control, {CONTROLS['withheld']}"]
    assert not reached["correlation between outputs within 0.1 of the targets'"]
    assert reached["probe: people's choices within 3% of the judge's own agreement"]
    assert not reached[
        "faithfulness: half the prompts, nothing added, no worse (the paired interval holds 0)"
    ]


def test_thresholds_come_from_other_folds():
    """The second document's better answer lies below the lowest good one of the others."""
    values = np.array([0.1, 0.9, 0.2, 0.8, 0.15, 0.85])
    good = np.array([False, True] * 3)
    called = predicted_sides(values, good, np.array([0, 0, 1, 1, 2, 2]))
    assert called.tolist() == [False, True, False, False, False, True]


def test_edits_are_drawn_from_both_sides(tmp_path):
    def edit(number, good):
        human = {name: None for name in (*DIMENSIONS, "overall")} | {"faithfulness": 10.0 if good else 0.0}
        return {"id": f"e{number}", "text": f"edit {number}", "human": human}

    prompt = {
        "id": "p", "document_id": "d", "context": "text", "query": "Summarize.",
        "responses": [edit(number, number < 2) for number in range(20)],
    }  # fmt: skip
    write_records(tmp_path / "all.jsonl", [Prompt.model_validate(prompt)])
    some_edits(tmp_path / "all.jsonl", tmp_path / "some.jsonl", 6)
    (kept,) = read_prompts(tmp_path / "some.jsonl")
    sides = [(response.human or {})["faithfulness"] for response in kept.responses]
    assert sorted(sides) == [0.0] * 4 + [10.0] * 2
