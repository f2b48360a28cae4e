"""Sampling with vLLM in this process: continuous batching, the prompt's keys and values computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dpo.chat import ChatEncoder, ChatMessages
from dpo.sample.base import Decoding, Draw, Failed, Finish, Request
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.local_models import load_tokenizer
from judge_pipeline.engines.vllm_in_process import stop_vllm


class VllmSampler:
    """See `Sampler`. `engine_args` go to `vllm.LLM` as they are (tensor_parallel_size, max_model_len, …)."""

    name = "vllm"
    at_a_time = 64

    def __init__(self, model: str, dtype: str = "auto", engine_args: dict[str, Any] | None = None) -> None:
        import vllm

        path = resolve_model(model)
        self.tokenizer = load_tokenizer(path, model)
        self.encoder = ChatEncoder(self.tokenizer)
        self.template: str | None = self.tokenizer.chat_template
        self._sampling = vllm.SamplingParams
        self._llm = vllm.LLM(model=path, dtype=dtype, enable_prefix_caching=True, **(engine_args or {}))
        self.window: int | None = int(self._llm.llm_engine.model_config.max_model_len)

    def count_tokens(self, messages: ChatMessages) -> int:
        """Tokens of the prompt with its chat template."""
        return len(self.encoder.ids(messages, add_generation_prompt=True))

    def answer(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[Request, list[Draw] | Failed]]:
        """All requests at once; vLLM gives answer i of a request the seed `seed + i`, as we record it."""
        how = {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_new_tokens,
        }
        ids = (self.encoder.ids(request.messages, add_generation_prompt=True) for request in requests)
        prompts = [{"prompt_token_ids": row} for row in ids]
        params = [self._sampling(n=request.count, seed=request.seed, **how) for request in requests]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        for request, output in zip(requests, outputs, strict=True):
            yield request, [_to_draw(part, request.seed + part.index) for part in output.outputs]

    def close(self) -> None:
        """Stop the engine."""
        stop_vllm(self._llm)


def _to_draw(part: Any, seed: int) -> Draw:
    finish: Finish = "length" if part.finish_reason == "length" else "stop"
    return Draw(part.text, finish, seed, len(part.token_ids))
