"""What an engine is: something that answers one judge call, with its own patience, limits and typed failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from judge_pipeline.calls.call import Call, CallUsage, Reply
from judge_pipeline.engines.concurrency import Priority


class StopCalls(Exception):
    """No further call may begin (a limit is reached, or the user said stop), or its answer comes another way.

    `reason` is that of the failure that stands for the answer: `stopped` or `pending`.
    """

    def __init__(self, message: str, reason: Literal["stopped", "pending"] = "stopped") -> None:
        super().__init__(message)
        self.reason: Literal["stopped", "pending"] = reason


class EndOfCalls(StopCalls):
    """Raised by an engine that can answer no further call in this run, though it may in a later one: no credit left."""


@dataclass(frozen=True)
class Routing:
    """Where a call stands among others; nothing in it changes the answer."""

    priority: Priority = ()
    """Calls are issued smallest first: (template, document, prompt, answer), so that prefix caches find their prefix."""
    affinity: str = ""
    """Calls with equal affinity (one prompt's) go to the same endpoint."""
    admit: Callable[[], None] = lambda: None
    """Called before each attempt at the call; raises StopCalls to hold it back."""
    paid: Callable[[CallUsage], None] = lambda usage: None
    """Told what an attempt has cost that is tried again."""
    hurried: Callable[[], bool] = lambda: False
    """The user wants the run to end: a call that only waits for an endpoint to come back is to be given up."""


DEFAULT_ROUTING = Routing()


class Engine(Protocol):
    """Answers calls. Many `answer`s may wait at a time; the engine decides how many it works on."""

    model: str
    """The judge's name, for people."""
    identity: str
    """The judge as `Call.key` sees it: the name and whatever else in the engine shapes its answers."""
    supports_schema: bool
    """Answers can be held to a call's JSON schema."""
    context_window: int | None
    """Tokens a call and its answer may have together; None when the engine does not tell."""

    async def answer(self, call: Call, routing: Routing = DEFAULT_ROUTING) -> Reply:
        """The reply, or a typed failure once the engine's patience has ended.

        Raises StopCalls when `routing.admit` does before the first attempt, EndOfCalls when the account is spent, and
        UserError when no call can succeed any more (the key is refused, the endpoint is gone). Attempts that were
        answered and tried again are the reply's `earlier`.
        """
        ...

    def where(self, routing: Routing) -> str:
        """Where such a call is answered, for the record: a URL, or `local`."""
        ...

    async def close(self) -> None:
        """Let go of connections, threads and models."""
        ...
