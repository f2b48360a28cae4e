"use strict";
// One answer with all that the judge left: statements and key points on the left, the document with evidence on the right.
// Everything shown here is hostile text: it is only ever set as text, never as HTML.
(() => {
  const { index, details, make, points, mark, neighbours, linkTo } = report;
  if (!details) return;
  const dialog = document.getElementById("viewer");
  const pane = document.getElementById("viewer-answer");
  const paper = document.getElementById("viewer-document");
  const VERDICTS = { full: ["●", "supported"], partial: ["◐", "partly supported"], none: ["○", "not supported"] };
  const list = (value) => (Array.isArray(value) ? value.filter((item) => item !== null && typeof item === "object") : []);
  const isOffset = (value) => Number.isInteger(value) && value >= 0;
  const spansOf = (item) => list(item.spans).filter((span) => isOffset(span.start) && isOffset(span.end) && span.end > span.start);
  let shown = null;
  let pieces = [];

  // The document in pieces that begin and end where any span does; each knows which items it is evidence of.
  const layDocument = (text, items) => {
    const cuts = new Set([0, text.length]);
    for (const item of items) for (const span of item.spans) { cuts.add(Math.min(span.start, text.length)); cuts.add(Math.min(span.end, text.length)); }
    const edges = [...cuts].sort((a, b) => a - b);
    pieces = edges.slice(0, -1).map((start, at) => {
      const of = items.filter((item) => item.spans.some((span) => span.start <= start && span.end > start));
      const element = make(of.some((item) => item.fine) ? "mark" : "span", { textContent: text.slice(start, edges[at + 1]) });
      return { start, element, of: new Set(of.map((item) => item.key)) };
    });
    const title = make("h3", { textContent: "Document" }, make("small", { textContent: text.length.toLocaleString("en") + " characters" }));
    const words = make("div", { className: "document" }, ...pieces.map((piece) => piece.element));
    paper.replaceChildren(title, words);
    paper.scrollTop = 0;
  };
  const show = (item) => {
    let first = null;
    for (const { start, element, of } of pieces) {
      const on = item !== null && of.has(item.key);
      const rank = on && item.fine ? item.spans.findIndex((span) => span.start === start) + 1 : 0;
      element.className = on ? "on " + item.kind : "";
      if (rank) element.dataset.rank = rank; // neighbouring passages run together; their numbers tell them apart
      else delete element.dataset.rank;
      if (on && (first === null || rank === 1)) first = element;
    }
    if (first) bring(first);
  };
  const bring = (element) => {
    const top = element.getBoundingClientRect().top - paper.getBoundingClientRect().top + paper.scrollTop;
    paper.scrollTo({ top: Math.max(0, top - paper.clientHeight / 4) });
  };
  const select = (item, pressed) => {
    for (const button of pane.querySelectorAll(".item")) {
      button.setAttribute("aria-expanded", String(button === pressed));
      button.nextElementSibling.hidden = button !== pressed;
    }
    show(item);
    pressed?.parentElement.scrollIntoView({ block: "nearest" });
  };
  const itemView = (item, body) => {
    const button = make("button", { type: "button", className: "item " + item.kind },
      make("span", { className: "glyph", textContent: item.glyph, ariaHidden: "true" }),
      make("span", { className: "said", textContent: item.text }),
      make("span", { className: "verdict", textContent: item.verdict }));
    const more = make("div", { className: "more", hidden: true }, ...body);
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => (button.getAttribute("aria-expanded") === "true" ? select(null, null) : select(item, button)));
    return make("li", {}, button, more);
  };
  const paragraph = (text, className = "") => make("p", { className, textContent: text });

  const statementView = (statement, key, items) => {
    const [glyph, verdict] = VERDICTS[statement.verdict] ?? ["?", statement.failure ? "no verdict: " + statement.failure : "no verdict"];
    const spans = spansOf(statement);
    const item = { key, fine: true, glyph, verdict, text: String(statement.text ?? ""), spans, kind: VERDICTS[statement.verdict] ? statement.verdict : "unknown" };
    items.push(item);
    const jumps = spans.map((span, at) => {
      const closeness = Number.isFinite(span.score) ? ` (${span.score.toFixed(2)})` : "";
      const jump = make("button", { type: "button", className: "jump", textContent: `${at + 1}${closeness}` });
      jump.addEventListener("click", () => { const piece = pieces.find(({ start }) => start === span.start); if (piece) bring(piece.element); });
      return jump;
    });
    const found = jumps.length ? make("p", { className: "caption" }, "Evidence, closest first: ", ...jumps) : paragraph("No evidence is recorded.", "caption");
    return itemView(item, [statement.analysis ? paragraph(String(statement.analysis)) : null, found]);
  };
  const pointView = (point, at, coverage, key, items) => {
    const covered = point.covered ?? coverage.find((one) => one.key_point === at)?.covered ?? null;
    const [kind, glyph, verdict] = covered === true ? ["full", "✓", "covered"] : covered === false ? ["none", "✗", "missed"] : ["unknown", "·", ""];
    const spans = isOffset(point.start) && isOffset(point.end) && point.end > point.start ? [point] : [];
    const item = { key, fine: false, kind: kind + " part", glyph, verdict, text: String(point.text ?? ""), spans };
    items.push(item);
    return itemView(item, [paragraph(spans.length ? "Found in the marked part of the document." : "Where it was found is not recorded.", "caption")]);
  };

  const KNOWN = new Set(["analysis", "votes", "spread", "statements", "rule", "key_points", "coverage"]);
  const dimensionView = (name, score, evidence, failures, items) => {
    const heading = make("h3", {}, make("span", { textContent: name }), make("span", { className: "points", textContent: score === null ? "no score" : points(score) }));
    const parts = failures.map(([, reason, detail]) => make("p", { className: "notice warning" }, make("strong", { textContent: reason.replaceAll("_", " ") }), detail ? " · " + detail : ""));
    if (evidence.analysis) parts.push(paragraph(String(evidence.analysis), "analysis"));
    if (typeof evidence.rule === "string") parts.push(paragraph("Scored by rule: " + evidence.rule.replaceAll("_", " "), "caption"));
    const statements = list(evidence.statements);
    if (statements.length) parts.push(make("ul", { className: "items" }, ...statements.map((one, at) => statementView(one, name + "/s" + at, items))));
    const keyPoints = list(evidence.key_points);
    if (keyPoints.length) parts.push(make("ul", { className: "items" }, ...keyPoints.map((one, at) => pointView(one, at, list(evidence.coverage), name + "/k" + at, items))));
    if (Array.isArray(evidence.votes) && evidence.votes.length > 1) {
      const spread = Number.isFinite(evidence.spread) ? " · spread " + points(evidence.spread) : "";
      parts.push(paragraph("Votes " + evidence.votes.map((vote) => (Number.isFinite(vote) ? points(vote) : "–")).join(", ") + spread, "caption"));
    }
    const rest = Object.fromEntries(Object.entries(evidence).filter(([key]) => !KNOWN.has(key)));
    if (Object.keys(rest).length) parts.push(make("details", {}, make("summary", { textContent: "More from the judge" }), make("pre", { textContent: JSON.stringify(rest, null, 2) })));
    if (!parts.length) parts.push(paragraph("The judge left no analysis.", "caption"));
    return make("section", { className: "dimension" }, heading, ...parts);
  };

  const fill = (at) => {
    const [prompt, id, , scores, reward, state] = index.rows[at];
    const detail = details.answers[at];
    const source = details.documents[prompt];
    const items = [];
    const record = detail.evidence !== null && typeof detail.evidence === "object" ? detail.evidence : {};
    const names = [...index.dimensions, ...Object.keys(record).filter((name) => !index.dimensions.includes(name))];
    const dimensions = names.map((name) => {
      const evidence = record[name] !== null && typeof record[name] === "object" ? record[name] : {};
      const score = scores[index.dimensions.indexOf(name)] ?? null;
      return dimensionView(name, score, evidence, detail.failures.filter(([dimension]) => dimension === name), items);
    });
    document.getElementById("viewer-title").textContent = `Answer ${(index.first + at).toLocaleString("en")}`;
    document.getElementById("viewer-place").textContent = [id, index.prompts[prompt][0], detail.source, state].filter(Boolean).join(" · ");
    const strip = make("dl", { className: "strip" }, ...[...index.dimensions.map((name, k) => [name, scores[k]]), ["reward", reward]].map(([name, value]) => {
      const box = make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: points(value) }));
      if (value !== null) box.style.setProperty("--share", value * 10 + "%");
      return box;
    }));
    const block = (title, text, absent) => make("section", {}, make("h3", { textContent: title }), text === null ? paragraph(absent, "caption") : make("div", { className: "quoted", textContent: text }));
    pane.replaceChildren(block("Question", source.query, "The question is not at hand."), block("Answer", detail.text, "The answer's text is not at hand."), strip, ...dimensions);
    if (source.context === null) paper.replaceChildren(make("h3", { textContent: "Document" }), paragraph("The document is not at hand.", "caption"));
    else layDocument(source.context, items);
    if (source.context === null) pieces = [];
    pane.scrollTop = 0;
    const around = step(at);
    document.getElementById("viewer-before").disabled = around.before === null;
    document.getElementById("viewer-after").disabled = around.after === null;
  };

  // Where arrow keys lead: along the table as it is sorted and filtered, and at a page's ends on to the page beside it.
  const step = (at) => {
    const near = neighbours(at);
    const last = index.first + index.rows.length - 1;
    return {
      before: near.before !== null ? linkTo(near.before) : index.before && near.position === 0 ? index.before + "#answer-" + (index.first - 1) : null,
      after: near.after !== null ? linkTo(near.after) : index.after && near.position >= 0 ? index.after + "#answer-" + (last + 1) : null,
    };
  };
  const go = (side) => {
    const target = shown === null ? null : step(shown)[side];
    if (!target) return;
    location.href = target;
    if (target.startsWith("#")) route(); // at once: the next key may come before the browser's own event
  };
  const fromHash = () => {
    const match = /^#answer-(\d+)$/.exec(location.hash);
    const at = match ? Number(match[1]) - index.first : -1;
    return at >= 0 && at < index.rows.length ? at : null;
  };
  const route = () => {
    const at = fromHash();
    if (at !== null && at === shown && dialog.open) return;
    shown = at;
    if (shown === null) { if (dialog.open) dialog.close(); return; }
    fill(shown);
    if (!dialog.open) dialog.showModal();
    document.documentElement.classList.add("reading");
    pane.focus();
  };
  dialog.addEventListener("close", () => {
    document.documentElement.classList.remove("reading");
    if (fromHash() !== null) history.replaceState(null, "", "#answers");
    const position = shown === null ? -1 : neighbours(shown).position;
    shown = null;
    if (position >= 0) mark(position, true);
  });
  document.getElementById("viewer-close").addEventListener("click", () => dialog.close());
  document.getElementById("viewer-before").addEventListener("click", () => go("before"));
  document.getElementById("viewer-after").addEventListener("click", () => go("after"));
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const reading = event.target === paper;
    const moves = { j: 1, k: -1, ...(reading ? {} : { ArrowDown: 1, ArrowUp: -1 }) };
    if (event.key in moves) {
      const all = [...pane.querySelectorAll(".item")];
      const at = all.indexOf(document.activeElement);
      const next = at < 0 ? (moves[event.key] > 0 ? 0 : all.length - 1) : at + moves[event.key];
      if (!all[next]) return;
      event.preventDefault();
      all[next].focus();
    } else if (event.key === "ArrowRight") { event.preventDefault(); go("after"); }
    else if (event.key === "ArrowLeft") { event.preventDefault(); go("before"); }
  });
  addEventListener("hashchange", route);
  route();
})();
