// From a photograph to its objects' vectors, in this thread: onnxruntime-web runs the network that
// teach/export.py wrote, and what follows are the numbers of Python (the modules are named below).
import { decode, resized, thumbnail } from "./pixels.js";

const CELLS = 7; // side of what is cut out of a map for a box (embed/regions.py)
const SAMPLES = 2; // points in a cell, along each side

/**
 * @typedef {object} Files what show/engine.py gives: `ort`, `wasm` and `model` are addresses, and `about`
 *   {inputs, stage, context, top, overlap, same}
 * @param {Files} files
 */
async function load({ ort, wasm, model, about }) {
  const { env, InferenceSession, Tensor } = await import(ort);
  env.wasm.numThreads = 1; // more would need a page that is isolated from others
  env.wasm.wasmPaths = { wasm };
  const session = await InferenceSession.create(model, { executionProviders: ["wasm"] });
  const { inputs, stage } = about;

  async function run(image) {
    const seen = (side) => new Tensor("uint8", resized(image, side), [1, side, side, 3]);
    const given = Object.entries(inputs).map(([name, side]) => [name, seen(side)]);
    const { boxes, scores, [stage]: map } = await session.run(Object.fromEntries(given));
    const [, channels, height, width] = map.dims;
    return { boxes: boxes.data, scores: scores.data, map: { data: map.data, channels, height, width } };
  }

  // The vectors of boxes of an image of which `run` gave the map.
  function vectors(map, boxes, image) {
    return boxes.map((box) => {
      const [rows, columns] = shares(map, widened(box, about.context, image), image, 1);
      return unit(pooled(map, rows[0], columns[0]));
    });
  }

  /** See engine.js. */
  async function look(photograph, boxes, side) {
    const image = photograph instanceof ImageData ? photograph : await decode(photograph);
    const { map, ...found } = await run(image);
    boxes ??= proposed(found, about, image);
    const picture = side && (await thumbnail(image, side));
    const { width, height } = image;
    return { width, height, boxes, vectors: vectors(map, boxes, image), picture };
  }

  /** See engine.js. */
  async function why(query, match) {
    const [asks, found] = [await decode(query.blob), await decode(match.blob)];
    const [{ map: ours }, { map: theirs }] = [await run(asks), await run(found)];
    const mine = cut(ours, query.box, asks);
    const cells = mutualNearest(mine, cut(theirs, match.box, found)).map(([i, j, cosine]) => [
      ...centre(query.box, i), ...centre(match.box, j), cosine]); // prettier-ignore
    const mean = new Float32Array(mine[0].length);
    for (const cell of mine) cell.forEach((value, c) => (mean[c] += value / mine.length));
    const alike = heat(theirs, mean);
    const both = [match.box, [0, 0, found.width, found.height]];
    const each = [vectors(theirs, both, found)];
    for (const inside of [false, true])
      each.push((await look(blotted(found, match.box, inside), both)).vectors);
    return { cells, heat: alike, vectors: each };
  }
  return { look, why };
}

// --- boxes: attend/proposer.Proposer.best, embed/boxes.with_whole ---

function proposed({ boxes, scores }, { top, overlap, same }, { width, height }) {
  const whole = [0, 0, width, height];
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]);
  const best = [];
  for (const i of order) {
    const box = boxes.subarray(4 * i, 4 * i + 4);
    if (best.every((other) => iou(box, other) <= overlap)) best.push(box);
    if (best.length === top) break;
  }
  const found = best.map((box) => [...box].map((end, side) => Math.fround(end * [width, height][side % 2])));
  return [...found.filter((box) => iou(box, whole) <= same), whole];
}

function iou(a, b) {
  const side = (one, other, k) => Math.min(one[k + 2], other[k + 2]) - Math.max(one[k], other[k]);
  const area = (one, other) => Math.max(0, side(one, other, 0)) * Math.max(0, side(one, other, 1));
  const both = area(a, b);
  return both / (area(a, a) + area(b, b) - both);
}

// With context on all sides, inside the image (embed/boxes.widen); a whole image stays whole.
function widened(box, context, { width, height }) {
  const size = [width, height];
  if (box.every((end, k) => Math.abs(end - [0, 0, ...size][k]) < 0.5)) return box;
  const low = [0, 1].map((k) =>
    Math.min(Math.max(box[k] - context * (box[k + 2] - box[k]), 0), Math.max(size[k] - 1, 0)));
  const high = [0, 1].map((k) =>
    Math.min(Math.max(box[k + 2] + context * (box[k + 2] - box[k]), low[k] + 1), size[k])); // prettier-ignore
  return [...low, ...high];
}

// --- maps: embed/regions.roi_align ---

// What each of `cells` bins of a box takes of each row, and of each column, of a map.
function shares(map, box, { width, height }, cells = CELLS) {
  const along = (low, high, length) =>
    Array.from({ length: cells }, (_, cell) => {
      const [found, points] = [new Float32Array(length), (CELLS * SAMPLES) / cells];
      for (let k = 0; k < points; k += 1) {
        const at = low + ((high - low) * (cell * points + k + 0.5)) / (cells * points);
        const here = Math.min(Math.max(at, 0), length - 1);
        const before = Math.floor(here);
        if (at < -1 || at > length) continue;
        found[before] += (1 - (here - before)) / points;
        if (here > before) found[before + 1] += (here - before) / points;
      }
      return found;
    });
  const [x0, y0, x1, y1] = box;
  const [across, down] = [map.width / width, map.height / height];
  return [
    along(y0 * down - 0.5, y1 * down - 0.5, map.height),
    along(x0 * across - 0.5, x1 * across - 0.5, map.width),
  ];
}

function pooled({ data, channels, height, width }, rows, columns) {
  const found = new Float32Array(channels);
  for (let c = 0, i = 0; c < channels; c += 1)
    for (let y = 0; y < height; y += 1) {
      let line = 0;
      for (let x = 0; x < width; x += 1, i += 1) line += data[i] * columns[x];
      found[c] += line * rows[y];
    }
  return found;
}

// A box cut out of a map: a vector for each of its cells, row by row.
function cut(map, box, image) {
  const [rows, columns] = shares(map, box, image);
  return rows.flatMap((row) => columns.map((column) => pooled(map, row, column)));
}

function unit(vector) {
  const norm = Math.max(Math.sqrt(dot(vector, vector)), 1e-12);
  return vector.map((value) => value / norm);
}

const dot = (a, b) => a.reduce((total, value, k) => total + value * b[k], 0);

// --- why: search/explain.py ---

// Pairs of cells that are each other's nearest: their numbers and cosine, best first.
function mutualNearest(ours, theirs) {
  const [a, b] = [ours.map(unit), theirs.map(unit)];
  const cosines = a.map((one) => b.map((other) => dot(one, other)));
  const largest = (many) => many.indexOf(Math.max(...many));
  const there = cosines.map(largest);
  const back = b.map((_, j) => largest(cosines.map((row) => row[j])));
  const found = there.flatMap((j, i) => (back[j] === i ? [[i, j, cosines[i][j]]] : []));
  return found.sort((one, other) => other[2] - one[2]);
}

function centre([x0, y0, x1, y1], cell) {
  const [row, column] = [Math.floor(cell / CELLS), cell % CELLS];
  return [x0 + ((x1 - x0) * (column + 0.5)) / CELLS, y0 + ((y1 - y0) * (row + 0.5)) / CELLS];
}

// Rows of 0..1: how like a vector each cell of a map is.
function heat({ data, channels, height, width }, vector) {
  const wanted = unit(vector);
  return Array.from({ length: height }, (_, y) =>
    Array.from({ length: width }, (_, x) => {
      const cell = new Float32Array(channels).map((_, c) => data[(c * height + y) * width + x]);
      return Math.max(0, dot(unit(cell), wanted));
    }));
}

// An image whose mean colour covers a box, or all but the box.
function blotted(image, box, inside) {
  const { width, height } = image;
  const found = new ImageData(new Uint8ClampedArray(image.data), width, height);
  const sum = [0, 0, 0];
  for (let i = 0; i < found.data.length; i += 1) if (i % 4 < 3) sum[i % 4] += found.data[i];
  const mean = [...sum.map((one) => Math.round(one / (width * height))), 255];
  const [x0, y0, x1, y1] = box.map(Math.round);
  for (let y = 0, i = 0; y < height; y += 1)
    for (let x = 0; x < width; x += 1, i += 4)
      if ((x >= x0 && x < x1 && y >= y0 && y < y1) === inside) found.data.set(mean, i);
  return found;
}

export { load };
