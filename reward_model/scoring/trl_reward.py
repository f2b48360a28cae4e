"""The reward model as one of TRL's `reward_funcs`, for GRPO, RLOO and other online methods.

    from reward_model.scoring.trl_reward import LongContextReward

    trainer = GRPOTrainer(model=…, reward_funcs=[LongContextReward("runs/rm")], train_dataset=…)

In: what TRL calls a reward function with: `prompts`, `completions`, and the dataset's columns by name. Out: one
reward a completion, in points, or None (which TRL leaves out) where there is nothing to score.

The dataset names the document in a column `context` and the question in `query`; without them the whole prompt is
taken as the question. Completions of one prompt are scored together, for one reading of its document.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.weighting import weighted_reward
from reward_model.options import TOKEN_BUDGET, SharedPrefix
from reward_model.scoring.scorer import RewardModel
from reward_model.shared_prefix.layout import EncodedPrompt

Message = dict[str, Any]
Text = str | Sequence[Message]


class LongContextReward:
    """A callable for `reward_funcs`.

    Attributes:
        model: the reward model; its `tokens_read` counts what scoring cost.
        last_scores: dimension → points of each completion of the last call, for logging (NaN where none).
    """

    __name__ = "long_context_reward"  # TRL logs a reward function under its name

    def __init__(
        self,
        model: RewardModel | Path | str,
        *,
        weights: dict[str, float] | None = None,
        overflow: Literal["error", "none"] = "error",
        token_budget: int = TOKEN_BUDGET,
        device: str | None = None,
        dtype: str | None = None,
        shared_prefix: SharedPrefix = "on",
    ) -> None:
        """Load the model, unless it is given.

        Args:
            model: a reward model or its directory.
            weights: of the dimensions; those stored with the model when None.
            overflow: completions over the model's window raise, or get None.
            token_budget: tokens a forward pass.
            device: as in `RewardModel.from_pretrained`.
            dtype: as in `RewardModel.from_pretrained`.
            shared_prefix: as in `RewardModel.from_pretrained`.
        """
        if not isinstance(model, RewardModel):
            model = RewardModel.from_pretrained(model, device, dtype, shared_prefix=shared_prefix)
        self.model = model
        names, stored = self.model.dimensions, self.model.manifest.weight_list()
        self.weights = {n: weights.get(n, 1.0) if weights else w for n, w in zip(names, stored, strict=True)}
        self.overflow, self.token_budget = overflow, token_budget
        self.last_scores: dict[str, list[float]] = {}

    def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        """Rewards of the completions, in their order.

        Raises:
            UserError: prompt and completion are longer than the window (unless `overflow="none"`).
        """
        documents = columns.get("context") or [""] * len(prompts)
        questions = columns.get("query") or [text_of(prompt) for prompt in prompts]
        texts = [text_of(completion) for completion in completions]
        places: dict[tuple[str, str], list[int]] = {}
        for place, (document, question, text) in enumerate(zip(documents, questions, texts, strict=True)):
            if text.strip():
                places.setdefault((document, question), []).append(place)
        self.last_scores = {name: [math.nan] * len(texts) for name in self.model.dimensions}
        rewards: list[float | None] = [None] * len(texts)
        kept, encoded = [], []
        for (document, question), group in places.items():
            found = self._fit(self.model.encode(document, question, [texts[i] for i in group]), group)
            if found is not None:
                kept.append(found[0])
                encoded.append(found[1])
        for group, rows in zip(kept, self.model.score_encoded(encoded, self.token_budget), strict=True):
            for place, row in zip(group, rows, strict=True):
                scores = {n: float(v) for n, v in zip(self.model.dimensions, row, strict=True)}
                rewards[place] = weighted_reward(dict(scores), self.weights)
                for name, value in scores.items():
                    self.last_scores[name][place] = value
        return rewards

    def _fit(self, encoded: EncodedPrompt, group: list[int]) -> tuple[list[int], EncodedPrompt] | None:
        """The completions of a prompt that fit the window."""
        fits = encoded.fitting(self.model.max_length)
        if self.overflow == "error" and not all(fits):
            raise UserError(
                f"a prompt with its completion has {encoded.shape.longest} tokens, over the reward model's window of "
                f"{self.model.max_length}",
                "shorten max_completion_length, leave the prompt out, or choose overflow='none'",
            )
        kept = encoded.keep(fits)
        return None if kept is None else ([i for i, fit in zip(group, fits, strict=True) if fit], kept)


def text_of(turns: Text) -> str:
    """The text of a prompt or completion: itself, or the contents of its messages."""
    if isinstance(turns, str):
        return turns
    return "\n\n".join(str(turn.get("content") or "") for turn in turns)
