"""Probes by folds over documents: every answer is scored by fits that read nothing of its document.

In: a `Material` and its features. Out: points of every answer by the probe, by the plain head that was taught from it,
by the probe's controls and by narrower readouts. Choosing and fitting are the product's own (`training.probe`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from safetensors.torch import load_file

from judge_pipeline.statistics.table import Floats
from reward_model.data.batches import EncodedExample
from reward_model.data.splits import hash_fraction
from reward_model.modeling.features import Pooling
from reward_model.modeling.readout import Readout, ReadoutSpec
from reward_model.modeling.ridge import choose_penalties, fit_rows
from reward_model.training.feature_store import FeatureStore
from reward_model.training.probe import Probe, Training, fit_probe, fold_numbers, fold_rows, withheld_probe
from scripts.bench.distil_data import Material, Stores

Tensor = torch.Tensor
PROBE = "probe"
CONTROLS = {
    "withheld": "probe, document withheld",
    "other": "probe, another document",
    "alone": "probe fitted without documents",
}
PLAIN = "plain head taught by the probe"
NARROW: dict[str, Mapping[str, object]] = {
    "readout: last token, final layer": {"pooling": "last", "view": "document", "final": True},
    "readout: last token, best layer": {"pooling": "last", "view": "document"},
    "readout: mean, best layer": {"pooling": "mean", "view": "document"},
    "readout: mean+last, best layer": {"pooling": "mean+last", "view": "document"},
    "view: document": {"view": "document"},
    "view: difference": {"view": "difference"},
    "view: both": {"view": "both"},
}
"""Ablations that choose among a part of the probe's candidates."""
REFITTED: dict[str, Mapping[str, object]] = {
    "without log-probabilities": {"log_probs": "off"},
    "outputs not separated": {"strength": 0.0},
    "outputs as separate as the targets": {"strength": 1.0},
}
"""Ablations that fit anew with another setting of the probe."""


@dataclass(frozen=True)
class MemoryStore(FeatureStore):
    """A part of a `FeatureStore`, loaded: `states_L` holds (3, A, 2 H) a layer: document, withheld, another document."""

    states_L: Mapping[int, Tensor] = field(default_factory=dict)
    likely: Tensor | None = None
    """(3, A, 2), log-probabilities on the same sides."""

    def log_probs(self) -> tuple[Tensor, Tensor] | None:
        """(document, withheld) (A, 2)."""
        return None if self.likely is None else (self.likely[0], self.likely[1])

    def of(self, place: int, spec: ReadoutSpec) -> Tensor:
        """What a readout of this spec takes of one side (A, G)."""
        states = self.side(place, spec.layer, spec.pooling)
        return (
            states
            if not spec.log_probs or self.likely is None
            else torch.cat([states, self.likely[place]], 1)
        )

    def side(self, place: int, layer: int, pooling: Pooling) -> Tensor:
        """One side's states (A, G)."""
        values = self.states_L[layer][place]
        half = values.shape[1] // 2
        part = {"mean": slice(None, half), "last": slice(half, None), "mean+last": slice(None)}
        return values[:, part[pooling]]

    def states(self, layer: int, pooling: Pooling) -> tuple[Tensor, Tensor]:
        """(document, withheld) (A, G)."""
        return self.side(0, layer, pooling), self.side(1, layer, pooling)

    def part(self, places: Sequence[int]) -> MemoryStore:
        """The features of some prompts."""
        counts = [len(prompt.answers) for prompt in self.prompts]
        starts = np.cumsum([0, *counts])
        rows = np.concatenate([np.arange(starts[place], starts[place] + counts[place]) for place in places])
        kept = {layer: values[:, torch.from_numpy(rows)] for layer, values in self.states_L.items()}
        likely = None if self.likely is None else self.likely[:, torch.from_numpy(rows)]
        prompts = [self.prompts[place] for place in places]
        return replace(self, prompts=prompts, states_L=kept, likely=likely)


def load_store(stores: Stores, step: int, with_other: bool = True) -> MemoryStore:
    """Load every `step`-th layer below the last one, and the last one."""
    own, last = stores.own, stores.own.layers[-1]
    kept = [layer for layer in own.layers if (last - layer) % step == 0]
    places = [list(own.layers).index(layer) for layer in kept]
    files = [load_file(file) for file, _ in own._parts()]
    sides = [torch.cat([part[name][places] for part in files], dim=1) for name in ("document", "withheld")]
    if with_other:
        sides.append(stores.other.states()[places])
    values = torch.stack(sides)
    likely, found = [*(own.log_probs() or ())], None
    if likely and with_other:
        behind = stores.other.log_probs()
        likely = [*likely, behind] if behind is not None else []
    if likely:
        found = torch.stack(likely)
    states = {layer: values[:, n] for n, layer in enumerate(kept)}
    return MemoryStore(own.folder, kept, own.prompts, states_L=states, likely=found)


def quiet(text: str) -> None:
    """Remarks of a fit, of which there are many here."""


def learn(
    store: MemoryStore, items: Sequence[EncodedExample], documents: Sequence[str], seed: int
) -> tuple[Training, Probe]:
    """Choose and fit a probe on all prompts of a store."""
    training = Training(store, fold_rows(items, documents, seed), documents, len(items), seed)
    return training, fit_probe(training, quiet)


def control_points(training: Training, probe: Probe, store: MemoryStore) -> dict[str, Tensor]:
    """Points (A, D) of the answers of `store`: the probe, the plain head, and what they make of other documents."""
    readout, spec = probe.readout, probe.readout.spec
    document, withheld = store.of(0, spec), store.of(1, spec)
    final = store.states(store.layers[-1], "last")[0]
    points = {
        PROBE: readout.apply(document, withheld),
        PLAIN: final.double() @ probe.head.folded().T,
        CONTROLS["withheld"]: readout.apply(withheld, withheld),
        CONTROLS["alone"]: withheld_probe(training, spec)(withheld),
    }
    if len(store.states_L[spec.layer]) > 2:
        points[CONTROLS["other"]] = readout.apply(store.of(2, spec), withheld)
    return points


def narrow_points(training: Training, probe: Probe, store: MemoryStore) -> dict[str, Tensor]:
    """Points of the best of each part of the candidates."""
    found = {}
    for name, wanted in NARROW.items():
        spec = next(spec for spec, _ in _ranked(probe) if _matches(spec, wanted, store.layers[-1]))
        features = training.features(spec)
        emphasis = spec.emphasis(features)
        penalties = choose_penalties(training.rows, features, emphasis_F=emphasis).penalties
        readout = Readout(spec, fit_rows(training.rows, features, penalties, emphasis))
        found[name] = readout.apply(store.of(0, spec), store.of(1, spec))
    return found


def _ranked(probe: Probe) -> list[tuple[ReadoutSpec, float]]:
    return sorted(probe.candidates, key=lambda pair: -pair[1])


def _matches(spec: ReadoutSpec, wanted: Mapping[str, object], last: int) -> bool:
    if wanted.get("final") and spec.layer != last:
        return False
    return all(getattr(spec, name) == value for name, value in wanted.items() if name != "final")


def first_prompts(places: Sequence[int], names: Sequence[str], count: int, seed: int) -> list[int]:
    """Some of the prompts, nested sets, drawn by a hash; in their order."""
    drawn = sorted(places, key=lambda place: hash_fraction(f"{names[place]}:{place}", seed + 7))
    return sorted(drawn[:count])


@dataclass(frozen=True)
class Folded:
    """What every scorer makes of every answer, out of fold, for one seed of the folds."""

    points: dict[str, dict[str, Floats]]
    """Scorer → dimension → points (A,)."""
    readouts: list[str]
    """What was chosen in each fold."""
    layers: list[int]


def run_folds(
    material: Material,
    store: MemoryStore,
    items: Sequence[EncodedExample],
    seed: int,
    *,
    folds: int,
    sizes: Sequence[int],
    ablations: bool,
) -> Folded:
    """Fit on the other folds, score this one, fold by fold; half of the training prompts and `sizes` of them as well."""
    documents = list(material.documents)
    fold_P = fold_numbers(documents, seed, folds).tolist()
    found: dict[str, Tensor] = {}
    readouts, layers = [], []
    starts = np.cumsum([0, *(len(item.answers) for item in items)])
    for fold in sorted(set(fold_P)):
        test = [place for place, own in enumerate(fold_P) if own == fold]
        train = [place for place, own in enumerate(fold_P) if own != fold]
        held = store.part(test)
        rows = np.concatenate([np.arange(starts[place], starts[place + 1]) for place in test])

        def keep(points: Mapping[str, Tensor], rows: np.ndarray = rows) -> None:
            for name, values in points.items():
                empty = torch.full((int(starts[-1]), values.shape[1]), torch.nan, dtype=torch.float64)
                found.setdefault(name, empty)[torch.from_numpy(rows)] = values.double()

        def fit(places: Sequence[int]) -> tuple[Training, Probe]:
            return learn(
                store.part(places),
                [items[place] for place in places],
                [documents[place] for place in places],
                seed,
            )

        training, probe = fit(train)
        readouts.append(probe.readout.spec.describe())
        layers.append(probe.readout.spec.layer)
        keep(control_points(training, probe, held))
        if ablations:
            keep(narrow_points(training, probe, held))
            for name, changes in REFITTED.items():
                other = fit_probe(training, quiet, **changes)  # type: ignore[arg-type]
                spec = other.readout.spec
                keep({name: other.readout.apply(held.of(0, spec), held.of(1, spec))})
            for count in sorted({*sizes, len(train) // 2}):
                if count < len(train):
                    _, small = fit(first_prompts(train, documents, count, seed))
                    spec = small.readout.spec
                    name = HALF if count == len(train) // 2 else f"{count} prompts"
                    keep({name: small.readout.apply(held.of(0, spec), held.of(1, spec))})
    names = material.dimensions
    points = {
        scorer: {name: values[:, place].numpy() for place, name in enumerate(names)}
        for scorer, values in found.items()
    }
    return Folded(points, readouts, layers)


HALF = "half the prompts"
