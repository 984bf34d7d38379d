// Compare: a prompt and anonymous replies; each answer is stored before the next question appears.
import { api, errorText, request } from "./api.js";
import { announce, byId, clear, el, remember, remembered } from "./dom.js";
import { watchTraining } from "./rank_training.js";

const LOCK_MS = 400;     // ignore clicks meant for the previous question
const ORDINALS = ["first", "second", "third", "fourth"];
let current = null;      // the question shown
let pending = null;      // body of an answer not yet confirmed by the server
let prefetched = null;   // the next question: { key, promise }
let nRequests = 0;       // identifies the newest question request; older responses are dropped

const rater = () => byId("rater").value.trim();
const nReplies = () => Number(byId("n-replies").value);

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function showError(error) {
  clear(byId("page-error"));
  if (error) byId("page-error").append(el("p", { class: "error", text: errorText(error) }));
}

// A prefetched question is used only for the same rater and number of replies.
const prefetchKey = () => `${nReplies()} ${rater()}`;

function fetchQuestion(prompt) {
  const query = new URLSearchParams({ rater: rater(), n: nReplies() });
  if (prompt) query.set("prompt", prompt);
  return api(`/v1/groundling/rankings/next?${query}`);
}

async function next({ prompt = null, focus = false } = {}) {
  const number = ++nRequests;
  current = null;
  pending = null;
  byId("retry").hidden = true;
  showError(null);
  if (!rater()) {
    showPlaceholder("Enter a rater name below to start.");
    return;
  }
  const ready = !prompt && prefetched?.key === prefetchKey() ? prefetched.promise : null;
  prefetched = null;
  showLoading();
  try {
    const question = await (ready ?? fetchQuestion(prompt)).catch((error) => {
      if (ready && error.status !== 409) return fetchQuestion(null);
      throw error;
    });
    if (number !== nRequests) return;
    show(question, focus);
  } catch (error) {
    if (number !== nRequests) return;
    showPlaceholder("No question available.");
    showError(error);
    byId("retry").hidden = false;
    if (error.code === "not_ready") setTimeout(() => { if (number === nRequests) next(); }, 2000);
  }
}

function prefetch() {
  const promise = fetchQuestion(null);
  promise.catch(() => {});  // reported when the question is used
  prefetched = { key: prefetchKey(), promise };
}

function setBusy(busy) {
  byId("question").setAttribute("aria-busy", String(busy));
  for (const button of [...byId("replies").querySelectorAll("button"), byId("tie"), byId("skip")]) button.disabled = busy;
}

function showPlaceholder(text) {
  clear(byId("prompt")).append(el("p", { class: "faint", text }));
  clear(byId("replies"));
  setBusy(true);
}

function showLoading() {
  const list = clear(byId("replies"));
  clear(byId("prompt")).append(el("p", { class: "faint", text: "Generating replies …" }));
  for (let place = 1; place <= nReplies(); place += 1) list.append(el("li", { class: "loading" }, replyButton(place, "")));
  setBusy(true);
}

// Ignore the second click of a double click.
const onClick = (choice) => (event) => { if (event.detail < 2) answer(choice); };

function replyButton(place, reply) {
  const text = reply.trim() === "" ? el("span", { class: "text no-text", text: "(empty reply)" }) : el("span", { class: "text", text: reply });
  return el("button", {
    type: "button", class: "reply", dataset: { place },
    on: { click: onClick({ best: place }) },
  }, el("span", { class: "place", text: String(place) }), text);
}

// Do not take the focus from a form field or another part of the page.
function focusOn(node) {
  const focused = document.activeElement;
  const free = focused === document.body || byId("question").contains(focused) || focused.matches("#custom-form button");
  if (free) node.focus({ preventScroll: true });
}

function show(question, focus) {
  const number = nRequests;
  const prompt = clear(byId("prompt"));
  for (const message of question.messages) {
    if (question.messages.length > 1) prompt.append(el("p", { class: "role", text: message.role }));
    prompt.append(el("p", { text: message.content }));
  }
  clear(byId("replies")).append(...question.replies.map((reply) => el("li", {}, replyButton(reply.place, reply.text))));
  setBusy(true);
  setTimeout(() => {
    if (number !== nRequests) return;
    current = question;
    setBusy(false);
  }, LOCK_MS);
  if (focus) focusOn(byId("question-title"));
  const replies = question.replies.map((reply) => `Reply ${reply.place}: ${reply.text.trim() || "empty"}`).join(". ");
  announce(`Prompt: ${question.messages.at(-1).content}. ${replies}.`);
  prefetch();
}

async function answer(choice) {
  if (!current || pending) return;
  const body = { question: current.question, choice, rater: rater(), key: newKey() };
  byId("replies").querySelector(`[data-place="${choice.best}"]`)?.classList.add("chosen");
  await send(body);
}

// After an error the same body is sent again; its key makes the request idempotent.
async function send(body) {
  pending = body;
  setBusy(true);
  showError(null);
  byId("retry").hidden = true;
  try {
    const saved = await api("/v1/groundling/rankings", { method: "POST", body });
    showSaved(saved);
    refresh();
    await next({ focus: true });
  } catch (error) {
    showError(error);
    if (error.status === 404 || error.status === 409) {
      setResult("Answer not saved: the question expired or was answered elsewhere. Here is another one.");
      prefetched = null;  // after a server restart the prefetched question is unknown, too
      await next({ focus: true });
      return;
    }
    byId("retry").hidden = false;
    focusOn(byId("retry"));
  }
}

function setResult(...parts) {
  clear(byId("result")).append(...parts);
}

function showSaved(saved) {
  if (saved.choice === "skip") return setResult("Saved: skipped.");
  const name = (place) => el("b", { text: saved.revealed[place - 1].model });
  const names = saved.revealed.flatMap((_, place) => [place === 0 ? "" : place === saved.revealed.length - 1 ? " and " : ", ", name(place + 1)]);
  if (saved.choice === "tie") return setResult("Saved: tie between ", ...names, ".");
  const best = saved.choice[0][0];
  const others = saved.revealed.filter((each) => each.place !== best);
  const rest = others.flatMap((each, number) => [number ? ", " : "", el("b", { text: each.model })]);
  return setResult(`Saved: the ${ORDINALS[best - 1]} reply, from `, name(best), ", over ", ...rest, ".");
}

async function refresh() {
  try {
    const query = rater() ? `?${new URLSearchParams({ rater: rater() })}` : "";
    const counts = await api(`/v1/groundling/rankings${query}`);
    const prompts = counts.to_ask ? `${counts.prompts_by_you ?? 0} of ${counted(counts.to_ask, "prompt")}` : "prompts";
    byId("progress").textContent = rater() ? `${counted(counts.by_you ?? 0, "answer")} by ${rater()}; ${prompts} from ${counts.prompts_from}` : "";
    const totals = [
      `${counted(counts.judgements, "answer")} by ${counted(counts.raters, "rater")}`,
      `${counted(counts.pairs, "preference")}, ${counted(counts.ties, "tie")}, ${counts.skips} skipped`,
    ].join("; ");
    const hint = counts.pairs < counts.least_pairs ? ` A reward model needs at least ${counts.least_pairs} preferences; a useful one needs hundreds.` : "";
    byId("totals").textContent = `${totals}.${hint}`;
    byId("train").disabled = counts.pairs < counts.least_pairs || counts.models.length === 0;
    const select = byId("base");
    if (select.options.length !== counts.models.length) {
      clear(select).append(...counts.models.map((name) => el("option", { text: name })));
    }
  } catch (error) {
    showError(error);
  }
}

const counted = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

async function exportAll() {
  try {
    const response = await request("/v1/groundling/rankings/export");
    const link = el("a", { href: URL.createObjectURL(await response.blob()), download: "rankings.jsonl" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    announce("Rankings exported.");
  } catch (error) {
    showError(error);
  }
}

function onKey(event) {
  if (!byId("shortcuts").checked || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
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
  byId("n-replies").value = String(remembered("replies", 2));
  byId("shortcuts").checked = remembered("shortcuts", true);
  byId("rater").addEventListener("change", () => { remember("rater", rater()); refresh(); next({ focus: true }); });
  byId("rater").addEventListener("keydown", (event) => { if (event.key === "Enter") event.target.blur(); });
  byId("n-replies").addEventListener("change", () => { remember("replies", nReplies()); next(); });
  byId("shortcuts").addEventListener("change", () => remember("shortcuts", byId("shortcuts").checked));
  byId("tie").addEventListener("click", onClick("tie"));
  byId("skip").addEventListener("click", onClick("skip"));
  byId("retry").addEventListener("click", () => (pending ? send(pending) : next({ focus: true })));
  byId("export").addEventListener("click", exportAll);
  byId("custom-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = byId("custom-prompt").value.trim();
    if (prompt) next({ prompt, focus: true });
  });
  document.addEventListener("keydown", onKey);
}

setUp();
watchTraining(showError);
refresh();
next();
if (!rater()) byId("rater").focus();
