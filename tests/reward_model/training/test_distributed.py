"""Two processes train to the same weights as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import DistributedType
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser

from reward_model.modeling.model import load_reward_model
from reward_model.training.callbacks import read_metrics
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("per_step", [None, 3], ids=["packed sequences", "prompts per step"])
def test_two_processes_equal_one(label_run, tiny_base, tmp_path, per_step):
    """Prompts with missing scores and uneven batches: means must be taken over all processes, not of means.

    Where the batches do not divide by two, the second process has a filler in the last step.
    """
    run = label_run(count=9, answers=4)
    file = run / "labels.jsonl"
    labels = [json.loads(line) for line in file.read_text().splitlines()]
    for label in labels[::3]:
        label["scores"]["logicality"] = None
    file.write_text("".join(json.dumps(label) + "\n" for label in labels))
    common = {
        "labels": run,
        "base_model": str(tiny_base),
        "method": "full",
        "dimensions": ["helpfulness", "logicality", "faithfulness"],
        "loss": "regression+pairwise",
        "epochs": 2,
        "learning_rate": 2e-4,  # Adam turns rounding of a gradient near 0 into up to a whole step
        "token_budget": 260,
        "eval_fraction": 0.2,
        "device": "cpu",
        "head_learning_rate": 2e-3,
        "head_init": "mean",
    }
    if per_step:
        common["prompts_per_step"] = per_step
    one = train(TrainConfig(output=tmp_path / "one", accumulation=1 if per_step else 2, **common))
    flags = [
        word
        for name, value in common.items()
        if name != "labels"
        for word in ("--" + name.replace("_", "-"), *(value if isinstance(value, list) else [str(value)]))
    ]
    two = tmp_path / "two"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
            *("--module", "reward_model.cli", "train", str(run), "--output", str(two), *flags),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("saved ") == 1  # one process speaks
    first, second = (load_reward_model(path).model.state_dict() for path in (one, two))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-5)
    logs = [read_metrics(path / "metrics.jsonl") for path in (one, two)]
    for key in ("loss", "regression", "pair_accuracy", "eval_loss", "eval_reward_mae"):
        values = [[row[key] for row in log if key in row] for log in logs]
        assert values[0]
        assert values[1] == pytest.approx(values[0], abs=1e-4)


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from reward_model.shared_prefix.layout import join_ids
from reward_model.modeling.model import load_backbone_for_rm

dist.init_process_group("gloo")
model = prepare_shared_prefix(load_backbone_for_rm(sys.argv[1]).model)
torch.manual_seed(0)
model.score.weight.data.normal_()
model.gradient_checkpointing_enable({"use_reentrant": False})
model.train()
ids, layout = join_ids([([5, 6, 7, 8] * 5, [[9, 10, 11], [12, 13]]), ([3] * 7, [[4, 5]])])
expected = model(input_ids=ids, layout=layout).logits
expected.square().sum().backward()
gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
model.zero_grad()
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
found = model(input_ids=ids, layout=layout).logits
found.square().sum().backward()
torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
for name, weight in model.named_parameters():
    assert weight.grad.to_local().shape != gradients[name].shape, name
    torch.testing.assert_close(weight.grad.full_tensor(), gradients[name], atol=1e-5, rtol=1e-4)
dist.barrier()  # gloo aborts a process whose peer has left
dist.destroy_process_group()
"""


def test_a_shared_prefix_under_fsdp2(tiny_base, tmp_path):
    """Forward, backward and recomputation with weights sharded over two processes, as FSDP2 does on GPUs."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), str(tiny_base)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_accelerate_reads_the_configurations(name):
    """A key that accelerate does not know is an error there, at the start of a run on somebody's GPUs."""
    path = ROOT / "scripts" / "accelerate" / f"{name}.yaml"
    found = ClusterConfig.from_yaml_file(str(path))
    kind, sharding = {
        "fsdp2": (DistributedType.FSDP, ("fsdp_config", "fsdp_version", 2)),
        "zero3": (DistributedType.DEEPSPEED, ("deepspeed_config", "zero_stage", 3)),
    }[name]
    assert found.distributed_type == kind
    assert getattr(found, sharding[0])[sharding[1]] == sharding[2]
    known = launch_command_parser().parse_known_args(["script"])[0]
    unknown = [key for key in found.fsdp_config if not hasattr(known, key)]
    assert unknown == []
