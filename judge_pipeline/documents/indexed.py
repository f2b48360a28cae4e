"""A document as the judge's dimensions see it: chunks to read, segments to search.

One a document, however many prompts and answers share it: cut once, embedded once, and only for a search.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from judge_pipeline.common.errors import UserError
from judge_pipeline.documents.chunking import FastTokenizer, Span, cut
from judge_pipeline.documents.retrieval import Embeds, Index, Retrieval, SentenceEmbedder, build_index, top_k

log = logging.getLogger(__name__)

KEEP_BYTES = 2**30
"""Of documents that nobody uses at the moment."""
SPAN_BYTES = 160
"""About what a piece takes: the object, its two numbers, its place in a list."""
SPECIAL_TOKENS = 2
"""That an embedding model puts around a text."""


@dataclass(frozen=True)
class Pieces:
    """A document cut: its length in tokens, its chunks and its segments."""

    tokens: int
    chunks: Sequence[Span]
    segments: Sequence[Span]


class IndexedDocument:
    """One document: its chunks, and a search over its segments."""

    def __init__(self, text: str, indexer: DocumentIndexer) -> None:
        self.text = text
        self._indexer = indexer
        self._cutting, self._indexing = threading.Lock(), threading.Lock()
        self._pieces: Pieces | None = None
        self._index: Index | None = None

    def pieces(self) -> Pieces:
        """The document cut, at the first call; where its tokens lie, megabytes, is forgotten at once."""
        with self._cutting:
            if self._pieces is None:
                self._pieces = self._indexer.cut(self.text)
                self._indexer.weigh(self)
        return self._pieces

    @property
    def tokens(self) -> int:
        """Length of the document in tokens of the chunking tokenizer."""
        return self.pieces().tokens

    @property
    def chunks(self) -> Sequence[Span]:
        """The pieces of `chunk_tokens`, in document order, covering it without a gap."""
        return self.pieces().chunks

    @property
    def segments(self) -> Sequence[Span]:
        """The pieces of `segment_tokens`, in document order, covering it without a gap."""
        return self.pieces().segments

    def index(self) -> Index:
        """The segments ready to be searched, at the first call: embedding takes seconds."""
        segments = self.segments
        with self._indexing:
            if self._index is None:
                self._indexer.check_embedder(self.text)
                texts = [self.text[segment.start : segment.end] for segment in segments]
                self._index = build_index(self._indexer.retrieval, texts, self._indexer.embedder)
                self._indexer.weigh(self)
        return self._index

    def search(self, statements: Sequence[str]) -> list[list[Span]]:
        """The top-k segments for each statement, best first. Embeds the document at the first call."""
        if not statements:
            return []
        best = top_k(self.index().scores(statements), self._indexer.top_k)
        return [[replace(self.segments[i], score=score) for i, score in row] for row in best]

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        spans = 0 if self._pieces is None else len(self._pieces.chunks) + len(self._pieces.segments)
        return sys.getsizeof(self.text) + SPAN_BYTES * spans + (self._index.bytes if self._index else 0)


class DocumentIndexer:
    """Makes and keeps indexed documents; the same text gives the same object back.

    `tokenizer` defaults to the embedding model's own, so that a segment is never longer than what it reads.
    Documents in use are kept by those who use them; of the others at most `keep_bytes`, the least recently used go
    first.
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
        keep_bytes: float = KEEP_BYTES,
        embedder: Embeds | None = None,
    ) -> None:
        self.embedder: Embeds = embedder or SentenceEmbedder(embedder_name)
        self.tokenizer = tokenizer or FastTokenizer(embedder_name)
        self.retrieval: Retrieval = retrieval
        self.segment_tokens, self.chunk_tokens, self.top_k = segment_tokens, chunk_tokens, top_k
        self.keep_bytes = keep_bytes
        self._known: WeakValueDictionary[str, IndexedDocument] = WeakValueDictionary()
        self._kept: OrderedDict[IndexedDocument, int] = OrderedDict()
        """Bytes of the documents that this object keeps, the least recently used first."""
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self._tokenizing = threading.Lock()
        self._warned = False

    def build(self, text: str) -> IndexedDocument:
        """The document, indexed. Cheap: cutting and embedding wait until something asks for them."""
        with self._lock:
            document = self._known.get(text)
            if document is None:
                document = self._known[text] = IndexedDocument(text, self)
        self.weigh(document)
        return document

    def cut(self, text: str) -> Pieces:
        """Chunks and segments of a text; one at a time, because a tokenizer needs much memory while it works."""
        with self._tokenizing:
            offsets = self.tokenizer.offsets(text)
            sizes = self.chunk_tokens, self.segment_tokens
            return Pieces(len(offsets), *(cut(text, offsets, size) for size in sizes))

    def weigh(self, document: IndexedDocument) -> None:
        """Note that a document was used and how large it is now; let go of others when all are too large."""
        with self._lock:
            before, now = self._kept.pop(document, 0), document.bytes
            self._kept[document] = now
            self._kept_bytes += now - before
            while self._kept_bytes > self.keep_bytes and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1]

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
