"""Documents cut into pieces of so many tokens, with character offsets.

Deviation from the paper's code, which decodes slices of token ids: under byte-level BPE one Chinese character
is several tokens, and a slice may begin in its middle. We only ever cut the *text*, at offsets where a token
and a grapheme (an accented letter, a flag, an emoji family) both begin. A piece may thus be a few tokens short of
full; only a single grapheme longer than a whole piece makes one longer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError

Offsets_T_2 = npt.NDArray[np.int64]
"""For each token the characters it stands for, [start, end), in order."""

BLOCK_CHARS = 400_000
"""Longer texts are tokenized in blocks: a tokenizer needs hundreds of bytes a character while it works."""

_GRAPHEME = regex.compile(r"\X")
_SURELY_TWO = regex.compile(r"\p{GCB=Other}{2}")
"""Characters that Unicode's rules never join, whatever stands around them (UAX 29, GB999)."""


@dataclass(frozen=True, slots=True)
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

    def offsets(self, text: str) -> Offsets_T_2:
        """Character offsets of each token (T, 2), without special tokens."""
        parts = [
            np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2) + start
            for start, encoded in self._encoded(text)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)

    def count(self, text: str) -> int:
        """How many tokens the text has, without special tokens."""
        return sum(len(encoded) for _, encoded in self._encoded(text))

    def _encoded(self, text: str) -> Iterator[tuple[int, Any]]:
        for start, end in blocks(text):
            yield start, self._tokenizer.encode(text[start:end], add_special_tokens=False)

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


def blocks(text: str) -> Iterator[tuple[int, int]]:
    """Parts of at most `BLOCK_CHARS`, cut before white space, where no tokenizer joins what it parts.

    A text without white space for so long is cut wherever the block is full, between two characters.
    """
    start = 0
    while len(text) - start > BLOCK_CHARS:
        end = start + BLOCK_CHARS
        spaces = (text.rfind(space, start + 1, end) for space in "\n ")
        end = next((place for place in spaces if place > start), end)
        yield start, end
        start = end
    if start < len(text):
        yield start, len(text)


def cut(text: str, offsets: Offsets_T_2 | Sequence[tuple[int, int]], size: int) -> list[Span]:
    """Cut `text` into spans of at most `size` tokens each (see the module's docstring).

    The spans are contiguous: the first starts at 0, the last ends at `len(text)`. An empty text has none.
    """
    if size < 1:
        raise ValueError(f"size is {size}; a piece holds at least one token")
    if not text:
        return []
    offsets_T_2 = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    starts_T = _clean_starts(offsets_T_2)
    bounds = [0]
    first = 0  # index of the current piece's first token
    while first + size < len(offsets_T_2):
        index = _cut_before(text, offsets_T_2[:, 0], starts_T, bounds[-1], first, first + size)
        if index is None:
            break
        bounds.append(int(offsets_T_2[index, 0]))
        first = index
    bounds.append(len(text))
    return [Span(start, end) for start, end in pairwise(bounds)]


def _clean_starts(offsets_T_2: Offsets_T_2) -> npt.NDArray[np.bool_]:
    """For each token (T,), whether it begins after the end of all tokens before it (not inside a character)."""
    start_T, end_T = offsets_T_2.T
    reached_T = np.maximum.accumulate(np.concatenate([[-1], end_T]))[:-1]
    return np.asarray((start_T >= reached_T) & (end_T > start_T))


def _cut_before(
    text: str,
    begins_T: npt.NDArray[np.int64],
    starts_T: npt.NDArray[np.bool_],
    piece_start: int,
    first: int,
    limit: int,
) -> int | None:
    """The last token at or before `limit` that a piece may begin with; else the first after it; else None."""

    def fits(index: int) -> bool:
        place = int(begins_T[index])
        return bool(starts_T[index]) and place > piece_start and _parts_graphemes(text, place, piece_start)

    before = (index for index in range(limit, first, -1) if fits(index))
    # One grapheme fills the whole piece: it stays whole, and the piece is longer than asked.
    after = (index for index in range(limit + 1, len(begins_T)) if fits(index))
    return next(before, None) or next(after, None)


def _parts_graphemes(text: str, place: int, known: int) -> bool:
    """Whether a grapheme begins at `place`; one surely does at `known`, somewhere before it."""
    if _SURELY_TWO.match(text, place - 1, place + 1):
        return True
    sure = place - 1
    while sure > known and not _SURELY_TWO.match(text, sure - 1, sure + 1):
        sure -= 1
    return any(match.start() == place for match in _GRAPHEME.finditer(text, sure, place + 1))
