"""A document as the judge's dimensions see it: chunks to read, segments to search.

One a document, however many prompts and answers share it: cut once, embedded once, and only for a search.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial

from judge_pipeline.common.errors import UserError
from judge_pipeline.documents.chunking import FastTokenizer, Offsets, Span, cut
from judge_pipeline.documents.retrieval import Embeds, Index, Retrieval, SentenceEmbedder, build_index, top_k

log = logging.getLogger(__name__)

SPECIAL_TOKENS = 2
"""That an embedding model puts around a text."""


class IndexedDocument:
    """One document: its chunks, and a search over its segments."""

    def __init__(self, text: str, indexer: DocumentIndexer) -> None:
        self.text = text
        self._indexer = indexer
        self._lock = threading.Lock()
        self._index: Index | None = None

    @cached_property
    def _offsets(self) -> Offsets:
        return self._indexer.tokenizer.offsets(self.text)

    @cached_property
    def tokens(self) -> int:
        """Length of the document in tokens of the chunking tokenizer."""
        return len(self._offsets)

    @cached_property
    def chunks(self) -> Sequence[Span]:
        """The pieces of `chunk_tokens`, in document order, covering it without a gap."""
        return cut(self.text, self._offsets, self._indexer.chunk_tokens)

    @cached_property
    def segments(self) -> Sequence[Span]:
        """The pieces of `segment_tokens`, in document order, covering it without a gap."""
        return cut(self.text, self._offsets, self._indexer.segment_tokens)

    def search(self, statements: Sequence[str]) -> list[list[Span]]:
        """The top-k segments for each statement, best first. Embeds the document at the first call."""
        if not statements:
            return []
        with self._lock:
            if self._index is None:
                self._indexer.check_embedder(self.text)
                texts = [self.text[segment.start : segment.end] for segment in self.segments]
                self._index = build_index(self._indexer.retrieval, texts, self._indexer.embedder)
            best = top_k(self._index.scores(statements), self._indexer.top_k)
        return [[replace(self.segments[i], score=score) for i, score in row] for row in best]


class DocumentIndexer:
    """Makes and keeps indexed documents; the same text gives the same object back.

    `tokenizer` defaults to the embedding model's own, so that a segment is never longer than what it reads.
    At most `keep` documents stay in memory (about 1 MB each at 64k tokens), the least recently used go first.
    """

    def __init__(
        self,
        embedder_name: str = "minilm",
        *,
        retrieval: Retrieval = "dense",
        tokenizer: FastTokenizer | None = None,
        segment_tokens: int = 128,
        chunk_tokens: int = 4096,
        top_k: int = 5,
        keep: int = 512,
        embedder: Embeds | None = None,
    ) -> None:
        self.embedder: Embeds = embedder or SentenceEmbedder(embedder_name)
        self.tokenizer = tokenizer or FastTokenizer(embedder_name)
        self.retrieval: Retrieval = retrieval
        self.segment_tokens, self.chunk_tokens, self.top_k = segment_tokens, chunk_tokens, top_k
        self._documents = lru_cache(keep)(partial(IndexedDocument, indexer=self))
        self._warned = False

    def build(self, text: str) -> IndexedDocument:
        """The document, indexed. Cheap: cutting and embedding wait until something asks for them."""
        return self._documents(text)

    def check_embedder(self, text: str) -> None:
        """Refuse segments longer than the embedding model reads; say once when it does not know the text's script."""
        if self.retrieval == "bm25" or not isinstance(self.embedder, SentenceEmbedder):
            return
        name, window = self.embedder.name, self.embedder.window
        if window is not None and self.segment_tokens + SPECIAL_TOKENS > window:
            raise UserError(
                f"segments of {self.segment_tokens} tokens do not fit the embedding model '{name}', "
                f"which reads {window - SPECIAL_TOKENS}",
                f"use --segment-tokens {window - SPECIAL_TOKENS} or less, or --retrieval bm25",
            )
        share = 0.0 if self._warned else FastTokenizer(name).unknown_share(text[:20000])
        if share > 0.2:
            self._warned = True
            log.warning(
                "the embedding model '%s' does not know %.0f%% of this document's tokens, so it finds evidence "
                "badly: use --retrieval bm25, or name an embedding model that reads the language",
                name,
                100 * share,
            )
