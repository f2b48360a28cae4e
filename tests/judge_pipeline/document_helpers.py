"""Tokenizers, embedders and checks that tests of documents share."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def byte_level_bpe():
    """A byte-level BPE that learned English only, so that a Chinese character is three tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    return tokenizer


def check_cover(text, spans):
    assert "".join(text[s.start : s.end] for s in spans) == text
    assert all(a.end == b.start for a, b in pairwise(spans))
    assert all(s.start < s.end for s in spans)
    if text:
        assert (spans[0].start, spans[-1].end) == (0, len(text))


def document(gap=8):
    filler = "Nothing of note happened on that day, and the next one was much the same. "
    return "".join(fact + " " + filler * gap for fact in FACTS)


class CountingEmbedder:
    def __init__(self):
        self.batches = []

    @property
    def requests(self):
        return len(self.batches)

    @property
    def texts(self):
        return sum(map(len, self.batches))

    def embed(self, texts):
        self.batches.append(list(texts))
        return np.array(
            [[len(t), t.count("e") + 1.0] / np.hypot(len(t), t.count("e") + 1.0) for t in texts], np.float32
        )


FACTS = [
    "The lighthouse was designed by Ines Moreau and finished in 1887.",
    "The harbour silted up in the years after the war.",
    "Ferries cross the strait four times a day in summer.",
    "The museum keeps 312 letters written by the keepers.",
    "Bread was baked on Thursdays in the old mill.",
    "A storm in 1911 broke every window of the lantern.",
    "The school has two classrooms and a library.",
    "Salt was sold to merchants from the north.",
]
