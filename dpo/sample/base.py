"""What every sampling engine takes and gives: messages in, several seeded answers out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from dpo.chat import ChatMessages, ChatTemplate
from dpo.sample.reasoning import split_reasoning
from judge_pipeline.common.records import Prompt

Finish = Literal["stop", "length", "refused"]


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn, in every engine; what a model's generation_config says of it is ignored in every engine.

    Temperature 0 is greedy (then all answers of a prompt are the same).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    top_k: int = 0
    """Most likely tokens to draw from; 0 is all."""
    min_p: float = 0.0
    """Least probability of a token, as a share of the likeliest one's."""
    repetition_penalty: float = 1.0
    """What the logits of tokens in the prompt or the answer are divided by (multiplied where negative)."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are no part of it."""


@dataclass(frozen=True)
class Request:
    """A prompt to answer `count` times; answer i is drawn with seed `seed + i`."""

    prompt_id: str
    messages: ChatMessages
    count: int
    seed: int
    template: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the chat template: `tools`, `enable_thinking`, …"""


@dataclass(frozen=True)
class Draw:
    """One answer as the model gave it; `tokens` are generated ones, the end token included."""

    text: str
    """The final answer."""
    finish: Finish
    seed: int
    tokens: int
    reasoning: str | None = None
    """The thinking before it, of a reasoning model."""
    generated: str | None = None
    """All of it as the model wrote it, where that is not `text`; None too where an endpoint took it apart."""


def to_draw(written: str, opened: bool | None, finish: Finish, seed: int, tokens: int) -> Draw:
    """An answer from what the model wrote; see `split_reasoning` for `opened`."""
    thought, final = split_reasoning(written, opened)
    return Draw(final, finish, seed, tokens, thought, None if thought is None else written)


@dataclass(frozen=True)
class Failed:
    """A request that no retry will cure, and why; the run goes on with the others."""

    reason: str


def copies(draw: Draw, count: int) -> list[Draw]:
    """A greedy answer so many times: servers refuse to draw several where there is one."""
    return [replace(draw, seed=draw.seed + number) for number in range(count)]


class Sampler(Protocol):
    """An engine that answers requests."""

    name: str
    template: ChatTemplate | None
    """The chat template in use; None where the engine does not tell (an endpoint)."""
    window: int | None
    """Most tokens a prompt and its answer may have together; None where unknown."""
    at_a_time: int
    """How many requests `answer` likes to get in one go."""

    def count_tokens(self, messages: ChatMessages, **template: Any) -> int | None:
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


SEEDS = 1 << 20
"""More answers than a prompt ever gets; its seeds lie within so many of the first."""


def next_seed(run_seed: int, prompt: Prompt) -> int:
    """Seed of the next answer: behind those of the answers that the prompt has from runs of the same seed."""
    first = prompt_seed(run_seed, prompt.id)
    used = ((response.model_extra or {}).get("seed") for response in prompt.responses)
    return max((seed + 1 for seed in used if type(seed) is int and 0 <= seed - first < SEEDS), default=first)


def prompt_seed(run_seed: int, prompt_id: str) -> int:
    """Seed of a prompt's first answer: depends on the run's seed and the prompt alone, never on the order."""
    digest = hashlib.sha256(f"{run_seed}\x1f{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 2  # room for `+ i` below 2³¹, which every engine accepts
