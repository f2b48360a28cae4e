"""Sampling with plain transformers: the prompt is read once, then all its answers are decoded together.

Slower than vLLM and in need of nothing. Each answer has a random stream of its own, so answer 3 of a prompt is the
same whether 4 or 10 are drawn (up to the rounding of differently shaped products).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dpo.chat import ChatEncoder, ChatMessages
from dpo.sample.base import Decoding, Draw, Failed, Request
from judge_pipeline.common.local_models import end_tokens, load_model, window_of
from judge_pipeline.engines.shared_decoding import draw_tokens, make_decoder


class TransformersSampler:
    """See `Sampler`."""

    name = "transformers"
    at_a_time = 1

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto") -> None:
        self.model, self.tokenizer = load_model(model, device, dtype)
        self.encoder = ChatEncoder(self.tokenizer)
        self.template: str | None = self.tokenizer.chat_template
        self.window = window_of(self.model.config)
        self.decoder = make_decoder(self.model)
        self.ends = end_tokens(self.model, self.tokenizer)

    def count_tokens(self, messages: ChatMessages) -> int:
        """Tokens of the prompt with its chat template."""
        return len(self.encoder.ids(messages, add_generation_prompt=True))

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
        prompt = self.encoder.ids(request.messages, add_generation_prompt=True)
        logits = self.decoder.start_copies(prompt, request.count)
        steps: list[list[int]] = []
        done = torch.zeros(request.count, dtype=torch.bool, device=device)
        while True:
            if how.temperature == 0:
                tokens = logits.argmax(dim=-1)
            else:
                tokens = draw_tokens(logits.float(), how.temperature, how.top_p, streams)
            steps.append(tokens.tolist())
            done |= torch.isin(tokens, ends)
            if len(steps) == how.max_new_tokens or bool(done.all()):
                break
            # An answer that has ended stays in the batch, where it changes nothing of the others.
            logits = self.decoder.step(steps[-1])
        rows = zip(*steps, strict=True)
        return [self._to_draw(list(row), request.seed + index) for index, row in enumerate(rows)]

    def _to_draw(self, row: list[int], seed: int) -> Draw:
        end = next((index for index, token in enumerate(row) if token in self.ends), None)
        text = self.tokenizer.decode(row[:end], skip_special_tokens=True)
        return Draw(text, "length", seed, len(row)) if end is None else Draw(text, "stop", seed, end + 1)

    def close(self) -> None:
        """Let go of the weights."""
        del self.model, self.decoder
