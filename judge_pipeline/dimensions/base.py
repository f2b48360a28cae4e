"""What a dimension is: a pure plan that yields the calls it needs and turns their replies into a score.

A plan covers all answers of one prompt, so that what they share is asked once. It is a generator: it yields
a list of `Request`s, is sent the list of `Reply`s in the same order, as often as it needs, and returns one
`Outcome` an answer. It never talks to a network, a disk or a clock. Calls that several plans have in common are
simply equal, and equal calls are made once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from judge_pipeline.calls.call import Call, FailureReason, Reply
from judge_pipeline.common.records import Prompt
from judge_pipeline.documents.chunking import Span
from judge_pipeline.replies.marks import Problem

Parsed = TypeVar("Parsed")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Request:
    """A call, and the positions in `prompt.responses` of the answers it serves (its cost is split evenly)."""

    call: Call
    answers: tuple[int, ...]


@dataclass(frozen=True)
class ParsedRequest(Request, Generic[Parsed]):
    """A request, and how its reply is read."""

    read: Callable[[Reply], Parsed | Problem]


Steps = Generator[list[Request], list[Reply], Result]
"""A part of a plan that comes to a result."""

Plan = Steps["list[Outcome]"]


class Document(Protocol):
    """The document as dimensions see it: cut in chunks, searchable by statement. Built once a document."""

    @property
    def text(self) -> str:
        """The whole document."""
        ...

    @property
    def chunks(self) -> Sequence[Span]:
        """The 4096-token pieces, in document order, covering it without a gap."""
        ...

    def search(self, statements: Sequence[str]) -> list[list[Span]]:
        """The top-k 128-token segments for each statement, best first."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a dimension found for one answer: points 0–10, or the reason why there are none."""

    score: float | None
    reason: FailureReason | None = None
    detail: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


Needs = Literal["text", "pieces", "search"]


class Dimension(Protocol):
    """One dimension of the reward.

    A class may say as `needs` what its plans want of a document, so that it is ready by then: its `text` alone, its
    chunks from the first step on (`pieces`, which is also taken for granted), or a `search` after the first replies.
    """

    name: str

    def plan(self, prompt: Prompt, document: Document) -> Plan:
        """The calls that score every answer of `prompt`, as a generator (see the module's docstring)."""
        ...
