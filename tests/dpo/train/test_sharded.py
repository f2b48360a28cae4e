"""Log-probabilities and gradients of shared prompts with weights sharded as FSDP2 shards them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torchrun import two_processes

SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head
from dpo.train.shared_forward import share_prompt

dist.init_process_group("gloo")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model.gradient_checkpointing_enable({"use_reentrant": False})
model.train()
add_fused_lm_head(model)
share_prompt(model, tile=2)
ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 12, 13, 0]])
mask = torch.tensor([[1] * 7, [1] * 6 + [0]])
labels = ids.masked_fill(torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 1]]).bool(), -100)


def log_probabilities():
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return model(**batch, fused_lm_head=True).log_probs


expected = log_probabilities()
expected.square().sum().backward()
gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
model.zero_grad()
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
reshard = sys.argv[2] == "resharded"
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
if sys.argv[2] == "head apart":
    fully_shard(model.lm_head, mesh=mesh)
fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
found = log_probabilities()
found.square().sum().backward()
torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
for name, weight in model.named_parameters():
    assert weight.grad.to_local().shape != gradients[name].shape, name
    torch.testing.assert_close(weight.grad.full_tensor(), gradients[name], atol=1e-5, rtol=1e-4)
dist.barrier()  # gloo aborts a process whose peer has left
dist.destroy_process_group()
"""


@pytest.mark.parametrize("how", ["kept", "resharded", "head apart"])
def test_shared_prompts_under_fsdp2(tiny_model: Path, tmp_path: Path, how: str):
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    two_processes(script, tiny_model, how)
