"""What the first round begins with: a model as it is, an adapter merged into its base."""

from __future__ import annotations

from pathlib import Path

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.local_models import adapter_base, load_tokenizer


def plain_model(name: str, folder: Path) -> str:
    """The model that `name` stands for, or, of an adapter, a merged one in `folder`, made once."""
    path = resolve_model(name)
    base = adapter_base(path)
    if base is None:
        return name
    done = folder / "config.json"
    if not done.is_file():
        from peft import PeftModel  # slow to import
        from transformers import AutoModelForCausalLM

        load_tokenizer(path, name).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(resolve_model(base), dtype="auto")
        PeftModel.from_pretrained(model, path).merge_and_unload().save_pretrained(folder)
    return str(folder)
