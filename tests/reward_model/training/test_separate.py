"""Outputs that move together are brought apart as far as asked, and only as far as the order of answers allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reward_model.modeling.ridge import Rows, choose_penalties, fit_rows
from reward_model.training.probe import fold_numbers
from reward_model.training.separate import Separation, centred, separate, transport

PROMPTS, ANSWERS, FEATURES = 60, 5, 12


def rows_with(targets) -> Rows:
    prompts = torch.arange(PROMPTS).repeat_interleave(ANSWERS)
    answers = torch.arange(len(prompts))
    return Rows(
        first_R=answers,
        second_R=torch.full_like(answers, -1),
        targets_R_D=targets,
        weights_R_D=(~targets.isnan()).double(),
        prompt_R=prompts,
        fold_R=fold_numbers([f"d{number}" for number in range(PROMPTS)], 0)[prompts],
    )


@pytest.fixture(scope="module")
def one_easy_direction() -> tuple[torch.Tensor, Rows]:
    """Features (A, F), and targets that correlate little but of which mostly what they share can be predicted."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(PROMPTS * ANSWERS, FEATURES, generator=generator)
    shared, own = features[:, :1], features[:, 1:4]
    noise = torch.randn(len(features), 3, generator=generator)
    return features, rows_with((5 + shared + 0.35 * own + 2 * noise).double())


def correlation(values, rows) -> float:
    own = np.corrcoef(centred(values, rows.prompt_R).T.numpy())
    return float(np.abs(own[np.triu_indices(len(own), 1)]).mean())


def outputs(features, rows, strength):
    choice = choose_penalties(rows, features)
    separation, after = separate(rows, features, choice, strength)
    fitted = fit_rows(rows, features, choice.penalties)
    return separation, after, fitted(features), separation.fold(fitted)(features)


def test_the_whole_way_gives_the_targets_correlations_and_keeps_each_spread(one_easy_direction):
    features, rows = one_easy_direction
    separation, _, before, after = outputs(features, rows, 1.0)
    targets = correlation(rows.targets_R_D, rows)
    assert correlation(before, rows) > targets + 0.3
    assert abs(correlation(after, rows) - targets) < 0.12
    torch.testing.assert_close(after, separation(before))
    torch.testing.assert_close(after.mean(0), before.mean(0), atol=0.05, rtol=0)
    ratio = centred(after, rows.prompt_R).std(0) / centred(before, rows.prompt_R).std(0)
    assert ((ratio > 0.8) & (ratio < 1.25)).all()


def test_strength_goes_a_part_of_the_way(one_easy_direction):
    features, rows = one_easy_direction
    found = [correlation(outputs(features, rows, strength)[3], rows) for strength in (0, 0.25, 0.5, 1.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[1] + 0.02
    separation, unchanged, before, after = outputs(features, rows, 0)
    assert separation.strength == 0
    torch.testing.assert_close(before, after)
    assert unchanged == choose_penalties(rows, features)


def test_auto_goes_as_far_as_the_targets_and_no_further_than_the_order_allows(one_easy_direction):
    features, rows = one_easy_direction
    separation, _, before, after = outputs(features, rows, "auto")
    targets = correlation(rows.targets_R_D, rows)
    assert 0 < separation.strength <= 1
    assert correlation(after, rows) < correlation(before, rows) - 0.05

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(features), 3, generator=generator).double()
    apart = rows_with(5 + features[:, 1:4].double() + 0.5 * noise)  # outputs are as separate as their targets
    assert separate(apart, features, choose_penalties(apart, features))[0].strength == 0

    # All that can be predicted is shared: separate outputs would be noise, and the order says so.
    only_shared = rows_with(5 + 0.7 * features[:, :1].double() + 2 * noise)
    strength = separate(only_shared, features, choose_penalties(only_shared, features))[0].strength
    whole = separate(only_shared, features, choose_penalties(only_shared, features), 1.0)[0].strength
    assert strength < whole == 1.0
    assert targets < correlation(before, rows)


def test_what_outputs_explain_is_measured_after_the_map(one_easy_direction):
    features, rows = one_easy_direction
    choice = choose_penalties(rows, features)
    _, after = separate(rows, features, choice, 1.0)
    assert after.penalties == choice.penalties
    assert sum(after.explained) < sum(choice.explained)


def test_the_map_moves_outputs_least():
    """Of maps that give the wanted covariance (any rotation of one), the symmetric one changes outputs least."""
    generator = torch.Generator().manual_seed(2)
    mixing = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double()
    values = torch.randn(4000, 2, generator=generator).double() @ mixing
    targets = torch.randn(4000, 2, generator=generator).double()
    found = transport(values, targets)
    torch.testing.assert_close(found, found.T)
    reached = values @ found
    torch.testing.assert_close(
        torch.corrcoef(reached.T)[0, 1], torch.corrcoef(targets.T)[0, 1], atol=1e-6, rtol=0
    )
    spread = values.std(0)
    changed = float((reached - values).square().mean())
    for angle in (0.3, -0.3, 1.0):
        turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        want = torch.corrcoef(targets.T) * torch.outer(spread, spread)
        root = torch.linalg.cholesky(want)
        other = torch.linalg.solve(torch.linalg.cholesky(torch.cov(values.T)).T, turn @ root.T)
        torch.testing.assert_close(torch.cov((values @ other).T), want, atol=1e-6, rtol=0)
        assert float((values @ other - values).square().mean()) > changed


@pytest.mark.parametrize("case", ["one output", "constant target", "few answers", "missing everywhere"])
def test_what_cannot_be_matched_is_left_alone(one_easy_direction, case):
    features, rows = one_easy_direction
    targets = rows.targets_R_D.clone()
    if case == "one output":
        targets = targets[:, :1]
    elif case == "constant target":
        targets[:, 0] = 7
    elif case == "few answers":
        targets[30:] = torch.nan
    else:
        targets[:, 0] = torch.nan
        targets[::ANSWERS, 0] = 3
        targets[1::ANSWERS, 1] = torch.nan
    changed = rows_with(targets)
    separation, _ = separate(changed, features, choose_penalties(changed, features), 1.0)
    if case != "missing everywhere":
        assert separation.strength == 0
    assert separation.map_D_D.isfinite().all()


def test_nothing_done_changes_nothing():
    points = torch.randn(5, 3).double()
    torch.testing.assert_close(Separation.none(3)(points), points)
