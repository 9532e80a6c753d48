// An answer enlarged: both crops side by side, and why it was given.
import { around, at, button, make, photograph } from "./dom.js";
import { words } from "./answers.js";

const [WIDTH, HIGH, GAP] = [400, 400, 24]; // of a crop, in the units of the picture
const LINES = 12; // pairs of cells that are drawn

// A part of a photograph in a rectangle of the picture; `to` is where a pixel of it lies there.
function crop(seen, part, left) {
  const { x, y, width, height } = at(part);
  const scale = Math.min(WIDTH / width, HIGH / height);
  const [dx, dy] = [left + (WIDTH - width * scale) / 2, (HIGH - height * scale) / 2];
  const picture = photograph(seen, part);
  const place = { x: dx, y: dy, width: width * scale, height: height * scale };
  for (const [name, value] of Object.entries(place)) picture.setAttribute(name, value);
  return { picture, to: (u, v) => [dx + (u - x) * scale, dy + (v - y) * scale],
    holds: (u, v) => u >= x && v >= y && u <= x + width && v <= y + height }; // prettier-ignore
}

function sideBySide(query, match, why) {
  const whole = ({ width, height }) => [0, 0, width, height];
  const parts = [query, match].map((one) => (one.box ? around(one.box, one) : whole(one)));
  const seen = [query, { ...match, heat: why?.heat ?? null }];
  const [left, right] = seen.map((one, n) => crop(one, parts[n], n * (WIDTH + GAP)));
  const both = make("svg", { viewBox: `0 0 ${2 * WIDTH + GAP} ${HIGH}`, class: "both", role: "img",
    "aria-label": `left the query, right ${match.file}` }, left.picture, right.picture); // prettier-ignore
  const cells = (why?.cells ?? []).filter(([x, y, u, v]) => left.holds(x, y) && right.holds(u, v));
  for (const [x, y, u, v] of cells.slice(0, LINES)) {
    const [[x1, y1], [x2, y2]] = [left.to(x, y), right.to(u, v)];
    const ends = { x1, y1, x2, y2 };
    both.append(make("line", { ...ends, class: "around" }), make("line", ends));
  }
  return both;
}

// What is left of an answer when a part of it is blotted out: the part is grey here.
function blotted(match, outside, words, score) {
  const [x0, y0, x1, y1] = match.box;
  const whole = `M0 0H${match.width}V${match.height}H0Z`;
  const seen = photograph({ ...match, heat: null, box: null }, undefined, words);
  seen.append(make("path", { d: `${outside ? whole : ""}M${x0} ${y0}H${x1}V${y1}H${x0}Z`,
    "fill-rule": "evenodd", class: "blot" })); // prettier-ignore
  return make("figure", {}, seen, make("figcaption", {}, `${words}: ${score.toFixed(2)}`));
}

function reasons(match, why) {
  const drop = (score) => `likeness ${score.toFixed(2)}`;
  return make("div", { class: "why" },
    make("p", {}, `Lines join what is most alike in both. Bright is where ${match.file} looks like the query.`),
    make("p", {}, `As it is: ${drop(why.score)}. Without a part of it:`),
    make("div", { class: "blots" },
      blotted(match, true, "without the background", why.without_background),
      blotted(match, false, "without the object", why.without_object))); // prettier-ignore
}

// `explain(rank)` gives the reasons, or is null where there are none to give.
function enlarged(explain, picture) {
  const dialog = make("dialog", { "aria-label": "an answer, enlarged" });
  dialog.onclick = (event) => event.target === dialog && dialog.close(); // beside it

  function open(query, match, rank, actions, because = false) {
    const [name, ...lines] = words(match, rank);
    const seen = make("div", {}, sideBySide(query, match));
    const told = make("div", { "aria-live": "polite" });
    const ask = async () => {
      told.textContent = "Looking for reasons ...";
      try {
        const why = await explain(rank);
        seen.replaceChildren(sideBySide(query, match, why));
        told.replaceChildren(reasons(match, why));
      } catch (error) {
        told.textContent = error.message;
      }
    };
    const buttons = Object.entries(actions).map(([label, press]) =>
      button(label, () => press(match, rank)));
    const why = explain ? button("Why?", ask) : "";
    dialog.replaceChildren(
      make("div", { class: "head" }, make("h2", {}, name), button("close", () => dialog.close())),
      make("p", {}, lines.join("; ")), seen, make("div", { class: "actions" }, why, ...buttons), told); // prettier-ignore
    if (!dialog.open) dialog.showModal();
    sharpen(query, match);
    if (because) ask();
  }

  // Large pictures in place of the small ones, as soon as they are there.
  async function sharpen(...both) {
    for (const one of both) {
      const { src } = await picture(one.id).catch(() => one);
      for (const image of dialog.querySelectorAll("image"))
        if (image.getAttribute("href") === one.src) image.setAttribute("href", src);
    }
  }
  return { el: dialog, open, close: () => dialog.close() };
}

export { enlarged };
