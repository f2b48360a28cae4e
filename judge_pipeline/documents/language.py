"""Which language the prompts are in: Chinese for Chinese documents, English for all others.

In: the document. Out: "zh" or "en". Japanese and Korean texts, which also use Han characters, are "other" and
get the English prompts, like every language besides the two. The English prompts say that the material may be in
any language, that statements and key points stay in the language of the material, and that the analysis may be in
any language, so other languages work as well as the judge reads them.
"""

from __future__ import annotations

from typing import Literal

import regex

Language = Literal["en", "zh"]

_HAN = regex.compile(r"\p{Han}")
_KANA_OR_HANGUL = regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Hangul}]")
_LETTER = regex.compile(r"\p{L}")

SAMPLES, SAMPLE_CHARS = 10, 2000
"""So many places, evenly spread over the document, of so many characters each."""

HAN_SHARE = 0.2
"""A Chinese text with many Latin names and numbers is still Chinese: one Han character says about as much as a
whole English word."""


def detect_language(text: str) -> Language:
    """ "zh" when at least a fifth of the letters are Han and hardly any Japanese or Korean, else "en"."""
    step = max(SAMPLE_CHARS, len(text) // SAMPLES)
    sample = "".join(text[start : start + SAMPLE_CHARS] for start in range(0, len(text), step))
    han = len(_HAN.findall(sample))
    letters = len(_LETTER.findall(sample))
    if not letters or han < HAN_SHARE * letters:
        return "en"
    return "en" if len(_KANA_OR_HANGUL.findall(sample)) > 0.1 * han else "zh"
