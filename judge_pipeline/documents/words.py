"""Words, search terms and sentences of a text in any language, and which language the prompts about it are in.

Words are for counting and comparing (a contraction is one, a Chinese, Japanese or Korean character too), terms for
searching (case folded, runs of characters as single ones and pairs).
"""

from __future__ import annotations

from typing import Literal

import regex

_WORD = regex.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+(?:['’][^\W_]+)?")


def words(text: str) -> list[str]:
    """Lower-cased words of a text; Chinese, Japanese and Korean characters one by one."""
    return _WORD.findall(text.lower())


_HAN_OR_KANA = r"\p{Han}\p{Hiragana}\p{Katakana}"
_TERM = regex.compile(rf"[{_HAN_OR_KANA}]+|[\p{{L}}\p{{M}}\p{{N}}--[{_HAN_OR_KANA}]]+", regex.VERSION1)
_UNSPACED = regex.compile(rf"[{_HAN_OR_KANA}]")


def terms(text: str) -> list[str]:
    """Search terms of any language: words, folded; in scripts without spaces, characters and their pairs."""
    found: list[str] = []
    for match in _TERM.finditer(text.casefold()):
        run = match.group()
        if _UNSPACED.match(run):
            found.extend(run)
            found.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            found.append(run)
    return found


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Offsets of the sentences of a text in any language, blank ones left out."""
    import sentencex

    # Its rules for English split 。 and ！ as well; they are only used to choose abbreviations.
    bounds = sentencex.get_sentence_boundaries("en", text)
    spans = [(bound["start_index"], bound["end_index"]) for bound in bounds]
    return [(start, end) for start, end in spans if text[start:end].strip()]


def sentences(text: str) -> list[str]:
    """The sentences that hold a word, without white space around them."""
    found = (text[start:end].strip() for start, end in sentence_spans(text))
    return [sentence for sentence in found if words(sentence)]


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
    """ "zh" when at least a fifth of the letters are Han and hardly any Japanese or Korean, else "en".

    The English prompts serve every other language: they say that the material may be in any.
    """
    step = max(SAMPLE_CHARS, len(text) // SAMPLES)
    sample = "".join(text[start : start + SAMPLE_CHARS] for start in range(0, len(text), step))
    han = len(_HAN.findall(sample))
    letters = len(_LETTER.findall(sample))
    if not letters or han < HAN_SHARE * letters:
        return "en"
    return "en" if len(_KANA_OR_HANGUL.findall(sample)) > 0.1 * han else "zh"
