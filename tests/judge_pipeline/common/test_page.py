"""The HTML shell: self-contained, and proof against what documents and answers may hold."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge_pipeline.common.html.page import (
    Markup,
    Section,
    code_block,
    columns,
    details,
    join,
    notice,
    prose,
    render_page,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<!--<script>",
    "]]><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt; &amp;",
    "\u2028\u2029\x00\ud800",
]


class Tags(HTMLParser):
    """Collects elements, their attributes, and the text of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._script: dict[str, str | None] | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts.append((self._script, data))


def page_with(text: str) -> str:
    parts = join(
        prose(text), notice(text), code_block(text), details(text, text), columns(text, prose(text)), text
    )
    return render_page(text, text, [Section(text, parts, "one", text)], text, data={"text": {"text": text}})


def shape(html: str) -> list[tuple[str, tuple[str, ...]]]:
    """Elements and the names of their attributes: what a browser would build, whatever the words are."""
    return [(tag, tuple(attrs)) for tag, attrs in Tags(html).tags]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_element_and_no_attribute(text):
    assert shape(page_with(text)) == shape(page_with("harmless"))


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_adds_no_element_beyond_paragraphs(text):
    plain = Section("h", Markup("<b>{}</b>").format(text), "a", text)
    harmless = Section("h", Markup("<b>x</b>"), "a", "x")
    assert shape(render_page(text, text, [plain])) == shape(render_page("x", "x", [harmless]))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_islands_give_back_what_was_put_in(value):
    html = render_page("t", "", [], data={"value": value})
    (island,) = [text for attrs, text in Tags(html).scripts if attrs.get("id") == "data-value"]
    assert json.loads(island) == value
    assert not re.search(r"[<>&]", island)


def test_islands_have_no_numbers_that_json_has_not():
    html = render_page("t", "", [], data={"value": {"a": [math.nan, math.inf, 1.5], "b": (2, None)}})
    (island,) = [text for attrs, text in Tags(html).scripts if attrs.get("id") == "data-value"]
    assert json.loads(island) == {"a": [None, None, 1.5], "b": [2, None]}


def test_only_our_scripts_may_run_and_nothing_is_loaded():
    html = page_with("harmless")
    parsed = Tags(html)
    (policy,) = [attrs["content"] for tag, attrs in parsed.tags if attrs.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    for attrs, text in parsed.scripts:
        if attrs.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    for tag, attrs in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attrs
        assert not (attrs.get("href") or "#").startswith(("http:", "https:", "//"))
    assert "@import" not in html
    assert "url(" not in html


def test_text_in_place_of_html_is_escaped():
    html = render_page("t", "", [Section("h", "<b>bold</b>", "a")])
    assert "&lt;b&gt;bold" in html


def test_unpaired_surrogates_do_not_stop_a_report():
    assert "a?b" in render_page("a\ud800b", "", [])


def test_navigation_leads_to_every_section_when_there_are_several():
    sections = [Section(f"Part {n}", "", f"part-{n}") for n in range(3)]
    html = render_page("t", "", sections)
    for section in sections:
        assert f'href="#{section.anchor}"' in html
        assert f'id="{section.anchor}"' in html
    assert "<nav" not in render_page("t", "", sections[:2])


def test_notice_kinds_are_checked():
    with pytest.raises(ValueError, match="loud"):
        notice("text", "loud")
