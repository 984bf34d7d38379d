// Line charts in SVG, with a keyboard cursor and a table view.
import { el, svg, clear } from "./dom.js";

const LEFT = 48;
const RIGHT = 12;
const TOP = 8;
const BOTTOM = 24;
const TABLE_ROWS = 40;
let nCharts = 0;

const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
export function short(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1000) return compact.format(value);
  if (size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

// Ticks 1, 2 or 5 times a power of ten apart.
export function ticks(low, high, about) {
  const rough = (high - low) / Math.max(1, about);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found.length > 1 ? found : ticks(low, high, 4);
}

// Index of the point nearest to x; points are sorted by x.
function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? low - 1 : low;
}

function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

export class Chart {
  // label: accessible name, unique on the page. onCursor(x | null) is called when the cursor moves.
  constructor({ title, label = title, note = "", height = 200, onCursor = null }) {
    nCharts += 1;
    Object.assign(this, { label, height, onCursor, id: `chart-${nCharts}`, lines: [], at: null, width: 0, names: null });
    this.svg = svg("svg", { class: "chart-svg", role: "img", "aria-labelledby": `${this.id}-title ${this.id}-desc` });
    this.slider = el("div", { class: "chart-cursor", role: "slider", tabindex: "0", "aria-valuenow": "0", "aria-label": `${label}: cursor` });
    this.readout = el("p", { class: "chart-readout" });
    this.table = el("details", { class: "chart-table" }, el("summary", { text: "Show as table" }));
    this.node = el("figure", { class: "chart" },
      el("figcaption", {}, el("span", { class: "chart-title", text: title }), note ? el("span", { class: "faint", text: ` ${note}` }) : null),
      this.readout, el("div", { class: "chart-plot" }, this.svg, this.slider), this.table);
    this.slider.addEventListener("keydown", (event) => this.#key(event));
    this.slider.addEventListener("pointermove", (event) => this.#moveTo(this.#xAt(event)));
    this.slider.addEventListener("pointerdown", (event) => this.#moveTo(this.#xAt(event)));
    this.slider.addEventListener("pointerleave", () => this.#moveTo(null));
    this.slider.addEventListener("blur", () => this.#moveTo(null));
    this.table.addEventListener("toggle", () => this.#tabulate());
    new ResizeObserver(([entry]) => {
      const width = Math.round(entry.contentRect.width);
      if (width && width !== this.width) { this.width = width; this.#paint(); }
    }).observe(this.svg.parentNode);
  }

  // lines: { name, tint, points: [[x, y]], faint: [[x, y]], dots, dashed }; names: labels for x = 0, 1, ...
  draw({ lines, xName, log = false, names = null }) {
    const drawn = lines.filter((line) => line.points.length);
    const positive = drawn.some((line) => [line.points, line.faint ?? []].some((points) => points.some(([, y]) => y > 0)));
    Object.assign(this, { lines: drawn, xName, log: log && positive, names });  // a log scale needs a positive value
    this.#paint();
    this.#tabulate();
  }

  point(x) {
    if (x === this.at) return;
    this.at = x;
    this.#drawCursor();
  }

  #scales() {
    const drawable = this.log ? (y) => y > 0 : () => true;
    const xs = extent(this.lines.flatMap((line) => [line.points[0][0], line.points.at(-1)[0]]));
    const ys = [];
    for (const line of this.lines) {
      for (const [, y] of line.points) if (drawable(y)) ys.push(y);
      const raw = (line.faint ?? []).map(([, y]) => y).filter(drawable).sort((a, b) => a - b);
      if (raw.length) ys.push(raw[Math.floor(0.01 * raw.length)], raw[Math.ceil(0.99 * (raw.length - 1))]);
    }
    let [low, high] = ys.length ? extent(ys) : [0, 1];
    if (this.log) { low = Math.log10(low); high = Math.log10(high); }
    const room = high > low ? 0.06 * (high - low) : Math.abs(high) * 0.1 || 1;
    low -= room;
    high += room;
    const [left, right] = [LEFT, Math.max(LEFT + 20, this.width - RIGHT)];
    const span = xs[1] - xs[0] || 1;
    const pad = this.names ? 0.5 : 0;
    Object.assign(this, { xLow: xs[0] - pad, xSpan: span + 2 * pad, yLow: low, ySpan: high - low, left, right, floor: this.height - BOTTOM });
    this.xSpan = this.xSpan || 1;
  }

  #x = (x) => this.left + ((x - this.xLow) / this.xSpan) * (this.right - this.left);
  #y = (y) => this.floor - (((this.log ? Math.log10(Math.max(y, 1e-30)) : y) - this.yLow) / this.ySpan) * (this.floor - TOP);

  #path(points) {
    let path = "";
    for (const [x, y] of points) path += `${path ? "L" : "M"}${this.#x(x).toFixed(1)} ${this.#y(y).toFixed(1)}`;
    return path;
  }

  #paint() {
    clear(this.svg);
    if (!this.width) return;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.svg.style.height = this.slider.style.height = `${this.height}px`;
    this.svg.append(svg("title", { id: `${this.id}-title`, text: this.label }), svg("desc", { id: `${this.id}-desc`, text: this.#description() }));
    this.slider.hidden = !this.lines.length;
    if (!this.lines.length) return;
    this.#scales();
    this.#axes();
    const clip = `${this.id}-clip`;
    this.svg.append(svg("clipPath", { id: clip }, svg("rect", { x: this.left - 4, y: 0, width: this.right - this.left + 8, height: this.floor + 4 })));
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    for (const line of this.lines) if (line.faint) inside.append(svg("path", { class: `raw tint-${line.tint}`, d: this.#path(line.faint) }));
    for (const line of this.lines) {
      if (!line.unjoined) inside.append(svg("path", { class: `line tint-${line.tint}${line.dashed ? " dashed" : ""}`, d: this.#path(line.points) }));
      if (line.dots || line.points.length === 1) for (const [x, y] of line.points) inside.append(this.#dot(line, x, y));
    }
    this.cursor = svg("g", { class: "cursor" });
    this.svg.append(inside, this.cursor);
    this.#drawCursor();
  }

  #dot(line, x, y) {
    const [cx, cy] = [this.#x(x), this.#y(y)];
    const kind = { class: `dot tint-${line.tint} ${line.shape ?? ""}` };
    if (line.shape === "diamond") return svg("path", { ...kind, d: `M${cx} ${cy - 6}l6 6l-6 6l-6 -6z` });
    if (line.shape === "cross") return svg("path", { ...kind, d: `M${cx - 4} ${cy - 4}l8 8m0 -8l-8 8` });
    return svg("circle", { ...kind, cx, cy, r: line.points.length > 60 ? 1.6 : 3 });
  }

  #axes() {
    const values = this.log ? logTicks(10 ** this.yLow, 10 ** (this.yLow + this.ySpan)) : ticks(this.yLow, this.yLow + this.ySpan, this.height / 46);
    for (const value of values) {
      const y = this.#y(value);
      this.svg.append(svg("line", { class: "grid", x1: this.left, x2: this.right, y1: y, y2: y }),
        svg("text", { class: "tick", x: this.left - 6, y: y + 4, "text-anchor": "end", text: short(value) }));
    }
    const along = this.names ? this.names.map((_, number) => number) : ticks(this.xLow, this.xLow + this.xSpan, (this.right - this.left) / 90);
    for (const value of along) {
      const x = this.#x(value);
      const anchor = x > this.right - 16 ? "end" : "middle";
      this.svg.append(svg("text", { class: "tick", x, y: this.height - 6, "text-anchor": anchor, text: this.names ? this.names[value] : short(value) }));
    }
    this.svg.append(svg("line", { class: "axis", x1: this.left, x2: this.right, y1: this.floor, y2: this.floor }));
  }

  #description() {
    if (!this.lines.length) return "No data yet.";
    return this.lines.map((line) => {
      const [first, last] = [line.points[0], line.points.at(-1)];
      return `${line.name}: from ${short(first[1])} at ${this.#place(first[0])} to ${short(last[1])} at ${this.#place(last[0])}`;
    }).join("; ");
  }

  #place(x) {
    return this.names ? this.names[Math.round(x)] : `${this.xName} ${short(x)}`;
  }

  #drawCursor() {
    if (!this.lines.length) { clear(this.readout); return; }
    if (this.cursor) clear(this.cursor);
    const words = [];
    const parts = [];
    for (const line of this.lines) {
      const within = this.at !== null && this.at >= line.points[0][0] - this.xSpan * 0.02 && this.at <= line.points.at(-1)[0] + this.xSpan * 0.02;
      const [x, y] = this.at === null ? line.points.at(-1) : line.points[nearest(line.points, this.at)];
      const known = this.at === null || within;
      words.push(`${line.name} ${known ? short(y) : "no value"}`);
      parts.push(el("span", { class: `value tint-${line.tint}${line.dashed ? " dashed" : ""}` }, el("i", { "aria-hidden": "true", class: line.shape ?? "" }), `${line.name} `, el("b", { text: known ? short(y) : "–" })));
      if (this.at !== null && within && this.cursor) this.cursor.append(svg("circle", { class: `spot tint-${line.tint}`, cx: this.#x(x), cy: this.#y(y), r: 4 }));
    }
    const where = this.at === null ? "last" : this.#place(this.at);
    clear(this.readout).append(el("span", { class: "where", text: where }), ...parts);
    if (this.at !== null && this.cursor) {
      const x = this.#x(this.at);
      if (x >= this.left - 1 && x <= this.right + 1) this.cursor.prepend(svg("line", { class: "hair", x1: x, x2: x, y1: TOP, y2: this.floor }));
    }
    const now = this.at ?? this.xLow + this.xSpan;
    const facts = { valuemin: this.xLow, valuemax: this.xLow + this.xSpan, valuenow: now, valuetext: `${this.at === null ? "last" : where}: ${words.join(", ")}` };
    for (const [name, value] of Object.entries(facts)) this.slider.setAttribute(`aria-${name}`, String(value));
  }

  #stops() {
    const longest = this.lines.reduce((best, line) => (line.points.length > best.points.length ? line : best));
    return longest.points.map(([x]) => x);
  }

  #moveTo(x) {
    if (this.onCursor) this.onCursor(x);
    else this.point(x);
  }

  #xAt(event) {
    const box = this.svg.getBoundingClientRect();
    const x = this.xLow + ((event.clientX - box.left - this.left) / (this.right - this.left)) * this.xSpan;
    const stops = this.#stops();
    return stops[nearest(stops.map((stop) => [stop]), x)];
  }

  #key(event) {
    const stops = this.#stops();
    const here = this.at === null ? stops.length - 1 : nearest(stops.map((stop) => [stop]), this.at);
    const far = Math.max(1, Math.round(stops.length / 10));
    const moves = { ArrowLeft: here - 1, ArrowRight: here + 1, ArrowDown: here - 1, ArrowUp: here + 1, PageDown: here - far, PageUp: here + far, Home: 0, End: stops.length - 1 };
    if (event.key === "Escape") { this.#moveTo(null); return; }
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.#moveTo(stops[Math.min(stops.length - 1, Math.max(0, moves[event.key]))]);
  }

  // Evenly spaced rows plus all points of short lines; built only while the table is open.
  #tabulate() {
    const before = this.table.querySelector(".scroll");
    if (!this.table.open || !this.lines.length) { before?.remove(); return; }
    const rising = (numbers) => [...new Set(numbers)].sort((a, b) => a - b);
    const along = (lines) => lines.flatMap((line) => line.points.map(([x]) => x));
    const stops = rising(along(this.lines));
    const every = Math.max(1, Math.ceil(stops.length / TABLE_ROWS));
    const rows = rising([...stops.filter((_, place) => place % every === 0), stops.at(-1), ...along(this.lines.filter((line) => line.points.length <= TABLE_ROWS))]);
    const head = el("tr", {}, el("th", { scope: "col", text: this.xName }), ...this.lines.map((line) => el("th", { scope: "col", text: line.name })));
    const body = rows.map((x) => el("tr", {}, el("th", { scope: "row", text: this.names ? this.names[x] : exact.format(x) }), ...this.lines.map((line) => {
      const near = line.points[nearest(line.points, x)];
      return el("td", { text: near[0] === x ? short(near[1]) : "" });
    })));
    const table = el("table", {}, el("thead", {}, head), el("tbody", {}, ...body));
    if (before) before.replaceChildren(table);  // keeps the scroll position
    else this.table.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${this.label}, table` }, table));
  }
}
