// Client of the server's API: JSON responses, event streams, readable errors, the API key.
import { byId } from "./dom.js";

const KEY = "groundling.key";
const HEADER_VALUE = /^[!-~]+$/;  // valid in a header; anything else makes every request fail
let key = storedKey();
let declined = false;        // the user cancelled the dialog: do not open it again

// Without sessionStorage the key lasts as long as the page.
function storedKey() {
  try {
    const found = sessionStorage.getItem(KEY);
    return found !== null && HEADER_VALUE.test(found) ? found : null;
  } catch { return null; }
}

function storeKey(value) {
  key = value;
  try { sessionStorage.setItem(KEY, value); } catch { /* storage is blocked */ }
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
  if (!response.ok) throw await errorFrom(response);
  return response;
}

async function errorFrom(response) {
  const after = response.headers.get("Retry-After");
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error.message, error.code, after);
  } catch {
    return new ApiError(response.status, `The server returned status ${response.status}.`, null, after);
  }
}

let keyRequest = null;

// Open one dialog for all concurrent requests; false: cancelled.
function askForKey() {
  if (declined) return false;
  keyRequest ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const input = byId("key-input");
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const value = input.value.trim();
      declined = dialog.returnValue !== "enter" || !HEADER_VALUE.test(value);
      if (!declined) storeKey(value);
      input.value = "";
      keyRequest = null;
      resolve(!declined);
    }, { once: true });
    dialog.showModal();
  });
  return keyRequest;
}

export async function api(path, options = {}) {
  const response = await request(path, options);
  return response.status === 204 ? null : response.json();
}

// Server-sent events until [DONE]; an error event is thrown.
export async function* events(path, body, signal) {
  const response = await request(path, { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      buffer += value;
      const complete = buffer.split("\n\n");
      buffer = complete.pop();
      for (const line of complete) {
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

// Message for the user.
export function errorText(error) {
  const wait = error.retryAfter ? `${error.retryAfter} s` : "a few seconds";
  if (error.status === 429) return `Server busy; retry in ${wait}.`;
  if (error.code === "not_ready") return "The models are still loading; retry in a moment.";
  if (error.code === "draining") return "The server is shutting down.";
  if (error.status === 401) return "An API key is required; reload this page to enter one.";
  return error.message;
}
