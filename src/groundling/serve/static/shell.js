// What all pages have: light or candlelight.
import { byId, remember, remembered } from "./dom.js";

const root = document.documentElement;
const button = byId("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
}
function show() {
  button.textContent = isDark() ? "Daylight" : "Candlelight";  // what a click brings
}

const kept = remembered("theme", null);
if (kept) root.dataset.theme = kept;
show();
dark.addEventListener("change", show);
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  remember("theme", root.dataset.theme);
  show();
  document.dispatchEvent(new Event("theme"));
});
