"""Reading and writing records: JSONL (plain, .gz) and Parquet, as streams, with errors that name line and field.

`read_records` validates each row; `write_records` replaces a file atomically; `JsonlAppender` adds durable
rows to a file that a killed run may have left with a torn tail.

Lines are read here, not by pyarrow's JSON reader or `datasets`, which stands on it: these fix each field's type by the
first rows (an id 17 before an id "x" is an error), and do not tell a torn last line from a wrong one.
"""

from __future__ import annotations

import codecs
import gzip
import json
import mmap
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from judge_pipeline.common.errors import DataError, UserError, writing
from judge_pipeline.common.records import FieldError, Label, Prompt

Record = TypeVar("Record", bound=BaseModel)


def read_rows(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) from .jsonl, .jsonl.gz or .parquet. Empty lines are passed over."""
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is not there"
        raise UserError(f"{path} {kind}", "name a .jsonl, .jsonl.gz or .parquet file")
    yield from _parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path)


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet as pq  # only needed here, and slow to import
    from pyarrow import ArrowException

    try:
        batches = pq.ParquetFile(path).iter_batches(batch_size=64)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            # One schema for all rows: a field that a row has not comes back as null. Make it absent again.
            yield number, {key: value for key, value in row.items() if value is not None}
    except ArrowException as error:
        raise DataError(f"is not a readable Parquet file ({error})", path=path) from error


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _parse_line(path, number, line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        if number == 0:
            hint = "name it .jsonl if it is plain text"
            raise DataError(f"is not a gzip file ({error})", path=path, hint=hint) from error
        message = f"the gzip stream ends early or is damaged behind this line ({error})"
        hint = "the file was cut while it was copied or written: copy it again"
        raise DataError(message, path=path, line=number, hint=hint) from error
    except OSError as error:
        raise UserError(f"could not read {path}: {error.strerror or error}") from error


def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    wrong = partial(DataError, path=path, line=number)
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "LATIN1"
        hint = f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW"
        raise wrong(f"is not UTF-8 (byte {error.start} of the line)", hint=hint) from error
    except json.JSONDecodeError as error:
        if line.endswith(b"\n"):
            message, hint = f"is not JSON: {error.msg} at column {error.colno}", "one JSON object a line"
        else:
            message = "the last line is torn: it ends in the middle of a record"
            hint = "whatever wrote the file was stopped; write it again, or delete the last line"
        raise wrong(message, hint=hint) from error
    except (RecursionError, ValueError) as error:  # too deep, or a number with thousands of digits
        raise wrong(f"holds JSON that cannot be read: {error}") from error
    if not isinstance(row, dict):
        raise wrong(f"holds a {type(row).__name__}, not a JSON object")
    return row


def _data_error(path: Path, number: int, error: ValidationError) -> DataError:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    cause = first.get("ctx", {}).get("error")
    hint = None
    if isinstance(cause, FieldError):
        message, hint = cause.message, cause.hint
        where.append(cause.field)
    elif first["type"] == "missing":
        message = "is missing"
    elif first["input"] is None:
        message = "is null"
    else:
        message = first["msg"].removeprefix("Value error, ")
    more = error.error_count() - 1
    message += f" (and {more} more in this record)" if more else ""
    return DataError(message, path=path, line=number, field=".".join(where) or None, hint=hint)


def read_records(
    path: Path | str,
    model: type[Record],
    key: Callable[[Record], object],
    *,
    key_field: str = "id",
    check: Callable[[Record], None] | None = None,
) -> Iterator[Record]:
    """Yield validated records; two records with the same key are an error that names both lines.

    `key_field` is the field such an error names; `check` raises FieldError for a record that will not do here.
    """
    path = Path(path)
    seen: dict[object, int] = {}
    for number, row in read_rows(path):
        wrong = partial(DataError, path=path, line=number)
        try:
            record = model.model_validate(row)
            if check is not None:
                check(record)
        except ValidationError as error:
            raise _data_error(path, number, error) from error
        except FieldError as error:
            raise wrong(error.message, field=error.field, hint=error.hint) from error
        name = key(record)
        if name in seen:
            shown = " of ".join(map(repr, reversed(name))) if isinstance(name, tuple) else repr(name)
            message = f"{shown} stands already on line {seen[name]}"
            raise wrong(message, field=key_field, hint="give every record its own id")
        seen[name] = number
        yield record
    if not seen:
        raise DataError("holds no records", path=path)


def _has_responses(prompt: Prompt) -> None:
    if not prompt.responses:
        message = f"prompt '{prompt.id}' has no responses"
        raise FieldError("responses", message, "add answers, or let `dpo sample` write them")


def read_prompts(path: Path | str, *, need_responses: bool = False) -> Iterator[Prompt]:
    """Yield the prompts of a file; with `need_responses` a prompt without answers is an error."""
    return read_records(path, Prompt, lambda row: row.id, check=_has_responses if need_responses else None)


def read_labels(path: Path | str) -> Iterator[Label]:
    """Yield the rows of a `labels.jsonl`; a run's folder may be named instead of the file in it."""
    path = Path(path)
    file = path / "labels.jsonl" if path.is_dir() else path
    return read_records(file, Label, lambda row: (row.prompt_id, row.response_id), key_field="response_id")


def labels_by_answer(path: Path | str) -> dict[tuple[str, str], Label]:
    """The rows of a `labels.jsonl` by prompt id and response id."""
    return {(row.prompt_id, row.response_id): row for row in read_labels(path)}


def to_json(record: BaseModel | dict[str, Any]) -> str:
    """One line of JSON, without a line end; fields nobody set are left out so that files stay readable."""
    row = record.model_dump(mode="json", exclude_unset=True) if isinstance(record, BaseModel) else record
    return json.dumps(row, ensure_ascii=False)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        hint = "delete it; the next run writes it"
        raise DataError(f"is not JSON ({error})", path=path, hint=hint) from error
    return content if isinstance(content, dict) else {}


def read_yaml(path: Path, prefix: str = "") -> dict[str, Any]:
    """The keys and values of a YAML file; a UserError begins with `prefix`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{prefix}{path} is not there") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{prefix}{path} is not YAML: {error}") from error
    except OSError as error:
        raise UserError(f"{prefix}could not read {path}: {error.strerror or error}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{prefix}{path} holds a {type(content).__name__}, not keys and values")
    return content or {}


def write_text(path: Path, text: str) -> None:
    """Replace a text file, whole or not at all."""
    _replace(path, [text])


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _replace(path: Path, pieces: Iterable[str], finish: Callable[[Path], None] | None = None) -> int:
    """Write `pieces` to a temporary neighbour of `path`, make it durable, and move it into place."""
    count = 0
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                packed = path.suffix == ".gz"
                with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if packed else nullcontext(file) as sink:
                    for piece in pieces:
                        sink.write(piece.encode())
                        count += 1
                file.flush()
                os.fsync(file.fileno())
            if finish is not None:
                finish(Path(name))
            os.chmod(name, 0o644)  # mkstemp makes files private; results are meant to be shared
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)  # gone already unless something failed
    return count


def write_records(path: Path | str, records: Iterable[BaseModel | dict[str, Any]]) -> int:
    """Write all records to `path` (.jsonl, .jsonl.gz or .parquet) at once or not at all; returns how many."""
    path = Path(path)
    lines = (to_json(record) + "\n" for record in records)
    return _replace(path, lines, _jsonl_to_parquet if path.suffix == ".parquet" else None)


def _jsonl_to_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row for _, row in _jsonl_rows(path)]
    try:
        # Not Table.from_pylist: that keeps only the fields of the first row.
        columns = pa.Table.from_struct_array(pa.array(rows)) if rows else pa.table({})
        pq.write_table(columns, path)
    except pa.ArrowException as error:
        message = f"these records do not fit into one Parquet schema: {error}"
        raise UserError(message, "write .jsonl instead") from error


class JsonlAppender:
    """Adds rows to a JSONL file, each on disk before `append` returns.

    A run killed in the middle of a write leaves a torn last line; opening again cuts that line off (the work
    behind it was never reported as done), so the file is always a list of whole records.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+")
            self._cut_torn_tail()

    def _cut_torn_tail(self) -> None:
        size = self.path.stat().st_size
        if size:
            with mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ) as content:
                keep = content.rfind(b"\n") + 1
            if keep < size:
                self._file.truncate(keep)

    def append(self, record: BaseModel | dict[str, Any]) -> None:
        """Write one row and wait until it is on disk."""
        with writing(self.path):
            self._file.write(to_json(record).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with writing(self.path):  # what a failed append left in the buffer does not fit now either
            self._file.close()

    def __enter__(self) -> JsonlAppender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
