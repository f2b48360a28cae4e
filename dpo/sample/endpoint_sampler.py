"""Sampling from any OpenAI-compatible endpoint, or several that serve the same model.

All answers of a prompt are asked for in one call (`n`), so the prompt is paid for once; an endpoint that gives
fewer, or does not know `n`, is asked again for the missing ones. A prompt stays with one endpoint, chosen by its id, and
goes to another only when nobody answers there. The client retries 408, 409, 429, 5xx and broken
connections with backoff and honours `Retry-After`; the judge's engine retries by itself because its attempts share a
limit that finds itself, and it asks for one reply a call.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

from dpo.chat import ChatMessages, ChatTemplate
from dpo.sample.base import Decoding, Draw, Failed, Finish, Request, copies, to_draw
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.chat_protocol import Dialect
from judge_pipeline.engines.endpoint_errors import api_key, error_said, lasting_error, unanswered

NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sent where the settings leave them alone, since a server fills in what the model's generation_config says."""
CONNECT_S = 5.0
NOBODY_THERE = ("ConnectError", "ConnectTimeout")
"""What the HTTP library beneath the client raises; which library that is depends on the client's version."""


@dataclass
class Server:
    """One address, and what was found out about it."""

    url: str
    client: openai.OpenAI
    dialect: Dialect = field(default_factory=Dialect)
    knows_n: bool = True


class EndpointSampler:
    """See `Sampler`. The key comes from the environment variable named by `key_variable`."""

    name = "endpoint"
    template: ChatTemplate | None = None
    window: int | None = None

    def __init__(
        self,
        model: str,
        base_urls: Sequence[str],
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout_s: float = 600.0,
        retries: int = 6,
    ) -> None:
        self.model = model
        self.key_hint = f"put the right key into {key_variable}, or name another variable: --api-key-variable"
        self.concurrency = concurrency * len(base_urls)
        self.at_a_time = self.concurrency * 8
        key = api_key(key_variable)
        timeout = openai.Timeout(timeout_s, connect=CONNECT_S)
        self.servers = [
            Server(url, openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=retries))
            for url in base_urls
        ]
        self._looked = False

    def count_tokens(self, messages: ChatMessages, **template: Any) -> None:
        """Unknown: only the server has the tokenizer; it refuses what is too long, and that is reported."""
        return None

    def answer(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[Request, list[Draw] | Failed]]:
        """Several requests at a time; an error that concerns all of them stops the run."""
        if not self._looked:
            self._look()
        pool = concurrent.futures.ThreadPoolExecutor(self.concurrency)
        try:
            futures = {pool.submit(self._answer_one, request, decoding): request for request in requests}
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _look(self) -> None:
        """Keep the servers where somebody answers, whatever it says; retries are for one that was there before.

        Raises:
            UserError: there is none.
        """
        dead: dict[str, UserError] = {}
        for server in self.servers:
            try:
                server.client.with_options(max_retries=0, timeout=CONNECT_S).models.list()
            except openai.APIStatusError:
                continue  # not every server lists its models
            except openai.APIConnectionError as error:
                if type(error.__cause__).__name__ in NOBODY_THERE:
                    dead[server.url] = unanswered(server.url, error)
        if len(dead) == len(self.servers):
            raise next(iter(dead.values()))
        for told in dead.values():
            print(f"warning: {told.message}; the others do its work", file=sys.stderr)
        self.servers = [server for server in self.servers if server.url not in dead]
        self._looked = True

    def _answer_one(self, request: Request, how: Decoding) -> list[Draw] | Failed:
        digest = hashlib.sha256(request.prompt_id.encode()).digest()
        home = int.from_bytes(digest[:8], "big") % len(self.servers)
        lost: UserError | None = None
        for server in [*self.servers[home:], *self.servers[:home]]:
            try:
                return self._ask(server, request, how)
            except openai.APITimeoutError as error:
                return Failed(f"timeout: {error}")
            except openai.APIConnectionError as error:
                lost = unanswered(server.url, error)
            except openai.APIStatusError as error:
                said = error_said(error)
                lasting = lasting_error(error.status_code, said, server.url, self.model, self.key_hint)
                if lasting is not None:
                    raise lasting from error
                return Failed(f"HTTP {error.status_code}: {error.message}")
        assert lost is not None  # there is at least one server
        raise lost

    def _ask(self, server: Server, request: Request, how: Decoding) -> list[Draw] | Failed:
        draws: list[Draw] = []
        if how.temperature == 0:
            only = self._call(server, request, how, 1, request.seed)
            return copies(only[0], request.count) if only else Failed("the endpoint returned no answer")
        while len(draws) < request.count:
            wanted = request.count - len(draws) if server.knows_n else 1
            got = self._call(server, request, how, wanted, request.seed + len(draws))
            if not got:
                return Failed("the endpoint returned no answer")
            draws += got[:wanted]
        return draws

    def _body(self, request: Request, how: Decoding, count: int, seed: int) -> dict[str, Any]:
        """The call; what OpenAI's own protocol does not know stands where vLLM, SGLang and llama.cpp look for it."""
        template = {name: value for name, value in request.template.items() if name != "tools"}
        more = {
            "top_k": how.top_k or None,
            "min_p": how.min_p or None,
            "repetition_penalty": None if how.repetition_penalty == 1 else how.repetition_penalty,
        }
        body: dict[str, Any] = {
            "model": self.model,
            "messages": request.messages,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "max_tokens": how.max_new_tokens,
            "seed": seed,
            **{name: NEUTRAL[name] if value is None else value for name, value in more.items()},
        }
        optional = {
            "n": count if count > 1 else None,
            "stop": list(how.stop),
            "tools": request.template.get("tools"),
            "chat_template_kwargs": template,
        }
        return body | {name: value for name, value in optional.items() if value}

    def _call(self, server: Server, request: Request, how: Decoding, count: int, seed: int) -> list[Draw]:
        body = server.dialect.applied(self._body(request, how, count, seed))
        extra = {name: body.pop(name) for name in [*NEUTRAL, "chat_template_kwargs"] if name in body}
        try:
            reply = server.client.chat.completions.create(**body, extra_body=extra)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if count > 1 and _is_about_n(error):
                server.knows_n = False
                return self._call(server, request, how, 1, seed)
            # Nothing that shapes the answers is left out: they would not be the ones that were asked for. A server that
            # does not know a setting cannot change it either, so what is neutral may go.
            neutral = [name for name, value in NEUTRAL.items() if extra.get(name) == value]
            dialect = server.dialect.adapted(error_said(error), {**body, **extra}, neutral)
            if dialect is not None:
                server.dialect = dialect
                return self._call(server, request, how, count, seed)
            raise
        choices = list(reply.choices or [])
        spent = reply.usage.completion_tokens if reply.usage and len(choices) == 1 else None
        return [_draw(choice, seed + index, spent) for index, choice in enumerate(choices)]

    def close(self) -> None:
        """Close the connections."""
        for server in self.servers:
            server.client.close()


def _is_about_n(error: openai.APIStatusError) -> bool:
    body = error.body if isinstance(error.body, dict) else {}
    if body.get("param") == "n":
        return True
    text = error.message.lower()
    return any(phrase in text for phrase in ("'n'", '"n"', "`n`", " n ", "number of choices"))


def _draw(choice: Any, seed: int, tokens: int | None) -> Draw:
    finish: Finish = {"length": "length", "content_filter": "refused"}.get(choice.finish_reason, "stop")  # type: ignore[assignment]
    message, spent = choice.message, -1 if tokens is None else tokens
    if refusal := getattr(message, "refusal", None):
        finish = "refused"
    text = message.content or refusal or ""
    thought = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if thought:  # the server took the thinking apart, so how the model wrote it is not known
        return Draw(text, finish, seed, spent, str(thought).strip())
    return to_draw(text, None, finish, seed, spent)
