"""Which prompts to label next: the ensemble's choice against chance, at the same number of labels.

Answers with known defects (`degrade`), frozen features of a base model, heads fitted on the labelled prompts. From a few
labelled prompts on, each round adds as many again: once those `reward_model.active.choice` proposes, once random ones. Measured
on stories of their own: within-prompt Spearman of the mean of the dimensions, over several starts.

    python scripts/bench/active_choice.py --data DIR [--prompts 60] [--starts 10]

Writes active_choice.json beside this file. Heads on frozen features stand in for training at every step, which would
take days on a small machine; the order of choosing is what is compared, not the level.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from judge_pipeline.common.records import DIMENSIONS, Label, Prompt
from judge_pipeline.statistics.agreement import within_correlation
from judge_pipeline.statistics.render import markdown
from reward_model.active.choice import STRENGTH, Floats, Labelled, choose, rank_prompts
from reward_model.active.propose import answer_features, encode
from reward_model.modeling.model import load_backbone_for_rm
from reward_model.modeling.ridge import fit_answers
from reward_model.scoring.scorer import TOKEN_BUDGET, RewardModel
from scripts.bench import known_defects
from scripts.bench.evidence_common import command_line, environment, settings_of, write_result


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of squality_stories.jsonl.gz")
    parser.add_argument("--base-model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=60, help="prompts to choose from")
    parser.add_argument("--test-prompts", type=int, default=20)
    parser.add_argument("--answers", type=int, default=5, help="answers a prompt")
    parser.add_argument(
        "--first", type=int, default=10, help="prompts labelled at the start, and added a round"
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--starts", type=int, default=10, help="random starts")
    parser.add_argument("--budget", type=int, default=350, help="words of a story's extract")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read_features(model: RewardModel, prompts: list[Prompt]) -> list[Floats]:
    """Features (N, H) of every prompt's answers."""
    return answer_features(model, encode(model, prompts), TOKEN_BUDGET, "features")


def targets_of(prompts: list[Prompt], labels: dict[tuple[str, str], Label]) -> list[Floats]:
    """Points (N, D) of every prompt's answers."""
    keys = ([(prompt.id, response.id) for response in prompt.responses] for prompt in prompts)
    return [np.array([[labels[k].scores[n] for n in DIMENSIONS] for k in row], dtype=float) for row in keys]


def labelled(
    chosen: list[int], features: list[Floats], targets: list[Floats], documents: list[str]
) -> Labelled:
    """The chosen prompts' answers as one set."""
    rows = [documents[i] for i in chosen for _ in features[i]]
    inputs, points = (np.concatenate([values[i] for i in chosen]) for values in (features, targets))
    return Labelled(inputs, points, rows)


def fidelity(known: Labelled, features: list[Floats], targets: list[Floats]) -> float:
    """Mean over test prompts and dimensions of the within-prompt Spearman of heads fitted on `known`."""
    probe = fit_answers(torch.from_numpy(known.features_A_H), torch.from_numpy(known.targets_A_D), STRENGTH)
    values = []
    for own, wanted in zip(features, targets, strict=True):
        for predicted, column in zip(probe(torch.from_numpy(own)).numpy().T, wanted.T, strict=True):
            if np.ptp(column) > 0:
                values.append(within_correlation(column, predicted, "spearman"))
    return float(np.mean(values))


def grow(
    args: argparse.Namespace,
    start: list[int],
    active: bool,
    pool: tuple[list[Floats], list[Floats], list[str]],
    test: tuple[list[Floats], list[Floats]],
    rng: random.Random,
) -> list[float]:
    """Fidelity after every round."""
    features, _, documents = pool
    chosen = list(start)
    curve = [fidelity(labelled(chosen, *pool), *test)]
    for turn in range(args.rounds - 1):
        rest = [i for i in range(len(features)) if i not in set(chosen)]
        if active:
            scores = rank_prompts(labelled(chosen, *pool), [features[i] for i in rest], seed=turn)
            picked = choose(scores, [documents[i] for i in rest], args.first)
            chosen += [rest[i] for i in picked]
        else:
            chosen += rng.sample(rest, args.first)
        curve.append(fidelity(labelled(chosen, *pool), *test))
    return curve


def main() -> None:
    """Compare and write."""
    args = arguments()
    training, test, labels = known_defects.build(args)
    pool_prompts = training[: args.prompts]
    test = [known_defects.thin(prompt, args.answers, args.seed) for prompt in test]
    model = RewardModel(load_backbone_for_rm(args.base_model))
    documents = [prompt.document_id for prompt in pool_prompts]
    pool = (read_features(model, pool_prompts), targets_of(pool_prompts, labels), documents)
    held = (read_features(model, test), targets_of(test, labels))
    active: list[list[float]] = []
    chance: list[list[float]] = []
    for number in range(args.starts):
        rng = random.Random(f"{args.seed}:{number}")
        start = rng.sample(range(len(pool_prompts)), args.first)
        active.append(grow(args, start, True, pool, held, rng))
        chance.append(grow(args, start, False, pool, held, rng))
    gaps = np.array(active) - np.array(chance)
    rows: list[dict[str, Any]] = [
        {
            "labelled": args.first * (turn + 1),
            "active": float(np.array(active)[:, turn].mean()),
            "random": float(np.array(chance)[:, turn].mean()),
            "gap": float(gap.mean()),
            "gap_standard_error": float(gap.std(ddof=1) / np.sqrt(len(gap))),
            "active_wins": int((gap > 0).sum()),
        }
        for turn, gap in enumerate(gaps.T)
    ]
    cells = []
    for row in rows:
        gap = f"{row['gap']:+.3f} ± {row['gap_standard_error']:.3f}"
        means = [f"{row[name]:.3f}" for name in ("active", "random")]
        cells.append([str(row["labelled"]), *means, gap, f"{row['active_wins']}/{args.starts}"])
    print(markdown(["labelled prompts", "active", "random", "gap ± standard error", "active ahead"], cells))
    result = {
        "settings": settings_of(args, "data"),
        "pool": len(pool_prompts),
        "test": len(test),
        "rows": rows,
    }
    write_result(Path(__file__).with_suffix(".json"), {**result, **environment()})


if __name__ == "__main__":
    main()
