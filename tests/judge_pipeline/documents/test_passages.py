from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from judge_pipeline.documents.chunking import FastTokenizer, cut
from judge_pipeline.documents.passages import CONTEXT, passages

LIDO = (
    "5.1 A surveyor, Mr. Hale, reported on the Lido. The liner is worn and the filter vessel corroded. "
    "(2) The repair would cost 48,000 crowns. Cllr Marrow, treasurer of the Friends, did not vote. "
)


def segments(text, size=16):
    return [(span.start, span.end) for span in cut(text, FastTokenizer("minilm").offsets(text), size)]


def test_passages_are_whole_sentences():
    for span in segments(LIDO):
        shown = passages(LIDO, [span])
        assert len(shown) == 1
        assert LIDO[slice(*span)].strip() in shown[0]
        assert shown[0].startswith(("5.1", "The liner", "(2)", "Cllr")), shown
        assert shown[0].endswith(("Lido.", "corroded.", "crowns.", "vote.")), shown


def test_neighbours_share_no_sentence_and_lose_nothing():
    spans = segments(LIDO)
    shown = passages(LIDO, spans)
    assert " ".join(shown) == LIDO.strip()
    assert passages(LIDO, reversed(spans)) == shown


def test_a_sentence_without_an_end_is_cut_at_a_word_and_says_so():
    text = "lighthouse " * 400
    place = text.index("house", 2000)
    shown = passages(text, [(place, place + 100)])[0]
    assert shown.startswith("…lighthouse ")
    assert shown.endswith(" lighthouse…")
    assert 100 + CONTEXT < len(shown) <= 100 + 2 * CONTEXT + 2
    assert not passages(text, [(0, 50)])[0].startswith("…")
    assert not passages(text, [(len(text) - 50, len(text))])[0].endswith("…")


def test_chinese_sentences_are_whole_too():
    text = "灯塔由莫英设计，于1887年建成。港口后来淤塞，灯塔于1961年熄灯。守塔人的房子租给了夏季游客。"
    place = text.index("淤塞")
    assert passages(text, [(place, place + 2)]) == ["港口后来淤塞，灯塔于1961年熄灯。"]


@given(st.text(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_any_text_is_shown_once_and_covers_its_segments(text, places):
    bounds = sorted({min(place, len(text)) for place in places})
    spans = list(pairwise(bounds))
    shown = passages(text, spans)
    assert len(shown) <= len(spans)
    assert sum(len(one.strip("…")) for one in shown) <= len(text)
    for start, end in spans:
        words = text[start:end].split()
        assert all(word in " ".join(shown) for word in words)
