// Stream one model's reply into a column of the page.
import { errorText, events } from "./api.js";
import { completionRequest, history, tokensOf } from "./chat_request.js";
import { addTokens } from "./chat_tokens.js";
import { announce, clear, el } from "./dom.js";

const TRUNCATED = "The oldest turns were dropped: the conversation exceeds this model's context.";

// Generate a reply to the last of these turns.
export async function streamReply(model, turns, column, settings, signal) {
  const turn = turns.at(-1);
  const reply = { model: model.id, text: "", valid: false, nDropped: 0 };
  turn.replies = [...turn.replies.filter((other) => other.model !== model.id), reply];
  const text = el("p", { class: "text" });
  const copy = el("button", { class: "link-button", type: "button", text: "copy", on: { click: () => navigator.clipboard?.writeText(reply.text) } });
  const node = clear(column);
  node.className = "message streaming";
  node.append(el("p", { class: "role" }, el("span", { text: model.id }), copy), text);
  const finish = (outcome) => {
    reply.valid = ["stop", "length"].includes(outcome) || (outcome === "stopped" && reply.text !== "");
    node.classList.remove("streaming");
    const notes = [...node.querySelectorAll(".note, .error")].map((note) => note.textContent);
    announce([`${model.id}: ${reply.text}`, ...notes].join(" "));
  };
  try {
    let outcome = null;
    for await (const event of eventsWithinContext(model, turns, reply, settings, signal)) {
      const atEnd = nearEnd();
      for (const choice of event.choices) {
        const delta = choice.delta ? choice.delta.content ?? "" : choice.text;
        addTokens(text, delta, tokensOf(choice));
        reply.text += delta;
        for (const note of choice.groundling?.safety ?? []) addSafetyNote(node, note);
        outcome = choice.finish_reason ?? outcome;
      }
      if (atEnd) scrollTo({ top: document.body.scrollHeight });
    }
    if (reply.nDropped) addNote(node, TRUNCATED);
    if (outcome === "length") addNote(node, "Stopped at max tokens.");
    finish(outcome);
  } catch (error) {
    if (error.name === "AbortError") {
      addNote(node, "Stopped.");
      finish("stopped");
    } else {
      node.append(el("p", { class: "error", text: errorText(error) }));
      finish("error");
    }
  }
}

// Drop the oldest turns until the request fits the model's context.
async function* eventsWithinContext(model, turns, reply, settings, signal) {
  const before = history(turns.slice(0, -1), model);
  const last = turns.slice(0, -1).flatMap((turn) => turn.replies).filter((other) => other.model === model.id && other.valid).at(-1);
  for (reply.nDropped = Math.min(last?.nDropped ?? 0, before.length); ; reply.nDropped += 1) {
    try {
      yield* events(...completionRequest(model, before.slice(reply.nDropped), turns.at(-1).prompt, settings), signal);
      return;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || reply.nDropped >= before.length) throw error;
    }
  }
}

const addNote = (node, text) => node.append(el("p", { class: "note", text }));
const nearEnd = () => innerHeight + scrollY > document.body.scrollHeight - 80;

// One note per rule, with a count.
function addSafetyNote(node, note) {
  const existing = [...node.querySelectorAll(".safety-note")].find((other) => other.dataset.rule === note.rule);
  if (!existing) { node.append(safetyNote(note)); return; }
  const count = Number(existing.dataset.count ?? 1) + 1;
  existing.dataset.count = count;
  existing.lastChild.textContent = ` (${count} times)`;
}

function safetyNote(note) {
  const action = note.action === "block" ? (note.where === "prompt" ? "Prompt blocked" : "Reply blocked") : "Redacted";
  return el("p", { class: "note safety-note", dataset: { rule: note.rule } }, `${action}: ${note.reason} (rule “${note.rule}”).`, el("span", {}));
}
