"""Record files: streams in, atomic files out, and errors that name line and field."""

from __future__ import annotations

import errno
import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from judge_pipeline import record_files
from judge_pipeline.errors import DataError, UserError
from judge_pipeline.record_files import JsonlAppender, read_labels, read_prompts, read_rows, write_records
from judge_pipeline.records import Prompt

ROW = {
    "id": "p1",
    "context": "Text of a document.",
    "query": "What?",
    "responses": [{"id": "a", "text": "This."}],
}


def write(path, *rows, tail=b""):
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows) + tail)
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_prompts_survive_a_round_trip(tmp_path, name):
    rows = [Prompt.model_validate(ROW | {"id": f"p{n}", "context": "文档 " * n}) for n in range(1, 200)]
    assert write_records(tmp_path / name, rows) == 199
    assert list(read_prompts(tmp_path / name)) == rows


def test_gzip_is_read_and_a_cut_gzip_is_named(tmp_path):
    packed = tmp_path / "p.jsonl.gz"
    content = gzip.compress(b"".join(json.dumps(ROW | {"id": n}).encode() + b"\n" for n in range(500)))
    packed.write_bytes(content)
    assert len(list(read_prompts(packed))) == 500
    packed.write_bytes(content[:-20])
    with pytest.raises(DataError, match="gzip stream ends early"):
        list(read_prompts(packed))


@pytest.mark.parametrize(
    ("tail", "line", "field", "word"),
    [
        (b'{"id": "p2", "context": "x"', 2, None, "torn"),
        (b"{'id'}\n", 2, None, "not JSON"),
        (b"[1]\n", 2, None, "not a JSON object"),
        (b'{"id": "\xff"}\n', 2, None, "not UTF-8"),
        (b'{"id": "p2", "context": "x"}\n', 2, "query", "missing"),
        (b'{"id": "p2", "context": "", "query": "q"}\n', 2, "context", "white space"),
        (
            b'{"id": "p2", "context": "x", "query": "q", "responses": [{"id": "a"}]}\n',
            2,
            "responses.0.text",
            "missing",
        ),
        (b'{"id": "p1", "context": "x", "query": "q"}\n', 2, "id", "line 1"),
        (b'{"id": "p2", "context": "x\\ud83d", "query": "q"}\n', 2, "context", "half a character"),
    ],
)
def test_bad_rows_are_named_by_line_and_field(tmp_path, tail, line, field, word):
    path = write(tmp_path / "p.jsonl", ROW, tail=tail)
    with pytest.raises(DataError, match=word) as caught:
        list(read_prompts(path))
    assert (caught.value.line, caught.value.field) == (line, field)
    assert str(path) in str(caught.value)


def test_a_prompt_without_answers_is_named_where_answers_are_needed(tmp_path):
    path = write(tmp_path / "p.jsonl", ROW | {"responses": []})
    assert len(list(read_prompts(path))) == 1
    with pytest.raises(DataError, match="no responses"):
        list(read_prompts(path, need_responses=True))


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        list(read_prompts(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no records"):
        list(read_prompts(tmp_path / "empty.jsonl"))


def test_labels_are_found_in_their_run_directory(tmp_path):
    write(
        tmp_path / "labels.jsonl",
        {"prompt_id": 1, "response_id": 2, "scores": {}, "reward": None, "status": "failed"},
    )
    assert [label.response_id for label in read_labels(tmp_path)] == ["2"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "p.jsonl"
    write_records(path, [ROW])
    before = path.read_bytes()

    def rows():
        yield ROW
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="disk is full"):
        write_records(path, rows())
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_full_disk_while_appending_is_named(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with JsonlAppender(tmp_path / "a.jsonl") as appender:
        appender.append({"n": 1})
        monkeypatch.setattr(record_files.os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            appender.append({"n": 2})


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.text(max_size=40), max_size=8),
    torn=st.binary(max_size=30).filter(lambda b: b"\n" not in b),
)
def test_reopening_cuts_only_a_torn_tail(tmp_path, rows, torn):
    path = tmp_path / "a.jsonl"
    path.unlink(missing_ok=True)
    with JsonlAppender(path) as appender:
        for text in rows:
            appender.append({"text": text})
    with path.open("ab") as file:
        file.write(torn)
    with JsonlAppender(path) as appender:
        appender.append({"text": "last"})
    assert [row["text"] for _, row in read_rows(path)] == [*rows, "last"]
