"""Answers made worse on purpose, one dimension at a time and in three strengths, at nearly the same length.

In: stories with questions and answers that people wrote. Out: prompts over an extract of each story, and labels that are
known because the defects were put in: 10 for a dimension left alone, 7, 4 and 1 for strengths 1, 2 and 3.

An answer is a list of units: sentences of the person's own, and *quotes*, document sentences that say the same as the
sentence of the answer they stand for. Quotes are what makes completeness fair: a key quote is exchanged for an
irrelevant sentence of the same document, so the share of copied text, which a word-overlap baseline would find at once,
stays the same. The four defects:

- completeness: quotes on the question are exchanged for document sentences that have nothing to do with it;
- faithfulness: in the person's own sentences, names are exchanged for others of the document, numbers and negations
  changed;
- logicality: units are exchanged, then all out of order, then the end also contradicts the beginning;
- helpfulness: own sentences come from the answer to another question about the document, at last the quotes too.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from judge_pipeline.common.records import DIMENSIONS, Label, Prompt, Response
from judge_pipeline.documents.words import sentences, words

POINTS = (10.0, 7.0, 4.0, 1.0)
"""Label of the degraded dimension by strength, 0 to 3."""
STRENGTHS = (1, 2, 3)
QUOTES = 3
_NAME = re.compile(r"(?<![.!?“\"'’]\s)(?<!^)\b[A-Z][a-z]{2,}(?:\s[A-Z][a-z]{2,})*\b")
_NUMBER = re.compile(
    r"\b\d[\d,]*\b|\b(?:two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|hundred)\b"
)
_AUXILIARY = re.compile(
    r"\b(is|are|was|were|has|have|had|can|could|will|would|should|does|did|do)\b(?!\s+not\b)(?!n?['’]t)"
)
_NOT = re.compile(
    r"\b(ca(?=n['’]t)|is|are|was|were|has|have|had|can|could|will|would|should|does|did|do)(?:\s+not\b|n['’]t)"
)
_WORDED = [
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "twelve",
    "twenty",
    "hundred",
]
_PRONOUNS = frozenset(
    ["He", "She", "They", "It", "We", "You", "His", "Her", "Their", "The", "This", "That", "These", "Those"]
)


@dataclass(frozen=True)
class Unit:
    """A sentence of an answer; `quote` when it is copied from the document."""

    text: str
    quote: bool = False


@dataclass(frozen=True)
class Base:
    """An undamaged answer to a question, and what damage draws on."""

    query: str
    units: tuple[Unit, ...]
    irrelevant: tuple[str, ...]
    """Document sentences least like the question and its answers, least first."""
    names: tuple[str, ...]
    """Names that occur in the document."""

    @property
    def text(self) -> str:
        """The answer."""
        return join(self.units)


def join(units: Sequence[Unit]) -> str:
    """Units as running text."""
    return " ".join(unit.text for unit in units)


def tidy(text: str) -> str:
    """White space of a document made single."""
    return " ".join(text.split())


def names_in(text: str) -> list[str]:
    """Capitalised names inside sentences, in order of first appearance."""
    lower = set(re.findall(r"\b[a-z]+\b", text))
    found = (match for match in _NAME.findall(text) if match.split()[0] not in _PRONOUNS)
    # What the text also spells small is a word that began a line of speech, not a name.
    return [name for name in dict.fromkeys(found) if not {part.lower() for part in name.split()} & lower]


# Faithfulness: one edit at a time


def edits_of(sentence: str, names: Sequence[str], rng: random.Random) -> list[str]:
    """Versions of a sentence with one fact changed each: a name, a number, or a negation."""
    found = []
    for match in _NAME.finditer(sentence):
        others = [name for name in names if not set(name.split()) & set(match[0].split())]
        if match[0].split()[0] not in _PRONOUNS and others:
            found.append(_put(sentence, match, rng.choice(others)))
    found += [_put(sentence, match, _other_number(match[0], rng)) for match in _NUMBER.finditer(sentence)]
    found.append(negate(sentence))
    return [version for version in found if version != sentence]


def _put(sentence: str, match: re.Match[str], text: str) -> str:
    return sentence[: match.start()] + text + sentence[match.end() :]


def _other_number(number: str, rng: random.Random) -> str:
    if number.lower() in _WORDED:
        return rng.choice([word for word in _WORDED if word != number.lower()])
    value = int(number.replace(",", "")) if number.replace(",", "").isdigit() else 0
    return str(value + rng.choice([3, 7, 12, 40]) if value < 1000 else value + rng.choice([100, 250, 1000]))


def negate(sentence: str) -> str:
    """The sentence with its first negation taken out, or one put in; unchanged where it has no auxiliary verb."""
    match = _NOT.search(sentence)
    if match:
        return _put(sentence, match, match[1] if match[1] != "ca" else "can")
    match = _AUXILIARY.search(sentence)
    return _put(sentence, match, f"{match[1]} not") if match else sentence


def unfaithful(base: Base, strength: int, rng: random.Random) -> tuple[Unit, ...] | None:
    """One fact changed, then half of what can be, then as much as can be; own sentences only."""
    units = list(base.units)
    places = [i for i, unit in enumerate(units) if not unit.quote]
    half = max(2, (len(places) + 1) // 2)
    wanted = {1: 1, 2: half, 3: 2 * len(places) + 1}[strength]
    done = 0
    for turn in range(3):
        for place in rng.sample(places, len(places)):
            if done == wanted:
                break
            versions = edits_of(units[place].text, base.names, rng)
            # The first changes go to names and numbers; a second negation would undo the first.
            versions = [version for version in versions if turn == 0 or version != negate(units[place].text)]
            if versions:
                units[place] = replace(units[place], text=rng.choice(versions))
                done += 1
    return tuple(units) if done >= {1: 1, 2: half, 3: half + 1}[strength] else None


# The other defects


def incomplete(base: Base, strength: int, rng: random.Random) -> tuple[Unit, ...] | None:
    """`strength` of the three key quotes exchanged for irrelevant document sentences of like length."""
    units = list(base.units)
    quotes = [i for i, unit in enumerate(units) if unit.quote]
    pool = list(base.irrelevant)
    if len(quotes) < QUOTES or len(pool) < QUOTES:
        return None
    for place in rng.sample(quotes, strength):
        length = len(words(units[place].text))
        chosen = min(pool, key=lambda text: abs(len(words(text)) - length))
        pool.remove(chosen)
        units[place] = Unit(chosen, quote=True)
    return tuple(units)


def illogical(base: Base, strength: int, rng: random.Random) -> tuple[Unit, ...] | None:
    """First unit and another exchanged; all out of order; and the last contradicting the first own sentence."""
    units = list(base.units)
    if len(units) < 4:
        return None
    if strength == 1:
        other = rng.randrange(2, len(units))
        units[0], units[other] = units[other], units[0]
        return tuple(units)
    shuffled = derange(units, rng)
    if strength == 2:
        return tuple(shuffled)
    claims = [unit for unit in shuffled if not unit.quote and negate(unit.text) != unit.text]
    if not claims:
        return None
    claim = claims[0]
    denial = Unit(negate(claim.text))
    others = [i for i, unit in enumerate(shuffled) if not unit.quote and unit is not claim]
    if not others:
        return None
    size = len(words(denial.text))
    place = min(others, key=lambda i: abs(len(words(shuffled[i].text)) - size))
    del shuffled[place]
    return (*shuffled, denial)


def derange(units: Sequence[Unit], rng: random.Random) -> list[Unit]:
    """An order in which no unit keeps its place."""
    while True:
        order = rng.sample(range(len(units)), len(units))
        if all(place != number for place, number in enumerate(order)):
            return [units[number] for number in order]


def unhelpful(base: Base, other: Base, strength: int, rng: random.Random) -> tuple[Unit, ...] | None:
    """Half of the own sentences from an answer to another question, then all of them, then the quotes as well."""
    if strength == 3:
        return other.units
    own = [i for i, unit in enumerate(base.units) if not unit.quote]
    foreign = [unit for unit in other.units if not unit.quote]
    count = len(own) if strength == 2 else max(1, len(own) // 2)
    units = list(base.units)
    for place in sorted(rng.sample(own, count)):
        if not foreign:
            return None if strength == 1 else tuple(units)
        length = len(words(units[place].text))
        chosen = min(foreign, key=lambda unit: abs(len(words(unit.text)) - length))
        foreign.remove(chosen)
        units[place] = chosen
    return tuple(units)


Defect = Callable[[Base, int, random.Random], tuple[Unit, ...] | None]


def degrade(base: Base, other: Base, dimension: str, strength: int, rng: random.Random) -> str | None:
    """The answer with one defect; None where the text does not allow it or would stay as it is."""
    if dimension == "helpfulness":
        units = unhelpful(base, other, strength, rng)
    else:
        defects: dict[str, Defect] = {
            "completeness": incomplete,
            "faithfulness": unfaithful,
            "logicality": illogical,
        }
        units = defects[dimension](base, strength, rng)
    text = join(units) if units else None
    return None if text == base.text else text


# Stories → bases


def paragraphs(story: str, size: int = 60) -> list[str]:
    """A story in pieces of whole paragraphs, about `size` words each."""
    found: list[str] = []
    for part in (tidy(part) for part in re.split(r"\n\s*\n", story)):
        if found and len(words(found[-1])) < size:
            found[-1] = f"{found[-1]} {part}".strip()
        elif part:
            found.append(part)
    return found


def extract(story: str, answers: Sequence[str], budget: int, rng: random.Random) -> str:
    """About `budget` words of a story in its own order: two thirds what the answers speak of, the rest at random.

    Whole stories are too long for a small machine; an extract that held only relevant text would leave nothing
    irrelevant to quote.
    """
    parts = paragraphs(story)
    vectors = TfidfVectorizer(stop_words="english", sublinear_tf=True).fit([*parts, *answers])
    likeness = (vectors.transform(parts) @ vectors.transform(answers).T).max(axis=1).toarray().ravel()
    by_likeness = np.argsort(-likeness, kind="stable").tolist()
    chosen: set[int] = set()

    def fill(order: Sequence[int], limit: float) -> None:
        for number in order:
            size = sum(len(words(parts[i])) for i in chosen)
            if number not in chosen and size + len(words(parts[number])) <= limit:
                chosen.add(number)

    fill(by_likeness[: max(1, len(parts) // 3)], budget * 2 / 3)
    fill(rng.sample(range(len(parts)), len(parts)), budget)
    return "\n\n".join(parts[number] for number in sorted(chosen))


def quotable(document: str) -> list[str]:
    """Document sentences that can stand alone: 8 to 40 words."""
    return [tidy(text) for text in sentences(document) if 8 <= len(words(text)) <= 40]


def make_base(document: str, query: str, answer: str, answers: Sequence[str]) -> Base | None:
    """An answer's units with its three best matches quoted; None where the answer is too short or matches too little."""
    own = [tidy(text) for text in sentences(answer)]
    quotes = quotable(document)
    if len(own) < QUOTES + 2 or len(quotes) < 3 * QUOTES:
        return None
    vectors = TfidfVectorizer(stop_words="english", sublinear_tf=True).fit([*own, *quotes, *answers])
    match = (vectors.transform(own) @ vectors.transform(quotes).T).toarray()
    pairs: list[tuple[int, int]] = []
    while len(pairs) < QUOTES:
        sentence, quote = np.unravel_index(int(match.argmax()), match.shape)
        if match[sentence, quote] < 0.05:
            return None
        pairs.append((int(sentence), int(quote)))
        match[sentence, :] = match[:, quote] = -1
    quoted = dict(pairs)
    units = tuple(
        Unit(quotes[quoted[i]], quote=True) if i in quoted else Unit(text) for i, text in enumerate(own)
    )
    likeness = (
        (vectors.transform(quotes) @ vectors.transform([query, *answers]).T).max(axis=1).toarray().ravel()
    )
    used = set(quoted.values())
    order = [i for i in np.argsort(likeness, kind="stable").tolist() if i not in used]
    irrelevant = tuple(quotes[i] for i in order[: max(2 * QUOTES, len(order) // 3)])
    return Base(query, units, irrelevant, tuple(names_in(document)))


def story_bases(
    prompts: Sequence[Prompt], rng: random.Random, budget: int = 450, length: tuple[int, int] = (50, 120)
) -> tuple[str, list[Base]]:
    """(extract, undamaged answers) of one story: at most two answers to a question, of `length` words."""
    chosen = []
    for prompt in prompts:
        fitting = [item.text for item in prompt.responses if length[0] <= len(words(item.text)) <= length[1]]
        chosen += [(prompt, answer) for answer in rng.sample(sorted(fitting), min(2, len(fitting)))]
    if len({prompt.query for prompt, _ in chosen}) < 2:
        return "", []
    document = extract(prompts[0].context, [tidy(answer) for _, answer in chosen], budget, rng)
    bases = []
    for prompt, answer in chosen:
        base = make_base(document, prompt.query, answer, [tidy(item.text) for item in prompt.responses])
        if base is not None:
            bases.append(base)
    return document, bases if len({base.query for base in bases}) > 1 else []


def build_prompt(
    name: str, document_id: str, document: str, base: Base, others: Sequence[Base], rng: random.Random
) -> tuple[Prompt, list[Label]] | None:
    """The prompt with its undamaged answer and all twelve damaged ones, and their labels; None where one fails.

    Response ids say nothing about the damage; which is which stands in the responses' `source`, which no model sees.
    """
    made: list[tuple[str, int, str]] = [("none", 0, base.text)]
    size = len(words(base.text))
    other = min(others, key=lambda item: abs(len(words(item.text)) - size))
    for dimension in DIMENSIONS:
        for strength in STRENGTHS:
            text = degrade(base, other, dimension, strength, rng)
            if text is None:
                return None
            made.append((dimension, strength, text))
    rng.shuffle(made)
    responses = [
        Response(id=f"a{number}", text=text, source=f"{dimension}-{strength}")
        for number, (dimension, strength, text) in enumerate(made)
    ]
    labels = [
        Label(
            prompt_id=name,
            response_id=f"a{number}",
            scores={item: POINTS[strength if item == dimension else 0] for item in DIMENSIONS},
            reward=(POINTS[strength] + 3 * POINTS[0]) / 4,
            status="labelled",
        )
        for number, (dimension, strength, _) in enumerate(made)
    ]
    prompt = Prompt(id=name, document_id=document_id, context=document, query=base.query, responses=responses)
    return prompt, labels


def build_set(
    stories: dict[str, list[Prompt]], seed: int = 0, budget: int = 450
) -> tuple[list[Prompt], list[Label]]:
    """All prompts and labels from stories (document id → its prompts)."""
    prompts: list[Prompt] = []
    labels: list[Label] = []
    for document_id, items in sorted(stories.items()):
        rng = random.Random(f"{seed}:{document_id}")
        document, bases = story_bases(items, rng, budget)
        for number, base in enumerate(bases):
            others = [item for item in bases if item.query != base.query]
            made = build_prompt(f"{document_id}-{number}", document_id, document, base, others, rng)
            if made is not None:
                prompts.append(made[0])
                labels += made[1]
    return prompts, labels
