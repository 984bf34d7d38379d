// The theme button, on every page.
import { byId, remember, remembered } from "./dom.js";

const root = document.documentElement;
const button = byId("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
}
function show() {
  button.textContent = isDark() ? "Light" : "Dark";  // the theme that a click selects
}

const stored = remembered("theme", null);
if (stored) root.dataset.theme = stored;
show();
dark.addEventListener("change", show);
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  remember("theme", root.dataset.theme);
  show();
  document.dispatchEvent(new Event("theme"));
});
