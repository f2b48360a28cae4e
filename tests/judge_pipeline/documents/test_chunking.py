from itertools import pairwise

import pytest
import regex
from document_helpers import byte_level_bpe, check_cover
from hypothesis import given, settings
from hypothesis import strategies as st

from judge_pipeline.common.bundled_models import resolve_model
from judge_pipeline.common.errors import UserError
from judge_pipeline.documents import chunking
from judge_pipeline.documents.chunking import FastTokenizer, _parts_graphemes, blocks, cut

# Accents that combine, flags, a family joined by zero-width joiners, Hangul in parts, line ends of two characters.
HARD = [
    "e\u0301",
    "🇩🇪",
    "👩‍👩‍👧",
    "각",
    "\r\n",
    "中",
    "文",
    "𠀀",
    "ñ",
    " ",
    "a",
    "word ",
    "。",
    "\u200d",
    "0",
]
texts = st.lists(st.one_of(st.sampled_from(HARD), st.text(max_size=4)), max_size=60).map("".join)


class ByteTokens:
    """The worst byte-level tokenizer: every byte a token, all bytes of a character at the same offsets."""

    def offsets(self, text):
        return [(i, i + 1) for i, char in enumerate(text) for _ in char.encode("utf-8", "surrogatepass")]


def grapheme_starts(text):
    return {m.start() for m in regex.finditer(r"\X", text)} | {0, len(text)}


@given(texts, st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_pieces_cover_the_text_and_cut_no_grapheme(text, size):
    tokens = ByteTokens().offsets(text)
    spans = cut(text, tokens, size)
    check_cover(text, spans)
    starts = grapheme_starts(text)
    assert all(s.start in starts for s in spans)
    for span in spans:
        count = sum(span.start <= start < span.end for start, _ in tokens)
        one_grapheme = len(regex.findall(r"\X", text[span.start : span.end])) == 1
        assert count <= size or one_grapheme


@given(st.text(max_size=80), st.integers(1, 9), st.randoms())
@settings(max_examples=200, deadline=None)
def test_odd_offsets_still_cover(text, size, random):
    """Gaps, overlaps and empty tokens, as normalising tokenizers report them."""
    bounds = sorted(random.choices(range(len(text) + 1), k=20)) if text else []
    offsets = [(a, max(a, min(len(text), b + random.randint(-1, 2)))) for a, b in pairwise(bounds)]
    check_cover(text, cut(text, offsets, size))


def test_chinese_under_byte_level_bpe_keeps_every_character():
    tokenizer = byte_level_bpe()
    text = "甲骨文的发现推动了我国考古学的发展，" * 40
    offsets = tokenizer.encode(text).offsets
    assert len(offsets) > 2 * len(text)  # several tokens a character: cuts by token ids would tear them
    spans = cut(text, offsets, 128)
    check_cover(text, spans)
    # What the reference does, for contrast: decode slices of ids. Some come back torn.
    ids = tokenizer.encode(text).ids
    torn = [tokenizer.decode(ids[i : i + 128]) for i in range(0, len(ids), 128)]
    assert any("\ufffd" in piece for piece in torn)
    assert not any("\ufffd" in text[s.start : s.end] for s in spans)
    assert all(len(tokenizer.encode(text[s.start : s.end]).ids) <= 128 for s in spans)


def test_sizes_are_met_on_real_text():
    tokenizer = FastTokenizer("minilm")
    text = "The lighthouse was finished in 1887, two years late. It burned oil at first.\n\n" * 100
    spans = cut(text, tokenizer.offsets(text), 128)
    check_cover(text, spans)
    assert all(tokenizer.count(text[s.start : s.end]) <= 128 for s in spans)
    assert len(spans) == -(-tokenizer.count(text) // 128)


@pytest.mark.parametrize("name", ["minilm", "bpe"])
def test_long_texts_are_tokenized_in_blocks_to_the_same_tokens(name, tmp_path, monkeypatch):
    byte_level_bpe().save(str(tmp_path / "tokenizer.json"))
    tokenizer = FastTokenizer("minilm" if name == "minilm" else str(tmp_path / "tokenizer.json"))
    text = "The café was finished in 1887,\n\n  two years late. 甲骨文的发现 It burned oil at first.\n" * 40
    whole = tokenizer.offsets(text)
    monkeypatch.setattr(chunking, "BLOCK_CHARS", 300)
    parts = list(blocks(text))
    assert len(parts) > 8
    assert "".join(text[start:end] for start, end in parts) == text
    assert max(end - start for start, end in parts) <= 300
    assert tokenizer.offsets(text).tolist() == whole.tolist()
    assert tokenizer.count(text) == len(whole)
    assert [end - start for start, end in blocks("甲" * 1000)] == [300, 300, 300, 100]


@given(texts, st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_cuts_are_those_of_scanning_every_grapheme(text, size):
    """What decides is local; scanning each piece from its start, which is slow, finds the same."""
    tokens = ByteTokens().offsets(text)
    starts = grapheme_starts(text)
    for span in cut(text, tokens, size)[1:]:
        assert span.start in starts
    for place in range(1, len(text)):
        assert _parts_graphemes(text, place, 0) == (place in starts)


def test_truncation_in_the_tokenizer_file_is_switched_off():
    tokenizer = FastTokenizer("minilm")
    assert tokenizer.count("word " * 5000) == 5000
    assert tokenizer.offsets("word " * 5000)[-1][1] == 24999


def test_a_tokenizer_file_can_be_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    byte_level_bpe().save(str(path))
    assert FastTokenizer(str(path)).count("the fox") < 7
    assert FastTokenizer(resolve_model("minilm")).unknown_share("甲骨文") > 0.3
    assert FastTokenizer(str(path)).unknown_share("甲骨文") == 0


def test_a_missing_tokenizer_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="without a model"):
        FastTokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer"):
        FastTokenizer(str(tmp_path))


def test_small_cases():
    assert cut("", [], 4) == []
    assert [(s.start, s.end) for s in cut("   ", [], 4)] == [(0, 3)]
    with pytest.raises(ValueError, match="size"):
        cut("a", [(0, 1)], 0)
