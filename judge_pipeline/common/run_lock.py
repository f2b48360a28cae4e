"""One process at a time in a run directory: two that write one `labels.jsonl` would spoil it.

The lock is the operating system's, so that a killed process holds nothing; the file in the directory stays.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from judge_pipeline.common.errors import UserError, writing

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run directory, which is made if need be. Raises UserError when one is in it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            who = (folder / LOCK).read_text(encoding="utf-8") or "another process"
            raise UserError(
                f"{folder} is in use: {who} is at work there",
                "wait for it, or name another --output; `--shard` and `judge-pipeline merge` share work on purpose",
            ) from error
        (folder / LOCK).write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    try:
        yield
    finally:
        lock.release()
