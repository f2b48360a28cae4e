"""Prompts with answers → the same prompts with answers made worse, and what was done to each.

In: prompt records. Out: for every prompt that could be changed a record with the answers that were changed, their
changed versions (`source: "augmented"`, and `augmented`: from, dimension, strength, damage, keeps), and with
`documents` records of the same answers beside changed documents. The same seed makes the same file; what happens to an
answer depends on its own ids and the seed, but for denials, which are balanced over the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.records import DIMENSIONS, Prompt, Response
from reward_model.augment import completeness, faithfulness, helpfulness, logicality, neutral
from reward_model.augment.augment_config import STRENGTHS
from reward_model.augment.change import Change, Damage, Material, Source, length_change
from reward_model.augment.document import by_length, changed_document, other_document
from reward_model.augment.negation import Balance
from reward_model.augment.sentences import Answer

SOURCE = "augmented"
DAMAGES: dict[str, tuple[Damage, ...]] = {
    "helpfulness": (helpfulness.other_question, helpfulness.off_topic),
    "logicality": (
        logicality.disordered,
        logicality.contradicted,
        logicality.inconsistent,
        logicality.cause_reversed,
    ),
    "faithfulness": (faithfulness.traded, faithfulness.denied),
    "completeness": (completeness.padded,),
}
NEUTRAL: tuple[Damage, ...] = (neutral.pair_turned, neutral.neighbours_exchanged)


@dataclass(frozen=True)
class Plan:
    """What to make."""

    dimensions: tuple[str, ...] = DIMENSIONS
    strengths: tuple[int, ...] = STRENGTHS
    answers: int = 2
    """Answers of a prompt that are changed."""
    per_answer: int = 1
    """Damages of each dimension that an answer gets."""
    keep_length: bool = True
    length_tolerance: float = 0.25
    neutral: bool = True
    documents: bool = False
    seed: int = 0

    def damages(self, dimension: str) -> tuple[Damage, ...]:
        """What can be done to a dimension."""
        if dimension == "completeness" and not self.keep_length:
            return (completeness.dropped,)
        return DAMAGES[dimension]


def augment(prompts: Sequence[Prompt], plan: Plan) -> Iterator[Prompt]:
    """The records of all prompts, in their order; a prompt of which nothing can be made has none.

    Raises:
        UserError: a prompt was made by this function already.
    """
    by_document: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        _refuse_augmented(prompt)
        by_document[prompt.document_id].append(prompt)
    sources = {prompt.context: Source(prompt.context) for prompt in prompts}
    balance = Balance()
    documents = by_length(prompts)
    for prompt in prompts:
        others = [
            item.text
            for other in by_document[prompt.document_id]
            if other.question != prompt.question and other.context == prompt.context
            for item in other.responses
            if item.text.strip()
        ]
        maker = _Maker(prompt, Material(sources[prompt.context], prompt, others, balance), plan)
        yield from maker.records(documents)


def _refuse_augmented(prompt: Prompt) -> None:
    if hasattr(prompt, "augmented") or any(item.source == SOURCE for item in prompt.responses):
        raise UserError(
            f"prompt '{prompt.id}' holds answers or a document that were changed already",
            "name the prompts as they were before `reward-model augment`",
        )


class _Maker:
    """Makes the records of one prompt."""

    def __init__(self, prompt: Prompt, material: Material, plan: Plan) -> None:
        self.prompt, self.material, self.plan = prompt, material, plan
        self._ids = {item.id for item in prompt.responses}
        self._texts = {item.text for item in prompt.responses}
        self._made: list[Response] = []
        self._used: dict[str, Response] = {}

    def records(self, documents: Sequence[tuple[int, str, str]]) -> Iterator[Prompt]:
        """The prompt with its changed answers, then the answers beside other documents."""
        whole = [item for item in self.prompt.responses if item.text.strip()]
        order = self._rng("answers").sample(whole, len(whole))
        chosen = order[: self.plan.answers]
        for response in chosen:
            self._change(response)
        beside: list[Prompt] = []
        if self.plan.documents:
            changed = changed_document(self.material, chosen, self._rng("document"))
            if changed is not None:
                beside.append(changed.record(self.prompt, self._keep))
            other = other_document(self.prompt, chosen, documents, self._rng("other document"))
            if other is not None:
                for response in chosen:
                    self._used[response.id] = response
                beside.append(other)
        if self._made or beside:
            kept = [item for item in self.prompt.responses if item.id in self._used]
            yield self.prompt.model_copy(update={"responses": [*kept, *self._made], "preferences": []})
        yield from beside

    def _rng(self, purpose: str) -> Random:
        return Random(f"{self.plan.seed}:{self.prompt.id}:{purpose}")

    def _change(self, response: Response) -> None:
        answer = Answer(response.text)
        for dimension in self.plan.dimensions:
            for number in range(self.plan.per_answer):
                rng = self._rng(f"{response.id}:{dimension}:{number}")
                strengths = rng.sample(list(self.plan.strengths), len(self.plan.strengths))
                damages = list(self.plan.damages(dimension))
                if (
                    dimension != "helpfulness"
                ):  # there the first is the better one, where it is possible at all
                    rng.shuffle(damages)
                self._first(response, answer, damages, strengths, rng)
        if self.plan.neutral:
            self._first(response, answer, list(NEUTRAL), [1], self._rng(f"{response.id}:neutral"))

    def _first(
        self, response: Response, answer: Answer, damages: list[Damage], strengths: list[int], rng: Random
    ) -> None:
        """Keep the first change that the text allows, within the tolerance and unlike all other answers."""
        for strength in strengths:
            for damage in damages:
                change = damage(answer, self.material, strength, rng)
                if change is not None and self._fits(change, answer.text):
                    self._keep(response, change)
                    return

    def _fits(self, change: Change, original: str) -> bool:
        if change.text in self._texts or (change.twin and change.twin.text == change.text):
            return False
        if change.damage == "dropped":
            return True
        texts = [change.text] + ([change.twin.text] if change.twin else [])
        return all(length_change(text, original) <= self.plan.length_tolerance for text in texts)

    def _keep(self, response: Response, change: Change) -> Response:
        """Add a change, and its twin before it; an answer that is there already is not added twice."""
        parent = self._keep(response, change.twin) if change.twin else response
        self._used.setdefault(response.id, response)
        there = next((item for item in [response, *self._made] if item.text == change.text), None)
        if there is not None:
            return there
        number = 1
        while f"{response.id}~{number}" in self._ids:
            number += 1
        name = f"{response.id}~{number}"
        self._ids.add(name)
        self._texts.add(change.text)
        made = Response.model_validate(
            {"id": name, "text": change.text, "source": SOURCE, "augmented": described(parent.id, change)}
        )
        self._made.append(made)
        return made


def described(parent: str, change: Change) -> dict[str, Any]:
    """The `augmented` field of a changed answer."""
    return {
        "from": parent,
        "dimension": change.dimension,
        "strength": change.strength,
        "damage": change.damage,
        "keeps": list(change.keeps),
    }
