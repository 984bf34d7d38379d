// Next-token distribution under temperature, top-k and top-p, computed here from the full logits.
import { clear, el } from "./dom.js";
import { floatsOf, percent, visible } from "./token_text.js";

const SHOWN = 14;

export class Next {
  constructor(number) {
    this.sliders = {};
    const slider = (name, label, attributes) => {
      const input = el("input", { id: `${name}-${number}`, type: "range", ...attributes, on: { input: () => this.draw() } });
      const out = el("output", {});
      this.sliders[name] = { input, out };
      return el("p", { class: "field" }, el("label", { for: `${name}-${number}` }, `${label}: `, out), input);
    };
    this.list = el("ol", { class: "bars" });
    this.summary = el("p", { class: "caption faint", role: "status" });
    this.node = el("section", {}, el("h2", { text: "Next token" }), el("div", { class: "sliders" },
      slider("temperature", "Temperature", { min: 0, max: 2, step: 0.05, value: 1 }),
      slider("k", "Top-k", { min: 1, max: 60, step: 1, value: 60 }),
      slider("p", "Top-p", { min: 0.05, max: 1, step: 0.01, value: 1 })), this.list, this.summary);
  }

  show(result) {
    this.result = result;
    this.logits = floatsOf(result.next.logits);
    this.draw();
  }

  draw() {
    if (!this.logits) return;
    const t = Number(this.sliders.temperature.input.value);
    const all = Number(this.sliders.k.input.value) === 60;
    const k = all ? this.logits.length : Number(this.sliders.k.input.value);
    const p = Number(this.sliders.p.input.value);
    this.sliders.temperature.out.textContent = t === 0 ? "0 (greedy)" : t.toFixed(2);
    this.sliders.k.out.textContent = all ? "all" : String(k);
    this.sliders.p.out.textContent = p.toFixed(2);
    const kept = filtered(this.logits, t, k, p);
    clear(this.list).append(...this.result.next.ids.slice(0, SHOWN).map((id) => {
      const share = kept.get(id) ?? 0;
      const bar = el("span", {});
      bar.style.width = `${(100 * share).toFixed(2)}%`;
      return el("li", { class: share ? "" : "excluded" }, el("span", { class: "piece", text: visible(this.result.pieces[id]) }),
        el("span", { class: "bar" }, bar), el("span", { class: "probability", text: share ? percent(share) : "excluded" }));
    }));
    let entropy = 0;
    for (const q of kept.values()) if (q > 0) entropy -= q * Math.log2(q);
    this.summary.textContent = `${kept.size.toLocaleString("en")} of ${this.logits.length.toLocaleString("en")} tokens; entropy ${entropy.toFixed(2)} bits.`;
  }
}

// Temperature, then top-k, then top-p, in the order of groundling.sample.filters.
export function filtered(logits, t, k, p) {
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
