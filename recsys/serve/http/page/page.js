"use strict";
// The page of recsys serve: a history, what is recommended for it, and why. Everything it shows of items is text.

const $ = (id) => document.getElementById(id);
const state = { history: [], before: [], denied: [], bundles: [], ranks: new Map(), asked: 0 };
const OPERATORS = { has: "has the word", has_not: "has not the word", is: "is", is_not: "is not", min: "is at least", max: "is at most" };
const EXACT = "\u0000exact";

function made(tag, text, props = {}) {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = text;
  const { data, ...others } = props;
  for (const [name, value] of Object.entries(others)) name.includes("-") || name === "role" ? node.setAttribute(name, value) : (node[name] = value);
  return node;
}
const named = (item) => item.title || String(item.id);
const same = (one, other) => String(one.id) === String(other.id);
const pause = (seconds) => new Promise((go) => setTimeout(go, 1000 * seconds));

function tell(text) { $("message").textContent = text; $("message").hidden = !text; }

// ---- asking the server

async function ask(path, body, tries = 30) {
  const headers = {};
  const key = sessionStorage.getItem("recsys-key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.status === 503 && tries > 0) {
    tell("The server is busy or still loading; asking again …");
    await pause(Math.min(Number(answer.headers.get("Retry-After")) || 1, 5));
    return ask(path, body, tries - 1);
  }
  if (answer.status === 401) $("keyform").hidden = false;
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.detail || `The server answered ${answer.status}.`);
  return found;
}

async function attempt(work) {
  try { await work(); tell(""); } catch (error) { tell(error.message); }
}

// ---- the history

function change(history) {
  state.before.push(state.history);
  state.history = history;
  keep();
  show();
}

function show() {
  $("history").replaceChildren(...state.history.map((item, at) => {
    const remove = made("button", "×", { type: "button", "aria-label": `remove ${named(item)}` });
    remove.onclick = () => {
      change(state.history.filter((_, other) => other !== at));
      const left = $("history").querySelectorAll("button");
      (left[Math.min(at, left.length - 1)] || $("search")).focus();
    };
    const line = made("div");
    line.append(made("span", named(item), { className: "title" }), remove);
    const entry = made("li");
    entry.append(line);
    return entry;
  }));
  $("empty").hidden = state.history.length > 0;
  $("clear").disabled = !state.history.length;
  $("undo").disabled = !state.before.length;
  const label = made("span", "not shown:", { className: "quiet" });
  $("hidden").replaceChildren(label, ...state.denied.map((item) => {
    const back = made("button", `${named(item)} ×`, { type: "button", "aria-label": `show ${named(item)} again` });
    back.onclick = () => { state.denied = state.denied.filter((one) => !same(one, item)); show(); };
    return back;
  }));
  $("hidden").hidden = !state.denied.length;
  attempt(recommend);
}

function keep() {
  const kept = new URLSearchParams();
  for (const item of state.history) kept.append("h", item.id);
  if ($("bundle").value && $("bundle").selectedIndex > 0) kept.set("bundle", $("bundle").value);
  history.replaceState(null, "", `#${kept}`);
}

async function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  if (state.bundles.some((one) => one.name === kept.get("bundle"))) $("bundle").value = kept.get("bundle");
  const found = await Promise.all(kept.getAll("h").map(async (id) => {
    const { items } = await ask(`items?count=1&q=${encodeURIComponent(id)}`);
    return items.length && String(items[0].id) === id ? items[0] : { id, title: null };
  }));
  state.history = found.map(({ id, title }) => ({ id, title }));
}

// ---- search

const search = { items: [], at: -1, asked: 0, timer: 0 }; // timer: of what is typed and not asked yet

function close() {
  $("found").hidden = true;
  $("search").setAttribute("aria-expanded", "false");
  $("search").removeAttribute("aria-activedescendant");
  search.at = -1;
}

function point(at) {
  search.at = at;
  [...$("found").children].forEach((one, other) => one.setAttribute("aria-selected", String(other === at)));
  if (at < 0) return;
  $("search").setAttribute("aria-activedescendant", `found-${at}`);
  $("found").children[at].scrollIntoView({ block: "nearest" });
}

async function look() {
  clearTimeout(search.timer);
  search.timer = 0;
  const number = ++search.asked;
  const query = new URLSearchParams({ q: $("search").value, count: 12, bundle: $("bundle").value });
  const { items } = await ask(`items?${query}`);
  if (number !== search.asked || document.activeElement !== $("search")) return; // a later one is on its way
  search.items = items;
  $("found").replaceChildren(...items.map((item, at) => {
    const line = made("li", named(item), { id: `found-${at}`, role: "option", "aria-selected": "false" });
    line.onmousedown = (event) => { event.preventDefault(); take(at); };
    return line;
  }));
  $("found").hidden = !items.length;
  $("search").setAttribute("aria-expanded", String(items.length > 0));
  $("status").textContent = items.length ? `${items.length} items found` : "no item found";
  point(-1);
}

function take(at) {
  const { id, title } = search.items[at];
  $("search").value = "";
  clearTimeout(search.timer);
  search.timer = 0;
  search.asked++;
  close();
  change([...state.history, { id, title }]);
}

$("search").oninput = () => { clearTimeout(search.timer); search.timer = setTimeout(() => attempt(look), 120); };
$("search").onfocus = () => attempt(look);
$("search").onblur = close;
$("search").onkeydown = (event) => {
  const open = !$("found").hidden, last = search.items.length - 1;
  if (event.key === "ArrowDown") { event.preventDefault(); open && !search.timer ? point(Math.min(search.at + 1, last)) : attempt(async () => { await look(); if (search.items.length) point(0); }); }
  else if (event.key === "ArrowUp") { event.preventDefault(); point(Math.max(search.at - 1, open ? 0 : -1)); }
  else if (event.key === "Enter") {
    event.preventDefault();
    if (search.timer) attempt(async () => { await look(); if (search.items.length) take(0); });
    else if (open) take(Math.max(search.at, 0));
  }
  else if (event.key === "Escape") close();
};

// ---- recommendations

function body(bundle) {
  const asked = { histories: [state.history.map((item) => item.id)], k: Number($("k").value), bundle };
  if ($("repeat").checked) asked.exclude = "none";
  if (state.denied.length) asked.deny = state.denied.map((item) => item.id);
  const filters = conditions();
  if (Object.keys(filters).length) asked.filters = filters;
  return asked;
}

async function recommend() {
  const number = ++state.asked, bundle = $("bundle").value, beside = $("beside").value;
  const asked = [body(bundle)];
  if (beside === EXACT) asked.push({ ...body(bundle), search: "exact" });
  else if (beside) asked.push(body(beside));
  const found = await Promise.all(asked.map((one) => ask("recommend", one)));
  if (number !== state.asked) return; // the history has changed since
  const heads = found.length < 2 ? [""] : [bundle, beside === EXACT ? "compared with every item" : beside];
  $("lists").replaceChildren(...found.map((one, at) => list(one, heads[at], asked[at].bundle)));
  const [first, second] = found.map((one) => one.results[0].items);
  $("agreement").hidden = !second;
  if (second) {
    const shared = first.filter((item) => second.some((one) => same(one, item))).length;
    $("agreement").textContent = `${shared} of ${Math.max(first.length, second.length)} items are in both lists.`;
  }
  $("status").textContent = `${first.length} items recommended`;
}

function list(answer, head, bundle) {
  const { items, source, unknown } = answer.results[0];
  const before = state.ranks.get(head), now = new Map(items.map((item, at) => [String(item.id), at]));
  state.ranks.set(head, now);
  const whole = made("div");
  if (head) whole.append(made("h3", head));
  const said = [];
  if (source !== "model") said.push(`By the fallback “${source}”, as no item of the history is known.`);
  if (unknown.length) said.push(`Not known to the model: ${unknown.join(", ")}.`);
  if (!items.length) said.push("Nothing is left to recommend.");
  if (said.length) whole.append(made("p", said.join(" "), { className: "quiet" }));
  const lines = made("ol");
  lines.append(...items.map((item, at) => entry(item, at, before, bundle, source)));
  whole.append(lines);
  return whole;
}

function entry(item, at, before, bundle, source) {
  const line = made("li"), row = made("div", null, { className: "item" });
  row.append(made("span", at + 1, { className: "rank" }), made("span", named(item), { className: "title" }));
  row.append(made("span", item.score === null ? "" : item.score.toFixed(2), { className: "score" }));
  const tools = made("div", null, { className: "tools" }), moved = made("span", "", { className: "moved" });
  if (before) {
    const was = before.get(String(item.id));
    moved.textContent = was === undefined ? "new" : was === at ? "" : was > at ? `▲ ${was - at}` : `▼ ${at - was}`;
    moved.setAttribute("aria-label", was === undefined ? "new in the list" : was === at ? "" : was > at ? `up ${was - at}` : `down ${at - was}`);
  }
  const button = (text, act) => {
    const one = made("button", text, { type: "button", "aria-label": `${text}: ${named(item)}` });
    one.onclick = act;
    tools.append(one);
    return one;
  };
  button("add", () => change([...state.history, { id: item.id, title: item.title }]));
  const opens = (text, fill) => {
    const one = button(text, () => {
      const open = line.querySelector(".more"), mine = open && open.dataset.of === text;
      if (open) open.remove();
      tools.querySelectorAll("[aria-expanded]").forEach((other) => other.setAttribute("aria-expanded", "false"));
      if (mine) return;
      one.setAttribute("aria-expanded", "true");
      attempt(async () => {
        const more = made("div", null, { className: "more" });
        more.dataset.of = text;
        more.append(...(await fill()));
        if (line.isConnected) line.append(more);
      });
    });
    one.setAttribute("aria-expanded", "false");
  };
  if (source === "model") opens("why", () => why(item, bundle));
  if (state.bundles.find((one) => one.name === bundle).similar) opens("similar", () => similar(item, bundle));
  button("not this", () => { state.denied.push(item); show(); $("lists-title").scrollIntoView({ block: "nearest" }); });
  tools.append(moved);
  row.append(tools);
  line.append(row);
  return line;
}

async function why(item, bundle) {
  const asked = { history: state.history.map((one) => one.id), items: [item.id], bundle };
  const { items: [{ rank, influence }], scale } = await ask("why", asked);
  const most = Math.max(...influence.map((one) => Math.abs(one.change)), 1e-12);
  const place = (number) => (number ? `place ${number.toLocaleString("en")}` : "no place in the list");
  const lines = influence.slice().sort((one, other) => other.change - one.change).map((one) => {
    const bar = made("div", null, { className: "bar" }), track = made("div", null, { className: "track", "aria-hidden": "true" }), fill = made("i");
    const share = 50 * Math.abs(one.change) / most;
    fill.style.width = `${share}%`;
    fill.style.left = one.change < 0 ? `${50 - share}%` : "50%";
    fill.className = one.change < 0 ? "against" : "";
    track.append(fill);
    const effect = one.change < 0 ? "speaks against it" : "speaks for it";
    bar.append(made("span", named(one), { className: "title" }), track,
      made("span", `${effect}: without it ${one.rank_without === rank ? "still " : ""}${place(one.rank_without)}${one.rank_without === rank ? "" : ` instead of ${rank.toLocaleString("en")}`}`, { className: "quiet" }));
    return bar;
  });
  const foot = `Each item is left out in turn; bars are differences of the ${scale}.`;
  return [...lines, made("p", foot, { className: "quiet" })];
}

async function similar(item, bundle) {
  const { results: [{ items }] } = await ask("similar", { items: [item.id], k: 5, bundle });
  const lines = made("ul");
  lines.append(...items.map((one) => {
    const line = made("li"), add = made("button", "add", { type: "button", "aria-label": `add: ${named(one)}` });
    add.onclick = () => change([...state.history, { id: one.id, title: one.title }]);
    line.append(`${named(one)} `, made("span", one.score.toFixed(2), { className: "score" }), " ", add);
    return line;
  }));
  return [lines];
}

// ---- questions to somebody without a history

const asking = { answers: [], item: null };

async function question() {
  const body = { answers: asking.answers, k: 1, count: 0, bundle: $("bundle").value };
  const { questions: [next], enough } = await ask("elicit", body);
  if (!next || enough) return finish("There is nothing more to ask about.");
  asking.item = next;
  $("question").textContent = `Do you like ${named(next)}?`;
  $("begin").hidden = true;
  $("asking").hidden = false;
}

function say(word) {
  const { item } = asking;
  if (!item) return;
  asking.item = null; // until the next question is there
  asking.answers.push({ id: item.id, answer: word });
  if (word === "like") change([...state.history, { id: item.id, title: item.title }]);
  if (word === "dislike") { state.denied.push({ id: item.id, title: item.title }); show(); }
  attempt(question);
}

function finish(text) {
  asking.answers = [];
  asking.item = null;
  $("asking").hidden = true;
  $("begin").hidden = false;
  $("begin").focus();
  $("status").textContent = text;
}

for (const word of ["like", "dislike", "unknown"]) $(word).onclick = () => say(word);
$("stop").onclick = () => finish("No more questions.");
$("begin").onclick = () => attempt(async () => {
  asking.answers = state.history.map((item) => ({ id: item.id, answer: "like" }));
  await question();
  if (asking.item) $("like").focus();
});

// ---- choices

function conditions() {
  const found = {};
  for (const row of $("conditions").children) {
    const [column, operator] = [...row.querySelectorAll("select")].map((one) => one.value);
    const text = row.querySelector("input").value.trim();
    if (!text) continue;
    const number = operator === "min" || operator === "max";
    if (number && !Number.isFinite(Number(text))) continue;
    const words = text.split(",").map((one) => one.trim()).filter(Boolean);
    found[column] = { ...found[column], [operator]: number ? Number(text) : words };
  }
  return found;
}

function condition() {
  const row = made("div", null, { className: "condition" }), facts = current();
  const column = made("select", null, { "aria-label": "column" }), operator = made("select", null, { "aria-label": "condition" });
  column.append(...facts.columns.map((name) => made("option", name)));
  operator.append(...Object.entries(OPERATORS).map(([value, text]) => made("option", text, { value })));
  const value = made("input", null, { type: "text", "aria-label": "value; commas between several" });
  const remove = made("button", "×", { type: "button", "aria-label": "remove the condition" });
  remove.onclick = () => { row.remove(); attempt(recommend); };
  let timer = 0;
  value.oninput = () => { clearTimeout(timer); timer = setTimeout(() => attempt(recommend), 250); };
  column.onchange = operator.onchange = () => attempt(recommend);
  row.append(column, operator, remove, value);
  $("conditions").append(row);
  value.focus();
}

const current = () => state.bundles.find((one) => one.name === $("bundle").value) || state.bundles[0];

function choose() {
  const facts = current(), index = facts.index ? `${facts.index.kind} index` : "no index";
  $("facts").textContent = `${facts.model} · ${facts.items.toLocaleString("en")} items · ${index} · ${facts.hash}`;
  const others = state.bundles.filter((one) => one.name !== facts.name).map((one) => made("option", one.name, { value: one.name }));
  if (facts.index && facts.index.kind === "hnsw") others.unshift(made("option", "the same, compared with every item", { value: EXACT }));
  const before = $("beside").value;
  $("beside").replaceChildren(made("option", "nothing", { value: "" }), ...others);
  if (others.some((one) => one.value === before)) $("beside").value = before;
  $("beside").parentElement.hidden = !others.length;
  $("bundle").parentElement.hidden = state.bundles.length < 2;
  $("filters").hidden = !facts.columns.length;
  $("conditions").replaceChildren();
  state.ranks.clear();
}

async function begin() {
  state.bundles = (await ask("bundles")).bundles;
  $("bundle").replaceChildren(...state.bundles.map((one) => made("option", one.name, { value: one.name })));
  await recall();
  choose();
  show();
}

$("bundle").onchange = () => { choose(); keep(); show(); };
$("beside").onchange = $("k").onchange = $("repeat").onchange = () => { state.ranks.clear(); attempt(recommend); };
$("more").onclick = condition;
$("clear").onclick = () => { change([]); $("search").focus(); };
$("undo").onclick = () => { state.history = state.before.pop(); keep(); show(); };
$("keyform").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("recsys-key", $("key").value);
  $("keyform").hidden = true;
  attempt(begin);
};
window.onhashchange = () => attempt(async () => { await recall(); show(); });
attempt(begin);
