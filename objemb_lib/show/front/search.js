// The search: a photograph that asks, and what it finds. `about` says which of its parts are there:
// kinds (of the protocol), accepts (photographs of one's own), explains, most (answers), choices
// ({name, options, value}), looks (a second photograph is chosen), start (what is asked first), app
// (the address is ours), known (no box can be drawn).
import { answers } from "./answers.js";
import { queryBox } from "./box.js";
import { enlarged } from "./dialog.js";
import { button, make, menu } from "./dom.js";
import { gallery } from "./gallery.js";
import { latest } from "./protocol.js";
import { page, save, table } from "./save.js";
import { inAddress, inMemory } from "./place.js";

const KINDS = { both: "both", box: "object in the box", whole: "whole photograph" };

// Files that are chosen, dropped on `place` or pasted into it.
function own(place, take, say) {
  const first = (files) => {
    const file = [...files].find((one) => one.type.startsWith("image/"));
    if (file) take(file);
    else say("That is no photograph.");
  };
  const input = make("input", { type: "file", accept: "image/*", class: "file" });
  input.onchange = () => {
    if (input.files.length) first(input.files);
    input.value = "";
  };
  place.addEventListener("paste", (event) => {
    event.stopPropagation();
    first(event.clipboardData.files);
  });
  place.addEventListener("dragover", (event) => event.preventDefault());
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    first(event.dataTransfer.files);
  });
  return make("div", { class: "own" }, make("label", { class: "button" }, "choose a photograph", input),
    " or drop or paste one here"); // prettier-ignore
}

function search(backend, about, el, say) {
  const place = about.app ? inAddress(come) : inMemory(come);
  let state = { kind: about.kinds[0], k: about.k, ...about.start,
    settings: Object.fromEntries(about.choices.map(({ name, value }) => [name, value])) }; // prettier-ignore
  let [query, answer, loaded, first, trouble] = [null, null, "", true, ""];

  // --- what is asked -----------------------------------------------------------------------

  // Load the photograph if it is another one, or another network's; then ask.
  async function ask() {
    const asked = state;
    el.setAttribute("aria-busy", true);
    try {
      const key = JSON.stringify([asked.id, asked.settings]);
      if (key !== loaded) query = await backend.objects(asked);
      loaded = JSON.stringify([query.id, asked.settings]);
      if (state !== asked) return; // somebody has gone on
      const full = { ...asked, id: query.id, box: asked.box ?? query.boxes[0] ?? null };
      state = full;
      show();
      const given = await backend.ask(full);
      if (state !== full) return;
      answer = given;
      place.go(full, first);
      first = false;
      shown.show(answer, about.looks ? { actions: {} } : { enlarge, actions: onCards });
      downloads.hidden = about.looks;
      say(trouble);
      trouble = "";
    } catch (error) {
      say(error.message);
      if (error.settings) return other(error);
      if (query || asked.id === about.start.id) return;
      trouble = error.message; // an old address: it is said, and the first photograph asks
      state = { ...asked, id: about.start.id, box: null };
      refresh();
    } finally {
      el.removeAttribute("aria-busy");
    }
  }
  const refresh = latest(ask);
  function other({ message, settings }) {
    trouble = message; // is said beside the answer
    go({ settings });
  }
  function go(change) {
    dialog.close();
    state = { ...state, ...change };
    refresh();
  }
  function come(before) {
    state = { ...state, ...before, settings: { ...state.settings, ...before.settings } };
    refresh();
  }
  async function embed(file) {
    say("");
    shown.says(`Looking at ${file.name} ...`);
    try {
      const bytes = await file.arrayBuffer();
      const mine = await backend.embed({ file: file.name, bytes, settings: state.settings });
      [query, loaded] = [mine, JSON.stringify([mine.id, state.settings])];
      go({ id: mine.id, box: null });
    } catch (error) {
      if (error.settings && error.settings !== state.settings) {
        other(error);
        return embed(file);
      }
      shown.says(answer?.says ?? "");
      say(`${file.name} cannot be read: ${error.message}`);
    }
  }

  // --- what is shown -----------------------------------------------------------------------

  const boxed = about.kinds.includes("box");
  const several = about.kinds.length > 1; // a search for objects, and no comparison
  const choice = (ends) => go({ box: ends, kind: state.kind === "whole" ? about.kinds[0] : state.kind });
  const box = queryBox(choice, about.known);
  const shown = answers();
  const explain = about.explains ? (rank) => backend.explain({ rank }) : null;
  const dialog = enlarged(explain, (id) => backend.picture({ id }));
  const browse = gallery(backend.photographs);
  const take = (id) => go({ id, box: null });
  const name = make("p", { class: "name" });
  const kinds = make("fieldset", {}, make("legend", {}, "look for"));
  const group = `kind-${Math.random()}`;
  for (const kind of about.kinds) {
    const radio = make("input", { type: "radio", name: group, value: kind });
    radio.onchange = () => go({ kind });
    kinds.append(make("label", { class: "button" }, radio, KINDS[kind]));
  }
  const radios = kinds.querySelectorAll("input");

  const next = (match) => {
    go({ id: match.id, box: match.box, kind: match.box ? state.kind : "whole" });
    shown.focus();
  };
  const open = (match) => {
    const tab = window.open(""); // at once, or it would be a pop-up that is refused
    const show = (blob) => (tab.location = URL.createObjectURL(blob));
    backend.original(match).then(show, (error) => (say(error.message), tab.close()));
  };
  const keep = (match) => backend.original(match)
    .then((blob) => save(blob, match.file.split("/").at(-1)))
    .catch((error) => say(error.message)); // prettier-ignore
  const actions = { "search with this": next, open, save: keep };
  const why = about.explains ? { "Why?": (match, rank) => enlarge(match, rank, true) } : {};
  const onCards = several ? { ...why, ...actions } : { "search with this": next };
  function enlarge(match, rank, because = false) {
    const ends = state.kind === "whole" ? null : state.box;
    dialog.open({ ...query, box: ends }, match, rank, actions, because);
  }
  const downloads = make("div", { class: "actions", hidden: true },
    button("save the answer as a page", () => save(page(query, answer), "answer.html")),
    button("as a table (CSV)", () => save(table(answer), "answer.csv"))); // prettier-ignore

  const change = (label) => (value) => go({ settings: { ...state.settings, [label]: value } });
  const counts = [...new Set([about.k, 4, 8, 12, 24])].filter((k) => k <= about.most);
  counts.sort((a, b) => a - b);
  const menus = about.choices.map(({ name: label, options, value }) =>
    menu(label, options, value, change(label)));
  menus.push(about.most ? menu("answers", counts, about.k, (k) => go({ k: Number(k) })) : "");
  const advanced = make("details", { open: !several }, make("summary", {}, "advanced"), ...menus);

  const bar = make("div", { class: "actions" },
    button("all photographs", () => browse.open(take, "all photographs")),
    about.looks ? button("look at another", () => browse.open((id) => go({ looks: id }), "look at")) : "",
    button("back", () => place.back())); // prettier-ignore
  const top = about.accepts ? own(el, embed, say) : "";
  const asking = make("section", { class: "asking", "aria-label": "query" },
    top, bar, box.el, name, several ? kinds : "", advanced); // prettier-ignore
  const found = make("section", { class: "found", "aria-label": "what was found" },
    shown.el, downloads); // prettier-ignore
  el.append(make("div", { class: "search" }, asking, found), dialog.el, browse.el);

  function show() {
    box.show(query, state.box, boxed ? state.kind : "fixed");
    name.textContent = query.file;
    for (const radio of radios) radio.checked = radio.value === state.kind;
    menus.forEach((label, n) => {
      const value = n < about.choices.length ? state.settings[about.choices[n].name] : state.k;
      if (label) label.querySelector("select").value = value;
    });
  }

  const before = place.now();
  if (before) come(before);
  else refresh();
  return { go, close: place.close };
}

export { search };
