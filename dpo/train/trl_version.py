"""The private parts of TRL that `trainer` and `shared_forward` replace: checked before a run, not met in its middle."""

from __future__ import annotations

import dataclasses
import inspect

import trl
from trl import DPOTrainer
from trl.trainer import utils

from dpo.train.shared_forward import PairOutput
from judge_pipeline.common.errors import UserError

SUPPORTED = ">=1.16,<1.17"
"""Releases whose internals were read; the next minor one may move them."""

OVERRIDDEN = {
    "_prepare_dataset": ("self", "dataset", "processing_class", "args", "dataset_name"),
    "_precompute_ref_logps": ("self", "dataset", "name", "batch_size"),
    "_compute_loss": ("self", "model", "inputs", "return_outputs"),
}
"""Methods of `DPOTrainer` that ours replaces, with the parameters it takes them to have."""

USED = ("_total_train_tokens", "_metrics")
"""Attributes of `DPOTrainer` that ours reads and writes."""


def check_trl() -> None:
    """Raise UserError where the installed TRL is not the one that is built upon."""
    source = inspect.getsource(DPOTrainer)
    wrong = [f"DPOTrainer.{name}" for name in USED if f"self.{name}" not in source]
    for name, parameters in OVERRIDDEN.items():
        found = getattr(DPOTrainer, name, None)
        if found is None or tuple(inspect.signature(found).parameters) != parameters:
            wrong.append(f"DPOTrainer.{name}({', '.join(parameters[1:])})")
    if "fused_lm_head=True" not in source:
        wrong.append("the call model(…, fused_lm_head=True)")
    output = getattr(utils, "FusedCausalLMOutput", None)
    theirs = {field.name for field in dataclasses.fields(output)} if output else set()
    wrong += [
        f"FusedCausalLMOutput.{field.name}"
        for field in dataclasses.fields(PairOutput)
        if field.name not in theirs
    ]
    if wrong:
        raise UserError(
            f"trl {trl.__version__} is not built as this program needs it; it lacks: {', '.join(wrong)}",
            f"pip install 'trl{SUPPORTED}'",
        )
