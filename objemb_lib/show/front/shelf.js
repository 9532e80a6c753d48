// A folder of one's own in place of the gallery: chosen or dropped, indexed in this page, kept in the
// browser, deleted again.
import { button, make } from "./dom.js";
import { chosen, dropped, forget, index, kept } from "./folder.js";

// What a folder is searched by: one way, without menus.
function alone({ network, views, ...about }) {
  const [search] = views.filter(({ view }) => view === "search");
  const way = { settings: {}, ...network.folder };
  const kinds = ["both", "box", "whole"]; // of photographs, the whole counts
  const plain = { ...search, start: { id: "" }, about: { ...search.about, kinds, choices: [] } };
  return { ...about, network, ways: [way], views: [plain] };
}

// gallery: the index of the page. start: opens an engine. show(index): makes its views.
function shelf(el, gallery, start, show, say) {
  const about = alone(gallery.about);
  const bar = make("div", { class: "actions shelf" });
  const says = make("span", { role: "status" });
  const put = (...parts) => bar.replaceChildren(...parts, says);
  const input = make("input", { type: "file", webkitdirectory: true, class: "file" });
  input.onchange = () => take(chosen(input.files));
  const choose = make("label", { class: "button" }, "search a folder of your own", input);
  let mine = null; // the folder of last time, or of now

  async function take(photographs) {
    const progress = make("progress", { max: 1, value: 0, "aria-label": "photographs that were looked at" });
    put(progress);
    try {
      const some = await photographs;
      if (!some.length) throw new Error("There is no photograph in it.");
      const tell = ({ done, total }) => {
        Object.assign(progress, { max: total, value: done });
        says.textContent = `Looked at ${done} of ${total} photographs, in this page alone.`;
      };
      mine = await index(some, start, about, tell);
      say("");
      folder();
    } catch (error) {
      say(error.message);
      home();
    }
  }

  const network = (one) => JSON.stringify(one?.about.ways[0].looks);
  const count = () => `${mine.about.names.length} photographs`;
  function folder() {
    const skipped = mine.skipped.map(({ file, why }) => make("li", {}, `${file}: ${why}`));
    const left = make("details", {}, make("summary", {}, `${skipped.length} could not be read`), make("ul", {}, ...skipped));
    const remove = () => forget().then(() => ((mine = null), back()), (error) => say(error.message)); // prettier-ignore
    says.textContent = `Your folder: ${count()}. They stay in this browser.`;
    put(button("back to the gallery", back), button("delete it here", remove), skipped.length ? left : "");
    show(mine);
  }
  function home() {
    says.textContent = "";
    put(choose, mine ? button(`your folder of last time: ${count()}`, folder) : "");
  }
  function back() {
    home();
    show(gallery);
  }

  el.addEventListener("drop", (event) => {
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry());
    if (entries.length < 2 && !entries[0]?.isDirectory) return; // a photograph that asks
    event.preventDefault();
    event.stopPropagation();
    take(dropped(event.dataTransfer));
  }, true); // prettier-ignore
  el.addEventListener("dragover", (event) => event.preventDefault());
  home();
  kept().then((found) => {
    if (mine || network(found) !== network({ about })) return; // of another network, or none
    mine = found;
    if (bar.contains(choose)) home();
  });
  return bar;
}

export { shelf };
