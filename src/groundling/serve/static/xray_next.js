// What comes next, and what temperature, top-k and top-p make of it: computed here, from all logits.
import { clear, el } from "./dom.js";
import { floatsOf, percent, visible } from "./token_text.js";

const SHOWN = 14;

export class Next {
  constructor(number) {
    this.knobs = {};
    const knob = (name, label, attributes) => {
      const input = el("input", { id: `${name}-${number}`, type: "range", ...attributes, on: { input: () => this.draw() } });
      const out = el("output", {});
      this.knobs[name] = { input, out };
      return el("p", { class: "field" }, el("label", { for: `${name}-${number}` }, `${label}: `, out), input);
    };
    this.list = el("ol", { class: "bars" });
    this.tell = el("p", { class: "tell faint", role: "status" });
    this.node = el("section", {}, el("h2", { text: "What comes next" }), el("div", { class: "knobs" },
      knob("temperature", "Temperature", { min: 0, max: 2, step: 0.05, value: 1 }),
      knob("k", "Top k", { min: 1, max: 60, step: 1, value: 60 }),
      knob("p", "Top p", { min: 0.05, max: 1, step: 0.01, value: 1 })), this.list, this.tell);
  }

  show(seen) {
    this.seen = seen;
    this.logits = floatsOf(seen.next.logits);
    this.draw();
  }

  draw() {
    if (!this.logits) return;
    const t = Number(this.knobs.temperature.input.value);
    const all = Number(this.knobs.k.input.value) === 60;
    const k = all ? this.logits.length : Number(this.knobs.k.input.value);
    const p = Number(this.knobs.p.input.value);
    this.knobs.temperature.out.textContent = t === 0 ? "0 (always the best)" : t.toFixed(2);
    this.knobs.k.out.textContent = all ? "all" : String(k);
    this.knobs.p.out.textContent = p.toFixed(2);
    const kept = chances(this.logits, t, k, p);
    clear(this.list).append(...this.seen.next.ids.slice(0, SHOWN).map((id) => {
      const share = kept.get(id) ?? 0;
      const bar = el("span", {});
      bar.style.width = `${(100 * share).toFixed(2)}%`;
      return el("li", { class: share ? "" : "out" }, el("span", { class: "piece", text: visible(this.seen.pieces[id]) }),
        el("span", { class: "bar" }, bar), el("span", { class: "share", text: share ? percent(share) : "out" }));
    }));
    let entropy = 0;
    for (const share of kept.values()) if (share > 0) entropy -= share * Math.log2(share);
    this.tell.textContent = `${kept.size.toLocaleString("en")} of ${this.logits.length.toLocaleString("en")} tokens can come; ${entropy.toFixed(2)} bits.`;
  }
}

// As sampling does it: temperature, the k best, then the fewest whose probabilities reach p.
export function chances(logits, t, k, p) {
  const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a] || a - b);
  if (t === 0) return new Map([[order[0], 1]]);
  const best = logits[order[0]];
  let kept = order.slice(0, k);
  let weights = kept.map((id) => Math.exp((logits[id] - best) / t));
  let total = weights.reduce((sum, one) => sum + one, 0);
  if (p < 1) {
    let reached = 0;
    let n = 0;
    while (n < kept.length && (n === 0 || reached < p)) reached += weights[n++] / total;
    kept = kept.slice(0, n);
    weights = weights.slice(0, n);
    total = weights.reduce((sum, one) => sum + one, 0);
  }
  return new Map(kept.map((id, i) => [id, weights[i] / total]));
}
