// A map of objects: point at one to see it, click it or draw around many to choose them.
const NEAR = 12; // pixels, that count as a hit
const SHAPES = {
  circle: (path, x, y, r) => path.arc(x, y, r, 0, 7),
  square: (path, x, y, r) => path.rect(x - r, y - r, 2 * r, 2 * r),
  triangle: (path, x, y, r) => polygon(path, [[x, y - r], [x + r, y + r], [x - r, y + r]]), // prettier-ignore
  diamond: (path, x, y, r) => polygon(path, [[x, y - r], [x + r, y], [x, y + r], [x - r, y]]), // prettier-ignore
};

function polygon(path, corners) {
  corners.forEach(([x, y], k) => (k ? path.lineTo(x, y) : path.moveTo(x, y)));
  path.closePath();
}

function mark(pen, [ink, shape], x, y, r) {
  const path = new Path2D();
  SHAPES[shape](path, x, y, r);
  pen.fillStyle = ink;
  pen.fill(path);
  return path;
}

function render({ model, el }) {
  const side = model.get("side");
  el.classList.add("objemb-map");
  el.innerHTML = `<p role="status"></p>
    <div class="objemb-plane"><canvas width="${side}" height="${side}" tabindex="0" role="application"
    aria-label="map of objects: arrow keys go from one to the next, Enter chooses it"></canvas>
    <figure hidden><img alt=""><figcaption></figcaption></figure></div><ul></ul>`;
  const says = el.querySelector("p");
  const [canvas, figure, list] = ["canvas", "figure", "ul"].map((tag) => el.querySelector(tag));
  const pen = canvas.getContext("2d");
  let [held, lasso] = [-1, null];

  const places = () => model.get("points").map(([x, y]) => [15 + x * (side - 30), side - 15 - y * (side - 30)]); // prettier-ignore
  const at = ({ clientX, clientY }) => {
    const edge = canvas.getBoundingClientRect();
    return [((clientX - edge.left) * side) / edge.width, ((clientY - edge.top) * side) / edge.height];
  };
  const distance = ([x, y], [u, v]) => Math.hypot(x - u, y - v);
  const nearest = (from, allowed = () => true, cost = distance) => {
    let best = -1;
    const every = places();
    every.forEach((point, k) => {
      if (allowed(point, k) && (best < 0 || cost(point, from) < cost(every[best], from))) best = k;
    });
    return best;
  };

  function draw() {
    says.textContent = model.get("says");
    pen.clearRect(0, 0, side, side);
    const [every, glyphs, groups] = [places(), model.get("glyphs"), model.get("groups")];
    every.forEach(([x, y], k) => mark(pen, glyphs[groups[k]], x, y, 4));
    const ring = (k, width) => {
      pen.lineWidth = width;
      pen.strokeStyle = getComputedStyle(el).color;
      pen.stroke(mark(pen, glyphs[groups[k]], ...every[k], 6));
    };
    model.get("selected").forEach((k) => ring(k, 2));
    if (held >= 0 && held < every.length) ring(held, 4);
    if (lasso) {
      const path = new Path2D();
      polygon(path, lasso);
      pen.setLineDash([5, 3]);
      pen.stroke(path);
      pen.setLineDash([]);
    }
  }

  function legend() {
    list.replaceChildren();
    model.get("names").forEach((name, k) => {
      const item = document.createElement("li");
      const glyph = document.createElement("canvas");
      glyph.width = glyph.height = 14;
      mark(glyph.getContext("2d"), model.get("glyphs")[k], 7, 7, 5);
      item.append(glyph, ` ${name}`);
      list.append(item);
    });
  }

  function point(k) {
    if (k === held) return;
    held = k;
    figure.hidden = true;
    if (k >= 0) model.send({ kind: "hover", row: k });
    draw();
  }

  function peek() {
    const { row, src, caption } = model.get("seen");
    if (row !== held) return; // the pointer has gone on
    const [x, y] = places()[row];
    figure.querySelector("img").src = src;
    figure.querySelector("img").alt = caption;
    figure.querySelector("figcaption").textContent = caption;
    figure.style.left = `${Math.min(x + 10, side - 130)}px`;
    figure.style.top = `${Math.min(y + 10, side - 130)}px`;
    figure.hidden = false;
  }

  canvas.onpointerdown = (event) => {
    if (event.button) return;
    lasso = [at(event)];
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    if (lasso) {
      lasso.push(at(event));
      draw();
    } else {
      const k = nearest(at(event));
      point(k >= 0 && distance(places()[k], at(event)) < NEAR ? k : -1);
    }
  };
  canvas.onpointerup = (event) => {
    const around = lasso;
    lasso = null;
    if (!around) return;
    const far = Math.max(...around.map((one) => distance(one, around[0])));
    const k = nearest(at(event));
    if (far > 5) {
      const path = new Path2D();
      polygon(path, around);
      const rows = places().flatMap(([x, y], n) => (pen.isPointInPath(path, x, y) ? [n] : []));
      model.send({ kind: "chosen", rows });
    } else if (k >= 0 && distance(places()[k], at(event)) < NEAR) model.send({ kind: "chosen", rows: [k] }); // prettier-ignore
    draw();
  };
  canvas.onpointerleave = () => point(-1);
  canvas.onkeydown = (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1],
      ArrowDown: [0, 1] }[event.key] ?? [0, 0]; // prettier-ignore
    if (dx || dy) {
      const from = held >= 0 ? places()[held] : [side / 2, side / 2];
      const ahead = ([x, y], k) => k !== held && (x - from[0]) * dx + (y - from[1]) * dy > 0;
      const aside = ([x, y]) => distance([x, y], from) + 2 * Math.abs((x - from[0]) * dy + (y - from[1]) * dx); // prettier-ignore
      const k = nearest(from, ahead, aside);
      if (k >= 0) point(k);
    } else if ((event.key === "Enter" || event.key === " ") && held >= 0)
      model.send({ kind: "chosen", rows: [held] });
    else return;
    event.preventDefault();
    event.stopPropagation();
  };

  const anew = () => {
    figure.hidden = true; // its point may have gone elsewhere
    held = -1;
    legend();
    draw();
  };
  anew();
  model.on("change:points change:groups change:names", anew);
  model.on("change:selected change:says", draw);
  model.on("change:seen", peek);
  return () => {
    model.off("change:points change:groups change:names", anew);
    model.off("change:selected change:says", draw);
    model.off("change:seen", peek);
  };
}

export default { render };
