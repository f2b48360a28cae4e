"""What transformers calls the argument that takes a key/value cache: `cache`, until 5.19 `past_key_values`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

NAME = (
    "cache" if any(field.name == "cache" for field in fields(BaseModelOutputWithPast)) else "past_key_values"
)


def cache_argument(cache: Any) -> dict[str, Any]:
    """`model(ids, **cache_argument(cache))` reads and extends `cache`, with no warning in any release."""
    return {NAME: cache}
