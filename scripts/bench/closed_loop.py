"""The closed loop: sample, score, pair, train, sample again on documents never trained on, over several seeds.

    python scripts/bench/closed_loop.py --reward-model runs/quickstart/reward_model          # about 15 minutes, 2 cores
    python scripts/bench/closed_loop.py --reward-model RM --prompts mine.jsonl --model M --n 10 --max-new-tokens 1024

The mean reward on held-out documents before and after training, with intervals over documents, and the length of the
answers beside it: a reward that rises with length alone has not made the model better. The reward that trains is the
reward that measures, so this shows that the loop optimises what it is given, and not that people would agree.
Results go to closed_loop.json beside this file, whatever they show.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this folder comes first, and holds a dpo.py

from dpo.cli import main as dpo
from dpo.evaluate.match import Match, match_files, vote_by_reward
from dpo.evaluate.page import figure_rows
from dpo.evaluate.stats import evaluation
from judge_pipeline.common.record_files import read_prompts, write_records, write_text
from judge_pipeline.common.records import Prompt
from judge_pipeline.statistics.render import interval
from reward_model.data.splits import hash_fraction
from scripts.bench.evidence_common import command_line, environment, write_result

QUESTION = (
    "Explain the rules that this part of the Python reference gives about '{topic}', and name one exception."
)
TIE_MARGIN = 0.1


def default_prompts(shortest: int, longest: int, count: int) -> list[Prompt]:
    """A question of our own about documents that Python itself carries, between two lengths in characters."""
    names = sorted(name for name, text in topics.items() if shortest <= len(text) <= longest)
    names = sorted(names, key=lambda name: hash_fraction(name, 0))[:count]
    texts = {name: (topics[name].strip(), QUESTION.format(topic=name)) for name in names}
    return [Prompt(id=n, document_id=n, context=text, query=query) for n, (text, query) in texts.items()]


def must(command: Callable[[list[str]], int], *words: object) -> None:
    """Run a command; stop the benchmark when it failed, its message stands above."""
    if (code := command([str(word) for word in words])) != 0:
        raise SystemExit(f"{words[0]} ended with {code}")


def one_seed(
    seed: int, train: Sequence[Prompt], held: Sequence[Prompt], args: argparse.Namespace
) -> list[Match]:
    """One round of `dpo round`; the held-out answers after (A) and before (B) training."""
    folder = args.work / f"seed-{seed}"
    write_records(folder / "train.jsonl", train)
    write_records(folder / "held_out.jsonl", held)
    plan = {
        "prompts": str(folder / "train.jsonl"),
        "eval_prompts": str(folder / "held_out.jsonl"),
        "model": args.model,
        "reward_model": str(args.reward_model),
        "output": str(folder / "rounds"),
        "rounds": 1,
        "seed": seed,
        "sample": {"n": args.n, "max_new_tokens": args.max_new_tokens},
        "pairs": {"min_responses": min(args.n, 4), "keep_flagged": ["truncated"]},
        "train": {
            "num_train_epochs": args.epochs,
            "learning_rate": args.learning_rate,
            "gradient_accumulation_steps": 2,
            "eval_fraction": 0,
        },
    }
    write_text(folder / "round.yaml", yaml.safe_dump(plan, sort_keys=False))
    must(dpo, "round", "--config", folder / "round.yaml")
    before, after = (folder / "rounds" / f"round-{number}" / "eval.scored.jsonl" for number in (0, 1))
    matches, _ = match_files(after, before)
    for match in matches:
        match.vote = vote_by_reward(match, TIE_MARGIN)
    return matches


def parse() -> argparse.Namespace:
    """The settings."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--reward-model", type=Path, required=True, help="directory of a trained reward model"
    )
    parser.add_argument("--model", default="smollm2", help="model that is trained (default: smollm2)")
    parser.add_argument("--prompts", type=Path, help="prompts file (default: Python's own documentation)")
    parser.add_argument("--work", type=Path, default=Path("runs/closed_loop"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--count", type=int, default=24, help="prompts of the default set (default: 24)")
    parser.add_argument("--held-out", type=float, default=0.5, help="share of documents never trained on")
    parser.add_argument("--longest", type=int, default=4000, help="characters of a default document, at most")
    parser.add_argument("--n", type=int, default=4, help="answers a prompt (default: 4)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="(default: 64)")
    parser.add_argument("--epochs", type=float, default=2, help="(default: 2)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the adapter (default: 1e-4)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    return parser.parse_args()


def split(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """(training, held out) by document; the same for every seed, so that intervals compare like with like."""
    documents = sorted({prompt.document_id for prompt in prompts}, key=lambda name: hash_fraction(name, 1))
    held = set(documents[: max(1, round(len(documents) * share))])
    return [p for p in prompts if p.document_id not in held], [p for p in prompts if p.document_id in held]


def main() -> None:
    """Run every seed, print the figures, write the results."""
    args = parse()
    default = args.prompts is None
    prompts = default_prompts(900, args.longest, args.count) if default else list(read_prompts(args.prompts))
    train, held = split(prompts, args.held_out)
    started = time.monotonic()
    per_seed: dict[str, dict[str, Any]] = {}
    everything: list[Match] = []
    for seed in args.seeds:
        matches = one_seed(seed, train, held, args)
        per_seed[str(seed)] = evaluation(matches)
        everything += matches
    found = evaluation(everything)
    print(f"\nafter against before, {len(args.seeds)} seeds, {len(held)} held-out prompts each")
    for name in ("win", "tie", "loss"):
        print(f"  {name:<22} {interval(found[name], 2)}")
    for row in figure_rows(found):
        print(f"  {row[0]:<22} after {row[1]:<24} before {row[2]:<24} difference {row[3]}")
    left_out = ("work", "output", "reward_model")
    settings = {key: value for key, value in vars(args).items() if key not in left_out}
    settings["prompts"] = args.prompts and str(args.prompts)
    result = {
        "what": "mean reward on held-out documents after (a) and before (b) DPO on the reward's own pairs",
        "settings": settings,
        "documents": {
            "trained_on": len({p.document_id for p in train}),
            "held_out": len({p.document_id for p in held}),
        },
        "all_seeds": found,
        "per_seed": per_seed,
        "seconds": round(time.monotonic() - started),
        **environment(),
    }
    write_result(args.output, result)


if __name__ == "__main__":
    main()
