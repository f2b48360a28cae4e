"""Baseline: a reward model that sees question and answer, never the document (LongReward's short-context arm).

In: any `AutoModelForSequenceClassification` with one output (or several, whose mean is taken). Out: one score an
answer. It uses the tokenizer's chat template where there is one, as such models are trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.progress import Progress
from judge_pipeline.prompts.fences import escape_control_tokens
from judge_pipeline.statistics.table import AnswerTable, Floats


class ShortContextRM:
    """Scores (question, answer) pairs; higher is better."""

    def __init__(self, name: str, batch_size: int = 8) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        path = resolve_model(name)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype)
        self.model.eval().to(self.device)
        self.batch_size = batch_size
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token is not None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def _encode(self, query: str, answer: str) -> list[int]:
        query, answer = map(escape_control_tokens, (query, answer))  # an answer must not end its own turn
        messages = [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]
        if self.tokenizer.chat_template:
            ids = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        else:
            ids = self.tokenizer(query, answer)["input_ids"]
        window = getattr(self.model.config, "max_position_embeddings", None)
        if window is not None and len(ids) > window:
            raise UserError(
                f"question and answer have {len(ids)} tokens, the short-context reward model's window is {window}",
                "name another model, or leave it out",
            )
        return list(ids)

    def score(self, queries: Sequence[str], answers: Sequence[str]) -> Floats:
        """One score a pair (n,)."""
        import torch

        encoded = [self._encode(query, answer) for query, answer in zip(queries, answers, strict=True)]
        scores = np.zeros(len(encoded))
        # Neighbours of like length share a batch, so that little is padded.
        order = sorted(range(len(encoded)), key=lambda item: len(encoded[item]))
        with Progress(len(order), "short-context RM", "answers") as progress, torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                ids = {"input_ids": [encoded[item] for item in batch]}
                padded = self.tokenizer.pad(ids, return_tensors="pt", padding_side="right")
                logits = self.model(**{name: value.to(self.device) for name, value in padded.items()}).logits
                scores[batch] = logits.float().mean(dim=-1).cpu().numpy()
                progress.update(len(batch))
        return scores

    def score_table(self, table: AnswerTable) -> Floats:
        """One score an answer of a table (R,)."""
        queries = [prompt.question for prompt in table.prompts for _ in prompt.responses]
        return self.score(queries, table.texts())
