"""The closed form gives scikit-learn's weights, whichever of answers and features are more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from reward_model.modeling import ridge as ridge_module
from reward_model.modeling.ridge import fit_probe, ridge


@pytest.mark.parametrize(("answers", "width"), [(12, 40), (200, 7), (9, 9)])
@pytest.mark.parametrize("alpha", [1e-3, 30.0])
def test_weights_are_those_of_scikit_learn(answers, width, alpha):
    rng = np.random.default_rng(answers)
    features, targets = rng.normal(2, 3, (answers, width)), rng.normal(5, 2, (answers, 4))
    expected = Ridge(alpha=alpha, fit_intercept=False).fit(features, targets).coef_
    found = ridge(torch.from_numpy(features), torch.from_numpy(targets), alpha)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-8)
    length = (features**2).sum(1).mean()
    again = ridge(torch.from_numpy(features), torch.from_numpy(targets), alpha / length, relative=True)
    torch.testing.assert_close(again, found, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("answers", "width"), [(3000, 5), (5, 3000)])
def test_the_system_is_as_large_as_the_smaller_side(monkeypatch, answers, width):
    sizes = []
    solve = torch.linalg.solve
    monkeypatch.setattr(
        ridge_module.torch.linalg, "solve", lambda gram, right: sizes.append(gram.shape) or solve(gram, right)
    )
    ridge(torch.ones(answers, width), torch.ones(answers, 2), 1.0)
    assert sizes == [(5, 5)]


@pytest.mark.parametrize(("answers", "width"), [(30, 50), (80, 6)])
def test_a_probe_standardises_and_learns_each_target_from_its_own_answers(answers, width):
    rng = np.random.default_rng(1)
    features, targets = rng.normal(1, 4, (answers, width)), rng.normal(6, 1, (answers, 3))
    features[:, 2] = 7.0  # a constant feature
    targets[::3, 1] = np.nan
    probe = fit_probe(torch.from_numpy(features), torch.from_numpy(targets), 10.0)
    new = rng.normal(1, 4, (5, width))
    new[:, 2] = 7.0
    for column, target in enumerate(targets.T):
        known = np.isfinite(target)
        expected = make_pipeline(StandardScaler(), Ridge(alpha=10.0)).fit(features[known], target[known])
        found = probe(torch.from_numpy(new))[:, column].numpy()
        np.testing.assert_allclose(found, expected.predict(new), rtol=1e-6)


def test_a_target_without_values_is_an_error():
    with pytest.raises(ValueError, match="no value"):
        fit_probe(torch.ones(3, 2), torch.full((3, 1), torch.nan), 1.0)
