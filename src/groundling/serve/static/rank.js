// Ranking: a prompt, replies without names, and one answer that is kept before the next question comes.
import { api, inWords, request } from "./api.js";
import { announce, byId, clear, el, remember, remembered } from "./dom.js";
import { watchTraining } from "./rank_training.js";

const SETTLES_MS = 400;  // a question takes no answers before: they were meant for the one that stood there
const ORDINALS = ["first", "second", "third", "fourth"];
let current = null;      // the question on the page
let pending = null;      // an answer that is not yet known to be kept: { body, button }
let coming = null;       // a question that is being fetched while this one is read: { for, promise }
let asked = 0;           // counts requests for a question: an answer to an older one is dropped

const rater = () => byId("rater").value.trim();
const places = () => Number(byId("n").value);

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function trouble(error) {
  clear(byId("trouble"));
  if (error) byId("trouble").append(el("p", { class: "error", text: inWords(error) }));
}

// What is asked for: a question that was fetched for somebody else, or for another number of replies, is not used.
const wish = () => `${places()} ${rater()}`;

function fetchQuestion(prompt) {
  const query = new URLSearchParams({ rater: rater(), n: places() });
  if (prompt) query.set("prompt", prompt);
  return api(`/v1/groundling/rankings/next?${query}`);
}

async function next({ prompt = null, focus = false } = {}) {
  const number = ++asked;
  current = null;
  pending = null;
  byId("again").hidden = true;
  trouble(null);
  if (!rater()) {
    showNothing("Give your name below; then the play begins.");
    return;
  }
  const ready = !prompt && coming?.for === wish() ? coming.promise : null;
  coming = null;
  showWaiting();
  try {
    const question = await (ready ?? fetchQuestion(prompt)).catch((error) => {
      if (ready && error.status !== 409) return fetchQuestion(null);
      throw error;
    });
    if (number !== asked) return;
    show(question, focus);
  } catch (error) {
    if (number !== asked) return;
    showNothing("There is no question.");
    trouble(error);
    byId("again").hidden = false;
    if (error.code === "not_ready") setTimeout(() => { if (number === asked) next(); }, 2000);
  }
}

function prefetch() {
  const promise = fetchQuestion(null);
  promise.catch(() => {});  // it is told when it is wanted
  coming = { for: wish(), promise };
}

function setBusy(busy) {
  byId("question").setAttribute("aria-busy", String(busy));
  for (const button of [...byId("replies").querySelectorAll("button"), byId("tie"), byId("skip")]) button.disabled = busy;
}

function showNothing(words) {
  clear(byId("prompt")).append(el("p", { class: "faint", text: words }));
  clear(byId("replies"));
  setBusy(true);
}

function showWaiting() {
  const list = clear(byId("replies"));
  clear(byId("prompt")).append(el("p", { class: "faint", text: "The players are thinking …" }));
  for (let place = 1; place <= places(); place += 1) list.append(el("li", { class: "waiting" }, replyButton(place, "")));
  setBusy(true);
}

// The second half of a double click is no second answer.
const clicked = (choice) => (event) => { if (event.detail < 2) answer(choice); };

function replyButton(place, text) {
  const said = text.trim() === "" ? el("span", { class: "said silent", text: "(says nothing)" }) : el("span", { class: "said", text });
  return el("button", {
    type: "button", class: "reply", dataset: { place },
    on: { click: clicked({ best: place }) },
  }, el("span", { class: "place", text: String(place) }), said);
}

// Whoever writes in a field, or is elsewhere on the page, stays there.
function focusOn(node) {
  const here = document.activeElement;
  const waits = here === document.body || byId("question").contains(here) || here.matches("#own-form button");
  if (waits) node.focus({ preventScroll: true });
}

function show(question, focus) {
  const number = asked;
  const prompt = clear(byId("prompt"));
  for (const message of question.messages) {
    if (question.messages.length > 1) prompt.append(el("p", { class: "speaker", text: message.role }));
    prompt.append(el("p", { text: message.content }));
  }
  clear(byId("replies")).append(...question.replies.map((reply) => el("li", {}, replyButton(reply.place, reply.text))));
  setBusy(true);
  setTimeout(() => {
    if (number !== asked) return;
    current = question;
    setBusy(false);
  }, SETTLES_MS);
  if (focus) focusOn(byId("question-title"));
  const said = question.replies.map((reply) => `Reply ${reply.place}: ${reply.text.trim() || "says nothing"}`).join(". ");
  announce(`Prompt: ${question.messages.at(-1).content}. ${said}.`);
  prefetch();
}

async function answer(choice) {
  if (!current || pending) return;
  const body = { question: current.question, choice, rater: rater(), key: newKey() };
  byId("replies").querySelector(`[data-place="${choice.best}"]`)?.classList.add("chosen");
  await send(body);
}

// An answer whose fate is not known is sent again under its key: it is kept once.
async function send(body) {
  pending = body;
  setBusy(true);
  trouble(null);
  byId("again").hidden = true;
  try {
    const kept = await api("/v1/groundling/rankings", { method: "POST", body });
    tellKept(kept);
    refresh();
    await next({ focus: true });
  } catch (error) {
    trouble(error);
    if (error.status === 404 || error.status === 409) {
      tell("That answer was not kept: the question was too old, or answered elsewhere. Here is another one.");
      coming = null;  // the server may be another one, which knows no more of that than of this
      await next({ focus: true });
      return;
    }
    byId("again").hidden = false;
    focusOn(byId("again"));
  }
}

function tell(...parts) {
  clear(byId("kept")).append(...parts);
}

function tellKept(kept) {
  if (kept.choice === "skip") return tell("Kept: skipped. It says nothing about the replies.");
  const who = (place) => el("b", { text: kept.revealed[place - 1].model });
  const names = kept.revealed.flatMap((_, place) => [place === 0 ? "" : place === kept.revealed.length - 1 ? " and " : ", ", who(place + 1)]);
  if (kept.choice === "tie") return tell("Kept: all are as good. They were ", ...names, ".");
  const best = kept.choice[0][0];
  const others = kept.revealed.filter((each) => each.place !== best);
  const rest = others.flatMap((each, number) => [number ? ", " : "", el("b", { text: each.model })]);
  return tell(`Kept: the ${ORDINALS[best - 1]} was best. It was `, who(best), ", before ", ...rest, ".");
}

async function refresh() {
  try {
    const query = rater() ? `?${new URLSearchParams({ rater: rater() })}` : "";
    const counts = await api(`/v1/groundling/rankings${query}`);
    const mine = counts.by_you ?? 0;
    const prompts = counts.to_ask ? `${counts.prompts_by_you ?? 0} of ${counted(counts.to_ask, "prompt")} from` : "prompts from";
    byId("standing").textContent = rater() ? `${counted(mine, "answer")} by ${rater()}, to ${prompts} ${counts.prompts_from}` : "";
    const told = [
      `${counted(counts.judgements, "answer")} by ${counted(counts.raters, "rater")}`,
      `${counted(counts.pairs, "preference")}, ${counted(counts.ties, "tie")}, ${counts.skips} skipped`,
    ].join("; ");
    const lacking = counts.pairs < counts.least_pairs ? ` A reward model needs ${counts.least_pairs} preferences at least; some hundreds make it any good.` : "";
    byId("sum").textContent = `${told}.${lacking}`;
    byId("train").disabled = counts.pairs < counts.least_pairs || counts.models.length === 0;
    const select = byId("base");
    if (select.options.length !== counts.models.length) {
      clear(select).append(...counts.models.map((name) => el("option", { text: name })));
    }
  } catch (error) {
    trouble(error);
  }
}

const counted = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

async function exportAll() {
  try {
    const response = await request("/v1/groundling/rankings/export");
    const link = el("a", { href: URL.createObjectURL(await response.blob()), download: "rankings.jsonl" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    announce("The rankings were exported.");
  } catch (error) {
    trouble(error);
  }
}

function onKey(event) {
  if (!byId("keys").checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input:not([type=checkbox]), textarea, select, dialog")) return;
  const key = event.key.toLowerCase();
  if (!current || pending) return;
  if (key === "t") answer("tie");
  else if (key === "s") answer("skip");
  else if (/^[1-4]$/.test(key) && Number(key) <= current.replies.length) answer({ best: Number(key) });
  else return;
  event.preventDefault();
}

function setUp() {
  byId("rater").value = remembered("rater", "");
  byId("n").value = String(remembered("replies", 2));
  byId("keys").checked = remembered("rank-keys", true);
  byId("rater").addEventListener("change", () => { remember("rater", rater()); refresh(); next(); });
  byId("n").addEventListener("change", () => { remember("replies", places()); next(); });
  byId("keys").addEventListener("change", () => remember("rank-keys", byId("keys").checked));
  byId("tie").addEventListener("click", clicked("tie"));
  byId("skip").addEventListener("click", clicked("skip"));
  byId("again").addEventListener("click", () => (pending ? send(pending) : next({ focus: true })));
  byId("export").addEventListener("click", exportAll);
  byId("own-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const words = byId("own-words").value.trim();
    if (words) next({ prompt: words, focus: true });
  });
  document.addEventListener("keydown", onKey);
}

setUp();
watchTraining(trouble);
refresh();
next();
if (!rater()) byId("rater").focus();
