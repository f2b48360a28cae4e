"""Sampling with plain transformers: the prompt is read once, then all its answers are decoded together.

Slower than vLLM and in need of nothing. Each answer has a random stream of its own, so answer 3 of a prompt is the
same whether 4 or 10 are drawn (up to the rounding of differently shaped products).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
)

from dpo.chat import ChatEncoder, ChatMessages, ChatTemplate
from dpo.sample.base import Decoding, Draw, Failed, Finish, Request, to_draw
from dpo.sample.reasoning import opens_thinking
from judge_pipeline.common.local_models import end_tokens, load_model, window_of
from judge_pipeline.engines.shared_decoding import draw_tokens, make_decoder


class Chooser:
    """Picks the next token of every answer: penalty, temperature, min-p, top-k, top-p, in vLLM's order."""

    def __init__(
        self, how: Decoding, prompt: list[int], streams: list[torch.Generator], device: torch.device
    ) -> None:
        self.how, self.streams = how, streams
        # Only the penalty reads what was there before; the others take it for their interface's sake.
        self._seen = torch.tensor(
            [prompt if how.repetition_penalty != 1 else []] * len(streams), device=device
        )
        self._seen = self._seen.long()
        self._warpers = LogitsProcessorList()
        if how.min_p > 0:
            self._warpers.append(MinPLogitsWarper(how.min_p))
        if how.top_k > 0:
            self._warpers.append(TopKLogitsWarper(how.top_k))

    def next(self, logits: torch.Tensor) -> torch.Tensor:
        """One token a row, [B] from [B, V]."""
        how = self.how
        if how.repetition_penalty != 1:
            logits = RepetitionPenaltyLogitsProcessor(how.repetition_penalty)(self._seen, logits)
        if how.temperature == 0:
            tokens = logits.argmax(dim=-1)
        else:
            scores = self._warpers(self._seen, logits / how.temperature)
            tokens = draw_tokens(scores, 1.0, how.top_p, self.streams)
        if how.repetition_penalty != 1:
            self._seen = torch.cat([self._seen, tokens[:, None]], dim=1)
        return tokens


class TransformersSampler:
    """See `Sampler`."""

    name = "transformers"
    at_a_time = 1

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto") -> None:
        self.model, self.tokenizer = load_model(model, device, dtype)
        self.encoder = ChatEncoder(self.tokenizer)
        self.template: ChatTemplate | None = self.tokenizer.chat_template
        self.window = window_of(self.model.config)
        self.decoder = make_decoder(self.model)
        self.ends = end_tokens(self.model, self.tokenizer)

    def count_tokens(self, messages: ChatMessages, **template: Any) -> int:
        """Tokens of the prompt with its chat template."""
        return len(self.encoder.ids(messages, add_generation_prompt=True, **template))

    def answer(
        self, requests: Sequence[Request], decoding: Decoding
    ) -> Iterator[tuple[Request, list[Draw] | Failed]]:
        """One request after the other."""
        for request in requests:
            yield request, self._answer_one(request, decoding)

    @torch.inference_mode()
    def _answer_one(self, request: Request, how: Decoding) -> list[Draw]:
        device = self.model.device
        streams = [torch.Generator(device).manual_seed(request.seed + i) for i in range(request.count)]
        ends = torch.tensor(sorted(self.ends), device=device)
        prompt = self.encoder.ids(request.messages, add_generation_prompt=True, **request.template)
        choose = Chooser(how, prompt, streams, device)
        logits = self.decoder.start_copies(prompt, request.count)
        steps: list[list[int]] = []
        done = torch.zeros(request.count, dtype=torch.bool, device=device)
        while True:
            tokens = choose.next(logits.float())
            steps.append(tokens.tolist())
            done |= torch.isin(tokens, ends)
            if how.stop:
                done |= torch.tensor([self._stops(row, how.stop) for row in zip(*steps, strict=True)]).to(
                    device
                )
            if len(steps) == how.max_new_tokens or bool(done.all()):
                break
            # An answer that has ended stays in the batch, where it changes nothing of the others.
            logits = self.decoder.step(steps[-1])
        opened = opens_thinking(self.encoder.render(request.messages, True, **request.template))
        rows = zip(*steps, strict=True)
        return [
            self._to_draw(list(row), how.stop, opened, request.seed + index) for index, row in enumerate(rows)
        ]

    def _stops(self, row: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the last tokens spell a stop text; each character is at most four tokens."""
        tail = self.tokenizer.decode(row[-4 * max(map(len, stop)) - 4 :], skip_special_tokens=True)
        return any(text in tail for text in stop)

    def _to_draw(self, row: list[int], stop: Sequence[str], opened: bool, seed: int) -> Draw:
        length = next((index + 1 for index, token in enumerate(row) if token in self.ends), None)
        text = self.tokenizer.decode(row[: None if length is None else length - 1], skip_special_tokens=True)
        found = [at for words in stop if (at := text.find(words)) >= 0]
        if found:
            length = next(n for n in range(1, len(row) + 1) if self._stops(row[:n], stop))
            text = text[: min(found)]
        finish: Finish = "length" if length is None else "stop"
        return to_draw(text, opened, finish, seed, length or len(row))

    def close(self) -> None:
        """Let go of the weights."""
        del self.model, self.decoder
