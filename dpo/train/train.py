"""`dpo train`: DPO + λ·CE on preference pairs, the prompt of a pair encoded once (LongReward, section 4.1).

In: pairs (`dpo pairs`, or any TRL preference file) and the model that was sampled. Out: a directory with an
adapter or a full model, `metrics.jsonl`, `run.yaml`, and `summary.json`, which is written last. A stopped run goes
on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from dpo.sample.transformers_sampler import load_tokenizer, window_of
from dpo.train.data import datasets_for, make_check, on_disk
from dpo.train.train_config import TrainConfig
from dpo.train.trainer import SharedPromptDPOTrainer
from dpo.train.trl_settings import trl_config
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.optional_packages import INSTALL_LINES
from judge_pipeline.common.quiet import quiet_libraries
from judge_pipeline.common.record_files import write_text
from judge_pipeline.common.run_dir import prepare_run
from reward_model.training.callbacks import MetricsFile, ProgressLine, StopOnInterrupt, read_metrics

SUMMARY = "summary.json"
CE_RISE = 0.2
"""Nats a token; a fall of the chosen answers' probability by a fifth is no noise of a few batches."""
MARGIN_LIMIT = 10.0
"""At a margin of 10 the sigmoid loss is 5e-5: what moves the model further is no preference any more."""


def load_policy(config: TrainConfig, path: str) -> Any:
    """The model to train: fp32 weights for full training, bf16 ones under an adapter where bf16 is computed in.

    Raises:
        UserError: it does not load, is itself an adapter, or QLoRA lacks bitsandbytes.
    """
    if (Path(path) / "adapter_config.json").is_file():
        raise UserError(
            f"'{config.model}' is an adapter, not a model", "train from its base, or merge it first (--merge)"
        )
    options: dict[str, Any] = {}
    low = config.resolved_bf16() and config.method != "full"
    if config.method == "qlora":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("--method qlora needs bitsandbytes", INSTALL_LINES["bitsandbytes"])
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=torch.bfloat16,  # FSDP shards only what has the compute type
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16 if low else torch.float32, **options
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"the model '{config.model}' does not load: {error}", "name a model folder or hub model"
        ) from error


def adapter_config(config: TrainConfig) -> LoraConfig | None:
    """LoRA's settings; None for full training."""
    if config.method == "full":
        return None
    targets = config.lora.targets
    return LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets[0] if len(targets) == 1 else targets,
        task_type="CAUSAL_LM",
    )


def max_length_of(config: TrainConfig, path: str) -> int:
    """Tokens a prompt and an answer may have: the setting, bounded by the model's window."""
    window = window_of(AutoConfig.from_pretrained(path))
    if window is None and config.max_length is None:
        raise UserError(f"'{config.model}' does not say how long its window is", "give --max-length")
    if window is not None and config.max_length is not None and config.max_length > window:
        raise UserError(
            f"--max-length {config.max_length} is over the window of '{config.model}', {window} tokens"
        )
    return config.max_length or int(window or 0)


def build_trainer(config: TrainConfig) -> tuple[SharedPromptDPOTrainer, dict[str, Any]]:
    """Everything up to the first step; also what the summary says about the data."""
    path = resolve_model(config.model)
    tokenizer = load_tokenizer(path, config.model)
    train, held_out = datasets_for(
        config.pairs,
        config.eval_pairs,
        config.eval_fraction,
        config.seed,
        (tokenizer.chat_template, config.model, config.allow_other_template),
    )
    args = trl_config(config, evaluates=bool(held_out))
    skipped: dict[str, int] = {}
    paths = {"train": config.pairs, "eval": config.eval_pairs or config.pairs}
    check = make_check(tokenizer, max_length_of(config, path), config.overflow, paths, skipped)
    with args.main_process_first(local=False):
        train_set = on_disk(train, config.output / "data" / "train")
        eval_set = on_disk(held_out, config.output / "data" / "held_out") if held_out else None
    trainer = SharedPromptDPOTrainer(
        model=load_policy(config, path),
        args=args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=tokenizer,
        peft_config=adapter_config(config),
        share=config.shared_prefix == "on",
        tile=config.tile,
        check=check,
    )
    about = {
        "pairs": len(trainer.train_dataset),
        "held_out_pairs": len(trainer.eval_dataset) if held_out else 0,
        "documents": len({item.document for item in train}),
        "held_out_documents": len({item.document for item in held_out}),
        "skipped": skipped,
    }
    return trainer, about


def run(config: TrainConfig) -> int:
    """Train; 0 when finished, 130 when stopped by a signal (a checkpoint is kept)."""
    main = int(os.environ.get("RANK", "0")) == 0
    if main:
        inputs = [path for path in (config.pairs, config.eval_pairs) if path]
        prepare_run(config.output, config, "dpo train", config.existing, inputs)
    if (config.output / SUMMARY).is_file():
        print(f"{config.output}: this run is complete; --existing replace starts it anew")
        return 0
    quiet_libraries()
    trainer, about = build_trainer(config)
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl and the progress line say it
    started = time.monotonic()
    interrupt = StopOnInterrupt()
    for callback in (MetricsFile(config.output / "metrics.jsonl"), ProgressLine(), interrupt):
        trainer.add_callback(callback)
    with interrupt:
        trainer.train(resume_from_checkpoint=_last_checkpoint(config.output))
    if interrupt.interrupted:
        print(
            f"stopped at step {trainer.state.global_step}; run the same command again to go on",
            file=sys.stderr,
        )
        return 130
    save(trainer, config)
    if trainer.is_world_process_zero():
        _finish(trainer, config, about, time.monotonic() - started)
    return 0


def _last_checkpoint(output: Path) -> str | None:
    folder = output / "checkpoints"
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def save(trainer: SharedPromptDPOTrainer, config: TrainConfig) -> None:
    """Write the model or adapter and the tokenizer; merged when asked for."""
    merged = config.merge and config.method != "full"
    target = config.output / "adapter" if merged else config.output
    trainer.save_model(str(target))
    if not trainer.is_world_process_zero():
        return
    trainer.processing_class.save_pretrained(str(target))
    if merged:
        # Merged into freshly loaded weights: those in memory may be quantized or sharded.
        base = AutoModelForCausalLM.from_pretrained(resolve_model(config.model), dtype=trainer.model.dtype)
        PeftModel.from_pretrained(base, str(target)).merge_and_unload().save_pretrained(str(config.output))
        trainer.processing_class.save_pretrained(str(config.output))


def _finish(
    trainer: SharedPromptDPOTrainer, config: TrainConfig, about: dict[str, Any], seconds: float
) -> None:
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
        shutil.rmtree(config.output / "checkpoints", ignore_errors=True)
    write_text(config.output / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
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
    for name, row, prefix in (
        ("first step", summary["first"], ""),
        ("last step", summary["last"], ""),
        ("held out", summary["held_out"], "eval_"),
    ):
        if row:
            print(
                f"  {name:<10} loss {row[prefix + 'loss']:.4f} · margin {row[prefix + 'rewards/margins']:+.4f} · "
                f"accuracy {row[prefix + 'rewards/accuracies']:.0%} · CE of chosen {row[prefix + 'ce/chosen']:.3f}"
            )
    for sign in summary["warnings"]:
        print(f"  UNSTABLE · {sign}")
    if summary["warnings"]:
        print(
            "  a lower --learning-rate, a higher --beta, or more weight on sft steady it; see metrics.jsonl"
        )
