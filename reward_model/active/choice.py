"""Which prompts to label next: those on whose answers a small ensemble of heads disagrees.

In: features of labelled answers with their targets, features of unlabelled ones. Out: an uncertainty per prompt, and a
choice of prompts. The backbone stays frozen; each head is a ridge regression on a resample of the labelled documents,
so their disagreement shows where more labels would change the scores. What counts is the order within a prompt, so a
shift that all answers of a prompt share is taken out first: it would change no best-of-N and no pair.

Shape suffixes: A answers, H features, D dimensions, K heads, N answers of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from reward_model.active.propose_config import HEADS
from reward_model.modeling.ridge import LinearProbe, fit_answers

Floats = npt.NDArray[np.float64]
STRENGTH = 100.0
"""Of the ridge, on standardised features: with a few hundred answers and as many features, heads must be damped."""


@dataclass(frozen=True)
class Labelled:
    """Answers with targets."""

    features_A_H: Floats
    targets_A_D: Floats
    """Points; NaN where a dimension has no score."""
    documents_A: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.features_A_H) == len(self.targets_A_D) == len(self.documents_A):
            raise ValueError("features, targets and documents differ in length")


def fit_ensemble(
    labelled: Labelled, heads: int = HEADS, strength: float = STRENGTH, seed: int = 0
) -> list[LinearProbe]:
    """K heads, every one fitted to its own resample of the labelled documents; dimensions without targets are left out."""
    generator = np.random.default_rng(seed)
    names = sorted(set(labelled.documents_A))
    rows_of = {name: np.flatnonzero(np.array(labelled.documents_A) == name) for name in names}
    ensemble = []
    for _ in range(heads):
        drawn = generator.choice(len(names), len(names))
        rows = np.concatenate([rows_of[names[number]] for number in drawn])
        targets = labelled.targets_A_D[rows]
        targets = targets[:, np.isfinite(targets).any(axis=0)]
        features = torch.from_numpy(labelled.features_A_H[rows])
        ensemble.append(fit_answers(features, torch.from_numpy(targets), strength))
    return ensemble


def predict_ensemble(ensemble: Sequence[LinearProbe], features_N_H: Floats) -> Floats:
    """Mean over dimensions of each head's points (K, N)."""
    features = torch.from_numpy(features_N_H)
    return torch.stack([head(features).mean(dim=1) for head in ensemble]).numpy()


def disagreement(rewards_K_N: Floats) -> float:
    """Mean over answers of the heads' standard deviation, each head's own mean over the prompt taken out, in points."""
    centred = rewards_K_N - rewards_K_N.mean(axis=1, keepdims=True)
    return float(np.sqrt(centred.var(axis=0, ddof=1).mean())) if len(rewards_K_N) > 1 else 0.0


def rank_prompts(labelled: Labelled, pool: Sequence[Floats], heads: int = HEADS, seed: int = 0) -> Floats:
    """Uncertainty of each unlabelled prompt, whose answers' features (N, H) are given; higher: label sooner."""
    ensemble = fit_ensemble(labelled, heads, seed=seed)
    return np.array([disagreement(predict_ensemble(ensemble, features)) for features in pool])


def choose(
    uncertainty: Floats, documents: Sequence[str], count: int, per_document: int | None = None
) -> list[int]:
    """Positions of the `count` most uncertain prompts, at most `per_document` over one document.

    Prompts over one document teach much the same, so by default they are spread as evenly as the pool allows.
    """
    order = np.argsort(-uncertainty, kind="stable").tolist()
    if per_document is None:
        per_document = max(1, -(-count // max(1, len(set(documents)))))
    taken: dict[str, int] = {}
    chosen: list[int] = []
    for position in order:
        if len(chosen) == count:
            break
        if taken.get(documents[position], 0) < per_document:
            taken[documents[position]] = taken.get(documents[position], 0) + 1
            chosen.append(position)
    return chosen
