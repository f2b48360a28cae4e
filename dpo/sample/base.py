"""What every sampling engine takes and gives: messages in, several seeded answers out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from dpo.chat import ChatMessages

Finish = Literal["stop", "length", "refused"]


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. Temperature 0 is greedy (then all answers of a prompt are the same)."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 1024


@dataclass(frozen=True)
class Request:
    """A prompt to answer `count` times; answer i is drawn with seed `seed + i`."""

    prompt_id: str
    messages: ChatMessages
    count: int
    seed: int


@dataclass(frozen=True)
class Draw:
    """One answer as the model gave it; `tokens` are generated ones, the end token included."""

    text: str
    finish: Finish
    seed: int
    tokens: int


@dataclass(frozen=True)
class Failed:
    """A request that no retry will cure, and why; the run goes on with the others."""

    reason: str


class Sampler(Protocol):
    """An engine that answers requests."""

    name: str
    template: str | None
    """The chat template in use; None where the engine does not tell (an endpoint)."""
    window: int | None
    """Most tokens a prompt and its answer may have together; None where unknown."""
    at_a_time: int
    """How many requests `answer` likes to get in one go."""

    def count_tokens(self, messages: ChatMessages) -> int | None:
        """Tokens of the prompt as the model sees it, or None where unknown."""
        ...

    def answer(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[Request, list[Draw] | Failed]]:
        """Yield each request with its answers as soon as they are done, in any order."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


def prompt_seed(run_seed: int, prompt_id: str) -> int:
    """Seed of a prompt's first answer: depends on the run's seed and the prompt alone, never on the order."""
    digest = hashlib.sha256(f"{run_seed}\x1f{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 2  # room for `+ i` below 2³¹, which every engine accepts
