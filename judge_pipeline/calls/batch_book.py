"""What the call store knows of batch files: which calls are out in which file, and what became of them.

A call is in a file by the id of its row there (`custom_id`): its key, or, when it is mailed again, the key's beginning
and a number. It is `out` until its row has come back (`answered`, `failed`) or the file is given up by name. A row that
comes back later than that is still known. `draft` is a row of a file that is being written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from judge_pipeline.calls.call import Call, Reply, key_of
from judge_pipeline.calls.schema import pack, unpack
from judge_pipeline.calls.store import CallStore, Finished
from judge_pipeline.common.errors import UserError

State = Literal["draft", "out", "answered", "failed", "given_up"]

_OPEN = "state = 'out' AND key NOT IN (SELECT key FROM calls)"


@dataclass(frozen=True)
class Mailed:
    """A call as it stands in a batch file."""

    custom_id: str
    call: Call
    model: str
    owner: str


class BatchBook:
    """The batch files of one call store."""

    def __init__(self, store: CallStore) -> None:
        self.store = store

    def adopt(self, identity: str) -> None:
        """Find whose calls are out that an earlier version noted without their judge, if they are this judge's."""
        found = "SELECT custom_id, call FROM batched WHERE model = '' AND state = 'out'"
        mine = []
        for custom_id, packed in self.store.rows(found):
            asked = Call.model_validate(unpack(packed)).asked()
            if key_of(identity, asked, with_limit=True) == custom_id:
                mine.append((key_of(identity, asked), identity, custom_id))
        with self.store.writing() as db:
            db.executemany("UPDATE batched SET key = ?, model = ? WHERE custom_id = ?", mine)

    def waits_in(self, key: str) -> str | None:
        """The file in which a call is out, or about to be."""
        row = self.store.first("SELECT file FROM batched WHERE key = ? AND state IN ('out', 'draft')", key)
        return row[0] if row else None

    def out(self) -> dict[str, int]:
        """How many calls are out in each file."""
        rows = self.store.rows(
            f"SELECT file, COUNT(*) FROM batched WHERE {_OPEN} GROUP BY file ORDER BY MIN(rowid)"
        )
        return {file: count for file, count in rows}

    def files(self) -> set[str]:
        """Every file that was ever written."""
        return {row[0] for row in self.store.rows("SELECT DISTINCT file FROM batched")}

    def new_id(self, key: str) -> str:
        """What to call a row that asks this call: nothing that an earlier row was called."""
        times: int = self.store.first("SELECT COUNT(*) FROM batched WHERE key = ?", key)[0]
        return f"{key[:56]}-{times + 1}" if times else key

    def draft(self, file: Path, mailed: Iterable[Mailed]) -> None:
        """Note rows of a file that is being written."""
        rows = [
            (
                one.custom_id,
                one.call.key(one.model),
                one.model,
                str(file),
                one.owner,
                pack(one.call.model_dump(mode="json")),
            )
            for one in mailed
        ]
        with self.store.writing() as db:
            db.executemany("INSERT INTO batched VALUES (?, ?, ?, ?, 'draft', ?, ?)", rows)

    def send(self, file: Path) -> None:
        """The drafted file is whole: its calls are out."""
        with self.store.writing() as db:
            db.execute("UPDATE batched SET state = 'out' WHERE file = ? AND state = 'draft'", (str(file),))

    def drop_drafts(self) -> None:
        """Forget files that were never finished."""
        with self.store.writing() as db:
            db.execute("DELETE FROM batched WHERE state = 'draft'")

    def give_up(self, path: Path) -> int:
        """Wait no longer for a file; returns how many of its calls were out. Raises UserError for an unknown one."""
        known = self.files()
        names = [name for name in known if name == str(path.absolute())] or [
            name for name in known if Path(name).name == path.name
        ]
        if len(names) != 1:
            told = ", ".join(self.out()) or "none"
            problem = (
                "was not written by this run" if not names else f"may be any of {', '.join(sorted(names))}"
            )
            raise UserError(f"--judge.batch-give-up: {path} {problem}", f"calls are out in: {told}")
        given_up = self.out().get(names[0], 0)
        with self.store.writing() as db:
            db.execute("UPDATE batched SET state = 'given_up' WHERE file = ? AND state = 'out'", (names[0],))
        return given_up

    def find(self, custom_id: str) -> Mailed | None:
        """The call that a row asks; None when no file had such a row, or its answer is in already (`is_in`)."""
        found = (
            "SELECT custom_id, call, model, owner FROM batched WHERE custom_id = ? AND state != 'answered'"
        )
        row = self.store.first(found, custom_id)
        return row and Mailed(row[0], Call.model_validate(unpack(row[1])), row[2], row[3])

    def is_in(self, custom_id: str) -> bool:
        """Whether a row's answer is in the store."""
        row = self.store.first(
            "SELECT 1 FROM batched WHERE custom_id = ? AND state = 'answered' UNION SELECT 1 FROM calls WHERE key = ?",
            custom_id,
            custom_id,
        )
        return row is not None

    def take(self, came: Sequence[tuple[Mailed, Reply]]) -> None:
        """Store what came back, and what became of its rows, at once. The book keeps no call that is answered."""
        finished = [Finished(one.call, one.model, reply, "batch", one.owner) for one, reply in came]
        rows = [
            {"state": "failed" if reply.failure else "answered", "id": one.custom_id} for one, reply in came
        ]
        update = "UPDATE batched SET state = :state, call = IIF(:state = 'answered', x'', call) WHERE custom_id = :id"
        self.store.put(finished, then=lambda db: db.executemany(update, rows))
