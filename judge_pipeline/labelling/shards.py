"""A part of a prompt file for each of several machines: `--shard 3/8`.

Documents go round the parts in the order they first appear, so that parts are about equal and all prompts over one
document, whose calls have much in common, are in one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from judge_pipeline.common.records import Prompt


def parse_shard(text: str) -> tuple[int, int]:
    """`3/8` → (3, 8). Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"'{text}' is not the number of a part and how many there are, e.g. 3/8")
    return number, count


def part(prompts: Iterable[Prompt], shard: str) -> Iterator[Prompt]:
    """The prompts of one shard, in their order."""
    number, count = parse_shard(shard)
    documents: dict[str, int] = {}
    for prompt in prompts:
        if documents.setdefault(prompt.document_id, len(documents)) % count == number - 1:
            yield prompt
