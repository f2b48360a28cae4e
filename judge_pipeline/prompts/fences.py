"""Text of others, put into a prompt so that it stays text.

It stands inside `<name-nonce> … </name-nonce>`. The nonce is a hash of the content, which a writer cannot put into the
content beforehand; and the same content always gets the same fence, so equal questions stay equal calls.

Markers that chat templates turn into control tokens (`<|im_start|>`, `[INST]`, `</s>`, …) are broken by an
invisible character: an engine that tokenises the rendered chat would otherwise see a new turn begin there.
"""

from __future__ import annotations

import hashlib

import regex

_CONTROL = regex.compile(
    r"<(?=\|[^|<>\n]{1,40}\|>)|<(?=｜[^｜<>\n]{1,40}｜>)|<(?=/?s>)|<(?=(?:bos|eos|pad|unk|mask)>)"
    r"|<(?=(?:start|end)_of_(?:turn|image|text)>)|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\])"
    r"|<(?=<SYS>>|</SYS>>|</?SYS>>)|\[(?=g?MASK\]|sop\])|<(?=/?(?:think|tool_call|im_start|im_end)>)"
)
_BREAK = "\u200b"


def escape_control_tokens(text: str) -> str:
    """The text with control-token markers broken; everything else is unchanged."""
    return _CONTROL.sub(lambda match: match.group() + _BREAK, text)


def fence(name: str, content: str) -> str:
    """`content` between tags that it cannot contain."""
    content = escape_control_tokens(content)
    nonce = _nonce(content)
    return f"<{name}-{nonce}>\n{content}\n</{name}-{nonce}>"


def _nonce(content: str) -> str:
    """Six characters that the content does not hold."""
    seed = hashlib.sha256(content.encode()).hexdigest()
    while (nonce := seed[:6]) in content:
        seed = hashlib.sha256(seed.encode()).hexdigest()
    return nonce


def one_line(text: str) -> str:
    """White space of any kind as single blanks: the text cannot begin a line of its own."""
    return " ".join(text.split())


def numbered(prefix: str, items: list[str]) -> str:
    """One line an item: `S1: …`, `S2: …`."""
    return "\n".join(f"{prefix}{number}: {one_line(item)}" for number, item in enumerate(items, start=1))


def marked(items: list[str]) -> str:
    """Each item below a line that none of them can hold: `<P1-1a2b3c>`, `<P2-1a2b3c>`; they keep their lines."""
    nonce = _nonce("\n".join(items))
    return "\n".join(f"<P{number}-{nonce}>\n{item}" for number, item in enumerate(items, start=1))
