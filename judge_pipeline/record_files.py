"""Reading and writing records: JSONL (plain, .gz) and Parquet, as streams, with errors that name line and field.

`read_records` validates each row; `write_records` replaces a file atomically; `JsonlAppender` adds durable
rows to a file that a killed run may have left with a torn tail.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from judge_pipeline.errors import DataError, UserError, disk_error
from judge_pipeline.records import Label, Prompt

Record = TypeVar("Record", bound=BaseModel)


def read_rows(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) from .jsonl, .jsonl.gz or .parquet. Empty lines are passed over."""
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is not there"
        raise UserError(f"{path} {kind}", "name a .jsonl, .jsonl.gz or .parquet file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        yield from _jsonl_rows(path)


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet as pq  # only needed here, and slow to import
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                number += 1
                yield number, _without_nulls(row)
    except ArrowException as error:
        raise DataError(f"is not a readable Parquet file ({error})", path=path) from error


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Parquet has one schema for all rows, so an absent field comes back as null: make it absent again."""
    return {key: value for key, value in row.items() if value is not None}


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _parse_line(path, number, line)
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(
            f"the gzip stream ends early ({error})",
            path=path,
            line=number,
            hint="the file was cut while it was copied or written: copy it again",
        ) from error


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not UTF-8 (byte {error.start} of the line)",
            path=path,
            line=number,
            hint="convert it: iconv -f LATIN1 -t UTF-8 FILE > NEW",
        ) from error
    except json.JSONDecodeError as error:
        if not line.endswith(b"\n"):
            raise DataError(
                "the last line is torn: it ends in the middle of a record",
                path=path,
                line=number,
                hint="whatever wrote the file was stopped; write it again, or delete the last line",
            ) from error
        raise DataError(
            f"is not JSON: {error.msg} at column {error.colno}",
            path=path,
            line=number,
            hint="one JSON object a line",
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"holds a {type(row).__name__}, not a JSON object", path=path, line=number)
    return row


def _data_error(path: Path, number: int, error: ValidationError) -> DataError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    message = "is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    more = error.error_count() - 1
    return DataError(
        message + (f" (and {more} more in this record)" if more else ""), path=path, line=number, field=field
    )


def read_records(path: Path | str, model: type[Record], key: Callable[[Record], object]) -> Iterator[Record]:
    """Yield validated records; two records with the same key are an error that names both lines."""
    path = Path(path)
    seen: dict[object, int] = {}
    for number, row in read_rows(path):
        try:
            record = model.model_validate(row)
        except ValidationError as error:
            raise _data_error(path, number, error) from error
        name = key(record)
        if name in seen:
            raise DataError(
                f"id {name!r} stands already on line {seen[name]}",
                path=path,
                line=number,
                field="id",
                hint="give every record its own id",
            )
        seen[name] = number
        yield record
    if not seen:
        raise DataError("holds no records", path=path)


def read_prompts(path: Path | str, *, need_responses: bool = False) -> Iterator[Prompt]:
    """Yield the prompts of a file; with `need_responses` a prompt without answers is an error."""
    for position, prompt in enumerate(read_records(path, Prompt, lambda row: row.id), start=1):
        if need_responses and not prompt.responses:
            raise DataError(
                f"prompt '{prompt.id}' (record {position}) has no responses",
                path=path,
                field="responses",
                hint="add answers, or let `dpo sample` write them",
            )
        yield prompt


def read_labels(path: Path | str) -> Iterator[Label]:
    """Yield the rows of a `labels.jsonl`; a run's folder may be named instead of the file in it."""
    path = Path(path)
    return read_records(
        path / "labels.jsonl" if path.is_dir() else path, Label, lambda row: (row.prompt_id, row.response_id)
    )


def to_json(record: BaseModel | dict[str, Any]) -> str:
    """One line of JSON, without a line end; fields nobody set are left out so that files stay readable."""
    row = record.model_dump(mode="json", exclude_unset=True) if isinstance(record, BaseModel) else record
    return json.dumps(row, ensure_ascii=False)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, whole or not at all."""
    _replace(path, [text])


def _replace(path: Path, pieces: Iterable[str], finish: Callable[[Path], None] | None = None) -> int:
    """Write `pieces` to a temporary neighbour of `path`, make it durable, and move it into place."""
    count = 0
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for piece in pieces:
                file.write(piece)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        if finish is not None:
            finish(temporary)
        temporary.chmod(0o644)  # mkstemp makes files private; results are meant to be shared
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return count


def write_records(path: Path | str, records: Iterable[BaseModel | dict[str, Any]]) -> int:
    """Write all records to `path` (.jsonl or .parquet) at once or not at all; returns how many."""
    path = Path(path)
    lines = (to_json(record) + "\n" for record in records)
    return _replace(path, lines, _jsonl_to_parquet if path.suffix == ".parquet" else None)


def _jsonl_to_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row for _, row in _jsonl_rows(path)]
    pq.write_table(pa.Table.from_pylist(rows), path)


class JsonlAppender:
    """Adds rows to a JSONL file, each on disk before `append` returns.

    A run killed in the middle of a write leaves a torn last line; opening again cuts that line off (the work
    behind it was never reported as done), so the file is always a list of whole records.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+")
            self._cut_torn_tail()
        except OSError as error:
            raise disk_error(error, self.path) from error

    def _cut_torn_tail(self) -> None:
        self._file.seek(0, os.SEEK_END)
        end = self._file.tell()
        keep = end
        while keep > 0:
            start = max(0, keep - 65536)
            self._file.seek(start)
            newline = self._file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep != end:
            self._file.truncate(keep)

    def append(self, record: BaseModel | dict[str, Any]) -> None:
        """Write one row and wait until it is on disk."""
        try:
            self._file.write(to_json(record).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(error, self.path) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JsonlAppender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
