"""Pairs: what is chosen, what is left out and counted, the report, the other arms, mixing, loading."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from dpo_helpers import make, prompt_rows, read_jsonl, scored_rows, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from dpo.chat import to_messages
from dpo.cli import main
from dpo.pairs.choice import Rules, choose
from dpo.pairs.pairs_config import PairsConfig
from dpo.pairs.report import deciding_dimensions, length_report
from judge_pipeline.common.records import DIMENSIONS, Prompt


def test_best_against_worst_in_trl_format(tmp_path: Path):
    rows = scored_rows()
    code, output = make(tmp_path, rows)
    assert code == 0
    pairs = read_jsonl(output)
    assert len(pairs) == 6
    pair = pairs[2]
    assert pair["prompt"] == to_messages(Prompt.model_validate(rows[2]))
    assert pair["chosen"] == [{"role": "assistant", "content": rows[2]["responses"][4]["text"]}]
    assert pair["rejected"][0]["content"] == rows[2]["responses"][0]["text"]
    assert (pair["chosen_reward"], pair["rejected_reward"], pair["margin"]) == (5.5, 4.5, 1.0)
    assert (pair["prompt_id"], pair["document_id"], pair["chosen_id"]) == ("p2", "d1", "sample-4")
    assert pair["template"] == "abc"
    dataset = load_dataset("json", data_files=str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset[0]["chosen"][0]["role"] == "assistant"
    report = json.loads(Path(f"{output}.report.json").read_text())
    assert report["decided_by"]["faithfulness"]["decides"] == 6
    assert "longer for 100%" in report["lengths"]["length_bias"]
    assert report["margins"]["median"] == 1.0


def test_what_is_left_out_is_counted(tmp_path: Path, capsys):
    rows = scored_rows(7, answers=6)
    rows[0]["responses"] = rows[0]["responses"][:4]
    for response in rows[1]["responses"]:
        response["reward"] = 7.0
    rows[2]["responses"][5]["flags"] = ["truncated"]
    rows[3]["responses"][4]["text"] = rows[3]["responses"][0]["text"]
    rows[4]["responses"][0]["reward"] = None
    for response in rows[5]["responses"]:
        response["reward"] = 5 + response["reward"] / 100
    code, output = make(tmp_path, rows, "--min-margin", "0.5")
    assert code == 0
    pairs = {row["prompt_id"]: row for row in read_jsonl(output)}
    assert sorted(pairs) == ["p2", "p3", "p4", "p6"]
    assert pairs["p2"]["chosen_id"] == "sample-4"
    assert pairs["p4"]["rejected_id"] == "sample-1"
    left_out = json.loads(Path(f"{output}.report.json").read_text())["left_out"]
    assert left_out == {
        "pairs: margin below 0.5": 1,
        "pairs: tied": 1,
        "prompts: fewer than 5 scored answers": 1,
        "responses: duplicate": 1,
        "responses: truncated": 1,
        "responses: without a reward": 1,
    }
    assert "pairs: tied: 1" in capsys.readouterr().out
    _, output = make(tmp_path, rows, "--keep-flagged", "truncated")
    assert {row["prompt_id"]: row for row in read_jsonl(output)}["p2"]["chosen_id"] == "sample-5"


def test_all_pairs_above_the_margin(tmp_path: Path):
    code, output = make(tmp_path, scored_rows(1), "--pairs", "all", "--min-margin", "0.5")
    assert code == 0
    assert sorted((row["chosen_id"], row["rejected_id"]) for row in read_jsonl(output)) == [
        (f"sample-{a}", f"sample-{b}") for a in range(2, 5) for b in range(a - 1)
    ]


def test_nothing_to_pair_says_why(tmp_path: Path, capsys):
    rows = prompt_rows(2)
    for row in rows:
        row["responses"] = [{"id": str(i), "text": f"text {i}"} for i in range(5)]
    code, output = make(tmp_path, rows)
    assert code == 2
    assert "responses: without a reward: 10" in capsys.readouterr().err
    assert not output.exists()


def test_weights_and_task_weights_make_the_reward(tmp_path: Path, capsys):
    rows = scored_rows(2)
    for row in rows:
        for i, response in enumerate(row["responses"]):
            response["scores"]["completeness"] = 9.0 - i
    rows[1]["task"] = "summary"
    tasks = tmp_path / "tasks.yaml"
    rest = "helpfulness: 0\n  logicality: 0"
    tasks.write_text(f"summary:\n  completeness: 1\n  faithfulness: 0\n  {rest}\nother:\n  completeness: 2\n")
    weights = "helpfulness=0,logicality=0,completeness=0"
    code, output = make(tmp_path, rows, "--weights", weights, "--task-weights", str(tasks))
    assert code == 0
    assert "no prompt has the task 'other'" in capsys.readouterr().err
    pairs = read_jsonl(output)
    assert (pairs[0]["chosen_id"], pairs[0]["chosen_reward"]) == ("sample-4", 7.0)
    assert (pairs[1]["chosen_id"], pairs[1]["chosen_reward"]) == ("sample-0", 9.0)
    report = json.loads(Path(f"{output}.report.json").read_text())["decided_by"]
    assert (report["faithfulness"]["decides"], report["completeness"]["decides"]) == (1, 1)


def test_a_task_that_is_a_number_finds_its_weights(tmp_path: Path):
    rows = scored_rows(1)
    for i, response in enumerate(rows[0]["responses"]):
        response["scores"] = dict.fromkeys(DIMENSIONS, 5.0) | {"completeness": 9.0 - i}
    rows[0]["task"] = 7
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("7:\n  helpfulness: 0\n  logicality: 0\n  faithfulness: 0\n")
    _, output = make(tmp_path, rows, "--task-weights", str(tasks))
    assert read_jsonl(output)[0]["chosen_reward"] == 9.0


def test_dimensions_without_a_weight_weigh_1_as_in_every_command(tmp_path: Path):
    rows = scored_rows(1)
    for i, response in enumerate(rows[0]["responses"]):
        response["scores"] = dict(zip(DIMENSIONS, (9.0 - 2 * i, 5.0, 3.0 + i, 5.0), strict=True))
    _, output = make(tmp_path, rows, "--weights", "helpfulness=0.25")
    pair = read_jsonl(output)[0]
    assert pair["chosen_id"] == "sample-4"
    assert pair["chosen_reward"] == pytest.approx((0.25 * 1 + 5 + 7 + 5) / 3.25)
    _, output = make(tmp_path, rows, "--weights", "helpfulness=1")
    assert read_jsonl(output)[0]["chosen_id"] == "sample-0"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--weights", "faithfullness=2"), "no answer has a score of 'faithfullness'"),
        (("--weights", "faithfulness=-1"), "is not a weight"),
        (("--task-weights", "TASKS"), "--task-weights, task 'summary': no answer has a score of 'wit'"),
        (("--arm", "short-context-rm", "--weights", "faithfulness=2"), "do not apply"),
    ],
)
def test_weights_that_weigh_nothing_are_named(tmp_path: Path, capsys, flags: tuple[str, ...], words: str):
    (tmp_path / "TASKS").write_text("summary:\n  wit: 1\n")
    code, output = make(
        tmp_path, scored_rows(1), *(str(tmp_path / flag) if flag == "TASKS" else flag for flag in flags)
    )
    assert code == 2
    assert words in capsys.readouterr().err
    assert not output.exists()


def label_rows(prompt_id: str) -> list[dict[str, Any]]:
    """Labels of `scored_rows`' five answers that turn their order around."""
    return [
        {"prompt_id": prompt_id, "response_id": f"sample-{i}", "scores": dict.fromkeys(DIMENSIONS, 9.0 - i),
         "reward": 9.0 - i, "status": "labelled"}
        for i in range(5)
    ]  # fmt: skip


def test_labels_of_a_part_leave_the_other_prompts_their_rewards(tmp_path: Path, capsys):
    (tmp_path / "run").mkdir()
    failed = [
        {**row, "reward": None, "scores": dict.fromkeys(DIMENSIONS), "status": "failed"}
        for row in label_rows("p2")
    ]
    write_jsonl(tmp_path / "run" / "labels.jsonl", [*label_rows("p1"), *failed])
    code, output = make(tmp_path, scored_rows(3), "--labels", str(tmp_path / "run"))
    assert code == 0
    assert [(row["rewards_of"], row["chosen_id"], row["chosen_reward"]) for row in read_jsonl(output)] == [
        ("file", "sample-4", 5.5), ("labels", "sample-0", 9.0), ("file", "sample-4", 5.5),
    ]  # fmt: skip
    assert json.loads(Path(f"{output}.report.json").read_text())["rewards_of"] == {"file": 2, "labels": 1}
    assert "2 pairs by those of the file, 1 pairs by those of the labels" in capsys.readouterr().out


def test_labels_of_a_run_replace_rewards(tmp_path: Path):
    rows = scored_rows(1)
    labels = label_rows("p0")
    (tmp_path / "run").mkdir()
    write_jsonl(tmp_path / "run" / "labels.jsonl", labels)
    _, output = make(tmp_path, rows, "--labels", str(tmp_path / "run"))
    pair = read_jsonl(output)[0]
    assert (pair["chosen_id"], pair["rejected_id"]) == ("sample-0", "sample-4")
    assert pair["chosen_scores"] == dict.fromkeys(DIMENSIONS, 9.0)
    assert pair["rejected_scores"] == dict.fromkeys(DIMENSIONS, 5.0)
    _, output = make(tmp_path, rows, "--labels", str(tmp_path / "run"), "--weights", "faithfulness=2")
    assert read_jsonl(output)[0]["chosen_reward"] == 9.0
    write_jsonl(tmp_path / "run" / "labels.jsonl", labels[:4])  # an answer without a label has no reward
    assert make(tmp_path, rows, "--labels", str(tmp_path / "run"))[0] == 2


def test_contrast_arm_sets_a_reference_against_a_sampled_answer(tmp_path: Path):
    rows = scored_rows(6)
    for row in rows[:5]:
        row["responses"].append({"id": "gold", "text": "The reference.", "source": "human"})
    code, output = make(tmp_path, rows, "--arm", "contrast", "--reference", "human")
    assert code == 0
    pairs = read_jsonl(output)
    assert [row["chosen_id"] for row in pairs] == ["gold"] * 5
    assert len({row["rejected_id"] for row in pairs}) > 1
    again = make(tmp_path, rows, "--arm", "contrast", "--reference", "human")[1]
    assert read_jsonl(again) == pairs
    others = [
        read_jsonl(make(tmp_path, rows, "--arm", "contrast", "--reference", "human", "--seed", seed)[1])
        for seed in "123"
    ]
    assert any(
        [row["rejected_id"] for row in other] != [row["rejected_id"] for row in pairs] for other in others
    )
    worst = make(tmp_path, rows, "--arm", "contrast", "--reference", "gold", "--contrast-rejected", "worst")[
        1
    ]
    assert {row["rejected_id"] for row in read_jsonl(worst)} == {"sample-0"}
    report = json.loads(Path(f"{output}.report.json").read_text())
    assert report["left_out"]["prompts: without the reference answer"] == 1


def test_short_context_pairs_are_mixed_in_at_their_share(tmp_path: Path, capsys):
    short = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
    mix = write_jsonl(tmp_path / "short.jsonl", short)
    code, output = make(tmp_path, scored_rows(6), "--mix", str(mix), "--mix-proportion", "0.25")
    assert code == 0
    rows = read_jsonl(output)
    assert sum(row["arm"] == "mix" for row in rows) == 2
    assert len(rows) == 8
    assert {row["chosen"][0]["content"][:4] for row in rows if row["arm"] == "mix"} == {"good"}
    assert len({row["document_id"] for row in rows if row["arm"] == "mix"}) == 2  # told apart without ids
    load_dataset("json", data_files=str(output), split="train", cache_dir=str(tmp_path / "cache"))
    orders = []
    for seed in "0123":
        make(tmp_path, scored_rows(6), "--mix", str(mix), "--mix-proportion", "0.25", "--seed", seed)
        orders.append([row["prompt"] for row in read_jsonl(output)])
    assert orders[0] == [row["prompt"] for row in rows]
    assert any(order != orders[0] for order in orders)
    code, _ = make(tmp_path, scored_rows(6), "--mix", str(mix), "--mix-proportion", "0.5")
    assert code == 2
    assert "0.4 is the most" in capsys.readouterr().err


def test_length_report_does_not_cry_wolf():
    def row(i: int, chosen: int, rejected: int) -> dict[str, Any]:
        return {
            "prompt_id": str(i), "margin": 1.0,
            "chosen": [{"content": "x" * chosen}], "rejected": [{"content": "x" * rejected}],
        }  # fmt: skip

    even = [row(i, 5 + i % 2, 6 - i % 2) for i in range(20)]
    assert length_report(even)["length_bias"] is None
    growing = [{**row(i, 20 + i, 20), "margin": 1.0 + i} for i in range(9)]
    assert length_report(growing)["margin_length_spearman"] == pytest.approx(1.0)
    falling = [{**row(i, 20, 20 + i), "margin": 1.0 + i} for i in range(9)]
    assert length_report(falling)["margin_length_spearman"] == pytest.approx(-1.0)
    means = {name: length_report(growing)[f"{name}_mean"] for name in ("chosen", "rejected")}
    assert means == {"chosen": 24.0, "rejected": 20.0}
    shorter = [row(i, 2, 9) for i in range(20)]
    assert "shorter for 100%" in length_report(shorter)["length_bias"]
    one_prompt = [row(0, 9, 2) for _ in range(20)]  # many pairs of one prompt are one vote
    assert length_report(one_prompt)["length_bias"] is None


def test_dimensions_that_object_are_counted():
    row = {
        "chosen_scores": {"helpfulness": 9.0, "logicality": 2.0},
        "rejected_scores": {"helpfulness": 5.0, "logicality": 4.0},
    }
    found = deciding_dimensions([row], [None])
    assert found["helpfulness"] == {"decides": 1, "objects": 0, "mean_gap": 4.0}
    assert found["logicality"] == {"decides": 0, "objects": 1, "mean_gap": -2.0}


@given(
    st.lists(st.one_of(st.none(), st.floats(0, 10)), min_size=2, max_size=9), st.booleans(), st.floats(0, 3)
)
def test_no_pair_breaks_its_own_rules(rewards: list[float | None], every: bool, least: float):
    row = prompt_rows(1)[0]
    row["responses"] = [{"id": str(i), "text": f"t{i}", "reward": r} for i, r in enumerate(rewards)]
    config = {"pairs": "all" if every else "best-worst", "min_margin": least, "min_responses": 2}
    rules = Rules(PairsConfig.model_validate({"scored": "s.jsonl", "output": "p.jsonl", **config}))
    pairs = choose(Prompt.model_validate(row), rules, Counter())
    known = [reward for reward in rewards if reward is not None]
    for pair in pairs:
        assert pair.margin is not None
        assert pair.margin > 0
        assert pair.margin >= least
        assert pair.chosen.reward == pair.chosen_reward
    margin = max(known) - min(known) if len(known) >= 2 else 0.0
    if margin > 1e-9 and margin >= least:
        assert pairs[0].chosen_reward == max(known)
        assert min(pair.rejected_reward for pair in pairs) == min(known)
    else:
        assert not pairs


@pytest.mark.parametrize(("margin", "made"), [("0.99", 1), ("1.0", 1), ("1.01", 0)])
def test_the_least_margin_is_inclusive(tmp_path: Path, margin: str, made: int):
    code, output = make(tmp_path, scored_rows(1), "--min-margin", margin)  # 5.5 against 4.5
    assert (code, len(read_jsonl(output)) if output.exists() else 0) == (0 if made else 2, made)


def test_equal_rewards_take_the_answer_that_was_sampled_first(tmp_path: Path):
    rows = scored_rows(1)
    for response, reward in zip(rows[0]["responses"], (5.0, 9.0, 2.0, 9.0, 2.0), strict=True):
        response["reward"] = reward
    _, output = make(tmp_path, rows)
    pair = read_jsonl(output)[0]
    assert (pair["chosen_id"], pair["rejected_id"]) == ("sample-1", "sample-2")
    assert pair["chosen_scores"]["faithfulness"] == 4.0
    assert pair["rejected_scores"]["faithfulness"] == 5.0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "chosen": "a"}, "field 'rejected': is missing"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": " \n"}, "rejected: the answer is empty"),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "chosen": [{"role": "user", "content": "a"}],
                "rejected": [{"role": "assistant", "content": "b"}],
            },
            "not the assistant's",
        ),
    ],
)
def test_a_pair_file_that_cannot_be_used_names_the_line(tmp_path: Path, row: dict[str, Any], words: str):
    from dpo.pairs.records import read_pairs
    from judge_pipeline.common.errors import DataError

    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = write_jsonl(tmp_path / "pairs.jsonl", [good, row])
    with pytest.raises(DataError, match=words) as error:
        list(read_pairs(path))
    assert "line 2" in str(error.value)


def test_pairs_do_not_overwrite_the_answers_they_are_made_of(tmp_path: Path, capsys):
    scored = write_jsonl(tmp_path / "scored.jsonl", scored_rows())
    before = scored.read_bytes()
    assert main(["pairs", str(scored), "--output", str(scored)]) == 2
    assert "--output is the input" in capsys.readouterr().err
    assert scored.read_bytes() == before


def test_other_pairs_are_not_written_over_an_earlier_output(tmp_path: Path, capsys):
    scored, output = write_jsonl(tmp_path / "scored.jsonl", scored_rows()), tmp_path / "pairs.jsonl"
    command = ["pairs", str(scored), "--output", str(output)]
    assert main(command) == 0
    before = output.read_bytes()
    assert main(command) == 0  # the same pairs of the same answers
    assert main([*command, "--pairs", "all"]) == 2
    said = capsys.readouterr().err
    assert "config.pairs: 'best-worst' there, 'all' now" in said
    assert "--existing replace" in said
    assert "resume" not in said
    write_jsonl(scored, scored_rows(3))
    assert main(command) == 2
    assert "scored.jsonl has other content now" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert (
        main([*command, "--existing", "replace", "--min-margin", "99"]) == 2
    )  # gives no pair: nothing is replaced
    assert output.read_bytes() == before
    assert main([*command, "--existing", "replace"]) == 0
    assert len(read_jsonl(output)) == 3
    Path(f"{output}.run.yaml").unlink()
    assert main(command) == 2  # a file of somebody's
    assert "is there already" in capsys.readouterr().err
