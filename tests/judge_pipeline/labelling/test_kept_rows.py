"""A row is kept while what was judged and who judged it are the same; otherwise it is made again."""

from __future__ import annotations

import json

import pytest
from judge_servers import JudgeServer, is_check, write_prompts

from judge_pipeline.cli import main
from judge_pipeline.common.record_files import read_labels
from judge_pipeline.dimensions.options import JudgeOptions
from judge_pipeline.dimensions.rating import RatingDimension
from judge_pipeline.labelling.fingerprint import judge_fingerprint
from judge_pipeline.labelling.label_config import LabelConfig


@pytest.fixture
def server():
    with JudgeServer() as running:
        running.models = ["judge", "other"]
        yield running


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, prompts=2, answers=2)
    return path


def label(server, prompts, run, *more, model="judge"):
    named = ["--judge.model", model] if model else []
    judge = ["--judge.base-url", server.url, *named, "--dimensions", "helpfulness", "--retrieval", "bm25"]
    return main(["label", str(prompts), "--output", str(run), *judge, *more])


def asked(server, before):
    """Requests since `before`, without the probe."""
    return [body for body in server.bodies[before:] if not is_check(body)]


def test_an_answer_that_was_edited_is_judged_again_and_only_that(server, prompts, tmp_path):
    run = tmp_path / "run"
    assert label(server, prompts, run) == 0
    old = list(read_labels(run))
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    rows[0]["responses"][1]["text"] = "An answer that says something else."
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = len(server.bodies)
    assert label(server, prompts, run, "--existing", "resume") == 0
    (body,) = asked(server, before)
    assert "says something else" in body["messages"][-1]["content"]
    new = list(read_labels(run))
    assert [one.judged == other.judged for one, other in zip(old, new, strict=True)] == [
        True,
        False,
        True,
        True,
    ]
    for edit in ({"query": "Another question?"}, {"context": rows[1]["context"] + " More."}):
        rows[1] |= edit
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert label(server, prompts, run, "--existing", "resume") == 0
        now = list(read_labels(run))
        assert [one.judged == other.judged for one, other in zip(new, now, strict=True)] == [
            True,
            True,
            False,
            False,
        ]
        new = now


def test_another_judge_makes_rows_of_its_own(server, prompts, tmp_path):
    run = tmp_path / "run"
    assert label(server, prompts, run) == 0
    assert label(server, prompts, run, "--existing", "resume") == 0
    first = list(read_labels(run))
    before = len(server.bodies)
    assert label(server, prompts, run, "--existing", "resume", model="other") == 0
    assert {body["model"] for body in asked(server, before)} == {"other"}
    second = list(read_labels(run))
    assert len({row.judge for row in first}) == len({row.judge for row in second}) == 1
    assert first[0].judge != second[0].judge
    before = server.requests
    assert label(server, prompts, run, "--existing", "resume", model="other") == 0
    assert server.requests == before
    # Back to the first judge: its calls are there.
    assert label(server, prompts, run, "--existing", "resume") == 0
    assert list(read_labels(run)) == first
    assert asked(server, len(server.bodies)) == []


def test_a_judge_without_a_name_is_the_one_that_is_served_now(server, prompts, tmp_path):
    run = tmp_path / "run"
    server.models = ["judge"]
    assert label(server, prompts, run, model=None) == 0
    first = list(read_labels(run))
    server.models = ["other"]
    assert label(server, prompts, run, model=None) == 0
    assert {body["model"] for body in server.bodies} == {"judge", "other"}
    assert {row.judge for row in read_labels(run)}.isdisjoint(row.judge for row in first)


def test_rows_that_do_not_say_what_they_were_made_from_are_made_from_the_stored_calls(
    server, prompts, tmp_path
):
    run = tmp_path / "run"
    assert label(server, prompts, run) == 0
    rows = [json.loads(line) for line in (run / "labels.jsonl").read_text().splitlines()]
    for row in rows:
        assert (len(row.pop("judged")), len(row.pop("judge"))) == (32, 32)
    (run / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = len(asked(server, 0))
    assert label(server, prompts, run) == 0
    assert len(asked(server, 0)) == before
    assert all(row.judge and row.judged for row in read_labels(run))


def test_the_fingerprint_covers_what_decides_scores_and_nothing_else():
    def fingerprint(identity="judge", **settings):
        config = LabelConfig.model_validate({"prompts": "p.jsonl", "output": "o", **settings})
        return judge_fingerprint(identity, config, [RatingDimension("helpfulness", JudgeOptions())])

    base = fingerprint()
    for same in ({"max_tokens": 99}, {"window": 3}, {"weights": {"helpfulness": 2.0}}, {"max_calls": 3}):
        assert fingerprint(**same) == base, same
    for other in (
        {"identity": "x"},
        {"votes": 3},
        {"top_k": 2},
        {"language": "zh"},
        {"dimensions": ["helpfulness"]},
    ):
        assert fingerprint(**other) != base, other


def test_an_edited_prompt_file_is_another_judge(tmp_path, monkeypatch):
    (tmp_path / "brief_judge").mkdir()
    (tmp_path / "brief_judge" / "__init__.py").write_text(
        "class Brief:\n    name = 'brief'\n    def plan(self, prompt, document): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from brief_judge import Brief  # type: ignore[import-not-found]

    config = LabelConfig.model_validate({"prompts": "p.jsonl", "output": "o"})
    file = tmp_path / "brief_judge" / "brief.rate.txt"
    found = set()
    for text in ("Rate it.", "Rate it well.", "Rate it."):
        file.write_text(text)
        found.add(judge_fingerprint("judge", config, [Brief()]))
    assert len(found) == 2
