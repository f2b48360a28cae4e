"""Several processes of one training run: they leave together.

A process that ends while a peer still talks to it is an error to the peer; gloo aborts, NCCL warns of a leak.
"""

from __future__ import annotations

import torch.distributed as dist


def leave_together() -> None:
    """Wait for the other processes of this run, if there are any, and close what connects them."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
