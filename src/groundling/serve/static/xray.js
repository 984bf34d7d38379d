// The X-ray: one text, one model or two, and all pictures of what went on inside.
import { api, inWords, models } from "./api.js";
import { announce, byId, clear, el, remember, remembered } from "./dom.js";
import { Maps } from "./xray_maps.js";
import { Lens } from "./xray_lens.js";
import { Next } from "./xray_next.js";

let cast = [];
const panels = [];

class Panel {
  constructor(number) {
    this.number = number;
    this.asked = 0;
    this.steps = [];
    this.select = el("select", { id: `model-${number}` }, cast.map((model) => el("option", { value: model.id, text: model.id })));
    this.slider = el("input", { id: `step-${number}`, type: "range", min: 0, max: 0, step: 1, value: 0 });
    this.stepName = el("output", {});
    this.play = el("button", { class: "button quiet", type: "button", text: "Play" });
    this.sliderField = el("p", { class: "field slider", hidden: true },
      el("label", { for: `step-${number}` }, "Checkpoint: ", this.stepName), el("span", { class: "row" }, this.slider, this.play));
    this.body = el("div", { class: "panel-body" });
    this.maps = new Maps(number);
    this.next = new Next(number);
    this.lens = new Lens(number);
    this.node = el("article", { class: "panel", "aria-label": `Model ${number + 1}` },
      el("header", {}, el("p", { class: "field" }, el("label", { for: `model-${number}`, text: "Model" }), this.select), this.sliderField),
      this.maps.node, this.next.node, this.lens.node);
    for (const part of [this.maps, this.next, this.lens]) part.node.hidden = true;
    this.select.addEventListener("change", () => { remember(`xray.model.${number}`, this.select.value); this.choose(); });
    this.slider.addEventListener("input", () => this.expose());
    this.play.addEventListener("click", () => this.playAll());
    const kept = remembered(`xray.model.${number}`, null);
    if (cast.some((model) => model.id === kept)) this.select.value = kept;
    else if (cast.length > number) this.select.selectedIndex = number;
  }

  get model() { return cast.find((model) => model.id === this.select.value); }

  async choose() {
    this.steps = [];
    if (this.model.groundling.run) {
      try {
        this.steps = (await api(`/v1/groundling/checkpoints?model=${encodeURIComponent(this.model.id)}`)).checkpoints;
      } catch (error) { trouble(error); }
    }
    this.sliderField.hidden = this.steps.length < 2;
    this.slider.max = Math.max(0, this.steps.length - 1);
    this.slider.value = this.slider.max;
    await this.expose();
  }

  async expose() {
    const mine = ++this.asked;
    const step = this.sliderField.hidden ? null : this.steps[Number(this.slider.value)];
    if (step) {
      const loss = step.val_loss === null ? "" : `, validation loss ${step.val_loss.toFixed(3)}`;
      this.stepName.textContent = `step ${step.step}${loss}`;
      this.slider.setAttribute("aria-valuetext", this.stepName.textContent);
    }
    const body = { model: this.model.id };
    const text = byId("text").value;
    if (byId("as-chat").checked && this.model.groundling.chat) body.messages = [{ role: "user", content: text }];
    else body.prompt = text;
    if (step) body.checkpoint = step.checkpoint;
    this.node.setAttribute("aria-busy", "true");
    try {
      const seen = await api("/v1/groundling/xray", { method: "POST", body });
      if (mine !== this.asked) return;
      clear(byId("trouble"));
      this.show(seen);
    } catch (error) {
      if (mine === this.asked) trouble(error);
    } finally {
      if (mine === this.asked) this.node.removeAttribute("aria-busy");
    }
  }

  show(seen) {
    for (const part of [this.maps, this.next, this.lens]) {
      part.node.hidden = false;
      part.show(seen);
    }
    announce(`${seen.model}: ${seen.tokens.length} tokens, ${seen.n_layer} layers of ${seen.n_head} heads.`);
  }

  // From the first checkpoint to the last: a head can be watched while it forms.
  async playAll() {
    this.play.disabled = true;
    for (let at = 0; at < this.steps.length; at++) {
      this.slider.value = at;
      await this.expose();
      await new Promise((resolve) => setTimeout(resolve, 400));
    }
    this.play.disabled = false;
  }
}

function trouble(error) {
  const place = clear(byId("trouble"));
  place.append(el("p", { class: "error" }, inWords(error), " ",
    el("button", { class: "button quiet", type: "button", text: "Try again", on: { click: start } })));
}

function exposeAll() {
  for (const panel of panels) panel.expose();
}

function setPanels(n) {
  while (panels.length > n) panels.pop().node.remove();
  while (panels.length < n) {
    const panel = new Panel(panels.length);
    panels.push(panel);
    byId("panels").append(panel.node);
    panel.choose();
  }
  byId("panels").classList.toggle("two", n === 2);
  byId("beside").setAttribute("aria-pressed", String(n === 2));
}

async function start() {
  clear(byId("trouble"));
  try {
    cast = await models();
  } catch (error) { trouble(error); return; }
  if (panels.length) exposeAll();
  else setPanels(1);
}

byId("plate").addEventListener("submit", (event) => { event.preventDefault(); exposeAll(); });
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) exposeAll();
});
byId("as-chat").addEventListener("change", exposeAll);
byId("beside").addEventListener("click", () => setPanels(panels.length === 2 ? 1 : 2));
document.addEventListener("theme", () => { for (const panel of panels) panel.maps.redraw(); });
const text = remembered("xray.text", null);
if (text) byId("text").value = text;
byId("text").addEventListener("input", () => remember("xray.text", byId("text").value));
start();
