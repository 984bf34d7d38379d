// Training runs: select some and compare their curves, live.
import { errorText } from "./api.js";
import { Chart } from "./chart.js";
import { byId, clear, el, remember, remembered } from "./dom.js";
import { Curves, fetchLadder, listRuns } from "./train_data.js";

const MAX_RUNS = 6;
const POLL_MS = 1000;
const LIST_EVERY = 5;     // polls between refreshes of the list
const TITLES = {
  lr_factor: ["Learning rate", "fraction of peak"], grad_norm: ["Gradient norm"], tokens_per_s: ["Tokens per second"],
  reward: ["Reward"], kl: ["KL", "from the reference model, nats"], gold: ["Gold score"], entropy: ["Entropy"],
  accuracy: ["Accuracy", "on held-out preferences"], margin: ["Margin"], utilisation: ["Utilisation", "fraction of measured peak FLOP/s"],
  memory_mb: ["Memory", "MB"], clip_fraction: ["Clip fraction", "of tokens"], length: ["Reply length", "tokens"],
  replies_ended: ["Replies with end token", "fraction"], explained_variance: ["Explained variance"], step_kl: ["KL per update"], kl_coef: ["KL coefficient"],
};
const FIRST = ["reward", "kl", "gold", "accuracy", "margin", "lr_factor", "grad_norm", "tokens_per_s", "entropy", "length"];
const MAIN = ["loss", "val_loss", "train_loss"];
const AXES = ["n_tokens", "train_s"];
const AXIS_NAMES = { step: "step", n_tokens: "tokens", train_s: "seconds" };

let runs = [];
let selected = [];           // names by colour index; null: colour is free
let awaited = [];            // runs named in the URL that do not exist yet
const items = new Map();     // list items by name; reused, so focus and scroll position stay
const curves = new Map();
const charts = new Map();
const ladders = new Map();
let round = 0;
let timer = null;
let drawnState = "";
let samplesState = "";

const names = () => selected.filter((name) => name !== null);
const run = (name) => runs.find((each) => each.name === name);

function runsInUrl() {
  const parts = location.hash.slice(1).split(",").filter(Boolean);
  try { return parts.map(decodeURIComponent); } catch { return []; }
}

function select(name, on) {
  const place = selected.indexOf(name);
  if (on && place < 0 && names().length < MAX_RUNS) {
    const free = selected.indexOf(null);
    if (free < 0) selected.push(name); else selected[free] = name;
  } else if (!on && place >= 0) {
    selected[place] = null;
  }
  remember("runs", names());
  history.replaceState(null, "", `#${[...names(), ...awaited].map(encodeURIComponent).join(",")}`);
}

// Initial selection: from the URL, else the last visit, else a live or served run.
function initSelection() {
  const named = runsInUrl().slice(0, MAX_RUNS);
  const stored = remembered("runs", []).filter(run).slice(0, MAX_RUNS);
  const first = runs.find((each) => each.state === "live") ?? runs.find((each) => each.served.length) ?? runs[0];
  awaited = named.filter((name) => !run(name));
  selected = named.length ? named.filter(run) : stored.length ? stored : first ? [first.name] : [];
}

function selectStarted() {
  const started = awaited.filter(run);
  awaited = awaited.filter((name) => !run(name));
  for (const name of started) select(name, true);
}

function drawList() {
  const query = byId("filter").value.trim().toLowerCase();
  const list = byId("runs");
  const order = [...runs.filter((each) => each.state === "live"), ...runs.filter((each) => each.state !== "live")];
  const shown = order.filter((each) => each.name.toLowerCase().includes(query) || each.kind.includes(query)).map((each) => item(each).node);
  if (!shown.length) shown.push(el("li", { class: "faint", text: runs.length ? "No matching runs." : "No runs yet." }));
  if (shown.length !== list.children.length || shown.some((node, number) => list.children[number] !== node)) {
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    list.replaceChildren(...shown);
    if (focused?.isConnected) focused.focus({ preventScroll: true });
  }
  const live = runs.filter((each) => each.state === "live").length;
  setText(byId("run-count"), `${runs.length} ${runs.length === 1 ? "run" : "runs"}${live ? `, ${live} live` : ""}`);
}

function item(each) {
  const one = items.get(each.name) ?? newItem(each.name);
  const place = selected.indexOf(each.name);
  one.node.className = place >= 0 ? `selected tint-${place}` : "";
  one.box.checked = place >= 0;
  one.box.disabled = place < 0 && names().length >= MAX_RUNS;
  one.facts.classList.toggle("live", each.state === "live");
  setText(one.facts, factsOf(each));
  return one;
}

function newItem(name) {
  const box = el("input", { type: "checkbox", dataset: { run: name } });
  const facts = el("span", { class: "facts" });
  box.addEventListener("change", () => { select(name, box.checked); drawList(); poll(true); });
  const node = el("li", {}, el("label", {}, box, el("span", { class: "name", text: name }), el("span", { class: "swatch" }), facts));
  items.set(name, { node, box, facts });
  return items.get(name);
}

function factsOf(each) {
  const loss = each.last.val_loss ?? each.last.loss;
  const state = each.state === "live" ? "live" : each.state === "broken off" ? "interrupted" : each.ended && each.ended !== "finished" ? each.ended : null;
  return [state, each.kind, each.step === null ? null : `step ${each.step.toLocaleString("en")}`,
    loss === undefined ? null : `${each.last.val_loss === undefined ? "loss" : "val"} ${loss.toFixed(3)}`,
    each.served.length ? `served as ${each.served.join(", ")}` : null].filter(Boolean).join(" · ");
}

const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };

function showError(error) {
  const text = error ? errorText(error) : "";
  if (byId("page-error").textContent === text) return;
  clear(byId("page-error"));
  if (error) byId("page-error").append(el("p", { class: "error", text }));
}

// Poll while the page is visible; finished runs less often than live ones.
async function poll(now = false) {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    if (round % LIST_EVERY === 0) {
      const first = runs.length === 0;
      runs = await listRuns();
      if (first) initSelection();
      selectStarted();
      drawList();
    }
    const stale = names().filter((name) => run(name) && (now || round % LIST_EVERY === 0 || run(name).state === "live" || !curves.has(name)));
    await Promise.all(stale.map(fetchRun));
    showError(null);
    draw();
  } catch (error) {
    showError(error);
  }
  round += 1;
  clearTimeout(timer);
  timer = setTimeout(poll, POLL_MS);
}

async function fetchRun(name) {
  if (!curves.has(name)) curves.set(name, new Curves(name));
  await curves.get(name).fetch();
  if (run(name).has_ladder) ladders.set(name, await fetchLadder(name));
}

function settings() {
  return { axis: byId("x-axis").value, weight: Number(byId("smoothing").value), log: byId("log-scale").checked };
}

function draw() {
  const set = settings();
  const state = JSON.stringify([set, selected, awaited, names().map((name) => curves.get(name)?.version), [...ladders.values()]]);
  if (state === drawnState) return;
  drawnState = state;
  const known = names().filter((name) => curves.has(name));
  const series = [...new Set(known.flatMap((name) => [...curves.get(name).series.keys()]))];
  const others = series.filter((name) => !MAIN.includes(name) && !AXES.includes(name) && FIRST.includes(name));
  others.sort((a, b) => FIRST.indexOf(a) - FIRST.indexOf(b));
  const rest = series.filter((name) => !MAIN.includes(name) && !AXES.includes(name) && !FIRST.includes(name));
  drawCharts("main-chart", series.some((name) => MAIN.includes(name)) ? ["loss"] : [], (chart) => chart.draw({ lines: lossLines(known, set), xName: AXIS_NAMES[set.axis], log: set.log }));
  drawCharts("charts", others, (chart, name) => chart.draw({ lines: plainLines(name, known, set), xName: AXIS_NAMES[set.axis], log: set.log }));
  drawCharts("more-charts", rest, (chart, name) => chart.draw({ lines: plainLines(name, known, set), xName: AXIS_NAMES[set.axis], log: false }));
  byId("more").hidden = !rest.length;
  drawLadder(known);
  drawSamples(known);
  const withoutAxis = set.axis === "step" ? [] : known.filter((name) => curves.get(name).series.size && !curves.get(name).over([...curves.get(name).series.keys()][0], set.axis).length);
  const nothing = !known.length && !awaited.length ? "Select a run." : !series.length && !ladders.size ? "No metrics yet; this page updates itself." : "";
  const warnings = known.filter((name) => curves.get(name).notFinite).map((name) => `${name}: ${curves.get(name).notFinite.toLocaleString("en")} non-finite values (NaN or infinite) are not drawn.`);
  setText(byId("warning"), warnings.join(" "));
  byId("warning").hidden = !warnings.length;
  const waiting = awaited.length ? `${awaited.join(", ")}: no metrics yet; this page updates itself.` : "";
  byId("empty").textContent = waiting || nothing || (withoutAxis.length ? `${withoutAxis.join(", ")}: no ${AXIS_NAMES[set.axis]} recorded; not drawn.` : "");
  byId("empty").hidden = !byId("empty").textContent;
}

// Draw a chart for each name into the element `id`; existing charts are reused.
function drawCharts(id, wanted, drawOne) {
  const host = byId(id);
  const made = wanted.map((name) => {
    const key = `${id} ${name}`;
    if (!charts.has(key)) {
      const [title, note] = id === "main-chart" ? ["Loss", "nats per token. Solid: training, smoothed; faint: training, raw; dotted: validation; crosses: training loss, measured as validation"] : TITLES[name] ?? [name.replaceAll("_", " ")];
      charts.set(key, new Chart({ title, note, height: id === "main-chart" ? 340 : 170, onCursor: moveCursors }));
    }
    return [charts.get(key), name];
  });
  const nodes = made.map(([chart]) => chart.node);
  if (nodes.length !== host.children.length || nodes.some((node, number) => host.children[number] !== node)) host.replaceChildren(...nodes);
  for (const [chart, name] of made) drawOne(chart, name);
}

function moveCursors(x) {
  for (const chart of charts.values()) if (chart.node.isConnected) chart.point(x);
}

function lossLines(known, { axis, weight }) {
  return known.flatMap((name) => {
    const tint = selected.indexOf(name);
    const own = curves.get(name);
    const lines = [{ name, tint, points: own.smoothedOver("loss", axis, weight), faint: own.over("loss", axis) }];
    lines.push({ name: `${name}, validation`, tint, points: own.over("val_loss", axis), dashed: true, dots: true });
    lines.push({ name: `${name}, training estimate`, tint, points: own.over("train_loss", axis), dots: true, unjoined: true, shape: "cross" });
    return lines;
  });
}

function plainLines(series, known, { axis, weight }) {
  return known.map((name) => {
    const raw = curves.get(name).over(series, axis);
    const noisy = ["grad_norm", "tokens_per_s"].includes(series);
    return { name, tint: selected.indexOf(name), points: noisy ? curves.get(name).smoothedOver(series, axis, weight) : raw, faint: noisy ? raw : undefined, dots: raw.length <= 3 };
  });
}

// Align ladders by rung name; draw the lecture's losses once.
function drawLadder(known) {
  const withLadder = known.filter((each) => ladders.get(each)?.length);
  if (!withLadder.length) { clear(byId("ladder")); return; }
  const names = rungNames(withLadder.map((name) => ladders.get(name)));
  const points = (rungs, key) => rungs.filter((rung) => rung[key] !== null).map((rung) => [names.indexOf(rung.rung), rung[key]]).sort((a, b) => a[0] - b[0]);
  const lines = withLadder.flatMap((name) => {
    const [tint, label] = [selected.indexOf(name), withLadder.length > 1 ? name : "ours"];
    return [{ name: `${label}, full validation set`, tint, dots: true, points: points(ladders.get(name), "val_loss") },
      { name: `${label}, random batches`, tint, dots: true, unjoined: true, shape: "cross", points: points(ladders.get(name), "val_loss_random_batches") }];
  });
  const lecture = new Map(withLadder.flatMap((name) => ladders.get(name)).filter((rung) => rung.lecture_val_loss !== null).map((rung) => [rung.rung, rung]));
  const free = [...Array(MAX_RUNS).keys()].find((tint) => !withLadder.some((name) => selected.indexOf(name) === tint));
  lines.push({ name: "lecture", tint: free ?? 0, dots: true, unjoined: true, shape: "diamond", points: points([...lecture.values()], "lecture_val_loss") });
  if (!charts.has("ladder")) charts.set("ladder", new Chart({ title: "Ladder", note: "final validation loss of each rung, compared with the lecture", height: 300 }));
  const chart = charts.get("ladder");
  if (chart.node.parentNode !== byId("ladder")) clear(byId("ladder")).append(chart.node);
  chart.draw({ lines, xName: "rung", names });
}

// Union of the rungs, in order.
function rungNames(ladders) {
  const names = [];
  for (const rungs of ladders) {
    rungs.forEach(({ rung }, number) => {
      if (!names.includes(rung)) names.splice(number ? names.indexOf(rungs[number - 1].rung) + 1 : 0, 0, rung);
    });
  }
  return names;
}

// The latest sample of each run, with the earlier ones folded away.
function drawSamples(known) {
  const latest = [];
  const earlier = [];
  for (const name of known) {
    const own = curves.get(name).samples.map(({ step, text }) => [`${name}, step ${step.toLocaleString("en")}`, text]).reverse();
    const rungs = (ladders.get(name) ?? []).filter((rung) => rung.sample).map((rung) => [`${rung.rung} ${rung.adds ?? ""}`, rung.sample]).reverse();
    latest.push(...own.slice(0, 1), ...rungs.slice(0, 1));
    earlier.push(...own.slice(1), ...rungs.slice(1));
  }
  const state = JSON.stringify([latest, earlier]);
  if (state === samplesState) return;
  samplesState = state;
  const articles = (list) => list.map(([where, text]) => el("article", { class: "sample" }, el("h3", { text: where }), el("p", { text: text.trim() })));
  byId("samples").hidden = !latest.length;
  clear(byId("sample-list")).append(...articles(latest));
  clear(byId("earlier-list")).append(...articles(earlier));
  byId("earlier").hidden = !earlier.length;
}

function setUp() {
  const stored = { axis: "step", smoothing: "0.6", log: false, ...remembered("train", {}) };
  byId("x-axis").value = stored.axis in AXIS_NAMES ? stored.axis : "step";
  byId("smoothing").value = stored.smoothing;
  byId("log-scale").checked = stored.log;
  const update = () => {
    byId("smoothing-out").textContent = Number(byId("smoothing").value).toFixed(2);
    remember("train", { axis: byId("x-axis").value, smoothing: byId("smoothing").value, log: byId("log-scale").checked });
  };
  update();
  byId("chart-options").addEventListener("submit", (event) => event.preventDefault());
  byId("chart-options").addEventListener("input", () => { update(); draw(); });
  byId("filter").addEventListener("input", drawList);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  addEventListener("hashchange", () => { initSelection(); drawList(); poll(true); });
}

setUp();
poll();
