"""The fidelity tables inside a model's README.md, between two marks, so that a second evaluation replaces the first.

In: a model directory, Markdown tables, where they were measured. Out: its README.md with one section of that name,
in the place of the first figures that training put there.
"""

from __future__ import annotations

import re
from pathlib import Path

from judge_pipeline.common.record_files import write_text

BEGIN, END = "<!-- fidelity: begin -->", "<!-- fidelity: end -->"
_SECTION = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def card_with_fidelity(card: str, tables: str, source: str) -> str:
    """The card's text with its fidelity section replaced, or added at the end."""
    section = fidelity_section(
        f"Measured by `reward-model evaluate` on {source}, with 95% intervals over documents, beside baselines.\n\n"
        + tables.strip()
    )
    if _SECTION.search(card):
        return _SECTION.sub(lambda _: section, card, count=1)
    rest = card.rstrip()
    return f"{rest}\n\n{section}\n" if rest else f"{section}\n"


def fidelity_section(text: str) -> str:
    """The section as it stands in a card, between the marks that a later evaluation looks for."""
    return f"{BEGIN}\n## Fidelity\n\n{text}\n{END}"


def update_card(model: Path, tables: str, source: str) -> bool:
    """Write the tables into the model's README.md; False when it has none (a model of others is left alone)."""
    path = model / "README.md"
    if not path.is_file():
        return False
    write_text(path, card_with_fidelity(path.read_text(encoding="utf-8"), tables, source))
    return True
