// All photographs, a page of thumbnails at a time; one that is pressed is taken.
import { button, make } from "./dom.js";

const PAGE = 48; // thumbnails

function gallery(photographs) {
  const dialog = make("dialog", { class: "gallery", "aria-label": "all photographs" });
  dialog.onclick = (event) => event.target === dialog && dialog.close(); // beside it

  async function page(from, take, title) {
    const { total, items } = await photographs({ from, many: PAGE });
    const thumbs = items.map(({ id, file, src }) => {
      const press = () => {
        dialog.close();
        take(id);
      };
      return make("li", {}, make("button", { type: "button", onclick: press },
        make("img", { src, alt: "" }), make("span", {}, file))); // prettier-ignore
    });
    const turn = (to, words, possible) =>
      button(words, () => page(to, take, title), { disabled: !possible });
    const last = Math.min(from + PAGE, total);
    const list = make("ul", {}, ...thumbs);
    dialog.replaceChildren(
      make("div", { class: "head" }, make("h2", {}, title), button("close", () => dialog.close())), list,
      make("div", { class: "actions" }, turn(from - PAGE, "earlier", from > 0),
        make("span", { role: "status" }, `${from + 1} to ${last} of ${total}`),
        turn(from + PAGE, "later", last < total))); // prettier-ignore
    if (!dialog.open) dialog.showModal();
    list.querySelector("button")?.focus();
  }
  return { el: dialog, open: (take, title) => page(0, take, title) };
}

export { gallery };
