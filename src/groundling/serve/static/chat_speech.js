// What one model says: its words as they come, and what else there is to tell of them.
import { events, inWords } from "./api.js";
import { asked, past, pieces } from "./chat_request.js";
import { addTokens } from "./chat_tokens.js";
import { announce, clear, el } from "./dom.js";

const LEFT_OUT = "The oldest turns were left out: the conversation has become longer than this model reads.";

// Let a model answer the last of these turns, in a column of the page.
export async function speak(model, turns, column, set, signal) {
  const turn = turns.at(-1);
  const speech = { model: model.id, text: "", counts: false, leftOut: 0 };
  turn.speeches = [...turn.speeches.filter((other) => other.model !== model.id), speech];
  const lines = el("p", { class: "lines" });
  const copy = el("button", { class: "small", type: "button", text: "copy", on: { click: () => navigator.clipboard?.writeText(speech.text) } });
  const part = clear(column);
  part.className = "speech speaking";
  part.append(el("p", { class: "speaker" }, el("span", { text: model.id }), copy), lines);
  const finish = (outcome) => {
    speech.counts = ["stop", "length"].includes(outcome) || (outcome === "stopped" && speech.text !== "");
    part.classList.remove("speaking");
    const told = [...part.querySelectorAll(".aside, .error")].map((note) => note.textContent);
    announce([`${model.id}: ${speech.text}`, ...told].join(" "));
  };
  try {
    let outcome = null;
    for await (const event of whole(model, turns, speech, set, signal)) {
      const atEnd = nearEnd();
      for (const choice of event.choices) {
        const text = choice.delta ? choice.delta.content ?? "" : choice.text;
        addTokens(lines, text, pieces(choice));
        speech.text += text;
        for (const note of choice.groundling?.safety ?? []) noted(part, note);
        outcome = choice.finish_reason ?? outcome;
      }
      if (atEnd) scrollTo({ top: document.body.scrollHeight });
    }
    if (speech.leftOut) aside(part, LEFT_OUT);
    if (outcome === "length") aside(part, "He is cut short: the most tokens were reached.");
    finish(outcome);
  } catch (error) {
    if (error.name === "AbortError") {
      aside(part, "Stopped.");
      finish("stopped");
    } else {
      part.append(el("p", { class: "error", text: inWords(error) }));
      finish("error");
    }
  }
}

// The events of an answer to as much of the conversation as the model can read.
async function* whole(model, turns, speech, set, signal) {
  const before = past(turns.slice(0, -1), model);
  const last = turns.slice(0, -1).flatMap((turn) => turn.speeches).filter((other) => other.model === model.id && other.counts).at(-1);
  for (speech.leftOut = Math.min(last?.leftOut ?? 0, before.length); ; speech.leftOut += 1) {
    try {
      yield* events(...asked(model, before.slice(speech.leftOut), turns.at(-1).words, set), signal);
      return;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || speech.leftOut >= before.length) throw error;
    }
  }
}

const aside = (part, text) => part.append(el("p", { class: "aside", text }));
const nearEnd = () => innerHeight + scrollY > document.body.scrollHeight - 80;

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
