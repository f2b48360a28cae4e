"""Fitting the support readout: sentences of training answers, and what the judge's verdicts say of them.

In: a model as it will be saved, training examples, their evidence. Out: a `SupportReadout`, in closed form, its layer,
penalty and threshold chosen by folds over documents; None with a remark where the evidence does not suffice.

One reading of the prompts that have evidence, of so many answers at most that it stays a matter of minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn

from judge_pipeline.common.progress import Progress
from reward_model.data.evidence import AnswerEvidence, Key, sentence_targets
from reward_model.data.examples import Example
from reward_model.data.splits import document_groups, hash_fraction
from reward_model.modeling.features import decoder_layers
from reward_model.modeling.model import Backbone
from reward_model.modeling.prompt_format import PromptRenderer
from reward_model.modeling.readout import ReadoutSpec, View, view_features
from reward_model.modeling.ridge import Rows, choose_penalties, fit_rows, fold_predictions
from reward_model.modeling.span_states import AnswerSpans, read_spans
from reward_model.modeling.support import SupportFigures, SupportReadout, SupportSpec, token_spans
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from reward_model.shared_prefix.interface import unwrap
from reward_model.shared_prefix.layout import EncodedPrompt
from reward_model.training.probe import fold_numbers
from reward_model.training.run_data import TrainingData
from reward_model.training.sharding import weights_are_sharded
from reward_model.training.train_config import DEFAULT_BUDGET, TrainConfig

Tensor = torch.Tensor
ANSWERS = 2000
"""Answers, of documents drawn by their names, whose sentences are read: support is one linear function."""
FEWEST = 20
"""Sentences with evidence below which nothing is fitted."""
SUPPORTED = 0.75
"""Support from which a sentence counts as supported: all of its statements fully."""
TOP, DEPTHS = 0.75, (1.0, 0.9, 0.8, 0.7)
"""Highest layer that is looked at, as a share of all, where no readout names it; and the layers below that one."""
ATTENTION_DEPTH = 0.63
"""Where attention says best what a sentence looks at: measured in SmolLM2, layers 18 to 24 of 30 (see explain.py)."""


@dataclass(frozen=True)
class SentenceRows:
    """Sentences of several prompts with what the judge's statements say of them; S sentences."""

    spans: list[AnswerSpans]
    """Tokens of the sentences of every answer of each prompt."""
    targets_S: Tensor
    """Support 0–1, fp64."""
    prompt_S: Tensor
    """Number of the prompt."""
    answers: int
    """Answers that have evidence."""
    without: int
    """Answers that have none."""


def sentence_rows(
    items: Sequence[Example], evidence: Mapping[Key, AnswerEvidence], renderer: PromptRenderer
) -> SentenceRows:
    """The sentences of `items` that statements were made of; prompts and answers keep their places."""
    spans: list[AnswerSpans] = []
    targets, prompts = [], []
    answers = without = 0
    for number, item in enumerate(items):
        found = []
        for name, text in zip(item.response_ids, item.responses, strict=True):
            own = evidence.get((item.prompt_id, name), AnswerEvidence())
            known = [one for one in sentence_targets(text, own.statements) if one.support is not None]
            places = token_spans(renderer.answer_places(text), known) if known else []
            kept = [(one, span) for one, span in zip(known, places, strict=True) if span is not None]
            found.append([span for _, span in kept])
            targets += [one.support for one, _ in kept]
            prompts += [number] * len(kept)
            answers, without = (answers + 1, without) if kept else (answers, without + 1)
        spans.append(found)
    return SentenceRows(
        spans, torch.tensor(targets, dtype=torch.float64), torch.tensor(prompts).long(), answers, without
    )


def read_views(
    model: nn.Module,
    prompts: Sequence[EncodedPrompt],
    spans: Sequence[AnswerSpans],
    layers: Sequence[int],
    *,
    token_budget: int,
    shared: bool,
    withheld: bool,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(document, withheld) states (S, L, H) of the spans of all prompts; None where those are not wanted."""
    sides = [list(prompts)] + ([[prompt.withheld() for prompt in prompts]] if withheld else [])
    read = [
        torch.cat(
            [
                states
                for states in read_spans(
                    model, side, spans, token_budget=token_budget, shared=shared, layers=layers, progress=bar
                )
                if len(states)
            ]
        )
        for side, bar in zip(sides, (progress, None), strict=False)
    ]
    return read[0], read[1] if withheld else None


def _enough(truth_S: Tensor, documents: Sequence[str], say: Callable[[str], None]) -> bool:
    """Whether sentences of both kinds, in more than one document, are there to learn from; says so where not."""
    count, bad = len(truth_S), int((~truth_S).sum())
    if count >= FEWEST and 0 < bad < count and len(set(documents)) > 1:
        return True
    say(
        f"evidence: {count} sentences with verdicts, {bad} of them not supported, in {len(set(documents))} "
        "documents: too few to learn the support of sentences from, so there is no --explain"
    )
    return False


def _layer_features(view: View, document_S_L_H: Tensor, withheld_S_L_H: Tensor | None) -> list[Tensor]:
    """The features of each layer that was read."""
    return [
        view_features(
            view, document_S_L_H[:, place], None if withheld_S_L_H is None else withheld_S_L_H[:, place]
        )
        for place in range(document_S_L_H.shape[1])
    ]


def _within(
    window: int, items: Sequence[Example], renderer: PromptRenderer
) -> tuple[list[Example], list[EncodedPrompt]]:
    """The examples that fit the model's window, as they are and as token ids."""
    pairs = [(item, renderer.encode(item.context, item.query, item.responses)) for item in items]
    kept = [(item, prompt) for item, prompt in pairs if prompt.shape.longest <= window]
    return [item for item, _ in kept], [prompt for _, prompt in kept]


def fit_support(
    model: nn.Module,
    renderer: PromptRenderer,
    items: Sequence[Example],
    evidence: Mapping[Key, AnswerEvidence],
    *,
    readout: ReadoutSpec | None,
    window: int,
    token_budget: int,
    shared: bool,
    seed: int,
    say: Callable[[str], None],
) -> SupportReadout | None:
    """Read the training sentences and fit; None, with a remark, where there is too little to learn from.

    Args:
        model: as it will be saved, in evaluation mode, prepared by ``enable_shared_prefix`` when `shared`.
        renderer: of its texts.
        items: training examples.
        evidence: of their answers.
        readout: what scores, if not the plain head: no higher layer is used, and its view, so nothing more is read.
        window: of the model; longer prompts are left out.
        token_budget: tokens a pass.
        shared: read a document once for all answers.
        seed: of the folds.
        say: takes remarks for the user.
    """
    chosen, encoded = _within(window, _drawn([item for item in items if _told(item, evidence)]), renderer)
    found = sentence_rows(chosen, evidence, renderer)
    documents = document_groups(chosen)
    truth = found.targets_S >= SUPPORTED
    if not _enough(truth, documents, say):
        return None
    layers = support_layers(model, readout)
    view: View = readout.view if readout else "document"
    with Progress(len(encoded), "evidence", "prompts") as progress:
        how: dict[str, Any] = {
            "token_budget": token_budget,
            "shared": shared,
            "withheld": view != "document",
            "progress": progress,
        }
        document, withheld = read_views(model, encoded, found.spans, layers, **how)
    rows = support_rows(found, documents, seed)
    features_L = _layer_features(view, document, withheld)
    choices = [choose_penalties(rows, features) for features in features_L]
    place = max(range(len(layers)), key=lambda place: choices[place].score)
    choice, layer, features = choices[place], layers[place], features_L[place]
    predicted = fold_predictions(rows, features, choice.penalties)[0, :, 0].numpy()
    threshold, figures = judge_folds(predicted, truth.numpy(), rows.fold_R.numpy(), len(set(documents)))
    spec = SupportSpec(
        layer=layer,
        view=view,
        attention_layer=attention_layer(model, layers[-1]),
        threshold=threshold,
        figures=figures,
    )
    say(f"{spec.describe()} ({found.answers} answers with evidence, {found.without} without)")
    return SupportReadout(spec, fit_rows(rows, features, choice.penalties))


def _told(item: Example, evidence: Mapping[Key, AnswerEvidence]) -> bool:
    keys = [(item.prompt_id, name) for name in item.response_ids]
    return any(key in evidence and evidence[key].statements for key in keys)


def _drawn(items: Sequence[Example]) -> list[Example]:
    """Items of as many whole documents as `ANSWERS` holds, in their order."""
    names = document_groups(list(items))
    kept: set[str] = set()
    count = 0
    for name in sorted(set(names), key=lambda name: hash_fraction(name, -1)):
        if count < ANSWERS:
            kept.add(name)
            count += sum(len(item.responses) for item, own in zip(items, names, strict=True) if own == name)
    return [item for item, name in zip(items, names, strict=True) if name in kept]


def support_layers(model: nn.Module, readout: ReadoutSpec | None) -> list[int]:
    """Layers a support readout is chosen from, lowest first: none above what scores, so the model may be cut there."""
    depth = len(decoder_layers(model))
    top = max(1, readout.layer if readout else round(TOP * depth))
    return sorted({max(1, round(top * share)) for share in DEPTHS})


def attention_layer(model: nn.Module, highest: int) -> int:
    """The layer whose attention is shown: full attention, near `ATTENTION_DEPTH`, no higher than what is run."""
    config = unwrap(model).config.get_text_config()
    depth = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * depth
    full = [layer for layer in range(1, highest + 1) if kinds[layer - 1] == "full_attention"]
    return min(full or range(1, highest + 1), key=lambda layer: (abs(layer - ATTENTION_DEPTH * depth), layer))


def support_rows(found: SentenceRows, documents: Sequence[str], seed: int) -> Rows:
    """Sentences as rows to fit; `documents` names the document of each prompt."""
    sentences = torch.arange(len(found.targets_S))
    targets = found.targets_S[:, None]
    return Rows(
        first_R=sentences,
        second_R=torch.full_like(sentences, -1),
        targets_R_D=targets,
        weights_R_D=torch.ones_like(targets),
        prompt_R=found.prompt_S,
        fold_R=fold_numbers(documents, seed)[found.prompt_S],
    )


def best_threshold(support_S: np.ndarray, truth_S: np.ndarray) -> float:
    """The cut between supported and not that is right most often for both alike (balanced accuracy)."""
    values = np.unique(support_S)
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    cuts = cuts[:: max(1, len(cuts) // 200)]
    scores = [balanced_accuracy_score(truth_S, support_S >= cut) for cut in cuts]
    return float(cuts[int(np.argmax(scores))])


def held_out_flags(support_S: np.ndarray, truth_S: np.ndarray, fold_S: np.ndarray) -> np.ndarray:
    """Whether each sentence is called supported, with a threshold that was chosen on the other folds."""
    called = np.zeros(len(truth_S), dtype=bool)
    for fold in np.unique(fold_S):
        held = fold_S == fold
        called[held] = support_S[held] >= best_threshold(support_S[~held], truth_S[~held])
    return called


def judge_folds(
    support_S: np.ndarray, truth_S: np.ndarray, fold_S: np.ndarray, documents: int
) -> tuple[float, SupportFigures]:
    """(threshold on everything, figures) of predictions by folds that did not see the sentence's document."""
    both = all(len(np.unique(truth_S[fold_S != fold])) == 2 for fold in np.unique(fold_S))
    called = held_out_flags(support_S, truth_S, fold_S) if both else np.zeros(len(truth_S), dtype=bool)
    figures = SupportFigures(
        sentences=len(truth_S),
        unsupported=int((~truth_S).sum()),
        documents=documents,
        auc=round(float(roc_auc_score(truth_S, support_S)), 4),
        balanced_accuracy=round(float(balanced_accuracy_score(truth_S, called)), 4),
    )
    return best_threshold(support_S, truth_S), figures


def trained_support(
    config: TrainConfig,
    data: TrainingData,
    backbone: Backbone,
    model: nn.Module,
    readout: ReadoutSpec | None,
    say: Callable[[str], None],
) -> SupportReadout | None:
    """The support readout of a model that is about to be saved; None where labels hold no evidence or it is off."""
    if config.evidence == "off" or not data.evidence:
        return None
    if weights_are_sharded():
        say("evidence: not learnt from where weights are sharded, so there is no --explain")
        return None
    shared = config.shared_prefix == "on"
    if shared:
        prepare_shared_prefix(model)
    on_gpu = config.device == "auto" and torch.cuda.is_available()
    model.to("cuda" if on_gpu else "cpu").eval()
    return fit_support(
        model,
        backbone.renderer,
        data.train,
        data.evidence,
        readout=readout,
        window=backbone.manifest.max_length,
        token_budget=config.token_budget or DEFAULT_BUDGET,
        shared=shared,
        seed=config.seed,
        say=say,
    )
