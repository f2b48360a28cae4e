"""Sampling from any OpenAI-compatible endpoint.

All answers of a prompt are asked for in one call (`n`), so the prompt is paid for once; an endpoint that gives
fewer, or does not know `n`, is asked again for the missing ones. The client retries 408, 409, 429, 5xx and broken
connections with backoff and honours `Retry-After`.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterator, Sequence
from typing import Any

import openai

from dpo.chat import ChatMessages
from dpo.sample.base import Decoding, Draw, Failed, Finish, Request
from judge_pipeline.common.errors import UserError

NO_KEY = "none"
"""Local servers ask for no key, and the client insists on one."""


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
        self.model, self.base_url, self.key_variable = model, base_url, key_variable
        self.concurrency = concurrency
        self.at_a_time = concurrency * 8
        self.client = openai.OpenAI(
            base_url=base_url,
            api_key=os.environ.get(key_variable) or NO_KEY,
            timeout=timeout_s,
            max_retries=retries,
        )
        self.knows_n = True

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
        except openai.AuthenticationError as error:
            raise UserError(
                f"{self.base_url} refuses the key: {error.message}",
                f"put the right key into {self.key_variable}, or name another variable: --api-key-variable",
            ) from error
        except openai.PermissionDeniedError as error:
            raise UserError(f"{self.base_url} denies access: {error.message}") from error
        except openai.NotFoundError as error:
            raise UserError(
                f"{self.base_url} does not know the model '{self.model}': {error.message}",
                f"see {self.base_url.rstrip('/')}/models",
            ) from error
        except openai.APITimeoutError as error:
            return Failed(f"timeout: {error}")
        except openai.APIConnectionError as error:
            raise UserError(
                f"{self.base_url} does not answer: {error.__cause__ or error}",
                "check the address and that the server runs; what is finished is kept",
            ) from error
        except openai.APIStatusError as error:
            return Failed(f"HTTP {error.status_code}: {error.message}")
        return draws

    def _call(self, request: Request, how: Decoding, count: int, seed: int) -> list[Draw]:
        options: dict[str, Any] = {"n": count} if count > 1 else {}
        try:
            reply = self.client.chat.completions.create(
                model=self.model,
                messages=request.messages,
                temperature=how.temperature,
                top_p=how.top_p,
                max_tokens=how.max_new_tokens,
                seed=seed,
                **options,
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if count > 1 and _is_about_n(error):
                self.knows_n = False
                return self._call(request, how, 1, seed)
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
    refusal = getattr(choice.message, "refusal", None)
    if refusal:
        finish = "refused"
    return Draw(choice.message.content or refusal or "", finish, seed, -1 if tokens is None else tokens)
