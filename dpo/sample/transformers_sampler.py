"""Sampling with plain transformers: one prefill of the prompt, then all its answers decoded together.

Slower than vLLM and in need of nothing. Each answer has a random stream of its own, so answer 3 of a prompt is the
same whether 4 or 10 are drawn (up to the rounding of differently shaped products).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from dpo.chat import ChatEncoder, ChatMessages
from dpo.sample.base import Decoding, Draw, Failed, Finish, Request
from dpo.sample.shared_decode import SharedPrefix, decoding, why_not
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.kv_cache import cache_argument

PREFILL_CHUNK = 16384
"""Prompts are read in pieces of this many tokens: activations stay small at 128k."""


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 wherever the machine computes in it natively (several times faster), else fp32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def load_tokenizer(name: str, model: str) -> Any:
    """Tokenizer of a model, with a chat template or a clear error."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tokenizer of '{model}' does not load: {error}", "name a model folder or hub model"
        ) from error
    if not tokenizer.chat_template:
        raise UserError(
            f"'{model}' has no chat template",
            "use an instruction-tuned model, or add chat_template.jinja to it",
        )
    return tokenizer


def window_of(config: Any) -> int | None:
    """Positions a model was made for."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


class TransformersSampler:
    """See `Sampler`."""

    name = "transformers"
    at_a_time = 1

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto") -> None:
        path = resolve_model(model)
        self.device = pick_device(device)
        self.tokenizer = load_tokenizer(path, model)
        self.encoder = ChatEncoder(self.tokenizer)
        try:
            self.model = AutoModelForCausalLM.from_pretrained(path, dtype=pick_dtype(dtype, self.device))
        except (OSError, ValueError) as error:
            raise UserError(
                f"the model '{model}' does not load: {error}", "name a model folder or hub model"
            ) from error
        self.model.to(self.device).eval()
        self.template: str | None = self.tokenizer.chat_template
        self.window = window_of(self.model.config)
        self.not_shared = why_not(self.model)
        ends = self.model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        self.ends = sorted({*ends, self.tokenizer.eos_token_id} - {None})

    def _ids(self, messages: ChatMessages) -> list[int]:
        return self.encoder.ids(messages, add_generation_prompt=True)

    def count_tokens(self, messages: ChatMessages) -> int:
        """Tokens of the prompt with its chat template."""
        return len(self._ids(messages))

    def answer(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[Request, list[Draw] | Failed]]:
        """One request after the other."""
        for request in requests:
            yield request, self._answer_one(request, decoding)

    @torch.inference_mode()
    def _answer_one(self, request: Request, how: Decoding) -> list[Draw]:
        ids = torch.tensor([self._ids(request.messages)], device=self.device)
        cache, logits = self._prefill(ids)
        streams = [
            torch.Generator(self.device).manual_seed(request.seed + index) for index in range(request.count)
        ]
        first = _draw(logits.expand(request.count, -1), how, streams)
        if self.not_shared is None:
            prefix = SharedPrefix(cache)
            del cache
            with decoding(self.model, prefix):
                rows = self._decode(first, DynamicCache(), ids.shape[1], how, streams)
        else:
            cache.batch_repeat_interleave(request.count)
            rows = self._decode(first, cache, ids.shape[1], how, streams)
        return [self._to_draw(row, request.seed + index) for index, row in enumerate(rows)]

    def _prefill(self, ids: torch.Tensor) -> tuple[DynamicCache, torch.Tensor]:
        """Read the prompt `(1, P)`; returns its cache and the logits `(1, V)` after it."""
        cache = DynamicCache(config=self.model.config)
        out = None
        for piece in ids.split(PREFILL_CHUNK, dim=1):
            out = self.model(piece, use_cache=True, logits_to_keep=1, **cache_argument(cache))
        assert out is not None
        return cache, out.logits[:, -1].float()

    def _decode(
        self,
        tokens: torch.Tensor,
        cache: DynamicCache,
        position: int,
        how: Decoding,
        streams: list[torch.Generator],
    ) -> list[list[int]]:
        """Continue from the first tokens `(N,)`; an answer that has ended leaves the batch's result alone."""
        ends = torch.tensor(self.ends, device=self.device)
        rows = [tokens]
        done = torch.isin(tokens, ends)
        for step in range(how.max_new_tokens - 1):
            if bool(done.all()):
                break
            positions = torch.full((len(tokens), 1), position + step, device=self.device)
            out = self.model(
                tokens.unsqueeze(1),
                use_cache=True,
                position_ids=positions,
                logits_to_keep=1,
                **cache_argument(cache),
            )
            tokens = _draw(out.logits[:, -1].float(), how, streams)
            rows.append(tokens)
            done |= torch.isin(tokens, ends)
        return [_until_end(row, set(self.ends)) for row in torch.stack(rows, dim=1).tolist()]

    def _to_draw(self, row: list[int], seed: int) -> Draw:
        ended = row[-1] in self.ends
        finish: Finish = "stop" if ended else "length"
        text = self.tokenizer.decode(row[:-1] if ended else row, skip_special_tokens=True)
        return Draw(text, finish, seed, len(row))

    def close(self) -> None:
        """Let go of the weights."""
        del self.model


def _until_end(row: list[int], ends: set[int]) -> list[int]:
    for index, token in enumerate(row):
        if token in ends:
            return row[: index + 1]
    return row


def _draw(logits_NV: torch.Tensor, how: Decoding, streams: list[torch.Generator]) -> torch.Tensor:
    """One token an answer `(N,)`: softmax at the temperature, cut to the top-p nucleus, each from its own stream."""
    if how.temperature == 0:
        return logits_NV.argmax(dim=-1)
    probabilities = torch.softmax(logits_NV / how.temperature, dim=-1)
    if how.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # A token stays when the mass before it is below top_p, so the first always does.
        ordered = ordered * ((ordered.cumsum(dim=-1) - ordered) < how.top_p)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    # The smallest of exponential clocks with these rates rings first: a draw, without a loop over rows' CDFs.
    noise = torch.empty_like(probabilities)
    for row, stream in zip(noise, streams, strict=True):
        row.exponential_(generator=stream)
    return (probabilities / noise).argmax(dim=-1)
