import logging
import threading
import time
import tracemalloc

import numpy as np
import pytest
from document_helpers import FACTS, CountingEmbedder, document
from hypothesis import given
from hypothesis import strategies as st

from judge_pipeline.common.errors import UserError
from judge_pipeline.documents.indexed import DocumentIndexer
from judge_pipeline.documents.retrieval import Bm25Index, HybridIndex, SentenceEmbedder, top_k
from judge_pipeline.documents.words import terms


@pytest.fixture(scope="module")
def embedder():
    """The real model, on one thread: on a busy machine several wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SentenceEmbedder()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["dense", "bm25", "hybrid"])
def test_the_segment_that_says_it_comes_first(kind, embedder):
    evidence = DocumentIndexer(retrieval=kind, embedder=embedder).build(document())
    queries = [
        "Ines Moreau designed the lighthouse.",
        "There are 312 letters in the museum.",
        "A storm broke the windows in 1911.",
    ]
    found = evidence.search(queries)
    for spans, fact in zip(found, (FACTS[0], FACTS[3], FACTS[5]), strict=True):
        assert len(spans) == 5
        assert (
            fact[:30] in evidence.text[spans[0].start : spans[0].end]
            or fact[-30:] in evidence.text[spans[0].start : spans[0].end]
        )
        assert [s.score for s in spans] == sorted((s.score for s in spans), reverse=True)


def test_dense_scores_are_the_models_cosines(embedder):
    from sentence_transformers import SentenceTransformer, util

    from judge_pipeline.common.bundled_models import resolve_model

    evidence = DocumentIndexer(embedder=embedder).build(document(2))
    query = "Ferries cross the strait."
    plain = SentenceTransformer(resolve_model("minilm"))
    plain.max_seq_length = 512
    texts = [evidence.text[s.start : s.end] for s in evidence.segments]
    expected = util.cos_sim(plain.encode([query]), plain.encode(texts))[0].numpy()
    found = evidence.search([query])[0]
    order = np.argsort(-expected)[:5]
    assert [s.start for s in found] == [evidence.segments[i].start for i in order]
    assert [s.score for s in found] == pytest.approx(expected[order], abs=2e-5)


def test_a_document_is_embedded_once_for_all_its_prompts_and_answers():
    embedder = CountingEmbedder()
    builder = DocumentIndexer(embedder=embedder)
    text = document()
    for _ in range(3):  # three prompts over the same document
        builder.build(text).search(["one statement", "another"])
    builder.build(text).search(["one statement", "a third"])
    segments = len(builder.build(text).segments)
    assert [len(batch) for batch in embedder.batches] == [segments, 2, 1]
    assert embedder.requests == 3
    assert sum(map(len, embedder.batches)) == segments + 3


def test_nothing_is_embedded_before_a_search():
    embedder = CountingEmbedder()
    evidence = DocumentIndexer(embedder=embedder).build(document())
    assert len(evidence.chunks) >= 1
    assert evidence.search([]) == []
    assert embedder.requests == 0


def test_documents_are_kept_by_bytes_and_those_in_use_besides():
    embedder = CountingEmbedder()
    builder = DocumentIndexer(embedder=embedder, keep_bytes=60_000)
    in_use = builder.build(document(9))
    in_use.search(["one statement"])
    for number in range(40):
        builder.build(f"Number {number}. " + document(9)).search(["one statement"])
        assert sum(one.bytes for one in builder._kept) <= 60_000
    assert 1 < len(builder._kept) < 12
    before = embedder.requests
    assert builder.build(document(9)) is in_use  # another prompt over it does not embed it again
    last = builder.build("Number 39. " + document(9))
    last.search(["one statement"])
    assert embedder.requests == before
    builder.build("Number 0. " + document(9)).search(["one statement"])  # nobody used it, and it had to go
    assert embedder.requests == before + 2


def test_a_long_document_is_small_once_it_is_cut():
    """A million tokens took 120 MB of offsets for as long as the document was kept."""
    text = "The keeper of the lighthouse wrote a letter on Sunday.\n" * 20_000
    builder = DocumentIndexer(retrieval="bm25", embedder=CountingEmbedder())
    tracemalloc.start()
    evidence = builder.build(text)
    assert evidence.tokens > 200_000
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2_000_000
    assert evidence.bytes - len(text) == pytest.approx(kept, rel=0.5)


def test_statements_do_not_wait_for_a_long_document(monkeypatch):
    """A model of one caller at a time, seconds a document: the others go between its batches."""
    order = []

    class Slow:
        max_seq_length = 512

        def encode(self, texts, **_):
            order.append(texts[0])
            time.sleep(0.02)
            return np.ones((len(texts), 2), np.float32)

    embedder = SentenceEmbedder()
    monkeypatch.setattr(SentenceEmbedder, "_model", Slow())
    long = threading.Thread(target=embedder.embed, args=(["segment"] * 64 * 20,))
    long.start()
    time.sleep(0.05)
    assert embedder.embed(["statement"]).shape == (1, 2)
    assert order.index("statement") < 8
    assert embedder.window == 512
    long.join()
    assert order.count("segment") == 20


def test_bm25_needs_no_embedding_model():
    embedder = CountingEmbedder()
    DocumentIndexer(retrieval="bm25", embedder=embedder).build(document()).search(["letters"])
    assert embedder.requests == 0


def test_terms_of_several_languages():
    assert terms("The KEEPERS' 312 letters, naïve") == ["the", "keepers", "312", "letters", "naïve"]
    assert terms("考古学1987年") == ["考", "古", "学", "考古", "古学", "1987", "年"]
    assert terms("Straße 灯塔") == ["strasse", "灯", "塔", "灯塔"]
    assert terms("…!") == []


def test_bm25_finds_chinese():
    segments = ["灯塔由莫英设计，于1887年建成。", "港口在战后淤塞。", "博物馆收藏了三百封信。"]
    scores = Bm25Index(segments).scores(["信件收藏在博物馆", "灯塔的设计者", "?!"])
    assert scores.argmax(axis=1)[:2].tolist() == [2, 0]
    assert scores[2].tolist() == [0, 0, 0]


def test_a_document_without_terms_is_searchable():
    assert Bm25Index(["…", "!!"]).scores(["word"]).tolist() == [[0, 0]]


def test_hybrid_is_reciprocal_rank_fusion():
    class Fixed:
        def __init__(self, row):
            self.row = row

        def scores(self, queries):
            return np.array([self.row] * len(queries), dtype=float)

    fused = HybridIndex([Fixed([3, 2, 1]), Fixed([0, 5, 0])]).scores(["q"])[0]
    assert fused == pytest.approx([1 / 61 + 1 / 62, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62])
    assert [i for i, _ in top_k(np.array([fused]), 3)[0]] == [0, 1, 2]


@given(st.lists(st.sampled_from([0.1, 0.2, 0.30000004, 0.3]), min_size=1, max_size=12), st.integers(1, 6))
def test_ties_keep_document_order(row, k):
    found = top_k(np.array([row]), k)[0]
    assert len(found) == min(k, len(row))
    keys = [(-round(score, 5), index) for index, score in found]
    assert keys == sorted(keys)
    assert {i for i, _ in found} == set(sorted(range(len(row)), key=lambda i: (-round(row[i], 5), i))[:k])


def test_a_script_the_model_cannot_read_is_said_once(caplog, embedder):
    builder = DocumentIndexer(embedder=embedder)
    with caplog.at_level(logging.WARNING):
        builder.build("甲骨文的发现推动了考古学的发展。" * 20).search(["考古学"])
        builder.build("灯塔由莫英设计，于那一年建成。" * 20).search(["灯塔"])
    assert len([r for r in caplog.records if "--retrieval bm25" in r.getMessage()]) == 1


def test_segments_longer_than_the_models_window_are_refused(embedder):
    with pytest.raises(UserError, match="--segment-tokens 510"):
        DocumentIndexer(embedder=embedder, segment_tokens=511).build(document()).search(["letters"])
    assert DocumentIndexer(embedder=embedder, segment_tokens=510).build(document()).search(["letters"])
    lexical = DocumentIndexer(embedder=embedder, segment_tokens=2000, retrieval="bm25")
    assert lexical.build(document()).search(["letters"])


def test_the_end_of_a_segment_counts(embedder):
    """Model folders may set a shorter window than the network has; the last words of a segment must not be lost."""
    words = "word " * 300
    same, other = embedder.embed([words + "The lighthouse keeper.", words + "Bread prices in winter."])
    assert float(same @ other) < 0.9999
