"""The one HTML shell of every report: a title, sections, a style for light and dark, and nothing from outside.

In: headings and safe HTML (``Markup``), and data for scripts. Out: one string that is a whole HTML file.

Documents, questions and answers are hostile text. Three walls keep them text:

- what is not ``Markup`` is escaped, here and in :mod:`judge_pipeline.common.html.charts`;
- data for scripts goes into JSON islands in which ``<``, ``>`` and ``&`` are written as ``\\u003c`` and so on, and
  the scripts only ever set ``textContent``;
- a content security policy names the hash of each script of ours, so that no other script runs, and nothing is
  loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_ENVIRONMENT = Environment(
    loader=PackageLoader("judge_pipeline.common.html", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_JSON_ESCAPES = {
    ord("<"): "\\u003c",
    ord(">"): "\\u003e",
    ord("&"): "\\u0026",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


@dataclass(frozen=True)
class Section:
    """One part of a page.

    ``html`` is ``Markup`` (from :mod:`judge_pipeline.common.html.charts`, :func:`join`, :func:`prose`); a plain ``str`` is text
    and will be escaped. ``anchor`` is the fragment that links to the section; ``intro`` is a plain sentence or two.
    """

    heading: str
    html: Markup | str
    anchor: str
    intro: str = ""


def render_page(
    title: str,
    subtitle: str,
    sections: Iterable[Section],
    footer: str = "",
    *,
    css: tuple[str, ...] = (),
    scripts: tuple[str, ...] = (),
    data: Mapping[str, Any] | None = None,
    tail: Markup | str = "",
    back: tuple[str, str] | None = None,
) -> str:
    """One self-contained HTML file as a string.

    ``css`` and ``scripts`` name further files of ``templates/`` to inline after the shared ones. Each entry of
    ``data`` becomes a JSON island ``<script type="application/json" id="data-KEY">``. ``tail`` is HTML after the last
    section (dialogs, templates). ``back`` is ``(href, text)`` of a link above the title.
    """
    sources = [_asset(name) for name in ("page.js", *scripts)]
    return _ENVIRONMENT.get_template("page.html.j2").render(
        title=title,
        subtitle=subtitle,
        sections=[*sections],
        footer=footer,
        styles=[Markup(_asset(name)) for name in ("page.css", *css)],
        scripts=[Markup(source) for source in sources],
        policy=_policy(sources),
        data={key: json_island(value) for key, value in (data or {}).items()},
        tail=tail,
        back=back,
    )


def render_fragment(template: str, **values: Any) -> Markup:
    """HTML of one file of ``templates/`` (autoescaped), to put into a section or a ``tail``."""
    return Markup(_ENVIRONMENT.get_template(template).render(**values))


def join(*parts: Markup | str) -> Markup:
    """Several pieces of HTML one after the other; what is not ``Markup`` is escaped."""
    return Markup("\n").join(parts)


def prose(text: str) -> Markup:
    """Plain text as paragraphs (an empty line separates them)."""
    blocks = [block.strip() for block in text.split("\n\n") if block.strip()]
    return Markup("\n").join(Markup("<p>{}</p>").format(block) for block in blocks)


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


def format_value(value: object) -> str:
    """A number as a reader wants it: thousands separated, three significant decimals at most, ``–`` for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _format_float(value)
    return str(value)


def format_seconds(seconds: float | None) -> str:
    """A duration such as ``0.4 s``, ``38 s``, ``4 min 05 s``, ``2 h 10 min``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def json_island(value: Any) -> Markup:
    """JSON that cannot end its ``<script>`` element nor begin a comment; NaN and infinities become ``null``."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_JSON_ESCAPES))


def encode_page(html: str) -> bytes:
    """The bytes to write: UTF-8, with unpaired surrogates (legal in JSON, not in UTF-8) as ``?``."""
    return html.encode("utf-8", errors="replace")


def _format_float(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 0.001:
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return f"{value:.2g}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _asset(name: str) -> str:
    return (
        files("judge_pipeline.common.html")
        .joinpath("templates", name)
        .read_text(encoding="utf-8")
        .replace("\r\n", "\n")
    )


def _policy(sources: Iterable[str]) -> str:
    """A policy under which these scripts run, and no other, and nothing is fetched."""
    hashes = (base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


__all__ = [
    "Markup",
    "Section",
    "code_block",
    "columns",
    "details",
    "encode_page",
    "escape",
    "format_seconds",
    "format_value",
    "join",
    "json_island",
    "notice",
    "prose",
    "render_fragment",
    "render_page",
]
