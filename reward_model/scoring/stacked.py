"""A prompt with the baselines of its answers: what a model with a stack needs beside token ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from reward_model.modeling.stack_spec import Floats
from reward_model.shared_prefix.layout import EncodedPrompt


@dataclass(frozen=True, kw_only=True)
class StackedPrompt(EncodedPrompt):
    """Token ids, and baselines (N, B) in the order of the stack's."""

    baselines_N_B: Floats

    @classmethod
    def with_baselines(cls, prompt: EncodedPrompt, baselines_N_B: Floats) -> StackedPrompt:
        """The same prompt with its baselines."""
        return cls(prompt.prefix, prompt.answers, bare=prompt.bare, baselines_N_B=baselines_N_B)

    def keep(self, wanted: Iterable[bool]) -> EncodedPrompt | None:
        """The prompt with some of its answers; None without any."""
        chosen = np.array(list(wanted), dtype=bool)
        kept = super().keep(chosen)
        return (
            None
            if kept is None
            else replace(self, answers=kept.answers, baselines_N_B=self.baselines_N_B[chosen])
        )
