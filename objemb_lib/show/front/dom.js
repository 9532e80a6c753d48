// What the other modules make pages of: elements, photographs with a box, maps of similarity.
const DRAWN = new Set(["svg", "g", "rect", "image", "line", "path"]);

// make("button", { class: "big", onclick: press, "aria-label": "..." }, "words", element): null
// and false leave an attribute away, true gives one without a value.
function make(kind, attributes = {}, ...children) {
  const made = DRAWN.has(kind)
    ? document.createElementNS("http://www.w3.org/2000/svg", kind)
    : document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made[name] = value;
    else if (value !== null && value !== false)
      made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const button = (words, press, attributes = {}) =>
  make("button", { type: "button", onclick: press, ...attributes }, words);

function menu(name, options, value, change) {
  const each = options.map((one) => make("option", { value: one, selected: one === value }, one));
  const select = make("select", { onchange: () => change(select.value) }, ...each);
  return make("label", {}, `${name} `, select);
}

// A rectangle at a box, as attributes.
const at = ([x0, y0, x1, y1]) => ({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 });

// A photograph (src, width, height) of which `part` is seen; its heat and box are drawn on it.
function photograph({ src, width, height, box, heat }, part = [0, 0, width, height], words = "") {
  const { x, y, width: w, height: h } = at(part);
  const named = words ? { role: "img", "aria-label": words } : { "aria-hidden": "true" };
  const seen = make("svg", { viewBox: `${x} ${y} ${w} ${h}`, ...named });
  const whole = { width, height, preserveAspectRatio: "none" };
  seen.append(make("image", { href: src, ...whole, class: heat ? "grey" : null }));
  if (heat) seen.append(make("image", { href: painted(heat), ...whole, opacity: 0.6 }));
  if (box) seen.append(make("rect", { ...at(box), class: "around" }), make("rect", at(box)));
  return seen;
}

// A box and some of what is around it, inside the photograph.
function around([x0, y0, x1, y1], { width, height }, share = 0.15) {
  const more = share * Math.max(x1 - x0, y1 - y0);
  return [Math.max(x0 - more, 0), Math.max(y0 - more, 0),
    Math.min(x1 + more, width), Math.min(y1 + more, height)]; // prettier-ignore
}

// Black, violet, red, yellow: matplotlib's inferno at five places.
const INFERNO = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

// Rows of numbers in 0..1 as a picture.
function painted(heat) {
  const canvas = make("canvas", { width: heat[0].length, height: heat.length });
  const pen = canvas.getContext("2d");
  heat.forEach((row, y) =>
    row.forEach((value, x) => {
      const place = clamp(value, 0, 1) * (INFERNO.length - 1);
      const low = Math.min(Math.floor(place), INFERNO.length - 2);
      const mixed = INFERNO[low].map((c, n) => c + (place - low) * (INFERNO[low + 1][n] - c));
      pen.fillStyle = `rgb(${mixed.map(Math.round)})`;
      pen.fillRect(x, y, 1, 1);
    }),
  );
  return canvas.toDataURL();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export { ARROWS, around, at, button, clamp, make, menu, photograph };
