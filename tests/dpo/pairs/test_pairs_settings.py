"""Settings of `dpo pairs` that other tests would not miss: each test fails when its setting is ignored."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from dpo_helpers import make, prompt_rows, read_jsonl, scored_rows, write_jsonl

SHORT = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]


def test_the_highest_of_ten_is_set_against_the_lowest(tmp_path: Path):
    rewards = (4.0, 8.0, 2.5, 9.5, 6.0, 1.5, 7.0, 3.0, 5.0, 2.0)
    rows = prompt_rows(2)
    for row, order in zip(rows, (rewards, rewards[::-1]), strict=True):
        row["responses"] = [{"id": f"r{i}", "text": f"t{i}", "reward": r} for i, r in enumerate(order)]
    code, output = make(tmp_path, rows)
    assert code == 0
    found = [(pair["chosen_id"], pair["rejected_id"], pair["margin"]) for pair in read_jsonl(output)]
    assert found == [("r3", "r5", 8.0), ("r6", "r4", 8.0)]
    assert {pair["arm"] for pair in read_jsonl(output)} == {"best-worst"}


@pytest.mark.parametrize(
    ("flags", "pairs"), [((), 2), (("--min-responses", "3"), 3), (("--min-responses", "6"), 0)]
)
def test_a_prompt_needs_so_many_scored_answers(tmp_path: Path, flags: tuple[str, ...], pairs: int):
    rows = scored_rows(3)
    rows[1]["responses"] = rows[1]["responses"][:4]
    code, output = make(tmp_path, rows, *flags)
    assert (code, len(read_jsonl(output)) if output.exists() else 0) == (0 if pairs else 2, pairs)


def mixed(tmp_path: Path, share: str, *flags: str) -> list[dict[str, Any]]:
    mix = write_jsonl(tmp_path / "short.jsonl", SHORT)
    code, output = make(tmp_path, scored_rows(12), "--mix", str(mix), "--mix-proportion", share, *flags)
    assert code == 0
    return read_jsonl(output)


def test_mixed_pairs_are_shuffled_among_ours(tmp_path: Path):
    """A trainer may read the file in its order: neither kind may come in one piece, nor ours in their old order."""
    rows = mixed(tmp_path, "0.5")
    kinds = [row["arm"] == "mix" for row in rows]
    assert sum(kinds) == 12
    assert sum(a != b for a, b in itertools.pairwise(kinds)) > 4
    for kind in (True, False):
        names = [
            row["prompt_id"] or row["prompt"][0]["content"]
            for row, is_mix in zip(rows, kinds, strict=True)
            if is_mix == kind
        ]
        assert names != sorted(names, key=lambda name: int(name[1:]))


def test_the_share_and_the_seed_choose_what_is_mixed_in(tmp_path: Path):
    assert [sum(row["arm"] == "mix" for row in mixed(tmp_path, share)) for share in ("0.2", "0.4")] == [3, 8]
    drawn = [
        {
            row["prompt"][0]["content"]
            for row in mixed(tmp_path, "0.25", "--seed", seed)
            if row["arm"] == "mix"
        }
        for seed in ("0", "1", "0")
    ]
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_flag_that_is_kept_keeps_its_own_answers_only(tmp_path: Path):
    rows = scored_rows(1, answers=8)
    rows[0]["responses"][7]["flags"] = ["truncated"]
    rows[0]["responses"][6]["flags"] = ["refused"]
    chosen = [
        read_jsonl(make(tmp_path, rows, *flags)[1])[0]["chosen_id"]
        for flags in ((), ("--keep-flagged", "refused"), ("--keep-flagged", "truncated", "refused"))
    ]
    assert chosen == ["sample-5", "sample-6", "sample-7"]


def test_pairs_say_which_answers_were_cut_off(tmp_path: Path):
    rows = scored_rows(1)
    rows[0]["responses"][4]["flags"] = ["truncated"]
    _, output = make(tmp_path, rows, "--keep-flagged", "truncated")
    pair = read_jsonl(output)[0]
    assert (pair["chosen_id"], pair["chosen_truncated"], pair["rejected_truncated"]) == (
        "sample-4",
        True,
        False,
    )
