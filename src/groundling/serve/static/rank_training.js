// Start, monitor and stop the training of a reward model.
import { api, errorText } from "./api.js";
import { announce, byId } from "./dom.js";
import { Chart } from "./chart.js";

const PATH = "/v1/groundling/rankings/train";
const POLL_MS = 1000;
const RETRY_MS = 2000;
let timer = null;
let lastState = "idle";
let chart = null;

export function watchTraining(showError) {
  const act = (options) => async () => {
    try {
      show(await api(PATH, options()));
      showError(null);
    } catch (error) {
      showError(error);
    }
  };
  byId("train").addEventListener("click", act(() => ({ method: "POST", body: { model: byId("base").value || null } })));
  byId("stop").addEventListener("click", act(() => ({ method: "DELETE" })));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  poll();
}

async function poll() {
  clearTimeout(timer);
  try {
    show(await api(PATH));
  } catch (error) {
    setStatus(errorText(error));
    if (error.status !== 401 && !document.hidden) timer = setTimeout(poll, RETRY_MS);
  }
}

// Update in place to keep the focus on the link.
function setStatus(words, run = null) {
  const [text, link] = byId("training-status").children;
  text.textContent = words;
  link.hidden = run === null;
  if (run !== null && link.textContent !== run) {
    link.textContent = run;
    link.href = `/train#${encodeURIComponent(run)}`;
  }
}

function show(status) {
  clearTimeout(timer);
  const running = status.state === "running";
  byId("training").hidden = status.state === "idle";
  const [shown, hidden] = running ? [byId("stop"), byId("train")] : [byId("train"), byId("stop")];
  shown.hidden = false;
  if (document.activeElement === hidden) (shown.disabled ? byId("base") : shown).focus();
  hidden.hidden = true;
  byId("training-status").classList.toggle("error", status.state === "failed");
  setStatus(statusText(status), status.state === "failed" ? null : status.run);
  const bar = byId("training-progress");
  bar.hidden = !running;
  if (status.share === null) bar.removeAttribute("value");
  else bar.value = status.share;
  draw(status);
  if (status.state !== lastState && status.state !== "idle") announce(byId("training-status").textContent);
  lastState = status.state;
  if (running && !document.hidden) timer = setTimeout(poll, POLL_MS);
}

function statusText(status) {
  if (status.state === "failed") return `Failed: ${status.error}`;
  if (status.state === "stopped") return "Stopped: ";
  const loss = status.loss === null ? "" : `loss ${status.loss.toFixed(3)}`;
  const seconds = `${Math.round(status.seconds)} s`;
  if (status.state === "running") return status.step === null ? `Loading the model · ${seconds} · ` : `Step ${status.step}, ${loss} · ${seconds} · `;
  const accuracy = status.accuracy === null ? "" : `, accuracy ${(100 * status.accuracy).toFixed(0)} % on held-out preferences`;
  return `Done in ${seconds}: ${loss}${accuracy}. Run: `;
}

function draw(status) {
  if (status.losses.length < 2) {
    chart?.node.remove();
    chart = null;
    return;
  }
  if (!chart) {
    chart = new Chart({ title: "Preference loss", height: 150 });
    byId("training-chart").append(chart.node);
  }
  chart.draw({ lines: [{ name: "loss", tint: 0, points: status.losses }], xName: "step" });
}
