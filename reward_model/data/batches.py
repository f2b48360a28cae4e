"""Tokenised examples in batches of a token budget, the same for every process and every run of a seed.

In: `Example`s and the function that turns a prompt into token ids. Out: packed sequences (several prompts one
behind another, see `layout`) with their targets. Which prompts share a sequence is fixed; the order of sequences is
drawn anew each epoch from (seed, epoch), so a resumed run and a run on more processes see the same ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from judge_pipeline.common.window import over_window
from reward_model.data.examples import Contrast, Example, Floats
from reward_model.options import Overflow
from reward_model.shared_prefix.layout import EncodedPrompt, PromptShape, join_ids, pack

Encode = Callable[[str, str, Sequence[str]], EncodedPrompt]
"""(context, query, responses) → token ids."""


@dataclass(frozen=True)
class EncodedExample(EncodedPrompt):
    """An example as token ids."""

    prompt_id: str
    targets_N_D: Floats
    confidence_N_D: Floats
    preferences: tuple[tuple[int, int], ...] = ()
    contrasts: tuple[Contrast, ...] = ()

    def masked(self) -> EncodedExample:
        """The same tokens with nothing to learn from."""
        return replace(self, targets_N_D=np.full_like(self.targets_N_D, np.nan), preferences=(), contrasts=())


def encode_examples(items: Sequence[Example], encode: Encode) -> list[EncodedExample]:
    """Tokenise every example."""
    pairs = [(item, encode(item.context, item.query, item.responses)) for item in items]
    return [
        EncodedExample(
            *encoded.ids,
            item.prompt_id,
            item.targets_N_D,
            item.confidence_N_D,
            item.preferences,
            item.contrasts,
            bare=encoded.bare,
        )
        for item, encoded in pairs
    ]


def fit_window(
    items: Sequence[EncodedExample], window: int, overflow: Overflow
) -> tuple[list[EncodedExample], int]:
    """(examples that fit the model's window, how many were left out).

    Raises:
        UserError: `overflow="error"` and some do not fit.
    """
    over = over_window(
        [(item.prompt_id, item.shape.longest) for item in items],
        window,
        overflow,
        hint="choose a model with a longer window, scale its RoPE (--rope-factor), or leave these prompts out "
        "with --overflow skip",
        may_be_all=True,
    )
    return [item for index, item in enumerate(items) if index not in over], len(over)


class PromptDataset(Dataset[EncodedExample]):
    """EncodedExample prompts; index n + i is prompt i masked, the filler for processes without a batch of their own."""

    def __init__(self, items: Sequence[EncodedExample]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> EncodedExample:
        count = len(self.items)
        return self.items[index] if index < count else self.items[index - count].masked()


def token_batches(
    items: Sequence[EncodedPrompt], token_budget: int, together: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """Prompts packed into sequences of at most `token_budget` tokens, longest first.

    A prompt is never cut in two, nor are those of a group of `together` (every index in one group) parted: what is over
    the budget gets a sequence of its own.
    """
    groups = [list(group) for group in together] if together else [[index] for index in range(len(items))]
    shapes = [
        PromptShape(
            sum(items[index].shape.prefix_length for index in group),
            tuple(length for index in group for length in items[index].shape.answer_lengths),
        )
        for group in groups
    ]
    places = range(len(groups))
    alone = sorted(
        (place for place in places if shapes[place].total > token_budget),
        key=lambda place: -shapes[place].total,
    )
    rest = [place for place in places if shapes[place].total <= token_budget]
    packed = pack([shapes[place] for place in rest], token_budget, sort=True)
    return [groups[place] for place in alone] + [
        [index for place in bin_ for index in groups[rest[place]]] for bin_ in packed
    ]


def contrasted(items: Sequence[EncodedExample]) -> list[list[int]]:
    """Places of prompts in groups that contrasts join; most prompts are groups of one."""
    place = {item.prompt_id: number for number, item in enumerate(items)}
    leader = list(range(len(items)))

    def lead(number: int) -> int:
        while leader[number] != number:
            number = leader[number]
        return number

    for item in items:
        for contrast in item.contrasts:
            sides = [place[name] for name, _ in (contrast.better, contrast.worse) if name in place]
            first, *others = sorted(map(lead, sides)) if sides else [0]
            for other in others:
                leader[other] = first
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(items)):
        groups[lead(number)].append(number)
    return list(groups.values())


def over_budget(items: Sequence[EncodedPrompt], token_budget: int) -> list[int]:
    """Places of the prompts that are larger than a sequence should be."""
    return [index for index, item in enumerate(items) if item.shape.total > token_budget]


def orders_answers(item: EncodedExample) -> bool:
    """Whether the targets or choices of a prompt put any two of its answers in an order."""
    targets = item.targets_N_D
    if item.preferences:
        return True
    return bool((np.nanmax(targets, 0, initial=-np.inf) - np.nanmin(targets, 0, initial=np.inf) > 1e-4).any())


class BatchOrder(Sampler[list[int]]):
    """This process's batches of an epoch; all processes together see each batch once.

    Step s of the optimiser takes batches [s·G, (s+1)·G) of one shared order, G = processes × accumulation, so G
    batches make the same step whether two processes or two accumulated passes compute them.
    """

    def __init__(
        self, batches: Sequence[list[int]], prompts: int, *, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.batches = [list(batch) for batch in batches]
        self.seed, self.rank, self.world, self.epoch = seed, rank, world, 0
        # A process that has no batch left computes the shortest one masked: its gradient is zero, and the
        # others do not wait for it.
        self._filler = [prompts + self.batches[-1][-1]] if self.batches else []

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order `__iter__` gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.batches))
        mine = [self.batches[index] for index in order[self.rank :: self.world]]
        yield from mine + [self._filler] * (len(self) - len(mine))


class StepOrder(BatchOrder):
    """This process's batches of an epoch whose optimiser steps have a given number of prompts, however they are packed.

    The prompts of a step are drawn anew each epoch; steps differ by one prompt at most. Those of a step are dealt to
    `passes` sequences on each process, as evenly as their tokens allow, so every step takes as many passes, and which
    prompts it has depends neither on them nor on the number of processes. Prompts that contrasts join stay together.
    """

    def __init__(
        self,
        items: Sequence[EncodedExample],
        prompts_per_step: int,
        passes: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._groups = contrasted(items)
        self._tokens = group_tokens(items, self._groups)
        shortest = min(range(len(items)), key=lambda index: items[index].shape.total)
        super().__init__([[shortest]], len(items), seed=seed, rank=rank, world=world)
        self.passes, self.steps = passes, step_count(len(self._groups), len(items), prompts_per_step)

    def __len__(self) -> int:
        return self.steps * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        for step in steps_of_epoch(len(self._tokens), self.steps, self.seed, self.epoch):
            sequences = deal(step, self._tokens, self.passes * self.world)
            for sequence in sequences[self.rank :: self.world]:
                yield [index for group in sequence for index in self._groups[group]] or self._filler


def group_tokens(items: Sequence[EncodedPrompt], groups: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of each group of prompts."""
    return [sum(items[index].shape.total for index in group) for group in groups]


def step_count(groups: int, prompts: int, prompts_per_step: int) -> int:
    """Optimiser steps of an epoch, each with a group at least."""
    return max(1, min(groups, round(prompts / prompts_per_step)))


def steps_of_epoch(groups: int, steps: int, seed: int, epoch: int) -> list[list[int]]:
    """The groups of each optimiser step, drawn from (seed, epoch)."""
    order = np.random.default_rng([seed, epoch]).permutation(groups)
    return [step.tolist() for step in np.array_split(order, steps)]


def deal(groups: Sequence[int], tokens: Sequence[int], sequences: int) -> list[list[int]]:
    """Groups in so many sequences, the longest first and each to the sequence that is shortest so far."""
    dealt: list[list[int]] = [[] for _ in range(sequences)]
    length = [0] * sequences
    for index in sorted(groups, key=lambda index: -tokens[index]):
        place = min(range(sequences), key=lambda place: length[place])
        dealt[place].append(index)
        length[place] += tokens[index]
    return dealt


def passes_per_step(
    items: Sequence[EncodedExample],
    prompts_per_step: int,
    token_budget: int,
    *,
    seed: int,
    epochs: int,
    world: int,
) -> int:
    """The fewest passes a process can take in every step of a run, with no sequence of several groups over the budget."""
    groups = contrasted(items)
    tokens = group_tokens(items, groups)
    steps = step_count(len(groups), len(items), prompts_per_step)
    found = 1
    for epoch in range(epochs):
        for step in steps_of_epoch(len(groups), steps, seed, epoch):
            while any(
                len(one) > 1 and sum(tokens[index] for index in one) > token_budget
                for one in deal(step, tokens, found * world)
            ):
                found += 1
    return found


class EpochDataLoader(DataLoader[EncodedExample]):
    """A DataLoader that tells its `BatchOrder` the epoch, as transformers' Trainer expects of it."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of an epoch."""
        order = self.batch_sampler
        assert isinstance(order, BatchOrder)
        order.set_epoch(epoch)


def collate(items: Sequence[EncodedExample]) -> dict[str, Any]:
    """One packed sequence and all that its loss needs; A answers, T tokens, D dimensions, P choices.

    Keys: `input_ids` (1, T), `layout`, `targets_A_D`, `confidence_A_D`, `groups_A` (the prompt of each answer),
    `winners_P`, `losers_P`, `prompt_ids`; of contrasts whose answers are both here `better_C`, `worse_C`, `gaps_C_D`.
    """
    input_ids, layout = join_ids([item.ids for item in items])
    winners, losers, first = [], [], 0
    start: dict[str, int] = {}
    for item in items:
        start[item.prompt_id] = first
        winners += [first + winner for winner, _ in item.preferences]
        losers += [first + loser for _, loser in item.preferences]
        first += len(item.answers)
    known = [
        contrast
        for item in items
        for contrast in item.contrasts
        if contrast.better[0] in start and contrast.worse[0] in start
    ]
    better, worse = (
        torch.tensor([start[name] + place for name, place in sides], dtype=torch.long)
        for sides in ([one.better for one in known], [one.worse for one in known])
    )
    dimensions = items[0].targets_N_D.shape[1]
    return {
        "input_ids": input_ids,
        "layout": layout,
        "targets_A_D": torch.from_numpy(np.concatenate([item.targets_N_D for item in items])),
        "confidence_A_D": torch.from_numpy(np.concatenate([item.confidence_N_D for item in items])),
        "groups_A": torch.tensor(layout.answer_prompt),
        "winners_P": torch.tensor(winners, dtype=torch.long),
        "losers_P": torch.tensor(losers, dtype=torch.long),
        "prompt_ids": [item.prompt_id for item in items],
        "better_C": better,
        "worse_C": worse,
        "gaps_C_D": torch.from_numpy(
            np.array([one.gaps_D for one in known], np.float32).reshape(-1, dimensions)
        ),
    }
