// A widget: the front end with a kernel behind it. Traits: view, about, start (what Python asks).
import { kernel } from "./kernel.js";
import { make } from "./dom.js";
import { map } from "./map.js";
import { watched } from "./protocol.js";
import { search } from "./search.js";

function render({ model, el }) {
  const about = { ...model.get("about"), start: model.get("start") };
  el.classList.add("objemb");
  el.onkeydown = (event) => {
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation(); // or a notebook would take it
  };
  const banner = make("p", { role: "alert", class: "banner" });
  const error = make("p", { role: "alert", class: "error" });
  el.append(banner, error);

  let over = false;
  const stopped = () => {
    over = true;
    banner.textContent =
      "The search has stopped: its kernel is gone. Run the cells of this notebook again.";
  };
  const alive = () => !el.closest(".jupyter-widgets-disconnected");
  const [plain, close] = kernel(model, alive, stopped);
  const backend = watched(plain, (words) => {
    if (!over) banner.textContent = words;
  });

  const views = { search, map };
  const view = views[model.get("view")](backend, about, el, (words) => (error.textContent = words));
  const asked = () => view.go(model.get("start"));
  model.on("change:start", asked);
  return () => {
    model.off("change:start", asked);
    close();
    view.close();
  };
}

export default { render };
