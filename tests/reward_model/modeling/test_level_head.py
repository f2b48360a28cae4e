"""A head without a bias equals one with levels of its own, and starts with outputs that do not move together."""

from __future__ import annotations

import pytest
import torch

from reward_model.modeling.level_head import choose_teaching, separate_start, teach_head
from reward_model.modeling.ridge import Rows


def constant_features(answers=120, size=64, seed=0):
    """Nine tenths of a feature are the same for all answers, as a last token's are."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(size, generator=generator) + torch.randn(answers, size, generator=generator)


def outputs_of(features, seed=1):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(features.shape[1], 4, generator=generator) / 8
    points = (features - features.mean(0)) @ weight + torch.tensor([8.0, 9.0, 7.0, 3.0])
    answers = torch.arange(len(points))
    return Rows(
        answers,
        torch.full_like(answers, -1),
        points.double(),
        torch.ones(len(points), 4).double(),
        answers // 4,
        answers // 4 % 5,
    )


def test_the_folded_head_equals_the_unfolded_one():
    features = constant_features()
    outputs = outputs_of(features)
    head = teach_head(features, outputs, (1.0, 1.0, 0.1, 3.0))
    for other in (features, constant_features(30, seed=0) * 1.7, torch.randn(10, 64)):
        folded = other.double() @ head.folded().T
        torch.testing.assert_close(folded, head(other), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head(features).mean(0), outputs.targets_R_D.mean(0), atol=1e-5, rtol=0)


def test_a_taught_head_gives_what_its_readout_gives():
    features = constant_features(400)
    outputs = outputs_of(features)
    choice = choose_teaching(features, outputs)
    assert min(choice.explained) > 0.7  # what varies along the mean itself is shared by all outputs
    taught = features.double() @ teach_head(features, outputs, choice.penalties).folded().T
    assert (taught - outputs.targets_R_D).abs().mean() < 0.4


@pytest.mark.parametrize("answers", [8, 30, 100])
def test_a_start_whose_outputs_move_together_fails(answers):
    features = constant_features(answers)
    start = separate_start(features, torch.tensor([8.0, 8.5, 7.0, 6.0]))
    new = constant_features(300, seed=0)[answers:]
    points = new.double() @ start.folded().T
    correlation = torch.corrcoef(points.T)
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 0.9
    torch.testing.assert_close(
        (features.double() @ start.folded().T).mean(0),
        torch.tensor([8.0, 8.5, 7.0, 6.0]).double(),
        atol=1e-5,
        rtol=0,
    )
    assert torch.linalg.matrix_rank(start.folded()) == 4


def test_one_answer_alone_gives_a_start():
    start = separate_start(constant_features(1), torch.tensor([5.0, 5.0]))
    assert start.folded().isfinite().all()
