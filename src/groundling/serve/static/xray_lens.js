// Logit lens, and the norm of the residual stream by layer.
import { Chart } from "./chart.js";
import { clear, el } from "./dom.js";
import { MAX_SHADE, percent, visible } from "./token_text.js";

const NORMS = [["stream", "residual stream", 5], ["attention", "attention output", 0], ["mlp", "MLP output", 2]];  // key, name, tint

export class Lens {
  constructor(number) {
    this.table = el("table", { class: "lens" });
    this.caption = el("p", { class: "caption faint", role: "status", text: "Each cell: the top next-token prediction when this layer's output goes straight to the final norm and LM head. Rows are layers, columns are positions. Underlined: correct." });
    this.chart = new Chart({ title: "Residual stream norm", label: `Residual stream norm, model ${number + 1}`, note: "root mean square, mean over positions" });
    this.chart.node.classList.add("norms");
    this.node = el("section", {}, el("h2", { text: "Logit lens" }),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Logit lens, model ${number + 1}` }, this.table), this.caption,
      this.chart.node);
    this.node.id = `lens-${number}`;
    for (const event of ["pointerover", "focusin"]) this.table.addEventListener(event, (e) => this.explain(e.target));
    this.table.addEventListener("keydown", (event) => this.onKey(event));
  }

  show(result) {
    this.result = result;
    const { ids, probabilities } = result.lens;
    const n = result.tokens.length;
    const head = el("tr", {}, el("th", { scope: "col" }, el("span", { class: "visually-hidden", text: "layer" })), result.tokens.map((id) => el("th", { scope: "col", text: visible(result.pieces[id]) })));
    const rows = ids.map((_, i) => ids.length - 1 - i).map((layer) => el("tr", {},
      el("th", { scope: "row", text: layer === 0 ? "embeddings" : layer === ids.length - 1 ? `layer ${layer}: output` : `layer ${layer}` }),
      Array.from({ length: n }, (_, t) => {
        const best = ids[layer][t][0];
        const cell = el("td", { text: visible(result.pieces[best]), class: t + 1 < n && best === result.tokens[t + 1] ? "correct" : "", tabindex: layer === ids.length - 1 && t === n - 1 ? 0 : -1, dataset: { layer, t } });
        cell.style.setProperty("--weight", (MAX_SHADE * probabilities[layer][t][0]).toFixed(3));
        return cell;
      })));
    const focused = this.table.contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
    clear(this.table).append(el("thead", {}, head), el("tbody", {}, rows));
    if (focused) this.at(focused.layer, focused.t)?.focus({ preventScroll: true });
    this.drawNorms();
  }

  at(layer, t) {
    return this.table.querySelector(`td[data-layer="${layer}"][data-t="${t}"]`);
  }

  explain(cell) {
    if (cell.tagName !== "TD") return;
    const [layer, t] = [Number(cell.dataset.layer), Number(cell.dataset.t)];
    const { ids, probabilities, of_what_follows: truth } = this.result.lens;
    const likely = ids[layer][t].map((id, i) => `${visible(this.result.pieces[id])} ${percent(probabilities[layer][t][i])}`).join(", ");
    const follows = t + 1 < this.result.tokens.length ? `; ${visible(this.result.pieces[this.result.tokens[t + 1]])}, the actual next token, ${percent(truth[layer][t])}` : "";
    this.caption.textContent = `After ${visible(this.result.pieces[this.result.tokens[t]])} (${t + 1}), ${layer === 0 ? "from the embeddings" : `after layer ${layer}`}: ${likely}${follows}.`;
  }

  onKey(event) {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [-1, 0], ArrowUp: [1, 0] }[event.key];
    if (!step || event.target.tagName !== "TD") return;
    const [layer, t] = [Number(event.target.dataset.layer) + step[0], Number(event.target.dataset.t) + step[1]];
    const next = this.at(layer, t);
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  drawNorms() {
    const mean = (row) => row.reduce((sum, one) => sum + one, 0) / row.length;
    const { norms, n_layer: L } = this.result;
    const lines = NORMS.map(([key, name, tint]) => ({ name, tint, dots: true, points: norms[key].map((row, i) => [key === "stream" ? i : i + 1, mean(row)]) }));
    this.chart.draw({ lines, xName: "layer", names: ["emb.", ...Array.from({ length: L }, (_, i) => String(i + 1))] });
  }
}
