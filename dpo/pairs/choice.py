"""Which answers of a prompt make a pair. Pure: records in, choices and reasons out.

Arms (LongReward, section 4.1):
- `best-worst`: the highest reward against the lowest, the paper's own;
- `short-context-rm`: the same with rewards from a model that saw question and answer only;
- `contrast`: a given reference answer, preferred by construction, against a sampled one.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from dpo.pairs.pairs_config import Arm
from dpo.pairs.score_short import SHORT_REWARD
from judge_pipeline.common.records import Prompt, Response, Scores
from judge_pipeline.common.weighting import weighted_reward

EXCLUDING_FLAGS = ("empty", "truncated", "refused", "duplicate")


@dataclass(frozen=True)
class Rules:
    """What makes a pair worth training on."""

    arm: Arm = "best-worst"
    every_pair: bool = False
    min_responses: int = 5
    min_margin: float = 0.0
    keep_flagged: frozenset[str] = frozenset()
    weights: dict[str, float] | None = None
    """Dimension weights for a reward made from scores (others weigh 1); None takes the reward as it stands."""
    task_weights: dict[str, dict[str, float]] | None = None
    reference: str | None = None
    contrast_rejected: Literal["random", "worst"] = "random"
    seed: int = 0


@dataclass(frozen=True)
class Choice:
    """Two answers of a prompt; rewards are None where the arm needs none."""

    chosen: Response
    rejected: Response
    chosen_reward: float | None
    rejected_reward: float | None

    @property
    def margin(self) -> float | None:
        """Points between the two."""
        if self.chosen_reward is None or self.rejected_reward is None:
            return None
        return self.chosen_reward - self.rejected_reward


def weights_for(task: str | None, rules: Rules) -> dict[str, float] | None:
    """Dimension weights that apply to a prompt of this task."""
    if rules.task_weights and task in rules.task_weights:
        return rules.task_weights[str(task)]
    return rules.weights


def reward_of(response: Response, task: str | None, rules: Rules) -> float | None:
    """The reward an arm compares; None when the response has none."""
    if rules.arm == "short-context-rm":
        value = (response.model_extra or {}).get(SHORT_REWARD)
        return float(value) if value is not None else None
    weights = weights_for(task, rules)
    if weights is None:
        return response.reward
    scores: Scores = response.scores or {}
    return weighted_reward(scores, {name: weights.get(name, 1.0) for name in scores})


def usable(prompt: Prompt, rules: Rules, counts: Counter[str]) -> list[Response]:
    """Answers that may stand in a pair: no excluded flag, no text that an earlier one has."""
    kept: list[Response] = []
    texts: set[str] = set()
    for response in prompt.responses:
        flagged = [
            flag for flag in response.flags if flag in EXCLUDING_FLAGS and flag not in rules.keep_flagged
        ]
        text = response.text.strip()
        if not text:
            counts["responses: empty"] += 1
        elif text in texts or "duplicate" in flagged:
            counts["responses: duplicate"] += 1
        elif flagged:
            counts[f"responses: {flagged[0]}"] += 1
        else:
            kept.append(response)
        texts.add(text)
    return kept


def choose(prompt: Prompt, rules: Rules, counts: Counter[str]) -> list[Choice]:
    """The pairs of one prompt; `counts` collects why answers and pairs were left out."""
    counts["prompts: read"] += 1
    answers = usable(prompt, rules, counts)
    if rules.arm == "contrast":
        return _contrast(prompt, answers, rules, counts)
    task = (prompt.model_extra or {}).get("task")
    scored = []
    for response in answers:
        reward = reward_of(response, task, rules)
        if reward is None:
            counts["responses: without a reward"] += 1
        else:
            scored.append((reward, response))
    if len(scored) < rules.min_responses:
        counts[f"prompts: fewer than {rules.min_responses} scored answers"] += 1
        return []
    scored.sort(key=lambda item: -item[0])  # stable: of equal rewards the earlier answer stays first
    if rules.every_pair:
        candidates = [(a, b) for i, a in enumerate(scored) for b in scored[i + 1 :]]
    else:
        # Of equally bad answers the first sampled one is taken, as for the best: no order is favoured.
        worst = next(item for item in scored if item[0] == scored[-1][0])
        candidates = [(scored[0], worst)]
    return [
        Choice(best[1], other[1], best[0], other[0])
        for best, other in candidates
        if _wide_enough(best[0] - other[0], rules, counts)
    ]


def _wide_enough(margin: float, rules: Rules, counts: Counter[str]) -> bool:
    if margin <= 1e-9:  # rewards are means: equal ones may differ in their last bit
        counts["pairs: tied"] += 1
        return False
    if margin < rules.min_margin:
        counts[f"pairs: margin below {rules.min_margin:g}"] += 1
        return False
    return True


def _contrast(prompt: Prompt, answers: list[Response], rules: Rules, counts: Counter[str]) -> list[Choice]:
    """The reference answer against a sampled one; no reward is needed unless the worst is asked for."""
    references = [item for item in answers if rules.reference in (item.id, item.source)]
    sampled = [item for item in answers if rules.reference not in (item.id, item.source)]
    if not references:
        counts["prompts: without the reference answer"] += 1
        return []
    if not sampled:
        counts["prompts: without a sampled answer"] += 1
        return []
    task = (prompt.model_extra or {}).get("task")
    rewards = {item.id: reward_of(item, task, rules) for item in answers}
    if rules.contrast_rejected == "worst":
        sampled = [item for item in sampled if rewards[item.id] is not None]
        if not sampled:
            counts["prompts: without a scored sampled answer"] += 1
            return []
        rejected = min(sampled, key=lambda item: rewards[item.id] or 0.0)
    else:
        rejected = random.Random(f"{rules.seed}:{prompt.id}").choice(sampled)
    chosen = references[0]
    return [Choice(chosen, rejected, rewards[chosen.id], rewards[rejected.id])]
