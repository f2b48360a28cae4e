"""Batch files in a run: answers taken in before it, calls written at its end, and what is out in between."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judge_pipeline.calls.batch_book import BatchBook
from judge_pipeline.calls.store import CallStore
from judge_pipeline.engines.batch_answers import take_in
from judge_pipeline.engines.batch_file import BatchFileEngine, FileLimits
from judge_pipeline.engines.chat_protocol import Dialect, identity_of
from judge_pipeline.engines.open import FIELDS, JudgeConfig, learn_dialect


@dataclass
class Mail:
    """The batch files of one run."""

    book: BatchBook
    engine: BatchFileEngine | None = None
    """Writes the calls of a run that asks nobody; None when an endpoint or a local model is there to ask."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What was done, for the run's summary."""

    def finish(self) -> dict[str, Any]:
        """Put written files in their places; returns what was done and what is out, nothing where there is nothing."""
        if self.engine is not None and self.engine.files is not None:
            self.figures["written"] = self.engine.finish()
        elif self.engine is not None:
            self.figures["unwritten"] = len(self.engine.unwritten)
        if out := self.book.out():
            self.figures["out"] = out
        return self.figures


async def open_mail(judge: JudgeConfig, store: CallStore) -> Mail:
    """Give up files, take in answers, and be ready to write the next file. Raises UserError for a file that is not there."""
    mail = Mail(BatchBook(store))
    for path in judge.batch_give_up:
        given_up = mail.book.give_up(path)
        print(f"{path}: {given_up} calls are not waited for any more", file=sys.stderr)
    if judge.model is None or not (judge.batch_in or judge.batch_out):
        return mail
    identity = identity_of(judge.model, judge.body)
    mail.book.adopt(identity)
    if judge.batch_in:
        answers = take_in(judge.batch_in, mail.book)
        print(answers.report(), file=sys.stderr)
        mail.figures["taken_in"] = {
            "answers": answers.taken_in,
            "failed": answers.failed,
            "known": answers.known,
        }
    if judge.batch_out is None and judge.base_url:
        return mail
    mail.engine = BatchFileEngine(
        judge.model,
        mail.book,
        judge.batch_out,
        dialect=await _dialect(judge, store, identity),
        extra_body=judge.body,
        limits=FileLimits(judge.batch_rows, int(judge.batch_megabytes * 1_000_000)),
    )
    return mail


async def _dialect(judge: JudgeConfig, store: CallStore, identity: str) -> Dialect:
    """The fields the judge takes: as one live call told this run or an earlier one, else as the settings say."""
    name = f"{FIELDS}{identity}"
    if judge.base_url:
        learnt = await learn_dialect(judge)
        store.set_note(name, learnt.written)
        print(f"fields found out with one call to {judge.base_url[0]}: {learnt}", file=sys.stderr)
        return learnt
    noted = store.note(name)
    return judge.dialect(Dialect.read(noted) if noted else None)


def mail_lines(figures: Mapping[str, Any], model: str | None) -> list[str]:
    """What was done with batch files, and what comes next, for the terminal."""
    written, out = figures.get("written") or {}, figures.get("out") or {}
    lines = [f"{rows:,} calls written to {file}" for file, rows in written.items()]
    if "written" in figures and not written:
        lines.append("no call is to be written: each is answered or out")
    if waiting := {file: count for file, count in out.items() if file not in written}:
        lines.append("calls are out: " + ", ".join(f"{count:,} in {file}" for file, count in waiting.items()))
    if figures.get("unwritten"):
        lines.append(f"{figures['unwritten']:,} calls are in no file; --judge.batch-out FILE writes them")
    if out:
        files = "the file" if len(out) == 1 else "the files"
        lines.append(
            f"next: have {files} answered (by a batch service, or `vllm run-batch -i {Path(next(iter(out))).name} -o ANSWERS "
            f"--model {model or 'NAME'}`), then run the same command again with --judge.batch-in ANSWERS … for those that "
            "are back; --judge.batch-give-up FILE waits no longer for one"
        )
    return lines
