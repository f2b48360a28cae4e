"""The losses against plain NumPy loops, scikit-learn and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.preprocessing import StandardScaler

from reward_model.training.losses import (
    Standardizer,
    count_pairs,
    count_targets,
    pairwise_loss,
    preference_loss,
    regression_loss,
    split_regression_loss,
    weighted_mean,
)
from reward_model.training.objective import Objective

NAN = math.nan


def scores(rows: int, columns: int, seed: int, missing: float = 0.3) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 11, (rows, columns)).astype(np.float64)
    values[rng.random((rows, columns)) < missing] = NAN
    return torch.tensor(values)


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def reference_pairwise(predictions, targets, groups, min_gap=0.0):
    total, count, right = 0.0, 0, 0
    for i, j in itertools.permutations(range(len(groups)), 2):
        if groups[i] != groups[j]:
            continue
        for d in range(targets.shape[1]):
            gap = targets[i, d] - targets[j, d]
            if not gap > min_gap:  # also false for NaN
                continue
            margin = predictions[i, d] - predictions[j, d]
            total += gap * softplus(-margin)
            right += margin > 0
            count += 1
    return total / max(count, 1), count, right / max(count, 1)


def test_mse_is_half_of_scikit_learns():
    targets, predictions = scores(20, 4, 1), torch.randn(20, 4, dtype=torch.float64)
    loss, metrics = regression_loss(predictions, targets, kind="mse")
    there = ~targets.isnan()
    assert loss.item() == pytest.approx(mean_squared_error(targets[there], predictions[there]) / 2, rel=1e-12)
    assert metrics["regression"].item() == loss.item()
    assert count_targets(targets) == there.sum()


def test_huber_is_quadratic_then_linear():
    loss, _ = regression_loss(torch.tensor([[0.5], [-3.0]]), torch.zeros(2, 1), delta=1.0)
    assert loss.item() == pytest.approx((0.5 * 0.25 + (3.0 - 0.5)) / 2)


def test_missing_targets_leave_no_trace_in_the_gradient():
    predictions = torch.randn(6, 4, requires_grad=True)
    targets = scores(6, 4, 2).float()
    regression_loss(predictions, targets)[0].backward()
    assert torch.isfinite(predictions.grad).all()
    assert (predictions.grad[targets.isnan()] == 0).all()
    assert (predictions.grad[~targets.isnan()] != 0).any()


def test_confidence_weighs_the_targets():
    predictions, targets = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    confidence = torch.tensor([[1.0], [0.5]])
    loss, _ = regression_loss(predictions, targets, confidence_A_D=confidence, kind="mse")
    assert loss.item() == pytest.approx((0.5 + 0.5 * 2.0) / 1.5)


def huber(error: float, delta: float) -> float:
    size = abs(error)
    return 0.5 * size**2 if size <= delta else delta * (size - 0.5 * delta)


def reference_split(predictions, targets, confidence, groups, delta=0.7):
    """(level, residual): Huber errors of weighted prompt means and of what is left, by loops."""
    sums, count = [0.0, 0.0], 0.0
    for group in set(groups):
        for d in range(targets.shape[1]):
            rows = [i for i in range(len(groups)) if groups[i] == group and not math.isnan(targets[i, d])]
            weights = [confidence[i, d] for i in rows]
            if not rows:
                continue
            means = [np.average(side[rows, d], weights=weights) for side in (predictions, targets)]
            for i, weight in zip(rows, weights, strict=True):
                sums[0] += weight * huber(means[0] - means[1], delta)
                sums[1] += weight * huber(predictions[i, d] - means[0] - (targets[i, d] - means[1]), delta)
                count += weight
    return sums[0] / max(count, 1e-12), sums[1] / max(count, 1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6))
def test_level_and_residual_equal_the_loop(rows: int, columns: int, seed: int):
    targets = scores(rows, columns, seed)
    rng = np.random.default_rng(seed + 1)
    predictions = torch.tensor(rng.normal(size=(rows, columns)))
    confidence = torch.tensor(rng.uniform(0.2, 1, (rows, columns)))
    groups = rng.integers(0, 3, rows) * 7
    loss, parts = split_regression_loss(
        predictions,
        targets,
        torch.tensor(groups),
        confidence_A_D=confidence,
        delta=0.7,
        level_weight=2.0,
        residual_weight=3.0,
    )
    level, residual = reference_split(
        *(x.numpy() for x in (predictions, targets, confidence)), groups.tolist()
    )
    assert parts["level"].item() == pytest.approx(level, rel=1e-6, abs=1e-12)
    assert parts["residual"].item() == pytest.approx(residual, rel=1e-6, abs=1e-12)
    assert loss.item() == pytest.approx(2 * level + 3 * residual, rel=1e-6, abs=1e-12)


def test_squared_errors_of_level_and_residual_are_the_regression():
    targets, predictions, groups = scores(30, 4, 8), torch.randn(30, 4).double(), torch.arange(30) // 3
    confidence = torch.rand(30, 4).double() + 0.1
    common = {"confidence_A_D": confidence, "kind": "mse"}
    whole, _ = regression_loss(predictions, targets, **common)
    split, _ = split_regression_loss(predictions, targets, groups, **common)
    assert split.item() == pytest.approx(whole.item(), rel=1e-12)


def test_the_gradient_of_level_and_residual_is_that_of_finite_differences():
    """Two prompts, a missing score and a prompt with one answer."""
    targets = torch.tensor([[1.0, 2.0], [3.0, NAN], [0.5, 4.0]]).double()
    predictions = torch.tensor([[0.2, 1.0], [2.0, 7.0], [3.5, 3.6]]).double().requires_grad_()
    groups = torch.tensor([0, 0, 1])

    def loss(values: torch.Tensor) -> torch.Tensor:
        return split_regression_loss(values, targets, groups, level_weight=0.5, residual_weight=4.0)[0]

    assert torch.autograd.gradcheck(loss, predictions)
    (gradient,) = torch.autograd.grad(loss(predictions), predictions)
    assert gradient[1, 1] == 0
    # A lone answer is its prompt's mean: only the level's weight reaches it. Huber beyond 1: the gradient is its sign.
    assert gradient[2].tolist() == pytest.approx([0.5 * 1 / 5, 0.5 * -0.4 / 5])


def test_only_the_residual_sees_the_order_and_only_the_level_a_shift():
    targets, groups = torch.tensor([[2.0], [4.0]]), torch.zeros(2)
    swapped = split_regression_loss(targets.flip(0), targets, groups)[1]
    shifted = split_regression_loss(targets + 1, targets, groups)[1]
    assert swapped["level"] == 0 < swapped["residual"]
    assert shifted["residual"] == 0 < shifted["level"]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([0.0, 2.0]))
def test_pairwise_equals_the_loop(rows: int, columns: int, seed: int, min_gap: float):
    targets = scores(rows, columns, seed)
    rng = np.random.default_rng(seed + 1)
    predictions = torch.tensor(rng.normal(size=(rows, columns)))
    groups = torch.tensor(rng.integers(0, 3, rows))
    loss, metrics = pairwise_loss(predictions, targets, groups, min_gap=min_gap)
    expected, count, right = reference_pairwise(
        predictions.numpy(), targets.numpy(), groups.tolist(), min_gap
    )
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert metrics["pair_accuracy"].item() == pytest.approx(right, abs=1e-9)
    assert count_pairs(targets, groups, min_gap) == count


def test_preference_is_the_log_loss_of_a_bradley_terry_model():
    rewards = torch.tensor([3.0, 5.0, 4.5], dtype=torch.float64)
    winners, losers = torch.tensor([1, 0]), torch.tensor([0, 2])
    loss, metrics = preference_loss(rewards, winners, losers)
    chosen = torch.sigmoid(rewards[winners] - rewards[losers]).numpy()
    assert loss.item() == pytest.approx(log_loss([1, 1], chosen, labels=[0, 1]))
    assert metrics["preference_accuracy"] == 0.5


def test_standardizer_is_scikit_learns_with_missing_scores():
    targets = scores(50, 4, 3)
    found = Standardizer.fit(targets, torch.ones(4))
    expected = StandardScaler().fit(targets.numpy())
    np.testing.assert_allclose(found.mean_D, expected.mean_, rtol=1e-12)
    np.testing.assert_allclose(found.std_D, expected.scale_, rtol=1e-12)
    np.testing.assert_allclose(
        found.apply(targets), expected.transform(targets.numpy()), rtol=1e-9, atol=1e-12
    )


def test_a_constant_dimension_is_not_blown_up():
    found = Standardizer.fit(torch.full((5, 2), 7.0), torch.ones(2))
    assert found.std_D.tolist() == [1.0, 1.0]
    assert found.apply(torch.full((1, 2), 7.0)).tolist() == [[0.0, 0.0]]


def test_reward_ignores_a_dimension_of_weight_zero():
    rows = torch.tensor([[8.0, NAN], [NAN, 3.0]])
    reward = weighted_mean(rows, torch.tensor([2.0, 0.0]))
    assert reward[0] == 8.0
    assert reward[1].isnan()


def batch(rows: int, seed: int) -> dict:
    targets = scores(rows, 4, seed, missing=0.1).float()
    return {
        "targets_A_D": targets,
        "confidence_A_D": torch.ones_like(targets),
        "groups_A": torch.arange(rows) // 3,
        "winners_P": torch.tensor([0]),
        "losers_P": torch.tensor([1]),
    }


@pytest.mark.parametrize(
    "name", ["regression", "pairwise", "regression+pairwise", "sequence", "level+order", "preference"]
)
def test_parts_of_a_step_add_up_to_the_whole(name):
    """Two half batches under the step's counts give the loss of one batch: what accumulation relies on."""
    whole, predictions = batch(12, 5), torch.randn(12, 4)
    objective = Objective(name, Standardizer.fit(whole["targets_A_D"], torch.ones(4)))
    halves = [
        {key: value[rows] if len(value) == 12 else value for key, value in whole.items()}
        for rows in (slice(0, 6), slice(6, 12))
    ]
    whole = whole | {"winners_P": torch.tensor([0, 6]), "losers_P": torch.tensor([1, 7])}
    counts = sum(objective.count(half) for half in halves)
    torch.testing.assert_close(counts, objective.count(whole))
    for progress in (0.1, 0.9):
        expected, _ = objective.loss(predictions, whole, progress)
        parts = [
            objective.loss(predictions[rows], half, progress, counts)[0]
            for rows, half in zip((slice(0, 6), slice(6, 12)), halves, strict=True)
        ]
        torch.testing.assert_close(sum(parts), expected)


def test_sequence_changes_its_loss_at_the_switch():
    objective = Objective(
        "sequence", Standardizer.fit(scores(9, 4, 1), torch.ones(4)), switch=0.5, anchor=0.1
    )
    assert objective.shares(0.49) == {"regression": 1.0}
    assert objective.shares(0.5) == {"regression": 0.1, "pairwise": 1.0}


@pytest.mark.parametrize("name", ["level_weight", "residual_weight", "pairwise_weight"])
def test_level_and_order_have_a_weight_each_from_the_first_step(name):
    made, predictions = batch(12, 5), torch.randn(12, 4)
    standardizer = Standardizer.fit(made["targets_A_D"], torch.ones(4))
    plain = Objective("level+order", standardizer)
    loss, parts = plain.loss(predictions, made, 0.0)
    part = parts[name.removesuffix("_weight")]
    heavier = Objective("level+order", standardizer, **{name: 3.0})
    torch.testing.assert_close(heavier.loss(predictions, made, 0.0)[0], loss + 2 * part)
    assert plain.shares(0.0) == plain.shares(0.99)
    assert part > 0


def test_equal_rewards_that_differ_by_rounding_are_ties():
    targets = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    objective = Objective("pairwise", Standardizer.fit(targets, torch.tensor([1.0, 1.0, 1.0, 1.0])))
    made = batch(2, 1) | {"targets_A_D": targets, "groups_A": torch.zeros(2)}
    assert objective.count(made)[1] == 4  # one pair a dimension, none for the reward


def test_a_batch_without_targets_has_a_zero_gradient():
    predictions = torch.randn(3, 4, requires_grad=True)
    made = batch(3, 1)
    made["targets_A_D"] = torch.full((3, 4), NAN)
    made |= {"winners_P": torch.empty(0, dtype=torch.long), "losers_P": torch.empty(0, dtype=torch.long)}
    for name in ("regression+pairwise", "level+order", "preference"):
        objective = Objective(name, Standardizer.fit(scores(9, 4, 1), torch.ones(4)))
        loss, _ = objective.loss(predictions, made, 0.0)
        (gradient,) = torch.autograd.grad(loss, predictions)
        assert loss == 0
        assert (gradient == 0).all()
