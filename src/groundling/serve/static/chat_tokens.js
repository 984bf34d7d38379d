// Tokens of a reply, and a tooltip with the alternatives of each.
import { byId, clear, el } from "./dom.js";
import { percent, visible } from "./token_text.js";

const tokenOf = new WeakMap();

function tokenSpan(token) {
  const span = el("span", { class: "token", tabindex: -1, text: token.text });  // focusable by touch; Tab reaches the first token
  if (token.logprob !== null && token.logprob !== undefined) {
    span.style.setProperty("--uncertainty", (0.35 * (1 - Math.exp(token.logprob))).toFixed(3));
    tokenOf.set(span, token);
    queueMicrotask(() => { if (span.parentNode?.querySelector(".token") === span) span.tabIndex = 0; });
  }
  return span;
}

const probability = (logprob) => percent(Math.exp(logprob));

// Append the text, split into token spans where tokens match it.
export function addTokens(node, text, tokens) {
  let rest = text;
  for (const token of tokens) {
    if (token.text && rest.startsWith(token.text)) {
      node.append(tokenSpan(token));
      rest = rest.slice(token.text.length);
    } else if (rest) {  // a partial character, or redacted text
      const next = tokens.slice(tokens.indexOf(token) + 1).find((other) => other.text && rest.includes(other.text));
      const end = next ? rest.indexOf(next.text) : rest.length;
      node.append(tokenSpan({ ...token, text: rest.slice(0, end) }));
      rest = rest.slice(end);
    }
  }
  if (rest) node.append(rest);
}

export function showTokenInfo(span) {
  const token = tokenOf.get(span);
  if (!token) return;
  const box = clear(byId("token-info"));
  const rows = token.alternatives.slice(0, 8);
  if (!rows.some(([text]) => text === token.text)) rows.push([token.text, token.logprob]);
  box.append(el("strong", { text: `${visible(token.text)}  ${probability(token.logprob)}` }));
  const highest = Math.exp(Math.max(...rows.map(([, logprob]) => logprob)));
  box.append(el("ol", {}, rows.map(([text, logprob]) => {
    const bar = el("span", {});
    bar.style.width = `${(100 * Math.exp(logprob) / highest).toFixed(1)}%`;
    return el("li", { class: text === token.text ? "chosen" : "" }, el("span", { class: "piece", text: visible(text) }),
      el("span", { class: "bar" }, bar), el("span", { class: "probability", text: probability(logprob) }));
  })));
  box.hidden = false;
  span.setAttribute("aria-describedby", "token-info");
  const rect = span.getBoundingClientRect();
  const left = Math.max(8, Math.min(rect.left, innerWidth - box.offsetWidth - 8));
  const above = rect.top > box.offsetHeight + 16;
  box.style.left = `${left + scrollX}px`;
  box.style.top = `${(above ? rect.top - box.offsetHeight - 8 : rect.bottom + 8) + scrollY}px`;
}

export function hideTokenInfo() {
  byId("token-info").hidden = true;
}
