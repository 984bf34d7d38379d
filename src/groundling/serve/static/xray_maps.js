// Attention: a small map of every head, one of them large, and over the text where a token looks.
import { announce, clear, el, roving, svg } from "./dom.js";
import { bytesOf, HEAVIEST, percent, visible, weight } from "./token_text.js";

const KINDS = [["previous", "P", "looks at the token before"], ["induction", "I", "looks at what followed the same token before"], ["first", "F", "looks at the first token"]];
const STRONG = 0.5;

export class Maps {
  constructor(number) {
    this.chosen = [0, 0];
    this.token = null;
    this.by = 1;  // which score the table is sorted by
    this.grid = el("div", { class: "heads", role: "listbox", "aria-label": "Attention heads, a row for each layer" });
    this.title = el("h3", {});
    this.canvas = el("canvas", { role: "img" });
    this.links = el("p", { class: "tell faint" });
    this.reading = el("p", { class: "reading", role: "group", "aria-label": "Tokens; choose one to see where it looks" });
    this.arcs = svg("svg", { class: "arcs", role: "img", "aria-label": "Where the chosen token looks" });
    this.scores = el("details", {}, el("summary", { text: "All heads by what they do" }));
    this.strip = el("div", { class: "wide-picture strip", tabindex: 0, role: "region", "aria-label": `Where the chosen token looks, model ${number + 1}` }, this.arcs);
    this.node = el("section", {}, el("h2", { text: "Where each head looks" }),
      el("div", { class: "maps" }, el("div", {}, this.grid, el("p", { class: "faint tell", text: "P previous token · I induction · F first token, each above one half on a random text that is read twice" }), this.scores),
        el("div", { class: "big" }, this.title, this.canvas, this.links)),
      this.reading, this.strip);
    this.node.id = `maps-${number}`;
    this.grid.addEventListener("keydown", (event) => this.walk(event));
    roving(this.reading, ".tok");
    new ResizeObserver(() => { if (this.seen && this.strip.clientWidth !== this.width) this.drawArcs(); }).observe(this.strip);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
  }

  show(seen) {
    this.seen = seen;
    this.heads = seen.attention.map((layer) => layer.map(bytesOf));
    this.chosen = [Math.min(this.chosen[0], seen.n_layer - 1), Math.min(this.chosen[1], seen.n_head - 1)];
    const before = this.pieces;
    this.pieces = seen.tokens.map((id) => seen.pieces[id]);
    this.isNew = before?.length !== this.pieces.length || this.structure.some((is, t) => is !== seen.structure[t]) || before.some((piece, t) => piece !== this.pieces[t]);
    this.structure = seen.structure;
    if (this.isNew) this.token = this.pieces.length - 1;
    this.drawGrid();
    this.drawScores();
    this.drawTokens();
    this.drawHead();
  }

  redraw() { if (this.seen) { this.drawGrid(); this.drawHead(); } }

  scoresOf(layer, head) {
    if (!this.seen.scores) return [];
    return KINDS.map(([kind, letter, what]) => ({ kind, letter, what, value: this.seen.scores[kind][layer][head] }));
  }

  nameOf(layer, head) {
    const strong = this.scoresOf(layer, head).filter((score) => score.value > STRONG).map((score) => `${score.what} (${score.value.toFixed(2)})`);
    return `layer ${layer + 1}, head ${head + 1}${strong.length ? `: ${strong.join(", ")}` : ""}`;
  }

  // In place while the shape is the same: whoever is at a head stays there while checkpoints go by.
  drawGrid() {
    const { n_layer, n_head } = this.seen;
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
    this.mark();
  }

  headButton(layer, head) {
    return el("button", { class: "head", type: "button", role: "option", dataset: { layer, head }, on: { click: () => this.choose(layer, head) } },
      el("canvas", { "aria-hidden": "true" }), el("span", { class: "mark", "aria-hidden": "true" }));
  }

  // Which head is chosen; Tab reaches that one.
  mark() {
    for (const button of this.grid.querySelectorAll(".head")) {
      const is = Number(button.dataset.layer) === this.chosen[0] && Number(button.dataset.head) === this.chosen[1];
      button.setAttribute("aria-selected", String(is));
      button.tabIndex = is ? 0 : -1;
    }
  }

  choose(layer, head, focus = false) {
    this.chosen = [layer, head];
    this.mark();
    if (focus) this.grid.querySelector('.head[tabindex="0"]').focus();
    this.drawHead();
  }

  walk(event) {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const layer = Math.min(this.seen.n_layer - 1, Math.max(0, this.chosen[0] + step[0]));
    const head = Math.min(this.seen.n_head - 1, Math.max(0, this.chosen[1] + step[1]));
    this.choose(layer, head, true);
  }

  drawScores() {
    for (const table of this.scores.querySelectorAll("table, p")) table.remove();
    if (!this.seen.scores) {
      this.scores.append(el("p", { class: "faint", text: "The context is too short to score heads." }));
      return;
    }
    const rows = [];
    for (let layer = 0; layer < this.seen.n_layer; layer++) {
      for (let head = 0; head < this.seen.n_head; head++) rows.push({ layer, head, values: this.scoresOf(layer, head).map((score) => score.value) });
    }
    const body = el("tbody", {});
    const fill = (by) => {
      this.by = by;
      rows.sort((a, b) => b.values[by] - a.values[by]);
      clear(body).append(...rows.map(({ layer, head, values }) => el("tr", {},
        el("td", {}, el("button", { type: "button", text: `${layer + 1}.${head + 1}`, "aria-label": `Show layer ${layer + 1}, head ${head + 1}`, on: { click: () => this.choose(layer, head) } })),
        values.map((value) => el("td", { text: value.toFixed(2) })))));
    };
    const head = el("tr", {}, el("th", { scope: "col", text: "head" }), KINDS.map(([kind], by) => el("th", { scope: "col" },
      el("button", { type: "button", text: kind, "aria-label": `Sort by ${kind}`, on: { click: () => fill(by) } }))));
    fill(this.by);
    this.scores.append(el("table", { class: "scores" }, el("thead", {}, head), body));
  }

  drawHead() {
    const [layer, head] = this.chosen;
    const triangle = this.heads[layer][head];
    const n = this.pieces.length;
    this.title.textContent = this.nameOf(layer, head);
    paint(this.canvas, triangle, n, true);
    const links = [];
    for (let t = 1; t < n; t++) for (let s = 0; s <= t; s++) links.push([weight(triangle, t, s), t, s]);
    links.sort((a, b) => b[0] - a[0]);
    const strongest = links.slice(0, 3).map(([w, t, s]) => `${visible(this.pieces[t])} → ${visible(this.pieces[s])} ${percent(w)}`).join("; ");
    this.canvas.setAttribute("aria-label", `Attention of ${this.nameOf(layer, head)}. Strongest: ${strongest}`);
    this.links.textContent = strongest ? `Strongest: ${strongest}` : "";
    this.drawArcs();
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const n = this.pieces.length;
    const s = Math.floor(((event.clientX - box.left) / box.width) * n);
    const t = Math.floor(((event.clientY - box.top) / box.height) * n);
    if (t < 0 || s < 0 || t >= n || s > t) return;
    const w = weight(this.heads[this.chosen[0]][this.chosen[1]], t, s);
    this.links.textContent = `${visible(this.pieces[t])} (${t + 1}) looks at ${visible(this.pieces[s])} (${s + 1}): ${percent(w)}`;
  }

  drawTokens() {
    if (!this.isNew) return;
    clear(this.reading).append(...this.pieces.map((piece, t) => el("button", {
      class: this.seen.structure[t] ? "tok structure" : "tok", type: "button", text: piece === "\n" ? "↵\n" : piece,
      "aria-label": `${visible(piece)}, token ${t + 1}`,
      on: { pointerenter: () => this.pick(t, false), focus: () => this.pick(t, false), click: () => this.pick(t, true) },
    })));
  }

  pick(token, aloud) {
    if (token === this.token && !aloud) return;
    this.token = token;
    this.drawArcs();
    if (aloud) announce(this.sentence());
  }

  sentence() {
    const triangle = this.heads[this.chosen[0]][this.chosen[1]];
    const looks = this.pieces.slice(0, this.token + 1).map((piece, s) => [weight(triangle, this.token, s), piece]);
    looks.sort((a, b) => b[0] - a[0]);
    return `${visible(this.pieces[this.token])} looks at ${looks.slice(0, 3).map(([w, piece]) => `${visible(piece)} ${percent(w)}`).join(", ")}`;
  }

  // Arcs from the chosen token to what it looks at, over the whole text, which is shaded by it.
  drawArcs() {
    const triangle = this.heads[this.chosen[0]][this.chosen[1]];
    [...this.reading.children].forEach((button, s) => {
      button.setAttribute("aria-pressed", String(s === this.token));
      button.tabIndex = s === this.token ? 0 : -1;
      button.style.setProperty("--weight", (HEAVIEST * weight(triangle, this.token, s)).toFixed(3));
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
    this.arcs.setAttribute("aria-label", this.sentence());
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

// A map of n x n: the redder, the more a row looks at a column.
function paint(canvas, triangle, n, large = false) {
  const scale = large ? Math.max(1, Math.floor(480 / n)) : 1;
  canvas.width = canvas.height = n * scale;
  const context = canvas.getContext("2d");
  const shade = getComputedStyle(document.documentElement).getPropertyValue("--shade");
  for (let t = 0; t < n; t++) {
    for (let s = 0; s <= t; s++) {
      context.fillStyle = `rgba(${shade}, ${Math.sqrt(weight(triangle, t, s))})`;
      context.fillRect(s * scale, t * scale, scale, scale);
    }
  }
}
