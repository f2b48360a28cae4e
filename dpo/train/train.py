"""`dpo train`: DPO + λ·CE on preference pairs, the prompt of a pair encoded once (LongReward, section 4.1).

In: pairs (`dpo pairs`, or any TRL preference file) and the model that was sampled. Out: a directory with an
adapter or a full model, `metrics.jsonl`, `run.yaml`, and `summary.json`, which is written last. A stopped run goes
on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from trl import DPOConfig

from dpo.train.data import NumberedPair, datasets_for, make_check, on_disk
from dpo.train.merge import merge_adapter
from dpo.train.policy import load_policy, max_length_of
from dpo.train.rendering import PairRenderer
from dpo.train.train_config import TrainConfig
from dpo.train.trainer import SharedPromptDPOTrainer
from dpo.train.trl_settings import trl_config
from dpo.train.trl_version import check_trl
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.local_models import load_tokenizer
from judge_pipeline.common.record_files import write_json
from reward_model.training.adapters import compute_dtype, lora_config
from reward_model.training.callbacks import StopOnInterrupt, read_metrics
from reward_model.training.guards import explain_out_of_memory, show_log
from reward_model.training.run import is_finished, leave_together, open_run, prepare_process, run_trainer
from reward_model.training.sharding import share_prefix

COMMAND = "dpo train"
SUMMARY = "summary.json"
DATA = "data"
FINISHED_HINT = "`dpo merge` makes a plain model of a finished adapter; --existing replace trains anew, another --output keeps both"
KNOBS = (
    "--per-device-train-batch-size 1, with more --gradient-accumulation-steps",
    "--gradient-checkpointing",
    "--method lora, or qlora for a 4-bit base model",
    "--precision bf16",
    "a smaller --tile: answer tokens through the LM head at a time",
    "--max-length N --overflow skip, which leaves the longest pairs out",
    "more devices: accelerate launch with a configuration of scripts/accelerate",
)
CE_RISE = 0.2
"""Nats a token; a fall of the chosen answers' probability by a fifth is no noise of a few batches."""
MARGIN_LIMIT = 10.0
"""At a margin of 10 the sigmoid loss is 5e-5: what moves the model further is no preference any more."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads, checked as far as that goes before its directory is touched."""

    model: Any
    tokenizer: Any
    max_length: int
    train: list[NumberedPair]
    held_out: list[NumberedPair]


def read_inputs(config: TrainConfig) -> Inputs:
    """Pairs and model of a run; see `datasets_for`, `max_length_of` and `load_policy` for what is refused."""
    path = resolve_model(config.model)
    tokenizer = load_tokenizer(path, config.model)
    train, held_out = datasets_for(config, tokenizer.chat_template)
    model = load_policy(config, path)
    if config.shared_prefix == "on":
        share_prefix(model)  # proved on the weights that are trained, before anything is written
    return Inputs(model, tokenizer, max_length_of(config, path), train, held_out)


def build_trainer(
    config: TrainConfig, args: DPOConfig, inputs: Inputs
) -> tuple[SharedPromptDPOTrainer, dict[str, Any]]:
    """The Trainer with its tokenized pairs; also what the summary says about the data."""
    train, held_out = inputs.train, inputs.held_out
    skipped: dict[str, int] = {}
    paths = {"train": config.pairs, "eval": config.eval_pairs or config.pairs}
    with args.main_process_first(local=False):
        renderer, folder = PairRenderer(inputs.tokenizer), config.output / DATA
        train_set = on_disk(train, folder / "train", renderer, paths["train"])
        eval_set = on_disk(held_out, folder / "held_out", renderer, paths["eval"]) if held_out else None
    trains_itself = config.method == "full" or isinstance(inputs.model, PeftModel)
    try:
        trainer = SharedPromptDPOTrainer(
            model=inputs.model,
            args=args,
            train_dataset=train_set,
            eval_dataset=eval_set,
            processing_class=inputs.tokenizer,
            peft_config=None if trains_itself else lora_config(config.lora, "CAUSAL_LM"),
            share=config.shared_prefix == "on",
            tile=config.tile,
            check=make_check(inputs.max_length, config.overflow, paths, skipped),
        )
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"TRL refuses these settings: {error}") from error
    if config.reference_weights == "base":
        drop_reference_adapter(trainer.model)
    about = {
        "pairs": len(trainer.train_dataset),
        "held_out_pairs": len(trainer.eval_dataset) if held_out else 0,
        "documents": len({item.document for item in train}),
        "held_out_documents": len({item.document for item in held_out}),
        "skipped": skipped,
    }
    return trainer, about


def run(config: TrainConfig) -> int:
    """Train; 0 when finished. What was finished is kept whatever stops it; an interrupt saves a checkpoint first."""
    show_log()
    check_trl()
    prepare_process(config)
    files = [path for path in (config.pairs, config.eval_pairs) if path]
    if is_finished(config, COMMAND, files, SUMMARY, FINISHED_HINT):
        if PartialState().is_main_process:
            print(f"{config.output}: this run is complete; --existing replace starts it anew")
        leave_together()
        return 0
    with explain_out_of_memory("training", KNOBS):
        inputs = read_inputs(config)
        args = trl_config(config, evaluates=bool(inputs.held_out))
        with open_or_leave_nothing(config, files):
            trainer, about = build_trainer(config, args, inputs)
        started = time.monotonic()
        with StopOnInterrupt() as stop:
            run_trainer(trainer, config, stop)
            export(trainer, config)
    if trainer.is_world_process_zero():
        summarise(trainer, config, about, time.monotonic() - started)
    leave_together()
    return 0


@contextlib.contextmanager
def open_or_leave_nothing(config: TrainConfig, files: Sequence[Path]) -> Iterator[None]:
    """Open the run; pairs that are refused once they are tokenized leave a new one as if it had not been."""
    new = not config.output.exists()
    empty = new or not any(config.output.iterdir())
    resuming = open_run(config, COMMAND, files)
    try:
        yield
    except UserError:
        if PartialState().is_main_process and not resuming:
            shutil.rmtree(config.output / DATA, ignore_errors=True)
            if empty:
                (config.output / "run.yaml").unlink(missing_ok=True)
            if new:
                shutil.rmtree(config.output)
        raise


def drop_reference_adapter(model: Any) -> None:
    """Forget the copy that TRL keeps of an adapter it goes on from; without it, the base is the reference."""
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")


def export(trainer: SharedPromptDPOTrainer, config: TrainConfig) -> None:
    """Write the model or adapter and the tokenizer; merged when asked for."""
    merged = config.merge and config.method != "full"
    target = config.output / "adapter" if merged else config.output
    drop_reference_adapter(trainer.model)  # else it would be saved beside the trained one
    trainer.save_model(str(target))
    if not trainer.is_world_process_zero():
        return
    trainer.processing_class.save_pretrained(str(target))
    if merged:
        merge_adapter(target, config.output, compute_dtype(config))
        trainer.processing_class.save_pretrained(str(config.output))


def summarise(
    trainer: SharedPromptDPOTrainer, config: TrainConfig, about: dict[str, Any], seconds: float
) -> None:
    """Write the summary, the run's last file, and print it; the checkpoints go."""
    rows = read_metrics(config.output / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_loss" in row]
    seen = int(trainer._total_train_tokens)
    warnings = warning_signs(steps, evaluations, config.beta, about["held_out_pairs"])
    summary = {
        **about,
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "shared_prefix": config.shared_prefix,
        "tokens_seen": seen,
        "tokens_saved": trainer.tokens_saved,
        "first": steps[0] if steps else None,
        "last": steps[-1] if steps else None,
        "held_out": evaluations[-1] if evaluations else None,
        "warnings": warnings,
    }
    if not config.keep_checkpoints:
        shutil.rmtree(config.checkpoints, ignore_errors=True)
    write_json(config.output / SUMMARY, summary)
    _print_summary(summary, config)


def warning_signs(
    steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]], beta: float, held_out: int = 0
) -> list[str]:
    """Signs of an unstable DPO run in its metrics, as sentences; empty for a run that shows none.

    Everything is measured against the reference on the same pairs, so that batches may differ.

    Args:
        steps: logged training steps, in order; the last tenth counts.
        evaluations: held-out evaluations, in order; the last counts, and stands for the steps.
        beta: DPO's β, by which TRL's rewards are scaled.
        held_out: pairs in an evaluation; few of them are as often wrong by chance.
    """
    last = steps[-max(1, len(steps) // 10) :]
    if evaluations:
        last = [{name.removeprefix("eval_"): value for name, value in evaluations[-1].items()}]
    if not last:
        return []
    names = ("rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/chosen", "ce/chosen")
    end = {name: sum(row[name] for row in last) / len(last) for name in names}
    found = []
    tokens = -end["logps/chosen"] / max(end["ce/chosen"], 1e-9)
    fall = -end["rewards/chosen"] / beta / max(tokens, 1.0)
    if fall > CE_RISE:
        found.append(f"the chosen answers became less likely, by {fall:.2f} nats a token")
    if end["rewards/margins"] > MARGIN_LIMIT:
        found.append(f"the margin is {end['rewards/margins']:.1f}: far beyond what the loss still asks for")
    if held_out and evaluations and end["rewards/accuracies"] + held_out**-0.5 < 0.5:  # two standard errors
        found.append(
            f"{end['rewards/accuracies']:.0%} of the held-out pairs are ordered as they should be: nothing carries over"
        )
    return found


def _print_summary(summary: dict[str, Any], config: TrainConfig) -> None:
    saved = summary["tokens_saved"] / summary["tokens_seen"] if summary["tokens_seen"] else 0.0
    print(
        f"{config.output}: {summary['steps']} steps on {summary['pairs']} pairs in {summary['seconds']:.0f} s; "
        f"{summary['tokens_seen']} tokens seen, {saved:.0%} of them not computed twice"
    )
    for name, key in (("first step", "first"), ("last step", "last"), ("held out", "held_out")):
        if row := {name.removeprefix("eval_"): value for name, value in (summary[key] or {}).items()}:
            print(
                f"  {name:<10} loss {row['loss']:.4f} · margin {row['rewards/margins']:+.4f} · "
                f"accuracy {row['rewards/accuracies']:.0%} · CE of chosen {row['ce/chosen']:.3f}"
            )
    for sign in summary["warnings"]:
        print(f"  UNSTABLE · {sign}")
    if summary["warnings"]:
        print(
            "  a lower --learning-rate, a higher --beta, or more weight on sft steady it; see metrics.jsonl"
        )
