// Curves of training runs, as they come: choose some, lay them over each other, and look along them.
import { inWords } from "./api.js";
import { Chart } from "./chart.js";
import { byId, clear, el, remember, remembered } from "./dom.js";
import { Curves, ladderOf, listRuns } from "./train_data.js";

const MAX_RUNS = 6;
const EVERY_MS = 1000;
const LIST_EVERY = 5;
const TITLES = {
  lr_factor: ["Learning rate", "as a part of its peak"], grad_norm: ["Gradient norm"], tokens_per_s: ["Tokens per second"],
  reward: ["Reward"], kl: ["KL", "from where it began"], gold: ["The measure itself"], entropy: ["Entropy"],
  accuracy: ["Accuracy", "on held-out preferences"], margin: ["Margin"], utilisation: ["Utilisation", "of the measured peak"],
  memory_mb: ["Memory", "MB"], clip_fraction: ["Clipped", "as a part of all tokens"], length: ["Length of replies", "tokens"],
  replies_ended: ["Replies that ended"], explained_variance: ["Explained variance"], step_kl: ["KL of a step"], kl_coef: ["KL coefficient"],
};
const FIRST = ["reward", "kl", "gold", "accuracy", "margin", "lr_factor", "grad_norm", "tokens_per_s", "entropy", "length"];
const MAIN = ["loss", "val_loss", "train_loss"];
const AXES = ["n_tokens", "train_s"];
const ALONG = { step: "step", n_tokens: "tokens", train_s: "seconds" };

let runs = [];
let chosen = [];             // names, by the place of their colour; null where one is free
let awaited = [];            // names in the address of runs that have nothing to show yet
const items = new Map();     // of the list, by name: they stay where they are, and so does who is at them
const curves = new Map();
const charts = new Map();
const ladders = new Map();
let round = 0;
let timer = null;
let drawn = "";
let said = "";

const names = () => chosen.filter((name) => name !== null);
const run = (name) => runs.find((each) => each.name === name);

function fromAddress() {
  const words = location.hash.slice(1).split(",").filter(Boolean);
  try { return words.map(decodeURIComponent); } catch { return []; }
}

function choose(name, wanted) {
  const place = chosen.indexOf(name);
  if (wanted && place < 0 && names().length < MAX_RUNS) {
    const free = chosen.indexOf(null);
    if (free < 0) chosen.push(name); else chosen[free] = name;
  } else if (!wanted && place >= 0) {
    chosen[place] = null;
  }
  remember("runs", names());
  history.replaceState(null, "", `#${[...names(), ...awaited].map(encodeURIComponent).join(",")}`);
}

// What the address says; or what was looked at last; or what is worth a look. A run that is named waits to begin.
function begin() {
  const named = fromAddress().slice(0, MAX_RUNS);
  const kept = remembered("runs", []).filter(run).slice(0, MAX_RUNS);
  const first = runs.find((each) => each.state === "live") ?? runs.find((each) => each.served.length) ?? runs[0];
  awaited = named.filter((name) => !run(name));
  chosen = named.length ? named.filter(run) : kept.length ? kept : first ? [first.name] : [];
}

function welcome() {
  const come = awaited.filter(run);
  awaited = awaited.filter((name) => !run(name));
  for (const name of come) choose(name, true);
}

function listAll() {
  const words = byId("filter").value.trim().toLowerCase();
  const list = byId("runs");
  const order = [...runs.filter((each) => each.state === "live"), ...runs.filter((each) => each.state !== "live")];
  const wanted = order.filter((each) => each.name.toLowerCase().includes(words) || each.kind.includes(words)).map((each) => item(each).node);
  if (!wanted.length) wanted.push(el("li", { class: "faint", text: runs.length ? "No run is called so." : "There are no runs yet." }));
  if (wanted.length !== list.children.length || wanted.some((node, number) => list.children[number] !== node)) {
    const here = list.contains(document.activeElement) ? document.activeElement : null;
    list.replaceChildren(...wanted);
    if (here?.isConnected) here.focus({ preventScroll: true });
  }
  const live = runs.filter((each) => each.state === "live").length;
  setText(byId("standing"), `${runs.length} ${runs.length === 1 ? "run" : "runs"}${live ? `, ${live} of them live` : ""}`);
}

function item(each) {
  const one = items.get(each.name) ?? newItem(each.name);
  const place = chosen.indexOf(each.name);
  one.node.className = place >= 0 ? `chosen tint-${place}` : "";
  one.box.checked = place >= 0;
  one.box.disabled = place < 0 && names().length >= MAX_RUNS;
  one.facts.classList.toggle("live", each.state === "live");
  setText(one.facts, factsOf(each));
  return one;
}

function newItem(name) {
  const box = el("input", { type: "checkbox", dataset: { run: name } });
  const facts = el("span", { class: "facts" });
  box.addEventListener("change", () => { choose(name, box.checked); listAll(); tick(true); });
  const node = el("li", {}, el("label", {}, box, el("span", { class: "name", text: name }), el("span", { class: "swatch" }), facts));
  items.set(name, { node, box, facts });
  return items.get(name);
}

function factsOf(each) {
  const loss = each.last.val_loss ?? each.last.loss;
  const state = each.state === "live" ? "live" : each.state === "broken off" ? "broken off" : each.ended && each.ended !== "finished" ? each.ended : null;
  return [state, each.kind, each.step === null ? null : `step ${each.step.toLocaleString("en")}`,
    loss === undefined ? null : `${each.last.val_loss === undefined ? "loss" : "val"} ${loss.toFixed(3)}`,
    each.served.length ? `served as ${each.served.join(", ")}` : null].filter(Boolean).join(" · ");
}

const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };

function trouble(error) {
  const words = error ? inWords(error) : "";
  if (byId("trouble").textContent === words) return;
  clear(byId("trouble"));
  if (error) byId("trouble").append(el("p", { class: "error", text: words }));
}

// Once a second while somebody can see it; what has ended is looked after less often.
async function tick(now = false) {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    if (round % LIST_EVERY === 0) {
      const fresh = runs.length === 0;
      runs = await listRuns();
      if (fresh) begin();
      welcome();
      listAll();
    }
    const asked = names().filter((name) => run(name) && (now || round % LIST_EVERY === 0 || run(name).state === "live" || !curves.has(name)));
    await Promise.all(asked.map(look));
    trouble(null);
    draw();
  } catch (error) {
    trouble(error);
  }
  round += 1;
  clearTimeout(timer);
  timer = setTimeout(tick, EVERY_MS);
}

async function look(name) {
  if (!curves.has(name)) curves.set(name, new Curves(name));
  await curves.get(name).fetch();
  if (run(name).has_ladder) ladders.set(name, await ladderOf(name));
}

function settings() {
  return { axis: byId("along").value, weight: Number(byId("smooth").value), log: byId("log").checked };
}

function draw() {
  const set = settings();
  const state = JSON.stringify([set, chosen, awaited, names().map((name) => curves.get(name)?.version), [...ladders.values()]]);
  if (state === drawn) return;
  drawn = state;
  const known = names().filter((name) => curves.has(name));
  const series = [...new Set(known.flatMap((name) => [...curves.get(name).series.keys()]))];
  const others = series.filter((name) => !MAIN.includes(name) && !AXES.includes(name) && FIRST.includes(name));
  others.sort((a, b) => FIRST.indexOf(a) - FIRST.indexOf(b));
  const rest = series.filter((name) => !MAIN.includes(name) && !AXES.includes(name) && !FIRST.includes(name));
  place("main-chart", series.some((name) => MAIN.includes(name)) ? ["loss"] : [], (chart) => chart.draw({ lines: lossLines(known, set), xName: ALONG[set.axis], log: set.log }));
  place("charts", others, (chart, name) => chart.draw({ lines: plainLines(name, known, set), xName: ALONG[set.axis], log: set.log }));
  place("more-charts", rest, (chart, name) => chart.draw({ lines: plainLines(name, known, set), xName: ALONG[set.axis], log: false }));
  byId("more").hidden = !rest.length;
  drawLadder(known);
  drawSamples(known);
  const silent = set.axis === "step" ? [] : known.filter((name) => curves.get(name).series.size && !curves.get(name).along([...curves.get(name).series.keys()][0], set.axis).length);
  const nothing = !known.length && !awaited.length ? "Choose a run from the bill." : !series.length && !ladders.size ? "Nothing is recorded yet; it will come here by itself." : "";
  const ill = known.filter((name) => curves.get(name).notFinite).map((name) => `${name}: ${curves.get(name).notFinite.toLocaleString("en")} of its figures are no finite numbers (NaN, or infinite) and are not drawn.`);
  setText(byId("ill"), ill.join(" "));
  byId("ill").hidden = !ill.length;
  const waits = awaited.length ? `${awaited.join(", ")}: nothing is recorded yet; it will come here by itself.` : "";
  byId("empty").textContent = waits || nothing || (silent.length ? `${silent.join(", ")}: no ${ALONG[set.axis]} recorded, so not drawn.` : "");
  byId("empty").hidden = !byId("empty").textContent;
}

// Charts under these names, in this order, in a place of the page; those that are there are kept.
function place(id, wanted, drawOne) {
  const host = byId(id);
  const made = wanted.map((name) => {
    const key = `${id} ${name}`;
    if (!charts.has(key)) {
      const [title, note] = id === "main-chart" ? ["Loss", "in nats: training smoothed, and as it came; validation dotted; crosses estimate the training loss as validation is measured"] : TITLES[name] ?? [name.replaceAll("_", " ")];
      charts.set(key, new Chart({ title, note, height: id === "main-chart" ? 340 : 170, onCursor: pointAll }));
    }
    return [charts.get(key), name];
  });
  const nodes = made.map(([chart]) => chart.node);
  if (nodes.length !== host.children.length || nodes.some((node, number) => host.children[number] !== node)) host.replaceChildren(...nodes);
  for (const [chart, name] of made) drawOne(chart, name);
}

function pointAll(x) {
  for (const chart of charts.values()) if (chart.node.isConnected) chart.point(x);
}

function lossLines(known, { axis, weight }) {
  return known.flatMap((name) => {
    const tint = chosen.indexOf(name);
    const own = curves.get(name);
    const lines = [{ name, tint, points: own.smoothAlong("loss", axis, weight), faint: own.along("loss", axis) }];
    lines.push({ name: `${name}, validation`, tint, points: own.along("val_loss", axis), dashed: true, dots: true });
    lines.push({ name: `${name}, training estimate`, tint, points: own.along("train_loss", axis), dots: true, unjoined: true, shape: "cross" });
    return lines;
  });
}

function plainLines(series, known, { axis, weight }) {
  return known.map((name) => {
    const raw = curves.get(name).along(series, axis);
    const noisy = ["grad_norm", "tokens_per_s"].includes(series);
    return { name, tint: chosen.indexOf(name), points: noisy ? curves.get(name).smoothAlong(series, axis, weight) : raw, faint: noisy ? raw : undefined, dots: raw.length <= 3 };
  });
}

// Ladders beside each other, by the names of their rungs; the lecture's losses are the same for all, and stand once.
function drawLadder(known) {
  const climbed = known.filter((each) => ladders.get(each)?.length);
  if (!climbed.length) { clear(byId("ladder")); return; }
  const names = rungNames(climbed.map((name) => ladders.get(name)));
  const points = (rungs, key) => rungs.filter((rung) => rung[key] !== null).map((rung) => [names.indexOf(rung.rung), rung[key]]).sort((a, b) => a[0] - b[0]);
  const lines = climbed.flatMap((name) => {
    const [tint, who] = [chosen.indexOf(name), climbed.length > 1 ? name : "ours"];
    return [{ name: `${who}, all of the validation text`, tint, dots: true, points: points(ladders.get(name), "val_loss") },
      { name: `${who}, random batches`, tint, dots: true, unjoined: true, shape: "cross", points: points(ladders.get(name), "val_loss_random_batches") }];
  });
  const lecture = new Map(climbed.flatMap((name) => ladders.get(name)).filter((rung) => rung.lecture_val_loss !== null).map((rung) => [rung.rung, rung]));
  const free = [...Array(MAX_RUNS).keys()].find((tint) => !climbed.some((name) => chosen.indexOf(name) === tint));
  lines.push({ name: "the lecture", tint: free ?? 0, dots: true, unjoined: true, shape: "diamond", points: points([...lecture.values()], "lecture_val_loss") });
  if (!charts.has("ladder")) charts.set("ladder", new Chart({ title: "The ladder", note: "validation loss at the end of each rung, beside the lecture's", height: 300 }));
  const chart = charts.get("ladder");
  if (chart.node.parentNode !== byId("ladder")) clear(byId("ladder")).append(chart.node);
  chart.draw({ lines, xName: "rung", names });
}

// All rungs, each after the one that it follows in some ladder.
function rungNames(ladders) {
  const names = [];
  for (const rungs of ladders) {
    rungs.forEach(({ rung }, number) => {
      if (!names.includes(rung)) names.splice(number ? names.indexOf(rungs[number - 1].rung) + 1 : 0, 0, rung);
    });
  }
  return names;
}

// The newest of each run; what was said before is there for who asks.
function drawSamples(known) {
  const late = [];
  const early = [];
  for (const name of known) {
    const own = curves.get(name).samples.map(({ step, text }) => [`${name}, step ${step.toLocaleString("en")}`, text]).reverse();
    const rungs = (ladders.get(name) ?? []).filter((rung) => rung.sample).map((rung) => [`${rung.rung} ${rung.adds ?? ""}`, rung.sample]).reverse();
    late.push(...own.slice(0, 1), ...rungs.slice(0, 1));
    early.push(...own.slice(1), ...rungs.slice(1));
  }
  const state = JSON.stringify([late, early]);
  if (state === said) return;
  said = state;
  const articles = (list) => list.map(([where, text]) => el("article", { class: "sample" }, el("h3", { text: where }), el("p", { text: text.trim() })));
  byId("samples").hidden = !late.length;
  clear(byId("sample-list")).append(...articles(late));
  clear(byId("early-list")).append(...articles(early));
  byId("early").hidden = !early.length;
}

function setUp() {
  const kept = { along: "step", smooth: "0.6", log: false, ...remembered("train", {}) };
  byId("along").value = kept.along in ALONG ? kept.along : "step";
  byId("smooth").value = kept.smooth;
  byId("log").checked = kept.log;
  const tell = () => {
    byId("smooth-out").textContent = Number(byId("smooth").value).toFixed(2);
    remember("train", { along: byId("along").value, smooth: byId("smooth").value, log: byId("log").checked });
  };
  tell();
  byId("how").addEventListener("submit", (event) => event.preventDefault());
  byId("how").addEventListener("input", () => { tell(); draw(); });
  byId("filter").addEventListener("input", listAll);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) tick(); });
  addEventListener("hashchange", () => { begin(); listAll(); tick(true); });
}

setUp();
tick();
