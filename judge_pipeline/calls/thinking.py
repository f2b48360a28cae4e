"""What a reasoning judge thinks before it replies: set apart, never read as the reply.

Endpoints with a reasoning parser send it in a field of its own (`engines.chat_protocol`). Others leave it in the text,
between tags; the opening one may be missing, where the chat template wrote it, and the closing one too, where the judge
was cut while it thought or never came to an end of it: then there is no reply.
"""

from __future__ import annotations

import re

_NAMES = r"(?:think|thinking|thought|reasoning|seed:think)"
_CLOSING = re.compile(rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_OPENING = re.compile(
    rf"\s*(?:<{_NAMES}>|\[THINK\]|◁think▷|<\|channel\|>analysis<\|message\|>)", re.IGNORECASE
)


def after_thinking(text: str) -> tuple[str, int]:
    """The reply behind a reasoning model's thinking, and where it begins; nothing where thinking never ended."""
    closed = [match.end() for match in _CLOSING.finditer(text)]
    start = closed[-1] if closed else 0
    if _OPENING.match(text, start):
        return "", len(text)
    return text[start:], start
