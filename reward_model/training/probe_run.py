"""The probe of a training run: read the frozen model once, fit, measure, and remember.

In: settings, encoded data, a model that is not trained yet. Out: a `ProbeResult`, kept in `DIR/checkpoints/probe` so
that a run that goes on finds it; features lie beside it, so that a stopped reading goes on too. Several processes
share the reading (over one file system, as their checkpoints do) and the first one fits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_json, write_text
from reward_model.data.batches import EncodedExample
from reward_model.modeling.head import score_weight
from reward_model.modeling.language_head import LanguageHead
from reward_model.modeling.model import Backbone, load_backbone_for_rm
from reward_model.modeling.readout import VIEWS, Readout, ReadoutSpec, View
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from reward_model.training.adapters import compute_dtype
from reward_model.training.feature_store import FeatureStore, probed_layers
from reward_model.training.folds import FOLDER, fold_points, write_folds
from reward_model.training.guards import say
from reward_model.training.metrics import held_out_metrics
from reward_model.training.objective import Objective
from reward_model.training.probe import Probe, Training, documents_of, fit_probe, fold_rows, withheld_probe
from reward_model.training.probe_figures import held_out_figures, remarks, terminal_table
from reward_model.training.run_data import EncodedData, TrainingData
from reward_model.training.sharding import weights_are_sharded
from reward_model.training.stacking import fit_stack_spec, held_out_stack, stack_section
from reward_model.training.train_config import DEFAULT_BUDGET, TrainConfig

Tensor = torch.Tensor
SHOWN_CANDIDATES = 30


@dataclass(frozen=True)
class ProbeResult:
    """A fitted probe."""

    readout: Readout
    head_D_H: Tensor
    """Weight of the plain head that was taught from it, in the type it is saved in."""
    report: dict[str, Any]
    """How it was found, and its figures on held-out documents; the content of `probe.json`."""

    @property
    def figures(self) -> dict[str, Any] | None:
        """See `held_out_figures`; None where nothing was held out."""
        return self.report["held_out"]

    def save(self, folder: Path) -> None:
        """Write it; the report last."""
        folder.mkdir(parents=True, exist_ok=True)
        self.readout.save(folder)
        save_file({"weight": self.head_D_H.contiguous()}, folder / "head.safetensors")
        write_text(folder / "probe.json", json.dumps(self.report, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ProbeResult:
        """Read what `save` wrote."""
        report = read_json(folder / "probe.json")
        readout = Readout.load(folder, ReadoutSpec.model_validate(report["readout"]))
        return cls(readout, load_file(folder / "head.safetensors")["weight"], report)


def run_probe(
    config: TrainConfig, data: TrainingData, backbone: Backbone, objective: Objective, encoded: EncodedData
) -> ProbeResult:
    """Read, fit and measure, or find what an earlier start of this run did; the model is left as it was.

    Where FSDP will shard the weights, the first process reads alone, with a copy of its own.

    Raises:
        UserError: the disk is full, or the model cannot share a prefix.
    """
    folder, state = config.checkpoints / "probe", PartialState()
    if not (folder / "probe.json").is_file():
        started, (rank, world) = time.monotonic(), (state.process_index, state.num_processes)
        model: nn.Module | None = backbone.model
        if weights_are_sharded():
            model, (rank, world) = _own_copy(config, backbone) if rank == 0 else None, (0, 1)
        store = FeatureStore(
            config.checkpoints / "features",
            range(0),
            [*encoded.train, *encoded.unlabelled, *encoded.held_out],
        )
        if model is not None:
            on_gpu = config.device == "auto" and torch.cuda.is_available()
            model.to(state.device if on_gpu else "cpu").eval()
            store = replace(store, layers=probed_layers(model))
            budget = config.token_budget or DEFAULT_BUDGET
            head = None if config.log_probs == "off" else LanguageHead.of_base(model, config.base_model)
            if head is None and config.log_probs == "on":
                raise UserError(
                    f"--log-probs on: the files of {config.base_model} hold no language head",
                    "--log-probs off",
                )
            store.read(model, budget, config.shared_prefix == "on", rank, world, head)
            model.train()
        state.wait_for_everyone()
        if state.is_main_process:
            result = fit_and_measure(config, data, backbone, objective, encoded, store)
            result.report["seconds"] = round(time.monotonic() - started, 1)
            result.save(folder)
        state.wait_for_everyone()
    result = ProbeResult.load(folder)
    say(describe(result))
    return result


def _own_copy(config: TrainConfig, backbone: Backbone) -> nn.Module:
    """The frozen model whole, beside the one that will be sharded."""
    manifest = backbone.manifest
    model = load_backbone_for_rm(
        config.base_model,
        manifest.dimensions,
        compute_dtype(config),
        max_length=config.max_length,
        rope_parameters=config.rope_parameters(),
    ).model
    return prepare_shared_prefix(model) if config.shared_prefix == "on" else model


def fit_and_measure(
    config: TrainConfig,
    data: TrainingData,
    backbone: Backbone,
    objective: Objective,
    encoded: EncodedData,
    store: FeatureStore,
) -> ProbeResult:
    """Fit on the training side of a store that was read, measure on the held-out side, and say how it came out."""
    learnt = [*encoded.train, *encoded.unlabelled]
    documents: Sequence[str] = documents_of(learnt, [*data.train, *data.unlabelled])
    rows = fold_rows(encoded.train, documents[: len(encoded.train)], config.seed, config.augment_weight)
    training = Training(store, rows, documents, len(encoded.train), config.seed)
    views: Sequence[View] = VIEWS if config.view == "auto" else [config.view]
    probe = fit_probe(training, say, views, config.separate, config.log_probs)
    dtype = score_weight(backbone.model).dtype
    head_D_H = probe.head.folded().to(dtype).cpu()
    names = backbone.manifest.dimensions
    report: dict[str, Any] = {
        "readout": probe.readout.spec.model_dump(),
        "layers": store.layers[-1],
        "separated": probe.separation.strength,
        "penalties": dict(zip(names, probe.choice.penalties, strict=True)),
        "explained": dict(zip(names, map(_finite, probe.choice.explained), strict=True)),
        "taught": dict(zip(names, map(_finite, probe.taught.explained), strict=True)),
        "candidates": [spec.model_dump() | {"explained": score} for spec, score in _shown(probe)],
        "held_out": None,
        "metrics": {},
    }
    spec = None
    if config.stack:
        spec = fit_stack_spec(training, probe, encoded.train, data.train, names)
        report["stack"] = spec.model_dump()
    weights_D = objective.standardizer.weights_D
    measured, documents = encoded.held_out, documents_of(encoded.held_out, data.held_out)
    if config.folds:
        measured, documents = encoded.train, training.documents[: len(encoded.train)]
        points = fold_points(training, config.folds, say, views, config.separate, config.log_probs)
        write_folds(config.output / FOLDER, measured, data.train, points, names, weights_D)
        report["folds"] = config.folds
    elif measured:
        points = _held_out_points(training, probe, head_D_H)
        if spec is not None:
            report["stack_held_out"] = held_out_stack(spec, points["readout"], measured, data.held_out, names)
    if measured:
        report["held_out"] = held_out_figures(measured, documents, points, names, weights_D)
        for scorer in ("readout", "plain"):
            scored = scored_rows(measured, points[scorer])
            report["metrics"][scorer] = held_out_metrics(scored, objective, data.dimensions)
    return ProbeResult(probe.readout, head_D_H, report)


def _shown(probe: Probe) -> Sequence[tuple[ReadoutSpec, float]]:
    return probe.candidates[:SHOWN_CANDIDATES]


def _finite(value: float) -> float | None:
    return None if value != value else value


def _held_out_points(training: Training, probe: Probe, head_D_H: Tensor) -> dict[str, Tensor]:
    """Points (A, D) fp32 of the held-out answers by readout, plain head, and the control without documents."""
    spec, start = probe.readout.spec, training.answers(len(training.documents))
    prompts = len(training.store.prompts)
    document, withheld = (side[start:] for side in training.states(spec, prompts))
    final = training.store.states(training.store.layers[-1], "last")[0][start:]
    return {
        "readout": probe.readout.apply(document, withheld),
        "plain": final @ head_D_H.float().T,
        "withheld": withheld_probe(training, spec)(withheld).float(),
    }


def scored_rows(items: Sequence[EncodedExample], points_A_D: Tensor) -> list[Mapping[str, Any]]:
    """Held-out prompts with their points, as `held_out_metrics` takes them."""
    rows: list[Mapping[str, Any]] = []
    for item, points in zip(items, points_A_D.split([len(item.answers) for item in items]), strict=True):
        chosen = torch.tensor(item.preferences, dtype=torch.long).reshape(-1, 2)
        rows.append(
            {
                "prompt_id": item.prompt_id,
                "predictions": points,
                "targets": torch.from_numpy(item.targets_N_D),
                "confidence": torch.from_numpy(item.confidence_N_D),
                "winners": chosen[:, 0],
                "losers": chosen[:, 1],
            }
        )
    return rows


def describe(result: ProbeResult) -> str:
    """What was found, for the terminal."""
    report, spec = result.report, result.readout.spec
    explained = ", ".join(
        f"{name} {value:.0%}" for name, value in report["explained"].items() if value is not None
    )
    lines = [f"probe: {spec.describe()} (of {report['layers']} layers)"]
    if report["separated"]:
        lines.append(f"outputs separated at strength {report['separated']:g} (1: as far as their targets)")
    if explained:
        lines.append(f"explained of the differences within prompts, by folds over documents: {explained}")
    if result.figures:
        figures = result.figures
        how = f" by {report['folds']} folds over documents" if report.get("folds") else ""
        lines.append(
            f"within-prompt Spearman / pairs in order on {figures['prompts']} held-out prompts, "
            f"{figures['documents']} documents{how}:"
        )
        lines += [terminal_table(figures), *remarks(figures)]
    if section := stack_section(report):
        lines.append(section)
    return "\n".join(lines)
