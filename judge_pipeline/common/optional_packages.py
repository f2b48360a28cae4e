"""Packages that only some uses need, and the line that installs each: what errors and `reward-model doctor` advise."""

from __future__ import annotations

VLLM_VERSION = "0.32.0"
"""The release that the tests run; it takes the versions of torch and transformers that we need."""

INSTALL_LINES = {
    "vllm": f"pip install vllm=={VLLM_VERSION}",
    # It compiles against the torch that is installed, so it must see it.
    "flash-attn": "pip install --no-build-isolation flash-attn",
    "bitsandbytes": "pip install bitsandbytes",
    "deepspeed": "pip install deepspeed",
    "tensorboard": "pip install tensorboard",
    "trackio": "pip install trackio",
}
