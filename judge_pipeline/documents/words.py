"""Words, search terms and sentences of a text in any language: the only places where text is split.

Words are for counting and comparing (a contraction is one, a Chinese, Japanese or Korean character too), terms for
searching (case folded, runs of characters as single ones and pairs).
"""

from __future__ import annotations

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
