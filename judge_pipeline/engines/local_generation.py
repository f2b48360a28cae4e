"""The judge in this process, with transformers: calls to tokens, constrained decoding, tokens to replies.

Answers are held to a call's JSON schema by xgrammar: at each step only tokens that keep the text valid may be
chosen, so that a model of any size gives a readable verdict. Log-probabilities are those of the allowed tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from judge_pipeline.calls.call import Call, CallUsage, Reply, Sampling, TokenLogprob
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from judge_pipeline.engines.shared_decoding import (
    Decoder,
    PlainDecoder,
    PrefixMemory,
    SharedPrefixDecoder,
    shares_exactly,
)

log = logging.getLogger(__name__)
PREFIX_MEMORY_TOKENS = 16384


@dataclass
class Row:
    """One call being answered."""

    call: Call
    prompt: list[int]
    matcher: Any = None
    dice: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None


def default_dtype(device: str) -> torch.dtype:
    """bfloat16 where the hardware multiplies it (measured: 2–3 times faster than fp32), else float32."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    quick = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if quick else torch.float32


class TransformersJudge:
    """A causal language model that answers batches of calls. Not for several threads at a time."""

    def __init__(self, name: str, *, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.name = name
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        path = resolve_model(name)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype or default_dtype(self.device)
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"the judge model '{name}' cannot be loaded: {error}",
                "name a folder with a causal language model, a hub model, or 'smollm2'",
            ) from error
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the judge model '{name}' has no chat template",
                "use an instruction-tuned model as the judge",
            )
        self.model.to(self.device).eval()
        self.context_window: int | None = getattr(
            self.model.config.get_text_config(), "max_position_embeddings", None
        )
        with torch.inference_mode():
            self.decoder: Decoder = (
                SharedPrefixDecoder(self.model, PrefixMemory(PREFIX_MEMORY_TOKENS))
                if shares_exactly(self.model)
                else PlainDecoder(self.model)
            )
        self._stop = _stop_tokens(self.model, self.tokenizer)
        self._compile = lru_cache(maxsize=256)(self._compile_schema)
        self._compiler: Any = None

    def encode(self, call: Call) -> list[int]:
        """The prompt's tokens, with the model's own chat template."""
        messages = [message.model_dump() for message in call.messages]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def too_long(self, call: Call, prompt: Sequence[int]) -> Reply | None:
        """A typed failure when prompt and answer do not fit the window together; nothing is ever cut."""
        needed = len(prompt) + call.sampling.max_tokens
        if self.context_window is None or needed <= self.context_window:
            return None
        return Reply(
            failure="context_too_long",
            finish_reason="error",
            detail=f"{len(prompt)} tokens and up to {call.sampling.max_tokens} for the answer do not fit the "
            f"judge's window of {self.context_window}",
        )

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
            row.dice = torch.Generator().manual_seed(_seed(call))
        return row

    def _compile_schema(self, schema: str) -> Any:
        import xgrammar

        if self._compiler is None:
            vocabulary = self.model.config.get_text_config().vocab_size
            info = xgrammar.TokenizerInfo.from_huggingface(
                self.tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(self._stop)
            )
            self._compiler = xgrammar.GrammarCompiler(info)
        # No white space between tokens of the JSON: it is where guided models get lost until their limit.
        return self._compiler.compile_json_schema(schema, any_whitespace=False)

    def _generate(self, rows: list[Row]) -> None:
        longest = max(row.call.sampling.max_tokens for row in rows)
        logits = self.decoder.start([row.prompt for row in rows], longest)
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
                token = best[index] if row.dice is None else _draw(logits[index], row.call.sampling, row.dice)
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
        if row.matcher is None and token in self._stop:
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
        reply = Reply(
            text=text,
            finish_reason=row.finish or "stop",
            usage=CallUsage(
                input_tokens=len(row.prompt), output_tokens=len(row.tokens), cached_input_tokens=reused
            ),
            latency_s=seconds,
            logprobs=row.logprobs or None,
            structured=row.matcher is not None,
        )
        if row.finish == "length":
            detail = f"cut at its token limit after {len(row.tokens)} tokens"
            return reply.model_copy(update={"failure": "truncated", "detail": detail})
        if not text.strip():
            return reply.model_copy(update={"failure": "empty_reply", "detail": "the judge said nothing"})
        return reply


def _stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    ids = getattr(model.generation_config, "eos_token_id", None)
    stop = {ids} if isinstance(ids, int) else set(ids or ())
    if tokenizer.eos_token_id is not None:
        stop.add(tokenizer.eos_token_id)
    return stop


def _seed(call: Call) -> int:
    """Every call draws from its own dice, whatever batch it is in, so that a run can be repeated."""
    digest = hashlib.sha256(call.key("dice").encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _draw(logits: torch.Tensor, sampling: Sampling, dice: torch.Generator) -> int:
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered.masked_fill(outside, 0.0))
    return int(torch.multinomial(probabilities, 1, generator=dice))
