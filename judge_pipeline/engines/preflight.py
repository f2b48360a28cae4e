"""Before the first call: is the endpoint there, does it take the key, does it know the model, what can it do?

A run that would fail on every call fails here, in a second, with a message that says what to change.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai

from judge_pipeline.calls.call import Call, Message, Sampling
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.endpoint import KEY_HINT, Endpoint, EndpointEngine
from judge_pipeline.engines.endpoint_errors import lasting_error, unanswered

PROBE = Call(
    template="probe",
    messages=(Message(role="user", content="Reply with a JSON object whose field `ok` is true."),),
    sampling=Sampling(max_tokens=32),
    json_schema={
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    },
)
"""One tiny call that shows whether an endpoint holds answers to a JSON schema."""


async def check_endpoint(engine: EndpointEngine, *, attempts: int = 3) -> None:
    """Check every endpoint and take its context window. Raises UserError with the way out."""
    windows = await asyncio.gather(
        *(_check_one(endpoint, engine.model, attempts) for endpoint in engine.endpoints)
    )
    known = [window for window in windows if window is not None]
    engine.context_window = min(known) if known else None


async def _check_one(endpoint: Endpoint, model: str, attempts: int) -> int | None:
    for attempt in range(attempts):
        try:
            response = await endpoint.client.models.with_raw_response.list(timeout=20.0)
            return _window(endpoint.url, model, response.http_response.text)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise lasting_error(error, endpoint.url, model, KEY_HINT) or error from error
        except openai.APIConnectionError as error:
            problem = unanswered(endpoint.url, error)
        except openai.APIStatusError as error:
            if error.status_code < 500 and error.status_code != 429:
                return None  # a server without a list of models; the first call will tell
            problem = UserError(f"the endpoint {endpoint.url} is in trouble: HTTP {error.status_code}")
        if attempt + 1 < attempts:
            await asyncio.sleep(0.5 * 2**attempt)
    raise problem


def _window(url: str, model: str, text: str) -> int | None:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{url}/models does not answer with JSON but with {text[:80]!r}",
            "is --judge.base-url an OpenAI-compatible API (it usually ends in /v1)?",
        ) from error
    entries = body.get("data") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        return None
    models: dict[str, dict[str, Any]] = {
        str(entry.get("id")): entry for entry in entries if isinstance(entry, dict)
    }
    if models and model not in models:
        names = sorted(models)
        listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise UserError(f"{url} does not know the model '{model}'", f"it knows: {listed}")
    window = models.get(model, {}).get("max_model_len")
    return window if isinstance(window, int) and window > 0 else None


async def single_model(base_url: str, api_key: str) -> str:
    """The model to use when none was named: the only one an endpoint serves."""
    client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=1, timeout=20.0)
    try:
        names = [model.id async for model in client.models.list()]
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise lasting_error(error, base_url, "", KEY_HINT) or error from error
    except openai.APIConnectionError as error:
        raise unanswered(base_url, error) from error
    except openai.OpenAIError as error:
        raise UserError(
            f"--judge.model is not given, and {base_url} does not list its models: {error}"
        ) from error
    finally:
        await client.close()
    if len(names) != 1:
        raise UserError(
            "--judge.model is not given", f"{base_url} knows: {', '.join(sorted(names)) or 'none'}"
        )
    return names[0]


async def probe_schema(engine: EndpointEngine) -> bool:
    """Whether the endpoint holds an answer to a JSON schema, found out with one tiny call."""
    reply = await engine.answer(PROBE)
    if not reply.structured or reply.failure is not None:
        return False
    try:
        return isinstance(json.loads(reply.text).get("ok"), bool)
    except (ValueError, AttributeError):
        return False
