"""TRL's `DPOTrainer` over shared prompts, with its names, its losses and its reference handling.

Replaced: how log-probabilities are computed (`shared_forward`), and the data preparation's habit of dropping long
prompts without a word (`check`). Added: cross-entropy of the chosen answer and the tokens that sharing saves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from trl import DPOTrainer

from dpo.train.shared_forward import share_prompt
from reward_model.training.run import GuardedTrainer

Check = Callable[[Dataset, str], Dataset]


class SharedPromptDPOTrainer(GuardedTrainer, DPOTrainer):
    """See TRL's `DPOTrainer` for the arguments it shares.

    Args:
        share: encode the prompt of a pair once (False: TRL's own computation).
        tile: answer positions through the LM head at a time; None chooses by vocabulary.
        check: called with each tokenized dataset and its name; returns it, or raises.

    Raises:
        UserError: `share` with a model that a shared prefix is not exact for.
        ValueError: `max_length` is set; TRL would cut or drop examples, which `check` decides instead.

    A loss or gradient that is not finite stops training with a UserError.
    """

    def __init__(
        self,
        *args: Any,
        share: bool = True,
        tile: int | None = None,
        check: Check | None = None,
        **kwargs: Any,
    ) -> None:
        self._share, self._tile, self._check = share, tile, check
        config = kwargs.get("args")
        if share and config is not None and config.max_length is not None:
            raise ValueError("set max_length=None: a shared prompt is never truncated")
        self.tokens_saved = 0
        self._counts_restored = False
        super().__init__(*args, **kwargs)
        self._install()

    def _install(self) -> None:
        if not self._share:
            return
        share_prompt(self.model, self._tile)
        if self.ref_model is not None:
            share_prompt(self.ref_model, self._tile)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if (
            "prompt_ids" not in dataset.column_names
        ):  # else `data.on_disk` made it, with the ids that TRL would make
            dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        return self._check(dataset, dataset_name) if self._check else dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._install()  # TRL computes these inside its __init__, before ours goes on
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if self.model.training and not self._counts_restored:
            self._restore_counts()
        outputs: list[Any] = []

        def recorded(*args: Any, **kwargs: Any) -> Any:
            outputs.append(model(*args, **kwargs))
            return outputs[-1]

        result = super()._compute_loss(recorded, inputs, return_outputs)
        self.check_finite(result[0] if return_outputs else result, "loss")
        self._log_more(outputs[0], inputs)  # the first is the policy's, from which TRL's loss is made
        return result

    def _restore_counts(self) -> None:
        """Tokens counted before the checkpoint that a run goes on from; TRL starts at 0 again."""
        self._counts_restored = True
        counted = [row for row in self.state.log_history if "tokens_saved" in row]
        if counted:
            self._total_train_tokens = int(counted[-1]["num_tokens"])
            self.tokens_saved = int(counted[-1]["tokens_saved"])

    @torch.no_grad()
    def _log_more(self, outputs: Any, inputs: dict[str, Any]) -> None:
        mode = "train" if self.model.training else "eval"
        half = inputs["input_ids"].shape[0] // 2
        mask = inputs["completion_mask"][:half, 1:].bool()
        logps = outputs.log_probs[:half, -mask.shape[1] :]
        sums = torch.stack([-(logps * mask).sum().float(), mask.sum().float()]).unsqueeze(0)
        total, count = self.accelerator.gather_for_metrics(sums).sum(dim=0).tolist()
        self._metrics[mode]["ce/chosen"].append(total / max(count, 1.0))
        if mode == "train":
            prompts = inputs["attention_mask"][:half].sum() - inputs["completion_mask"][:half].sum()
            prompts = self.accelerator.gather_for_metrics(prompts).sum().item()
            self.tokens_saved += int(prompts) if self._share else 0
            self._metrics[mode]["tokens_saved"] = [float(self.tokens_saved)]
