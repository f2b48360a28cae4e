"""A document as the judge's dimensions see it: chunks to read, segments to search.

In: the text. Out: `IndexedDocument` (the `Document` of `dimensions.base`), one a document however many prompts
and answers share it: cut once, embedded once, and only when something is searched.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

from judge_pipeline.common.errors import UserError
from judge_pipeline.documents.chunking import FastTokenizer, Offsets, Span, Tokenizes, cut
from judge_pipeline.documents.retrieval import Embeds, Index, Retrieval, SentenceEmbedder, build_index, top_k

log = logging.getLogger(__name__)

SPECIAL_TOKENS = 2
"""That an embedding model puts around a text."""


class IndexedDocument:
    """One document: its chunks, and a search over its segments."""

    def __init__(self, text: str, builder: DocumentIndexer) -> None:
        self._text = text
        self._builder = builder
        self._lock = threading.Lock()
        self._index: Index | None = None

    @property
    def text(self) -> str:
        """The whole document."""
        return self._text

    @cached_property
    def _offsets(self) -> Offsets:
        return self._builder.tokenizer.offsets(self._text)

    @cached_property
    def tokens(self) -> int:
        """Length of the document in tokens of the chunking tokenizer."""
        return len(self._offsets)

    @cached_property
    def chunks(self) -> Sequence[Span]:
        """The pieces of `chunk_tokens`, in document order, covering it without a gap."""
        return cut(self._text, self._offsets, self._builder.chunk_tokens)

    @cached_property
    def segments(self) -> Sequence[Span]:
        """The pieces of `segment_tokens`, in document order, covering it without a gap."""
        return cut(self._text, self._offsets, self._builder.segment_tokens)

    def search(self, statements: Sequence[str]) -> list[list[Span]]:
        """The top-k segments for each statement, best first. Embeds the document at the first call."""
        if not statements:
            return []
        with self._lock:
            if self._index is None:
                self._builder.check_window()
                texts = [self._text[segment.start : segment.end] for segment in self.segments]
                self._index = build_index(self._builder.retrieval, texts, self._builder.embedder)
                self._builder.warn_if_unreadable(self._text)
            scores_Q_S = self._index.scores(statements)
        return [
            [Span(self.segments[i].start, self.segments[i].end, score) for i, score in row]
            for row in top_k(scores_Q_S, self._builder.top_k)
        ]


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
        tokenizer: str | Tokenizes | None = None,
        segment_tokens: int = 128,
        chunk_tokens: int = 4096,
        top_k: int = 5,
        keep: int = 512,
        embedder: Embeds | None = None,
    ) -> None:
        self.embedder: Embeds = embedder or SentenceEmbedder(embedder_name)
        self.tokenizer: Tokenizes = (
            FastTokenizer(tokenizer or embedder_name)
            if tokenizer is None or isinstance(tokenizer, str)
            else tokenizer
        )
        self.retrieval: Retrieval = retrieval
        self.segment_tokens, self.chunk_tokens, self.top_k = segment_tokens, chunk_tokens, top_k
        self._keep = keep
        self._documents: OrderedDict[str, IndexedDocument] = OrderedDict()
        self._lock = threading.Lock()
        self._warned = False

    def build(self, text: str) -> IndexedDocument:
        """The document, indexed. Cheap: cutting and embedding wait until something asks for them."""
        key = hashlib.sha256(text.encode()).hexdigest()
        with self._lock:
            if key not in self._documents:
                self._documents[key] = IndexedDocument(text, self)
                if len(self._documents) > self._keep:
                    self._documents.popitem(last=False)
            self._documents.move_to_end(key)
            return self._documents[key]

    @property
    def embedding_requests(self) -> int:
        """Requests made to the embedding model so far (a batch of texts is one)."""
        return int(getattr(self.embedder, "requests", 0))

    @property
    def embedded_texts(self) -> int:
        """Texts embedded so far: segments and statements."""
        return int(getattr(self.embedder, "texts", 0))

    def check_window(self) -> None:
        """Refuse segments longer than what the embedding model reads of a text: their ends would be lost."""
        if self.retrieval == "bm25" or not isinstance(self.embedder, SentenceEmbedder):
            return
        window = self.embedder.window
        if window is not None and self.segment_tokens + SPECIAL_TOKENS > window:
            raise UserError(
                f"segments of {self.segment_tokens} tokens do not fit the embedding model '{self.embedder.name}', "
                f"which reads {window - SPECIAL_TOKENS}",
                f"use --segment-tokens {window - SPECIAL_TOKENS} or less, or --retrieval bm25",
            )

    def warn_if_unreadable(self, text: str) -> None:
        """Say once when the embedding model does not know the document's script."""
        if self._warned or self.retrieval == "bm25" or not isinstance(self.embedder, SentenceEmbedder):
            return
        share = FastTokenizer(self.embedder.name).unknown_share(text[:20000])
        if share > 0.2:
            self._warned = True
            log.warning(
                "the embedding model '%s' does not know %.0f%% of this document's tokens, so it finds evidence "
                "badly: use --retrieval bm25, or name an embedding model that reads the language",
                self.embedder.name,
                100 * share,
            )
