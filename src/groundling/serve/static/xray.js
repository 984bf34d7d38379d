// The X-ray: one text, one model or two, and all pictures of what went on inside.
import { api, inWords, models } from "./api.js";
import { announce, byId, clear, el, remember, remembered } from "./dom.js";
import { Maps } from "./xray_maps.js";
import { Lens } from "./xray_lens.js";
import { Next } from "./xray_next.js";

const SETTLES_MS = 120;  // a slider that is dragged asks once it rests
const STEP_MS = 400;     // for each checkpoint of a play
let cast = [];
const panels = [];

class Panel {
  constructor(number) {
    this.number = number;
    this.asking = new AbortController();  // of what is under way: whatever comes next ends it
    this.listing = false;                 // while it waits for a list of checkpoints, and looks through it afterwards
    this.steps = [];
    this.playing = null;
    this.timer = null;
    this.select = el("select", { id: `model-${number}` });
    this.slider = el("input", { id: `step-${number}`, type: "range", min: 0, max: 0, step: 1, value: 0 });
    this.stepName = el("output", {});
    this.play = el("button", { class: "button quiet", type: "button", text: "Play" });
    this.sliderField = el("p", { class: "field slider", hidden: true },
      el("label", { for: `step-${number}` }, "Checkpoint: ", this.stepName), el("span", { class: "row" }, this.slider, this.play));
    this.trouble = el("div", { class: "trouble", role: "alert" });
    this.parts = [new Maps(number), new Next(number), new Lens(number)];
    this.node = el("article", { class: "panel", "aria-label": `Model ${number + 1}` },
      el("header", {}, el("p", { class: "field" }, el("label", { for: `model-${number}`, text: "Model" }), this.select), this.sliderField),
      this.trouble, this.parts.map((part) => part.node));
    this.#hide();
    this.select.addEventListener("change", () => { remember(`xray.model.${number}`, this.select.value); this.choose(); });
    this.slider.addEventListener("input", () => {
      this.halt();
      this.#nameStep();
      this.node.setAttribute("aria-busy", "true");
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.expose(), SETTLES_MS);
    });
    this.play.addEventListener("click", () => (this.playing ? this.halt() : this.playAll()));
    this.fill();
  }

  get model() { return cast.find((model) => model.id === this.select.value); }
  get step() { return this.sliderField.hidden ? null : this.steps[Number(this.slider.value)]; }

  // The models that there are; the one that was chosen, if it is still among them.
  fill() {
    const before = this.select.value || remembered(`xray.model.${this.number}`, null);
    clear(this.select).append(...cast.map((model) => el("option", { value: model.id, text: model.id })));
    if (cast.some((model) => model.id === before)) this.select.value = before;
    else this.select.selectedIndex = Math.min(this.number, cast.length - 1);
  }

  remove() {
    this.#begin();
    this.node.remove();
  }

  // Something new is wanted: what was, is wanted no more.
  #begin() {
    this.halt();
    clearTimeout(this.timer);
    this.asking.abort();
    this.asking = new AbortController();
    return this.asking.signal;
  }

  async choose() {
    const signal = this.#begin();
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
    await this.expose();
  }

  #nameStep() {
    if (!this.step) return;
    const loss = this.step.val_loss === null ? "" : `, validation loss ${this.step.val_loss.toFixed(3)}`;
    this.stepName.textContent = `step ${this.step.step}${loss}`;
    this.slider.setAttribute("aria-valuetext", this.stepName.textContent);
  }

  // Look through the model; true if it is the newest wish that was fulfilled.
  async expose({ playing = null } = {}) {
    if (this.listing) return false;
    if (!playing) this.halt();
    clearTimeout(this.timer);
    this.asking.abort();
    const { signal } = (this.asking = new AbortController());
    this.#nameStep();
    const body = { model: this.model.id };
    const text = byId("text").value;
    if (byId("as-chat").checked && this.model.groundling.chat) body.messages = [{ role: "user", content: text }];
    else body.prompt = text;
    if (this.step) body.checkpoint = this.step.checkpoint;
    this.node.setAttribute("aria-busy", "true");
    try {
      const seen = await api("/v1/groundling/xray", { method: "POST", body, signal });
      if (signal.aborted) return false;
      clear(this.trouble);
      for (const part of this.parts) {
        part.node.hidden = false;
        part.show(seen);
      }
      if (!playing) announce(`${seen.model}: ${seen.tokens.length} tokens, ${seen.n_layer} layers of ${seen.n_head} heads.`);
      this.node.removeAttribute("aria-busy");
      return true;
    } catch (error) {
      if (!signal.aborted) this.#fail(error);
      return false;
    }
  }

  // Pictures of another text, or of another model, would say what is not so.
  #fail(error) {
    this.listing = false;
    this.halt();
    this.#hide();
    this.node.removeAttribute("aria-busy");
    showTrouble(this.trouble, error);
  }

  #hide() {
    for (const part of this.parts) part.node.hidden = true;
  }

  // From the first checkpoint to the last: a head can be watched while it forms.
  async playAll() {
    const mine = this.playing = {};
    this.play.textContent = "Stop";
    for (let at = 0; at < this.steps.length; at++) {
      this.slider.value = at;
      if (!await this.expose({ playing: mine })) break;
      if (at + 1 < this.steps.length) await new Promise((resolve) => setTimeout(resolve, STEP_MS));
      if (this.playing !== mine) return;
    }
    if (this.playing !== mine) return;
    this.halt();
    announce(`Played to ${this.stepName.textContent}.`);
  }

  halt() {
    this.playing = null;
    this.play.textContent = "Play";
  }

  redraw() {
    this.parts[0].redraw();
  }
}

function showTrouble(place, error) {
  clear(place).append(el("p", { class: "error" }, inWords(error), " ",
    el("button", { class: "button quiet", type: "button", text: "Try again", on: { click: () => { byId("expose").focus(); start(); } } })));
}

function exposeAll() {
  for (const panel of panels) panel.expose();
}

function setPanels(n) {
  while (panels.length > n) panels.pop().remove();
  while (panels.length < n) {
    const panel = new Panel(panels.length);
    panels.push(panel);
    byId("panels").append(panel.node);
    panel.choose();
  }
  byId("panels").classList.toggle("two", n === 2);
  byId("beside").setAttribute("aria-pressed", String(n === 2));
}

// The server may be another one by now, with other models.
async function start() {
  try {
    cast = await models();
    clear(byId("trouble"));
  } catch (error) {
    showTrouble(byId("trouble"), error);
    return;
  }
  if (!panels.length) setPanels(1);
  else for (const panel of panels) {
    panel.fill();
    panel.choose();
  }
}

byId("plate").addEventListener("submit", (event) => { event.preventDefault(); exposeAll(); });
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) exposeAll();
});
byId("as-chat").addEventListener("change", exposeAll);
byId("beside").addEventListener("click", () => setPanels(panels.length === 2 ? 1 : 2));
document.addEventListener("theme", () => { for (const panel of panels) panel.redraw(); });
const text = remembered("xray.text", null);
if (text) byId("text").value = text;
byId("text").addEventListener("input", () => remember("xray.text", byId("text").value));
start();
