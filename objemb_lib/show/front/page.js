// A page without a kernel: each element with a `data-index` becomes the views of that index, once
// somebody is about to see it.
import { browser } from "./browser.js";
import { make } from "./dom.js";
import { open } from "./engine.js";
import { fetched, packed } from "./index.js";
import { map } from "./map.js";
import { watched } from "./protocol.js";
import { search } from "./search.js";

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
  try {
    const { index: place, only } = el.dataset;
    const index = await (place.endsWith("/") ? fetched(place) : packed(place));
    const views = index.about.views.filter(({ view }) => !only || only === view);
    const shown = {};
    const link = (id, box) => shown.search?.go({ id, box });
    const files = location.protocol === "file:" ? null : index.about.network;
    const network = files && once(() => open(files, index.address("engine/")));
    const plain = browser(index, network, link);
    const backend = watched(plain, (words) => (banner.textContent = words));
    el.replaceChildren(banner, error);
    for (const { view, about, start } of views) {
      const part = make("div", {});
      el.append(part);
      const given = { ...about, start, app: "app" in el.dataset, known: !network };
      given.explains &&= Boolean(network);
      shown[view] = { search, map }[view](backend, given, part, say);
    }
  } catch (wrong) {
    el.replaceChildren(error);
    say(wrong.message);
  }
}

const near = new IntersectionObserver(
  (entries) =>
    entries.forEach(({ isIntersecting, target }) => {
      if (!isIntersecting) return;
      near.unobserve(target);
      begin(target);
    }),
  { rootMargin: "600px" },
);
document.querySelectorAll("[data-index]").forEach((el) => near.observe(el));
