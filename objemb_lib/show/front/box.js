// The query: a photograph with a dot for each object, and one box that says what is looked for.
// Its handles move and size it, by mouse, finger and keys; a mouse can draw another one, too.
import { ARROWS, button, clamp, make } from "./dom.js";

const CORNERS = {
  "upper left": [0, 1],
  "upper right": [2, 1],
  "lower left": [0, 3],
  "lower right": [2, 3],
};
const STEP = 0.03; // of the photograph's longer side, that an arrow key moves
const SMALLEST = 12; // pixels of the screen
const PAUSE = 500; // milliseconds after the last key, until the box is searched for
const APART = 26; // pixels between dots

// `choose(box)` is called when somebody has pointed at something. known: only the objects with a dot
// can be chosen.
function queryBox(choose, known) {
  const image = make("img", { draggable: "false" });
  const dim = make("div", { class: "dim" }, make("i"));
  const frame = make("div", { class: known ? "frame known" : "frame" }, image, dim);
  const handles = known ? [] : [...Object.keys(CORNERS), "move"].map((name) => handle(name));
  let [query, box, timer] = [null, null, 0];

  const sides = () => [query.width, query.height];
  const scale = () => query.width / (frame.clientWidth || query.width); // its pixels a screen pixel
  const smallest = () => Math.min(SMALLEST * scale(), ...sides());
  const inside = (event) => {
    const edge = frame.getBoundingClientRect();
    return [((event.clientX - edge.left) / edge.width) * query.width,
      ((event.clientY - edge.top) / edge.height) * query.height]; // prettier-ignore
  };

  // The box between two corners, inside the photograph and never empty.
  const between = ([x0, y0], [x1, y1]) => {
    const ends = [[x0, x1], [y0, y1]].map(([a, b], axis) => {
      const low = clamp(Math.min(a, b), 0, sides()[axis] - smallest());
      return [low, clamp(Math.max(a, b), low + smallest(), sides()[axis])];
    }); // prettier-ignore
    return [ends[0][0], ends[1][0], ends[0][1], ends[1][1]];
  };
  const moved = ([x0, y0, x1, y1], dx, dy) => {
    const x = clamp(x0 + dx, 0, query.width - (x1 - x0));
    const y = clamp(y0 + dy, 0, query.height - (y1 - y0));
    return [x, y, x + x1 - x0, y + y1 - y0];
  };
  const sized = (from, [h, v], dx, dy) => {
    const ends = [...from];
    ends[h] += dx;
    ends[v] += dy;
    return between(ends.slice(0, 2), ends.slice(2));
  };
  // A box of a usual size around a point.
  const here = ([x, y]) => {
    const [w, h] = [0, 1].map((n) =>
      Math.min(box ? box[n + 2] - box[n] : Infinity, sides()[n] / 3));
    return moved([0, 0, Math.max(w, smallest()), Math.max(h, smallest())], x - w / 2, y - h / 2);
  };

  function place(ends) {
    box = ends;
    const [x0, y0, x1, y1] = ends.map((end, n) => (100 * end) / sides()[n % 2]);
    Object.assign(dim.firstChild.style, { left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%` }); // prettier-ignore
    const small = Math.min(ends[2] - ends[0], ends[3] - ends[1]) / scale() < 70;
    frame.classList.toggle("small", small);
    const places = [
      ...Object.values(CORNERS).map(([h, v]) => [[x0, y0, x1, y1][h], [x0, y0, x1, y1][v]]),
      [(x0 + x1) / 2, y1],
    ];
    handles.forEach((one, n) =>
      Object.assign(one.style, { left: `${places[n][0]}%`, top: `${places[n][1]}%` }));
  }
  function done(ends) {
    clearTimeout(timer);
    place(ends);
    choose(ends.map(Math.round));
  }
  function soon(ends) {
    place(ends);
    clearTimeout(timer);
    timer = setTimeout(() => done(box), PAUSE);
  }

  // Follow a pointer from where it was pressed; `change(from, to)` is the box on the way.
  function follow(pressed, change) {
    const [start, seen] = [inside(pressed), pressed.currentTarget];
    let dragged = false;
    const go = (event) => {
      const far = Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY);
      if (!dragged && far < 5) return;
      if (!dragged) seen.setPointerCapture(pressed.pointerId);
      dragged = true;
      place(change(start, inside(event)));
    };
    const end = () => {
      seen.onpointermove = seen.onpointerup = seen.onpointercancel = null;
      if (dragged) done(box);
    };
    Object.assign(seen, { onpointermove: go, onpointerup: end, onpointercancel: end });
  }

  function handle(name) {
    const corner = CORNERS[name];
    const change = (from, dx, dy) => (corner ? sized(from, corner, dx, dy) : moved(from, dx, dy));
    const how = corner ? `${name} corner of the box` : "the box; with Shift its size";
    const one = button("", () => done(box), { class: `handle ${name}`, "aria-label": `${how}: arrow keys move it` }); // prettier-ignore
    one.onpointerdown = (event) => {
      event.stopPropagation();
      const from = box;
      follow(event, ([x, y], [u, v]) => change(from, u - x, v - y));
    };
    one.onclick = (event) => event.stopPropagation();
    one.onkeydown = (event) => {
      const [dx, dy] = (ARROWS[event.key] ?? [0, 0]).map((n) => n * STEP * Math.max(...sides()));
      if (event.key === "Enter") done(box);
      else if ((dx || dy) && event.shiftKey) soon(sized(box, CORNERS["lower right"], dx, dy));
      else if (dx || dy) soon(change(box, dx, dy));
      else return;
      event.preventDefault();
    };
    return one;
  }

  // A mouse draws by a drag; a finger scrolls the page. A click or a tap chooses a dot, or puts the
  // box there.
  let drawn = false;
  const fixed = () => !query || frame.classList.contains("fixed");
  frame.onpointerdown = (event) => {
    drawn = false;
    if (event.button || event.pointerType === "touch" || fixed() || known) return;
    follow(event, (start, end) => {
      drawn = true;
      return between(start, end);
    });
  };
  frame.onclick = (event) => {
    if (drawn || fixed()) return;
    const dot = event.target.closest(".dot");
    if (dot || !known) done(dot ? query.boxes[dot.dataset.box] : here(inside(event)));
  };

  // Dots in the middle of the objects, side by side where those lie upon each other.
  function dots() {
    const taken = [];
    return query.boxes.map((ends, n) => {
      let [x, y] = [(ends[0] + ends[2]) / 2 / scale(), (ends[1] + ends[3]) / 2 / scale()];
      while (taken.some(([u, v]) => Math.hypot(u - x, v - y) < APART)) x += APART / 2;
      x = Math.min(x, query.width / scale() - APART / 2);
      taken.push([x, y]);
      const label = `object ${n + 1} of ${query.boxes.length}`;
      const dot = make("button", { type: "button", class: "dot", "data-box": n, "aria-label": label });
      const [left, top] = [(100 * x * scale()) / query.width, (100 * y * scale()) / query.height];
      Object.assign(dot.style, { left: `${left}%`, top: `${top}%` });
      return dot;
    });
  }

  return {
    el: frame,
    // kind: of the protocol; "fixed" shows the photograph alone.
    show(asked, ends, kind) {
      const other = query?.src !== asked.src || query.boxes !== asked.boxes;
      query = asked;
      frame.classList.toggle("whole", kind === "whole");
      frame.classList.toggle("fixed", kind === "fixed");
      if (other) {
        Object.assign(image, { src: query.src, alt: `query: ${query.file}` });
        frame.style.setProperty("--ratio", query.width / query.height);
        frame.querySelectorAll("button").forEach((one) => one.remove());
        if (kind !== "fixed") frame.append(...dots(), ...handles);
      }
      frame.classList.toggle("empty", !ends);
      if (ends) place(ends);
      const same = (one) =>
        ends && kind !== "whole" && one.every((end, n) => Math.abs(end - ends[n]) < 1);
      for (const dot of frame.querySelectorAll(".dot"))
        dot.setAttribute("aria-pressed", same(query.boxes[dot.dataset.box]));
    },
  };
}

export { queryBox };
