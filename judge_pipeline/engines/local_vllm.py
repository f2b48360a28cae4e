"""A local judge on vLLM in this process: continuous batching, prefix caching and guided decoding are vLLM's own.

vLLM is an optional dependency, imported only here.
"""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

from judge_pipeline.calls.call import Call, CallUsage, Reply, TokenLogprob, context_too_long, typed
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.local_models import chat_ids
from judge_pipeline.engines.base import DEFAULT_ROUTING, Routing
from judge_pipeline.engines.concurrency import AdaptiveLimit, Gate
from judge_pipeline.engines.vllm_in_process import stop_vllm


class VllmEngine:
    """Answers calls with `vllm.v1.engine.async_llm.AsyncLLM`."""

    def __init__(
        self, name: str, *, structured: bool = True, max_parallel: int = 256, **engine_args: Any
    ) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.model = self.identity = name
        self.supports_schema = structured
        settings = {"enable_prefix_caching": True, "max_logprobs": 20, **engine_args}
        try:
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(model=resolve_model(name), **settings))
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(f"vLLM cannot load the judge model '{name}': {error}") from error
        self._tokenizer: Any = self._llm.get_tokenizer()
        self.context_window: int | None = self._llm.model_config.max_model_len
        # vLLM queues by itself; the gate only sees to it that calls arrive in prefix order.
        self._gate = Gate(AdaptiveLimit(max_parallel, limit=float(max_parallel)))
        self._numbers = itertools.count()

    def where(self, routing: Routing) -> str:
        """In this process."""
        return "local"

    def encode(self, call: Call) -> list[int]:
        """The prompt's tokens, with the model's own chat template."""
        return chat_ids(self._tokenizer, [message.model_dump() for message in call.messages])

    async def answer(self, call: Call, routing: Routing = DEFAULT_ROUTING) -> Reply:
        """See `Engine.answer`."""
        prompt = self.encode(call)
        if (failed := context_too_long(call, len(prompt), self.context_window)) is not None:
            return failed
        async with self._gate.permit(routing.priority):
            routing.admit()
            started = time.perf_counter()
            final: Any = None
            request = str(next(self._numbers))
            stream = self._llm.generate({"prompt_token_ids": prompt}, self._sampling(call), request)
            async for output in stream:
                final = output
        return self._reply(call, final, time.perf_counter() - started)

    def _sampling(self, call: Call) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        wanted = call.sampling
        guided = None
        if call.json_schema is not None and self.supports_schema:
            guided = StructuredOutputsParams(json=json.dumps(call.json_schema), disable_any_whitespace=True)
        return SamplingParams(
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            max_tokens=wanted.max_tokens,
            # Without a seed of its own, a repeated vote would draw the same text at every run of one engine only.
            seed=wanted.seed if wanted.seed is not None else int(call.key(self.identity)[:8], 16),
            logprobs=wanted.logprobs or None,
            structured_outputs=guided,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _reply(self, call: Call, final: Any, seconds: float) -> Reply:
        output = final.outputs[0]
        reply = Reply(
            text=output.text,
            finish_reason=output.finish_reason or "stop",
            usage=CallUsage(
                input_tokens=len(final.prompt_token_ids),
                output_tokens=len(output.token_ids),
                cached_input_tokens=final.num_cached_tokens or 0,
            ),
            latency_s=seconds,
            logprobs=_logprobs(output) if call.sampling.logprobs else None,
            structured=call.json_schema is not None and self.supports_schema,
        )
        if reply.finish_reason not in ("stop", "length"):
            return reply.model_copy(
                update={"failure": "http", "detail": f"vLLM ended with {reply.finish_reason}"}
            )
        return typed(reply)

    async def close(self) -> None:
        """Stop vLLM's processes."""
        stop_vllm(self._llm)


def _logprobs(output: Any) -> list[TokenLogprob] | None:
    if not output.logprobs:
        return None
    found = []
    for token, alternatives in zip(output.token_ids, output.logprobs, strict=True):
        top = {entry.decoded_token or "": entry.logprob for entry in alternatives.values()}
        chosen = alternatives[token]
        found.append(TokenLogprob(token=chosen.decoded_token or "", logprob=chosen.logprob, top=top))
    return found
