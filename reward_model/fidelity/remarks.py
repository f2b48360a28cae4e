"""What the figures of an evaluation mean, in sentences: does the model use the document, are its outputs apart, is it
above what costs nothing, and how sure is any of it.

In: the plain data of `fidelity.evaluate_scores`. Out: sentences for the terminal, the card and the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from judge_pipeline.statistics import separation
from judge_pipeline.statistics.render import few_documents, interval
from reward_model.fidelity.controls import OTHER, WITHHELD

GROUNDED = ("faithfulness", "completeness")
"""Outputs that nobody can judge without the document."""


def remarks(found: Mapping[str, Any]) -> list[str]:
    """Every sentence that the figures call for."""
    return [
        *filter(None, [few_documents(found["documents"])]),
        *_document(found["results"]),
        *separation.remarks(found["separation"]),
        *_baselines(found["results"]),
    ]


def main_metric(row: Mapping[str, Any]) -> str:
    """The figure a row is judged by: Spearman, or pairs where there are only choices."""
    return "spearman" if "spearman" in row["ahead"] else "pairs"


def _document(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for result in results:
        if result["target"] not in GROUNDED:
            continue
        for row in result["rows"]:
            gain = row["ahead"].get(main_metric(row)) if row["name"] in (WITHHELD, OTHER) else None
            if gain is None or gain["value"] is None:
                continue
            same = f"{row['name']}: {main_metric(row)} {interval(gain, 2, '+')} for the document itself"
            if gain["low"] is None:
                yield f"whether the model uses the document for {result['target']} cannot be told from so few ({same})"
            elif gain["low"] <= 0:
                yield f"the model does not use the document for {result['target']}, as far as this shows ({same})"


def changed_remarks(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence where an answer made worse is not told from the answer as it was by what the document says."""
    found = []
    for result in results:
        for row in result["rows"]:
            gain = row["ahead"].get("pairs") if row["name"] == WITHHELD else None
            if gain is not None and gain["value"] is not None and (gain["low"] is None or gain["low"] <= 0):
                found.append(
                    f"{result['target']}: not shown to be told by what the document says ({row['name']}: pairs "
                    f"{interval(gain, 2, '+')} for the document itself)"
                )
    return found


def _baselines(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for result in results:
        rows = [row for row in result["rows"] if row["kind"] == "baseline"]
        gains = [(row, row["ahead"].get(main_metric(row)) or {"value": None}) for row in rows]
        known = [(gain["value"], row["name"], gain) for row, gain in gains if gain["value"] is not None]
        if known:
            _, name, gain = min(known, key=lambda item: item[0])
            if gain["value"] <= 0:
                yield f"{result['target']}: {name}, which needs no label, is not beaten ({interval(gain, 2, '+')})"
