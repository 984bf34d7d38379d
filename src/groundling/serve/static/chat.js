// Chat: one prompt, a column per model, streamed replies with token probabilities.
import { errorText, models as fetchModels } from "./api.js";
import { streamReply } from "./chat_stream.js";
import { hideTokenInfo, showTokenInfo } from "./chat_tokens.js";
import { byId, clear, el, remember, remembered, roving } from "./dom.js";

const DEFAULTS = { temperature: 0.8, top_p: 1, top_k: 0, max_tokens: 120, seed: "", stop_sequences: "", system_prompt: "" };
const MAX_MODELS = 4;
const conversation = byId("conversation");
const turns = [];  // { prompt, replies: [{ model, text, valid, nDropped }], node }
let models = [];
let selected = new Set();
let running = null;
let editing = null;          // index of the turn being edited
let draft = "";             // unsent text, restored when an edit is cancelled

function settings() {
  const values = {};
  for (const name of Object.keys(DEFAULTS)) values[name] = byId(name).value;
  return values;
}

function setUp() {
  const stored = { ...DEFAULTS, ...remembered("chat", {}) };
  for (const [name, value] of Object.entries(stored)) if (byId(name)) byId(name).value = value;
  const update = () => {
    for (const name of ["temperature", "top_p"]) byId(`${name}-out`).textContent = byId(name).value;
    remember("chat", settings());
  };
  byId("settings").addEventListener("input", update);
  update();
  byId("show-confidence").checked = remembered("show-confidence", false);
  conversation.classList.toggle("shaded", byId("show-confidence").checked);
  byId("show-confidence").addEventListener("change", () => {
    remember("show-confidence", byId("show-confidence").checked);
    conversation.classList.toggle("shaded", byId("show-confidence").checked);
  });
}

async function loadModels() {
  try {
    models = await fetchModels();
  } catch (error) {
    showError(error, loadModels);
    return;
  }
  const stored = remembered("chat-models", []).filter((id) => models.some((model) => model.id === id));
  selected = new Set(stored.length ? stored.slice(0, MAX_MODELS) : models.slice(0, 1).map((model) => model.id));
  const list = clear(byId("models"));
  for (const model of models) {
    const box = el("input", { type: "checkbox", checked: selected.has(model.id) });
    box.addEventListener("change", () => {
      if (box.checked) selected.add(model.id); else selected.delete(model.id);
      remember("chat-models", [...selected]);
      limitModels();
    });
    const kind = model.groundling.chat ? "chat model" : "base model";
    list.append(el("label", { class: "chip", title: `${model.groundling.n_params.toLocaleString("en")} parameters` },
      box, model.id, el("span", { class: "faint", text: kind })));
  }
  limitModels();
}

// More than MAX_MODELS columns are unreadable.
function limitModels() {
  for (const box of byId("models").querySelectorAll("input")) box.disabled = !box.checked && selected.size >= MAX_MODELS;
  byId("send").disabled = selected.size === 0;
}

function draw(number) {
  const turn = turns[number];
  const columns = el("div", { class: "columns" });
  const edit = el("button", { class: "link-button", type: "button", text: "edit", on: { click: () => beginEdit(number) } });
  const user = el("div", { class: "message user" }, el("p", { class: "role" }, el("span", { text: "You" }), edit),
    el("p", { class: "text", text: turn.prompt }));
  turn.node = el("section", { class: "turn" , "aria-label": `Turn ${number + 1}` }, user, columns);
  conversation.append(turn.node);
  return columns;
}

async function generate(number) {
  const turn = turns[number];
  const columns = turn.node ? clear(turn.node.querySelector(".columns")) : draw(number);
  turn.replies = [];
  running = new AbortController();
  setBusy(true);
  await Promise.all(models.filter((model) => selected.has(model.id)).map((model) => {
    const column = el("div", {});
    columns.append(column);
    return streamReply(model, turns.slice(0, number + 1), column, settings(), running.signal);
  }));
  running = null;
  setBusy(false);
}

// Move the focus from a button that disappears to the one that replaces it.
function setBusy(busy) {
  const stop = byId("stop");
  const focused = document.activeElement;
  const moves = busy ? ["send", "regenerate", "new-chat"].some((id) => focused === byId(id)) || conversation.contains(focused) : focused === stop;
  if (busy) stop.hidden = false;
  byId("send").disabled = busy || selected.size === 0;
  byId("regenerate").disabled = byId("new-chat").disabled = busy || turns.length === 0;
  byId("empty").hidden = turns.length > 0;
  if (moves) (busy ? stop : byId("regenerate")).focus({ preventScroll: true });
  stop.hidden = !busy;
  if (!busy) limitModels();
}

function removeFrom(number) {
  for (const turn of turns.splice(number)) turn.node?.remove();
}

function beginEdit(number) {
  if (running) return;
  if (editing === null) draft = byId("message").value;
  setEditing(number);
  byId("message").value = turns[number].prompt;
  byId("message").focus();
}

function cancelEdit() {
  if (editing === null) return;
  setEditing(null);
  byId("message").value = draft;
  byId("message").focus();
}

function setEditing(number) {
  editing = number;
  byId("send").textContent = number === null ? "Send" : "Send edit";
  byId("cancel-edit").hidden = number === null;
  for (const [index, turn] of turns.entries()) turn.node?.classList.toggle("editing", number !== null && index >= number);
}

function showError(error, retry) {
  const place = clear(byId("page-error"));
  place.append(el("p", { class: "error" }, errorText(error), " ",
    el("button", { class: "link-button", type: "button", text: "try again", on: { click: () => { clear(place); retry(); } } })));
}

async function send() {
  const prompt = byId("message").value;
  if (running || !prompt.trim() || !selected.size) return;
  clear(byId("page-error"));
  if (editing !== null) removeFrom(editing);
  setEditing(null);
  byId("message").value = "";
  turns.push({ prompt, replies: [], node: null });
  await generate(turns.length - 1);
}

setUp();
loadModels();
byId("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
byId("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
byId("stop").addEventListener("click", () => running?.abort());
byId("regenerate").addEventListener("click", () => { if (!running && turns.length) generate(turns.length - 1); });
byId("cancel-edit").addEventListener("click", cancelEdit);
byId("new-chat").addEventListener("click", () => { removeFrom(0); setEditing(null); setBusy(false); byId("message").focus(); });
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  hideTokenInfo();
  if (running) running.abort();
  else cancelEdit();
});
for (const name of ["pointerover", "focusin"]) conversation.addEventListener(name, (event) => showTokenInfo(event.target));
// A touch pointer leaves right after the tap; keep the tooltip until the next tap.
conversation.addEventListener("pointerout", (event) => { if (event.pointerType !== "touch") hideTokenInfo(); });
conversation.addEventListener("focusout", hideTokenInfo);
roving(conversation, ".token");
