"""Ridge by folds: the same as scikit-learn's on either side, blind to the fold it predicts, with a penalty per target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from reward_model.modeling.ridge import (
    PENALTIES,
    Rows,
    Scaler,
    choose_penalties,
    explained_within,
    fit_answers,
    fit_rows,
    fold_predictions,
)


def make_rows(targets, prompts=None, folds=None, weights=None) -> Rows:
    targets = torch.as_tensor(targets, dtype=torch.float64)
    answers = torch.arange(len(targets))
    prompts = answers // 4 if prompts is None else torch.as_tensor(prompts)
    known = (~targets.isnan()).double() if weights is None else torch.as_tensor(weights, dtype=torch.float64)
    return Rows(
        answers,
        torch.full_like(answers, -1),
        targets,
        torch.where(targets.isnan(), 0.0, known),
        prompts,
        prompts % 5 if folds is None else torch.as_tensor(folds),
    )


def draw(answers, size, outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(answers, size, generator=generator) * 3 + 7
    weights = torch.randn(size, outputs, generator=generator)
    noise = torch.randn(answers, outputs, generator=generator)
    return features, (features @ weights / size**0.5 + noise).double()


@pytest.mark.parametrize("size", [12, 150])
@pytest.mark.parametrize("missing", [False, True])
def test_predictions_out_of_fold_are_those_of_scikit_learn(size, missing):
    features, targets = draw(60, size)
    weights = torch.rand(60, 3, dtype=torch.float64) + 0.1
    if missing:
        targets[::7, 1] = torch.nan
    rows = make_rows(targets, weights=weights)
    found = fold_predictions(rows, features, (0.1, 10.0))
    scaled = Scaler.fit(features)(features).double().numpy()
    unit = (scaled**2).sum(1).mean()
    for fold in range(5):
        held = (rows.fold_R == fold).numpy()
        for place, penalty in enumerate((0.1, 10.0)):
            for column in range(3):
                there = ~held & ~targets[:, column].isnan().numpy()
                model = Ridge(penalty * unit)
                model.fit(scaled[there], targets[there, column], rows.weights_R_D[there, column])
                np.testing.assert_allclose(found[place, held, column], model.predict(scaled[held]), atol=1e-4)


def test_a_fold_is_predicted_without_its_own_targets():
    features, targets = draw(60, 150)
    rows = make_rows(targets)
    changed = torch.where((rows.fold_R == 2)[:, None], -targets * 9, targets)
    first = fold_predictions(rows, features)
    second = fold_predictions(replace(rows, targets_R_D=changed), features)
    held = rows.fold_R == 2
    torch.testing.assert_close(first[:, held], second[:, held])
    assert (first[:, ~held] - second[:, ~held]).abs().max() > 1


@pytest.mark.parametrize("size", [12, 150])
def test_the_fit_folds_centre_and_scale_back(size):
    features, targets = draw(60, size)
    probe = fit_rows(make_rows(targets), features, (1.0, 1.0, 30.0))
    scaled = Scaler.fit(features)(features).double().numpy()
    for column, penalty in enumerate((1.0, 1.0, 30.0)):
        model = Ridge(penalty * (scaled**2).sum(1).mean()).fit(scaled, targets[:, column])
        np.testing.assert_allclose(probe(features)[:, column], model.predict(scaled), atol=1e-4)


def test_each_target_gets_its_own_penalty_and_noise_the_largest():
    features, _ = draw(200, 40)
    generator = torch.Generator().manual_seed(3)
    easy = Scaler.fit(features)(features)[:, :5].sum(1).double()
    noise = torch.randn(200, generator=generator).double()
    choice = choose_penalties(make_rows(torch.stack([easy, noise, torch.full_like(noise, 4.0)], 1)), features)
    assert choice.penalties[0] == PENALTIES[0]
    assert choice.penalties[1] > 10 * choice.penalties[0]
    assert choice.penalties[2] == PENALTIES[-1]
    assert choice.explained[0] > 0.95
    assert choice.explained[1] < 0.1
    assert np.isnan(choice.explained[2])
    assert choice.score == pytest.approx(sum(choice.explained[:2]) / 2)


def test_only_the_order_within_prompts_counts():
    """Predictions that know how prompts differ, and nothing of their answers, explain nothing."""
    targets = torch.arange(40, dtype=torch.float64)[:, None]
    rows = make_rows(targets)
    of_prompt = (torch.arange(40) // 4 * 4 + 1.5).double()[:, None]
    assert explained_within(of_prompt, rows).item() == pytest.approx(0.0)
    assert explained_within(targets + 100, rows).item() == pytest.approx(1.0)
    alone = make_rows(targets, prompts=range(40))
    assert explained_within(targets.clone(), alone).item() == pytest.approx(1.0)


def test_differences_need_no_intercept_and_teach_the_same_direction():
    features, _ = draw(80, 20)
    worth = Scaler.fit(features)(features)[:, 0]
    first, second = torch.arange(0, 80, 2), torch.arange(1, 80, 2)
    swap = worth[first] < worth[second]
    better, worse = torch.where(swap, second, first), torch.where(swap, first, second)
    prompts = torch.arange(40)
    rows = Rows(better, worse, torch.ones(40, 1).double(), torch.ones(40, 1).double(), prompts, prompts % 5)
    choice = choose_penalties(rows, features)
    probe = fit_rows(rows, features, choice.penalties)
    points = probe(features)[:, 0]
    assert (points[better] > points[worse]).float().mean() > 0.9
    assert points.mean().item() == pytest.approx(0.0, abs=1e-6)


def test_answers_made_worse_count_in_the_choice_of_features():
    """Of two features that explain the points alike, the one that tells which answer was made worse has more score."""
    features, targets = draw(120, 4, outputs=1)
    answers = make_rows(targets)
    blind = torch.cat([features, features[:40]])  # what was changed is not seen
    shift = torch.zeros(40, 4)
    shift[:, 0] = -2 * torch.sign(fit_rows(answers, features, [0.1]).weight_D_H[0, 0].float())
    seen = blind.clone()
    seen[120:] += shift
    first, second = torch.arange(40), torch.arange(120, 160)
    values = {
        "first_R": torch.cat([answers.first_R, first]),
        "second_R": torch.cat([answers.second_R, second]),
        "targets_R_D": torch.cat([targets, torch.ones(40, 1).double()]),
        "weights_R_D": torch.cat([answers.weights_R_D, torch.full((40, 1), 0.01).double()]),
        "prompt_R": torch.cat([answers.prompt_R, answers.prompt_R[:40]]),
        "fold_R": torch.cat([answers.fold_R, answers.fold_R[:40]]),
    }
    rows = replace(answers, **values)
    with_it, without = choose_penalties(rows, seen), choose_penalties(rows, blind)
    assert with_it.ordered == 1.0
    assert without.ordered == 0.0  # no difference is not the right order
    assert with_it.score > without.score + 0.9
    assert choose_penalties(answers, features).ordered is None


def test_emphasis_spares_a_feature_from_the_penalty():
    features, _ = draw(200, 60, outputs=1)
    targets = features[:, -1:].double()
    rows = make_rows(targets)
    heavy = torch.ones(60)
    heavy[-1] = 8.0
    plain, spared = (fit_rows(rows, features, [3.0], emphasis) for emphasis in (None, heavy))
    assert spared.weight_D_H[0, -1] > 2 * plain.weight_D_H[0, -1]
    explained = [choose_penalties(rows, features, [3.0], emphasis).explained[0] for emphasis in (None, heavy)]
    assert explained[1] > explained[0] + 0.1


@pytest.mark.parametrize(("answers", "width"), [(30, 50), (80, 6)])
def test_a_probe_standardises_and_learns_each_target_from_its_own_answers(answers, width):
    rng = np.random.default_rng(1)
    features, targets = rng.normal(1, 4, (answers, width)), rng.normal(6, 1, (answers, 3))
    features[:, 2] = 7.0  # a constant feature
    targets[::3, 1] = np.nan
    probe = fit_answers(torch.from_numpy(features), torch.from_numpy(targets), 10.0)
    new = rng.normal(1, 4, (5, width))
    new[:, 2] = 7.0
    for column, target in enumerate(targets.T):
        known = np.isfinite(target)
        expected = make_pipeline(StandardScaler(), Ridge(alpha=10.0)).fit(features[known], target[known])
        found = probe(torch.from_numpy(new))[:, column].numpy()
        np.testing.assert_allclose(found, expected.predict(new), rtol=1e-6)


def test_a_target_without_values_is_an_error():
    with pytest.raises(ValueError, match="no value"):
        fit_answers(torch.ones(3, 2), torch.full((3, 1), torch.nan), 1.0)


@pytest.mark.parametrize(("answers", "width"), [(300, 5), (5, 300)])
def test_the_system_is_as_large_as_the_smaller_side(monkeypatch, answers, width):
    sizes = []
    factor = torch.linalg.cholesky
    monkeypatch.setattr(torch.linalg, "cholesky", lambda system: sizes.append(len(system)) or factor(system))
    features, targets = draw(answers, width, 2)
    fit_answers(features, targets, 1.0)
    rows = make_rows(targets, folds=[number % 2 for number in range(answers)])
    fold_predictions(rows, features, (1.0,))
    assert max(sizes) <= 5
