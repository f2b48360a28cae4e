"""The judge in this process, with transformers: calls gathered into batches that begin alike, answered by one thread.

Answers are held to a call's JSON schema by xgrammar: at each step only tokens that keep the text valid may be
chosen, so that a model of any size gives a readable verdict. Log-probabilities are those of the allowed tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch

from judge_pipeline.calls.call import Call, CallUsage, Reply, TokenLogprob, context_too_long, typed
from judge_pipeline.common.local_models import chat_ids, end_tokens, load_model, window_of
from judge_pipeline.engines.base import DEFAULT_ROUTING, Routing, StopCalls
from judge_pipeline.engines.shared_decoding import draw_tokens, make_decoder

GATHER_S = 0.02
"""How long to wait for more calls when there is work for less than a full batch."""
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

    def encode(self, call: Call) -> list[int]:
        """The prompt's tokens, with the model's own chat template."""
        return chat_ids(self.tokenizer, [message.model_dump() for message in call.messages])

    def answer(self, calls: Sequence[Call], prompts: Sequence[list[int]]) -> list[Reply]:
        """Replies to a batch of calls, in order."""
        started = time.perf_counter()
        rows = [self._row(call, prompt) for call, prompt in zip(calls, prompts, strict=True)]
        with torch.inference_mode():
            self._generate(rows)
        seconds, reused = time.perf_counter() - started, self.decoder.reused
        return [self._reply(row, before, seconds) for row, before in zip(rows, reused, strict=True)]

    def _row(self, call: Call, prompt: list[int]) -> Row:
        row = Row(call, prompt)
        if call.json_schema is not None:
            import xgrammar

            compiled = self._compile(json.dumps(call.json_schema))
            row.matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
        if call.sampling.temperature > 0:
            row.stream = torch.Generator().manual_seed(_seed(call))
        return row

    @cached_property
    def _compiler(self) -> Any:
        import xgrammar

        vocabulary = self.model.config.get_text_config().vocab_size
        info = xgrammar.TokenizerInfo.from_huggingface(
            self.tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(self._ends)
        )
        return xgrammar.GrammarCompiler(info)

    def _compile_schema(self, schema: str) -> Any:
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
                token, how = best[index], row.call.sampling
                if row.stream is not None:
                    drawn = draw_tokens(logits[index : index + 1], how.temperature, how.top_p, [row.stream])
                    token = int(drawn)
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
        read, written = len(row.prompt), len(row.tokens)
        reply = Reply(
            text=self.tokenizer.decode(row.tokens, skip_special_tokens=True),
            finish_reason=row.finish or "stop",
            usage=CallUsage(input_tokens=read, output_tokens=written, cached_input_tokens=reused),
            latency_s=seconds,
            logprobs=row.logprobs or None,
            structured=row.matcher is not None,
        )
        return typed(reply)


def _seed(call: Call) -> int:
    """Every call draws from its own stream, whatever batch it is in, so that a run can be repeated."""
    digest = hashlib.sha256(call.key("dice").encode()).digest()
    return int.from_bytes(digest[:7], "big")


@dataclass(order=True)
class _Waiting:
    priority: tuple[str | int, ...]
    call: Call = field(compare=False)
    routing: Routing = field(compare=False)
    reply: asyncio.Future[Reply] = field(compare=False)


class LocalEngine:
    """Answers calls with a model in this process."""

    supports_schema: bool = True

    def __init__(self, judge: TransformersJudge, *, batch_size: int = 8, batch_tokens: int = 32768) -> None:
        self.judge = judge
        self.model = self.identity = judge.name
        self.encode = judge.encode
        self.context_window = judge.context_window
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self._waiting: list[_Waiting] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge")
        self._worker: asyncio.Task[None] | None = None

    def where(self, routing: Routing) -> str:
        """In this process."""
        return "local"

    async def answer(self, call: Call, routing: Routing = DEFAULT_ROUTING) -> Reply:
        """Wait for the call's batch; see `Engine.answer`."""
        item = _Waiting(routing.priority, call, routing, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await item.reply

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await self._gather()
            batch = self._next_batch()
            if not batch:
                continue
            try:
                replies = await loop.run_in_executor(
                    self._thread, self._answer, [item.call for item in batch]
                )
            except BaseException as error:
                for item in batch:
                    if not item.reply.done():
                        item.reply.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for item, reply in zip(batch, replies, strict=True):
                if not item.reply.done():
                    item.reply.set_result(reply)

    async def _gather(self) -> None:
        """Until a batch is full or nobody new comes: a batch once begun takes no one in."""
        before = -1
        while before < len(self._waiting) < 4 * self.batch_size:
            before = len(self._waiting)
            await asyncio.sleep(GATHER_S)

    def _next_batch(self) -> list[_Waiting]:
        """The first calls in order, of one template: they share a beginning."""
        waiting, self._waiting = sorted(item for item in self._waiting if not item.reply.done()), []
        batch: list[_Waiting] = []
        for item in waiting:
            if len(batch) == self.batch_size or (batch and item.call.template != batch[0].call.template):
                self._waiting.append(item)
                continue
            try:
                item.routing.admit()
            except StopCalls as stop:
                item.reply.set_exception(stop)
            else:
                batch.append(item)
        return batch

    def _answer(self, calls: list[Call]) -> list[Reply]:
        """In the worker thread: check lengths, split by memory, answer."""
        prompts = [self.judge.encode(call) for call in calls]
        replies = [
            context_too_long(call, len(prompt), self.context_window)
            for call, prompt in zip(calls, prompts, strict=True)
        ]
        groups: list[list[int]] = []
        tokens = 0
        for index in (index for index, failed in enumerate(replies) if failed is None):
            need = len(prompts[index]) + calls[index].sampling.max_tokens
            if not groups or tokens + need > self.batch_tokens:
                groups.append([])
                tokens = 0
            groups[-1].append(index)
            tokens += need
        for group in groups:
            answers = self.judge.answer([calls[i] for i in group], [prompts[i] for i in group])
            for index, reply in zip(group, answers, strict=True):
                replies[index] = reply
        return [reply for reply in replies if reply is not None]

    async def close(self) -> None:
        """Wait for the batch at work, then let the thread go."""
        if self._worker is not None and not self._worker.done():
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown(wait=True)
