// The list of episodes and the viewer. Each episode's curves are in a separate script that calls `episode`, because a page
// opened as a file cannot fetch data. A link to #7:12 shows step 12 of episode 7.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const COLOURS = ["--blue", "--vermillion", "--green", "--purple", "--orange", "--soft", "--ink"].map((c) => `var(${c})`);
const video = $("video"), slider = $("step");
const now = { n: -1, step: 0, steps: 1, playing: false, curves: null };

const element = (name, parent, text = "", attributes = {}) => {
  const made = document.createElement(name);
  made.textContent = text;
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  if (parent) parent.append(made);
  return made;
};
const svg = (name, parent, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  parent.append(made);
  return made;
};
// Use enough decimals for the plot's span, so that digits keep their positions.
const number = (x, span) => x === undefined ? "NaN"
  : x.toFixed(span > 0 ? Math.min(Math.max(3 - Math.floor(Math.log10(span)), 0), 12) : 3).replace(/^-(?=[0.]+$)/, "");
const seconds = (steps) => (steps / data.rate).toFixed(1);
const file = (n) => `${data.folder}/${String(n).padStart(4, "0")}`;

// ---- the list

data.episodes.forEach((e, n) => Object.assign(e, { n, findings: data.findings.filter((f) => f.episode === n) }));
data.episodes.forEach((e) => { e.odd = e.findings.length; });
const has = (key) => data.episodes.some((e) => e[key] !== undefined);
const outcome = (e) => e.success === undefined ? "" : e.success ? "✓" : "✗";
document.querySelectorAll("[data-has]").forEach((th) => { th.hidden = !has(th.dataset.has); });
$("outcome").hidden = !has("success");
let order = [...data.episodes];

data.episodes.forEach((e) => {
  const row = e.row = element("tr", $("episodes"));
  const cell = (text, kind = "n") => element("td", row, text, { class: kind });
  cell(e.n);
  if (has("source")) cell(e.source ?? "");
  cell(e.steps);
  cell(seconds(e.steps));
  if (has("success")) cell(outcome(e), e.success === false ? "failed" : "");
  cell(e.odd || "");
  if (has("task")) element("div", cell("", "task"), e.task ?? "", { title: e.task ?? "" });
  e.words = [e.n, e.source ?? "", e.task ?? "", outcome(e), ...e.findings.map((f) => `${f.kind} ${f.text}`)].join(" ").toLowerCase();
  row.addEventListener("click", () => go(e.n));
});

const filter = () => {
  const words = $("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  data.episodes.forEach((e) => {
    e.row.hidden = !(words.every((w) => e.words.includes(w)) && outcome(e).includes($("outcome").value)
      && (e.odd || !$("odd-only").checked));
  });
  $("shown").textContent = `${data.episodes.filter((e) => !e.row.hidden).length} of ${data.episodes.length}`;
};
["words", "outcome", "odd-only"].forEach((id) => $(id).addEventListener("input", filter));

document.querySelectorAll("[data-sort]").forEach((button) => button.addEventListener("click", () => {
  const key = button.dataset.sort, th = button.parentElement;
  const down = th.getAttribute("aria-sort") === "ascending";
  document.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  const less = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  order = [...data.episodes].sort((a, b) => (down ? -1 : 1) * less(a[key] ?? "", b[key] ?? "") || a.n - b.n);
  $("episodes").append(...order.map((e) => e.row));
}));

// ---- an episode

// Wait until a held key stops repeating, because browsers throttle address changes, and loading reads from disk.
const debounced = (work, wait) => {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(work, wait); };
};
const go = (n, step = 0) => {
  if (n !== now.n) select(n);
  show(step);
};
const address = debounced(() => { if (!now.playing) history.replaceState(null, "", `#${now.n}:${now.step}`); }, 300);
const neighbour = (by) => {
  const shown = order.filter((e) => !e.row.hidden);
  const next = shown[Math.min(Math.max(shown.findIndex((e) => e.n === now.n) + by, 0), shown.length - 1)];
  if (next) go(next.n);
};

const select = (n) => {
  pause();
  if (now.n >= 0) data.episodes[now.n].row.removeAttribute("aria-selected");
  const e = data.episodes[n];
  Object.assign(now, { n, step: 0, steps: e.steps, curves: null });
  e.row.setAttribute("aria-selected", "true");
  const box = $("rows"), head = 30, above = e.row.offsetTop - head - box.scrollTop; // scrolls the list, not the page
  const below = e.row.offsetTop + e.row.offsetHeight - box.clientHeight - box.scrollTop;
  box.scrollTop += above < 0 ? above : Math.max(below, 0);
  const facts = [`Episode ${n}`, e.source === undefined ? "" : `source ${e.source}`, `${e.steps} steps, ${seconds(e.steps)} s`,
    e.success === undefined ? "" : e.success ? "✓ success" : "✗ failure", e.task ?? ""];
  $("title").textContent = facts.filter(Boolean).join(" · ");
  slider.max = e.steps - 1;
  $("marks").replaceChildren();
  $("here").replaceChildren();
  e.findings.forEach((f) => {
    const left = 100 * f.step / Math.max(e.steps - 1, 1), wide = 100 * (f.steps - 1) / Math.max(e.steps - 1, 1);
    element("i", $("marks"), "", { style: `left:${left}%;width:${wide}%`, title: f.text });
    const line = element("li", $("here"), `${f.kind}: ${f.text} `);
    element("a", line, `step ${f.step}`, { href: `#${n}:${f.step}` });
  });
  charts.forEach((c) => c.draw());
  load();
};
const load = debounced(() => {
  const n = now.n;
  if (data.videos) video.src = `${file(n)}.mp4`;
  if (now.playing) run(); // play was pressed before the video changed
  const script = element("script", null, "", { src: `${file(n)}.js` });
  script.onload = () => script.remove();
  script.onerror = () => { $("title").textContent = `${file(n)}.js is missing: the folder ${data.folder} must be next to this page`; };
  document.head.append(script);
}, 60);

// Called by an episode's script with the number of steps between points, and the points of each column.
window.episode = (n, [each, columns]) => {
  if (n !== now.n) return; // another episode has been selected
  now.curves = { each, columns };
  charts.forEach((c) => c.draw());
  show(now.step, false);
};

// ---- curves

const charts = data.charts.map((chart) => {
  const box = element("div", $("charts"), "", { class: "chart" });
  element("h3", box, chart.title);
  const plot = element("div", box, "", { class: "plot" });
  const top = element("small", plot, "", { class: "top" }), bottom = element("small", plot, "", { class: "bottom" });
  const area = svg("svg", plot, { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img", "aria-label": chart.title });
  const zero = svg("line", area, { class: "zero", x1: 0, x2: 1000 });
  const cursor = element("div", plot, "", { class: "cursor" });
  const list = element("ul", box);
  const lines = chart.lines.map((line, i) => {
    const path = svg("polyline", area, { style: `stroke:${COLOURS[i]}` });
    const item = element("li", list);
    element("i", item, "", { style: `background:${COLOURS[i]}` });
    item.append(`${line.name} `);
    const light = (on) => [box.classList, path.classList, item.classList].forEach((c, k) => c.toggle(k ? "on" : "one", on));
    item.addEventListener("mouseenter", () => light(true));
    item.addEventListener("mouseleave", () => light(false));
    return { ...line, path, value: element("b", item) };
  });
  let span = 0;
  const draw = () => {
    const points = lines.map((l) => now.curves ? now.curves.columns[l.column] : []);
    const known = $("same-scale").checked ? lines.flatMap((l) => [l.low, l.high]) : points.flat();
    let low = known.reduce((a, b) => Math.min(a, b), Infinity), high = known.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!known.length) low = high = 0;
    span = high - low;
    top.textContent = known.length ? number(high, span) : "";
    bottom.textContent = span ? number(low, span) : "";
    if (!(high > low)) { low -= 1; high += 1; }
    const y = (x) => 96 - 92 * (x - low) / (high - low);
    const wide = Math.max(now.steps - 1, 1), each = now.curves ? now.curves.each : 1;
    lines.forEach((l, i) => l.path.setAttribute("points", points[i].map((x, t) =>
      `${(1000 * t * each / wide).toFixed(1)},${y(x).toFixed(2)}`).join(" ")));
    zero.setAttribute("y1", y(0));
    zero.setAttribute("y2", y(0));
    zero.style.display = low < 0 && high > 0 ? "" : "none";
  };
  const move = () => {
    cursor.style.left = `${100 * now.step / Math.max(now.steps - 1, 1)}%`;
    lines.forEach((l) => {
      l.value.textContent = now.curves ? number(now.curves.columns[l.column][Math.floor(now.step / now.curves.each)], span) : "";
    });
  };
  const point = (event) => {
    const around = plot.getBoundingClientRect();
    pause();
    show(Math.round((now.steps - 1) * (event.clientX - around.left) / around.width));
  };
  plot.addEventListener("pointerdown", (event) => { plot.setPointerCapture(event.pointerId); point(event); });
  plot.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  return { draw, move };
});
$("same-scale").addEventListener("input", () => charts.forEach((c) => { c.draw(); c.move(); }));

// ---- time: one step for slider, cursors and video

const show = (step, seek = true) => {
  now.step = Math.min(Math.max(step, 0), now.steps - 1);
  slider.value = now.step;
  $("at").textContent = `step ${now.step} of ${now.steps} · ${seconds(now.step)} s`;
  charts.forEach((c) => c.move());
  if (seek && data.videos && !video.seeking) seekVideo();
  address();
};
const seekVideo = () => {
  const target = (now.step + 0.5) / data.rate; // the middle of the frame, so rounding cannot select a neighbour
  if (Math.abs(video.currentTime - target) > 0.1 / data.rate) video.currentTime = target;
};
if (data.videos) {
  video.addEventListener("loadedmetadata", seekVideo);
  video.addEventListener("seeked", () => { if (!now.playing) seekVideo(); }); // the slider may have moved in the meantime
  video.addEventListener("ended", pause);
}

let clock = 0, firstStep = 0; // without videos: time and step at which playing began
function play() {
  if (now.step >= now.steps - 1) show(0);
  now.playing = true;
  $("play").textContent = "❚❚";
  clock = performance.now();
  firstStep = now.step;
  run();
  requestAnimationFrame(tick);
}
function run() {
  if (!data.videos) return;
  video.playbackRate = Number($("speed").value);
  video.play().catch((error) => { if (error.name !== "AbortError") pause(); }); // aborted: paused, or another video
}
function pause() {
  now.playing = false;
  $("play").textContent = "▶";
  if (data.videos) video.pause();
}
function tick() {
  if (!now.playing) return;
  const passed = (performance.now() - clock) / 1000 * Number($("speed").value);
  show(data.videos ? Math.floor(video.currentTime * data.rate + 1e-3) : firstStep + Math.floor(passed * data.rate), false);
  if (!data.videos && now.step >= now.steps - 1) pause();
  requestAnimationFrame(tick);
}
const toggle = () => (now.playing ? pause() : play());
$("play").addEventListener("click", toggle);
$("speed").addEventListener("input", () => { if (now.playing) { pause(); play(); } });
slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });

const second = Math.max(1, Math.round(data.rate));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select")) return;
  const by = event.shiftKey ? second : 1;
  const step = (to) => { pause(); show(to); };
  const keys = { " ": toggle, ArrowLeft: () => step(now.step - by), ArrowRight: () => step(now.step + by),
    ArrowUp: () => neighbour(-1), ArrowDown: () => neighbour(1), Home: () => step(0), End: () => step(now.steps - 1) };
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});

const follow = () => {
  const [n, step] = window.location.hash.slice(1).split(":").map(Number);
  if (!(n in data.episodes)) return false;
  go(n, step || 0);
  return true;
};
window.addEventListener("hashchange", follow);
filter();
if (!follow()) go(0);
})();
