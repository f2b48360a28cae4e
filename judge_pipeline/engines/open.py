"""From settings to an engine that is known to work: an endpoint, checked and probed, or a model in this process."""

from __future__ import annotations

from judge_pipeline.calls.store import CallStore
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.base import Engine
from judge_pipeline.engines.judge_config import JudgeConfig
from judge_pipeline.engines.vllm_in_process import require_vllm, vllm_installed

LOCAL_DEFAULT = "smollm2"


async def open_engine(config: JudgeConfig, store: CallStore | None = None) -> Engine:
    """The engine that `config` describes, ready to answer. Raises UserError when it cannot.

    `store` remembers what was found out about an endpoint, so that a second run need not ask.
    """
    if config.engine == "endpoint" or (config.engine == "auto" and config.base_url):
        return await _endpoint(config, store)
    return _local(config)


async def _endpoint(config: JudgeConfig, store: CallStore | None) -> Engine:
    from judge_pipeline.engines.endpoint import EndpointEngine
    from judge_pipeline.engines.endpoint_errors import api_key
    from judge_pipeline.engines.preflight import check_endpoint, probe_schema, single_model
    from judge_pipeline.engines.retries import RetryPolicy

    key = api_key(config.api_key_env)
    engine = EndpointEngine(
        config.base_url,
        config.model or await single_model(config.base_url[0], key),
        key,
        max_concurrency=config.max_concurrency,
        timeout_s=config.timeout,
        policy=RetryPolicy(config.retries, config.backoff),
        extra_body=config.extra_body,
        structured=config.structured != "off",
    )
    try:
        await check_endpoint(engine)
        if config.structured == "auto":
            note = f"schema:{engine.identity}"
            known = store.note(note) if store else None
            able = known == "yes" if known else await probe_schema(engine)
            if store and not known:
                store.set_note(note, "yes" if able else "no")
            engine.set_structured(able)
    except BaseException:
        await engine.close()
        raise
    return engine


def _local(config: JudgeConfig) -> Engine:
    if config.extra_body:
        raise UserError(
            "--judge.extra-body adds to requests, and a judge in this process gets none",
            "name an endpoint with --judge.base-url, or leave it out",
        )
    name = config.model or LOCAL_DEFAULT
    if config.backend == "vllm":
        require_vllm("--judge.backend vllm")
    if config.backend != "transformers" and vllm_installed():
        from judge_pipeline.engines.local_vllm import VllmEngine

        return VllmEngine(name, structured=config.structured != "off")
    from judge_pipeline.engines.local import LocalEngine
    from judge_pipeline.engines.local_generation import TransformersJudge

    engine = LocalEngine(TransformersJudge(name), batch_size=config.batch_size)
    engine.supports_schema = config.structured != "off"
    return engine
