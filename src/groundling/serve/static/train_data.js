// Metrics of a run, fetched incrementally; reset when the run restarts.
import { api } from "./api.js";

const MAX_POINTS = 12000;

// Encode a run name for a URL; slashes stay.
const urlPath = (name) => name.split("/").map(encodeURIComponent).join("/");

export class Curves {
  constructor(name) {
    Object.assign(this, { name, version: 0, fetching: false });
    this.#reset();
  }

  #reset() {
    // series: points to draw, min and max of long stretches; means: [step, mean, count], for smoothing and sums
    Object.assign(this, { after: 0, mark: null, series: new Map(), means: new Map(), samples: [], notFinite: 0, axes: new Map() });
  }

  // Fetch new rows; true if there are any.
  async fetch(signal) {
    if (this.fetching) return false;
    this.fetching = true;
    try {
      let changed = false;
      for (let more = true; more;) {
        const query = new URLSearchParams({ after: this.after });
        if (this.mark !== null && this.after > 0) query.set("mark", this.mark);
        const update = await api(`/v1/groundling/runs/${urlPath(this.name)}/metrics?${query}`, { signal });
        if (update.restarted) { this.#reset(); changed = true; }
        changed = this.#add(update) || changed;
        more = update.more;
      }
      if (changed) this.version += 1;
      return changed;
    } finally {
      this.fetching = false;
    }
  }

  #add(update) {
    this.after = update.next;
    this.mark = update.mark;
    for (const [name, { step, value, mean }] of Object.entries(update.series)) {
      const points = [...(this.series.get(name) ?? []), ...step.map((at, i) => [at, value[i]])];
      const means = [...(this.means.get(name) ?? []), ...(mean ? mean.step.map((at, i) => [at, mean.value[i], mean.n[i]]) : step.map((at, i) => [at, value[i], 1]))];
      this.series.set(name, points.length > MAX_POINTS ? points.filter((_, place) => place % 2 === 0 || place > points.length - 100) : points);
      this.means.set(name, means.length > MAX_POINTS ? mergePairs(means) : means);
    }
    this.notFinite += update.not_finite;
    this.samples = [...this.samples, ...update.samples].slice(-20);
    this.axes = new Map();
    return update.rows > 0;
  }

  has(name) {
    return this.series.has(name);
  }

  // Points of a series over steps, tokens or seconds; empty if the run does not record that axis.
  over(name, axis) {
    return this.#onAxis(this.series.get(name) ?? [], axis);
  }

  // The same, smoothed.
  smoothedOver(name, axis, weight) {
    return this.#onAxis(smoothed(this.means.get(name) ?? [], weight), axis);
  }

  #onAxis(points, axis) {
    if (axis === "step") return points;
    const known = this.#axis(axis);
    return known.length ? points.map(([step, value]) => [interpolate(known, step), value]) : [];
  }

  #axis(axis) {
    if (!this.axes.has(axis)) {
      let known = this.series.get(axis) ?? [];
      if (!known.length && axis === "train_s" && this.has("seconds")) {  // time per step: accumulate
        let sum = 0;
        known = this.means.get("seconds").map(([step, seconds, n]) => [step, sum += n * seconds]);
      }
      this.axes.set(axis, known.length ? [[0, 0], ...known.filter(([step]) => step > 0)] : []);
    }
    return this.axes.get(axis);
  }
}

// Linear interpolation.
function interpolate(known, step) {
  let low = 0;
  let high = known.length - 1;
  if (step >= known[high][0]) return known[high][1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (known[middle][0] <= step) low = middle; else high = middle;
  }
  const [[a, atA], [b, atB]] = [known[low], known[high]];
  return b === a ? atA : atA + ((step - a) / (b - a)) * (atB - atA);
}

function mergePairs(means) {
  const half = [];
  for (let i = 0; i < means.length; i += 2) {
    const [[, a, n], [step, b, m]] = [means[i], means[i + 1] ?? [means[i][0], 0, 0]];
    half.push([step, (n * a + m * b) / (n + m), n + m]);
  }
  return half;
}

// Exponential moving average with bias correction. A mean of n values counts as n values.
export function smoothed(means, weight) {
  let mean = 0;
  let total = 0;
  return means.map(([x, y, n]) => {
    const decay = weight ** n;
    mean = decay * mean + (1 - decay) * y;
    total = decay * total + (1 - decay);
    return [x, mean / total];
  });
}

export const listRuns = async (signal) => (await api("/v1/groundling/runs", { signal })).data;
export const fetchLadder = async (name, signal) => (await api(`/v1/groundling/runs/${urlPath(name)}/ladder`, { signal })).rungs;
