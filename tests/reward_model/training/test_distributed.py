"""Two processes train to the same weights as one."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands import launch
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from reward_model.modeling.model import load_reward_model
from reward_model.training.callbacks import read_metrics
from reward_model.training.sharding import optimiser_is_ours, weights_are_sharded
from reward_model.training.train import train
from reward_model.training.train_config import TrainConfig
from tests.torchrun import two_processes

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
    done = two_processes("--module", "reward_model.cli", "train", run, "--output", two, *flags)
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
    two_processes(script, tiny_base)


def launched(name: str) -> tuple[Namespace, dict[str, str]]:
    """What `accelerate launch` makes of a configuration: its arguments, and the environment of the processes."""
    path = ROOT / "scripts" / "accelerate" / f"{name}.yaml"
    words = ["--config_file", str(path), "--num_processes", "2", "--module", "reward_model.cli"]
    args, defaults, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    if not args.use_deepspeed:
        return args, prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return args, prepare_deepspeed_cmd_env(args)[1]


def test_accelerate_shards_as_the_fsdp2_configuration_says(monkeypatch):
    args, environment = launched("fsdp2")
    assert (args.use_fsdp, args.mixed_precision, args.use_cpu) == (True, "bf16", False)
    for key, value in environment.items():
        if key.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(key, value)
    monkeypatch.delenv("FSDP_CPU_RAM_EFFICIENT_LOADING")  # else the plugin asks for a GPU
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.state_dict_type is StateDictType.FULL_STATE_DICT
    assert not plugin.activation_checkpointing
    assert environment["FSDP_OFFLOAD_PARAMS"] == "false"
    assert weights_are_sharded()
    assert not optimiser_is_ours()


def test_accelerate_shards_as_the_zero3_configuration_says(monkeypatch):
    args, environment = launched("zero3")
    assert (args.use_deepspeed, args.mixed_precision, args.use_cpu) == (True, "bf16", False)
    told = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
        "ACCELERATE_GRADIENT_CLIPPING": "auto",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
    }
    assert {key: environment.get(key) for key in told} == told
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", environment["ACCELERATE_USE_DEEPSPEED"])
    assert not optimiser_is_ours()
