"""What all clients of OpenAI-compatible endpoints share: where the key comes from, what an error says, which end a run.

An error is read by its own fields, `message`, `code` and `param`. Many servers send the request back in their error, and
a document may say anything: what it says is no news about the server.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import openai

from judge_pipeline.common.errors import UserError

NO_KEY = "none"
"""Local servers ask for no key, and the client insists on one."""
MESSAGE_CHARS = 2000
PIECE = 24
"""A message's pieces of so many characters that also stand in the request are the request's, not the server's."""
SPENT = re.compile(
    r"insufficient[_ ](quota|balance|credit|funds)|exceeded_current_quota|quota (is )?(spent|exhausted)"
    r"|billing_hard_limit|payment required|credit balance is too low|arrearage",
    re.IGNORECASE,
)
"""How services that send no 402 say that there is no money left."""


@dataclass(frozen=True)
class ErrorSaid:
    """What a server says went wrong, in its own words."""

    message: str
    code: str = ""
    param: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.message, self.code and f"({self.code})") if part)

    def without(self, sent: Iterable[str]) -> ErrorSaid:
        """The same without what the message merely repeats from the texts that were sent."""
        texts = list(sent)
        pieces = [self.message[start : start + PIECE] for start in range(0, len(self.message), PIECE)]
        own = [p for p in pieces if len(p) < PIECE or not any(p in text for text in texts)]
        return replace(self, message="".join(own))


def api_key(variable: str) -> str:
    """The key in an environment variable, or one that servers without keys take."""
    return os.environ.get(variable) or NO_KEY


def error_said(error: openai.APIStatusError) -> ErrorSaid:
    """What the server said, of whatever shape its error is."""
    try:
        text = error.response.text or str(error)
    except RuntimeError:  # the body was never read: only the status is known
        text = str(error)
    try:
        return _said(json.loads(text))
    except ValueError:
        return ErrorSaid(text[:MESSAGE_CHARS])


def _said(body: Any) -> ErrorSaid:
    """`{"error": {…}}`, the fields alone, FastAPI's `{"detail": …}`, a list of any of them, or a bare text."""
    if isinstance(body, list):
        return _said(body[0]) if body else ErrorSaid("")
    if not isinstance(body, dict):
        return ErrorSaid(str(body)[:MESSAGE_CHARS])
    for outer in ("error", "detail", "errors"):
        if body.get(outer):
            return _said(body[outer])
    message = body.get("message") or body.get("msg") or ""
    code = " ".join(str(body[name]) for name in ("code", "type") if body.get(name))
    place = body.get("loc")
    param = body.get("param") or (place[-1] if isinstance(place, list) and place else "")
    return ErrorSaid(str(message)[:MESSAGE_CHARS], code[:200], str(param)[:200])


def out_of_credit(status: int, said: ErrorSaid) -> bool:
    """Whether an error says that the account's money or quota is spent, as opposed to a limit on its pace."""
    return status == 402 or (
        status in (400, 403, 429) and SPENT.search(f"{said.code} {said.message}") is not None
    )


class NotThere(UserError):
    """An endpoint that does not answer at all."""


def unanswered(url: str, error: openai.APIConnectionError) -> NotThere:
    """Nobody answers at an address."""
    return NotThere(
        f"the endpoint {url} does not answer: {error.__cause__ or error!r}",
        "is the server running, and is its address right (it usually ends in /v1)? what is finished is kept",
    )


def lasting_error(status: int, said: ErrorSaid, url: str, model: str, key_hint: str) -> UserError | None:
    """The error to end a run with when no request can succeed any more; None for every other refusal."""
    told = str(said)[:300]
    if out_of_credit(status, said):
        return UserError(
            f"{url}: the account's quota is spent (HTTP {status}): {told}",
            "everything finished is kept; run the same command again when there is quota",
        )
    if status in (401, 403):
        return UserError(f"the endpoint {url} refuses the key (HTTP {status}): {told}", key_hint)
    if status == 404:
        return UserError(
            f"{url} does not know the model '{model}' (HTTP 404: {told})", f"see {url.rstrip('/')}/models"
        )
    return None
