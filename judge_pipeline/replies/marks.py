"""Where a judge's reply states its result: `[[8]]`, `Rating: 8`, `[[Partially supported]]`.

These are the marks a sane reader would take for the result, not those that the judge merely quotes:

1. A mark is `[[…]]` (also 【【…】】, full-width brackets, escaped brackets).
2. It counts when it stands behind its label ("Rating: [[8]]"), alone on its line, or at the very start or end
   of the reply. In the middle of a sentence it does not.
3. Inside quotation marks, backticks, code fences or a quoted line (">") it does not, unless nothing else counts
   and it is merely set as code: it fills its line in backticks, or in a fence that ends the reply.
4. Labelled marks outrank the others. If those that count disagree, there is no result: the caller asks again.
   (The last one is not safe: judges go on to quote, and small judges go on to rate an invented next case.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import regex

from judge_pipeline.calls.call import FailureReason


@dataclass(frozen=True)
class Problem:
    """Why a reply holds no result."""

    reason: FailureReason
    detail: str = ""


@dataclass(frozen=True)
class Mark:
    """One `[[…]]`, whose inside begins at `start` of the folded reply."""

    inner: str
    start: int
    labelled: bool
    placed: bool
    quoted: bool
    code: bool
    """Quoted, but only by being set as code (rule 3)."""


Value = TypeVar("Value")

# One character to one, so that positions in the reply stay valid.
_FOLDED = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0x3010: 0x5B, 0x3011: 0x5D}

_MARK = regex.compile(r"\\?\[\\?\[([^\[\]\n]{0,80}?)\\?\]\\?\]")
_QUOTED = regex.compile(
    r"""```.*?(?:```|\Z)|`[^`\n]*`|"[^"\n]*"|“[^”\n]*”|‘[^’\n]*’|«[^»\n]*»|「[^」\n]*」|『[^』\n]*』"""
    r"""|(?<!\w)'[^'\n]*'(?!\w)|^[ \t]*>[^\n]*""",
    regex.DOTALL | regex.MULTILINE,
)
_DRESSING = " \t*_#`\"'“”-–—.。!>:"
_AFTER_RESULT = regex.compile(r"[\s*_`.。!)\]]*(?:/\s*10|out of 10|points?|分)?[\s*_`.。!)\]]*")


def fold(text: str) -> str:
    """Full-width digits, letters, brackets and signs as ASCII, character for character."""
    return text.translate(_FOLDED)


def label_pattern(words: str) -> regex.Pattern[str]:
    """A pattern for "Final rating is: " and the like right before a mark; `words` is an alternation."""
    return regex.compile(
        rf"(?:{words})[\s*_`]*(?:is|of|are|为|是)?[\s*_`]*[:=\-–—]?[\s*_`]*$",
        regex.IGNORECASE | regex.MULTILINE,
    )


def find_marks(text: str, label: regex.Pattern[str]) -> list[Mark]:
    """All marks of a folded text, in order."""
    quoted = [] if _is_one_fence(text) else [match.span() for match in _QUOTED.finditer(text)]
    as_code = [
        (start, end)
        for start, end in quoted
        if text[start] == "`" and (not text.startswith("```", start) or not text[end:].strip())
    ]
    marks = []
    for match in _MARK.finditer(text):
        line_start = text.rfind("\n", 0, match.start()) + 1
        line_end = text.find("\n", match.end())
        line_end = len(text) if line_end < 0 else line_end
        before, after = text[line_start : match.start()], text[match.end() : line_end]
        labelled = label.search(before)
        rest = before[: labelled.start()] if labelled else before
        fills_line = not rest.strip(_DRESSING) and bool(_AFTER_RESULT.fullmatch(after.strip("\"'”")))
        at_start = not text[: match.start()].strip().strip(_DRESSING)
        at_end = bool(_AFTER_RESULT.fullmatch(text[match.end() :]))
        marks.append(
            Mark(
                inner=match.group(1),
                start=match.start(1),
                labelled=labelled is not None,
                placed=fills_line or at_start or at_end,
                quoted=any(start <= match.start() < end for start, end in quoted),
                code=fills_line and any(start <= match.start() < end for start, end in as_code),
            )
        )
    return marks


def _is_one_fence(text: str) -> bool:
    stripped = text.strip()
    return stripped.startswith("```") and stripped.endswith("```") and stripped.count("```") == 2


def choose(
    marks: list[Mark], understand: Callable[[Mark], Value | Problem | None]
) -> tuple[Value, Mark] | Problem | None:
    """The one result the marks agree on; None when no mark counts (rules 2–4 of the module).

    `understand` gives a mark's value, a problem (out of range), or None for a mark about something else.
    """
    understood = [(mark, value) for mark in marks if (value := understand(mark)) is not None]
    counting = (
        [pair for pair in understood if pair[0].labelled and not pair[0].quoted]
        or [pair for pair in understood if pair[0].placed and not pair[0].quoted]
        or [pair for pair in understood if pair[0].code]
    )
    if not counting:
        return None
    if any(value != counting[0][1] for _, value in counting):
        stated = ", ".join(f"[[{mark.inner}]]" for mark, _ in counting)
        return Problem("unparsable", f"the reply states different results: {stated}")
    mark, value = counting[-1]
    return value if isinstance(value, Problem) else (value, mark)
