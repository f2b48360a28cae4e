"""Errors a user can act on.

Every message says what is wrong, where (record, line, field) and what to do. The commands print these
without a traceback and exit with `exit_code`; anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something the user gave, or the machine lacks; `hint` says what to do about it."""

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class DataError(UserError):
    """A record that cannot be used: names the file, the line (1-based) and the field."""

    def __init__(
        self,
        message: str,
        *,
        path: Path | str,
        line: int | None = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = f", line {line}" if line is not None else ""
        where += f", field '{field}'" if field is not None else ""
        super().__init__(f"{path}{where}: {message}", hint)
        self.path, self.line, self.field = Path(path), line, field


_WRITING_FAILED = re.compile(
    r"no space left|serializing: I/O error|disk quota|iostream error|inline_container|PytorchStreamWriter",
    re.IGNORECASE,
)
"""How torch's and safetensors' own writers, which raise no OSError, say that a file could not be written."""


_KEPT = "what was finished is kept; free some space and run the same command again"


def writing_failed(error: BaseException) -> UserError | None:
    """A message for a file that could not be written, by us or by a library; None for every other error."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno is not None):
        return disk_error(error, error.filename or "a file")
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, RuntimeError | OSError) or type(told).__name__ == "SafetensorError":
            text = " ".join(str(told).split())
            if _WRITING_FAILED.search(text) and "StreamReader" not in text:
                return UserError(
                    f"a file could not be written, the disk is probably full: {text[:200]}", _KEPT
                )
        told = told.__cause__ or told.__context__
    return None


def disk_error(error: OSError, path: Path | str) -> UserError:
    """Turn an OSError met while writing `path` into a message with a way out."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk is full: could not write {path}", _KEPT)
    reason = error.strerror or error
    return UserError(f"could not write {path}: {reason}", "check that the folder exists and is writable")


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turns an OSError of the block into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error
