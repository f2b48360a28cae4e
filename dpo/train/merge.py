"""`dpo merge`: an adapter and its base model as one plain model, which every engine loads.

In: the directory of a LoRA adapter. Out: a model directory with its tokenizer, and run.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.config import POSITIONAL, Config
from judge_pipeline.common.errors import UserError
from judge_pipeline.common.run_dir import EXISTING_HELP, Existing, prepare_run
from reward_model.options import HOW


class MergeConfig(Config):
    """Settings of `dpo merge`."""

    adapter: str = Field(description="directory of the adapter", json_schema_extra=POSITIONAL)
    output: Path = Field(description="directory of the merged model")
    base_model: str | None = Field(
        None, description="the adapter's base, if it lies elsewhere now than the adapter says"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of the merged weights; auto: the base's own"
    )
    existing: Existing = Field("refuse", description=EXISTING_HELP, json_schema_extra=HOW)


def merge_adapter(adapter: Path, output: Path, dtype: Any, base: str | None = None) -> None:
    """Write the model that the adapter in `adapter` makes of its base, without a tokenizer.

    The base is loaded anew: weights in memory may be quantized or sharded.

    Raises:
        UserError: there is no adapter, or its base does not load.
    """
    from peft import PeftModel  # slow to import, as is transformers
    from transformers import AutoModelForCausalLM

    from judge_pipeline.common.local_models import adapter_base

    base = base or adapter_base(str(adapter))
    if base is None:
        raise UserError(
            f"{adapter} is no adapter: it has no adapter_config.json", "name what `dpo train` wrote"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(resolve_model(base), dtype=dtype)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the base model '{base}' does not load: {error}", "name it with --base-model"
        ) from error
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(str(output))


def run(config: MergeConfig) -> int:
    """Merge; what is refused leaves nothing behind."""
    from judge_pipeline.common.local_models import ADAPTER_CONFIG, load_tokenizer

    adapter = Path(resolve_model(config.adapter))
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise UserError(f"{adapter} is no adapter: it has no {ADAPTER_CONFIG}", "name what `dpo train` wrote")
    tokenizer = load_tokenizer(str(adapter), config.adapter, "adapter")
    prepare_run(config.output, config, "dpo merge", config.existing, sorted(adapter.glob("adapter_model.*")))
    merge_adapter(adapter, config.output, config.dtype, config.base_model)
    tokenizer.save_pretrained(str(config.output))
    print(f"{config.output}: the merged model")
    return 0
