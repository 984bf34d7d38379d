// The reward model that is trained on the rankings: start it, watch it, stop it.
import { api, inWords } from "./api.js";
import { announce, byId } from "./dom.js";
import { Chart } from "./chart.js";

const PATH = "/v1/groundling/rankings/train";
const EVERY_MS = 1000;
const AFTER_TROUBLE_MS = 2000;
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
    tell(inWords(error));
    if (error.status !== 401 && !document.hidden) timer = setTimeout(look, AFTER_TROUBLE_MS);
  }
}

// In place, so that whoever is at the link stays there.
function tell(words, run = null) {
  const [text, link] = byId("training-line").children;
  text.textContent = words;
  link.hidden = run === null;
  if (run !== null && link.textContent !== run) {
    link.textContent = run;
    link.href = `/train#${encodeURIComponent(run)}`;
  }
}

function show(facts) {
  clearTimeout(timer);
  const running = facts.state === "running";
  byId("training").hidden = facts.state === "idle";
  const [comes, goes] = running ? [byId("stop"), byId("train")] : [byId("train"), byId("stop")];
  comes.hidden = false;
  if (document.activeElement === goes) (comes.disabled ? byId("base") : comes).focus();
  goes.hidden = true;
  byId("training-line").classList.toggle("error", facts.state === "failed");
  tell(words(facts), facts.state === "failed" ? null : facts.run);
  const bar = byId("training-bar");
  bar.hidden = !running;
  if (facts.share === null) bar.removeAttribute("value");
  else bar.value = facts.share;
  draw(facts);
  if (facts.state !== last && facts.state !== "idle") announce(byId("training-line").textContent);
  last = facts.state;
  if (running && !document.hidden) timer = setTimeout(look, EVERY_MS);
}

function words(facts) {
  if (facts.state === "failed") return `It failed: ${facts.error}`;
  if (facts.state === "stopped") return "It was stopped: ";
  const loss = facts.loss === null ? "" : `loss ${facts.loss.toFixed(3)}`;
  const seconds = `${Math.round(facts.seconds)} s`;
  if (facts.state === "running") return facts.step === null ? `The model is being read · ${seconds} · ` : `Step ${facts.step}, ${loss} · ${seconds} · `;
  const right = facts.accuracy === null ? "" : `, right about ${(100 * facts.accuracy).toFixed(0)} % of the preferences that it had not seen`;
  return `Done in ${seconds}: ${loss}${right}. Its curves: `;
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
