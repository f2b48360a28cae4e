"""What all clients of OpenAI-compatible endpoints share: where the key comes from, and which errors end a run."""

from __future__ import annotations

import os

import openai

from judge_pipeline.common.errors import UserError

NO_KEY = "none"
"""Local servers ask for no key, and the client insists on one."""


def api_key(variable: str) -> str:
    """The key in an environment variable, or one that servers without keys take."""
    return os.environ.get(variable) or NO_KEY


def message_of(error: openai.APIStatusError) -> str:
    """What the server said, as text."""
    try:
        return error.response.text or str(error)
    except RuntimeError:  # the body was never read: only the status is known
        return str(error)


def unanswered(url: str, error: openai.APIConnectionError) -> UserError:
    """Nobody answers at an address."""
    return UserError(
        f"the endpoint {url} does not answer: {error.__cause__ or error!r}",
        "is the server running, and is its address right (it usually ends in /v1)? what is finished is kept",
    )


def lasting_error(error: openai.APIStatusError, url: str, model: str, key_hint: str) -> UserError | None:
    """The error to end a run with when no request can succeed any more; None for every other refusal."""
    status, said = error.status_code, message_of(error)[:300]
    if status in (401, 403):
        return UserError(f"the endpoint {url} refuses the key (HTTP {status}): {said}", key_hint)
    if status == 404:
        return UserError(
            f"{url} does not know the model '{model}' (HTTP 404: {said})", f"see {url.rstrip('/')}/models"
        )
    if status == 429 and "insufficient_quota" in said:
        return UserError(
            f"{url}: the account's quota is spent: {said}",
            "everything finished is kept; run the same command again when there is quota",
        )
    return None
