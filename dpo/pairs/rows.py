"""Rows of the preference file: chosen pairs, and pairs of another file mixed in, in one schema."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

from dpo.chat import to_messages
from dpo.pairs.choice import Choice, task_of, template_kwargs, written
from dpo.pairs.pairs_config import Arm, PairsConfig, RewardsOf
from dpo.pairs.records import SIDES, Pair, read_pairs
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.records import DIMENSIONS, Prompt, Response, Scores


def to_row(prompt: Prompt, choice: Choice, arm: Arm, rewards_of: RewardsOf) -> dict[str, Any]:
    """A row of the output; every row has the same keys, so that Arrow finds one schema."""
    names = list(dict.fromkeys([*DIMENSIONS, *(choice.chosen.scores or {}), *(choice.rejected.scores or {})]))

    def scores(found: Scores | None) -> Scores:
        return {name: (found or {}).get(name) for name in names}

    more = {name: value for name, value in _template_columns(prompt, choice).items() if value}
    return {
        "prompt": to_messages(prompt),
        "chosen": [_turn(choice.chosen)],
        "rejected": [_turn(choice.rejected)],
        "chosen_reward": choice.chosen_reward,
        "rejected_reward": choice.rejected_reward,
        "margin": choice.margin,
        "prompt_id": prompt.id,
        "document_id": prompt.document_id,
        "chosen_id": choice.chosen.id,
        "rejected_id": choice.rejected.id,
        "chosen_truncated": "truncated" in choice.chosen.flags,
        "rejected_truncated": "truncated" in choice.rejected.flags,
        "chosen_scores": scores(choice.chosen.scores),
        "rejected_scores": scores(choice.rejected.scores),
        "task": task_of(prompt),
        "template": (choice.rejected.model_extra or {}).get("template"),
        "arm": arm,
        "rewards_of": None if choice.margin is None else rewards_of,
        **more,
    }


def _turn(response: Response) -> dict[str, Any]:
    """An answer as a message; templates of reasoning models read the thinking from a field of its own."""
    thought = written(response).get("reasoning")
    return {
        "role": "assistant",
        "content": response.text,
        **({"reasoning_content": thought} if thought else {}),
    }


def _template_columns(prompt: Prompt, choice: Choice) -> dict[str, Any]:
    """What the chat template gets besides the turns, as TRL names it, and answers as they were written."""
    sampled = template_kwargs(choice.chosen) or template_kwargs(choice.rejected) or {}
    arguments = {**(prompt.chat_template_kwargs or {}), **sampled}
    return {
        # As JSON, which TRL reads: Arrow would give every tool the fields of all others.
        "tools": json.dumps(prompt.tools, ensure_ascii=False) if prompt.tools else None,
        "chat_template_kwargs": arguments,
        "chosen_generated": written(choice.chosen).get("generated"),
        "rejected_generated": written(choice.rejected).get("generated"),
    }


def even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that all have the columns that any has, and answers the fields: Arrow finds one schema, whatever comes first."""
    blank: dict[str, Any] = dict.fromkeys(name for row in rows for name in row)
    if "chat_template_kwargs" in blank:
        blank["chat_template_kwargs"] = {}  # TRL takes no null here
    thinks = any("reasoning_content" in turn for row in rows for side in SIDES for turn in row[side])
    for row in rows if thinks else ():
        for turn in (*row["chosen"], *row["rejected"]):
            turn.setdefault("reasoning_content", None)
    return [{**blank, **row} for row in rows]


def mixed_in(rows: list[dict[str, Any]], config: PairsConfig) -> list[dict[str, Any]]:
    """The rows with the wanted share of short-context pairs, shuffled.

    Raises:
        UserError: the file has too few of them.
    """
    if config.mix is None:
        return rows
    others = list(read_pairs(config.mix))
    wanted = round(config.mix_proportion / (1 - config.mix_proportion) * len(rows))
    if wanted > len(others):
        most = len(others) / (len(others) + len(rows))
        raise UserError(
            f"--mix-proportion {config.mix_proportion:g} needs {wanted} pairs, {config.mix} has {len(others)}",
            f"--mix-proportion {int(most * 1000) / 1000:g} is the most it gives",
        )
    chance = random.Random(config.seed)
    no_scores = dict.fromkeys(rows[0]["chosen_scores"])
    blank = {"chosen_scores": no_scores, "rejected_scores": no_scores}
    everything = rows + [{**blank, **_known(pair), "arm": "mix"} for pair in chance.sample(others, wanted)]
    chance.shuffle(everything)
    return everything


def _known(pair: Pair) -> dict[str, Any]:
    """What a mixed pair brings of our own columns; documents of its own are told apart from ours."""
    hidden = {"prompt", "chosen", "rejected", "chosen_scores", "rejected_scores", "tools"}
    row = pair.model_dump(include=set(Pair.model_fields) - hidden, exclude_unset=True)
    row |= {name: pair.turns(name) for name in ("prompt", "chosen", "rejected")}
    if pair.tools:
        row["tools"] = json.dumps(
            pair.tools, ensure_ascii=False
        )  # as TRL takes them; Arrow has one schema for all rows
    digest = hashlib.sha256(pair.prompt_text.encode()).hexdigest()[:16]
    return {**row, "document_id": pair.document_id or f"mix:{digest}"}
