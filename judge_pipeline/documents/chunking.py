"""Documents cut into pieces of so many tokens, with character offsets.

Deviation from the paper's code, which decodes slices of token ids: under byte-level BPE one Chinese character
is several tokens, and a slice may begin in its middle. We only ever cut the *text*, at offsets where a token
and a grapheme (an accented letter, a flag, an emoji family) both begin. A piece may thus be a few tokens short of
full; only a single grapheme longer than a whole piece makes one longer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import regex

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError

Offsets = Sequence[tuple[int, int]]
"""For each token the characters it stands for, [start, end), in order."""

_GRAPHEME = regex.compile(r"\X")


@dataclass(frozen=True)
class Span:
    """A piece of the document: `context[start:end]`, with the retrieval score that chose it."""

    start: int
    end: int
    score: float = 0.0


class FastTokenizer:
    """A `tokenizers` tokenizer from a model folder, a `tokenizer.json`, or a hub id.

    Truncation and padding that the file may carry are switched off: a chunk is never cut silently.
    """

    def __init__(self, name: str) -> None:
        from tokenizers import Tokenizer

        path = Path(name) if Path(name).is_file() else Path(resolve_model(name))
        file = path if path.is_file() else path / "tokenizer.json"
        there = file.is_file()
        self._tokenizer = Tokenizer.from_file(str(file)) if there else _from_transformers(name, str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = name

    def offsets(self, text: str) -> Offsets:
        """Character offsets of each token, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).offsets

    def count(self, text: str) -> int:
        """How many tokens the text has, without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def unknown_share(self, text: str) -> float:
        """Share of the text's tokens that the tokenizer does not know, 0–1."""
        settings = json.loads(self._tokenizer.to_str())["model"]
        unknown = settings.get("unk_token")
        tokens = self._tokenizer.encode(text, add_special_tokens=False).tokens
        return tokens.count(unknown) / len(tokens) if unknown and tokens else 0.0


def _from_transformers(name: str, path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer at '{name}': {str(error).splitlines()[0]}",
            "name a folder that holds tokenizer.json",
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer '{name}' is not a fast one, so it cannot say where its tokens lie in the text",
            "name one that comes with a tokenizer.json",
        )
    return tokenizer.backend_tokenizer


def cut(text: str, offsets: Offsets, size: int) -> list[Span]:
    """Cut `text` into spans of at most `size` tokens each (see the module's docstring).

    The spans are contiguous: the first starts at 0, the last ends at `len(text)`. An empty text has none.
    """
    if size < 1:
        raise ValueError(f"size is {size}; a piece holds at least one token")
    if not text:
        return []
    starts = _clean_starts(offsets)
    bounds = [0]
    first = 0  # index of the current piece's first token
    while first + size < len(offsets):
        index = _cut_before(text, offsets, starts, bounds[-1], first, first + size)
        if index is None:
            break
        bounds.append(offsets[index][0])
        first = index
    bounds.append(len(text))
    return [Span(start, end) for start, end in pairwise(bounds)]


def _clean_starts(offsets: Offsets) -> list[bool]:
    """For each token, whether it begins after the end of all tokens before it (not inside a character)."""
    reached = accumulate((end for _, end in offsets), max, initial=-1)
    return [start >= before and end > start for (start, end), before in zip(offsets, reached, strict=False)]


def _cut_before(
    text: str, offsets: Offsets, starts: list[bool], piece_start: int, first: int, limit: int
) -> int | None:
    """The last token at or before `limit` that a piece may begin with; else the first after it; else None."""
    end = (
        offsets[min(limit, len(offsets) - 1)][1] + 64
    )  # a little more, so that the last grapheme is seen whole
    graphemes = {match.start() for match in _GRAPHEME.finditer(text, piece_start, min(len(text), end))}
    for index in range(limit, first, -1):
        if starts[index] and offsets[index][0] > piece_start and offsets[index][0] in graphemes:
            return index
    # One grapheme fills the whole piece: it stays whole, and the piece is longer than asked.
    index = limit + 1
    for match in _GRAPHEME.finditer(text, piece_start):
        place = match.start()
        while index < len(offsets) and offsets[index][0] < place:
            index += 1
        if index == len(offsets):
            return None
        if place > piece_start and offsets[index][0] == place and starts[index]:
            return index
    return None
