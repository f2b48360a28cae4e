"""The settings under `--judge.*`, and the engine they name, known to work: an endpoint, or a model in this process."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator, model_validator

from judge_pipeline.calls.store import CallStore
from judge_pipeline.common.config import Config, check_url, free, json_values, setting
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.base import Engine
from judge_pipeline.engines.chat_protocol import Dialect
from judge_pipeline.engines.vllm_in_process import require_vllm, vllm_installed

if TYPE_CHECKING:  # slow to import, and not every run asks an endpoint
    from judge_pipeline.engines.endpoint import EndpointEngine

ROOM_BY_EFFORT: dict[str, int | None] = {
    "minimal": 2048,
    "low": 4096,
    "medium": 8192,
    "high": 16384,
    "xhigh": 32768,
}
"""Tokens for thinking, beyond a reply's limit."""
FIELDS = "fields:"
"""Notes of a store that begin so tell which fields a judge takes, as `Dialect.written`."""
Renamed = Literal["temperature", "max_tokens", "top_p", "seed", "logprobs", "top_logprobs"]
Dropped = Renamed | Literal["strict"]
"""Fields of a request that some judges call otherwise or refuse; `strict` is that word of a schema."""


class JudgeConfig(Config):
    """Who answers: an endpoint, a model in this process, or a batch file."""

    engine: Literal["auto", "endpoint", "local"] = free(
        "auto", "auto: the endpoint if --judge.base-url is given, else a model in this process"
    )
    base_url: list[str] = free(
        [],
        "OpenAI-compatible endpoint, e.g. http://localhost:8000/v1; several share the work, each prompt stays with one",
    )
    model: str | None = setting(
        None,
        "the judge: a name the endpoint knows (default: its only one), or for a local judge `smollm2`, a folder or a hub model",
    )
    api_key_env: str = free("OPENAI_API_KEY", "environment variable that holds the key")
    structured: Literal["auto", "on", "off"] = setting(
        "auto", "JSON held to a schema, or the text protocol; auto: JSON wherever the engine can hold to it"
    )
    extra_body: Annotated[dict[str, Any], BeforeValidator(json_values)] = setting(
        {}, "more fields for each request, as JSON values, e.g. reasoning_effort=low"
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = setting(
        None, "how hard a reasoning judge thinks, for endpoints that know `reasoning_effort`"
    )
    thinking_budget: int | None = setting(
        None,
        "tokens a reasoning judge may think, beyond --max-tokens, which is for the reply; default: by the effort, or 8192 once it is seen to think",
        ge=0,
    )
    thinking_field: str | None = setting(
        None,
        "request field that tells the endpoint the budget: thinking_token_budget (vLLM), thinking_budget, reasoning.max_tokens, thinking.budget_tokens",
    )
    extra_headers: dict[str, str] = free(
        {}, "more headers for each request, e.g. X-Team=judges; a value $NAME is read from the environment"
    )
    unlisted_model: bool = free(
        False, "use --judge.model though the endpoint does not list it: an alias, a router"
    )
    max_concurrency: int = free(
        256, "most calls in flight to one endpoint; below it the number finds itself", ge=1
    )
    timeout: float = free(600.0, "seconds to wait for one answer", gt=0)
    retries: int = free(5, "further attempts after a failure that may pass", ge=0)
    backoff: float = free(
        0.5, "seconds before the first retry, doubled for each further one, drawn at random from 0 up", ge=0
    )
    patience: float = free(
        15.0,
        "minutes to wait for endpoints that are gone or answer nothing but errors, before the run ends; nothing is lost",
        ge=0,
    )
    batch_size: int = free(8, "answers a local judge without vLLM writes at a time", ge=1)
    backend: Literal["auto", "vllm", "transformers"] = free(
        "auto", "of a local judge: auto is vLLM when installed"
    )
    rename: dict[Renamed, str] = free(
        {}, "request fields the judge calls otherwise, e.g. max_tokens=max_completion_tokens"
    )
    drop: list[Dropped] = free(
        [], "request fields the judge refuses, left out, e.g. temperature strict (of schemas)"
    )
    batch_out: Path | None = free(
        None,
        "write the calls that are neither answered nor out as an OpenAI batch file, and stop; with --judge.base-url one live call finds out which fields the judge takes",
    )
    batch_in: list[Path] = free(
        [],
        "answers to batch files, whichever are back: output files and error files; with --judge.base-url and no --judge.batch-out the endpoint is asked what failed and what never was out",
    )
    batch_give_up: list[Path] = free([], "batch files not to wait for any more: their calls are asked anew")
    batch_rows: int = free(50_000, "most calls in one batch file; more go into further files", ge=1)
    batch_megabytes: float = free(200.0, "most megabytes of one batch file", gt=0)

    @property
    def body(self) -> dict[str, Any]:
        """Fields of every request beside those of the call."""
        body = copy.deepcopy(self.extra_body)
        if self.reasoning_effort is not None:
            body["reasoning_effort"] = self.reasoning_effort
        if self.thinking_field is not None and self.thinking_budget is not None:
            *outer, last = self.thinking_field.split(".")
            inner = body
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[last] = self.thinking_budget
        return body

    @property
    def headers(self) -> dict[str, str]:
        """`extra_headers` with the values of the variables they name. Raises UserError for one that is not set."""
        headers = {}
        for name, value in self.extra_headers.items():
            variable = value.removeprefix("$")
            if value.startswith("$") and variable not in os.environ:
                raise UserError(f"--judge.extra-headers: {name} is to be read from {value}, which is not set")
            headers[name] = os.environ[variable] if value.startswith("$") else value
        return headers

    def dialect(self, known: Dialect | None = None) -> Dialect:
        """How requests are put: as the settings say, on top of what is known already."""
        known = known or Dialect("off" if self.structured == "off" else "strict")
        schema = "loose" if "strict" in self.drop and known.schema == "strict" else known.schema
        dropped = known.dropped | set(self.drop) - {"strict"}
        renamed: dict[str, str] = {**known.renamed, **{str(old): new for old, new in self.rename.items()}}
        room = ROOM_BY_EFFORT.get(self.reasoning_effort or "", known.room)
        return Dialect(
            schema, renamed, dropped, room if self.thinking_budget is None else self.thinking_budget
        )

    @model_validator(mode="after")
    def _budget_to_send(self) -> JudgeConfig:
        if self.thinking_field is not None and self.thinking_budget is None:
            raise ValueError("thinking_field sends a budget, and thinking_budget names none")
        return self

    @field_validator("base_url")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        return [check_url(url) for url in value]


async def open_engine(config: JudgeConfig, store: CallStore | None = None) -> Engine:
    """The engine that `config` describes, ready to answer. Raises UserError when it cannot.

    `store` remembers what was found out about an endpoint, so that a second run need not ask.
    """
    if config.engine == "endpoint" or (config.engine == "auto" and config.base_url):
        return await _endpoint(config, store)
    return _local(config)


async def learn_dialect(config: JudgeConfig) -> Dialect:
    """Which fields the first endpoint of `config` takes, found out with one live call."""
    from judge_pipeline.engines.endpoint_checks import PROBE

    engine = await _endpoint(config.model_copy(update={"base_url": config.base_url[:1]}), None)
    try:
        if config.structured != "auto":  # else it was asked already
            await engine.answer(PROBE)
        return engine.endpoints[0].dialect
    finally:
        await engine.close()


def known_fields(store: CallStore) -> dict[str, Dialect]:
    """What a store remembers of the fields that judges take."""
    return {judge: Dialect.read(noted) for judge, noted in store.notes(FIELDS).items()}


def fields_note(engine: EndpointEngine, url: str) -> str:
    """The note under which a store remembers how one endpoint wants its requests put."""
    return f"{FIELDS}{engine.identity} at {url}"


async def _endpoint(config: JudgeConfig, store: CallStore | None) -> EndpointEngine:
    from judge_pipeline.engines.endpoint import EndpointEngine
    from judge_pipeline.engines.endpoint_checks import check_endpoint, probe_schema, single_model
    from judge_pipeline.engines.endpoint_errors import api_key
    from judge_pipeline.engines.retries import RetryPolicy

    key = api_key(config.api_key_env)
    engine = EndpointEngine(
        config.base_url,
        config.model or await single_model(config.base_url[0], key, config.headers),
        key,
        max_concurrency=config.max_concurrency,
        timeout_s=config.timeout,
        policy=RetryPolicy(config.retries, config.backoff),
        patience_s=60 * config.patience,
        extra_body=config.body,
        headers=config.headers,
        dialect=config.dialect(),
        learnt=lambda url, dialect: (
            store.set_note(fields_note(engine, url), dialect.written) if store else None
        ),
    )
    for lane in engine.endpoints:
        if store and (noted := store.note(fields_note(engine, lane.url))):
            lane.dialect = config.dialect(Dialect.read(noted))
    try:
        await check_endpoint(engine, unlisted=config.unlisted_model)
        if config.structured == "auto":
            note = f"schema:{engine.identity}"
            known = store.note(note) if store else None
            able = known == "yes" if known else await probe_schema(engine)
            if store and not known:
                store.set_note(note, "yes" if able else "no")
            if not able:
                engine.without_schema()
        if engine.context_window is not None:  # what is left for a prompt and its reply
            engine.context_window -= max(lane.dialect.room or 0 for lane in engine.endpoints)
    except BaseException:
        await engine.close()
        raise
    return engine


def _local(config: JudgeConfig) -> Engine:
    if config.body or config.thinking_budget is not None:
        raise UserError(
            "--judge.extra-body, --judge.reasoning-effort and --judge.thinking-budget are for requests, and a judge in this process gets none",
            "name an endpoint with --judge.base-url, or leave it out",
        )
    name = config.model or "smollm2"
    if config.backend == "vllm":
        require_vllm("--judge.backend vllm")
    if config.backend != "transformers" and vllm_installed():
        from judge_pipeline.engines.local_vllm import VllmEngine

        return VllmEngine(name, structured=config.structured != "off")
    from judge_pipeline.engines.local import LocalEngine, TransformersJudge

    engine = LocalEngine(TransformersJudge(name), batch_size=config.batch_size)
    engine.supports_schema = config.structured != "off"
    return engine
