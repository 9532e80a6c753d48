// A map of objects: point at one to see it, press it or draw around many to choose them.
import { ARROWS, button, make, menu, photograph } from "./dom.js";

const SIDE = 460; // of the map, in its own units
const NEAR = 14; // that count as a hit
const SHAPES = {
  circle: [..."01234567"].map((n) => [Math.cos((n * Math.PI) / 4), Math.sin((n * Math.PI) / 4)]),
  square: [[-1, -1], [1, -1], [1, 1], [-1, 1]],
  triangle: [[0, -1], [1, 1], [-1, 1]],
  diamond: [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]],
}; // prettier-ignore

function outline(corners) {
  const path = new Path2D();
  corners.forEach(([x, y], k) => (k ? path.lineTo(x, y) : path.moveTo(x, y)));
  path.closePath();
  return path;
}

function mark(pen, [ink, shape], x, y, r) {
  const path = outline(SHAPES[shape].map(([u, v]) => [x + r * u, y + r * v]));
  pen.fillStyle = pen.strokeStyle = ink;
  pen.fill(path);
  return path;
}

const distance = ([x, y], [u, v]) => Math.hypot(x - u, y - v);

function map(backend, about, el, say) {
  const canvas = make("canvas", { width: SIDE, height: SIDE, tabindex: 0, role: "application",
    "aria-label": "map of objects: arrow keys go from one to the next, Enter chooses it" }); // prettier-ignore
  const peek = make("figure", { hidden: true, "aria-live": "polite" });
  const legend = make("ul", { class: "legend" });
  const says = make("p", { role: "status" });
  const chosen = make("ol", { class: "answers small" });
  const hint = make("p", {}, "Press a point to see its object, or draw around many.");
  const pen = canvas.getContext("2d");
  let shown = { points: [], groups: [], names: [], glyphs: [] };
  let [held, lasso, selected] = [-1, null, []];
  const settings = Object.fromEntries(about.choices.map(({ name, value }) => [name, value]));
  const tell = (work) => work.catch((error) => say(error.message));

  const places = () =>
    shown.points.map(([x, y]) => [15 + x * (SIDE - 30), SIDE - 15 - y * (SIDE - 30)]);
  const inside = ({ clientX, clientY }) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [((clientX - left) * SIDE) / width, ((clientY - top) * SIDE) / height];
  };
  // The point of least `cost` among those `allowed`, -1 if there is none.
  const nearest = (from, allowed = () => true, cost = distance) => {
    let best = -1;
    const every = places();
    every.forEach((point, k) => {
      if (allowed(point, k) && (best < 0 || cost(point, from) < cost(every[best], from))) best = k;
    });
    return best;
  };
  const under = (event) => nearest(inside(event), (point) => distance(point, inside(event)) < NEAR);

  function draw() {
    const [every, ink] = [places(), getComputedStyle(el).color];
    const unknown = shown.names.length - 1; // small, and below the others
    const last = (k) => shown.groups[k] === unknown;
    const order = [...every.keys()].sort((a, b) => last(b) - last(a));
    pen.clearRect(0, 0, SIDE, SIDE);
    for (const k of order)
      mark(pen, shown.glyphs[shown.groups[k]], ...every[k], last(k) ? 2 : 4);
    for (const k of [...selected, ...(held < 0 ? [] : [held])]) {
      const path = mark(pen, shown.glyphs[shown.groups[k]], ...every[k], 6);
      pen.lineWidth = k === held ? 4 : 2;
      pen.strokeStyle = ink;
      pen.stroke(path);
    }
    pen.setLineDash([5, 3]);
    if (lasso) pen.stroke(outline(lasso));
    pen.setLineDash([]);
  }

  async function refresh() {
    says.textContent = "Computing the map ...";
    shown = await backend.map(settings);
    [held, selected, peek.hidden] = [-1, [], true];
    says.textContent = shown.says;
    legend.replaceChildren(...shown.names.map((name, k) => {
      const glyph = make("canvas", { width: 14, height: 14 });
      mark(glyph.getContext("2d"), shown.glyphs[k], 7, 7, 5);
      return make("li", {}, glyph, ` ${name}`);
    })); // prettier-ignore
    draw();
  }

  async function point(k) {
    if (k === held) return;
    held = k;
    peek.hidden = true;
    draw();
    if (k < 0) return;
    const { cards: [seen] } = await backend.choose({ rows: [k], only: "look" }); // prettier-ignore
    if (k !== held) return; // the pointer has gone on
    const share = (place) => `${(100 * Math.min(place + 10, SIDE - 130)) / SIDE}%`;
    const [left, top] = places()[k].map(share);
    Object.assign(peek.style, { left, top });
    peek.replaceChildren(photograph(seen, seen.box), make("figcaption", {}, seen.note));
    peek.hidden = false;
  }

  async function choose(rows) {
    selected = rows;
    draw();
    const found = await backend.choose({ rows });
    hint.hidden = true;
    says.textContent = found.says;
    chosen.replaceChildren(...found.cards.map((card) => make("li", { class: "answer" },
      photograph(card, undefined, card.note), make("p", { class: "name", title: card.file }, card.file),
      make("div", { class: "actions" }, button("search with this",
        () => tell(backend.choose({ rows: [card.row] })), { "aria-label": `search with ${card.note}` }))))); // prettier-ignore
  }

  // A finger scrolls the page, and chooses by a tap; a mouse draws around many.
  canvas.onpointerdown = (event) => {
    if (event.button || event.pointerType === "touch") return;
    lasso = [inside(event)];
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    if (!lasso) return void tell(point(under(event)));
    lasso.push(inside(event));
    draw();
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    const drawn = lasso ?? [];
    lasso = null;
    if (!drawn.some((one) => distance(one, drawn[0]) > 5)) return;
    const path = outline(drawn);
    const rows = places().flatMap(([x, y], n) => (pen.isPointInPath(path, x, y) ? [n] : []));
    canvas.onclick = () => (canvas.onclick = press); // the click that ends a drag
    tell(choose(rows));
  };
  const press = (event) => {
    const k = under(event);
    if (k >= 0) tell(choose([k]));
  };
  canvas.onclick = press;
  canvas.onpointerleave = () => tell(point(-1));
  canvas.onkeydown = (event) => {
    const [dx, dy] = ARROWS[event.key] ?? [0, 0];
    if (dx || dy) {
      const from = held >= 0 ? places()[held] : [SIDE / 2, SIDE / 2];
      const along = ([x, y]) => (x - from[0]) * dx + (y - from[1]) * dy;
      const aside = ([x, y]) => Math.abs((x - from[0]) * dy + (y - from[1]) * dx);
      const ahead = (one, n) => n !== held && along(one) > 0;
      const k = nearest(from, ahead, (one) => distance(one, from) + 2 * aside(one));
      if (k >= 0) tell(point(k));
    } else if ((event.key === "Enter" || event.key === " ") && held >= 0) tell(choose([held]));
    else return;
    event.preventDefault();
  };

  const menus = about.choices.map(({ name, options, value }) =>
    menu(name, options, value, (wanted) => {
      settings[name] = wanted;
      tell(refresh());
    }),
  );
  el.append(make("div", { class: "search" },
    make("section", { class: "asking", "aria-label": "map" }, make("div", { class: "actions" }, ...menus), says,
      make("div", { class: "plane" }, canvas, peek), legend),
    make("section", { class: "found", "aria-label": "objects that are chosen" }, hint, chosen))); // prettier-ignore
  tell(refresh());
  return { go() {}, close() {} };
}

export { map };
