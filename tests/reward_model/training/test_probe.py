"""The probe finds what is planted, where it is planted, and never lets a document stand on both sides of a fold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reward_model.data.batches import EncodedExample, encode_examples
from reward_model.data.examples import Example
from reward_model.modeling.model import load_backbone_for_rm
from reward_model.modeling.readout import ReadoutSpec, view_features
from reward_model.modeling.ridge import fold_predictions
from reward_model.shared_prefix.exactness import prepare_shared_prefix
from reward_model.training.feature_store import FeatureStore, probed_layers
from reward_model.training.probe import Training, documents_of, fit_probe, fold_numbers, fold_rows

pytestmark = pytest.mark.usefixtures("one_thread")
ANSWERS = 5


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    words = [
        "river",
        "stone",
        "lantern",
        "garden",
        "copper",
        "winter",
        "ladder",
        "market",
        "signal",
        "harbour",
        "velvet",
        "engine",
    ]
    items = []
    for number in range(40):
        answers = tuple(" ".join(rng.choice(words, rng.integers(2, 6))) for _ in range(ANSWERS))
        items.append(
            Example(
                f"p{number}",
                f"d{number // 2}",
                f"Document {number // 2}: " + " ".join(rng.choice(words, 12)),
                "Which words?",
                tuple(f"r{place}" for place in range(ANSWERS)),
                answers,
                np.zeros((ANSWERS, 2), np.float32),
                np.ones((ANSWERS, 2), np.float32),
            )
        )
    return items


@pytest.fixture(scope="module")
def read(tiny_base, examples, tmp_path_factory):
    """(model, store) of the examples."""
    backbone = load_backbone_for_rm(str(tiny_base), dtype=torch.float32)
    model = prepare_shared_prefix(backbone.model.eval())
    encoded = encode_examples(examples, backbone.renderer.encode)
    store = FeatureStore(tmp_path_factory.mktemp("features"), probed_layers(model), encoded)
    store.read(model, 2000)
    return model, store


def with_targets(store: FeatureStore, targets) -> list[EncodedExample]:
    pieces = np.split(np.asarray(targets, np.float32), len(store.prompts))
    return [
        replace(item, targets_N_D=piece, confidence_N_D=np.ones_like(piece))
        for item, piece in zip(store.prompts, pieces, strict=True)
    ]


def training_on(store, examples, targets) -> Training:
    items = with_targets(store, targets)
    documents = documents_of(items, examples)
    return Training(store, fold_rows(items, documents, seed=0), documents, len(items), 0)


def planted(store, spec: ReadoutSpec) -> np.ndarray:
    """Points that are two directions of the features of a spec, between 0 and 10."""
    features = view_features(spec.view, *store.states(spec.layer, spec.pooling)).double()
    centred = features - features.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False)[2][3:5]
    points = centred @ directions.T
    return (5 + 1.5 * points / points.std(0)).numpy()


def silent(text: str) -> None:
    """For remarks that no test reads."""


@pytest.mark.parametrize(
    "spec",
    [
        ReadoutSpec(layer=2, pooling="last", view="document"),
        ReadoutSpec(layer=1, pooling="mean", view="document"),
        ReadoutSpec(layer=1, pooling="mean", view="difference"),
    ],
)
def test_a_planted_signal_is_found_where_it_is(read, examples, spec):
    store = read[1]
    probe = fit_probe(training_on(store, examples, planted(store, spec)), silent)
    found = probe.readout.spec
    assert (found.layer, min(probe.choice.explained) > 0.9) == (spec.layer, True)
    assert spec.pooling in found.pooling
    assert found.view in (spec.view, "both")
    assert probe.candidates[0][0] == found
    assert len(probe.candidates) == 2 * 3 * 3
    worst = min(score for _, score in probe.candidates)
    assert probe.candidates[0][1] > worst + 0.1
    points = probe.readout.apply(*store.states(found.layer, found.pooling))
    assert torch.corrcoef(points.T)[0, 1].abs() < 0.3
    assert np.abs(points.numpy() - planted(store, spec)).mean() < 0.5


def test_the_plain_head_is_taught_what_the_readout_says(read, examples):
    store = read[1]
    spec = ReadoutSpec(layer=2, pooling="last", view="document")
    probe = fit_probe(training_on(store, examples, planted(store, spec)), silent)
    final = store.states(2, "last")[0]
    plain = final.double() @ probe.head.folded().T
    torch.testing.assert_close(plain, probe.head(final), atol=1e-5, rtol=0)
    readout = probe.readout.apply(*store.states(probe.readout.spec.layer, probe.readout.spec.pooling))
    assert min(probe.taught.explained) > 0.5
    assert (plain - readout).abs().mean() < 0.7
    assert torch.corrcoef(plain.T)[0, 1].abs() < 0.5


def test_noise_is_not_learnt(read, examples):
    store = read[1]
    noise = np.random.default_rng(0).normal(5, 2, (len(examples) * ANSWERS, 2))
    probe = fit_probe(training_on(store, examples, noise), silent)
    assert max(probe.choice.explained) < 0.1
    assert min(probe.choice.penalties) > 1


def test_folds_never_mix_documents(read, examples):
    store = read[1]
    items = with_targets(store, np.zeros((len(examples) * ANSWERS, 2)))
    twin = replace(examples[7], document_id="another name", context=examples[0].context.upper())
    documents = documents_of(items, [*examples[:7], twin, *examples[8:]])
    assert documents[7] == documents[0] == documents[1]  # the same text, or the same id
    rows = fold_rows(items, documents, seed=3)
    folds = {}
    for prompt, fold in zip(rows.prompt_R.tolist(), rows.fold_R.tolist(), strict=True):
        assert folds.setdefault(documents[prompt], fold) == fold
    assert len(set(folds.values())) == 5
    assert fold_numbers(["a", "b", "b"], seed=0).unique().tolist() == [0, 1]


def test_what_other_documents_say_of_a_fold_does_not_come_from_it(read, examples):
    """Turning one document's targets round changes nothing in how it is predicted itself."""
    store = read[1]
    targets = planted(store, ReadoutSpec(layer=2, pooling="last", view="document"))
    features = store.states(2, "last")[0]
    first = training_on(store, examples, targets).rows
    own = first.fold_R == first.fold_R[0]
    turned = targets.copy()
    turned[own.numpy()] = 10 - turned[own.numpy()]
    second = training_on(store, examples, turned).rows
    torch.testing.assert_close(
        fold_predictions(first, features)[:, own], fold_predictions(second, features)[:, own]
    )


def test_missing_targets_and_votes_that_disagree_count_for_less(read, examples):
    store = read[1]
    targets = planted(store, ReadoutSpec(layer=2, pooling="last", view="document"))
    holes = targets.copy()
    holes[::3, 0] = np.nan
    whole = fit_probe(training_on(store, examples, targets), silent)
    probe = fit_probe(training_on(store, examples, holes), silent)
    points = [
        one.readout.apply(*store.states(one.readout.spec.layer, one.readout.spec.pooling))
        for one in (whole, probe)
    ]
    assert (points[0] - points[1]).abs().mean() < 0.3
    items = with_targets(store, targets)
    doubted = [replace(item, confidence_N_D=item.confidence_N_D * 0.25) for item in items]
    documents = documents_of(items, examples)
    assert fold_rows(doubted, documents, 0).weights_R_D.unique().tolist() == [0.25]


def test_choices_of_people_are_fitted_as_gaps(read, examples):
    store = read[1]
    worth = planted(store, ReadoutSpec(layer=2, pooling="last", view="document"))[:, :1]
    items = []
    for item, own in zip(store.prompts, np.split(worth[:, 0], len(examples)), strict=True):
        pairs = tuple((i, j) for i in range(ANSWERS) for j in range(ANSWERS) if own[i] > own[j])
        nothing = np.full((ANSWERS, 1), np.nan, np.float32)
        items.append(replace(item, targets_N_D=nothing, confidence_N_D=nothing * 0 + 1, preferences=pairs))
    documents = documents_of(items, examples)
    rows = fold_rows(items, documents, 0)
    assert not rows.level_R.any()
    probe = fit_probe(Training(store, rows, documents, len(items), 0), silent)
    spec = probe.readout.spec
    points = probe.readout.apply(*store.states(spec.layer, spec.pooling))[:, 0].numpy()
    right = [
        points[start + i] > points[start + j]
        for start, item in zip(range(0, len(points), ANSWERS), items, strict=True)
        for i, j in item.preferences
    ]
    assert np.mean(right) > 0.9
    assert points.mean() == pytest.approx(5.0, abs=0.01)


def test_one_document_alone_is_fitted_without_a_choice(read, examples):
    store = FeatureStore(read[1].folder, read[1].layers, read[1].prompts[:8])
    some = planted(read[1], ReadoutSpec(layer=2, pooling="last", view="document"))[: 8 * ANSWERS]
    items = with_targets(store, some)
    said = []
    documents = ["d"] * 8
    training = Training(store, fold_rows(items, documents, 0), documents, 8, 0)
    probe = fit_probe(training, said.append)
    assert probe.candidates == []
    assert "one document" in said[0]
    assert probe.head.folded().isfinite().all()


def test_reading_goes_on_and_is_shared_out(read, tmp_path):
    model, store = read
    again = FeatureStore(tmp_path, store.layers, store.prompts, part_prompts=16)
    first = again.read(model, 500, rank=1, world=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["part-000001.safetensors"]
    rest = again.read(model, 500)
    assert again.read(model, 500) == 0
    everything = [shape for item in store.prompts for shape in (item.shape, item.withheld().shape)]
    assert first + rest == sum(shape.total for shape in everything)
    for pooling in ("mean", "last", "mean+last"):
        for one, other in zip(again.states(1, pooling), store.states(1, pooling), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
