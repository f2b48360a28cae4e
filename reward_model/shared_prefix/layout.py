"""Where the prefix, the answers and the scores of several prompts lie in one token sequence.

In: for every prompt the length of its prefix (document and question) and of each of its answers.
Out: the token order ``[prefix | answer 1 | … | answer N]`` prompt after prompt, the position of every token
(an answer restarts at its prefix's length, as if the other answers were not there), the token whose hidden
state scores an answer (its last), the tokens whose log-probabilities make a completion (DPO), and which keys
each stretch of queries may see. Pure arithmetic: no model, no tokenizer, no device until a tensor is asked for.

The paper scores every answer in a sequence of its own; one sequence gives the same numbers (see ``attention``)
for p + N·r instead of N·(p + r) tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from judge_pipeline.common.errors import UserError

Span = tuple[int, int]
Ids = NDArray[np.int32]
TokenIds = Sequence[int] | Ids


@dataclass(frozen=True, slots=True)
class PromptShape:
    """Token counts of one prompt: its prefix and each of its answers, all at least 1.

    Raises:
        ValueError: a length below 1, or no answer.
    """

    prefix_length: int
    answer_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer_lengths", tuple(self.answer_lengths))
        if self.prefix_length < 1:
            raise ValueError(f"a prefix has at least one token, got {self.prefix_length}")
        if not self.answer_lengths:
            raise ValueError("a prompt has at least one answer")
        if min(self.answer_lengths) < 1:
            raise ValueError(f"an answer has at least one token, got lengths {list(self.answer_lengths)}")

    @property
    def total(self) -> int:
        """Tokens of the shared sequence, p + Σ rᵢ."""
        return self.prefix_length + sum(self.answer_lengths)

    @property
    def total_one_by_one(self) -> int:
        """Tokens of the answers in sequences of their own, Σ (p + rᵢ)."""
        return self.prefix_length * len(self.answer_lengths) + sum(self.answer_lengths)

    @property
    def longest(self) -> int:
        """Largest position + 1, which the model's window must hold: p + max rᵢ."""
        return self.prefix_length + max(self.answer_lengths)


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of one prompt: its prefix, and its answers with their end tokens."""

    prefix: Ids
    answers: tuple[Ids, ...]
    bare: Ids | None = field(default=None, kw_only=True)
    """The prefix without its document: the question alone."""

    @classmethod
    def of(
        cls, prefix: Sequence[int], answers: Iterable[Sequence[int]], bare: Sequence[int] | None = None
    ) -> EncodedPrompt:
        """From lists of ids."""
        return cls(
            np.asarray(prefix, np.int32),
            tuple(np.asarray(answer, np.int32) for answer in answers),
            bare=None if bare is None else np.asarray(bare, np.int32),
        )

    def withheld(self) -> EncodedPrompt:
        """The same answers behind the question alone, the document withheld.

        Raises:
            ValueError: it was encoded without that.
        """
        if self.bare is None:
            raise ValueError("this prompt was encoded without its bare question")
        return EncodedPrompt(self.bare, self.answers)

    @property
    def shape(self) -> PromptShape:
        """Token counts, for planning."""
        return PromptShape(len(self.prefix), tuple(map(len, self.answers)))

    @property
    def ids(self) -> tuple[Ids, tuple[Ids, ...]]:
        """(prefix, answers), as ``join_ids`` takes them."""
        return self.prefix, self.answers

    def fitting(self, window: int) -> list[bool]:
        """For each answer whether it fits the window together with the prefix."""
        return [len(self.prefix) + len(answer) <= window for answer in self.answers]

    def keep(self, wanted: Iterable[bool]) -> EncodedPrompt | None:
        """The prompt with some of its answers; None without any."""
        kept = tuple(answer for answer, keep in zip(self.answers, wanted, strict=True) if keep)
        return EncodedPrompt(self.prefix, kept, bare=self.bare) if kept else None


@dataclass(frozen=True, slots=True)
class Row:
    """A stretch of queries: causal over its own keys, which follow every key of ``context``.

    ``query`` and ``own`` have the same length; ``context`` may be empty. Spans are half-open token indices.
    """

    query: Span
    own: Span
    context: Span

    @property
    def length(self) -> int:
        """Number of queries."""
        return self.query[1] - self.query[0]

    @property
    def context_length(self) -> int:
        """Number of keys before the row's own."""
        return self.context[1] - self.context[0]


@dataclass(frozen=True)
class Layout:
    """The packed sequence of one or more prompts; answers are counted prompt by prompt, A in all, T tokens."""

    prompts: tuple[PromptShape, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if not self.prompts:
            raise ValueError("a layout has at least one prompt")

    @classmethod
    def of(cls, prefix_length: int, answer_lengths: Iterable[int]) -> Layout:
        """The layout of a single prompt."""
        return cls((PromptShape(prefix_length, tuple(answer_lengths)),))

    @cached_property
    def total(self) -> int:
        """T, tokens in the sequence."""
        return sum(prompt.total for prompt in self.prompts)

    @cached_property
    def total_one_by_one(self) -> int:
        """Tokens that independent sequences would hold."""
        return sum(prompt.total_one_by_one for prompt in self.prompts)

    @cached_property
    def longest(self) -> int:
        """Largest position + 1."""
        return max(prompt.longest for prompt in self.prompts)

    @cached_property
    def prefix_spans(self) -> tuple[Span, ...]:
        """Token span of each prompt's prefix."""
        spans, start = [], 0
        for prompt in self.prompts:
            spans.append((start, start + prompt.prefix_length))
            start += prompt.total
        return tuple(spans)

    @cached_property
    def answer_spans(self) -> tuple[Span, ...]:
        """Token span of each answer, A in all."""
        spans = []
        for prompt, (_, start) in zip(self.prompts, self.prefix_spans, strict=True):
            for length in prompt.answer_lengths:
                spans.append((start, start + length))
                start += length
        return tuple(spans)

    @cached_property
    def answer_prompt(self) -> tuple[int, ...]:
        """For each answer, the index of its prompt."""
        return tuple(i for i, prompt in enumerate(self.prompts) for _ in prompt.answer_lengths)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """What each token may attend to: a prefix to itself, an answer to its prefix and itself."""
        rows, answers = [], iter(self.answer_spans)
        for prompt, prefix in zip(self.prompts, self.prefix_spans, strict=True):
            rows.append(Row(prefix, prefix, (prefix[0], prefix[0])))
            for _ in prompt.answer_lengths:
                span = next(answers)
                rows.append(Row(span, span, prefix))
        return tuple(rows)

    def position_ids(self, device: torch.device | str | None = None) -> torch.Tensor:
        """``(1, T)`` int64 positions; every answer restarts at its prefix's length."""
        starts = [row.query[0] - row.context_length for row in self.rows]
        lengths = torch.tensor([row.length for row in self.rows])
        shift = torch.repeat_interleave(torch.tensor(starts), lengths)
        return (torch.arange(self.total) - shift).unsqueeze(0).to(device)

    def score_index(self, device: torch.device | str | None = None) -> torch.Tensor:
        """``(A,)`` int64 index of each answer's last token, whose hidden state is scored."""
        return torch.tensor([stop - 1 for _, stop in self.answer_spans], device=device)

    def completion_target_index(self, device: torch.device | str | None = None) -> torch.Tensor:
        """``(C,)`` int64 indices of all answer tokens, answer after answer: what is predicted."""
        return torch.cat([torch.arange(*span) for span in self.answer_spans]).to(device)

    def completion_logit_index(self, device: torch.device | str | None = None) -> torch.Tensor:
        """``(C,)`` int64 indices of the tokens that predict ``completion_target_index``.

        An answer's first token is predicted by the last token of its prefix, wherever the answer lies.
        """
        pieces = []
        for (start, stop), prompt in zip(self.answer_spans, self.answer_prompt, strict=True):
            pieces += [torch.tensor([self.prefix_spans[prompt][1] - 1]), torch.arange(start, stop - 1)]
        return torch.cat(pieces).to(device)

    def completion_answer(self, device: torch.device | str | None = None) -> torch.Tensor:
        """``(C,)`` int64 index of the answer each completion token belongs to (for ``index_add``)."""
        lengths = torch.tensor([stop - start for start, stop in self.answer_spans])
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)

    def split(self, values_A: Any) -> list[Any]:
        """Cut a list or tensor with one entry an answer into one piece a prompt."""
        pieces: list[Any] = []
        start = 0
        for prompt in self.prompts:
            stop = start + len(prompt.answer_lengths)
            pieces.append(values_A[start:stop])
            start = stop
        return pieces


def join_ids(
    prompts: Sequence[tuple[TokenIds, Sequence[TokenIds]]], device: torch.device | str | None = None
) -> tuple[torch.Tensor, Layout]:
    """Lay ``(prefix ids, [answer ids, …])`` prompts out as one sequence: ``(1, T)`` int64 ids and its layout."""
    layout = Layout(tuple(PromptShape(len(prefix), tuple(map(len, answers))) for prefix, answers in prompts))
    parts = [ids for prefix, answers in prompts for ids in (prefix, *answers)]
    return join_parts(parts, device), layout


def join_parts(parts: Sequence[TokenIds], device: torch.device | str | None = None) -> torch.Tensor:
    """Token ids one behind another as ``(1, T)`` int64."""
    return torch.from_numpy(np.concatenate([np.asarray(part, np.int64) for part in parts])[None]).to(device)


def pack(shapes: Sequence[PromptShape], token_budget: int, sort: bool = False) -> list[list[int]]:
    """Group prompts into sequences of at most ``token_budget`` tokens; a prompt is never split.

    Args:
        shapes: the prompts.
        token_budget: largest sequence, in tokens.
        sort: ``False`` keeps the order and closes a sequence when the next prompt does not fit;
            ``True`` fills fewer sequences by first fit decreasing.

    Returns:
        Indices into ``shapes``, one list a sequence; each index exactly once.

    Raises:
        UserError: one prompt alone is over the budget.
    """
    for index, shape in enumerate(shapes):
        if shape.total > token_budget:
            raise UserError(
                f"prompt {index} needs {shape.total} tokens ({shape.prefix_length} of prefix and "
                f"{len(shape.answer_lengths)} answers), over the token budget of {token_budget}",
                hint=f"raise the token budget to at least {shape.total}, or give the prompt fewer answers at a time",
            )
    order = range(len(shapes))
    if sort:
        order = sorted(order, key=lambda i: -shapes[i].total)  # type: ignore[assignment]
    groups: list[list[int]] = []
    room: list[int] = []
    for index in order:
        need = shapes[index].total
        candidates = range(len(groups)) if sort else range(max(len(groups) - 1, 0), len(groups))
        for group in candidates:
            if room[group] >= need:
                groups[group].append(index)
                room[group] -= need
                break
        else:
            groups.append([index])
            room.append(token_budget - need)
    return groups
