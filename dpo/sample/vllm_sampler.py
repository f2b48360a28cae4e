"""Sampling with vLLM in this process: continuous batching, the prompt's keys and values computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dpo.chat import ChatEncoder, ChatMessages, ChatTemplate
from dpo.sample.base import Decoding, Draw, Failed, Finish, Request, copies, to_draw
from dpo.sample.reasoning import opens_thinking
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.local_models import ADAPTER_CONFIG, adapter_base, load_tokenizer
from judge_pipeline.common.record_files import read_json
from judge_pipeline.engines.vllm_in_process import stop_vllm

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


class VllmSampler:
    """See `Sampler`. `engine_args` go to `vllm.LLM` as they are (tensor_parallel_size, max_model_len, …).

    An adapter is served over its base model; it need not be merged.
    """

    name = "vllm"
    at_a_time = 64

    def __init__(self, model: str, dtype: str = "auto", engine_args: dict[str, Any] | None = None) -> None:
        import vllm

        path = resolve_model(model)
        base = adapter_base(path)
        self.tokenizer = load_tokenizer(path, model)
        self.encoder = ChatEncoder(self.tokenizer)
        self.template: ChatTemplate | None = self.tokenizer.chat_template
        self._sampling = vllm.SamplingParams
        arguments: dict[str, Any] = {"model": base or path, "dtype": dtype, "enable_prefix_caching": True}
        self._adapter: Any = None
        if base is not None:
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest("policy", 1, path)
            rank = int(read_json(Path(path) / ADAPTER_CONFIG)["r"])
            arguments |= {
                "enable_lora": True,
                "max_lora_rank": next((n for n in LORA_RANKS if n >= rank), rank),
            }
        self._llm = vllm.LLM(**arguments | (engine_args or {}))
        self.window: int | None = int(self._llm.llm_engine.model_config.max_model_len)

    def count_tokens(self, messages: ChatMessages, **template: Any) -> int:
        """Tokens of the prompt with its chat template."""
        return len(self.encoder.ids(messages, add_generation_prompt=True, **template))

    def answer(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[Request, list[Draw] | Failed]]:
        """All requests at once; vLLM gives answer i of a request the seed `seed + i`, as we record it."""
        how = {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_new_tokens,
            "top_k": decoding.top_k,
            "min_p": decoding.min_p,
            "repetition_penalty": decoding.repetition_penalty,
            "stop": list(decoding.stop),
        }
        ids = (
            self.encoder.ids(request.messages, add_generation_prompt=True, **request.template)
            for request in requests
        )
        prompts = [{"prompt_token_ids": row} for row in ids]
        greedy = decoding.temperature == 0
        params = [
            self._sampling(n=1 if greedy else request.count, seed=request.seed, **how) for request in requests
        ]
        adapter = {} if self._adapter is None else {"lora_request": self._adapter}
        outputs = self._llm.generate(prompts, params, use_tqdm=False, **adapter)
        for request, output in zip(requests, outputs, strict=True):
            opened = opens_thinking(self.encoder.render(request.messages, True, **request.template))
            draws = [_draw(part, opened, request.seed + part.index) for part in output.outputs]
            yield request, copies(draws[0], request.count) if greedy else draws

    def close(self) -> None:
        """Stop the engine."""
        stop_vllm(self._llm)


def _draw(part: Any, opened: bool, seed: int) -> Draw:
    finish: Finish = "length" if part.finish_reason == "length" else "stop"
    return to_draw(part.text, opened, finish, seed, len(part.token_ids))
