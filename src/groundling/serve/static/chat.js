// The chat: one prompt, a column for each model, words as they come, and what else was weighed for each.
import { inWords, models } from "./api.js";
import { speak } from "./chat_speech.js";
import { hideWeighed, showWeighed } from "./chat_tokens.js";
import { byId, clear, el, remember, remembered, roving } from "./dom.js";

const DEFAULTS = { temperature: 0.8, top_p: 1, top_k: 0, max_tokens: 120, seed: "", stops: "", system: "" };
const MAX_MODELS = 4;
const play = byId("play");
const turns = [];  // { words, speeches: [{ model, text, counts, leftOut }], node }
let cast = [];
let chosen = new Set();
let running = null;
let editing = null;          // the number of the turn that is said anew
let draft = "";             // what was being written when that began

function settings() {
  const values = {};
  for (const name of Object.keys(DEFAULTS)) values[name] = byId(name).value;
  return values;
}

function setUp() {
  const kept = { ...DEFAULTS, ...remembered("chat", {}) };
  for (const [name, value] of Object.entries(kept)) if (byId(name)) byId(name).value = value;
  const tell = () => {
    for (const name of ["temperature", "top_p"]) byId(`${name}-out`).textContent = byId(name).value;
    remember("chat", settings());
  };
  byId("settings").addEventListener("input", tell);
  tell();
  byId("shade").checked = remembered("shade", false);
  play.classList.toggle("shaded", byId("shade").checked);
  byId("shade").addEventListener("change", () => {
    remember("shade", byId("shade").checked);
    play.classList.toggle("shaded", byId("shade").checked);
  });
}

async function loadCast() {
  try {
    cast = await models();
  } catch (error) {
    trouble(error, loadCast);
    return;
  }
  const before = remembered("cast", []).filter((id) => cast.some((model) => model.id === id));
  chosen = new Set(before.length ? before.slice(0, MAX_MODELS) : cast.slice(0, 1).map((model) => model.id));
  const list = clear(byId("cast"));
  for (const model of cast) {
    const box = el("input", { type: "checkbox", checked: chosen.has(model.id) });
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(model.id); else chosen.delete(model.id);
      remember("cast", [...chosen]);
      limit();
    });
    const kind = model.groundling.chat ? "answers" : "goes on";
    list.append(el("label", { class: "chip", title: `${model.groundling.n_params.toLocaleString("en")} parameters` },
      box, model.id, el("span", { class: "faint", text: kind })));
  }
  limit();
}

// Four columns are as many as can be read.
function limit() {
  for (const box of byId("cast").querySelectorAll("input")) box.disabled = !box.checked && chosen.size >= MAX_MODELS;
  byId("send").disabled = chosen.size === 0;
}

function draw(number) {
  const turn = turns[number];
  const columns = el("div", { class: "columns" });
  const edit = el("button", { class: "small", type: "button", text: "edit", on: { click: () => beginEdit(number) } });
  const you = el("div", { class: "speech you" }, el("p", { class: "speaker" }, el("span", { text: "You" }), edit),
    el("p", { class: "lines", text: turn.words }));
  turn.node = el("section", { class: "turn" , "aria-label": `Turn ${number + 1}` }, you, columns);
  play.append(turn.node);
  return columns;
}

async function perform(number) {
  const turn = turns[number];
  const columns = turn.node ? clear(turn.node.querySelector(".columns")) : draw(number);
  turn.speeches = [];
  running = new AbortController();
  busy(true);
  const players = cast.filter((model) => chosen.has(model.id));
  await Promise.all(players.map((model) => {
    const column = el("div", {});
    columns.append(column);
    return speak(model, turns.slice(0, number + 1), column, settings(), running.signal);
  }));
  running = null;
  busy(false);
}

// A button that goes gives the focus to the one that comes.
function busy(is) {
  const stop = byId("stop");
  const here = document.activeElement;
  const goes = is ? ["send", "again", "fresh"].some((id) => here === byId(id)) || play.contains(here) : here === stop;
  if (is) stop.hidden = false;
  byId("send").disabled = is || chosen.size === 0;
  byId("again").disabled = byId("fresh").disabled = is || turns.length === 0;
  byId("empty").hidden = turns.length > 0;
  if (goes) (is ? stop : byId("again")).focus({ preventScroll: true });
  stop.hidden = !is;
  if (!is) limit();
}

function cut(number) {
  for (const turn of turns.splice(number)) turn.node?.remove();
}

function beginEdit(number) {
  if (running) return;
  if (editing === null) draft = byId("words").value;
  setEditing(number);
  byId("words").value = turns[number].words;
  byId("words").focus();
}

function leaveEdit() {
  if (editing === null) return;
  setEditing(null);
  byId("words").value = draft;
  byId("words").focus();
}

function setEditing(number) {
  editing = number;
  byId("send").textContent = number === null ? "Say it" : "Say it so instead";
  byId("leave").hidden = number === null;
  for (const [at, turn] of turns.entries()) turn.node?.classList.toggle("edited", number !== null && at >= number);
}

function trouble(error, retry) {
  const place = clear(byId("trouble"));
  place.append(el("p", { class: "error" }, inWords(error), " ",
    el("button", { class: "small", type: "button", text: "try again", on: { click: () => { clear(place); retry(); } } })));
}

async function send() {
  const words = byId("words").value;
  if (running || !words.trim() || !chosen.size) return;
  clear(byId("trouble"));
  if (editing !== null) cut(editing);
  setEditing(null);
  byId("words").value = "";
  turns.push({ words, speeches: [], node: null });
  await perform(turns.length - 1);
}

setUp();
loadCast();
byId("prompter").addEventListener("submit", (event) => { event.preventDefault(); send(); });
byId("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
byId("stop").addEventListener("click", () => running?.abort());
byId("again").addEventListener("click", () => { if (!running && turns.length) perform(turns.length - 1); });
byId("leave").addEventListener("click", leaveEdit);
byId("fresh").addEventListener("click", () => { cut(0); setEditing(null); busy(false); byId("words").focus(); });
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  hideWeighed();
  if (running) running.abort();
  else leaveEdit();
});
for (const name of ["pointerover", "focusin"]) play.addEventListener(name, (event) => showWeighed(event.target));
// A finger leaves when it has tapped; what it has tapped on stays until it taps elsewhere.
play.addEventListener("pointerout", (event) => { if (event.pointerType !== "touch") hideWeighed(); });
play.addEventListener("focusout", hideWeighed);
roving(play, ".token");
