// The server's API: answers as objects, streams as events, and errors that people can read.
import { byId } from "./dom.js";

const KEY = "groundling.key";
const HEADER_VALUE = /^[!-~]+$/;  // what a header can hold; anything else would make every request fail
let key = keptKey();
let left = false;            // somebody would not give a key: he is not asked again and again

// A browser that keeps nothing forgets the key with the page.
function keptKey() {
  try {
    const found = sessionStorage.getItem(KEY);
    return found !== null && HEADER_VALUE.test(found) ? found : null;
  } catch { return null; }
}

function keepKey(given) {
  key = given;
  try { sessionStorage.setItem(KEY, given); } catch { /* then not */ }
}

export class ApiError extends Error {
  constructor(status, message, code = null, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

export async function request(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached. Is it running?", "unreachable");
  }
  if (response.status === 401 && await askForKey()) return request(path, { method, body, signal });
  if (!response.ok) throw await explained(response);
  return response;
}

async function explained(response) {
  const after = response.headers.get("Retry-After");
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error.message, error.code, after);
  } catch {
    return new ApiError(response.status, `The server answered ${response.status}.`, null, after);
  }
}

let asking = null;

// Ask once, however many requests want to know; false: nobody gave a key.
function askForKey() {
  if (left) return false;
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const input = byId("key-input");
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const given = input.value.trim();
      left = dialog.returnValue !== "enter" || !HEADER_VALUE.test(given);
      if (!left) keepKey(given);
      input.value = "";
      asking = null;
      resolve(!left);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

export async function api(path, options = {}) {
  const response = await request(path, options);
  return response.status === 204 ? null : response.json();
}

// The events of a stream, until it ends well; an error event is thrown.
export async function* events(path, body, signal) {
  const response = await request(path, { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      held += value;
      const whole = held.split("\n\n");
      held = whole.pop();
      for (const line of whole) {
        if (!line.startsWith("data: ")) continue;  // a comment
        const data = line.slice("data: ".length);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(500, event.error.message, event.error.code);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ApiError(0, "The connection was lost before the end.", "cut");
}

export const models = async () => (await api("/v1/models")).data;

// An error in plain words, for people.
export function inWords(error) {
  if (error.status === 429) return `The house is full; try again in ${error.retryAfter ?? "a few"} seconds.`;
  if (error.code === "not_ready") return "The models are still being loaded; try again in a moment.";
  if (error.code === "draining") return "The server is shutting down.";
  if (error.status === 401) return "A key is needed; load this page again to give one.";
  return error.message;
}
