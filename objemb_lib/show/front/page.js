// A page without a kernel: each element with a `data-index` becomes the views of that index, once
// somebody is about to see it.
import { browser } from "./browser.js";
import { make } from "./dom.js";
import { open } from "./engine.js";
import { fetched, packed } from "./index.js";
import { map } from "./map.js";
import { watched } from "./protocol.js";
import { search } from "./search.js";
import { shelf } from "./shelf.js";

// The first call's promise for all; what failed is tried again.
function once(work) {
  let made = null;
  return () => (made ??= work().catch((error) => {
    made = null;
    throw error;
  })); // prettier-ignore
}

async function begin(el) {
  const [banner, error] = ["banner", "error"].map((kind) => make("p", { role: "alert", class: kind }));
  const say = (words) => (error.textContent = words);
  const { index: place, only, app } = el.dataset;
  const alone = app !== undefined; // the page is ours
  const parts = make("div", {});
  let shown = {};

  // The views of an index; `network` opens an engine, or is null.
  function show(index, network) {
    for (const view of Object.values(shown)) view.close();
    shown = {};
    const link = (id, box) => shown.search?.go({ id, box });
    const backend = watched(browser(index, network, link), (words) => (banner.textContent = words));
    parts.replaceChildren();
    for (const { view, about, start } of index.about.views) {
      if (only && only !== view) continue;
      const part = make("div", {});
      parts.append(part);
      const given = { ...about, start, app: alone, known: !network };
      given.explains &&= Boolean(network);
      shown[view] = { search, map }[view](backend, given, part, say);
    }
  }

  try {
    const index = await (place.endsWith("/") ? fetched(place) : packed(place));
    const files = location.protocol === "file:" ? null : index.about.network; // no workers there
    const start = () => open(files, index.address("engine/"));
    const network = files && once(start);
    el.replaceChildren(banner, error);
    const other = (one) => {
      history.replaceState(null, "", "#");
      show(one, network);
    };
    if (files && alone) el.append(shelf(el, index, start, other, say));
    el.append(parts);
    show(index, network);
  } catch (wrong) {
    el.replaceChildren(error);
    say(wrong.message);
  }
}

function seen(entries) {
  for (const { target } of entries.filter((one) => one.isIntersecting)) {
    near.unobserve(target);
    begin(target);
  }
}
const near = new IntersectionObserver(seen, { rootMargin: "600px" });
document.querySelectorAll("[data-index]").forEach((el) => near.observe(el));
