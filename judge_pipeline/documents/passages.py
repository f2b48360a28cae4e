"""Segments as a judge reads them: in whole sentences, so that none begins or ends in the middle of a word or a claim.

What is searched are segments of so many tokens, as in the paper; its code also shows them so, cut where the tokens
end. Here each is shown with the rest of the sentences at its two edges. A sentence that goes on for more than
`CONTEXT` characters beyond a segment is cut at a word border, and an ellipsis says so. A sentence that two neighbours
share is shown with the first.
"""

from __future__ import annotations

from collections.abc import Iterable

import regex

from judge_pipeline.documents.words import sentence_spans

CONTEXT = 300
"""Characters shown beyond a segment at most, at either edge."""
BREAK = "…"
"""Where a passage begins or ends within a sentence."""

_UNSPACED = r"\s\p{Han}\p{Hiragana}\p{Katakana}"
_BORDER = regex.compile(rf"(?<=[{_UNSPACED}])|(?=[{_UNSPACED}])")
"""No word goes on: white space, or a character of a script without spaces, is beside the place."""


def passages(text: str, spans: Iterable[tuple[int, int]]) -> list[str]:
    """What is shown of `text` for each of the spans, in document order; a span that adds nothing is left out."""
    shown: list[str] = []
    reached, ended_whole = 0, True
    for start, end in sorted(spans):
        first, begins_whole = _begin(text, start)
        last, ends_whole = _end(text, end)
        if first < reached:
            first, begins_whole = reached, ended_whole
        if piece := text[first:last].strip():
            shown.append(f"{'' if begins_whole else BREAK}{piece}{'' if ends_whole else BREAK}")
            reached, ended_whole = last, ends_whole
    return shown


def _begin(text: str, place: int) -> tuple[int, bool]:
    """Where the sentence around `place` begins, or a word of it at most `CONTEXT` before; whether it is the former."""
    window = max(0, place - CONTEXT)
    for start, end in sentence_spans(text[window : place + CONTEXT]):
        if start <= place - window < end:
            whole = start > 0 or window == 0
            return (window + start, True) if whole else (_border(text, window, place, 1), False)
    return place, True


def _end(text: str, place: int) -> tuple[int, bool]:
    """Where the sentence of the character before `place` ends, or a word of it at most `CONTEXT` on; which of both."""
    window, limit = max(0, place - CONTEXT), min(len(text), place + CONTEXT)
    for start, end in sentence_spans(text[window:limit]):
        if start < place - window <= end:
            whole = window + end < limit or limit == len(text)
            return (window + end, True) if whole else (_border(text, limit, place, -1), False)
    return place, True


def _border(text: str, place: int, segment: int, step: int) -> int:
    """The first word border from `place` towards the segment; the segment's own edge when there is none."""
    return next((at for at in range(place, segment, step) if _BORDER.match(text, at)), segment)
