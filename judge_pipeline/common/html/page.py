"""The HTML page of every report: a title, sections, styles for light and dark, and nothing loaded from outside.

In: headings and safe HTML (``Markup``), and data for scripts. Out: one string that is a whole HTML file.

Documents, questions and answers are hostile text. Three walls keep them text:

- what is not ``Markup`` is escaped, here and in :mod:`judge_pipeline.common.html.charts`;
- data for scripts goes into JSON islands in which ``<``, ``>`` and ``&`` are escaped (Jinja's ``tojson``), and the
  scripts only ever set ``textContent``;
- a content security policy names the hash of each script of ours, so that no other script runs.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """One part of a page.

    ``html`` is ``Markup`` (from :mod:`judge_pipeline.common.html.charts`, :func:`join`, :func:`prose`); a plain ``str``
    is text and will be escaped. ``anchor`` is the fragment that links to the section; ``intro`` a plain sentence or two.
    """

    heading: str
    html: Markup | str
    anchor: str
    intro: str = ""


class Templates:
    """A folder of Jinja templates (autoescaped), style sheets and scripts that pages are made of."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        loader = FileSystemLoader(folder)
        self._environment = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        compact = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
        self._environment.policies["json.dumps_kwargs"] = compact

    def render(self, name: str, **values: Any) -> Markup:
        """The HTML of one template."""
        return Markup(self._environment.get_template(name).render(**values))

    def source(self, name: str) -> str:
        """A style sheet or a script as text."""
        return (self._folder / name).read_text(encoding="utf-8")


_TEMPLATES = Templates(Path(__file__).parent / "templates")


def render_page(
    title: str,
    subtitle: str,
    sections: Iterable[Section],
    footer: str = "",
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    tail: Markup | str = "",
    back: tuple[str, str] | None = None,
) -> str:
    """One self-contained HTML file as a string; unpaired surrogates (legal in JSON, not in UTF-8) become ``?``.

    ``styles`` and ``scripts`` are sources to inline after the shared ones. Each entry of ``data`` becomes a JSON island
    ``<script type="application/json" id="data-KEY">``, in which NaN and infinities are ``null``. ``tail`` is HTML
    after the last section (dialogs, templates). ``back`` is ``(href, text)`` of a link above the title.
    """
    sources = [_TEMPLATES.source("page.js"), *scripts]
    html = _TEMPLATES.render(
        "page.html.j2",
        title=title,
        subtitle=subtitle,
        sections=[*sections],
        footer=footer,
        styles=[Markup(source) for source in (_TEMPLATES.source("page.css"), *styles)],
        scripts=[Markup(source) for source in sources],
        policy=_policy(sources),
        data=_finite(data or {}),
        tail=tail,
        back=back,
    )
    return html.encode("utf-8", errors="replace").decode("utf-8")


def join(*parts: Markup | str) -> Markup:
    """Several pieces of HTML one after the other; what is not ``Markup`` is escaped."""
    return Markup("\n").join(parts)


def prose(text: str) -> Markup:
    """Plain text as paragraphs (an empty line separates them)."""
    blocks = [block.strip() for block in text.split("\n\n") if block.strip()]
    return join(*(Markup("<p>{}</p>").format(block) for block in blocks))


def caption(text: str) -> Markup:
    """A muted line: a remark under a chart, or why there is none."""
    return Markup('<p class="caption">{}</p>').format(text)


def notice(text: str, kind: str = "note") -> Markup:
    """A framed remark: ``kind`` is ``note`` or ``warning``."""
    if kind not in ("note", "warning"):
        raise ValueError(f"kind is 'note' or 'warning', not {kind!r}")
    return Markup('<p class="notice {}" role="note">{}</p>').format(kind, text)


def columns(*parts: Markup | str) -> Markup:
    """Pieces side by side where there is room, below one another where there is not."""
    cells = Markup("").join(Markup("<div>{}</div>").format(part) for part in parts)
    return Markup('<div class="columns">{}</div>').format(cells)


def details(summary: str, html: Markup | str) -> Markup:
    """HTML behind a click."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, html)


def code_block(text: str) -> Markup:
    """Plain text in a fixed-width font, as it stands."""
    # The parser drops a line break right after <pre>; ours keeps a text's own first empty line.
    return Markup("<pre>\n{}</pre>").format(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _policy(sources: Iterable[str]) -> str:
    """A policy under which these scripts run, and no other, and nothing is fetched."""
    hashes = (base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
