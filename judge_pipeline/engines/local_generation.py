"""The judge in this process, with transformers: calls to tokens, constrained decoding, tokens to replies.

Answers are held to a call's JSON schema by xgrammar: at each step only tokens that keep the text valid may be
chosen, so that a model of any size gives a readable verdict. Log-probabilities are those of the allowed tokens.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from judge_pipeline.calls.call import Call, CallUsage, Reply, TokenLogprob, typed
from judge_pipeline.common.local_models import chat_ids, end_tokens, load_model, window_of
from judge_pipeline.engines.shared_decoding import draw_tokens, make_decoder

PREFIX_MEMORY_TOKENS = 16384


@dataclass
class Row:
    """One call being answered."""

    call: Call
    prompt: list[int]
    matcher: Any = None
    stream: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None


class TransformersJudge:
    """A causal language model that answers batches of calls. Not for several threads at a time."""

    def __init__(self, name: str, *, device: str = "auto", dtype: str = "auto") -> None:
        self.name = name
        self.model, self.tokenizer = load_model(name, device, dtype, role="judge model")
        self.context_window = window_of(self.model.config)
        self.decoder = make_decoder(self.model, PREFIX_MEMORY_TOKENS)
        self._ends = end_tokens(self.model, self.tokenizer)
        self._compile = lru_cache(maxsize=256)(self._compile_schema)
        self._compiler: Any = None

    def encode(self, call: Call) -> list[int]:
        """The prompt's tokens, with the model's own chat template."""
        return chat_ids(self.tokenizer, [message.model_dump() for message in call.messages])

    def answer(self, calls: Sequence[Call], prompts: Sequence[list[int]]) -> list[Reply]:
        """Replies to a batch of calls, in order."""
        started = time.perf_counter()
        rows = [self._row(call, prompt) for call, prompt in zip(calls, prompts, strict=True)]
        with torch.inference_mode():
            self._generate(rows)
        seconds = time.perf_counter() - started
        return [
            self._reply(row, reused, seconds) for row, reused in zip(rows, self.decoder.reused, strict=True)
        ]

    def _row(self, call: Call, prompt: list[int]) -> Row:
        row = Row(call, prompt)
        if call.json_schema is not None:
            import xgrammar

            compiled = self._compile(json.dumps(call.json_schema))
            row.matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
        if call.sampling.temperature > 0:
            row.stream = torch.Generator().manual_seed(_seed(call))
        return row

    def _compile_schema(self, schema: str) -> Any:
        import xgrammar

        if self._compiler is None:
            vocabulary = self.model.config.get_text_config().vocab_size
            info = xgrammar.TokenizerInfo.from_huggingface(
                self.tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(self._ends)
            )
            self._compiler = xgrammar.GrammarCompiler(info)
        # No white space between tokens of the JSON: it is where guided models get lost until their limit.
        return self._compiler.compile_json_schema(schema, any_whitespace=False)

    def _generate(self, rows: list[Row]) -> None:
        logits = self.decoder.start([row.prompt for row in rows])
        active = list(rows)
        while True:
            self._choose(active, logits.float().cpu())
            alive = [index for index, row in enumerate(active) if row.finish is None]
            if not alive:
                return
            if len(alive) <= len(active) * 3 // 4:
                self.decoder.keep(alive)
                active = [active[index] for index in alive]
            # A finished row that is still in the batch repeats its last token; nobody reads what it says.
            logits = self.decoder.step([row.tokens[-1] for row in active])

    def _choose(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Pick the next token of every row that goes on."""
        self._mask(rows, logits)
        best = logits.argmax(-1).tolist()
        for index, row in enumerate(rows):
            if row.finish is None:
                token = best[index]
                if row.stream is not None:
                    how = row.call.sampling
                    token = int(
                        draw_tokens(logits[index : index + 1], how.temperature, how.top_p, [row.stream])
                    )
                self._accept(row, token, logits[index])

    def _mask(self, rows: list[Row], logits: torch.Tensor) -> None:
        bound = [index for index, row in enumerate(rows) if row.matcher is not None and row.finish is None]
        if not bound:
            return
        import xgrammar

        mask = xgrammar.allocate_token_bitmask(len(rows), logits.shape[-1])
        for index in bound:
            rows[index].matcher.fill_next_token_bitmask(mask, index)
        xgrammar.apply_token_bitmask_inplace(logits, mask, indices=bound)

    def _accept(self, row: Row, token: int, logits: torch.Tensor) -> None:
        row.tokens.append(token)
        if row.matcher is None and token in self._ends:
            row.finish = "stop"
            return
        if row.call.sampling.logprobs:
            row.logprobs.append(self._logprob(token, logits, row.call.sampling.logprobs))
        if row.matcher is not None:
            row.matcher.accept_token(token)
            if row.matcher.is_terminated():
                row.finish = "stop"
                return
        if len(row.tokens) >= row.call.sampling.max_tokens:
            row.finish = "length"

    def _logprob(self, token: int, logits: torch.Tensor, count: int) -> TokenLogprob:
        logprobs = logits.log_softmax(-1)
        values, ids = logprobs.topk(min(count, logprobs.shape[-1]))
        top = {
            self.tokenizer.decode([index]): value
            for value, index in zip(values.tolist(), ids.tolist(), strict=True)
            if value > float("-inf")
        }
        return TokenLogprob(token=self.tokenizer.decode([token]), logprob=float(logprobs[token]), top=top)

    def _reply(self, row: Row, reused: int, seconds: float) -> Reply:
        text = self.tokenizer.decode(row.tokens, skip_special_tokens=True)
        return typed(
            Reply(
                text=text,
                finish_reason=row.finish or "stop",
                usage=CallUsage(
                    input_tokens=len(row.prompt), output_tokens=len(row.tokens), cached_input_tokens=reused
                ),
                latency_s=seconds,
                logprobs=row.logprobs or None,
                structured=row.matcher is not None,
            )
        )


def _seed(call: Call) -> int:
    """Every call draws from its own stream, whatever batch it is in, so that a run can be repeated."""
    digest = hashlib.sha256(call.key("dice").encode()).digest()
    return int.from_bytes(digest[:7], "big")
