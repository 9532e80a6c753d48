// Rows of pictures with boxes on them. Python sends `rows`; a click, a key, a drag or a photograph
// is a message back. No script, style or font is asked of any host.
const STEP = 0.04; // of the picture's width, that an arrow key moves a box
const LARGEST = 1600; // pixels: a longer photograph is reduced before it is sent

function make(kind, attributes, ...children) {
  const drawn = ["svg", "g", "rect", "text", "image", "line"].includes(kind);
  const made = drawn
    ? document.createElementNS("http://www.w3.org/2000/svg", kind)
    : document.createElement(kind);
  for (const [name, value] of Object.entries(attributes))
    if (value !== null) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function place(rect, [x0, y0, x1, y1]) {
  const [x, y] = [Math.min(x0, x1), Math.min(y0, y1)];
  const sides = { x, y, width: Math.abs(x1 - x0), height: Math.abs(y1 - y0) };
  for (const [name, value] of Object.entries(sides)) rect.setAttribute(name, value);
}

function ends(rect) {
  const [x, y, w, h] = ["x", "y", "width", "height"].map((name) => +rect.getAttribute(name));
  return [x, y, x + w, y + h];
}

// A box: a button, if the card says so. Arrow keys move it, with Shift they size it.
function boxOf(card, one, number, at, send) {
  const scale = card.width / card.side; // picture's pixels a pixel of the screen
  const rect = make("rect", { stroke: one.ink, "stroke-width": one.chosen ? 4 : 2 });
  place(rect, one.box);
  const word = make("text", { x: one.box[0] + 3 * scale, y: one.box[1] + 13 * scale,
    "font-size": 12 * scale, "stroke-width": 3 * scale, fill: one.ink }, one.word); // prettier-ignore
  const button = card.press === "boxes";
  const group = make("g", { class: "objemb-box", "data-box": number, "data-at": `${at}.${number}`,
    role: button ? "button" : null, tabindex: button ? 0 : null,
    "aria-pressed": button ? one.chosen : null, "aria-label": one.label }, rect, word); // prettier-ignore
  if (!button) return group;
  let moved = false;
  group.onkeydown = (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1],
      ArrowDown: [0, 1] }[event.key] ?? [0, 0]; // prettier-ignore
    const [x0, y0, x1, y1] = ends(rect);
    const step = STEP * card.width;
    if (event.key === "Enter" || event.key === " ")
      send(moved ? { kind: "drawn", box: ends(rect) } : { kind: "box", box: number });
    else if ((dx || dy) && card.draw) {
      const low = event.shiftKey ? [x0, y0] : [x0 + dx * step, y0 + dy * step];
      place(rect, [...low, Math.max(x1 + dx * step, low[0] + 2), Math.max(y1 + dy * step, low[1] + 2)]);
      moved = true;
    } else return;
    event.preventDefault();
    event.stopPropagation(); // or the notebook would take the key for its own
  };
  return group;
}

let pressed = [NaN, NaN]; // where on the page somebody pressed last

// The box under the pointer; pressed again at the same place, the one beneath it.
function under(svg, { clientX: x, clientY: y }) {
  const boxes = document.elementsFromPoint(x, y).map((one) => one.closest("[data-box]"));
  const mine = boxes.filter((one) => one && svg.contains(one));
  const chosen = mine.findIndex((one) => one.getAttribute("aria-pressed") === "true");
  const again = Math.hypot(x - pressed[0], y - pressed[1]) < 5;
  pressed = [x, y];
  return mine[again ? (chosen + 1) % mine.length : 0];
}

// A press on a box chooses it; a drag anywhere draws one.
function drawing(svg, card, send) {
  const at = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY);
    const { x, y } = point.matrixTransform(svg.getScreenCTM().inverse());
    return [Math.min(Math.max(x, 0), card.width), Math.min(Math.max(y, 0), card.height)];
  };
  let start = null;
  svg.onpointerdown = (event) => {
    if (event.button) return;
    start = { at: at(event), screen: [event.clientX, event.clientY],
      box: under(svg, event), band: null }; // prettier-ignore
    svg.setPointerCapture(event.pointerId);
  };
  svg.onpointermove = (event) => {
    if (!start || !card.draw) return;
    const far = Math.hypot(event.clientX - start.screen[0], event.clientY - start.screen[1]);
    if (!start.band && far > 5) svg.append((start.band = make("rect", { class: "objemb-band" })));
    if (start.band) place(start.band, [...start.at, ...at(event)]);
  };
  svg.onpointerup = () => {
    if (start?.band) send({ kind: "drawn", box: ends(start.band) });
    else if (start?.box) send({ kind: "box", box: +start.box.dataset.box });
    start = null;
  };
  svg.onpointercancel = () => {
    start?.band?.remove();
    start = null;
  };
}

function cardOf(card, at, model) {
  const send = (what) => model.send({ ...what, key: card.key });
  const high = Math.round((card.side * card.height) / card.width);
  const svg = make("svg", { viewBox: `0 0 ${card.width} ${card.height}`, width: card.side,
    height: high, role: card.press === "boxes" ? "group" : "img", "aria-label": card.alt }); // prettier-ignore
  const layer = (href, opacity) => make("image", { href, opacity, width: card.width,
    height: card.height, preserveAspectRatio: "none" }); // prettier-ignore
  svg.append(layer(card.src, 1));
  if (card.heat) {
    svg.firstChild.style.filter = "grayscale(1)"; // so that all colour is the map's
    svg.append(layer(card.heat, 0.6));
  }
  const area = ({ box: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0);
  const order = card.boxes.map((one, number) => [one, number]);
  order.sort(([a], [b]) => area(b) - area(a)); // a small box lies above a large one
  for (const [one, number] of order) svg.append(boxOf(card, one, number, at, send));
  const caption = make("figcaption", {}, ...card.caption.flatMap((line) => [line, make("br", {})]));
  const figure = make("figure", { class: "objemb-card", style: `--ink:${card.ink};width:${card.side}px` }, svg, caption); // prettier-ignore
  if (card.press === "boxes") drawing(svg, card, send);
  if (card.press !== "card") return figure;
  const button = make("button", { "data-at": at, title: `${card.alt}: search for it` }, figure);
  button.onclick = () => send({ kind: "card" });
  return button;
}

// Lines from each picture of a row to the same one in the next.
function links(above, below) {
  const [side, gap] = [above.cards[0].side + 8, 6]; // with its frame
  const middle = (column) => column * (side + gap) + side / 2;
  const svg = make("svg", { class: "objemb-links", height: 36, width: middle(above.cards.length), "aria-hidden": true }); // prettier-ignore
  below.cards.forEach((card, column) => {
    const from = above.cards.findIndex((other) => other.key === card.key);
    if (from >= 0)
      svg.append(make("line", { x1: middle(from), y1: 0, x2: middle(column), y2: 36, stroke: card.ink })); // prettier-ignore
  });
  return svg;
}

// Reduced in the browser: a server refuses messages of more than some megabytes.
async function photograph(file, model) {
  const bitmap = await createImageBitmap(file);
  const shrink = Math.min(1, LARGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", { width: Math.round(bitmap.width * shrink), height: Math.round(bitmap.height * shrink) }); // prettier-ignore
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  model.send({ kind: "photograph" }, undefined, [await blob.arrayBuffer()]);
}

function photographs(model, show) {
  const take = (files) => {
    const file = [...files].find((one) => one.type.startsWith("image/"));
    if (file) photograph(file, model).catch((error) => show(`${file.name} cannot be read here: ${error.message}`)); // prettier-ignore
    return Boolean(file);
  };
  const input = make("input", { type: "file", accept: "image/*" });
  input.onchange = () => {
    if (input.files.length && !take(input.files)) show("That file is no image.");
    input.value = "";
  };
  const place = make("div", { class: "objemb-own", tabindex: 0, role: "group",
    "aria-label": "your own photograph" }, make("label", {}, "Your own photograph: ", input),
    " or paste or drop it here"); // prettier-ignore
  place.onpaste = (event) => {
    event.stopPropagation();
    if (!take(event.clipboardData.files)) show("There is no image to paste.");
  };
  place.ondragover = (event) => event.preventDefault();
  place.ondrop = (event) => {
    event.preventDefault();
    take(event.dataTransfer.files);
  };
  return place;
}

function render({ model, el }) {
  el.classList.add("objemb-pictures");
  el.setAttribute("role", "group");
  const error = make("p", { class: "objemb-error", role: "alert" });
  const says = make("p", { role: "status" });
  const rows = make("div", { class: "objemb-rows" });
  const show = (text) => (error.textContent = text);
  el.append(error, says, rows);
  if (model.get("accepts")) el.append(photographs(model, show));
  const draw = () => {
    el.setAttribute("aria-label", model.get("label"));
    show(model.get("error"));
    says.textContent = model.get("says");
    const held = rows.contains(document.activeElement) && document.activeElement.dataset.at;
    rows.replaceChildren();
    model.get("rows").forEach((row, r, every) => {
      const section = make("section", { class: row.linked ? "objemb-linked" : "" });
      const joined = r && row.linked && row.cards.length ? links(every[r - 1], row) : null;
      if (joined?.childElementCount) section.append(joined);
      if (row.title) section.append(make("h4", {}, row.title));
      const cards = row.cards.map((card, c) => cardOf(card, `${r}.${c}`, model));
      section.append(make("div", { class: "objemb-row" }, ...cards));
      rows.append(section);
    });
    if (held) rows.querySelector(`[data-at="${held}"]`)?.focus();
  };
  draw();
  model.on("change:rows change:says change:error", draw);
  return () => model.off("change:rows change:says change:error", draw);
}

export default { render };
