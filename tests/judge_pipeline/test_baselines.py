"""Baselines by hand, and their embedding with the real MiniLM."""

from __future__ import annotations

import numpy as np

from judge_pipeline.agreement_table import AnswerTable, build_table
from judge_pipeline.baselines import (
    all_baselines,
    answer_length,
    bigram_support,
    minilm_embed,
    pieces,
    sentences,
    words,
)
from judge_pipeline.records import Prompt, Response


def table(context: str, *answers: str, query: str = "Where do otters sleep?") -> AnswerTable:
    responses = [Response(id=str(i), text=text, flags=["empty"]) for i, text in enumerate(answers)]
    return build_table([Prompt(id="p", context=context, query=query, responses=responses)])


def test_words_count_characters_where_there_are_no_spaces():
    assert words("The cat's 2nd nap — fine.") == ["the", "cat's", "2nd", "nap", "fine"]
    assert words("水獭睡觉 now") == ["水", "獭", "睡", "觉", "now"]


def test_bigram_support_is_the_share_of_the_answers_bigrams_in_the_document():
    found = bigram_support(
        table("Otters sleep on their backs.", "Otters sleep on land.", "otters SLEEP on", "x", "")
    )
    assert found.tolist() == [2 / 3, 1.0, 0.0, 0.0]


def test_length_both_ways_and_constant():
    answers = table("A document.", "one two three", "one")
    found = all_baselines(answers)
    assert answer_length(answers).tolist() == [3.0, 1.0]
    assert found["longer answer"].tolist() == [3.0, 1.0]
    assert found["shorter answer"].tolist() == [-3.0, -1.0]
    assert np.ptp(found["constant"]) == 0


def test_pieces_keep_every_word_and_stay_small():
    text = "A sentence here. " * 100 + "y" * 1200 + ". 水獭在水里睡觉。它们手牵手。"
    found = pieces(text, 500)
    assert all(len(piece) <= 500 for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert sentences("水獭在水里睡觉。它们手牵手。") == ["水獭在水里睡觉。", "它们手牵手。"]


def test_embedding_similarity_with_minilm_prefers_the_answer_on_the_subject():
    document = (
        "Otters sleep in water, holding paws. They wrap themselves in kelp. The harbour was built in 1902."
    )
    answers = table(document, "Otters sleep floating in water.", "The stock market fell by nine percent.")
    found = all_baselines(answers, minilm_embed())
    for name in ("question similarity", "evidence similarity"):
        assert found[name][0] > found[name][1] + 0.2
        assert np.abs(found[name]).max() <= 1.0 + 1e-6
