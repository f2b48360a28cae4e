"""Control tokens of a model, as its own tokenizer tells them, kept out of the texts that it reads.

A chat template separates turns by tokens that have a spelling; a document that holds the spelling would begin a turn of
its own. Which tokens these are, no list can know: they are the tokenizer's special tokens, and every other token that
it was given whole and that its chat template uses.
"""

from __future__ import annotations

import re
from functools import lru_cache, partial
from typing import Any

BREAKS = ("\u200b", " ")
"""What comes between the first two characters of a spelling: invisible, or a blank where the tokenizer drops that."""


@lru_cache(maxsize=16)
def _spellings(tokenizer: Any) -> re.Pattern[str] | None:
    template = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    tokens = {str(token) for token in added if token.special or str(token) in template}
    tokens = {token for token in (*tokens, *tokenizer.all_special_tokens) if len(token) > 1 and token.strip()}
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first))) if tokens else None


def _broken(space: str, found: re.Match[str]) -> str:
    return found[0][0] + space + found[0][1:]


def without_control_tokens(tokenizer: Any, text: str) -> str:
    """The text with the spellings of control tokens broken; everything else is unchanged."""
    spellings = _spellings(tokenizer)
    if spellings is None or spellings.search(text) is None:
        return text
    control = {
        index for index, token in tokenizer.added_tokens_decoder.items() if spellings.fullmatch(str(token))
    }
    broken = text
    for space in BREAKS:
        broken = spellings.sub(partial(_broken, space), text)
        if control.isdisjoint(tokenizer(broken, add_special_tokens=False)["input_ids"]):
            break
    return broken
