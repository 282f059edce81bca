// Additions to the pages: rows that change in place, the number of new jobs, ages, keys, copying.  Without script, the pages work, too.
import { duration, texts } from "./dramatiq-status.js";

const $ = (selector, from = document) => from.querySelector(selector);
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const announce = (text) => { $("#polite").textContent = text; };
const make = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  node.append(...children);
  return node;
};
const icon = (name) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), use = document.createElementNS(svg.namespaceURI, "use");
  for (const [key, value] of [["class", "i"], ["aria-hidden", "true"], ["focusable", "false"]]) svg.setAttribute(key, value);
  use.setAttribute("href", "#i-" + name);
  svg.append(use);
  return svg;
};
const number = (n) => n.toLocaleString("en", { maximumFractionDigits: n < 10 ? 1 : 0 });
const pill = ({ scheduled }, state) => { const glyph = scheduled ? "scheduled" : state; return make("span", { class: "pill s-" + state }, icon(glyph), texts[glyph]); };
const part = (element, name) => $(`[part=${name}]`, element.shadowRoot).textContent;

// ---- Rows change in place
function change(row, { snapshot, state }) {
  const cell = (name) => $(".c-" + name, row);
  const set = (name, text) => { const node = cell(name); if (node && node.textContent !== text) node.textContent = text; };
  if (row.dataset.s !== state && state in texts) {
    cell("state").replaceChildren(pill(snapshot, state));
    row.dataset.s = state;
  }
  // The row stays, even if the job no longer matches the filter.
  const filter = new URLSearchParams(location.search).get("state");
  row.classList.toggle("gone", !!filter && ![snapshot.status, state, snapshot.scheduled && "scheduled"].includes(filter));
  const working = state === "working", { attempts, duration: seconds } = snapshot;
  set("rate", working && snapshot.rate > 0 ? number(snapshot.rate) + "/s" : "");
  set("try", attempts ? String(attempts) : "");
  cell("try").classList.toggle("zero", !(attempts > 1));
  // The server's clock may differ from the browser's, so the beginning is computed from the duration.
  row.began = seconds == null ? null : Date.now() - seconds * 1000;
  took(row, seconds, state);
  if (snapshot.finished || snapshot.cancel_requested_at) $(".sure", row)?.remove();
  if (snapshot.finished) finish(row, snapshot);
  else left(row, snapshot, state);
  const when = $("time", cell("when"));
  if (when && snapshot.updated_at) when.dateTime = snapshot.updated_at;
  age();
}

function took(row, seconds, state) {
  const cell = $(".c-took", row);
  const text = seconds == null || state === "queued" || state === "retrying" ? "" : duration(seconds, "en", texts, true);
  if (cell && cell.textContent !== text) cell.textContent = text;
}

function left(row, snapshot, state) {
  const cell = $(".c-left, .num:last-child", row), element = $("dramatiq-status", row), kid = row.localName === "li";
  if (!cell || !element) return;
  const scheduled = state === "queued" && Date.parse(snapshot.scheduled_at) > Date.now();
  row.toggleAttribute("data-scheduled", scheduled);
  let text = part(element, "next");
  if (state === "working" ? snapshot.percent == null : state === "stalled" || (state === "queued" && !scheduled)) text = "";
  if (state === "retrying" && !kid) text = text.replace(/^[^,]*, ?/, "");
  cell.classList.toggle("blank", !text);
  if (cell.textContent !== text) cell.replaceChildren(...(!text ? [] : state === "working" ? [text] : [make("span", { class: "next" }, text)]));
}

function finish(row, snapshot) {
  const bar = $(".c-bar", row), element = $("dramatiq-status", bar), failed = snapshot.status === "failed" && !snapshot.cancelled, { exception } = snapshot;
  if (failed) {
    for (const name of ["rate", "left"]) $(".c-" + name, row)?.remove();
    bar.colSpan = 3;
    bar.setAttribute("aria-colspan", "3");
    const why = exception ? [make("b", {}, exception.type + (exception.message ? ":" : "")), exception.message ? " " + exception.message : ""] : [];
    bar.replaceChildren(make("span", { class: "why" }, ...why));
  } else if (element) {
    const text = snapshot.skipped ? "skipped" : part(element, "text");
    bar.replaceChildren(...(text ? [make("span", { class: "so" }, text)] : []));
    $(".c-left", row)?.classList.add("blank");
    $(".c-left", row)?.replaceChildren();
  }
}

addEventListener("status", (event) => {
  const row = event.target.closest("#rows tr");
  // The element sends its last event after this one, and `change` removes the element.
  if (row) queueMicrotask(() => change(row, event.detail));
  const head = $(".job-head"), { snapshot, state } = event.detail, kid = event.target.closest(".kids li");
  if (kid ? !kid.classList.contains("s-" + state) : head && (head.dataset.version !== String(snapshot.version) || head.dataset.state !== state)) {
    if (!kid && state in texts) $(".pill", head).replaceWith(pill(snapshot, state));
    renew();
  }
});
setInterval(() => {
  if (document.hidden) return;
  for (const element of all("#rows dramatiq-status, .kids dramatiq-status")) {
    const row = element.closest("tr, li"), { snapshot, state } = element;
    if (!snapshot) continue;
    left(row, snapshot, state);
    if (row.began && (state === "working" || state === "stalled")) took(row, (Date.now() - row.began) / 1000, state);
  }
}, 1000);

// ---- The page of a job is read again when its status has changed, at most once a second
let renewing = false, stale = false;
async function renew() {
  stale = true;
  if (renewing || document.hidden) return;
  renewing = true;
  while (stale) {
    stale = false;
    // This request parses HTML, and Trusted Types do not forbid it.
    const request = new XMLHttpRequest();
    request.open("GET", location.href);
    request.responseType = "document";
    await new Promise((done) => { request.onloadend = done; request.send(); });
    if (request.status === 200 && request.responseXML) {
      become($("#main"), $("#main", request.responseXML));
      local();
    }
    const lost = !request.status || request.status >= 500;
    stale ||= lost;
    await new Promise((done) => setTimeout(done, lost ? 5000 : 1000));
  }
  renewing = false;
}
document.addEventListener("visibilitychange", () => { if (stale) renew(); });
// Without a change of the status, the page is read again every 10 seconds until the job ends, so that its times go on.
setInterval(() => { if ($(".job-head") && $("dramatiq-status[variant=big]").snapshot?.finished === false) renew(); }, 10000);

// Change a node into another one.  Nodes that are in both stay, with what a visitor has opened, selected or focused.
const key = (node) => node.nodeType !== 1 ? null : node.matches(".tree li, .kids li") ? $(".k, a", node)?.textContent : node.getAttribute("aria-label") ?? node.getAttribute("src");
function become(node, other) {
  if (node.nodeType !== 1) {
    if (node.data !== other.data) node.data = other.data;
    return;
  }
  if (node.localName === "dramatiq-status") return;
  for (const { name } of [...node.attributes]) if (name !== "open" && !other.hasAttribute(name)) node.removeAttribute(name);
  for (const { name, value } of other.attributes) if (name !== "open" && node.getAttribute(name) !== value) node.setAttribute(name, value);
  let at = node.firstChild;
  for (const child of [...other.childNodes]) {
    let same = at;
    while (same && (same.nodeName !== child.nodeName || key(same) !== key(child))) same = same.nextSibling;
    if (!same) {
      node.insertBefore(document.importNode(child, true), at);
      continue;
    }
    while (at !== same) { const next = at.nextSibling; at.remove(); at = next; }
    at = same.nextSibling;
    become(same, child);
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
}

// ---- Times of a job's page in the visitor's time zone
function local() {
  for (const node of all(".steps time, .facts time")) {
    const then = new Date(node.dateTime), far = Math.abs(Date.now() - then) >= 43200000;
    const format = far ? { day: "2-digit", month: "short" } : { second: "2-digit" };
    node.textContent = then.toLocaleString("en-GB", { ...format, hour: "2-digit", minute: "2-digit" });
    node.title = then.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "long" });
  }
}
local();

// ---- Ages: one unit
function age() {
  for (const node of all("#rows time, .counts time")) {
    const seconds = (Date.now() - Date.parse(node.dateTime)) / 1000;
    const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([size]) => seconds >= size) ?? [0];
    const text = size ? `${Math.floor(seconds / size)} ${unit} ago` : "now";
    if (node.textContent !== text) node.textContent = text;
  }
}
setInterval(() => document.hidden || age(), 5000);

// ---- The counts and the number of new jobs: read every 3 seconds while the page is visible, and less often after errors
const shown = new Set(all("#rows tr").map((row) => row.dataset.id));
let seen = new Date(), pause = 3000, timer;
async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const response = await fetch("list.json" + location.search, { cache: "no-store" });
    if (!response.ok) throw response.headers.get("Retry-After");
    const { counts, among, partly_read, jobs } = await response.json();
    for (const state in counts) for (const node of all(`[data-count="${state}"]`)) node.textContent = counts[state].toLocaleString("en");
    for (const link of all("[data-name]")) {
      const { name } = link.dataset, state = link.parentNode.dataset.below, number = among[state][name];
      const isMinimum = partly_read.includes(state);
      link.hidden = !(number || isMinimum || link.ariaCurrent);
      link.className = number ? "s-" + name : "";
      link.textContent = number ? `${number.toLocaleString("en")}${isMinimum ? "+" : ""} ${name}` : name;
    }
    const added = jobs.filter((job) => !shown.has(job.id)).length, chip = $("#new");
    if (!new URLSearchParams(location.search).has("after")) {
      chip.hidden = !added;
      $("span", chip).textContent = `${added}${added === jobs.length && added > 1 ? "+" : ""} new`;
    }
    seen = new Date();
    pause = 3000;
    past(false);
  } catch {
    pause = Math.min(30000, pause * 2);
    past(true);
  }
  timer = setTimeout(refresh, pause);
}
function past(is) {
  const main = $("#main");
  for (const part of all(".counts, .list", main)) part.classList.toggle("past", is);
  $("#banner").hidden = !is;
  $("#live").classList.toggle("off", is);
  $("#live").textContent = is ? "Offline" : "Live";
  if (is) {
    $("#seen").textContent = seen.toLocaleTimeString("en", { hour12: false });
    $("#again").textContent = duration(pause / 1000, "en");
  }
}
if ($("#live")) {
  $("#live").hidden = false;
  timer = setTimeout(refresh, pause);
  document.addEventListener("visibilitychange", refresh);
}

// ---- Copying an id
async function copy(button) {
  try { await navigator.clipboard.writeText(button.dataset.copy); } catch { return; }
  const use = $("use", button);
  use.setAttribute("href", "#i-check");
  button.classList.add("done");
  announce("Copied");
  setTimeout(() => { use.setAttribute("href", "#i-copy"); button.classList.remove("done"); }, 1200);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
  for (const open of all("details:is(.chip, .sure)[open]")) if (!open.contains(event.target)) open.open = false;
});

// ---- Actions of a row: the list stays as it is
addEventListener("submit", async (event) => {
  const form = event.target;
  if (!("stays" in form.dataset)) return;
  event.preventDefault();
  const button = $("button", form), details = form.closest("details"), link = $(".job a", form.closest("tr"));
  button.disabled = true;
  try {
    const answer = await fetch(form.action, { method: "POST", headers: { Accept: "application/json" } });
    if (answer.ok) {
      announce({ requested: "Asked to stop", cancelled: "Cancelled", finished: "It had ended before." }[(await answer.json()).cancellation]);
      // The row's change may have removed the form already.
      link.focus({ preventScroll: true });
      details.remove();
    } else announce(answer.status === 403 ? "You may not change this status." : "This did not work.");
  } catch { announce("The server does not answer."); }
  button.disabled = false;
});

// ---- Keys, except in a text box or with a modifier key
function go(step) {
  const rows = all("#rows tr"), now = rows.findIndex((row) => row.classList.contains("at"));
  const next = rows[Math.max(0, Math.min(rows.length - 1, now < 0 ? 0 : now + step))];
  if (!next) return;
  rows[now]?.classList.remove("at");
  next.classList.add("at");
  $(".job a", next).focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    document.activeElement?.blur();
    for (const open of all("details:is(.chip, .sure)[open]")) open.open = false;
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const act = {
    "/": () => $("#q")?.focus(), j: () => go(1), k: () => go(-1),
    c: () => { const button = $("tr.at [data-copy]"); if (button) copy(button); }, n: () => { if ($("#new")?.hidden === false) $("#new").click(); },
  }[event.key];
  if (act) { event.preventDefault(); act(); }
});
