"""Record files: streams in, atomic files out, and errors that name line and field."""

from __future__ import annotations

import errno
import gzip
import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from judge_pipeline.common import record_files
from judge_pipeline.common.errors import DataError, UserError
from judge_pipeline.common.record_files import (
    JsonlAppender,
    read_labels,
    read_prompts,
    read_rows,
    write_records,
)
from judge_pipeline.common.records import Prompt

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
        (b'{"id": "p2", "context": "x", "query": null}\n', 2, "query", "is null"),
        (
            b'{"id": "p2", "context": "x", "query": "q", "responses": [{"id": "a", "text": " \\n"}]}\n',
            2,
            "responses.0.text",
            "white space",
        ),
        (
            b'{"id": "p2", "context": "x", "query": "q", "responses": [{"id": 1, "text": "x"}, {"id": 1, "text": "y"}]}\n',
            2,
            "responses.1.id",
            "twice",
        ),
        (b'{"id": ' + b'{"a":' * 200_000 + b"\n", 2, None, "cannot be read"),
        (b'{"id": ' + b"1" * 5000 + b"}\n", 2, None, "cannot be read"),
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
    with pytest.raises(DataError, match="no responses") as caught:
        list(read_prompts(path, need_responses=True))
    assert (caught.value.line, caught.value.field) == (1, "responses")


def test_a_label_that_stands_twice_is_named(tmp_path):
    row = {"prompt_id": "p", "response_id": "a", "scores": {}, "reward": None, "status": "failed"}
    path = write(tmp_path / "labels.jsonl", row, row)
    with pytest.raises(DataError, match="line 2, field 'response_id': 'a' of 'p' stands already on line 1"):
        list(read_labels(path))


def test_utf_16_is_recognised(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(ROW).encode("utf-16"))
    with pytest.raises(DataError, match="iconv -f UTF-16"):
        list(read_prompts(path))


def test_parquet_keeps_fields_that_the_first_row_lacks(tmp_path):
    path = tmp_path / "p.parquet"
    second = ROW["responses"][0] | {"flags": ["duplicate"], "human": {"helpfulness": 7.0}}
    rows = [ROW, ROW | {"id": "p2", "task": "qa", "responses": [second]}]
    write_records(path, rows)
    found = list(read_prompts(path))
    assert [prompt.responses[0].flags for prompt in found] == [[], ["duplicate"]]
    assert found[1].model_dump()["task"] == "qa"
    assert found[1].responses[0].human == {"helpfulness": 7.0}


def test_records_without_a_common_schema_are_no_parquet(tmp_path):
    with pytest.raises(UserError, match="one Parquet schema"):
        write_records(tmp_path / "p.parquet", [{"a": 1}, {"a": "x"}])
    assert not list(tmp_path.iterdir())


def test_a_file_named_gz_is_written_packed(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    assert write_records(path, [ROW]) == 1
    assert json.loads(gzip.decompress(path.read_bytes())) == ROW
    assert [prompt.id for prompt in read_prompts(path)] == ["p1"]


def test_plain_text_named_gz_is_named(tmp_path):
    path = write(tmp_path / "p.jsonl.gz", ROW)
    with pytest.raises(DataError, match="is not a gzip file"):
        list(read_prompts(path))


def test_a_file_that_cannot_be_read_is_named():
    with pytest.raises(UserError, match="could not read /proc/self/mem"):
        list(read_rows("/proc/self/mem"))


def test_a_file_that_may_not_grow_is_named_and_holds_whole_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    script = (
        "import resource, sys; from judge_pipeline.common.record_files import JsonlAppender\n"
        "from judge_pipeline.common.config import Command, Config, main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "def go(_):\n"
        "    with JsonlAppender(sys.argv[1]) as file:\n"
        "        [file.append({'n': n, 'text': 'x' * 100}) for n in range(99)]\n"
        "sys.exit(main('tool', [Command('go', '', Config, go, '')], ['go']))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"tool: error: could not write {path}: File too large" in done.stderr
    with JsonlAppender(path) as appender:
        appender.append({"n": "last"})
    assert [row["n"] for _, row in read_rows(path)] == [*range(8), "last"]


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


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fsync waits for the disk
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
