// The chat: one prompt, a column for each model, words as they come, and what else was weighed for each.
import { events, inWords, models } from "./api.js";
import { announce, byId, clear, el, remember, remembered } from "./dom.js";
import { hideWeighed, showWeighed, tokenSpan } from "./chat_tokens.js";

const DEFAULTS = { temperature: 0.8, top_p: 1, top_k: 0, max_tokens: 120, seed: "", stops: "", system: "" };
const MOST = 4;
const play = byId("play");
const turns = [];  // { words, speeches: [{ model, text, done }] }
let cast = [];
let chosen = new Set();
let running = null;
let editing = null;

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
  chosen = new Set(before.length ? before.slice(0, MOST) : cast.slice(0, 1).map((model) => model.id));
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
  for (const box of byId("cast").querySelectorAll("input")) box.disabled = !box.checked && chosen.size >= MOST;
  byId("send").disabled = chosen.size === 0;
}

function request(model, upTo) {
  const set = settings();
  const body = { model: model.id, stream: true, temperature: Number(set.temperature), top_p: Number(set.top_p), max_tokens: Number(set.max_tokens) };
  if (Number(set.top_k) > 0) body.top_k = Number(set.top_k);
  if (set.seed !== "") body.seed = Number(set.seed);
  const stops = set.stops.split("\n").filter((line) => line !== "");
  if (stops.length) body.stop = stops;
  if (model.groundling.chat) {
    const messages = set.system ? [{ role: "system", content: set.system }] : [];
    for (const turn of turns.slice(0, upTo)) {
      const said = turn.speeches.find((speech) => speech.model === model.id);
      if (said) messages.push({ role: "user", content: turn.words }, { role: "assistant", content: said.text });
    }
    messages.push({ role: "user", content: turns[upTo].words });
    return ["/v1/chat/completions", { ...body, messages, logprobs: true, top_logprobs: 8 }];
  }
  let prompt = "";
  for (const turn of turns.slice(0, upTo)) {
    const said = turn.speeches.find((speech) => speech.model === model.id);
    if (said) prompt += turn.words + said.text + "\n";
  }
  return ["/v1/completions", { ...body, prompt: prompt + turns[upTo].words, logprobs: 8 }];
}

// New pieces of a choice as tokens, from either form of answer.
function pieces(choice) {
  if (!choice.logprobs) return [];
  if (choice.logprobs.content) {
    return choice.logprobs.content.map((token) => ({
      text: token.token, bytes: token.bytes, logprob: token.logprob,
      likely: token.top_logprobs.map((other) => [other.token, other.logprob]),
    }));
  }
  const { tokens, token_logprobs: own, top_logprobs: top } = choice.logprobs;
  return tokens.map((text, i) => ({
    text, bytes: null, logprob: own[i], likely: Object.entries(top[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
}

async function speak(model, number, column, signal) {
  const speech = { model: model.id, text: "", done: false };
  const turn = turns[number];
  turn.speeches = [...turn.speeches.filter((other) => other.model !== model.id), speech];
  const lines = el("p", { class: "lines" });
  const copy = el("button", { class: "small", type: "button", text: "copy", on: { click: () => navigator.clipboard?.writeText(speech.text) } });
  const part = clear(column);
  part.className = "speech speaking";
  part.append(el("p", { class: "speaker" }, el("span", { text: model.id }), copy), lines);
  try {
    const [path, body] = request(model, number);
    for await (const event of events(path, body, signal)) {
      const atEnd = nearEnd();
      for (const choice of event.choices) {
        const text = choice.delta ? choice.delta.content ?? "" : choice.text;
        addTokens(lines, text, pieces(choice));
        speech.text += text;
        for (const note of choice.groundling?.safety ?? []) noted(part, note);
        if (choice.finish_reason === "length") part.append(el("p", { class: "aside", text: "He is cut short: the most tokens were reached." }));
      }
      if (atEnd) scrollTo({ top: document.body.scrollHeight });
    }
    announce(`${model.id}: ${speech.text}`);
  } catch (error) {
    if (error.name !== "AbortError") part.append(el("p", { class: "error", text: inWords(error) }));
    else part.append(el("p", { class: "aside", text: "Stopped." }));
  } finally {
    speech.done = true;
    part.classList.remove("speaking");
  }
}

// What is shown is the text itself; tokens are laid over it as far as they are it.
function addTokens(lines, text, tokens) {
  let left = text;
  for (const token of tokens) {
    if (token.text && left.startsWith(token.text)) {
      lines.append(tokenSpan(token));
      left = left.slice(token.text.length);
    } else if (left) {  // part of a character, or hidden: its text stands without it
      const next = tokens.slice(tokens.indexOf(token) + 1).find((other) => other.text && left.includes(other.text));
      const until = next ? left.indexOf(next.text) : left.length;
      lines.append(tokenSpan({ ...token, text: left.slice(0, until) }));
      left = left.slice(until);
    }
  }
  if (left) lines.append(left);
}

// A rule is told once, and how often it had to do something.
function noted(part, note) {
  const before = [...part.querySelectorAll(".hidden-text")].find((other) => other.dataset.rule === note.rule);
  if (!before) { part.append(safetyNote(note)); return; }
  const times = Number(before.dataset.times ?? 1) + 1;
  before.dataset.times = times;
  before.lastChild.textContent = ` ${times} times.`;
}

function safetyNote(note) {
  const did = note.action === "block" ? (note.where === "prompt" ? "Your words were not passed on" : "The reply ends here") : "Something is hidden";
  return el("p", { class: "aside hidden-text", dataset: { rule: note.rule } }, `${did}: ${note.reason} (rule “${note.rule}”).`, el("span", {}));
}

const nearEnd = () => innerHeight + scrollY > document.body.scrollHeight - 80;

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
    return speak(model, number, column, running.signal);
  }));
  running = null;
  busy(false);
}

function busy(is) {
  byId("stop").hidden = !is;
  byId("send").disabled = is || chosen.size === 0;
  byId("again").disabled = byId("fresh").disabled = is || turns.length === 0;
  byId("empty").hidden = turns.length > 0;
  if (!is) limit();
}

function cut(number) {
  for (const turn of turns.splice(number)) turn.node?.remove();
}

function beginEdit(number) {
  if (running) return;
  editing = number;
  byId("words").value = turns[number].words;
  byId("words").focus();
  byId("send").textContent = "Say it so instead";
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
  editing = null;
  byId("send").textContent = "Say it";
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
byId("fresh").addEventListener("click", () => { cut(0); editing = null; byId("send").textContent = "Say it"; busy(false); byId("words").focus(); });
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  hideWeighed();
  running?.abort();
});
for (const name of ["pointerover", "focusin"]) play.addEventListener(name, (event) => showWeighed(event.target));
for (const name of ["pointerout", "focusout"]) play.addEventListener(name, hideWeighed);
// Arrow keys walk over the tokens of a reply, of which one at a time can be reached by Tab.
play.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || !event.target.classList.contains("token")) return;
  const all = [...event.target.parentNode.querySelectorAll(".token")];
  const next = all[all.indexOf(event.target) + step];
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
