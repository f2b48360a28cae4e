"""What a row was made from: a hash of what was judged, and the judge's fingerprint. A row is kept while both hold.

Making a row again asks nothing that the call store holds, so the fingerprint may be generous: it covers the judge, every
setting that decides scores, and the text of all prompt files.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from judge_pipeline.common.config import Config, leaves
from judge_pipeline.common.records import Prompt
from judge_pipeline.dimensions.base import Dimension
from judge_pipeline.prompts.templates import PROMPTS, RENDERING

LENGTH = 32
"""Hex digits of a hash in a row."""


def judged_hashes(prompt: Prompt) -> dict[str, str]:
    """For each answer (by id) a hash of document, question and answer."""
    case = hashlib.sha256(prompt.context.encode()).hexdigest()
    return {response.id: _hash([case, prompt.query, response.text]) for response in prompt.responses}


def judge_fingerprint(
    identity: str, config: Config, dimensions: Sequence[Dimension], without: Iterable[str] = ()
) -> str:
    """A hash of all that turns a text into scores.

    `identity` is the engine's; of `config` count the settings that decide what a run produces, except those named (in
    dotted form) in `without`.
    """
    left_out = set(without)
    settings = {
        leaf.dotted: _value(config, leaf.path)
        for leaf in leaves(type(config))
        if leaf.extra.get("identity") is not False and leaf.dotted not in left_out
    }
    files = [PROMPTS, *{Path(inspect.getfile(type(one))).parent for one in dimensions}]
    prompts = {file.read_text(encoding="utf-8") for folder in files for file in folder.rglob("*.txt")}
    return _hash([identity, settings, RENDERING, sorted(prompts)])


def _value(config: Any, path: Sequence[str]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]
