export const texts = {
	job: "Job", loading: "Loading", queued: "Queued", scheduled: "Scheduled", working: "Working", retrying: "Retrying", stalled: "Stalled",
	failed: "Failed", cancelled: "Cancelled", completed: "Completed", offline: "Offline", unknown: "Unknown", refused: "No access",
	missing: "There is no such job, or its status has expired.", noAccess: "You may not see this job, or the link has expired.",
	of: "{0} of {1}", soFar: "{0} so far", rate: "{0}/s", left: "{0} left", lasts: "for {0}", took: "took {0}", waiting: "waiting for {0}",
	starts: "starts in {0}", at: "at {0}", asOf: "{0} at {1}", attempt: "attempt {0}", again: "attempt {1}, again in {0}",
	after: "after {0} attempts", afterOne: "after 1 attempt", silent: "no sign of life for {0}", retry: "trying again in {0}",
	skipped: "skipped", never: "never ran", stopped: "stopped after {0}", asked: "asked to stop", joint: " · ", d: "{0} d", h: "{0} h", min: "{0} min", s: "{0} s", under: "under {0}",
};
const put = (text, ...values) => text.replace(/{(.)}/g, (_, i) => values[i]);
const format = (lang, n, digits = n < 10 ? 1 : 0, more) => n.toLocaleString(lang, { maximumFractionDigits: digits, ...more });

export function duration(s, lang, own = texts, exact, long) {
	if (exact && s < 0.05) return put(own.under, duration(0.1, lang, own, exact, long));
	const minimumFractionDigits = exact && s < 9.95 ? 1 : 0;
	s = minimumFractionDigits ? s : Math.max(0, s < 1200 ? Math.round(s) : Math.round(s / 60) * 60);
	const found = [];
	for (const [short, unit, size] of [["d", "day", 86400], ["h", "hour", 3600], ["min", "minute", 60], ["s", "second", 1]]) {
		const n = size > 1 ? Math.floor(s / size) : s;
		s -= n * size;
		if (n || (size < 2 && !found[0])) found.push(long || !/^(en|$)/.test(lang ?? "") ? format(lang, n, 1, { minimumFractionDigits, style: "unit", unit, unitDisplay: long ?? "short" }) : put(own[short], format(lang, n, 1, { minimumFractionDigits })));
		else if (found[0]) break;
	}
	return found.slice(0, 2).join(" ");
}

let skew = 0, gone;
const hubs = {};

async function locked(run) {
	if (!navigator.locks) return run().then(() => 1);
	for (let i = 0, got; i < 4; i++) {
		await navigator.locks.request("dramatiq-status " + i, { ifAvailable: true }, (lock) => lock && ((got = 1), run()));
		if (got) return got;
	}
}

class Hub {
	items = new Map();
	fails = 0;
	constructor(base) { this.base = base; }

	watch(id, token, tell) {
		const item = this.items.get(id) ?? { id, hub: this, tells: new Set() };
		this.items.set(id, item);
		if (token) item.token = token;
		item.tells.add(tell);
		if (item.end || item.snapshot) tell(item);
		this.soon();
		return () => {
			item.tells.delete(tell);
			this.soon();
		};
	}

	open() { return [...this.items.values()].filter((item) => !item.end); }

	soon() { this.timer ||= setTimeout(() => { this.timer = 0; this.wake(); }, 20); }

	wake(all) {
		this.items.forEach((item, id) => item.tells.size || this.items.delete(id));
		const open = this.open();
		if (!all && open[0] && this.asked && open.every((item) => this.asked.includes(item))) return;
		this.abort?.abort();
		if (open[0] && !this.running) this.run();
	}

	async run() {
		this.running = true;
		for (let open, pause; (open = this.open())[0]; ) {
			const { signal } = (this.abort = new AbortController());
			try {
				pause = 1e9;
				if (gone) throw 0;
				pause = 500;
				if (document.hidden || this.noStreams || !(await locked(() => this.stream(open, signal)))) {
					await this.poll(open, signal);
					pause = document.hidden ? 3e4 : 2000;
				}
				this.connected();
			} catch (error) {
				if (!signal.aborted && !gone) {
					pause = error.retry || Math.min(3e4, 1000 * 2 ** this.fails) * (1 + Math.random()) / 2;
					this.fails++;
					this.retryAt = Date.now() + pause;
					if (this.fails > 1) this.connected(true);
				}
			}
			this.asked = 0;
			if (!signal.aborted) await new Promise((done) => { setTimeout(done, pause); signal.onabort = done; });
		}
		this.running = false;
	}

	connected(offline) {
		if (!offline) this.fails = 0;
		if (!offline && !this.offline) return;
		this.offline = offline;
		this.open().forEach(tell);
	}

	async ask(path, signal, options) {
		const answer = await fetch(this.base + path, { signal, ...options }), { status, headers } = answer;
		skew = Date.parse(headers.get("Date")) + 500 - Date.now() || skew;
		if (/200|304|40[1345]|501/.test(status)) return answer;
		const after = headers.get("Retry-After");
		throw { retry: after && (+after || 60) * 1000 * (1 + Math.random() / 4) };
	}

	async stream(open, signal) {
		this.asked = open;
		let reader, silence, ended;
		try {
			const { status, body } = await this.ask("events", signal, {
				method: "POST", headers: { "Content-Type": "application/json" },
				body: JSON.stringify({ messages: open.map(({ id, token, tag }) => ({ id, token, tag })) }),
			});
			if (/40[13]/.test(status)) return open.forEach((item) => end(item, "refused"));
			if (status != 200) return (this.noStreams = 1);
			this.connected();
			reader = body.pipeThrough(new TextDecoderStream()).getReader();
			for (let text = ""; !ended; ) {
				silence = setTimeout(() => reader.cancel(), 4e4);
				const { value, done } = await reader.read();
				clearTimeout(silence);
				if (done) throw 0;
				const events = (text += value).split("\n\n");
				text = events.pop();
				for (const event of events) {
					const name = /^event: (.*)/m.exec(event)?.[1], data = /^data: (.*)/m.exec(event)?.[1];
					ended ||= name == "end";
					if (!data || ended) continue;
					const { id, tag, status } = JSON.parse(data), item = this.items.get(id);
					if (!item || item.end) continue;
					if (status) show(item, status, tag);
					else if (name == "refused") end(item, name);
					else miss(item);
				}
				ended ||= !this.open()[0];
			}
		} finally {
			clearTimeout(silence);
			reader?.cancel().catch(() => {});
		}
	}

	async poll(open, signal) {
		for (const item of open) {
			const headers = {};
			if (item.tag) headers["If-None-Match"] = `"${item.tag}"`;
			if (item.token) headers["X-Status-Token"] = item.token;
			const answer = await this.ask(encodeURIComponent(item.id) + ".json", AbortSignal.any([signal, AbortSignal.timeout(3e4)]), { headers }), { status } = answer;
			if (/40[13]/.test(status)) end(item, "refused");
			else if (status == 200) show(item, await answer.json(), answer.headers.get("ETag")?.replace(/^W\/|"/g, ""));
			else if (status != 304) miss(item);
		}
	}
}
const tell = (item) => item.tells.forEach((one) => one(item));
const end = (item, how) => { item.end = how; tell(item); };
function show(item, snapshot, tag) {
	clearTimeout(item.timer);
	Object.assign(item, { snapshot, tag, timer: 0, seen: Date.now() });
	if (snapshot.finished) item.end = "final";
	tell(item);
}
function miss(item) {
	delete item.tag;
	item.timer ||= setTimeout(() => { end(item, "unknown"); item.hub.wake(1); }, 1e4);
}

export const watch = (base, ...message) => (hubs[base] ??= new Hub(base)).watch(...message);

const wakeAll = () => Object.values(hubs).forEach((hub) => { hub.fails = 0; hub.wake(1); });
document.addEventListener("visibilitychange", wakeAll);
addEventListener("online", wakeAll);
addEventListener("pagehide", () => { gone = 1; wakeAll(); });
addEventListener("pageshow", (event) => { gone = 0; if (event.persisted) wakeAll(); });

const ticking = new Set(), words = [[], []];
let regions;
setInterval(() => document.hidden || ticking.forEach((one) => one.tick()), 1000);
function say(text, urgent) {
	words[urgent].push(text);
	setTimeout(() => words[urgent][0] && (regions[urgent].textContent = words[urgent].splice(0).join(". ")), 250);
}
function prepare() {
	if (regions?.host.isConnected) return;
	const host = make("div"), root = host.attachShadow({ mode: "open" });
	root.adoptedStyleSheets = [sheet];
	regions = [make("p", { role: "status" }), make("p", { role: "alert" })];
	regions.host = host;
	root.append(...regions);
	document.body.append(host);
}

const RING = "M2.25 8a5.75 5.75 0 1 0 11.5 0a5.75 5.75 0 1 0-11.5 0";
const GLYPHS = {
	queued: "o" + RING, scheduled: "o" + RING + "M8 5v3.2l2 1.3", completed: "o" + RING + "m3.35.2 1.7 1.7 3.2-3.5", offline: "o" + RING + "m1.95-3.8 7.6 7.6", cancelled: "o" + RING + "m3.05 0h5.4",
	working: "o" + RING + "|fM8 4.5a3.5 3.5 0 0 1 0 7z", failed: "o" + RING + "|f" + RING + "|xM6 6l4 4m0-4-4 4", stalled: "oM8 2.2 14.2 13.2H1.8zM8 6.6v3M8 11.4v.01",
	retrying: "oM13.4 9.6A5.6 5.6 0 1 1 12.3 4.4M12.9 1.6v3.2H9.7", refused: "oM3 7h10v6.75H3zM5.25 7V4.9a2.75 2.75 0 0 1 5.5 0V7",
	unknown: "d" + RING + "|oM6.5 6.6a1.55 1.55 0 1 1 2.2 1.4c-.45.22-.7.5-.7.95M8 10.9v.01",
};
function make(name, has, ...children) {
	const node = /svg|path|rect/.test(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
	for (const key in has) node.setAttribute(key, has[key]);
	node.append(...children);
	return node;
}
const hidden = { "aria-hidden": true };

const sheet = new CSSStyleSheet();
sheet.replaceSync(`
:host{display:block;min-inline-size:0;container-type:inline-size;font-size:.75rem;line-height:1rem;font-variant-numeric:tabular-nums;color:var(--t1);
--t1:var(--ds-text,light-dark(#1b1f26,#e7e9ee));--t2:var(--ds-text-2,light-dark(#505865,#a9b1bd));--t3:var(--ds-text-3,light-dark(#656d7a,#8b94a2));--track:var(--ds-track,light-dark(#e3e7ed,#2a303a));--ground:var(--ds-surface,light-dark(#fff,#13161b))}
:host([hidden]){display:none}
div{--tone:var(--ds-queued,var(--t2));--fill:var(--ds-queued-fill,light-dark(#757e8c,#828b99))}
.working{--tone:var(--ds-working,light-dark(#1f5bcc,#82b1ff));--fill:var(--ds-working-fill,light-dark(#2f6ce5,#5b95fb))}
.retrying{--tone:var(--ds-retrying,light-dark(#6a42c9,#b9a2fb));--fill:var(--ds-retrying-ghost,light-dark(#d3c8f5,#443870))}
.stalled{--tone:var(--ds-stalled,light-dark(#8a5000,#ecb45a));--fill:var(--ds-stalled-fill,light-dark(#b26a00,#d9962e))}
.failed{--tone:var(--ds-failed,light-dark(#b9222f,#ff8f91));--fill:var(--ds-failed-fill,light-dark(#d43542,#f2605f))}
.completed{--tone:var(--ds-completed,light-dark(#18703c,#66cf90));--fill:var(--ds-completed-fill,light-dark(#1f8a4c,#3dae6c))}
.lost{--tone:var(--ds-unknown,var(--t3));--fill:var(--ds-unknown-fill,var(--t3))}
.lost .L{color:var(--t2)}
.H{display:flex;align-items:center;gap:8px;font-size:.875rem;line-height:1.25rem}
.G{flex:none;inline-size:14px;block-size:14px;color:var(--tone)}
path{fill:none;stroke:currentColor;stroke-width:1.5;stroke-linecap:round;stroke-linejoin:round}.d{stroke-dasharray:2.6 1.92;stroke-linecap:butt}.f{fill:currentColor;stroke:none}.x{stroke:var(--ground)}
.L{flex:1;font-weight:500}
.L,.T{min-inline-size:0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.V{font-size:.8125rem;font-weight:500;color:var(--tone)}
.working .V{color:var(--t1)}
.B{display:block;position:relative;overflow:hidden;block-size:var(--ds-bar,6px);margin-block:5px;border-radius:var(--ds-r-full,999px);background:var(--track)}
svg{display:block;inline-size:100%;block-size:100%}
.F{fill:var(--fill);rx:3px;transition:width var(--ds-move,.3s) cubic-bezier(.2,0,0,1)}
.back .F{transition:none}
.M{fill:var(--ds-retrying-fill,light-dark(#7c57dc,#9b7df5))}
:host(:dir(rtl)) .B svg{transform:scaleX(-1)}
.D{display:flex;justify-content:space-between;gap:0 16px;min-block-size:1rem;color:var(--t2)}
.offline .D{color:var(--t3)}
.N{flex:none}
:is(.retrying,.stalled) .N{color:var(--tone)}
.full:is(.failed,.unknown,.refused) .T{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;white-space:normal;overflow-wrap:anywhere}
b{font-weight:500;color:var(--t1)}
.sweep .F{animation:s 1.8s ease-in-out infinite}
@keyframes s{from{transform:translateX(-36%)}to{transform:translateX(100%)}}
.B::after{position:absolute;inset:0}
.stalled .B::after{content:"";background:repeating-linear-gradient(-45deg,#0000 0 3px,color-mix(in srgb,var(--ground) 62%,#0000) 3px 5px)}
:is(.unknown,.refused) .B{background:none;border:1px dashed var(--ds-line-strong,light-dark(#cdd2da,#363d49));box-sizing:border-box}
@container (inline-size<300px){.full .D{flex-wrap:wrap}.full .T{flex:1 1 100%}}
.big .V{font-size:1.25rem;line-height:1.75rem;font-weight:600}
.big .B{block-size:var(--ds-bar-big,8px);margin-block:4px 8px}.big .D{font-size:.8125rem;line-height:1.25rem}
.line{display:flex;align-items:center;gap:8px;line-height:1.25rem}
.line :is(.H,.D){display:contents}
.line span{font-size:.75rem}
.line .L{flex:0 1 176px}
.line .B{flex:0 1 96px;min-inline-size:48px;block-size:var(--ds-bar-compact,4px);margin:0}
.line .V{order:1;min-inline-size:2.25rem;text-align:end;font-weight:400;color:var(--t1)}
.line .T{order:2;flex:1 1 0;color:var(--t2)}
.line .N{order:3;margin-inline-start:auto}
@container (inline-size<460px){.compact .L{flex:1}.compact :is(.T,.V){display:none}.compact .B{flex:0 0 56px}.compact .N{min-inline-size:136px;text-align:end}}
.row :is(.G,.L,.N),.row.queued :is(.B,.V,.T){display:none}
.row:is(.queued,.stalled) .N{display:block;margin:0}.row.stalled .T{display:none}
p{position:absolute;inline-size:1px;block-size:1px;margin:-1px;overflow:hidden;clip-path:inset(50%)}
@media (prefers-reduced-motion){.F{transition:none;animation:none!important}.sweep .F{width:100%}.sweep .B::after{content:"";background:repeating-linear-gradient(90deg,#0000 0 4px,var(--track) 4px 12px)}}
@media (forced-colors:active){.B{background:Canvas;border:1px solid;forced-color-adjust:none}.F{fill:Highlight}:is(.offline,.retrying) .F{fill:GrayText}.M{fill:CanvasText}}
`);

export class DramatiqStatus extends HTMLElement {
	static observedAttributes = ["src", "message-id", "token", "label", "lang", "variant"];
	texts = {};
	#item;
	#stop;
	#parts;
	#states = this.attachInternals().states;
	#last = {};

	get snapshot() { return this.#item?.snapshot ?? null; }
	get state() { return this.#last.state; }

	connectedCallback() { this.#build(); this.#watch(); }
	disconnectedCallback() { this.#stop?.(); this.#stop = 0; ticking.delete(this); }
	attributeChangedCallback(name) {
		if (!this.isConnected || !this.#parts) return;
		if (/src|id|token/.test(name)) {
			this.#stop?.();
			this.#stop = this.#item = 0;
			this.#last = {};
			this.#watch();
		} else this.tick();
	}

	#watch() {
		prepare();
		let base = this.getAttribute("src"), id = this.getAttribute("message-id");
		if (base) {
			base = new URL(base.replace(/(\.json|\/)$/, ""), document.baseURI).href;
			id ??= decodeURIComponent(base.replace(/.*\/|[?#].*/g, ""));
		}
		if (id) this.#stop ||= watch(new URL(".", base || import.meta.url).href, id, this.getAttribute("token"), (item) => this.#show(item));
		this.tick();
	}

	#build() {
		if (this.#parts) return;
		const root = this.attachShadow({ mode: "open" }), parts = (this.#parts = {});
		const part = (name, tag, has, ...children) => (parts[name] = make(tag || "span", { part: name, class: name[0].toUpperCase(), ...has }, ...children));
		root.adoptedStyleSheets = [sheet];
		part("mark", "rect", { width: 2, height: "100%" });
		parts.root = make("div", {},
			part("head", "", {}, part("glyph", "svg", { viewBox: "0 0 16 16", ...hidden }), part("label", "", { id: "l" }, (parts.name = make("slot", { name: "label" }))), part("value", "", hidden)),
			part("bar", "", { role: "progressbar", "aria-labelledby": "l" }, make("svg", hidden, part("fill", "rect", { height: "100%" }))),
			part("detail", "", {}, part("text"), part("next")));
		root.append(parts.root, make("slot", { name: "after" }));
	}

	#show(item) {
		const first = !this.#item, last = this.#last, { snapshot } = item;
		this.#item = item;
		this.tick();
		const { state } = last, detail = { snapshot, state }, fire = (name) => this.dispatchEvent(new CustomEvent(name, { bubbles: 1, composed: 1, detail }));
		if (snapshot && snapshot != last.snapshot) fire("status");
		last.snapshot = snapshot;
		if (item.end == "final" && !last.ended) {
			last.ended = 1;
			fire(snapshot.status == "failed" ? "failed" : "completed");
		}
		const link = /offline|refused|unknown/.test(state) ? state : null;
		if (link != last.link) fire("connection");
		last.link = link;
		const quarter = state == "working" ? Math.floor(last.percent / 25) % 4 : 0;
		if (!first && (state != last.said || quarter > last.quarter) && (state != "working" || quarter)) say(this.#parts.name.textContent + ", " + (quarter ? quarter * 25 + "%" : this.#parts.bar.ariaValueText), +(state == "failed"));
		last.said = state;
		last.quarter = quarter;
	}

	tick() {
		const parts = this.#parts, item = this.#item, last = this.#last, variant = this.getAttribute("variant");
		const own = { ...texts, ...this.texts }, lang = this.closest("[lang]")?.lang || [], n = (x) => format(lang, x, 1);
		const ago = (time) => (Date.now() + skew - Date.parse(time)) / 1000, clock = (time, timeStyle) => new Date(time).toLocaleTimeString(lang, { timeStyle });
		let state = "loading", glyph, facts = [], error, next = "", spoken, value, percent = 0, sweep, known;
		const set = (text, seconds, ...more) => {
			if (isNaN(seconds ?? NaN)) return;
			next = put(text, duration(seconds, lang, own, snapshot?.finished), ...more);
			spoken = put(text, duration(seconds, lang, own, snapshot?.finished, "long"), ...more);
		};
		const snapshot = item?.snapshot;
		if (snapshot) {
			const { status, exception, total, progress, step, attempts, scheduled_at, rate } = snapshot;
			glyph = state = snapshot.cancelled ? "cancelled" : snapshot.stalled ? "stalled" : snapshot.retrying ? "retrying" : status;
			known = snapshot.percent != null;
			percent = snapshot.percent ?? 0;
			const due = -Math.floor(ago(scheduled_at));
			const count = progress == null ? "" : total != null ? put(own.of, n(progress), n(total)) : known ? "" : snapshot.finished ? n(progress) : put(own.soFar, n(progress));
			facts = [snapshot.cancel_requested_at && own.asked, step, count];
			if (/failed|retrying/.test(state)) error = exception;
			if (state == "queued") {
				known = 0;
				facts = [snapshot.queue_name];
				if (due > 0) {
					glyph = "scheduled";
					facts = [put(own.at, clock(scheduled_at, "short"))];
					set(own.starts, due);
				} else set(own.waiting, ago(scheduled_at ?? snapshot.enqueued_at));
			} else if (state == "working") {
				if (rate > 0 && variant != "row") facts.push(put(own.rate, format(lang, rate)));
				sweep = !known;
				if (sweep) set(own.lasts, ago(snapshot.started_at));
				else {
					value = format(lang, Math.floor(percent) / 100, 0, { style: "percent" });
					if (snapshot.time_remaining != null) set(own.left, Math.max(1, snapshot.time_remaining - (Date.now() - item.seen) / 1000));
				}
			} else if (state == "retrying") {
				if (due > 0) set(own.again, due, n(attempts + 1));
				else next = put(own.attempt, n(attempts + 1));
			} else if (state == "stalled") set(own.silent, ago(snapshot.heartbeat_at ?? snapshot.updated_at));
			else if (state == "failed") next = attempts ? put(attempts == 1 ? own.afterOne : own.after, n(attempts)) : "";
			else if (state == "cancelled") {
				facts = [snapshot.cancel_reason];
				if (attempts) set(own.stopped, snapshot.duration);
				else next = own.never;
			} else {
				facts = [count];
				percent = known = 100;
				if (snapshot.skipped) next = own.skipped;
				else set(own.took, snapshot.duration);
			}
		}
		const lost = item && item.end != "final" && (item.end || (item.hub.offline && "offline"));
		if (lost) {
			error = value = spoken = sweep = 0;
			next = "";
			state = glyph = lost;
			if (lost == "offline") {
				facts = snapshot ? [put(own.asOf, [known && Math.floor(percent) + "%", ...facts].filter(Boolean).join(", "), clock(item.seen, "medium"))] : [];
				set(own.retry, (item.hub.retryAt - Date.now()) / 1000);
			} else {
				facts = [own[lost == "unknown" ? "missing" : "noAccess"]];
				percent = known = 0;
			}
		}
		facts = facts.filter(Boolean);
		if (error) facts = [error.message];

		const write = (node, text) => node.textContent == text || (node.textContent = text);
		const slim = /compact|row/.test(variant), word = own[glyph ?? state];
		parts.root.className = [state, slim ? "line" : "full", variant, lost && "lost", sweep && "sweep", percent < last.percent && "back"].join(" ");
		if (last.glyph != glyph) parts.glyph.replaceChildren(...(GLYPHS[glyph] || "o").split("|").map((d) => make("path", { class: d[0], d: d.slice(1) })));
		write(parts.name, this.getAttribute("label") ?? snapshot?.label ?? snapshot?.actor_name ?? own.job);
		write(parts.value, !glyph ? "" : slim ? (known ? n(Math.floor(percent)) + "%" : "") : value || word);
		const line = [error?.type, facts.join(own.joint)].filter(Boolean).join(": ");
		if (last.line != line) parts.text.replaceChildren(...(error ? [make("b", {}, error.type, error.message ? ": " : "")] : []), ...facts.flatMap((fact, i) => [i ? own.joint : "", make("bdi", {}, fact ?? "")]));
		write(parts.next, next);
		parts.bar.ariaValueNow = known ? percent : null;
		parts.bar.ariaValueText = [value || word, line, spoken || next].filter(Boolean).join(", ");
		parts.detail.ariaHidden = error || (lost && lost != "offline") ? null : "true";
		parts.fill.setAttribute("width", (sweep ? 36 : percent) + "%");
		parts.mark.setAttribute("x", percent - 0.4 + "%");
		if (state == "retrying" && percent) parts.fill.after(parts.mark);
		else parts.mark.remove();
		if (state != last.state) {
			this.#states?.clear();
			this.#states?.add(state);
		}
		Object.assign(last, { state, glyph, line, percent });
		if (next && item && !(item.end && !lost)) ticking.add(this);
		else ticking.delete(this);
	}
}

customElements.get("dramatiq-status") ?? customElements.define("dramatiq-status", DramatiqStatus);
