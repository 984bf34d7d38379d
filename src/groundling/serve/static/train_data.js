// What is known of a run's curves: fetched piece by piece, and begun anew when the run is.
import { api } from "./api.js";

const MAX_POINTS = 12000;

// A name's slashes are part of the address; the rest of it is not.
const address = (name) => name.split("/").map(encodeURIComponent).join("/");

export class Curves {
  constructor(name) {
    Object.assign(this, { name, version: 0, waiting: false });
    this.#forget();
  }

  #forget() {
    // series: what is drawn, of long stretches the lowest and the highest; means: [step, mean, how many], to reckon with
    Object.assign(this, { after: 0, mark: null, series: new Map(), means: new Map(), samples: [], notFinite: 0, axes: new Map() });
  }

  // Ask for what is new; true if something is.
  async fetch(signal) {
    if (this.waiting) return false;
    this.waiting = true;
    try {
      let changed = false;
      for (let more = true; more;) {
        const query = new URLSearchParams({ after: this.after });
        if (this.mark !== null && this.after > 0) query.set("mark", this.mark);
        const news = await api(`/v1/groundling/runs/${address(this.name)}/metrics?${query}`, { signal });
        if (news.restarted) { this.#forget(); changed = true; }
        changed = this.#take(news) || changed;
        more = news.more;
      }
      if (changed) this.version += 1;
      return changed;
    } finally {
      this.waiting = false;
    }
  }

  #take(news) {
    this.after = news.next;
    this.mark = news.mark;
    for (const [name, { step, value, mean }] of Object.entries(news.series)) {
      const points = [...(this.series.get(name) ?? []), ...step.map((at, i) => [at, value[i]])];
      const means = [...(this.means.get(name) ?? []), ...(mean ? mean.step.map((at, i) => [at, mean.value[i], mean.n[i]]) : step.map((at, i) => [at, value[i], 1]))];
      this.series.set(name, points.length > MAX_POINTS ? points.filter((_, place) => place % 2 === 0 || place > points.length - 100) : points);
      this.means.set(name, means.length > MAX_POINTS ? inPairs(means) : means);
    }
    this.notFinite += news.not_finite;
    this.samples = [...this.samples, ...news.samples].slice(-20);
    this.axes = new Map();
    return news.rows > 0;
  }

  has(name) {
    return this.series.has(name);
  }

  // The points of a series along steps, tokens or seconds; none where the run does not tell those.
  along(name, axis) {
    return this.#moved(this.series.get(name) ?? [], axis);
  }

  // The same, smoothed.
  smoothAlong(name, axis, weight) {
    return this.#moved(smoothed(this.means.get(name) ?? [], weight), axis);
  }

  #moved(points, axis) {
    if (axis === "step") return points;
    const known = this.#axis(axis);
    return known.length ? points.map(([step, value]) => [between(known, step), value]) : [];
  }

  #axis(axis) {
    if (!this.axes.has(axis)) {
      let known = this.series.get(axis) ?? [];
      if (!known.length && axis === "train_s" && this.has("seconds")) {  // of each step, one by one
        let sum = 0;
        known = this.means.get("seconds").map(([step, seconds, n]) => [step, sum += n * seconds]);
      }
      this.axes.set(axis, known.length ? [[0, 0], ...known.filter(([step]) => step > 0)] : []);
    }
    return this.axes.get(axis);
  }
}

// Where a step lies between those that are known, in a straight line.
function between(known, step) {
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

function inPairs(means) {
  const half = [];
  for (let i = 0; i < means.length; i += 2) {
    const [[, a, n], [step, b, m]] = [means[i], means[i + 1] ?? [means[i][0], 0, 0]];
    half.push([step, (n * a + m * b) / (n + m), n + m]);
  }
  return half;
}

// A mean that forgets: what is `weight` of the last one stays; the first values count as if there had been as many.
// A mean of n values counts as n of them.
export function smoothed(means, weight) {
  let mean = 0;
  let share = 0;
  return means.map(([x, y, n]) => {
    const stays = weight ** n;
    mean = stays * mean + (1 - stays) * y;
    share = stays * share + (1 - stays);
    return [x, mean / share];
  });
}

export const listRuns = async (signal) => (await api("/v1/groundling/runs", { signal })).data;
export const ladderOf = async (name, signal) => (await api(`/v1/groundling/runs/${address(name)}/ladder`, { signal })).rungs;
