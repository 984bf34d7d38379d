// Attention maps: all heads, a selected one enlarged, and arcs from a token to what it attends to.
import { announce, clear, el, roving, svg } from "./dom.js";
import { bytesOf, MAX_SHADE, percent, visible, weight } from "./token_text.js";

const KINDS = [["previous", "P", "attends to the previous token"], ["induction", "I", "attends to the token after an earlier copy of this one"], ["first", "F", "attends to the first token"]];
const STRONG = 0.5;

export class Maps {
  constructor(number) {
    this.selected = [0, 0];
    this.token = null;
    this.sortKey = 1;  // column of the score table
    this.grid = el("div", { class: "heads", role: "listbox", "aria-label": "Attention heads, one row per layer" });
    this.title = el("h3", {});
    this.canvas = el("canvas", { role: "img" });
    this.strongest = el("p", { class: "caption faint" });
    this.tokens = el("p", { class: "tokens", role: "group", "aria-label": "Tokens: select one to see what it attends to" });
    this.arcs = svg("svg", { class: "arcs", role: "img", "aria-label": "Attention of the selected token" });
    this.scores = el("details", {}, el("summary", { text: "Scores of all heads" }));
    this.strip = el("div", { class: "wide-figure strip", tabindex: 0, role: "region", "aria-label": `Attention of the selected token, model ${number + 1}` }, this.arcs);
    this.node = el("section", {}, el("h2", { text: "Attention" }),
      el("div", { class: "maps" }, el("div", {}, this.grid, el("p", { class: "faint caption", text: "P previous token · I induction · F first token: score above 0.5 on a random text repeated twice" }), this.scores),
        el("div", { class: "selected-head" }, this.title, this.canvas, this.strongest)),
      this.tokens, this.strip);
    this.node.id = `maps-${number}`;
    this.grid.addEventListener("keydown", (event) => this.onKey(event));
    roving(this.tokens, ".token");
    new ResizeObserver(() => { if (this.result && this.strip.clientWidth !== this.width) this.drawArcs(); }).observe(this.strip);
    this.canvas.addEventListener("pointermove", (event) => this.showWeight(event));
  }

  show(result) {
    this.result = result;
    this.heads = result.attention.map((layer) => layer.map(bytesOf));
    this.selected = [Math.min(this.selected[0], result.n_layer - 1), Math.min(this.selected[1], result.n_head - 1)];
    const before = this.pieces;
    this.pieces = result.tokens.map((id) => result.pieces[id]);
    this.isNew = before?.length !== this.pieces.length || this.structure.some((is, t) => is !== result.structure[t]) || before.some((piece, t) => piece !== this.pieces[t]);
    this.structure = result.structure;
    if (this.isNew) this.token = this.pieces.length - 1;
    this.drawGrid();
    this.drawScores();
    this.drawTokens();
    this.drawHead();
  }

  redraw() { if (this.result) { this.drawGrid(); this.drawHead(); } }

  scoresOf(layer, head) {
    if (!this.result.scores) return [];
    return KINDS.map(([kind, letter, what]) => ({ kind, letter, what, value: this.result.scores[kind][layer][head] }));
  }

  nameOf(layer, head) {
    const strong = this.scoresOf(layer, head).filter((score) => score.value > STRONG).map((score) => `${score.what} (${score.value.toFixed(2)})`);
    return `layer ${layer + 1}, head ${head + 1}${strong.length ? `: ${strong.join(", ")}` : ""}`;
  }

  // Update in place while the shape is the same, to keep the focus across checkpoints.
  drawGrid() {
    const { n_layer, n_head } = this.result;
    const shape = `${n_layer} ${n_head}`;
    if (this.grid.dataset.shape !== shape) {
      this.grid.dataset.shape = shape;
      clear(this.grid).style.gridTemplateColumns = `auto repeat(${n_head}, minmax(34px, ${n_head < 4 ? 128 : 96}px))`;
      for (let layer = 0; layer < n_layer; layer++) {
        this.grid.append(el("span", { class: "layer", "aria-hidden": "true", text: `${layer + 1}` }));
        for (let head = 0; head < n_head; head++) this.grid.append(this.headButton(layer, head));
      }
    }
    for (const button of this.grid.querySelectorAll(".head")) {
      const [layer, head] = [Number(button.dataset.layer), Number(button.dataset.head)];
      const [canvas, mark] = button.children;
      paint(canvas, this.heads[layer][head], this.pieces.length);
      mark.textContent = this.scoresOf(layer, head).filter((score) => score.value > STRONG).map((score) => score.letter).join("");
      mark.hidden = !mark.textContent;
      button.title = this.nameOf(layer, head);
      button.setAttribute("aria-label", button.title);
    }
    this.markSelected();
  }

  headButton(layer, head) {
    return el("button", { class: "head", type: "button", role: "option", dataset: { layer, head }, on: { click: () => this.select(layer, head) } },
      el("canvas", { "aria-hidden": "true" }), el("span", { class: "mark", "aria-hidden": "true" }));
  }

  // Mark the selected head; only that one is in the tab order.
  markSelected() {
    for (const button of this.grid.querySelectorAll(".head")) {
      const is = Number(button.dataset.layer) === this.selected[0] && Number(button.dataset.head) === this.selected[1];
      button.setAttribute("aria-selected", String(is));
      button.tabIndex = is ? 0 : -1;
    }
  }

  select(layer, head, focus = false) {
    this.selected = [layer, head];
    this.markSelected();
    if (focus) this.grid.querySelector('.head[tabindex="0"]').focus();
    this.drawHead();
  }

  onKey(event) {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const layer = Math.min(this.result.n_layer - 1, Math.max(0, this.selected[0] + step[0]));
    const head = Math.min(this.result.n_head - 1, Math.max(0, this.selected[1] + step[1]));
    this.select(layer, head, true);
  }

  drawScores() {
    for (const table of this.scores.querySelectorAll("table, p")) table.remove();
    if (!this.result.scores) {
      this.scores.append(el("p", { class: "faint", text: "The context is too short to score the heads." }));
      return;
    }
    const rows = [];
    for (let layer = 0; layer < this.result.n_layer; layer++) {
      for (let head = 0; head < this.result.n_head; head++) rows.push({ layer, head, values: this.scoresOf(layer, head).map((score) => score.value) });
    }
    const body = el("tbody", {});
    const fill = (by) => {
      this.sortKey = by;
      rows.sort((a, b) => b.values[by] - a.values[by]);
      clear(body).append(...rows.map(({ layer, head, values }) => el("tr", {},
        el("td", {}, el("button", { type: "button", text: `${layer + 1}.${head + 1}`, "aria-label": `Show layer ${layer + 1}, head ${head + 1}`, on: { click: () => this.select(layer, head) } })),
        values.map((value) => el("td", { text: value.toFixed(2) })))));
    };
    const head = el("tr", {}, el("th", { scope: "col", text: "head" }), KINDS.map(([kind], by) => el("th", { scope: "col" },
      el("button", { type: "button", text: kind, "aria-label": `Sort by ${kind}`, on: { click: () => fill(by) } }))));
    fill(this.sortKey);
    this.scores.append(el("table", { class: "scores" }, el("thead", {}, head), body));
  }

  drawHead() {
    const [layer, head] = this.selected;
    const triangle = this.heads[layer][head];
    const n = this.pieces.length;
    this.title.textContent = this.nameOf(layer, head);
    paint(this.canvas, triangle, n, true);
    const weights = [];
    for (let t = 1; t < n; t++) for (let s = 0; s <= t; s++) weights.push([weight(triangle, t, s), t, s]);
    weights.sort((a, b) => b[0] - a[0]);
    const strongest = weights.slice(0, 3).map(([w, t, s]) => `${visible(this.pieces[t])} → ${visible(this.pieces[s])} ${percent(w)}`).join("; ");
    this.canvas.setAttribute("aria-label", `Attention of ${this.nameOf(layer, head)}. Strongest: ${strongest}`);
    this.strongest.textContent = strongest ? `Strongest: ${strongest}` : "";
    this.drawArcs();
  }

  showWeight(event) {
    const box = this.canvas.getBoundingClientRect();
    const n = this.pieces.length;
    const s = Math.floor(((event.clientX - box.left) / box.width) * n);
    const t = Math.floor(((event.clientY - box.top) / box.height) * n);
    if (t < 0 || s < 0 || t >= n || s > t) return;
    const w = weight(this.heads[this.selected[0]][this.selected[1]], t, s);
    this.strongest.textContent = `${visible(this.pieces[t])} (${t + 1}) → ${visible(this.pieces[s])} (${s + 1}): ${percent(w)}`;
  }

  drawTokens() {
    if (!this.isNew) return;
    clear(this.tokens).append(...this.pieces.map((piece, t) => el("button", {
      class: this.result.structure[t] ? "token structure" : "token", type: "button", text: piece === "\n" ? "↵\n" : piece,
      "aria-label": `${visible(piece)}, token ${t + 1}`,
      on: { pointerenter: () => this.selectToken(t, false), focus: () => this.selectToken(t, false), click: () => this.selectToken(t, true) },
    })));
  }

  selectToken(token, announced) {
    if (token === this.token && !announced) return;
    this.token = token;
    this.drawArcs();
    if (announced) announce(this.description());
  }

  description() {
    const triangle = this.heads[this.selected[0]][this.selected[1]];
    const attended = this.pieces.slice(0, this.token + 1).map((piece, s) => [weight(triangle, this.token, s), piece]);
    attended.sort((a, b) => b[0] - a[0]);
    return `${visible(this.pieces[this.token])} attends to ${attended.slice(0, 3).map(([w, piece]) => `${visible(piece)} ${percent(w)}`).join(", ")}`;
  }

  // Arcs from the selected token to the tokens it attends to; the text is shaded by weight.
  drawArcs() {
    const triangle = this.heads[this.selected[0]][this.selected[1]];
    [...this.tokens.children].forEach((button, s) => {
      button.setAttribute("aria-pressed", String(s === this.token));
      button.tabIndex = s === this.token ? 0 : -1;
      button.style.setProperty("--weight", (MAX_SHADE * weight(triangle, this.token, s)).toFixed(3));
    });
    const labels = this.pieces.map((piece) => visible(piece).slice(0, 14));
    const starts = [];
    let width = 10;
    for (const label of labels) { starts.push(width); width += 7 * label.length + 10; }
    const middle = (s) => starts[s] + 3.5 * labels[s].length;
    const height = Math.min(70, 28 + width / 12);
    clear(this.arcs).setAttribute("viewBox", `0 0 ${width} ${height + 22}`);
    this.width = this.strip.clientWidth;
    const scale = Math.min(2, Math.max(1.35, (this.width - 4) / width));
    this.arcs.style.width = `${(scale * width).toFixed(0)}px`;
    this.arcs.setAttribute("aria-label", this.description());
    labels.forEach((label, s) => this.arcs.append(svg("text", { x: starts[s], y: height + 16, "font-weight": s === this.token ? 700 : 400, text: label })));
    for (let s = 0; s < this.token; s++) {
      const w = weight(triangle, this.token, s);
      if (w < 0.02) continue;
      const [a, b] = [middle(s), middle(this.token)];
      const rise = Math.min(1.3 * (height - 6), 16 + (b - a) / 2);
      this.arcs.append(svg("path", { d: `M${a} ${height} C${a} ${height - rise} ${b} ${height - rise} ${b} ${height}`, "stroke-width": (0.5 + 5 * w).toFixed(2), "stroke-opacity": (0.25 + 0.75 * w).toFixed(2) }));
    }
    const at = scale * middle(this.token);
    if (at < this.strip.scrollLeft + 30 || at > this.strip.scrollLeft + this.width - 30) this.strip.scrollLeft = at - this.width * 0.75;
  }
}

// Attention map, n x n: row attends to column.
function paint(canvas, triangle, n, large = false) {
  const scale = large ? Math.max(1, Math.floor(480 / n)) : 1;
  canvas.width = canvas.height = n * scale;
  const context = canvas.getContext("2d");
  const rgb = getComputedStyle(document.documentElement).getPropertyValue("--accent-rgb");
  for (let t = 0; t < n; t++) {
    for (let s = 0; s <= t; s++) {
      context.fillStyle = `rgba(${rgb}, ${Math.sqrt(weight(triangle, t, s))})`;
      context.fillRect(s * scale, t * scale, scale, scale);
    }
  }
}
