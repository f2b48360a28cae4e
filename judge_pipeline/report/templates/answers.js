"use strict";
// The table of answers: filter, sort, move by keyboard. Rows are made a hundred at a time, as the reader comes near.
const report = (() => {
  const island = (name) => JSON.parse(document.getElementById("data-" + name)?.textContent ?? "null");
  const index = island("index");
  const STEP = 100;
  const [PROMPT, ID, TEXT, SCORES, REWARD, STATE, REASONS] = [0, 1, 2, 3, 4, 5, 6];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const points = (value) => (value === null ? "–" : String(Math.round(value * 100) / 100));
  const plural = (count, word) => count.toLocaleString("en") + " " + word + (count === 1 ? "" : "s");

  const columns = [
    { name: "#", right: true, key: (row, at) => at },
    { name: "question", key: (row) => index.prompts[row[PROMPT]][1] ?? index.prompts[row[PROMPT]][0] },
    { name: "answer", key: (row) => row[TEXT] ?? row[ID] },
    ...index.dimensions.map((name, at) => ({ name, score: true, right: true, key: (row) => row[SCORES][at] })),
    { name: "reward", score: true, right: true, key: (row) => row[REWARD] },
    { name: "state", key: (row) => row[STATE] },
  ];
  const table = document.getElementById("answers-table");
  const body = table.tBodies[0];
  const filter = document.getElementById("filter");
  const state = document.getElementById("state");
  let view = index.rows.map((_, at) => at);
  let sorted = { column: 0, descending: false };
  let current = 0;

  const pageOf = (at) => {
    if (!index.pages) return "";
    const number = index.first + at;
    return (index.pages.findLast(([first]) => first <= number) ?? index.pages[0])[1];
  };
  const linkTo = (at) => pageOf(at) + "#answer-" + (index.first + at);

  const scoreCell = (value) => {
    const cell = make("td", { className: value === null ? "right score none" : "right score", textContent: points(value) });
    if (value !== null) cell.style.setProperty("--share", Math.max(0, Math.min(1, value / 10)));
    return cell;
  };
  const rowOf = (at, position) => {
    const row = index.rows[at];
    const [promptId, question] = index.prompts[row[PROMPT]];
    const link = make("a", { href: linkTo(at), tabIndex: -1, textContent: row[TEXT] ?? "text not at hand" });
    const reasons = row[REASONS].length ? make("small", { textContent: row[REASONS].join(", ") }) : null;
    const line = make("tr", { tabIndex: position === current ? 0 : -1 },
      make("td", { className: "right", textContent: (index.first + at).toLocaleString("en") }),
      make("td", { className: "words" }, make("span", { textContent: question ?? "–" }), make("small", { textContent: promptId })),
      make("td", { className: "words" }, link, make("small", { textContent: row[ID] })),
      ...[...row[SCORES], row[REWARD]].map(scoreCell),
      make("td", { className: "state" }, make("span", { className: "pill " + row[STATE].replace(" ", "-"), textContent: row[STATE] }), reasons),
    );
    line.dataset.at = at;
    line.setAttribute("aria-rowindex", position + 2);
    return line;
  };
  const extend = (upTo = body.rows.length + STEP) => {
    const from = body.rows.length;
    body.append(...view.slice(from, upTo).map((at, position) => rowOf(at, from + position)));
    const left = view.length - body.rows.length;
    document.getElementById("more").textContent = left > 0 ? plural(left, "more answer") + " as you scroll" : "";
  };
  const mark = (position, focus) => {
    if (!view.length) return;
    body.rows[current]?.setAttribute("tabindex", "-1");
    current = Math.max(0, Math.min(view.length - 1, position));
    if (current >= body.rows.length) extend(current + STEP);
    body.rows[current].setAttribute("tabindex", "0");
    if (focus) {
      body.rows[current].focus({ preventScroll: true });
      body.rows[current].scrollIntoView({ block: "nearest" });
    }
  };

  const searchable = index.rows.map((row) => [...index.prompts[row[PROMPT]], row[ID], row[TEXT]].join("\n").toLowerCase());
  const accepts = (row) => !state.value || row[STATE] === state.value || row[REASONS].includes(state.value);
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
  const refresh = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    view = index.rows.map((_, at) => at).filter((at) => accepts(index.rows[at]) && words.every((word) => searchable[at].includes(word)));
    const key = columns[sorted.column].key;
    const keys = new Map(view.map((at) => [at, key(index.rows[at], at)]));
    view.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return (sorted.descending ? compare(y, x) : compare(x, y)) || a - b;
    });
    current = 0;
    body.replaceChildren();
    extend();
    table.setAttribute("aria-rowcount", view.length + 1);
    document.getElementById("count").textContent = view.length === index.rows.length
      ? plural(view.length, "answer") : view.length.toLocaleString("en") + " of " + plural(index.rows.length, "answer");
  };
  const sortBy = (column) => {
    // Scores begin with the lowest: what went wrong is what one looks for.
    sorted = { column, descending: sorted.column === column ? !sorted.descending : false };
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      if (at === column) head.setAttribute("aria-sort", sorted.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    refresh();
  };

  table.tHead.rows[0].append(...columns.map((column, at) => {
    const button = make("button", { type: "button", textContent: column.name });
    button.addEventListener("click", () => sortBy(at));
    return make("th", { scope: "col", className: column.right ? "right" : "" }, button);
  }));
  const tally = (values) => [...values.reduce((map, value) => map.set(value, (map.get(value) ?? 0) + 1), new Map())];
  const option = ([value, count]) => make("option", { value, textContent: value.replaceAll("_", " ") + " (" + count.toLocaleString("en") + ")" });
  const group = (label, values) => (values.length ? make("optgroup", { label }, ...values.map(option)) : null);
  state.append(...[make("option", { value: "", textContent: "All states" }),
    group("State", tally(index.rows.map((row) => row[STATE]))),
    group("Failure", tally(index.rows.flatMap((row) => row[REASONS])))].filter(Boolean));

  let pending = 0;
  filter.addEventListener("input", () => { clearTimeout(pending); pending = setTimeout(refresh, 80); });
  state.addEventListener("change", refresh);
  const open = (at) => { location.href = linkTo(at); };
  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr");
    if (!line || event.target.closest("a") || getSelection().toString()) return;
    mark([...body.rows].indexOf(line), true);
    open(Number(line.dataset.at));
  });
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, textarea");
    if (typing) {
      if (event.key === "Escape" && typing === filter) { filter.value = ""; refresh(); }
      if (typing === filter && (event.key === "Enter" || event.key === "ArrowDown" || event.key === "Escape")) { event.preventDefault(); mark(0, true); }
      return;
    }
    const inside = event.target.closest("#answers-table tbody tr");
    const moves = { j: 1, k: -1, ...(inside ? { ArrowDown: 1, ArrowUp: -1, PageDown: 20, PageUp: -20 } : {}) };
    if (event.key in moves) { event.preventDefault(); mark(inside ? current + moves[event.key] : current, true); }
    else if (event.key === "/") { event.preventDefault(); filter.focus(); filter.select(); }
    else if (inside && event.key === "Home") { event.preventDefault(); mark(0, true); }
    else if (inside && event.key === "End") { event.preventDefault(); mark(view.length - 1, true); }
    else if (inside && event.key === "Enter") { event.preventDefault(); open(view[current]); }
  });
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && body.rows.length < view.length) extend();
  }, { rootMargin: "600px" }).observe(document.getElementById("more"));
  refresh();

  return {
    index, details: island("details"), make, points, mark, linkTo,
    /** The answers before and after one, in the order the table shows now. */
    neighbours(at) {
      const position = view.indexOf(at);
      return { position, before: view[position - 1] ?? null, after: position < 0 ? null : view[position + 1] ?? null };
    },
  };
})();
