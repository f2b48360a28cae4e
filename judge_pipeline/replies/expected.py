"""A finer rating or verdict: the expected value over the tokens the judge might have printed.

A judge that prints "8" four times in five and "6" otherwise means 7.6; the printed integer hides that, and ties. So does
a printed "Fully supported" that was nearly a "Partially".

Valid candidates are the integers 0–10 at the rating's first token, renormalised. Where a tokenizer writes 10 as
"1" and "0", the step after a printed "1" tells the two apart; a "1" among the alternatives of another digit is
left out, since nobody asked the model what would have followed it. A printed fraction (8.5) stays on its own
branch. Of a verdict the candidates are the words it might begin with at its first token.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import regex

from judge_pipeline.calls.call import TokenLogprob
from judge_pipeline.replies.marks import fold

MIN_MASS = 0.5
"""With less probability on valid candidates than this the expectation says little: the printed one stands."""

_INTEGER = regex.compile(r"\d+")


class Expectation(NamedTuple):
    """Expected points (0–10, of a verdict 0–1), and the probability the candidates had before renormalising."""

    points: float
    mass: float


def expected_rating(
    text: str, points: float, place: tuple[int, int], logprobs: list[TokenLogprob] | None
) -> Expectation | None:
    """The expected rating of a reply that prints `points` at `place`; None when its tokens do not show one."""
    position = _first_token(text, place, logprobs) if logprobs else None
    if logprobs is None or position is None:
        return None
    index, prefix = position
    chances = _candidates(logprobs, index, prefix, text[place[0] : place[1]])
    mass = sum(chances.values())
    if mass < MIN_MASS:
        return None
    printed = int(points)
    fraction = points - printed
    total = sum((value + fraction * (value == printed)) * chance for value, chance in chances.items())
    return Expectation(min(10.0, total / mass), min(1.0, mass))


def expected_verdict(
    text: str,
    printed: float,
    place: tuple[int, int],
    worth: Mapping[str, float],
    logprobs: list[TokenLogprob] | None,
) -> Expectation | None:
    """The expected points of a reply whose verdict, worth `printed`, stands at `place`; None as for a rating.

    `worth` maps the words of each verdict to its points. What the judge did print is that verdict in whatever words.
    """
    position = _first_token(text, place, logprobs) if logprobs else None
    if logprobs is None or position is None:
        return None
    token, prefix = logprobs[position[0]], position[1]
    mass = total = 0.0
    for alternative, chance in _alternatives(token).items():
        begun = _begun(alternative, prefix, worth) if alternative != token.token else {printed}
        if len(begun) == 1:
            mass += chance
            total += chance * begun.pop()
    return Expectation(total / mass, min(1.0, mass)) if mass >= MIN_MASS else None


def _begun(alternative: str, prefix: str, worth: Mapping[str, float]) -> set[float]:
    """Points of the verdicts that an alternative begins behind the same prefix."""
    rest = (_behind(alternative, prefix) or "").casefold()
    pairs = ((words.casefold(), points) for words, points in worth.items())
    return {points for words, points in pairs if rest and (words.startswith(rest) or rest.startswith(words))}


# Characters before and after the number that are looked up among the tokens, the widest first.
_WINDOWS = ((10**9, 10**9), (40, 8), (20, 8), (12, 6), (10, 2), (6, 2), (4, 2))


def _first_token(text: str, place: tuple[int, int], logprobs: list[TokenLogprob]) -> tuple[int, str] | None:
    """Index of the token the rating begins in, and what that token holds before the number."""
    target = _aligned(text, place, "".join(token.token for token in logprobs))
    if target is None:
        return None
    starts = list(accumulate((len(token.token) for token in logprobs), initial=0))
    index = bisect_right(starts, target) - 1
    return index, logprobs[index].token[: target - starts[index]]


def _aligned(text: str, place: tuple[int, int], joined: str) -> int | None:
    """Where the rating stands in the joined tokens.

    They need not equal the reply: the engine may have stripped a reasoning block, and a token that holds half a
    character reads as a replacement mark. So the number is looked up with as much around it as both agree on.
    """
    for before, after in _WINDOWS:
        start = max(0, place[0] - before)
        window = text[start : place[1] + after]
        if window not in joined or text.count(window) != joined.count(window):
            continue
        at = -1
        for _ in range(text[:start].count(window) + 1):
            at = joined.find(window, at + 1)
        return at + place[0] - start if at >= 0 else None
    return None


def _candidates(logprobs: list[TokenLogprob], index: int, prefix: str, printed: str) -> dict[int, float]:
    """Probability of each integer 0–10 at token `index`."""
    token = logprobs[index]
    chances: dict[int, float] = defaultdict(float)
    for alternative, chance in _alternatives(token).items():
        value = _leading_integer(alternative, prefix)
        if value == "1" and fold(alternative).endswith("1"):
            if alternative != token.token:
                continue  # 1 or 10: unknown
            for number, share in _one_or_ten(logprobs, index + 1, printed).items():
                chances[number] += chance * share
        elif value is not None and int(value) <= 10:
            chances[int(value)] += chance
    return chances


def _alternatives(token: TokenLogprob) -> dict[str, float]:
    return {text: math.exp(value) for text, value in {**token.top, token.token: token.logprob}.items()}


def _leading_integer(alternative: str, prefix: str) -> str | None:
    """The integer an alternative begins with behind the same prefix."""
    match = _INTEGER.match(_behind(alternative, prefix) or "")
    return match.group() if match else None


def _behind(alternative: str, prefix: str) -> str | None:
    """What an alternative holds, folded, behind the same prefix (white space may differ); None behind another."""
    folded, before = fold(alternative), fold(prefix)
    if before.strip():
        if not folded.startswith(before):
            return None
        folded = folded[len(before) :]
    return folded.lstrip()


def _one_or_ten(logprobs: list[TokenLogprob], after: int, printed: str) -> dict[int, float]:
    """How a printed "1" splits between 1 and 10, from the token that follows it."""
    if after >= len(logprobs):
        return {int(float(printed.replace(",", "."))): 1.0}
    digits = ten = rest = 0.0
    for alternative, chance in _alternatives(logprobs[after]).items():
        match = _INTEGER.match(fold(alternative))
        if match is None:
            rest += chance
        elif match.group() == "0":
            ten += chance
        else:
            digits += chance  # 11 to 19: no rating, left out
    return {1: rest, 10: ten} if digits + rest + ten > 0 else {}
