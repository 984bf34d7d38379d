// What each layer would say, and how large the stream is that runs through them.
import { clear, el, svg } from "./dom.js";
import { HEAVIEST, percent, visible } from "./token_text.js";

const SERIES = [["stream", "the stream", "var(--ink)"], ["attention", "what attention adds", "var(--accent)"], ["mlp", "what the MLP adds", "var(--good)"]];

export class Lens {
  constructor(number) {
    this.table = el("table", { class: "lens" });
    this.tell = el("p", { class: "tell faint", role: "status", text: "Each row is a layer, each column a place in the text: the token that would come next if the stream went to the end from there. Underlined: it is the one that does come." });
    this.chart = svg("svg", { class: "norms", role: "img", viewBox: "0 0 700 190" });
    this.node = el("section", {}, el("h2", { text: "What each layer would say" }),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Logit lens, model ${number + 1}` }, this.table), this.tell,
      el("h2", { text: "How large the stream is" }), el("div", { class: "wide-picture", tabindex: 0, role: "region", "aria-label": `How large the stream is, model ${number + 1}` }, this.chart),
      el("ul", { class: "key" }, SERIES.map(([, name, colour]) => {
        const mark = el("i", { "aria-hidden": "true" });
        mark.style.color = colour;
        return el("li", {}, mark, name);
      })));
    this.node.id = `lens-${number}`;
    for (const event of ["pointerover", "focusin"]) this.table.addEventListener(event, (e) => this.explain(e.target));
    this.table.addEventListener("keydown", (event) => this.walk(event));
  }

  show(seen) {
    this.seen = seen;
    const { ids, probabilities } = seen.lens;
    const n = seen.tokens.length;
    const head = el("tr", {}, el("th", { scope: "col" }, el("span", { class: "visually-hidden", text: "layer" })), seen.tokens.map((id) => el("th", { scope: "col", text: visible(seen.pieces[id]) })));
    const rows = ids.map((_, i) => ids.length - 1 - i).map((layer) => el("tr", {},
      el("th", { scope: "row", text: layer === 0 ? "embeddings" : layer === ids.length - 1 ? `layer ${layer}: the model` : `layer ${layer}` }),
      Array.from({ length: n }, (_, t) => {
        const best = ids[layer][t][0];
        const cell = el("td", { text: visible(seen.pieces[best]), class: t + 1 < n && best === seen.tokens[t + 1] ? "right" : "", tabindex: layer === ids.length - 1 && t === n - 1 ? 0 : -1, dataset: { layer, t } });
        cell.style.setProperty("--weight", (HEAVIEST * probabilities[layer][t][0]).toFixed(3));
        return cell;
      })));
    const here = this.table.contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
    clear(this.table).append(el("thead", {}, head), el("tbody", {}, rows));
    if (here) this.at(here.layer, here.t)?.focus({ preventScroll: true });
    this.drawNorms();
  }

  at(layer, t) {
    return this.table.querySelector(`td[data-layer="${layer}"][data-t="${t}"]`);
  }

  explain(cell) {
    if (cell.tagName !== "TD") return;
    const [layer, t] = [Number(cell.dataset.layer), Number(cell.dataset.t)];
    const { ids, probabilities, of_what_follows: truth } = this.seen.lens;
    const likely = ids[layer][t].map((id, i) => `${visible(this.seen.pieces[id])} ${percent(probabilities[layer][t][i])}`).join(", ");
    const follows = t + 1 < this.seen.tokens.length ? `; ${visible(this.seen.pieces[this.seen.tokens[t + 1]])}, which follows, ${percent(truth[layer][t])}` : "";
    this.tell.textContent = `After ${visible(this.seen.pieces[this.seen.tokens[t]])} (${t + 1}), ${layer === 0 ? "from the embeddings" : `after layer ${layer}`}: ${likely}${follows}.`;
  }

  walk(event) {
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

  // Mean over the text, layer by layer.
  drawNorms() {
    const mean = (row) => row.reduce((sum, one) => sum + one, 0) / row.length;
    const { norms, n_layer: L } = this.seen;
    const lines = { stream: norms.stream.map(mean).map((y, i) => [i, y]), attention: norms.attention.map(mean).map((y, i) => [i + 1, y]), mlp: norms.mlp.map(mean).map((y, i) => [i + 1, y]) };
    const most = Math.max(...Object.values(lines).flat().map(([, y]) => y), 1e-9);
    const x = (layer) => 46 + (layer / Math.max(1, L)) * 630;
    const y = (value) => 158 - (value / most) * 140;
    clear(this.chart).append(svg("line", { class: "axis", x1: 46, x2: 680, y1: 158, y2: 158 }), svg("line", { class: "axis", x1: 46, x2: 46, y1: 14, y2: 158 }),
      svg("text", { x: 4, y: 22, text: most.toFixed(most < 10 ? 2 : 0) }), svg("text", { x: 34, y: 162, text: "0" }));
    for (let layer = 0; layer <= L; layer++) this.chart.append(svg("text", { x: x(layer), y: 178, "text-anchor": "middle", text: layer === 0 ? "emb." : String(layer) }));
    for (const [name, , colour] of SERIES) {
      const line = svg("polyline", { class: "line", points: lines[name].map(([layer, value]) => `${x(layer)},${y(value)}`).join(" ") });
      line.style.stroke = colour;
      this.chart.append(line);
      for (const [layer, value] of lines[name]) {
        const dot = svg("circle", { cx: x(layer), cy: y(value), r: 3 }, svg("title", { text: `${name}, layer ${layer}: ${value.toFixed(3)}` }));
        dot.style.fill = colour;
        this.chart.append(dot);
      }
    }
    this.chart.setAttribute("aria-label", `Root mean square of the stream, mean over the text: ${lines.stream.map(([, value]) => value.toFixed(2)).join(", ")} from the embeddings to layer ${L}.`);
  }
}
