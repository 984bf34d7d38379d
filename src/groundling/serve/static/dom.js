// Elements from text, and never text that becomes elements.
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

// Tell those who listen instead of looking.
export function announce(text) {
  const place = byId("announcer");
  place.textContent = "";
  requestAnimationFrame(() => { place.textContent = text; });
}

// What is remembered between visits; a browser that forbids it forgets.
export function remembered(name, otherwise) {
  try {
    const found = localStorage.getItem(`groundling.${name}`);
    return found === null ? otherwise : JSON.parse(found);
  } catch { return otherwise; }
}
export function remember(name, value) {
  try { localStorage.setItem(`groundling.${name}`, JSON.stringify(value)); } catch { /* then not */ }
}
