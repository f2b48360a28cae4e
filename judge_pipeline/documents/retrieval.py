"""Which pieces of a document speak to a statement: dense, BM25, or both fused.

The paper retrieves by dense embeddings alone (LongReward, section 3.1); BM25 helps where names and numbers matter,
or where the embedding model does not read the language.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.documents.words import terms

Scores_Q_S = npt.NDArray[np.float64]
"""One row a query, one column a segment; higher is closer."""

Retrieval = Literal["dense", "bm25", "hybrid"]

FUSION_RANK = 60
"""Constant of reciprocal rank fusion (Cormack, Clarke, Büttcher 2009)."""

# Two runs may embed a statement in batches of other shapes, which moves the seventh digit: rounding keeps the
# order, and with it the calls that are made, the same.
SCORE_DIGITS = 5

BATCH = 64
"""Texts embedded at a time; between two batches others have their turn."""


class Embeds(Protocol):
    """Turns texts into unit vectors."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, shape (len(texts), dimension)."""
        ...


class SentenceEmbedder:
    """A sentence-transformers model; loaded at first use, safe to call from several threads.

    It reads as much of a text as the network can; with `widen` off, as much as the model's folder says.
    """

    def __init__(self, name: str = "minilm", *, device: str | None = None, widen: bool = True) -> None:
        self.name = name
        self._device, self._widen = device, widen
        self._free = threading.Condition()
        self._busy, self._hurried = False, 0

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors of `texts`, shape (len(texts), dimension).

        Few texts go before many: an answer's statements do not wait until a long document is through.
        """
        batches = [list(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        vectors = [self._batch(batch, first=len(batches) == 1) for batch in batches]
        return np.concatenate(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)

    def _batch(self, texts: list[str], *, first: bool) -> npt.NDArray[np.float32]:
        with self._turn(first=first):
            vectors = self._model.encode(
                texts,
                batch_size=BATCH,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        return np.asarray(vectors, dtype=np.float32)

    @contextmanager
    def _turn(self, *, first: bool) -> Iterator[None]:
        """The model is one caller's at a time; those that go `first` do not queue behind the others."""
        with self._free:
            self._hurried += first
            self._free.wait_for(lambda: not self._busy and (first or not self._hurried))
            self._hurried -= first
            self._busy = True
        try:
            yield
        finally:
            with self._free:
                self._busy = False
                self._free.notify_all()

    @property
    def window(self) -> int | None:
        """Tokens of a text that the model reads, special ones included; what is longer loses its end."""
        with self._turn(first=True):
            return self._model.max_seq_length

    @cached_property
    def _model(self) -> Any:
        from sentence_transformers import SentenceTransformer  # seconds to import

        model = SentenceTransformer(resolve_model(self.name), device=self._device)
        # Model folders often set a window shorter than the network's own; segments must not lose their ends.
        positions = getattr(model[0].auto_model.config, "max_position_embeddings", None)
        if self._widen and positions and (model.max_seq_length or 0) < positions:
            model.max_seq_length = positions
        return model


class DenseIndex:
    """Cosine similarity of sentence embeddings. The segments are embedded once, in the constructor."""

    def __init__(self, segments: Sequence[str], embedder: Embeds) -> None:
        self._embedder = embedder
        self._segments_S_D = embedder.embed(segments)
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        rows = len(self._segments_S_D) + len(self._known)
        return rows * self._segments_S_D[:1].nbytes

    def scores(self, queries: Sequence[str]) -> Scores_Q_S:
        """Cosine similarity, −1 to 1. A query seen before is not embedded again."""
        new = [query for query in dict.fromkeys(queries) if query not in self._known]
        if new:
            self._known.update(zip(new, self._embedder.embed(new), strict=True))
        queries_Q_D = np.stack([self._known[query] for query in queries])
        return (queries_Q_D @ self._segments_S_D.T).astype(np.float64)


class Bm25Index:
    """BM25 over words, or over characters and their pairs in scripts without spaces."""

    def __init__(self, segments: Sequence[str]) -> None:
        import bm25s

        corpus = [terms(segment) for segment in segments]
        # An index entry is two numbers of four bytes; the words themselves are a fraction of it.
        self.bytes = 16 * sum(map(len, corpus))
        self._size = len(segments)
        self._index: Any = None
        if any(corpus):
            self._index = bm25s.BM25()
            self._index.index(corpus, show_progress=False)

    def scores(self, queries: Sequence[str]) -> Scores_Q_S:
        """BM25 scores, from 0 up; a query without a known term scores 0 everywhere."""
        scores_Q_S = np.zeros((len(queries), self._size))
        if self._index is None:
            return scores_Q_S
        for row, query in enumerate(queries):
            known = [term for term in terms(query) if term in self._index.vocab_dict]
            if known:
                scores_Q_S[row] = self._index.get_scores(known)
        return scores_Q_S


class HybridIndex:
    """Reciprocal rank fusion of several indexes: the sum of 1 / (60 + rank)."""

    def __init__(self, parts: Sequence[DenseIndex | Bm25Index]) -> None:
        self._parts = parts

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        return sum(part.bytes for part in self._parts)

    def scores(self, queries: Sequence[str]) -> Scores_Q_S:
        """Fused scores; equal scores within one part share the better rank, so order never breaks a tie."""
        from scipy.stats import rankdata

        scores = (np.round(part.scores(queries), SCORE_DIGITS) for part in self._parts)
        return np.sum([1.0 / (FUSION_RANK + rankdata(-one, method="min", axis=1)) for one in scores], axis=0)


Index = DenseIndex | Bm25Index | HybridIndex
"""A document's segments, ready to be searched."""


def build_index(kind: Retrieval, segments: Sequence[str], embedder: Embeds) -> Index:
    """The index that `kind` names."""
    if kind == "bm25":
        return Bm25Index(segments)
    dense = DenseIndex(segments, embedder)
    return dense if kind == "dense" else HybridIndex([dense, Bm25Index(segments)])


def top_k(scores_Q_S: Scores_Q_S, k: int) -> list[list[tuple[int, float]]]:
    """For each query the k best (segment, score), best first; among equals the earlier segment comes first."""
    rounded = np.round(scores_Q_S, SCORE_DIGITS)
    order = np.argsort(-rounded, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(rounded, order, axis=1)
    return [
        list(zip(columns, scores, strict=True))
        for columns, scores in zip(order.tolist(), best.tolist(), strict=True)
    ]
