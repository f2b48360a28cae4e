"""Shared prefix against one-by-one forwards, scoring and training: time, peak memory, FLOPs, share of the bound.

    python scripts/bench/shared_prefix.py                              # CPU, SmolLM2, about ten minutes on 2 cores
    python scripts/bench/shared_prefix.py --vllm-python .venv-vllm/bin/python        # with vLLM classify beside it
    python scripts/bench/shared_prefix.py --device cuda --shape 8b     # random 8B weights, 8k to 128k tokens

Every answer has the same length, so one-by-one time is measured on ``--answers-timed`` answers and multiplied; both
ways run the same model in the same process. The bound is the ratio of FLOPs counted from the shapes (matrix products and
attention, training three times a forward); the share says how much of it was reached. Peak memory is the
process's (CPU) or the allocator's (CUDA), the weights included. Results go to shared_prefix.json beside this file.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from reward_model.modeling.head import apply_head
from reward_model.modeling.model import Backbone, load_backbone_for_rm, save_reward_model
from reward_model.shared_prefix.backends import choose_kernel
from reward_model.shared_prefix.chunked import chunked_hidden
from reward_model.shared_prefix.interface import enable_shared_prefix
from reward_model.shared_prefix.layout import Layout, PromptShape, join_ids
from scripts.bench.evidence_common import environment, write_result

PRESETS: dict[str, dict[str, Any]] = {
    "smollm2": {"score": [1024, 2048, 4096, 8064], "train": [1024, 2048, 4096], "answer": 96, "chunk": 1024},
    "8b": {
        "score": [8192, 32768, 65536, 130048],
        "train": [8192, 32768, 65536],
        "answer": 512,
        "chunk": 16384,
    },
}
VLLM_CHILD = """
import json, sys, time
from vllm import LLM

def run(llm, groups):
    llm.llm_engine.reset_prefix_cache()
    start = time.perf_counter()
    outputs = [out for group in groups for out in llm.classify(group, use_tqdm=False)]
    return time.perf_counter() - start, [list(out.outputs.probs) for out in outputs]

if __name__ == "__main__":
    job = json.load(open(sys.argv[1]))
    llm = LLM(model=job["model"], runner="pooling", convert="classify", dtype=job["dtype"], enforce_eager=True,
              enable_prefix_caching=True, max_model_len=job["window"])
    rows = []
    for case in job["cases"]:
        requests = [{"prompt_token_ids": case["prefix"] + answer} for answer in case["answers"]]
        together, scores = run(llm, [requests])
        first_then_rest, _ = run(llm, [requests[:1], requests[1:]])
        rows.append({"together": together, "first_then_rest": first_then_rest, "scores": scores})
    json.dump(rows, open(sys.argv[2], "w"))
"""


def load(shape: str, device: str) -> Backbone:
    """SmolLM2 in fp32, or random weights of an 8B Llama in bf16."""
    if shape == "smollm2":
        backbone = load_backbone_for_rm("smollm2", dtype=torch.float32)
        backbone.model.to(device)
        return backbone
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=132_096,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        num_labels=4,
        pad_token_id=0,
    )
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
    return Backbone(model, None, None)  # type: ignore[arg-type]


def flops(config: Any, shape: PromptShape, shared: bool) -> float:
    """Forward FLOPs: two a weight and token, four a head dimension and visible (query, key) pair."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or hidden // heads
    attention = hidden * head * (2 * heads + 2 * config.num_key_value_heads)
    weights = config.num_hidden_layers * (attention + 3 * hidden * config.intermediate_size)
    per_pair = 4 * heads * head * config.num_hidden_layers
    prefix = shape.prefix_length

    def triangle(n: int) -> float:
        return n * (n + 1) / 2

    if shared:
        pairs = triangle(prefix) + sum(prefix * r + triangle(r) for r in shape.answer_lengths)
        return 2 * weights * shape.total + per_pair * pairs
    pairs = sum(triangle(prefix + r) for r in shape.answer_lengths)
    return 2 * weights * shape.total_one_by_one + per_pair * pairs


def reset_peak(device: str) -> None:
    """Start counting peak memory anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib(device: str) -> float:
    """Peak memory since ``reset_peak``."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def measure(run: Callable[[], Any], device: str, repeats: int) -> dict[str, float]:
    """Best wall and processor time of ``repeats``, and the peak memory."""
    wall = processor = float("inf")
    reset_peak(device)
    for _ in range(repeats):
        start, start_processor = time.perf_counter(), time.process_time()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        wall = min(wall, time.perf_counter() - start)
        processor = min(processor, time.process_time() - start_processor)
    seconds = {"seconds": round(wall, 3), "cpu_seconds": round(processor, 3)}
    return {**seconds, "peak_gib": round(peak_gib(device), 2)}


class Bench:
    """One model, its random prompts, and the rows measured so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.preset = PRESETS[args.shape]
        self.backbone = load(args.shape, args.device)
        self.model = enable_shared_prefix(self.backbone.model).eval()
        self.rows: list[dict[str, Any]] = []
        self.cases: list[dict[str, Any]] = []

    def prompt(self, length: int, answers: int) -> tuple[list[int], list[list[int]]]:
        """Random tokens; the prefix is the same for every N."""
        generator = torch.Generator().manual_seed(length)

        def draw(n: int) -> list[int]:
            return torch.randint(1000, 40_000, (n,), generator=generator).tolist()

        return draw(length), [draw(self.preset["answer"]) for _ in range(answers)]

    def forward(self, train: bool, **inputs: Any) -> None:
        """A forward pass, and a backward pass of the sum of the scores when training."""
        with torch.set_grad_enabled(train):
            logits = self.model(**inputs).logits
        if train:
            logits.float().square().sum().backward()
            self.model.zero_grad(set_to_none=False)

    @torch.no_grad()
    def scores(self, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Scores of a packed sequence, fp32 on CPU."""
        return self.model.eval()(input_ids=ids, layout=layout).logits.float().cpu()

    def length(self, length: int, train: bool) -> None:
        """All N at one document length: one by one on two answers, then the shared sequence."""
        device, counts = self.args.device, self.args.answers
        prefix, answers = self.prompt(length, max(counts))
        if length > self.args.full_up_to:
            counts = counts[-1:]
        self.model.train(train)

        def alone() -> None:
            for answer in answers[: self.args.answers_timed]:
                self.forward(train, input_ids=torch.tensor([prefix + answer], device=device), use_cache=False)

        one = measure(alone, device, self.args.repeats)
        for n in counts:
            ids, layout = join_ids([(prefix, answers[:n])], device)
            run = partial(self.forward, train, input_ids=ids, layout=layout)
            shared = measure(run, device, self.args.repeats)
            self.add("train" if train else "score", layout.prompts[0], one, shared)
        if not train and length in self.args.vllm_lengths:
            self.cases.append({"prefix": prefix, "answers": answers, "length": length})

    def add(self, task: str, shape: PromptShape, one: dict[str, float], shared: dict[str, float]) -> None:
        """Put one row together and print it."""
        n = len(shape.answer_lengths)
        config, factor = self.model.config, 3 if task == "train" else 1
        if task == "train" and self.args.checkpointing:
            factor = 4
        one_seconds = one["seconds"] * n / self.args.answers_timed
        bound = flops(config, shape, shared=False) / flops(config, shape, shared=True)
        speedup = one_seconds / shared["seconds"]
        row = {
            "task": task,
            "document_tokens": shape.prefix_length,
            "answer_tokens": shape.answer_lengths[0],
            "answers": n,
            "one_by_one_seconds": round(one_seconds, 2),
            "shared_seconds": shared["seconds"],
            "one_by_one_peak_gib": one["peak_gib"],
            "shared_peak_gib": shared["peak_gib"],
            "one_by_one_tflop": round(factor * flops(config, shape, shared=False) / 1e12, 3),
            "shared_tflop": round(factor * flops(config, shape, shared=True) / 1e12, 3),
            "speedup": round(speedup, 2),
            "flop_bound": round(bound, 2),
            "share_of_bound": round(speedup / bound, 3),
        }
        if self.args.device == "cpu":
            # Processor time as well: on a machine that does other work too it is the steadier figure.
            in_cpu_time = one["cpu_seconds"] * n / self.args.answers_timed / shared["cpu_seconds"]
            row["speedup_cpu_time"] = round(in_cpu_time, 2)
            row["share_of_bound_cpu_time"] = round(in_cpu_time / bound, 3)
        key = ("task", "document_tokens", "answers")
        self.rows = [old for old in self.rows if any(old[name] != row[name] for name in key)] + [row]
        print(
            f"{task:6} {shape.prefix_length:7} tokens  N={n:2}  one by one {one_seconds:8.2f} s {one['peak_gib']:6.2f} GiB"
            f"   shared {shared['seconds']:8.2f} s {shared['peak_gib']:6.2f} GiB   {speedup:5.2f}x of {bound:5.2f}x"
            f" = {speedup / bound:.0%} ({row.get('share_of_bound_cpu_time', 0):.0%} in processor time)",
            flush=True,
        )

    def chunked(self, length: int) -> dict[str, Any]:
        """The longest document in chunks: memory against the whole prefix at once, and the same scores."""
        prefix, answers = self.prompt(length, max(self.args.answers))
        out: dict[str, torch.Tensor] = {}
        ids, layout = join_ids([(prefix, answers)], self.args.device)

        def run() -> None:
            hidden = chunked_hidden(self.model, prefix, answers, self.preset["chunk"])
            out["chunked"] = apply_head(self.model, hidden)

        whole = measure(lambda: out.update(whole=self.scores(ids, layout)), self.args.device, 1)
        row: dict[str, Any] = {"document_tokens": length, "chunk": self.preset["chunk"], "whole": whole}
        row |= {"chunked": measure(run, self.args.device, 1)}
        row |= {"largest_score_difference": float((out["chunked"].cpu() - out["whole"]).abs().max())}
        print(f"chunked prefix: {row}", flush=True)
        return row

    def vllm(self) -> list[dict[str, Any]]:
        """vLLM ``classify`` with prefix caching on the same model and tokens, in its own interpreter."""
        if self.backbone.tokenizer is None:
            return []
        with tempfile.TemporaryDirectory() as folder:
            save_reward_model(self.model, self.backbone.tokenizer, folder, self.backbone.manifest)
            job = {"model": folder, "dtype": "float32", "window": self.backbone.manifest.max_length}
            paths = [Path(folder) / name for name in ("job.json", "result.json", "child.py")]
            paths[0].write_text(json.dumps({**job, "cases": self.cases}))
            paths[2].write_text(VLLM_CHILD)
            settings = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}
            if self.args.threads:  # as many as we had
                settings["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{self.args.threads - 1}"
            command = [self.args.vllm_python, *map(str, (paths[2], paths[0], paths[1]))]
            subprocess.run(command, check=True, env={**os.environ, **settings}, stdout=sys.stderr)
            results = json.loads(paths[1].read_text())
        rows = []
        for case, result in zip(self.cases, results, strict=True):
            ids, layout = join_ids([(case["prefix"], case["answers"])], self.args.device)
            difference = float((self.scores(ids, layout) - torch.tensor(result.pop("scores"))).abs().max())
            length, n = case["length"], len(case["answers"])
            same = [r for r in self.rows if (r["document_tokens"], r["answers"]) == (length, n)]
            shared = next(r for r in same if r["task"] == "score")
            best = min(result.values())
            row = {
                "document_tokens": length,
                "answers": n,
                "all_at_once_seconds": round(result["together"], 2),
                "first_then_rest_seconds": round(result["first_then_rest"], 2),
                "shared_seconds": shared["shared_seconds"],
                "shared_is_faster_by": round(best / shared["shared_seconds"], 2),
                "largest_score_difference": difference,
            }
            print(f"vLLM classify: {row}", flush=True)
            rows.append(row)
        return rows


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--shape", default="smollm2", choices=sorted(PRESETS))
    add("--answers", type=int, nargs="+", default=[2, 4, 10])
    add("--score-lengths", type=int, nargs="*", help="document tokens (default: by shape)")
    add("--train-lengths", type=int, nargs="*", help="document tokens (default: by shape)")
    add("--full-up-to", type=int, default=4096, help="longer documents run the largest N only")
    add("--vllm-lengths", type=int, nargs="+", default=[2048], help="documents for the classify peer")
    add("--answers-timed", type=int, default=2, help="one-by-one answers measured, then multiplied")
    add("--threads", type=int, help="CPU threads (default: all cores)")
    add("--keep", action="store_true", help="add to the rows already in --output")
    add("--repeats", type=int, default=1, help="runs of each measurement; the best counts")
    add("--checkpointing", action="store_true", help="gradient checkpointing (always with 8b)")
    add("--vllm-python", help="interpreter of an environment with vLLM: adds the classify peer")
    add("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    args.checkpointing = args.checkpointing or args.shape == "8b"
    for task in ("score", "train"):
        if getattr(args, f"{task}_lengths") is None:
            setattr(args, f"{task}_lengths", PRESETS[args.shape][task])
    return args


def report(bench: Bench, load_average: float, extra: dict[str, Any]) -> dict[str, Any]:
    """What goes into the JSON."""
    args = bench.args
    kernel = choose_kernel(torch.device(args.device), next(bench.model.parameters()).dtype)
    largest = [row for row in bench.rows if row["answers"] == max(args.answers)]
    shares = {
        name: [row[name] for row in largest]
        for name in ("share_of_bound", "share_of_bound_cpu_time")
        if largest and name in largest[0]
    }
    busy = load_average > torch.get_num_threads() and args.device == "cpu"
    return {
        "note": "a busy machine: compare processor time, not wall time" if busy else "a quiet machine",
        "what": "N answers in one sequence with their document against one forward pass an answer",
        "model": "SmolLM2-135M, fp32" if args.shape == "smollm2" else "8B-shaped Llama, random weights, bf16",
        "attention": kernel.name if kernel else "sdpa",
        "one_by_one": f"transformers, sdpa, batch 1; timed on {args.answers_timed} and multiplied to N",
        "gradient_checkpointing": args.checkpointing,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "load_average_at_start": load_average,
        **environment(),
        "at_largest_n": {name: {"lowest": min(x), "highest": max(x)} for name, x in shares.items()},
        "rows": bench.rows,
        **extra,
    }


def main() -> None:
    """Measure, print, write the JSON after every step, so that an interrupted run keeps what it has."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    load_average = round(os.getloadavg()[0], 1)
    bench = Bench(args)
    if args.checkpointing:
        bench.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    bench.length(256, train=False)  # first calls choose the kernel and warm the allocator
    bench.cases = []
    extra: dict[str, Any] = json.loads(args.output.read_text()) if args.keep and args.output.exists() else {}
    bench.rows = extra.get("rows", [])
    extra = {name: extra[name] for name in ("chunked_prefix", "vllm_classify") if name in extra}

    def write() -> None:
        write_result(args.output, report(bench, load_average, extra))

    steps = [(n, False) for n in args.score_lengths] + [(n, True) for n in args.train_lengths]
    for length, train in sorted(steps, key=lambda step: step[0] * (3 if step[1] else 1)):  # cheapest first
        bench.length(length, train)
        write()
        if args.vllm_python and not train and length == max(args.vllm_lengths):
            extra["vllm_classify"] = bench.vllm()
            write()
    if args.score_lengths:
        extra["chunked_prefix"] = bench.chunked(min(max(args.score_lengths), 4 * bench.preset["chunk"]))
        write()


if __name__ == "__main__":
    main()
