"""The head's steps: the same as training a centred head apart, from a start that training does not lose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rm_helpers import ridge
from torch import nn

from reward_model.modeling.head import score_weight
from reward_model.modeling.level_head import choose_teaching, separate_start, teach_head
from reward_model.modeling.ridge import Rows
from reward_model.training import trainable
from reward_model.training.head_steps import CentredSplit, HeadSteps
from reward_model.training.losses import Standardizer
from reward_model.training.metrics import correlations
from reward_model.training.objective import Objective

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, OUTPUTS, ANSWERS = 24, 4, 120


def constant_features(seed: int = 0) -> torch.Tensor:
    """(ANSWERS, SIZE), nine tenths of each the same for all answers."""
    generator = torch.Generator().manual_seed(seed)
    mean = 3 * torch.randn(SIZE, generator=generator)
    return mean + torch.randn(ANSWERS, SIZE, generator=generator)


class Inner(nn.Module):
    """A backbone of one layer and a head, as `unwrap` finds them."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.backbone = nn.Linear(size, size, bias=False)
        self.score = nn.Linear(size, OUTPUTS, bias=False)
        nn.init.eye_(self.backbone.weight)

    def forward(self, features_N_H: torch.Tensor) -> torch.Tensor:
        return self.score(self.backbone(features_N_H))


@pytest.fixture(autouse=True)
def no_wrapping(monkeypatch):
    monkeypatch.setattr("reward_model.modeling.head.unwrap", lambda model: model)


def batch_of(targets_A_D: torch.Tensor) -> dict:
    nothing = torch.empty(0, dtype=torch.long)
    return {
        "targets_A_D": targets_A_D,
        "confidence_A_D": torch.ones_like(targets_A_D),
        "groups_A": torch.arange(len(targets_A_D)) // 4,
        "winners_P": nothing,
        "losers_P": nothing,
    }


def targets_of(features: torch.Tensor, seed: int = 5) -> torch.Tensor:
    """Points that four directions across the mean tell, each its own."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linalg.qr(torch.randn(SIZE, OUTPUTS, generator=generator))[0]
    return 6 + 1.5 * (features - features.mean(0)) @ rows


def test_the_folded_head_equals_the_unfolded_one():
    features = constant_features().double()
    split = CentredSplit.of(features)
    split = CentredSplit(split.direction_H.double(), split.mirror_H.double(), split.scale_H.double())
    weight = torch.randn(OUTPUTS, SIZE).double()
    torch.testing.assert_close(
        split.coordinates(features) @ weight.T, features @ split.fold(weight).T, atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(split.unfold(split.fold(weight)), weight, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("flip", [1, -1])
def test_coordinates_are_a_level_of_one_and_the_rest_in_units_of_its_size(flip):
    features = flip * constant_features().double()
    x = CentredSplit.of(features).coordinates(features)
    level = int(x.mean(0).abs().argmax())
    rest = np.delete(x.numpy(), level, axis=1)
    assert x[:, level].mean() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(rest.mean(0), 0, atol=1e-5)
    assert np.abs(rest).sum(1).mean() == pytest.approx(1, abs=1e-5)


def test_features_that_do_not_differ_are_not_blown_up():
    split = CentredSplit.of(torch.ones(3, SIZE))
    assert torch.isfinite(split.scale_H).all()
    assert split.scale_H.abs().max() * math.sqrt(SIZE) <= 1e3 * 1.001


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_adam_on_a_centred_head(decay):
    """Reference: fp64, the centred weights as a parameter of their own, torch's AdamW, autograd."""
    features = constant_features()
    targets = targets_of(features)
    split = CentredSplit.of(features)
    model = Inner()
    model.backbone.requires_grad_(False)
    start = model.score.weight.detach().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=decay)
    HeadSteps(model, optimizer, split, 0.03)
    exact = CentredSplit(split.direction_H.double(), split.mirror_H.double(), split.scale_H.double())
    centred = nn.Parameter(exact.unfold(start))
    reference = torch.optim.AdamW([centred], lr=0.03, weight_decay=decay)
    for step in range(20):
        rows = torch.arange(ANSWERS)[step % 5 :: 5]
        (model(features[rows]) - targets[rows]).abs().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        x = exact.coordinates(features[rows].double())
        (x @ centred.T - targets[rows].double()).abs().mean().backward()
        reference.step()
        reference.zero_grad()
    torch.testing.assert_close(
        model.score.weight.double(), exact.fold(centred.detach()), atol=2e-5, rtol=1e-4
    )
    assert not torch.allclose(model.score.weight.double(), start, atol=1e-2)


def test_the_rate_is_the_heads_own_and_the_split_comes_back_with_the_optimisers_state():
    features = constant_features()
    model, other = Inner(), Inner()
    split = CentredSplit.of(features)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.5)
    steps = HeadSteps(model, optimizer, split, 0.3)
    rates = [(group["lr"], len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    assert rates == [(1e-4, 1, 0.5), (0.3, 1, 0.5)]
    assert optimizer.param_groups[1]["params"][0] is score_weight(model)
    resumed = torch.optim.AdamW(other.parameters(), lr=1e-4, weight_decay=0.5)
    found = HeadSteps(other, resumed, CentredSplit.none(SIZE), 9.0)
    resumed.load_state_dict(optimizer.state_dict())
    for name in ("direction_H", "mirror_H", "scale_H"):
        assert torch.equal(getattr(found.split, name), getattr(steps.split, name))
    assert resumed.param_groups[1]["lr"] == 0.3


def test_the_backbone_gets_no_gradient_that_all_outputs_share():
    features = constant_features()
    split = CentredSplit.of(features)
    gradients = {}
    for apart in (False, True):
        torch.manual_seed(0)
        model = Inner()
        if apart:
            HeadSteps(model, torch.optim.AdamW(model.parameters()), split, 0.1)
        hidden = model.backbone(features).detach().requires_grad_()
        model.score(hidden).sum().backward()
        gradients[apart] = hidden.grad
    along = {apart: (gradient @ split.direction_H).abs().max() for apart, gradient in gradients.items()}
    assert along[True] < 1e-6 < along[False]
    across = gradients[False] - (gradients[False] @ split.direction_H)[:, None] * split.direction_H
    torch.testing.assert_close(gradients[True], across, atol=1e-6, rtol=1e-5)


def train(
    model: Inner, features: torch.Tensor, targets: torch.Tensor, steps: int, rate: float, share: float | None
):
    """Losses of some steps on all answers; `share`: spreads a step of the head, None: one rate for all."""
    objective = Objective("level+order", Standardizer.fit(targets, torch.ones(OUTPUTS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    if share:
        spread = float(objective.standardizer.std_D.mean())
        HeadSteps(model, optimizer, CentredSplit.of(features), share * spread)
    losses = []
    for _ in range(steps):
        loss, _ = objective.loss(model(features), batch_of(targets), 0.0)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def correlation(points: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    rows = [
        {"predictions": points[i : i + 4].detach(), "targets": targets[i : i + 4]}
        for i in range(0, len(points), 4)
    ]
    return correlations(rows)


def test_outputs_of_independent_targets_stay_apart_from_the_start():
    """The head that starts at multiples of one vector does not pass: ridge on the mean, as it was."""
    features = constant_features()
    targets = targets_of(features)
    starts = {
        "one vector": ridge(features[:8], targets.mean(0).expand(8, -1), 1e-3),
        "separate": separate_start(features[:64], targets.mean(0)).folded(),
    }
    found = {}
    for name, start in starts.items():
        model = Inner()
        model.score.weight.data.copy_(start)
        train(model, features, targets, 6, 1e-3, share=trainable.STEP if name == "separate" else None)
        found[name] = correlation(model(features), targets)
    assert abs(found["separate"]["target_correlation"]) < 0.15
    assert abs(found["separate"]["output_correlation"] - found["separate"]["target_correlation"]) < 0.2
    assert found["one vector"]["output_correlation"] > 0.9


def test_a_probe_start_is_not_lost_in_the_first_steps():
    """Features of few wide directions and labels with noise: the probe as it was fits the noise along narrow ones, and
    what the backbone changes in its first steps, all weights at one rate, multiplies there."""
    generator, size = torch.Generator().manual_seed(3), 160
    width = 10 / (1 + torch.arange(size))
    features = 30 * torch.randn(size, generator=generator) / size**0.5
    features = features + width * torch.randn(ANSWERS, size, generator=generator)
    noise = torch.randn(ANSWERS, OUTPUTS, generator=generator)
    targets = 6 + (features - features.mean(0))[:, :OUTPUTS] / width[:OUTPUTS] + noise
    answers = torch.arange(ANSWERS)
    everywhere, alone = torch.ones(ANSWERS, OUTPUTS).double(), torch.full_like(answers, -1)
    rows = Rows(answers, alone, targets.double(), everywhere, answers // 4, answers // 4 % 5)
    starts = {
        "shared": ridge(features.double(), targets.double(), 1e-6),
        "own": teach_head(features, rows, choose_teaching(features, rows).penalties).folded(),
    }
    losses = {}
    for name, start in starts.items():
        model = Inner(size)
        model.score.weight.data.copy_(start)
        losses[name] = train(
            model, features, targets, 7, 1e-4, trainable.PROBE_STEP if name == "own" else None
        )
    assert max(losses["shared"]) > 2.5 * losses["shared"][0]
    assert max(losses["own"]) < 1.1 * losses["own"][0]
