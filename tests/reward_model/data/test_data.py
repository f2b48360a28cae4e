"""Labels to examples, splits by document, batches within a token budget."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from judge_pipeline.common.errors import DataError, UserError
from judge_pipeline.common.records import DIMENSIONS
from reward_model.data.batches import (
    BatchOrder,
    EncodedExample,
    PromptDataset,
    collate,
    fit_window,
    over_budget,
    token_batches,
)
from reward_model.data.examples import Example, check_learnable, load_examples, usable
from reward_model.data.splits import document_groups, hash_fraction, refuse_leak, split_by_document


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompt(name: str, **extra) -> dict:
    responses = [{"id": f"{name}-a", "text": "yes"}, {"id": f"{name}-b", "text": "no"}]
    return {"id": name, "context": f"about {name}", "query": "?", "responses": responses} | extra


def label(prompt_id: str, response_id: str, scores: dict, **extra) -> dict:
    row = {"prompt_id": prompt_id, "response_id": response_id, "scores": scores, "reward": None}
    return row | {"status": "labelled"} | extra


def example(name: str, document: str = "", context: str = "", rows=((1.0, 2.0), (3.0, 4.0))) -> Example:
    targets = np.array(rows, np.float32)
    ids = tuple(f"r{i}" for i in range(len(rows)))
    return Example(
        name, document or name, context or f"text {name}", "?", ids, ids, targets, np.ones_like(targets)
    )


def run_folder(tmp_path: Path, labels: list[dict], prompts: list[dict]) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    write(run / "labels.jsonl", labels)
    named = write(tmp_path / "prompts.jsonl", prompts)
    (run / "run.yaml").write_text(yaml.safe_dump({"config": {"prompts": str(named)}}))
    return run


def test_a_label_run_names_its_prompts(tmp_path: Path):
    run = run_folder(
        tmp_path,
        [
            label("p", "p-b", {"faithfulness": 3.5, "helpfulness": None}),
            label("p", "p-a", {"helpfulness": 8}, evidence={"helpfulness": {"spread": 2.0}}),
        ],
        [prompt("p"), prompt("unlabelled")],
    )
    found = load_examples(run)
    assert found.dimensions == ("helpfulness", "faithfulness")
    (item,) = found.items
    assert item.responses == ("yes", "no")  # the order of the prompts file
    np.testing.assert_array_equal(item.targets_N_D, [[8, math.nan], [math.nan, 3.5]])
    np.testing.assert_allclose(item.confidence_N_D, [[1 / (1 + 2.0**2), 1], [1, 1]])
    assert load_examples(run / "labels.jsonl").items[0].prompt_id == "p"


def test_a_fifth_dimension_comes_after_the_four(tmp_path: Path):
    scores = {"brevity": 1.0} | dict.fromkeys(DIMENSIONS, 5.0)
    run = run_folder(tmp_path, [label("p", "p-a", scores)], [prompt("p")])
    assert load_examples(run).dimensions == (*DIMENSIONS, "brevity")
    assert load_examples(run, dimensions=["brevity", "logicality"]).dimensions == ("brevity", "logicality")
    with pytest.raises(UserError, match="no scores for 'style'"):
        load_examples(run, dimensions=["style"])


def test_labels_without_their_prompts_are_named(tmp_path: Path):
    labels = write(tmp_path / "labels.jsonl", [label("p", "p-a", {"helpfulness": 1})])
    with pytest.raises(UserError, match="--prompts FILE"):
        load_examples(labels)
    other = write(tmp_path / "other.jsonl", [prompt("q")])
    with pytest.raises(DataError, match="labels prompt 'p'"):
        load_examples(labels, prompts=other)
    changed = write(tmp_path / "changed.jsonl", [prompt("p") | {"responses": [{"id": "other", "text": "x"}]}])
    with pytest.raises(DataError, match="response 'p-a'"):
        load_examples(labels, prompts=changed)


def test_human_scores_and_preferences(tmp_path: Path):
    row = prompt("p", preferences=[{"winner": "p-b", "loser": "p-a"}])
    row["responses"][0]["human"] = {"faithfulness": 7.5, "helpfulness": None, "overall": 6.0}
    path = write(tmp_path / "human.jsonl", [row, prompt("silent")])
    scored = load_examples(path)
    assert scored.dimensions == ("faithfulness", "overall")
    np.testing.assert_array_equal(scored.items[0].targets_N_D, [[7.5, 6.0]])
    chosen = load_examples(path, targets="preferences")
    assert chosen.dimensions == ("overall",)
    assert chosen.items[0].preferences == ((1, 0),)
    assert np.isnan(chosen.items[0].targets_N_D).all()
    with pytest.raises(UserError, match="not the judge's labels"):
        load_examples(path, targets="judge")
    with pytest.raises(DataError, match="no response has human scores"):
        load_examples(write(tmp_path / "bare.jsonl", [prompt("p")]))


def test_constant_and_missing_dimensions_are_refused():
    items = [example("a", rows=((5.0, 1.0), (5.0, 2.0)))]
    with pytest.raises(UserError, match=r"all 2 training targets of 'helpfulness' are 5"):
        check_learnable(items, ["helpfulness", "logicality"])
    check_learnable(items, ["helpfulness", "logicality"], allow_constant=True)
    with pytest.raises(UserError, match="no training answer has a score for 'logicality'"):
        check_learnable(
            [example("a", rows=((5.0, math.nan), (6.0, math.nan)))], ["helpfulness", "logicality"]
        )


def test_prompts_without_any_target_are_left_out():
    bare = example("bare", rows=((math.nan, math.nan),))
    assert [item.prompt_id for item in usable([bare, example("a")])] == ["a"]


# Splits


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=20), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_no_document_stands_on_both_sides(pairs: list[tuple[int, int]], seed: int):
    items = [example(str(i), f"d{doc}", f"text {text}") for i, (doc, text) in enumerate(pairs)]
    train, held_out = split_by_document(items, 0.3, seed)
    refuse_leak(train, held_out)
    assert sorted(map(id, train + held_out)) == sorted(map(id, items))
    assert train
    assert held_out or len(set(document_groups(items))) == 1


def test_new_documents_do_not_move_old_ones():
    old = [example(str(i)) for i in range(50)]
    more = old + [example(f"new {i}") for i in range(50)]
    held_before = {item.prompt_id for item in split_by_document(old, 0.2, 7)[1]}
    held_after = {item.prompt_id for item in split_by_document(more, 0.2, 7)[1]}
    assert held_before == {name for name in held_after if not name.startswith("new")}
    assert 0.1 < len(held_after) / 100 < 0.35


def test_hash_fraction_is_stable_over_versions():
    assert hash_fraction("id:d1", 0) == pytest.approx(0.7336718, abs=1e-6)


def test_a_leak_is_named():
    with pytest.raises(
        UserError, match=r"'b' reads the same document as training prompt 'a' \(same document_id"
    ):
        refuse_leak([example("a", "d")], [example("b", "d")])
    with pytest.raises(UserError, match="same text"):
        refuse_leak([example("a", "d1", "One  text")], [example("b", "d2", "one text\n")])
    assert split_by_document([example("a", "d"), example("b", "d")], 0.5, 0)[1] == []


# Batches


def encoded(name: str, prefix: int, answers: tuple[int, ...], preferences=()) -> EncodedExample:
    targets = np.arange(len(answers) * 2, dtype=np.float32).reshape(-1, 2)
    ids = tuple(np.full(length, 7, np.int32) for length in answers)
    return EncodedExample(
        np.full(prefix, 3, np.int32), ids, name, targets, np.ones_like(targets), preferences
    )


def test_over_the_window_is_an_error_or_a_counted_skip():
    items = [encoded("short", 10, (5, 2)), encoded("long", 90, (20,)), encoded("longest", 90, (30,))]
    with pytest.raises(
        UserError, match=r"2 of 3 prompts .* window of 100 tokens; the longest is 'longest' with 120"
    ):
        fit_window(items, 100, "error")
    kept, skipped = fit_window(items, 100, "skip")
    assert ([item.prompt_id for item in kept], skipped) == (["short"], 2)
    assert fit_window(items, 120, "error")[1] == 0


def test_a_prompt_over_the_budget_has_a_sequence_of_its_own():
    items = [encoded("small", 4, (2,)), encoded("big", 10, (10, 10)), encoded("other", 5, (1,))]
    assert token_batches(items, 29) == [[1], [0, 2]]
    assert over_budget(items, 29) == [1]
    assert over_budget(items, 30) == []


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=25),
    st.integers(1, 4),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_processes_share_the_batches_of_an_epoch(lengths: list[int], world: int, epoch: int):
    items = [encoded(str(i), length, (3,)) for i, length in enumerate(lengths)]
    batches = token_batches(items, 100)
    assert all(sum(items[i].shape.total for i in batch) <= 100 for batch in batches)
    orders = [BatchOrder(batches, len(items), seed=1, rank=rank, world=world) for rank in range(world)]
    for order in orders:
        order.set_epoch(epoch)
    shares = [list(order) for order in orders]
    assert len({len(share) for share in shares}) == 1
    assert {len(order) for order in orders} == {len(shares[0])}
    indices = [i for share in shares for batch in share for i in batch]
    assert sorted(i for i in indices if i < len(items)) == list(range(len(items)))  # each prompt once
    dataset = PromptDataset(items)
    assert all(np.isnan(dataset[i].targets_N_D).all() for i in indices if i >= len(items))  # fillers
    alone = BatchOrder(batches, len(items), seed=1)
    alone.set_epoch(epoch)
    steps = [batch for step in zip(*shares, strict=True) for batch in step if batch[0] < len(items)]
    assert steps == list(alone)  # the same order, so the same optimiser steps


def test_epochs_differ_and_repeat():
    batches = [[i] for i in range(20)]
    order = BatchOrder(batches, 20, seed=3)
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    assert list(order) == first


def test_collate_keeps_answers_and_choices_together():
    batch = collate(
        [encoded("a", 4, (2, 3), ((1, 0),)), encoded("b", 5, (1,)), encoded("c", 2, (1, 1), ((0, 1),))]
    )
    assert batch["input_ids"].shape == (1, 19)
    assert batch["groups_A"].tolist() == [0, 0, 1, 2, 2]
    assert batch["winners_P"].tolist() == [1, 3]
    assert batch["losers_P"].tolist() == [0, 4]
    assert batch["targets_A_D"].shape == (5, 2)
    assert batch["prompt_ids"] == ["a", "b", "c"]
