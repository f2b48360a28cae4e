"""transformers' `Trainer` for packed prompts: our batches, our loss, and evaluation in points.

What stays the Trainer's: optimiser, schedule, precision, checkpoints, resume, DDP, FSDP, DeepSpeed. What is ours:
which prompts make a batch (`batches`), the loss (`objective`) and held-out metrics (`metrics`).

The loss of an optimiser step is a mean over all its targets, wherever they were computed: `get_batch_samples`
counts them over accumulated batches and processes, so two processes train to the same weights as one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from reward_model.data.batches import (
    BatchOrder,
    EncodedExample,
    EpochDataLoader,
    PromptDataset,
    StepOrder,
    collate,
    contrasted,
    token_batches,
)
from reward_model.shared_prefix.layout import Layout
from reward_model.training.guards import say
from reward_model.training.head_steps import CentredSplit, HeadSteps
from reward_model.training.metrics import held_out_metrics, moving_together
from reward_model.training.objective import Objective
from reward_model.training.run import GuardedTrainer


@dataclass(frozen=True)
class HeadStart:
    """How the head's optimiser steps are taken."""

    split: CentredSplit
    learning_rate: float
    """Points a step."""


class RewardTrainer(GuardedTrainer):
    """Trains a sequence classifier whose outputs are points 0–10."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        train: Sequence[EncodedExample],
        held_out: Sequence[EncodedExample],
        objective: Objective,
        dimensions: Sequence[str],
        token_budget: int,
        shared_prefix: bool = True,
        prompts_per_step: int | None = None,
        head: HeadStart | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        """As the Trainer's, and:

        Args:
            prompts_per_step: of an optimiser step over all processes; `args` must have the passes this takes
                (`passes_per_step`). None: as many as the accumulated sequences happen to hold.
            head: how the head's steps are taken; None: as those of the other weights.
        """
        super().__init__(
            model,
            args,
            data_collator=collate,
            train_dataset=PromptDataset(train),
            eval_dataset=PromptDataset(held_out) if held_out else None,
            callbacks=callbacks,
        )
        self.objective, self.dimensions, self.shared_prefix = objective, list(dimensions), shared_prefix
        self._train, self._prompts_per_step, self._head = list(train), prompts_per_step, head
        self._train_batches = token_batches(train, token_budget, contrasted(train))
        self._eval_batches = token_batches(held_out, token_budget)
        self._parts: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._parts_steps = 0
        # The loss is already the mean over the whole step: the Trainer must not divide it again.
        self.loss_is_scaled_for_ga = True

    # Batches

    def get_train_dataloader(self) -> DataLoader[EncodedExample]:
        """This process's packed sequences, in an order drawn from (seed, epoch)."""
        if self._prompts_per_step is None:
            return self._loader(self.train_dataset, self._train_batches)
        return _data_loader(
            self.train_dataset,
            StepOrder(
                self._train,
                self._prompts_per_step,
                self.args.gradient_accumulation_steps,
                seed=self.args.seed,
                rank=self.args.process_index,
                world=self.args.world_size,
            ),
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[EncodedExample]:
        """This process's share of the held-out prompts."""
        return self._loader(eval_dataset or self.eval_dataset, self._eval_batches)

    def _loader(self, dataset: PromptDataset, batches: list[list[int]]) -> EpochDataLoader:
        order = BatchOrder(
            batches,
            len(dataset),
            seed=self.args.seed,
            rank=self.args.process_index,
            world=self.args.world_size,
        )
        return _data_loader(dataset, order)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimiser, with a group of the head's own where its steps are taken apart."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if self._head is not None and fresh:
            HeadSteps(model or self.model, optimizer, self._head.split, self._head.learning_rate)
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of one optimiser step, and how many terms each loss has in them over all processes."""
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = torch.stack([self.objective.count(batch) for batch in samples]).sum(0).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self._parts_steps += 1
        self.step_names = [name for batch in samples for name in batch["prompt_ids"]]
        return samples, counts

    # Loss

    def predict_points(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Points (A, D) of a packed batch, read at once or (shared prefix off) answer by answer."""
        layout: Layout = batch["layout"]
        if self.shared_prefix:
            return model(input_ids=batch["input_ids"], layout=layout).logits
        ids, rows = batch["input_ids"][0], []
        for (start, stop), prompt in zip(layout.answer_spans, layout.answer_prompt, strict=True):
            prefix = ids[slice(*layout.prefix_spans[prompt])]
            rows.append(model(input_ids=torch.cat([prefix, ids[start:stop]])[None], use_cache=False).logits)
        return torch.cat(rows)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This batch's part of the step's loss; a loss that is not finite stops the run.

        Raises:
            UserError: NaN or infinity; names the batch's prompts.
        """
        predictions_A_D = self.predict_points(model, inputs)
        progress = self.state.global_step / max(self.state.max_steps, 1)
        counts = num_items_in_batch if isinstance(num_items_in_batch, Tensor) else None
        loss, parts = self.objective.loss(predictions_A_D, inputs, progress, counts)
        self.check_finite(loss, "loss", inputs["prompt_ids"])
        for name, value in parts.items():
            self._parts[name] = self._parts[name].to(value) + value
        # Gradients are averaged over processes, and the loss is already divided by the global count.
        loss = loss * self.args.world_size
        return (loss, predictions_A_D) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, averaged over the steps since the last line, to a training line."""
        if "loss" in logs and self._parts:
            names = sorted(self._parts)
            values = torch.stack([self._parts[name].to(self.args.device).float() for name in names])
            if self.args.world_size > 1:
                values = self.accelerator.reduce(values, reduction="sum")
            for name, value in zip(names, (values / max(self._parts_steps, 1)).tolist(), strict=True):
                logs[name] = value
            self._parts.clear()
            self._parts_steps = 0
        super().log(logs, start_time)

    # Evaluation

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Held-out loss (of the run's last phase) and metrics in points, over all processes."""
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        rows: list[dict[str, Any]] = []
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                predictions_A_D = self.predict_points(model, batch).float()
            rows += _rows(predictions_A_D, batch)
        model.train(was_training)
        gathered = self._gather(rows)
        bad = [row["prompt_id"] for row in gathered if not row["predictions"].isfinite().all()]
        if bad:
            self.check_finite(torch.tensor(torch.nan), "held-out loss", bad)
        metrics = {
            f"{metric_key_prefix}_{name}": value
            for name, value in held_out_metrics(gathered, self.objective, self.dimensions).items()
        }
        for warning in moving_together(metrics):
            say(warning)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(gathered))

    def _gather(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of all processes, each prompt once (fillers carry no targets and are left out)."""
        if self.args.world_size > 1:
            every: list[Any] = [None] * self.args.world_size
            torch.distributed.all_gather_object(every, rows)
            rows = [row for part in every for row in part]
        seen: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["prompt_id"] not in seen or row["real"]:
                seen[row["prompt_id"]] = row
        return [seen[name] for name in sorted(seen)]


def _data_loader(dataset: PromptDataset, order: BatchOrder) -> EpochDataLoader:
    # A generator of its own: the global one belongs to dropout, whose draws must not depend on evaluations.
    return EpochDataLoader(
        dataset, batch_sampler=order, collate_fn=collate, generator=torch.Generator().manual_seed(0)
    )


def _rows(predictions_A_D: Tensor, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a prompt: its id, predictions (N, D), targets, confidences and choices."""
    layout: Layout = batch["layout"]
    bounds = np.cumsum([0] + [len(prompt.answer_lengths) for prompt in layout.prompts])
    rows = []
    for index, name in enumerate(batch["prompt_ids"]):
        part = slice(int(bounds[index]), int(bounds[index + 1]))
        inside = (batch["winners_P"] >= part.start) & (batch["winners_P"] < part.stop)
        targets = batch["targets_A_D"][part].cpu()
        rows.append(
            {
                "prompt_id": name,
                "predictions": predictions_A_D[part].cpu(),
                "targets": targets,
                "confidence": batch["confidence_A_D"][part].cpu(),
                "winners": batch["winners_P"][inside].cpu() - part.start,
                "losers": batch["losers_P"][inside].cpu() - part.start,
                "real": bool(inside.any()) or not bool(targets.isnan().all()),
            }
        )
    return rows
