"""The closed-form probe: which layer, pooling and view of a frozen model tells answers apart, and how strongly to fit.

In: a `FeatureStore` and what the answers are worth. Out: a `Probe`: the best readout, and the plain head taught from
it. Candidates are compared by folds over documents on the within-prompt variance they explain, mean over outputs:
the order within a prompt is what best-of-N and pairs use. Within `TIE` the cheaper one wins: one reading rather than
two, then the lower layer, above which a model may be cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from reward_model.data.batches import EncodedExample
from reward_model.data.examples import Example
from reward_model.data.splits import document_groups, hash_fraction
from reward_model.modeling.features import POOLINGS
from reward_model.modeling.level_head import LevelHead, choose_teaching, teach_head
from reward_model.modeling.readout import VIEWS, Readout, ReadoutSpec, View, view_features
from reward_model.modeling.ridge import PENALTIES, Choice, LinearProbe, Rows, choose_penalties, fit_rows
from reward_model.options import Likelihood
from reward_model.training.feature_store import FeatureStore
from reward_model.training.separate import Separation, Strength, separate

Tensor = torch.Tensor
FOLDS = 5
TIE = 0.002
"""Explained variance within which two candidates are the same."""
CHOICE_ROWS = 1000
"""Answers, of documents drawn by their names, that candidates are compared on; the chosen one is fitted to all."""
GAP = 1.0
"""What a choice of people's is worth where there are no points: its scale is of no consequence."""
STRENGTH_POINTS = 1.0
"""What one strength of damage is worth in points: a judge takes about three off for what strength 3 does."""
MIDDLE = 5.0
"""Where outputs lie when nothing but preferences is known: the middle of the scale."""


@dataclass(frozen=True)
class Probe:
    """What a frozen model knows of its answers, and how it was found."""

    readout: Readout
    head: LevelHead
    """The plain head that was taught from the readout."""
    choice: Choice
    """Of the readout."""
    taught: Choice
    """What of the readout's outputs the plain head reproduces on documents out of its fold."""
    separation: Separation
    """What was done to the readout's outputs so that they do not move together; folded in."""
    candidates: Sequence[tuple[ReadoutSpec, float]]
    """All that were compared, best first, with what they explain."""


def fold_numbers(documents: Sequence[str], seed: int, folds: int = FOLDS) -> Tensor:
    """The fold of each prompt, by its document's name; no more folds than there are documents."""
    order = sorted(set(documents), key=lambda name: hash_fraction(name, seed + 1))
    fold_of = {name: place % min(folds, len(order)) for place, name in enumerate(order)}
    return torch.tensor([fold_of[name] for name in documents])


def fold_rows(
    items: Sequence[EncodedExample], documents: Sequence[str], seed: int, contrast_weight: float = 1.0
) -> Rows:
    """The answers of `items`, prompt by prompt, as rows to fit; choices of people's and changed answers as gaps.

    Args:
        items: encoded training prompts.
        documents: name of each prompt's document; prompts of one document are in one fold.
        seed: of the folds.
        contrast_weight: of a gap between answers that were changed on purpose; that of an answer's points is 1.
    """
    start_of = dict(zip((item.prompt_id for item in items), _starts(items), strict=False))
    starts = _starts(items)
    first, second, targets, weights, prompts = [], [], [], [], []
    for number, (item, start) in enumerate(zip(items, starts, strict=False)):
        answers = np.arange(start, start + len(item.answers))
        pairs = np.array(item.preferences, dtype=np.int64).reshape(-1, 2) + start
        gaps = np.full((len(pairs), item.targets_N_D.shape[1]), GAP)
        known = [one for one in item.contrasts if {one.better[0], one.worse[0]} <= start_of.keys()]
        better, worse = (
            np.array([start_of[name] + place for name, place in sides], dtype=np.int64)
            for sides in ([one.better for one in known], [one.worse for one in known])
        )
        strengths = np.array([one.gaps_D for one in known]).reshape(len(known), gaps.shape[1])
        first += [answers, pairs[:, 0], better]
        second += [np.full(len(answers), -1), pairs[:, 1], worse]
        targets += [item.targets_N_D, gaps, STRENGTH_POINTS * strengths]
        weights += [item.confidence_N_D, np.ones_like(gaps), np.full_like(strengths, contrast_weight)]
        prompts.append(np.full(len(answers) + len(pairs) + len(known), number))
    values = torch.from_numpy(np.concatenate(targets).astype(np.float64))
    confidence = torch.from_numpy(np.concatenate(weights).astype(np.float64))
    prompt_R = torch.from_numpy(np.concatenate(prompts))
    found = Rows(
        first_R=torch.from_numpy(np.concatenate(first)),
        second_R=torch.from_numpy(np.concatenate(second)),
        targets_R_D=values,
        weights_R_D=torch.where(values.isnan(), 0.0, confidence),
        prompt_R=prompt_R,
        fold_R=fold_numbers(documents, seed)[prompt_R],
    )
    return found.keep((found.weights_R_D > 0).any(1))


def _starts(items: Sequence[EncodedExample]) -> list[int]:
    """The number of each prompt's first answer among all answers, and how many answers there are."""
    return np.cumsum([0] + [len(item.answers) for item in items]).tolist()


def documents_of(items: Sequence[EncodedExample], examples: Sequence[Example]) -> list[str]:
    """The name of each encoded prompt's document, equal where ids or texts are."""
    names = dict(
        zip((example.prompt_id for example in examples), document_groups(list(examples)), strict=True)
    )
    return [names[item.prompt_id] for item in items]


def _for_choice(rows: Rows, documents: Sequence[str]) -> Rows:
    """Rows of as many documents as the choice takes, whole ones."""
    kept = torch.zeros(len(documents), dtype=torch.bool)
    count, rows_of = 0, rows.prompt_R.bincount(minlength=len(documents)).tolist()
    for name in sorted(set(documents), key=lambda name: hash_fraction(name, -1)):
        if count < CHOICE_ROWS:
            own = [place for place, other in enumerate(documents) if other == name]
            kept[own] = True
            count += sum(rows_of[place] for place in own)
    return rows.keep(kept[rows.prompt_R])


@dataclass(frozen=True)
class Training:
    """What a probe may learn from: the first prompts of a store.

    Attributes:
        store: features.
        rows: what is fitted.
        documents: name of the document of each labelled prompt, and of each further one that the head is taught on.
        labelled: prompts with labels; they come first.
        seed: of the folds.
        taught_A: answers that the head is taught on; all of them where there is none.
    """

    store: FeatureStore
    rows: Rows
    documents: Sequence[str]
    labelled: int
    seed: int
    taught_A: Tensor | None = None

    def answers(self, prompts: int) -> int:
        """Answers of the first prompts."""
        return sum(len(item.answers) for item in self.store.prompts[:prompts])

    def states(self, spec: ReadoutSpec, prompts: int) -> tuple[Tensor, Tensor]:
        """(document, withheld) of the answers of the first prompts, as the spec's readout takes them."""
        count = self.answers(prompts)
        document, withheld = self.store.states(spec.layer, spec.pooling)
        if spec.log_probs:
            more = self.store.log_probs()
            assert more is not None
            document, withheld = (
                torch.cat(pair, dim=1) for pair in zip((document, withheld), more, strict=True)
            )
        return document[:count], withheld[:count]

    def features(self, spec: ReadoutSpec) -> Tensor:
        """What a readout of this spec is fitted to (A, F): of the labelled prompts."""
        return view_features(spec.view, *self.states(spec, self.labelled))

    def taught(self, values_A: Tensor) -> Tensor:
        """Of values of answers (A, …) those of answers that the head is taught on."""
        return values_A if self.taught_A is None else values_A[self.taught_A]

    def final_states(self, prompts: int) -> Tensor:
        """What the plain head sees of the answers of the first prompts (A, H)."""
        return self.store.states(self.store.layers[-1], "last")[0][: self.answers(prompts)]


def choose_readout(
    training: Training,
    say: Callable[[str], None],
    views: Sequence[View] = VIEWS,
    log_probs: Likelihood = "auto",
) -> tuple[ReadoutSpec, Choice, list[tuple[ReadoutSpec, float]]]:
    """The best candidate, its penalties, and all candidates with their scores, best first.

    Args:
        training: what may be learnt from.
        say: takes remarks for the user.
        views: to choose from.
        log_probs: whether readouts see the answer's log-probabilities, where they were read; auto: where it helps.
    """
    store, rows = training.store, training.rows
    if len(rows.fold_R.unique()) < 2:
        layer = min(store.layers, key=lambda layer: abs(layer - round(2 * store.layers[-1] / 3)))
        spec = ReadoutSpec(layer=layer, pooling="mean", view=views[-1])
        say(
            "one document alone: layer, pooling and penalty are not chosen but taken as they usually come out"
        )
        outputs = rows.targets_R_D.shape[1]
        return spec, Choice((10.0,) * outputs, (float("nan"),) * outputs), []
    some = _for_choice(rows, training.documents[: training.labelled])
    if len(some.first_R) < len(rows.first_R):
        say(f"candidates are compared on {len(some.first_R)} of {len(rows.first_R)} answers")
    likely = log_probs != "off" and store.log_probs() is not None
    found: list[tuple[ReadoutSpec, Choice]] = []
    for layer, pooling in product(store.layers, POOLINGS):
        whole = ReadoutSpec(layer=layer, pooling=pooling, view="both", log_probs=likely)
        states = training.states(whole, training.labelled)
        for view in views:
            spec = whole.model_copy(update={"view": view})
            found.append((spec, _choose(some, spec, view_features(view, *states), PENALTIES[::2])))
    best = max(choice.score for _, choice in found)
    equal = [spec for spec, choice in found if choice.score >= best - TIE]
    spec = min(equal, key=lambda spec: (spec.needs_withheld, spec.layer))
    choice = _choose(some, spec, training.features(spec))
    if likely and log_probs == "auto":  # the layers above run for them, and the language head
        bare = spec.model_copy(update={"log_probs": False})
        without = _choose(some, bare, training.features(bare))
        if without.score >= choice.score - TIE:
            spec, choice = bare, without
    ranked = sorted(found, key=lambda pair: (pair[0] != spec, -pair[1].score))
    return spec, choice, [(one, choice.score) for one, choice in ranked]


def _choose(
    rows: Rows, spec: ReadoutSpec, features_A_F: Tensor, penalties: Sequence[float] = PENALTIES
) -> Choice:
    return choose_penalties(rows, features_A_F, penalties, spec.emphasis(features_A_F))


def fit_probe(
    training: Training,
    say: Callable[[str], None],
    views: Sequence[View] = VIEWS,
    strength: Strength = "auto",
    log_probs: Likelihood = "auto",
) -> Probe:
    """Choose and fit the readout, and teach the plain head its outputs, on answers with and without labels.

    Args:
        training: what may be learnt from.
        say: takes remarks for the user.
        views: to choose from.
        strength: see `separate`.
        log_probs: see `choose_readout`.
    """
    spec, choice, candidates = choose_readout(training, say, views, log_probs)
    features = training.features(spec)
    emphasis = spec.emphasis(features)
    separation, choice = separate(training.rows, features, choice, strength, emphasis)
    linear = separation.fold(fit_rows(training.rows, features, choice.penalties, emphasis))
    if not training.rows.level_R.any():
        linear = LinearProbe(linear.weight_D_H, linear.bias_D + MIDDLE)
    readout = Readout(spec, linear)
    everything = len(training.documents)
    final = training.taught(training.final_states(everything))
    outputs = _taught_rows(readout.apply(*training.states(spec, everything)), training)
    if len(outputs.fold_R.unique()) < 2:
        taught = Choice((1.0,) * len(linear.bias_D), (float("nan"),) * len(linear.bias_D))
    else:
        taught = choose_teaching(final, outputs)
    return Probe(
        readout, teach_head(final, outputs, taught.penalties), choice, taught, separation, candidates
    )


def withheld_probe(training: Training, spec: ReadoutSpec) -> LinearProbe:
    """What a readout of the same layer and pooling makes of answers whose document it never sees: the control."""
    withheld = training.states(spec, training.labelled)[1]
    rows, alone = training.rows, spec.model_copy(update={"view": "document"})
    emphasis = alone.emphasis(withheld)
    if len(rows.fold_R.unique()) < 2:
        return fit_rows(rows, withheld, (10.0,) * rows.targets_R_D.shape[1], emphasis)
    some = _for_choice(rows, training.documents[: training.labelled])
    return fit_rows(rows, withheld, _choose(some, alone, withheld).penalties, emphasis)


def _taught_rows(points_A_D: Tensor, training: Training) -> Rows:
    """A readout's outputs on every answer that the head is taught on as targets; such answers alone are numbered."""
    counts = [len(item.answers) for item in training.store.prompts[: len(training.documents)]]
    prompt_A = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    points, prompts = training.taught(points_A_D), training.taught(prompt_A)
    answers = torch.arange(len(prompts))
    return Rows(
        first_R=answers,
        second_R=torch.full_like(answers, -1),
        targets_R_D=points.double(),
        weights_R_D=torch.ones_like(points, dtype=torch.float64),
        prompt_R=prompts,
        fold_R=fold_numbers(training.documents, training.seed)[prompts],
    )
