"""Sampling from any OpenAI-compatible endpoint.

All answers of a prompt are asked for in one call (`n`), so the prompt is paid for once; an endpoint that gives
fewer, or does not know `n`, is asked again for the missing ones. The client retries 408, 409, 429, 5xx and broken
connections with backoff and honours `Retry-After`; the judge's engine retries by itself because its attempts share a
limit that finds itself, and it asks for one reply a call.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator, Sequence
from typing import Any

import openai

from dpo.chat import ChatMessages
from dpo.sample.base import Decoding, Draw, Failed, Finish, Request
from judge_pipeline.engines.chat_protocol import Dialect
from judge_pipeline.engines.endpoint_errors import api_key, error_said, lasting_error, unanswered


class EndpointSampler:
    """See `Sampler`. The key comes from the environment variable named by `key_variable`."""

    name = "endpoint"
    template: str | None = None
    window: int | None = None

    def __init__(
        self,
        model: str,
        base_url: str,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout_s: float = 600.0,
        retries: int = 6,
    ) -> None:
        self.model, self.base_url = model, base_url
        self.key_hint = f"put the right key into {key_variable}, or name another variable: --api-key-variable"
        self.concurrency = concurrency
        self.at_a_time = concurrency * 8
        key = api_key(key_variable)
        self.client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout_s, max_retries=retries)
        self.knows_n = True
        self.dialect = Dialect()

    def count_tokens(self, messages: ChatMessages) -> None:
        """Unknown: only the server has the tokenizer; it refuses what is too long, and that is reported."""
        return None

    def answer(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[Request, list[Draw] | Failed]]:
        """Several requests at a time; an error that concerns all of them stops the run."""
        pool = concurrent.futures.ThreadPoolExecutor(self.concurrency)
        try:
            futures = {pool.submit(self._answer_one, request, decoding): request for request in requests}
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer_one(self, request: Request, how: Decoding) -> list[Draw] | Failed:
        draws: list[Draw] = []
        try:
            while len(draws) < request.count:
                wanted = request.count - len(draws) if self.knows_n else 1
                got = self._call(request, how, wanted, request.seed + len(draws))
                if not got:
                    return Failed("the endpoint returned no answer")
                draws += got[:wanted]
        except openai.APITimeoutError as error:
            return Failed(f"timeout: {error}")
        except openai.APIConnectionError as error:
            raise unanswered(self.base_url, error) from error
        except openai.APIStatusError as error:
            lasting = lasting_error(
                error.status_code, error_said(error), self.base_url, self.model, self.key_hint
            )
            if lasting is not None:
                raise lasting from error
            return Failed(f"HTTP {error.status_code}: {error.message}")
        return draws

    def _call(self, request: Request, how: Decoding, count: int, seed: int) -> list[Draw]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": request.messages,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "max_tokens": how.max_new_tokens,
            "seed": seed,
        }
        body = self.dialect.applied(body | ({"n": count} if count > 1 else {}))
        try:
            reply = self.client.chat.completions.create(**body)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if count > 1 and _is_about_n(error):
                self.knows_n = False
                return self._call(request, how, 1, seed)
            # Nothing that shapes the answers is left out: they would not be the ones that were asked for.
            if (dialect := self.dialect.adapted(error_said(error), body, droppable=())) is not None:
                self.dialect = dialect
                return self._call(request, how, count, seed)
            raise
        choices = list(reply.choices or [])
        spent = reply.usage.completion_tokens if reply.usage and len(choices) == 1 else None
        return [_to_draw(choice, seed + index, spent) for index, choice in enumerate(choices)]

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


def _is_about_n(error: openai.APIStatusError) -> bool:
    body = error.body if isinstance(error.body, dict) else {}
    if body.get("param") == "n":
        return True
    text = error.message.lower()
    return any(phrase in text for phrase in ("'n'", '"n"', "`n`", " n ", "number of choices"))


def _to_draw(choice: Any, seed: int, tokens: int | None) -> Draw:
    finish: Finish = {"length": "length", "content_filter": "refused"}.get(choice.finish_reason, "stop")  # type: ignore[assignment]
    if refusal := getattr(choice.message, "refusal", None):
        finish = "refused"
    return Draw(choice.message.content or refusal or "", finish, seed, -1 if tokens is None else tokens)
