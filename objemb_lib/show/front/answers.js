// What was found: rows of cards. A word and the line of the frame say what colour says.
import { button, make, photograph } from "./dom.js";

const STATES = {
  right: "✓ right object",
  loose: "≈ right photograph, loose box",
  wrong: "✗ wrong",
};

// "7 of 10 such answers are right"; "" where nobody has checked.
function odds(chance) {
  if (chance === null) return "";
  if (chance > 0.95) return "more than 9 of 10 such answers are right";
  if (chance < 0.05) return "fewer than 1 of 10 such answers are right";
  return `${Math.round(10 * chance)} of 10 such answers are right`;
}

const unlikely = (match, { nothing }) =>
  nothing !== null && match.chance !== null && match.chance < nothing;

// What is said of a match that has a rank: its name first.
function words(match, rank) {
  const every = [`${rank + 1}. ${match.file}`, STATES[match.state], odds(match.chance), match.note];
  return every.filter(Boolean);
}

// actions: {open(rank), name: [words, press(match, rank)]}: what the buttons below a card do.
function card(match, rank, answer, { enlarge, actions }) {
  const grey = unlikely(match, answer) ? "unlikely" : "";
  const said = words(match, rank);
  const [name, ...lines] = said;
  const picture = photograph(match);
  const seen = enlarge
    ? make("button", { type: "button", class: "enlarge", "aria-label": `enlarge ${said.join(", ")}`,
        onclick: () => enlarge(match, rank) }, picture)
    : make("div", { class: "enlarge" }, picture); // prettier-ignore
  const buttons = Object.entries(actions).map(([label, press]) =>
    button(label, () => press(match, rank), { "aria-label": `${label}: ${match.file}` }),
  );
  return make("li", { class: `answer ${match.state} ${grey}`, "data-id": match.id }, seen,
    make("p", { class: "name", title: match.file }, name), ...lines.map((line) => make("p", {}, line)),
    buttons.length ? make("div", { class: "actions" }, ...buttons) : ""); // prettier-ignore
}

// Lines from each card of a row to the same photograph in the next.
function links(above, below) {
  const middle = (list, k) => list.children[k].offsetLeft + list.children[k].offsetWidth / 2;
  const [from, to] = [above, below].map((list) => [...list.children].map((one) => one.dataset.id));
  const size = { width: above.scrollWidth, height: 32 };
  const svg = make("svg", { ...size, class: "links", "aria-hidden": "true" });
  to.forEach((id, k) => {
    const before = from.indexOf(id);
    if (before < 0) return;
    svg.append(make("line", { x1: middle(above, before), x2: middle(below, k), y1: 0, y2: 32 }));
  });
  return svg;
}

function answers() {
  const says = make("p", { role: "status", tabindex: -1, class: "says" });
  const rows = make("div", { class: "rows" });
  return {
    el: make("div", {}, says, rows),
    focus: () => says.focus(),
    says: (words) => (says.textContent = words),
    show(answer, doing) {
      says.textContent = answer.says;
      rows.classList.toggle("linked", answer.rows.length > 1);
      const cards = (matches) => matches.map((match, rank) => card(match, rank, answer, doing));
      const lists = answer.rows.map(({ matches }) =>
        make("ol", { class: "answers" }, ...cards(matches)));
      rows.replaceChildren();
      answer.rows.forEach(({ title, matches }, r) => {
        const [list, before] = [lists[r], lists[r - 1]];
        if (title) rows.append(make("h3", {}, title));
        rows.append(list);
        if (before) rows.insertBefore(links(before, list), title ? list.previousSibling : list);
        const first = matches.findIndex((match) => unlikely(match, answer));
        const line = make("li", { class: "nothing" }, "Probably nothing here shows it");
        if (first >= 0) list.children[first].before(line);
      });
    },
  };
}

export { answers, words };
