// DOM helpers. Text is always set as text, never parsed as HTML.
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const clear = (node) => (node.replaceChildren(), node);
export const byId = (id) => document.getElementById(id);

// Announce to screen readers. Concurrent announcements are all read.
const ANNOUNCED_MS = 20000;
export function announce(text) {
  const line = el("p", { text });
  requestAnimationFrame(() => byId("announcer").append(line));
  setTimeout(() => line.remove(), ANNOUNCED_MS);
}

// Roving tabindex: Tab reaches one element of a row, arrow keys move between them.
export function roving(host, selector) {
  const move = (from, to) => {
    if (from) from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  };
  host.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !event.target.matches(selector)) return;
    const all = [...event.target.parentNode.querySelectorAll(selector)];
    const next = all[all.indexOf(event.target) + step];
    if (!next) return;
    event.preventDefault();
    move(event.target, next);
  });
}

// localStorage; a no-op where the browser blocks it.
export function remembered(name, fallback) {
  try {
    const found = localStorage.getItem(`groundling.${name}`);
    return found === null ? fallback : JSON.parse(found);
  } catch { return fallback; }
}
export function remember(name, value) {
  try { localStorage.setItem(`groundling.${name}`, JSON.stringify(value)); } catch { /* storage is blocked */ }
}
