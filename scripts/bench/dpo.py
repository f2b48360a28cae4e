"""DPO on shared prompts against stock TRL: time of a training step, tokens, peak memory, share of the bound.

    python scripts/bench/dpo.py                                    # CPU, SmolLM2, LoRA, fp32: some ten minutes
    python scripts/bench/dpo.py --device cuda --shape 8b --answer 512 --ratios 16 64 128

Both trainers take the same step (policy forward, reference forward with the adapter disabled, backward) on the same
pair, in turns, in one process; the faster of the repeats counts. On a CPU the time is the process's own (one thread,
so that it does not depend on what else the machine does), on CUDA it is the clock's. The bound is the ratio of tokens, 2(p + r) to
p + 2r; attention saves more than that, and so does the LM head where TRL sends the prompt through it (on CPU), so a
share can exceed 1. Peak memory is what the step adds to the process (CPU) or the allocator (CUDA).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before this folder: this file is no package

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from trl import DPOConfig, DPOTrainer

from dpo.train.trainer import SharedPromptDPOTrainer
from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.quiet import quiet_libraries
from scripts.bench.evidence_common import command_line, environment, write_result

PAGE = 4096


def load(shape: str, device: str) -> Any:
    """SmolLM2 in fp32, or random weights of an 8B Llama in bf16."""
    if shape == "smollm2":
        return AutoModelForCausalLM.from_pretrained(resolve_model("smollm2"), dtype=torch.float32).to(device)
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131_072,
    )  # fmt: skip
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def make_trainer(base: type, args: argparse.Namespace, folder: str) -> Any:
    """A trainer whose model, data and settings are those of the other one."""
    config = DPOConfig(
        output_dir=folder, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.1], beta=0.15, max_length=None,
        per_device_train_batch_size=1, gradient_checkpointing=args.checkpointing, report_to=[], disable_tqdm=True,
        use_cpu=args.device == "cpu", bf16=args.shape == "8b",
    )  # fmt: skip
    rows = [
        {"prompt": "a b", "chosen": " c d", "rejected": " e f"}
    ]  # batches of the wanted lengths replace it
    torch.manual_seed(0)
    trainer = base(
        model=load(args.shape, args.device),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(resolve_model("smollm2")),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.current_gradient_accumulation_steps = 1  # `train` sets it; steps are taken here one by one
    return trainer


def batch_of(prompt: int, answer: int, device: str) -> dict[str, torch.Tensor]:
    """TRL's batch of one pair with random tokens."""
    generator = torch.Generator().manual_seed(prompt)
    head = torch.randint(10, 40_000, (1, prompt), generator=generator)
    answers = torch.randint(10, 40_000, (2, answer), generator=generator)
    ids = torch.cat([head.expand(2, -1), answers], dim=1)
    completion = torch.zeros_like(ids)
    completion[:, prompt:] = 1
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": completion}
    return {name: value.to(device) for name, value in batch.items()}


@contextmanager
def peak_memory(device: str) -> Iterator[list[float]]:
    """Fills the list with the bytes that the block added at its peak."""
    found: list[float] = []
    gc.collect()
    if device == "cpu" and sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier steps freed would hide what this one needs
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.append(torch.cuda.max_memory_allocated() - before)
        return

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    before, peak, done = resident(), [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
    found.append(max(peak[0] - before, 0))


def one_step(trainer: Any, batch: dict[str, torch.Tensor], device: str) -> tuple[float, float, float, float]:
    """(seconds, bytes, loss, gradient norm) of a training step."""
    trainer.model.train()
    trainer.model.zero_grad()
    clock = time.process_time if device == "cpu" else time.perf_counter
    with peak_memory(device) as memory:
        start = clock()
        loss = trainer.training_step(trainer.model, dict(batch))
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = clock() - start
    squares = [p.grad.float().square().sum() for p in trainer.model.parameters() if p.grad is not None]
    return seconds, memory[0], float(loss), float(torch.stack(squares).sum().sqrt())


def measure(trainers: dict[str, Any], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each prompt:answer ratio."""
    for trainer in trainers.values():
        one_step(
            trainer, batch_of(64, 16, args.device), args.device
        )  # first calls choose kernels and allocate
    for ratio in args.ratios:
        prompt, answer = ratio * args.answer, args.answer
        batch = batch_of(prompt, answer, args.device)
        runs: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in trainers}
        for _ in range(args.repeats):
            for name, trainer in trainers.items():
                runs[name].append(one_step(trainer, batch, args.device))
        seconds = {name: min(row[0] for row in rows) for name, rows in runs.items()}
        bound = 2 * (prompt + answer) / (prompt + 2 * answer)
        speedup = seconds["trl"] / seconds["shared"]
        yield {
            "ratio": ratio,
            "prompt_tokens": prompt,
            "answer_tokens": answer,
            "tokens_trl": 2 * (prompt + answer),
            "tokens_shared": prompt + 2 * answer,
            "seconds_trl": seconds["trl"],
            "seconds_shared": seconds["shared"],
            "speedup": speedup,
            "bound": bound,
            "share_of_bound": speedup / bound,
            "peak_mb_trl": max(row[1] for row in runs["trl"]) / 2**20,
            "peak_mb_shared": max(row[1] for row in runs["shared"]) / 2**20,
            "loss_difference": abs(runs["trl"][0][2] - runs["shared"][0][2]),
            "gradient_norms": [runs["trl"][0][3], runs["shared"][0][3]],
        }


def main() -> None:
    """Measure, print a table, write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--shape", default="smollm2", choices=("smollm2", "8b"), help="model (default: smollm2)"
    )
    parser.add_argument("--answer", type=int, default=32, help="tokens of each answer (default: 32)")
    parser.add_argument("--ratios", type=int, nargs="+", default=[1, 4, 16, 64], help="prompt : answer")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=2, help="steps of each trainer a ratio (default: 2)")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            "trl": make_trainer(DPOTrainer, args, folder),
            "shared": make_trainer(SharedPromptDPOTrainer, args, folder),
        }
        rows = []
        for row in measure(trainers, args):
            rows.append(row)
            print(
                f"{row['prompt_tokens']:>6} + 2 x {row['answer_tokens']}: TRL {row['seconds_trl']:.2f} s, "
                f"shared {row['seconds_shared']:.2f} s, {row['speedup']:.2f}x of {row['bound']:.2f}x "
                f"({row['share_of_bound']:.0%}); peak {row['peak_mb_trl']:.0f} -> {row['peak_mb_shared']:.0f} MB; "
                f"loss differs by {row['loss_difference']:.1e}",
                flush=True,
            )
    result = {
        "what": "one DPO training step (LoRA, sigmoid + 0.1 sft), shared prompt against TRL's DPOTrainer",
        "peer": f"trl {version('trl')}",
        "model": "SmolLM2-135M-Instruct, fp32" if args.shape == "smollm2" else "random 8B Llama, bf16",
        "gradient_checkpointing": args.checkpointing,
        "device": args.device,
        "threads": args.threads,
        **environment(),
        "clock": "process CPU seconds" if args.device == "cpu" else "wall seconds",
        "rows": rows,
    }
    write_result(args.output, result)


if __name__ == "__main__":
    main()
