"""What costs nothing and must be beaten: length, word overlap, embedding similarity, chance.

In: an `AnswerTable`. Out: one score an answer, higher meaning better by that rule. A reward model or a judge that does
not beat these has learnt little: bigram overlap alone orders most pairs that people decided on faithfulness where
answers copy from the document.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from judge_pipeline.common.progress import Progress
from judge_pipeline.documents.retrieval import SentenceEmbedder
from judge_pipeline.documents.words import sentences, words
from judge_pipeline.statistics.table import AnswerTable, Floats

PIECE_CHARACTERS = 500
"""Document pieces for embedding: about 128 tokens, well inside MiniLM's window of 256."""

Embed = Callable[[Sequence[str]], Floats]
"""Texts → unit vectors (n, dimension)."""


def _bigrams(text: str) -> list[tuple[str, str]]:
    return list(itertools.pairwise(words(text)))


def answer_length(table: AnswerTable) -> Floats:
    """Words of each answer (R,)."""
    return np.array([len(words(text)) for text in table.texts()], dtype=float)


def bigram_support(table: AnswerTable) -> Floats:
    """Share of each answer's bigrams that stand in the document (R,); 0 for answers of fewer than two words."""
    shares: list[float] = []
    cache: tuple[str, set[tuple[str, str]]] = ("", set())
    for prompt in table.prompts:
        if cache[0] != prompt.context:
            cache = (prompt.context, set(_bigrams(prompt.context)))
        for response in prompt.responses:
            own = _bigrams(response.text)
            shares.append(sum(pair in cache[1] for pair in own) / len(own) if own else 0.0)
    return np.array(shares)


def chance(table: AnswerTable, seed: int = 0) -> Floats:
    """Uniform random numbers (R,)."""
    return np.random.default_rng(seed).random(table.rows)


def pieces(text: str, size: int = PIECE_CHARACTERS) -> list[str]:
    """The text in pieces of whole sentences, at most `size` characters each (longer sentences are cut)."""
    found: list[str] = []
    current = ""
    for sentence in sentences(text):
        for start in range(0, len(sentence), size):
            part = sentence[start : start + size]
            if current and len(current) + 1 + len(part) > size:
                found.append(current)
                current = ""
            current = f"{current} {part}".strip()
    return [*found, current] if current else found


def minilm_embed(model: str = "minilm") -> Embed:
    """An `Embed` from a sentence-transformers model; `minilm` is the one that comes as a package."""
    embedder = SentenceEmbedder(model, device="cpu", widen=False)
    return lambda texts: embedder.embed(texts).astype(float)


def embedding_similarity(table: AnswerTable, embed: Embed) -> dict[str, Floats]:
    """Cosine of each answer with the question, and with the evidence in the document.

    `evidence` is the mean over the answer's sentences of the highest cosine with a piece of the document. Each
    document is embedded once, whatever the number of prompts about it.
    """
    question, evidence = np.zeros(table.rows), np.zeros(table.rows)
    documents: dict[str, Floats] = {}
    with Progress(len(table.prompts), "embedding", "prompts") as progress:
        for number, rows in table.slices():
            prompt = table.prompts[number]
            if prompt.context not in documents:
                documents = {prompt.context: embed(pieces(prompt.context) or [prompt.context])}
            vectors_S = documents[prompt.context]
            parts = [sentences(response.text) or [response.text or " "] for response in prompt.responses]
            if parts:
                texts = [response.text or " " for response in prompt.responses]
                # One call a prompt: many small ones cost far more than their tokens.
                vectors = embed([prompt.question, *texts, *(part for own in parts for part in own)])
                question[rows] = vectors[1 : 1 + len(texts)] @ vectors[0]
                closest = (vectors[1 + len(texts) :] @ vectors_S.T).max(axis=1)
                owner = np.repeat(np.arange(len(parts)), [len(own) for own in parts])
                evidence[rows] = np.bincount(owner, closest) / np.bincount(owner)
            progress.update()
    return {"question similarity": question, "evidence similarity": evidence}


def all_baselines(table: AnswerTable, embed: Embed | None = None, seed: int = 0) -> dict[str, Floats]:
    """Every baseline by its name; without `embed`, those of embeddings are left out."""
    length = answer_length(table)
    found = {
        "constant": np.zeros(table.rows),
        "random, one draw": chance(table, seed),
        "longer answer": length,
        "shorter answer": -length,
        "bigram support": bigram_support(table),
    }
    if embed is not None:
        found.update(embedding_similarity(table, embed))
    return found
