// Tokens of a reply, and what the model weighed for each.
import { byId, clear, el } from "./dom.js";
import { percent, visible } from "./token_text.js";

const facts = new WeakMap();

function tokenSpan(token) {
  const span = el("span", { class: "token", tabindex: -1, text: token.text });  // a touch can choose it, and Tab reaches the first
  if (token.logprob !== null && token.logprob !== undefined) {
    span.style.setProperty("--doubt", (0.35 * (1 - Math.exp(token.logprob))).toFixed(3));
    facts.set(span, token);
    queueMicrotask(() => { if (span.parentNode?.querySelector(".token") === span) span.tabIndex = 0; });
  }
  return span;
}

const share = (logprob) => percent(Math.exp(logprob));

// What is shown is the text itself; tokens are laid over it as far as they are it.
export function addTokens(lines, text, tokens) {
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

export function showWeighed(span) {
  const token = facts.get(span);
  if (!token) return;
  const box = clear(byId("weighed"));
  const rows = token.likely.slice(0, 8);
  if (!rows.some(([text]) => text === token.text)) rows.push([token.text, token.logprob]);
  box.append(el("strong", { text: `${visible(token.text)}  ${share(token.logprob)}` }));
  const most = Math.exp(Math.max(...rows.map(([, logprob]) => logprob)));
  box.append(el("ol", {}, rows.map(([text, logprob]) => {
    const bar = el("span", {});
    bar.style.width = `${(100 * Math.exp(logprob) / most).toFixed(1)}%`;
    return el("li", { class: text === token.text ? "chosen" : "" }, el("span", { class: "piece", text: visible(text) }),
      el("span", { class: "bar" }, bar), el("span", { class: "share", text: share(logprob) }));
  })));
  box.hidden = false;
  span.setAttribute("aria-describedby", "weighed");
  const at = span.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - box.offsetWidth - 8));
  const above = at.top > box.offsetHeight + 16;
  box.style.left = `${left + scrollX}px`;
  box.style.top = `${(above ? at.top - box.offsetHeight - 8 : at.bottom + 8) + scrollY}px`;
}

export function hideWeighed() {
  byId("weighed").hidden = true;
}
