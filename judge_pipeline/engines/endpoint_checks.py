"""What is looked at before a run asks anything: is the endpoint there, does it take the key, know the model, keep to schemas?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import openai

from judge_pipeline.calls.call import Call, Message, Sampling
from judge_pipeline.calls.thinking import after_thinking
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.chat_protocol import inside
from judge_pipeline.engines.endpoint import KEY_HINT, EndpointEngine
from judge_pipeline.engines.endpoint_errors import NotThere, error_said, lasting_error, unanswered

FORCED = "quagga-7"
"""What only the schema says: whoever answers with it was held to the schema."""
PROBE = Call(
    template="probe",
    messages=(Message(role="user", content="Which colour has a clear sky at noon? Answer in one word."),),
    sampling=Sampling(max_tokens=2048),
    json_schema={
        "type": "object",
        "properties": {
            "analysis": {"type": "string", "maxLength": 200},
            "names": {
                "type": "array",
                "items": {"type": "string", "minLength": 1, "maxLength": 40},
                "maxItems": 2,
            },
            "numbers": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1, "maximum": 9},
                "maxItems": 2,
            },
            "rating": {"type": "integer", "enum": list(range(11))},
            "word": {"type": "string", "enum": [FORCED]},
        },
        "required": ["analysis", "names", "numbers", "rating", "word"],
        "additionalProperties": False,
    },
)
"""A question whose answer has its shape from the schema alone, with every keyword that the judge's own schemas use."""
OTHER_ROOM = {"truncated": 8192, "context_too_long": 256}
"""Tokens for a judge that thinks at length, and for one with a small window."""


async def check_endpoint(engine: EndpointEngine, *, attempts: int = 3, unlisted: bool = False) -> None:
    """Check that the endpoints are there, take the key and know the model; take their context window.

    A run that would fail on every call fails here, in a second. Raises UserError with the way out. Where one of several
    endpoints is not there, the others begin. `unlisted` models are not looked for in the endpoint's list.
    """
    model, endpoints = engine.model, engine.endpoints
    found = await asyncio.gather(
        *(_models(one.client, one.url, model, attempts) for one in endpoints), return_exceptions=True
    )
    absent = [one for one in found if isinstance(one, NotThere)]
    windows = []
    for endpoint, models in zip(endpoints, found, strict=True):
        if isinstance(models, NotThere) and len(absent) < len(endpoints):
            engine.lanes.down(endpoint, models.message)
        elif isinstance(models, BaseException):
            raise models
        else:
            windows.append(_window(endpoint.url, model, models, unlisted=unlisted))
    engine.context_window = min((window for window in windows if window is not None), default=None)


async def single_model(base_url: str, api_key: str, headers: Mapping[str, str] | None = None) -> str:
    """The model to use when none was named: the only one an endpoint serves."""
    asks = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, default_headers=headers)
    async with asks as client:
        names = sorted(await _models(client, base_url, "", attempts=2))
    if len(names) != 1:
        raise UserError("--judge.model is not given", f"{base_url} knows: {', '.join(names) or 'none'}")
    return names[0]


async def _models(client: openai.AsyncOpenAI, url: str, model: str, attempts: int) -> dict[str, Any]:
    """What an endpoint says of each model it serves; nothing where it has no such list."""
    for attempt in range(attempts):
        try:
            response = await client.models.with_raw_response.list(timeout=20.0)
            return _entries(url, response.http_response.text)
        except openai.AuthenticationError as error:
            raise lasting_error(401, error_said(error), url, model, KEY_HINT) or error from error
        except openai.APIConnectionError as error:
            problem = unanswered(url, error)
        except openai.APIStatusError as error:
            if error.status_code < 500 and error.status_code != 429:
                return {}  # some keys may ask and not list: the first call will tell
            problem = NotThere(f"the endpoint {url} is in trouble: HTTP {error.status_code}")
        if attempt + 1 < attempts:
            await asyncio.sleep(0.5 * 2**attempt)
    raise problem


def _entries(url: str, text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{url}/models does not answer with JSON but with {text[:80]!r}",
            "is --judge.base-url an OpenAI-compatible API (it usually ends in /v1)?",
        ) from error
    entries = inside(body, "data")
    listed = entries if isinstance(entries, list) else []
    return {str(entry.get("id")): entry for entry in listed if isinstance(entry, dict)}


def _window(url: str, model: str, models: dict[str, Any], *, unlisted: bool) -> int | None:
    if models and model not in models and not unlisted:
        names = sorted(models)
        listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise UserError(
            f"{url} does not know the model '{model}'",
            f"it knows: {listed}; an alias or a router that it does not list: --judge.unlisted-model",
        )
    window = inside(models, model, "max_model_len")
    return window if isinstance(window, int) and window > 0 else None


async def probe_schema(engine: EndpointEngine) -> bool:
    """Whether every endpoint that is there holds an answer to a JSON schema, found out with one small call each.

    Raises UserError where that cannot be found out: a guess would decide what every further call asks.
    """
    there = [lane for lane in engine.endpoints if lane.open]
    return all([await _holds_to_schema(engine.only(lane)) for lane in there])


async def _holds_to_schema(engine: EndpointEngine) -> bool:
    reply = await engine.answer(PROBE)
    if reply.failure in OTHER_ROOM:
        reply = await engine.answer(PROBE.with_room(OTHER_ROOM[reply.failure]))
    if reply.failure in ("http", "timeout", *OTHER_ROOM):
        raise UserError(
            f"{engine.endpoints[0].url} did not show whether it holds answers to a JSON schema: {reply.detail}",
            "--judge.structured off asks for plain text; --judge.structured on takes for granted that it does",
        )
    try:
        data = json.loads(after_thinking(reply.text)[0])
    except ValueError:
        return False
    return reply.structured and isinstance(data, dict) and data.get("word") == FORCED
