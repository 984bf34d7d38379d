// Tokens of a reply, and what the model weighed for each.
import { byId, clear, el } from "./dom.js";

const facts = new WeakMap();

export function tokenSpan(token) {
  const span = el("span", { class: "token", text: token.text });
  if (token.logprob !== null && token.logprob !== undefined) {
    span.style.setProperty("--doubt", (0.35 * (1 - Math.exp(token.logprob))).toFixed(3));
    facts.set(span, token);
    queueMicrotask(() => { if (span.parentNode?.querySelector(".token") === span) span.tabIndex = 0; });
  }
  return span;
}

const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "(nothing)";
const share = (logprob) => {
  const percent = 100 * Math.exp(logprob);
  return percent >= 0.1 ? `${percent.toFixed(1)} %` : "< 0.1 %";
};

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
