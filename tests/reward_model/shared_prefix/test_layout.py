"""The layout against a plain, slow description of what it should be."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from judge_pipeline.common.errors import UserError
from reward_model.shared_prefix.layout import Layout, PromptShape, join_ids, pack
from reward_model.shared_prefix.plan import AttentionPlan

shapes = st.builds(
    PromptShape, st.integers(1, 40), st.lists(st.integers(1, 12), min_size=1, max_size=64).map(tuple)
)
layouts = st.lists(shapes, min_size=1, max_size=4).map(lambda prompts: Layout(tuple(prompts)))


def slow_description(layout: Layout) -> list[tuple[int, int | None, int]]:
    """(prompt, answer within the prompt or None, position) of every token, written out one by one."""
    tokens: list[tuple[int, int | None, int]] = []
    for p, prompt in enumerate(layout.prompts):
        tokens += [(p, None, i) for i in range(prompt.prefix_length)]
        for a, length in enumerate(prompt.answer_lengths):
            tokens += [(p, a, prompt.prefix_length + i) for i in range(length)]
    return tokens


@given(layouts)
@settings(max_examples=60, deadline=None)
def test_positions_scores_and_visibility(layout: Layout) -> None:
    tokens = slow_description(layout)
    assert layout.total == len(tokens)
    assert layout.position_ids()[0].tolist() == [position for _, _, position in tokens]
    assert layout.longest == 1 + max(position for _, _, position in tokens)

    last = {(p, a): i for i, (p, a, _) in enumerate(tokens) if a is not None}
    assert layout.score_index().tolist() == list(last.values())
    assert list(layout.answer_prompt) == [p for p, _ in last]

    visible: dict[int, set[int]] = {}
    for row in layout.rows:
        for offset in range(row.length):
            own = range(row.own[0], row.own[0] + offset + 1)
            visible[row.query[0] + offset] = set(range(*row.context)) | set(own)
    for q, (p, a, position) in enumerate(tokens[:200]):
        expected = {
            k for k, (kp, ka, kpos) in enumerate(tokens) if kp == p and ka in (None, a) and kpos <= position
        }
        assert visible[q] == expected


@given(layouts)
@settings(max_examples=60, deadline=None)
def test_completion_indices_predict_the_next_token_of_the_same_answer(layout: Layout) -> None:
    tokens = slow_description(layout)
    targets, logits, answers = (
        index.tolist()
        for index in (
            layout.completion_target_index(),
            layout.completion_logit_index(),
            layout.completion_answer(),
        )
    )
    assert targets == [i for i, (_, a, _) in enumerate(tokens) if a is not None]
    numbers = {key: i for i, key in enumerate(dict.fromkeys((p, a) for p, a, _ in tokens if a is not None))}
    for target, logit, answer in zip(targets, logits, answers, strict=True):
        p, a, position = tokens[target]
        assert answer == numbers[p, a]  # type: ignore[index]
        assert tokens[logit][0] == p
        assert tokens[logit][1] in (None, a)
        assert tokens[logit][2] == position - 1


@given(layouts)
@settings(max_examples=30, deadline=None)
def test_plan_covers_every_query_once(layout: Layout) -> None:
    plan = AttentionPlan.of_layout(layout)
    assert plan.q_length == plan.k_length == layout.total
    assert plan.positions.tolist() == layout.position_ids()[0].tolist()
    assert sum(plan.own.varlen.q_lengths) == layout.total
    cu_q, cu_k, *_ = plan.own.varlen.arguments(torch.device("cpu"))
    assert cu_q[-1] == cu_k[-1] == layout.total
    assert plan.context is not None
    assert sum(plan.context.varlen.q_lengths) == sum(sum(p.answer_lengths) for p in layout.prompts)
    assert plan.context.varlen.k_lengths == tuple(p.prefix_length for p in layout.prompts)


def test_split_gives_one_piece_a_prompt() -> None:
    layout = Layout((PromptShape(3, (2, 1)), PromptShape(1, (4,))))
    assert [piece.tolist() for piece in layout.split(torch.tensor([10, 11, 12]))] == [[10, 11], [12]]


def test_join_ids_keeps_every_token() -> None:
    ids, layout = join_ids([([1, 2], [[3], [4, 5]]), ([6], [[7]])])
    assert ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert layout == Layout((PromptShape(2, (1, 2)), PromptShape(1, (1,))))


@given(st.lists(shapes, min_size=1, max_size=12), st.integers(0, 3000), st.booleans())
@settings(max_examples=80, deadline=None)
def test_pack_keeps_every_prompt_whole_and_within_budget(
    prompts: list[PromptShape], extra: int, sort: bool
) -> None:
    budget = max(prompt.total for prompt in prompts) + extra
    groups = pack(prompts, budget, sort=sort)
    assert sorted(i for group in groups for i in group) == list(range(len(prompts)))
    for group in groups:
        assert sum(prompts[i].total for i in group) <= budget
    if not sort:
        assert [i for group in groups for i in group] == list(range(len(prompts)))
        for first, second in itertools.pairwise(groups):
            assert sum(prompts[i].total for i in first) + prompts[second[0]].total > budget


def test_pack_names_the_prompt_over_the_budget() -> None:
    with pytest.raises(UserError, match=r"prompt 1 needs 60 tokens.*budget of 50") as caught:
        pack([PromptShape(5, (5,)), PromptShape(40, (10, 10))], 50)
    assert "at least 60" in str(caught.value.hint)


@pytest.mark.parametrize(("prefix", "answers"), [(0, (1,)), (1, ()), (3, (1, 0))])
def test_impossible_shapes_are_refused(prefix: int, answers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        PromptShape(prefix, answers)
