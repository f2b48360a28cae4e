"""`reward-model score --explain`: which sentences of an answer the document does not support, and where it was looked for.

In: prompts and a model directory with a support readout. Out: the same points as scoring gives, and for every
sentence of an answer a support of 0–1, a flag below the threshold that training chose, and the part of the document
that the sentence pays most attention to. All of it from the reading that scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.record_files import read_prompts
from judge_pipeline.common.records import Prompt
from judge_pipeline.documents.chunking import Span as TextSpan
from judge_pipeline.documents.chunking import cut
from reward_model.data.evidence import Sentence, answer_sentences
from reward_model.modeling.head import apply_head
from reward_model.modeling.language_head import LogProbReader
from reward_model.modeling.span_states import AttentionWatch, read_spans
from reward_model.modeling.support import SupportReadout, token_spans
from reward_model.scoring.engine import Array, Engine
from reward_model.scoring.resume import scorable
from reward_model.scoring.score_config import ScoreConfig
from reward_model.scoring.scorer import RewardModel
from reward_model.shared_prefix.layout import EncodedPrompt, Span

Tensor = torch.Tensor
SEGMENT = 128
"""Tokens of a part of the document, as the judge's evidence has them (LongReward, section 3.1)."""
SHOWN = 3
"""Flagged sentences the terminal shows."""


@dataclass(frozen=True)
class PromptText:
    """What was tokenised, to say where in it the tokens lie."""

    context: str
    query: str
    responses: Sequence[str]


@dataclass(frozen=True)
class Look:
    """The part of the document that a sentence looks at, `context[start:end]`."""

    start: int
    end: int
    share: float
    """Of the attention it pays to the whole document."""


@dataclass(frozen=True)
class Note:
    """What is said of a sentence, `text[start:end]` of its answer."""

    start: int
    end: int
    support: float
    flagged: bool
    document: Look | None
    """None where there is no document."""

    def record(self) -> dict[str, Any]:
        """As it stands in the file."""
        look = self.document
        return {
            "start": self.start,
            "end": self.end,
            "support": round(self.support, 4),
            "flagged": self.flagged,
            "document": None
            if look is None
            else {"start": look.start, "end": look.end, "share": round(look.share, 4)},
        }


Notes = list[list[Note]]
"""Of each answer, for each of its sentences."""


def make_explainer(config: ScoreConfig, engine: Engine) -> Explainer | None:
    """What explains, where it was asked for.

    Raises:
        UserError: this engine or this model cannot.
    """
    if not config.explain:
        return None
    if not isinstance(engine, RewardModel) or config.shared_prefix == "off":
        raise UserError("--explain reads the states and the attention of a shared pass", "use --engine torch")
    return Explainer(engine)


class Explainer:
    """Scores answers and explains them in one reading.

    Raises:
        UserError: the model has no support readout.
    """

    def __init__(self, model: RewardModel) -> None:
        if model.support is None:
            raise UserError(
                "this model cannot explain: it was trained without the judge's evidence",
                "train on a label run whose labels.jsonl holds evidence, with --evidence on",
            )
        self.model = model
        self.support: SupportReadout = model.support

    @torch.no_grad()
    def explain(
        self, prompts: Sequence[tuple[PromptText, EncodedPrompt]], token_budget: int
    ) -> list[tuple[Array, Notes]]:
        """Points (N, D), as scoring gives them, and notes of each prompt.

        Raises:
            UserError: a prompt is longer than the window.
        """
        model, spec = self.model, self.support.spec
        model.check_lengths([encoded for _, encoded in prompts])
        sentences = [[answer_sentences(text) for text in texts.responses] for texts, _ in prompts]
        spans = [
            self._sentence_spans(texts, found) for (texts, _), found in zip(prompts, sentences, strict=True)
        ]
        scored = [[model.score_spans(len(ids)) for ids in encoded.answers] for _, encoded in prompts]
        wanted = [
            [[*own, *parts] for own, parts in zip(whole, answers, strict=True)]
            for whole, answers in zip(scored, spans, strict=True)
        ]
        segments = [self._segments(texts) for texts, _ in prompts]
        looked_at = [[tokens for _, tokens in one] for one in segments]
        watch = AttentionWatch(spec.attention_layer, spans, looked_at)
        layers = [model.score_layer, spec.layer]
        head = model.language_head
        likely = [LogProbReader(head) for _ in range(2)] if head else [None, None]
        states = read_spans(
            model.model,
            [encoded for _, encoded in prompts],
            wanted,
            token_budget=token_budget,
            layers=layers,
            watch=watch,
            log_probs=likely[0],
        )
        twice = spec.needs_withheld or (model.readout is not None and model.readout.spec.needs_withheld)
        bare = [encoded.withheld() for _, encoded in prompts] if twice else []
        withheld = (
            read_spans(
                model.model, bare, wanted, token_budget=token_budget, layers=layers, log_probs=likely[1]
            )
            if twice
            else None
        )
        model.count_tokens([encoded for _, encoded in prompts] + bare)
        found: list[tuple[Array, Notes]] = []
        for number in range(len(prompts)):
            one = withheld[number] if withheld else None
            plan = _Rows([len(own) for own in scored[number]], [len(parts) for parts in spans[number]])
            names = [(number, place) for place in range(len(scored[number]))]
            more = [reader.of(names) if reader and reader.found else None for reader in likely]
            points = model.stacked(prompts[number][1], self._points(states[number], one, plan, more))
            notes = self._notes(
                states[number], one, plan, sentences[number], segments[number], watch.found[number]
            )
            found.append((points, notes))
        return found

    def _sentence_spans(self, texts: PromptText, sentences: list[list[Sentence]]) -> list[list[Span]]:
        """Tokens of the sentences of each answer; sentences without any are dropped from `sentences`."""
        spans = []
        for place, text in enumerate(texts.responses):
            tokens = token_spans(self.model.renderer.answer_places(text), sentences[place])
            there = [
                (one, span) for one, span in zip(sentences[place], tokens, strict=True) if span is not None
            ]
            sentences[place] = [one for one, _ in there]
            spans.append([span for _, span in there])
        return spans

    def _segments(self, texts: PromptText) -> list[tuple[TextSpan, Span]]:
        """The parts of the document, and their tokens in the prefix."""
        places = self.model.renderer.context_places(texts.context, texts.query)
        parts = cut(texts.context, [place for place in places if place[1] >= 0], SEGMENT)
        tokens = token_spans(places, parts)
        return [(part, span) for part, span in zip(parts, tokens, strict=True) if span is not None]

    def _points(
        self, states: Tensor, withheld: Tensor | None, rows: _Rows, log_probs: Sequence[Tensor | None]
    ) -> Array:
        document = rows.whole(states[:, 0])
        readout = self.model.readout
        if readout is None:
            return np.asarray(apply_head(self.model.model, document.to(self.model.device)).detach().cpu())
        bare = None if withheld is None else rows.whole(withheld[:, 0])
        if (own := log_probs[0]) is not None:
            document = torch.cat([document, own], dim=1)
        if bare is not None and (own := log_probs[1]) is not None:
            bare = torch.cat([bare, own], dim=1)
        return readout.apply(document, bare).numpy()

    def _notes(
        self,
        states: Tensor,
        withheld: Tensor | None,
        rows: _Rows,
        sentences: list[list[Sentence]],
        segments: list[tuple[TextSpan, Span]],
        attention: list[Tensor],
    ) -> Notes:
        places = rows.parts()
        flat = [place for answer in places for place in answer]
        if not flat:
            return [[] for _ in places]
        bare = None if withheld is None else withheld[flat, 1]
        support = iter(self.support.apply(states[flat, 1], bare).tolist())
        shares = iter(attention)
        threshold = self.support.spec.threshold
        notes: Notes = []
        for own in sentences:
            notes.append([])
            for one in own:
                value = next(support)
                look = _look(segments, next(shares)) if segments else None
                notes[-1].append(Note(one.start, one.end, value, value < threshold, look))
        return notes


@dataclass(frozen=True)
class _Rows:
    """Which of a prompt's spans are what: of each answer first those its score is read from, then its sentences."""

    scored: Sequence[int]
    sentences: Sequence[int]

    def _starts(self) -> list[int]:
        sizes = [a + b for a, b in zip(self.scored, self.sentences, strict=True)]
        return np.cumsum([0, *sizes])[:-1].tolist()

    def whole(self, states: Tensor) -> Tensor:
        """What the scores are read from, (N, G)."""
        pieces = [
            states[start : start + count].reshape(-1)
            for start, count in zip(self._starts(), self.scored, strict=True)
        ]
        return torch.stack(pieces)

    def parts(self) -> list[list[int]]:
        """Places of the sentences of each answer."""
        return [
            list(range(start + own, start + own + count))
            for start, own, count in zip(self._starts(), self.scored, self.sentences, strict=True)
        ]


def _look(segments: list[tuple[TextSpan, Span]], share_G: Tensor) -> Look:
    best = int(share_G.argmax())
    part = segments[best][0]
    return Look(part.start, part.end, float(share_G[best] / share_G.sum().clamp_min(1e-12)))


def explained_text(prompt: Prompt) -> PromptText:
    """What of a prompt is scored, before its scores are filled in."""
    return PromptText(
        prompt.context, prompt.question, [item.text for item in prompt.responses if scorable(item)]
    )


def write_notes(prompt: Prompt, notes: Notes) -> None:
    """Write `explain` into a prompt's responses; an empty list for those that are not scored."""
    left = iter(notes)
    for response in prompt.responses:
        found = next(left, []) if scorable(response) else []
        response.explain = [note.record() for note in found]  # type: ignore[attr-defined]


def sample(output: Path) -> str:
    """A few flagged sentences of a scored file, for the terminal."""
    lines: list[str] = []
    for prompt in read_prompts(output):
        for response in prompt.responses:
            for note in getattr(response, "explain", None) or []:
                if note["flagged"] and len(lines) < SHOWN:
                    text = _short(response.text[note["start"] : note["end"]])
                    look = note["document"]
                    where = (
                        f'; looks at {look["start"]}–{look["end"]}: "{_short(prompt.context[look["start"] : look["end"]])}"'
                        if look
                        else ""
                    )
                    lines.append(
                        f'  {prompt.id} / {response.id}: "{text}" (support {note["support"]:.2f}{where})'
                    )
        if len(lines) == SHOWN:
            break
    return "\n".join(["flagged as unsupported, for example:", *lines]) if lines else "no sentence is flagged"


def _short(text: str, length: int = 90) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"
