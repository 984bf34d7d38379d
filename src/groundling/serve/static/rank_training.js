// The reward model that is trained on the rankings: start it, watch it, stop it.
import { api, inWords } from "./api.js";
import { announce, byId, clear, el } from "./dom.js";
import { Chart } from "./chart.js";

const PATH = "/v1/groundling/rankings/train";
const EVERY_MS = 1000;
let timer = null;
let last = "idle";
let chart = null;

export function watchTraining(trouble) {
  const act = (options) => async () => {
    try {
      show(await api(PATH, options()));
      trouble(null);
    } catch (error) {
      trouble(error);
    }
  };
  byId("train").addEventListener("click", act(() => ({ method: "POST", body: { model: byId("base").value || null } })));
  byId("stop").addEventListener("click", act(() => ({ method: "DELETE" })));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  look();
}

async function look() {
  clearTimeout(timer);
  try {
    show(await api(PATH));
  } catch (error) {
    byId("training-line").textContent = inWords(error);
  }
}

function show(facts) {
  clearTimeout(timer);
  const running = facts.state === "running";
  byId("training").hidden = facts.state === "idle";
  byId("stop").hidden = !running;
  byId("train").hidden = running;
  const line = clear(byId("training-line"));
  line.classList.toggle("error", facts.state === "failed");
  line.append(...words(facts));
  const bar = byId("training-bar");
  bar.hidden = !running;
  if (facts.share === null) bar.removeAttribute("value");
  else bar.value = facts.share;
  draw(facts);
  if (facts.state !== last) announce(line.textContent);
  last = facts.state;
  if (running && !document.hidden) timer = setTimeout(look, EVERY_MS);
}

function words(facts) {
  const where = el("a", { href: `/train#${encodeURIComponent(facts.run ?? "")}`, text: facts.run ?? "" });
  if (facts.state === "failed") return [`It failed: ${facts.error}`];
  if (facts.state === "stopped") return ["It was stopped: ", where, "."];
  const loss = facts.loss === null ? "" : `loss ${facts.loss.toFixed(3)}`;
  if (facts.state === "running") {
    return [facts.step === null ? "The model is being read" : `Step ${facts.step}, ${loss}`, ` · ${Math.round(facts.seconds)} s · `, where];
  }
  const right = facts.accuracy === null ? "" : `, right about ${(100 * facts.accuracy).toFixed(0)} % of the preferences that it had not seen`;
  return [`Done in ${Math.round(facts.seconds)} s: ${loss}${right}. Its curves: `, where];
}

function draw(facts) {
  if (facts.losses.length < 2) {
    chart?.node.remove();
    chart = null;
    return;
  }
  if (!chart) {
    chart = new Chart({ title: "Loss on preferences", height: 150 });
    byId("training-chart").append(chart.node);
  }
  chart.draw({ lines: [{ name: "loss", tint: 0, points: facts.losses }], xName: "step" });
}
