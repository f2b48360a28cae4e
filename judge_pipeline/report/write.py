"""The report of a label run: one self-contained ``report.html``, with pages beside it when there is very much to show.

In: a run directory with ``labels.jsonl``, and, where they are there, ``summary.json``, ``run.yaml`` and the prompts
file it names. Out: ``report.html``. Up to 200 answers (and 8 million characters) everything is in this one file;
beyond, it is the index, and the documents with their evidence are in ``report/answers-0001.html`` and so on, each of
them self-contained too.

Pages are written first and the index last, each whole or not at all: an index that is there leads nowhere wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from judge_pipeline.common.html.page import Section, Templates, join, notice, render_page
from judge_pipeline.common.record_files import read_json, read_prompts, write_text
from judge_pipeline.common.records import Prompt
from judge_pipeline.common.run_dir import read_run_yaml
from judge_pipeline.report import sections
from judge_pipeline.report.data import Labels, Page, load_labels, pages

PAGES_FOLDER = "report"
TEMPLATES = Templates(Path(__file__).parent / "templates")


def write_report(run_dir: Path) -> Path:
    """Write the report of the label run in ``run_dir`` and return its path.

    Raises UserError when there are no labels, and DataError when a record of labels or prompts is wrong. A prompts
    file that is gone is no error: the report then shows labels without documents, and says so.
    """
    run_dir = Path(run_dir)
    labels = load_labels(run_dir / "labels.jsonl")
    run = read_run_yaml(run_dir) if (run_dir / "run.yaml").is_file() else {}
    summary = read_json(run_dir / "summary.json")
    prompts, missing = _prompts(run_dir, run)
    found = pages(prompts, labels)
    first, second = next(found), next(found, None)
    index_path = run_dir / "report.html"
    if second is None:
        everything, data = [first], {"index": _index(first, labels), "details": _details(first)}
    else:
        everything = _write_pages(run_dir, chain([first, second], found), labels)
        data = {"index": _merged_index(everything, labels)}
    answers = sum(len(page.rows) for page in everything)
    count = sum(len(page.prompts) for page in everything)
    parts = [
        sections.overview(labels, summary, answers, count),
        sections.scores(labels),
        sections.failures(labels),
        _answers_section(missing),
        sections.spent(labels, summary),
        sections.settings(run),
    ]
    write_text(index_path, _render("Judge's labels", str(run_dir), parts, data))
    _remove_stale_pages(run_dir / PAGES_FOLDER, 0 if second is None else len(everything))
    return index_path


def page_name(number: int) -> str:
    """File name of page ``number``, from 1."""
    return f"answers-{number:04d}.html"


def _write_pages(run_dir: Path, found: Iterator[Page], labels: Labels) -> list[Page]:
    """Write every page; what is returned has its heavy parts dropped."""
    written: list[Page] = []
    page: Page | None = next(found)
    while page is not None:
        number, following = len(written) + 1, next(found, None)
        before = page_name(number - 1) if number > 1 else None
        after = page_name(number + 1) if following else None
        index = {**_index(page, labels), "home": "../report.html", "before": before, "after": after}
        title = f"Answers {page.first:,} to {page.first + len(page.rows) - 1:,}"
        data = {"index": index, "details": _details(page)}
        back = ("../report.html#answers", "← All answers")
        html = _render(title, str(run_dir), [_answers_section(None)], data, back)
        write_text(run_dir / PAGES_FOLDER / page_name(number), html)
        page.details, page.documents = [], []
        written.append(page)
        page = following
    return written


def _index(page: Page, labels: Labels) -> dict[str, Any]:
    return {"first": page.first, "dimensions": labels.dimensions, "prompts": page.prompts, "rows": page.rows}


def _merged_index(everything: list[Page], labels: Labels) -> dict[str, Any]:
    """One table over all pages: prompt numbers are made global, and each page says where its rows begin."""
    prompts: list[list[Any]] = []
    rows: list[list[Any]] = []
    places: list[list[Any]] = []
    for number, page in enumerate(everything, start=1):
        places.append([page.first, f"{PAGES_FOLDER}/{page_name(number)}"])
        rows += [[row[0] + len(prompts), *row[1:]] for row in page.rows]
        prompts += page.prompts
    return {"first": 1, "dimensions": labels.dimensions, "prompts": prompts, "rows": rows, "pages": places}


def _details(page: Page) -> dict[str, Any]:
    return {"answers": page.details, "documents": page.documents}


def _answers_section(missing: str | None) -> Section:
    parts = [notice(missing, "warning")] if missing else []
    parts.append(TEMPLATES.render("answers.html.j2"))
    return Section("Answers", join(*parts), "answers")


def _render(
    title: str, subtitle: str, parts: list[Section], data: dict[str, Any], back: tuple[str, str] | None = None
) -> str:
    viewer = "details" in data  # an index of pages has the table only
    return render_page(
        title,
        subtitle,
        parts,
        footer="Nothing here is loaded from elsewhere.",
        styles=[TEMPLATES.source("answers.css")],
        scripts=[TEMPLATES.source(name) for name in ("answers.js", "viewer.js")[: 1 + viewer]],
        data=data,
        tail=TEMPLATES.render("viewer.html.j2") if viewer else "",
        back=back,
    )


def _remove_stale_pages(folder: Path, keep: int) -> None:
    """Pages of an earlier, larger report would show what is no longer true."""
    current = {page_name(number) for number in range(1, keep + 1)}
    for path in folder.glob("answers-*.html"):
        if path.name not in current:
            path.unlink()


def _prompts(run_dir: Path, run: dict[str, Any]) -> tuple[Iterator[Prompt], str | None]:
    """The prompts the run labels, and what to tell the reader when they are not there."""
    config = run.get("config")
    named = config.get("prompts") if isinstance(config, dict) else None
    if not named:
        return iter(()), "run.yaml names no prompts file, so documents and answers are not shown."
    # A run directory that was moved together with its prompts still finds them.
    for path in (Path(named), run_dir / Path(named).name, run_dir.parent / Path(named).name):
        if path.is_file():
            return read_prompts(path), None
    return iter(()), f"The prompts file {named} is not there, so documents and answers are not shown."
