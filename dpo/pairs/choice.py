"""Which answers of a prompt make a pair. Pure: records in, choices and reasons out.

Arms (LongReward, section 4.1):
- `best-worst`: the highest reward against the lowest, the paper's own;
- `short-context-rm`: the same with rewards from a model that saw question and answer only;
- `contrast`: a given reference answer, preferred by construction, against a sampled one.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from dpo.pairs.pairs_config import PairsConfig, RewardsOf
from dpo.pairs.score_short import SHORT_REWARD
from judge_pipeline.common.records import Prompt, Response, Scores
from judge_pipeline.common.weighting import weighted_reward

EXCLUDING_FLAGS = ("empty", "truncated", "refused", "duplicate")


@dataclass(frozen=True)
class Rules:
    """What makes a pair worth training on: the settings, and what they name."""

    config: PairsConfig
    task_weights: dict[str, dict[str, float]] = field(default_factory=dict)
    sure_margin: float = 0.0
    """Points that rewards of the scored file must differ by for their order to be as sure as the settings ask."""

    def least_margin(self, rewards_of: RewardsOf) -> float:
        """Points that two rewards must differ by."""
        return max(self.config.min_margin, self.sure_margin if rewards_of == "file" else 0.0)

    def weights(self, task: str | None) -> dict[str, float] | None:
        """Dimension weights for a prompt of this task (others weigh 1); None takes the reward as it stands."""
        return self.task_weights.get(task or "", self.config.weights or None)


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


def task_of(prompt: Prompt) -> str | None:
    """The prompt's `task` field."""
    task = (prompt.model_extra or {}).get("task")
    return None if task is None else str(task)


def written(response: Response) -> dict[str, Any]:
    """What `dpo sample` keeps of an answer besides its text (`generated`, `reasoning`, `template`, …)."""
    return response.model_extra or {}


def template_kwargs(response: Response) -> dict[str, Any] | None:
    """The arguments of the chat template that an answer was sampled with; None for an answer from elsewhere."""
    found: dict[str, Any] | None = written(response).get("chat_template_kwargs")
    return (found or {}) if "template" in written(response) else None


def reward_of(response: Response, task: str | None, rules: Rules) -> float | None:
    """The reward an arm compares; None when the response has none."""
    if rules.config.arm == "short-context-rm":
        value = (response.model_extra or {}).get(SHORT_REWARD)
        return float(value) if value is not None else None
    weights = rules.weights(task)
    if weights is None:
        return response.reward
    scores: Scores = response.scores or {}
    return weighted_reward(scores, {name: weights.get(name, 1.0) for name in scores})


def usable(prompt: Prompt, rules: Rules, counts: Counter[str]) -> list[Response]:
    """Answers that may stand in a pair: no excluded flag, no text that an earlier one has."""
    kept: list[Response] = []
    texts: set[str] = set()
    excluded = set(EXCLUDING_FLAGS).difference(rules.config.keep_flagged)
    for response in prompt.responses:
        flagged = [flag for flag in response.flags if flag in excluded]
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


def choose(
    prompt: Prompt, rules: Rules, counts: Counter[str], rewards_of: RewardsOf = "file"
) -> list[Choice]:
    """The pairs of one prompt; `counts` collects why answers and pairs were left out."""
    counts["prompts: read"] += 1
    config, answers = rules.config, usable(prompt, rules, counts)
    rewards = [reward_of(response, task_of(prompt), rules) for response in answers]
    if config.arm == "contrast":
        return _contrast(prompt, answers, rewards, config, counts)
    scored = [(reward, item) for reward, item in zip(rewards, answers, strict=True) if reward is not None]
    if len(scored) < len(answers):
        counts["responses: without a reward"] += len(answers) - len(scored)
    if len(scored) < config.min_responses:
        counts[f"prompts: fewer than {config.min_responses} scored answers"] += 1
        return []
    scored.sort(key=lambda item: -item[0])  # stable: of equal rewards the earlier answer stays first
    alike = [pair for pair in combinations(scored, 2) if _of_like_length(pair[0][1], pair[1][1], config)]
    if not alike:
        counts[f"prompts: no two answers within {config.max_length_ratio:g} times each other's length"] += 1
        return []
    if config.pairs == "best-worst":  # of equals the first that was sampled: no order is favoured
        alike = [max(alike, key=lambda pair: (pair[0][0] - pair[1][0], pair[0][0], -pair[1][0]))]
    least = rules.least_margin(rewards_of)
    pairs = []
    for (better, chosen), (worse, rejected) in alike:
        if better - worse <= 1e-9:  # rewards are means: equal ones may differ in their last bit
            counts["pairs: tied"] += 1
        elif better - worse < least:
            counts[f"pairs: margin below {least:.3g}"] += 1
        elif _asked_otherwise(chosen, rejected):
            counts["pairs: sampled with other template arguments"] += 1
        else:
            pairs.append(Choice(chosen, rejected, better, worse))
    return pairs


def _of_like_length(first: Response, second: Response, config: PairsConfig) -> bool:
    """Whether the longer answer has at most so many times the characters of the shorter, as the settings say."""
    if config.max_length_ratio is None:
        return True
    shorter, longer = sorted(len(item.text.strip()) for item in (first, second))
    return longer <= config.max_length_ratio * shorter


def _asked_otherwise(first: Response, second: Response) -> bool:
    """Whether the two were sampled with other arguments of the chat template: no prompt is that of both."""
    known = [kwargs for kwargs in map(template_kwargs, (first, second)) if kwargs is not None]
    return len(known) == 2 and known[0] != known[1]


def _contrast(
    prompt: Prompt,
    answers: list[Response],
    rewards: list[float | None],
    config: PairsConfig,
    counts: Counter[str],
) -> list[Choice]:
    """The reference answer against a sampled one; no reward is needed unless the worst is asked for."""
    rated = list(zip(answers, rewards, strict=True))
    references = [(item, reward) for item, reward in rated if config.reference in (item.id, item.source)]
    sampled = [(item, reward) for item, reward in rated if config.reference not in (item.id, item.source)]
    scored = [(item, reward) for item, reward in sampled if reward is not None]
    worst = config.contrast_rejected == "worst"
    if not references:
        counts["prompts: without the reference answer"] += 1
    elif not sampled:
        counts["prompts: without a sampled answer"] += 1
    elif worst and not scored:
        counts["prompts: without a scored sampled answer"] += 1
    else:
        drawn = random.Random(f"{config.seed}:{prompt.id}").choice(sampled)
        (chosen, chosen_reward), rejected = references[0], min(scored, key=lambda x: x[1]) if worst else drawn
        return [Choice(chosen, rejected[0], chosen_reward, rejected[1])]
    return []
