"""Parts of answers: their tokens, their states and their attention are those of each answer alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from reward_model.data.evidence import answer_sentences
from reward_model.modeling.model import Backbone, load_backbone_for_rm
from reward_model.modeling.prompt_format import PromptRenderer
from reward_model.modeling.span_states import AttentionWatch, read_spans
from reward_model.modeling.support import token_spans
from reward_model.shared_prefix.exactness import prepare_shared_prefix

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT = "The bridge opened in 1887. 大桥由莫罗设计。 <|end|> is not a control token here. " * 3
ANSWERS = [
    "  The bridge opened. 莫罗设计了它！ Nobody paid.",
    "Short one.",
    "No idea. None at all. None. Really.",
]


@pytest.fixture(scope="module")
def backbone(tiny_base: Path) -> Backbone:
    found = load_backbone_for_rm(str(tiny_base), dtype=torch.float32)
    found.model.eval()
    prepare_shared_prefix(found.model, chunked=True)
    return found


def cut(ids: list[int], span: tuple[int, int], renderer: PromptRenderer) -> str:
    return renderer.tokenizer.decode(ids[span[0] : span[1]])


@pytest.mark.parametrize("text", ANSWERS)
def test_the_tokens_of_a_sentence_spell_it(backbone, text):
    renderer = backbone.renderer
    ids, places = renderer.answer_ids(text), renderer.answer_places(text)
    assert len(ids) == len(places)
    sentences = answer_sentences(text)
    spans = token_spans(places, sentences)
    assert [cut(ids, span, renderer).strip() for span in spans] == [text[s.start : s.end] for s in sentences]
    assert places[-1] == (-1, -1)


@pytest.mark.parametrize("user", ["{context}\n\n{query}", "Q: {query}\nD: {context}"])
def test_the_tokens_of_the_document_spell_it(backbone, user):
    renderer = PromptRenderer(
        backbone.tokenizer, backbone.manifest.prompt_format.model_copy(update={"user": user})
    )
    query = "When did the {context} open?"
    ids, places = renderer.prefix_ids(CONTEXT, query), renderer.context_places(CONTEXT, query)
    assert len(ids) == len(places)
    held = [number for number, place in enumerate(places) if place[1] >= 0]
    assert held == list(range(held[0], held[-1] + 1))
    assert cut(ids, (held[0], held[-1] + 1), renderer) == CONTEXT
    assert (places[held[0]][0], places[held[-1]][1]) == (0, len(CONTEXT))
    assert all(place == (-1, -1) for place in renderer.context_places("", query))


def spans_of(backbone: Backbone) -> list[list[tuple[int, int]]]:
    return [
        [span for span in token_spans(backbone.renderer.answer_places(text), answer_sentences(text)) if span]
        for text in ANSWERS
    ]


@pytest.mark.parametrize("budget", [60, 10_000])
def test_states_and_attention_are_those_of_each_answer_alone(backbone, tiny_base, budget):
    """Shared, in chunks of the budget or not, against transformers' own eager attention over one answer."""
    encoded = backbone.renderer.encode(CONTEXT, "When?", ANSWERS)
    spans, segments = spans_of(backbone), [(2, 40), (40, 100), (100, 101)]
    watch = AttentionWatch(2, [spans, spans], [segments, []])
    states, other = read_spans(
        backbone.model,
        [encoded, encoded],
        [spans, [[], [(0, 3)], []]],
        token_budget=budget,
        layers=[1, -1],
        watch=watch,
    )
    alone = AutoModel.from_pretrained(tiny_base, dtype=torch.float32, attn_implementation="eager").eval()
    at = 0
    for ids, own in zip(encoded.answers, spans, strict=True):
        sequence = torch.tensor([[*encoded.prefix, *ids]]).long()
        out = alone(sequence, output_hidden_states=True, output_attentions=True)
        for start, stop in own:
            part = slice(len(encoded.prefix) + start, len(encoded.prefix) + stop)
            for place, layer in enumerate((1, -1)):
                torch.testing.assert_close(
                    states[at, place], out.hidden_states[layer][0, part].mean(0), atol=1e-4, rtol=1e-4
                )
            share = out.attentions[1][0, :, part].mean((0, 1))
            expected = torch.stack([share[a:b].sum() for a, b in segments])
            torch.testing.assert_close(watch.found[0][at], expected, atol=1e-5, rtol=1e-4)
            at += 1
    assert at == len(states) == len(watch.found[0])
    assert other.shape[0] == 1
    assert watch.found[1] == []


def test_one_by_one_gives_the_same_states(backbone):
    encoded = backbone.renderer.encode(CONTEXT, "When?", ANSWERS)
    spans = spans_of(backbone)
    shared, apart = (
        read_spans(backbone.model, [encoded], [spans], token_budget=10_000, shared=how, layers=[1])[0]
        for how in (True, False)
    )
    torch.testing.assert_close(shared, apart, atol=1e-4, rtol=1e-4)
