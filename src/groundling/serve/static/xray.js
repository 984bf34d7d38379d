// X-ray: run a text through one or two models and show their internals.
import { api, errorText, models as fetchModels } from "./api.js";
import { announce, byId, clear, el, remember, remembered } from "./dom.js";
import { Maps } from "./xray_maps.js";
import { Lens } from "./xray_lens.js";
import { Next } from "./xray_next.js";

const DEBOUNCE_MS = 120; // of the checkpoint slider
const FRAME_MS = 400;    // per checkpoint while playing
let models = [];
const panels = [];

class Panel {
  constructor(number) {
    this.number = number;
    this.controller = new AbortController();  // of the request in flight; the next one aborts it
    this.listing = false;                     // waiting for the list of checkpoints
    this.steps = [];
    this.playing = null;
    this.timer = null;
    this.select = el("select", { id: `model-${number}` });
    this.slider = el("input", { id: `step-${number}`, type: "range", min: 0, max: 0, step: 1, value: 0 });
    this.stepName = el("output", {});
    this.play = el("button", { class: "button quiet", type: "button", text: "Play" });
    this.sliderField = el("p", { class: "field slider", hidden: true },
      el("label", { for: `step-${number}` }, "Checkpoint: ", this.stepName), el("span", { class: "row" }, this.slider, this.play));
    this.error = el("div", { class: "panel-error", role: "alert" });
    this.parts = [new Maps(number), new Next(number), new Lens(number)];
    this.node = el("article", { class: "panel", "aria-label": `Model ${number + 1}` },
      el("header", {}, el("p", { class: "field" }, el("label", { for: `model-${number}`, text: "Model" }), this.select), this.sliderField),
      this.error, this.parts.map((part) => part.node));
    this.#hide();
    this.select.addEventListener("change", () => { remember(`xray.model.${number}`, this.select.value); this.selectModel(); });
    this.slider.addEventListener("input", () => {
      this.stopPlaying();
      this.#nameStep();
      this.node.setAttribute("aria-busy", "true");
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.analyze(), DEBOUNCE_MS);
    });
    this.play.addEventListener("click", () => (this.playing ? this.stopPlaying() : this.playAll()));
    this.fill();
  }

  get model() { return models.find((model) => model.id === this.select.value); }
  get step() { return this.sliderField.hidden ? null : this.steps[Number(this.slider.value)]; }

  // List the models; keep the selected one if it still exists.
  fill() {
    const before = this.select.value || remembered(`xray.model.${this.number}`, null);
    clear(this.select).append(...models.map((model) => el("option", { value: model.id, text: model.id })));
    if (models.some((model) => model.id === before)) this.select.value = before;
    else this.select.selectedIndex = Math.min(this.number, models.length - 1);
  }

  remove() {
    this.#reset();
    this.node.remove();
  }

  // Cancel what is in flight.
  #reset() {
    this.stopPlaying();
    clearTimeout(this.timer);
    this.controller.abort();
    this.controller = new AbortController();
    return this.controller.signal;
  }

  async selectModel() {
    const signal = this.#reset();
    this.steps = [];
    this.listing = Boolean(this.model.groundling.run);
    if (this.listing) {
      this.node.setAttribute("aria-busy", "true");
      try {
        const { checkpoints } = await api(`/v1/groundling/checkpoints?model=${encodeURIComponent(this.model.id)}`, { signal });
        if (signal.aborted) return;
        this.steps = checkpoints;
      } catch (error) {
        if (!signal.aborted) this.#fail(error);
        return;
      }
      this.listing = false;
    }
    this.sliderField.hidden = this.steps.length < 2;
    this.slider.max = Math.max(0, this.steps.length - 1);
    this.slider.value = this.slider.max;
    await this.analyze();
  }

  #nameStep() {
    if (!this.step) return;
    const loss = this.step.val_loss === null ? "" : `, validation loss ${this.step.val_loss.toFixed(3)}`;
    this.stepName.textContent = `step ${this.step.step}${loss}`;
    this.slider.setAttribute("aria-valuetext", this.stepName.textContent);
  }

  // Run the model; true unless superseded or failed.
  async analyze({ playing = null } = {}) {
    if (this.listing) return false;
    if (!playing) this.stopPlaying();
    clearTimeout(this.timer);
    this.controller.abort();
    const { signal } = (this.controller = new AbortController());
    this.#nameStep();
    const body = { model: this.model.id };
    const text = byId("text").value;
    if (byId("as-chat").checked && this.model.groundling.chat) body.messages = [{ role: "user", content: text }];
    else body.prompt = text;
    if (this.step) body.checkpoint = this.step.checkpoint;
    this.node.setAttribute("aria-busy", "true");
    try {
      const result = await api("/v1/groundling/xray", { method: "POST", body, signal });
      if (signal.aborted) return false;
      clear(this.error);
      for (const part of this.parts) {
        part.node.hidden = false;
        part.show(result);
      }
      if (!playing) announce(`${result.model}: ${result.tokens.length} tokens, ${result.n_layer} layers of ${result.n_head} heads.`);
      this.node.removeAttribute("aria-busy");
      return true;
    } catch (error) {
      if (!signal.aborted) this.#fail(error);
      return false;
    }
  }

  // Hide results of an earlier text or model.
  #fail(error) {
    this.listing = false;
    this.stopPlaying();
    this.#hide();
    this.node.removeAttribute("aria-busy");
    showError(this.error, error);
  }

  #hide() {
    for (const part of this.parts) part.node.hidden = true;
  }

  // Step through all checkpoints.
  async playAll() {
    const session = this.playing = {};
    this.play.textContent = "Stop";
    for (let at = 0; at < this.steps.length; at++) {
      this.slider.value = at;
      if (!await this.analyze({ playing: session })) break;
      if (at + 1 < this.steps.length) await new Promise((resolve) => setTimeout(resolve, FRAME_MS));
      if (this.playing !== session) return;
    }
    if (this.playing !== session) return;
    this.stopPlaying();
    announce(`Played to ${this.stepName.textContent}.`);
  }

  stopPlaying() {
    this.playing = null;
    this.play.textContent = "Play";
  }

  redraw() {
    this.parts[0].redraw();
  }
}

function showError(place, error) {
  clear(place).append(el("p", { class: "error" }, errorText(error), " ",
    el("button", { class: "button quiet", type: "button", text: "Try again", on: { click: () => { byId("analyze").focus(); start(); } } })));
}

function analyzeAll() {
  for (const panel of panels) panel.analyze();
}

function setPanels(n) {
  while (panels.length > n) panels.pop().remove();
  while (panels.length < n) {
    const panel = new Panel(panels.length);
    panels.push(panel);
    byId("panels").append(panel.node);
    panel.selectModel();
  }
  byId("panels").classList.toggle("two", n === 2);
  byId("compare").setAttribute("aria-pressed", String(n === 2));
}

// After a server restart the models may differ.
async function start() {
  try {
    models = await fetchModels();
    clear(byId("page-error"));
  } catch (error) {
    showError(byId("page-error"), error);
    return;
  }
  if (!panels.length) setPanels(1);
  else for (const panel of panels) {
    panel.fill();
    panel.selectModel();
  }
}

byId("input-form").addEventListener("submit", (event) => { event.preventDefault(); analyzeAll(); });
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) analyzeAll();
});
byId("as-chat").addEventListener("change", analyzeAll);
byId("compare").addEventListener("click", () => setPanels(panels.length === 2 ? 1 : 2));
document.addEventListener("theme", () => { for (const panel of panels) panel.redraw(); });
const text = remembered("xray.text", null);
if (text) byId("text").value = text;
byId("text").addEventListener("input", () => remember("xray.text", byId("text").value));
start();
