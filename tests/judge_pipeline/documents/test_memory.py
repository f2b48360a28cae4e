"""What reading takes at most, in a process of its own: a tokenizer's memory is not Python's.

`scripts/bench/label_memory.py` is the large version, over the whole command.
"""

from __future__ import annotations

import subprocess
import sys

MEASURED = """
import resource
from judge_pipeline.documents.indexed import DocumentIndexer

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

indexer = DocumentIndexer(retrieval="bm25")
indexer.build("The keeper of the lighthouse wrote a letter on Sunday.\\n" * 100).pieces()
before = most()
documents = [indexer.build(f"Volume {n}.\\n" + "The keeper of the lighthouse wrote a letter.\\n" * 9000) for n in range(10)]
print(sum(one.tokens for one in documents), most() - before)
"""


def test_several_long_documents_take_little_more_than_their_text():
    """Ten of 81k tokens, 4 MB of text: where every token lies took twice as much, and stayed."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=120)
    tokens, megabytes = done.stdout.split()
    assert int(tokens) > 800_000, done.stderr
    assert float(megabytes) < 110
