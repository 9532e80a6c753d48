// From a photograph to its objects' vectors, in this thread: onnxruntime-web runs what
// teach/export.py wrote, and what follows are the numbers of Python (the modules are named below).
import { decode, resized, thumbnail } from "./pixels.js";

const CELLS = 7; // side of what is cut out of a map to compare its cells (embed/regions.py)

/**
 * @typedef {object} Looks how a network looks at boxes, as write_network of show/engine.py says
 * @param files what write_engine of show/engine.py says; names are relative to the address `base`
 */
async function load({ ort, wasm, proposes }, base) {
  const at = (name) => new URL(name, base).href;
  const { env, InferenceSession, Tensor } = await import(at(ort));
  env.wasm.numThreads = 1; // more would need a page that is isolated from others
  env.wasm.wasmPaths = { wasm: at(wasm) };
  const sessions = new Map();

  async function run(model, given, wanted) {
    if (!sessions.has(model)) {
      const opened = InferenceSession.create(at(model), { executionProviders: ["wasm"] });
      sessions.set(model, opened);
      opened.catch(() => sessions.delete(model)); // it may be there the next time
    }
    return (await sessions.get(model)).run(given, wanted);
  }

  // The maps of an image, up to one.
  async function maps(image, { body, tail, size }, last) {
    const pixels = new Tensor("uint8", resized(image, size), [1, size, size, 3]);
    const { stage4 } = await run(body, { pixels });
    return last === "stage4" ? { stage4 } : { stage4, ...(await run(tail, { stage4 })) };
  }

  // A box is cut out of a whole map; or before the tail, which it then goes through alone.
  async function region(map, box, image, { tail, before, cells, samples, size }) {
    const part = cut(map, box, image, cells ?? adaptive(box, image, size), samples);
    if (!before) return part;
    return (await run(tail, { stage4: new Tensor("float32", part.data, part.dims) }, ["head"])).head;
  }

  async function vectors(map, boxes, image, looks) {
    const found = [];
    for (const box of boxes) {
      const part = await region(map, widened(box, looks.context, image), image, looks);
      found.push(unit(POOLINGS[looks.pooling](part)));
    }
    return found;
  }

  /** See engine.js. */
  async function look(looks, photograph, boxes, side) {
    const image = photograph instanceof ImageData ? photograph : await decode(photograph);
    const by = looks.once ? looks : proposes.looks; // whose maps boxes come from
    const seen = boxes ? {} : await maps(image, by, "head");
    boxes ??= proposed(await run(proposes.model, seen), proposes, image);
    const same = seen.head && by.body === looks.body && by.size === looks.size;
    const { [looks.map]: map } = same ? seen : await maps(image, looks, looks.map);
    const picture = side && (await thumbnail(image, side));
    const { width, height } = image;
    return { width, height, boxes, vectors: await vectors(map, boxes, image, looks), picture };
  }

  /** See engine.js. */
  async function why(looks, query, match) {
    const [asks, found] = [await decode(query.blob), await decode(match.blob)];
    const [ours, theirs] = [await maps(asks, looks, looks.map), await maps(found, looks, looks.map)];
    const map = theirs[looks.map];
    const mine = cellsOf(cut(ours[looks.map], query.box, asks));
    const cells = mutualNearest(mine, cellsOf(cut(map, match.box, found))).map(([i, j, cosine]) => [
      ...centre(query.box, i), ...centre(match.box, j), cosine]); // prettier-ignore
    const mean = new Float32Array(mine[0].length);
    for (const cell of mine) cell.forEach((value, c) => (mean[c] += value / mine.length));
    const both = [match.box, [0, 0, found.width, found.height]];
    const each = [await vectors(map, both, found, looks)];
    for (const inside of [false, true])
      each.push((await look(looks, blotted(found, match.box, inside), both)).vectors);
    return { cells, heat: heat(map, mean), vectors: each };
  }
  return { look, why };
}

// --- boxes: attend/proposer.Proposer.best, embed/boxes.with_whole ---

function proposed({ boxes: { data: boxes }, scores: { data: scores } }, { top, overlap, same }, { width, height }) {
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

// --- maps: embed/regions.roi_align, teach/student.adaptive_cells, embed/pooling ---

// What each of `cells` bins from `low` to `high` takes of each of so many lines.
function shares(low, high, length, cells, samples) {
  return Array.from({ length: cells }, (_, cell) => {
    const found = new Float32Array(length);
    for (let k = 0; k < samples; k += 1) {
      const at = low + ((high - low) * (cell * samples + k + 0.5)) / (cells * samples);
      const here = Math.min(Math.max(at, 0), length - 1);
      const before = Math.floor(here);
      if (at < -1 || at > length) continue;
      found[before] += (1 - (here - before)) / samples;
      if (here > before) found[before + 1] += (here - before) / samples;
    }
    return found;
  });
}

// A box cut out of a map {data, dims: [1, channels, height, width]}: another of cells x cells.
function cut({ data, dims: [, channels, height, width] }, box, image, cells = CELLS, samples = 2) {
  const [x0, y0, x1, y1] = box;
  const [across, down] = [width / image.width, height / image.height];
  const rows = shares(y0 * down - 0.5, y1 * down - 0.5, height, cells, samples);
  const columns = shares(x0 * across - 0.5, x1 * across - 0.5, width, cells, samples);
  const found = new Float32Array(channels * cells * cells);
  const line = new Float32Array(width);
  for (let c = 0, to = 0; c < channels; c += 1)
    for (const row of rows) {
      line.fill(0);
      for (let y = 0, i = c * height * width; y < height; y += 1, i += width)
        if (row[y]) for (let x = 0; x < width; x += 1) line[x] += row[y] * data[i + x];
      for (const column of columns) found[to++] = dot(line, column); // prettier-ignore
    }
  return { data: found, dims: [1, channels, cells, cells] };
}

// How many cells a box is cut into: 8, 12 or 16, whichever come nearest to 18 pixels.
function adaptive([x0, y0, x1, y1], { width, height }, size) {
  const side = size * Math.sqrt(((x1 - x0) / width) * ((y1 - y0) / height));
  return Math.min(Math.max(4 * Math.round(side / 18 / 4), 8), 16);
}

// The vectors of a map's cells, row by row.
const cellsOf = ({ data, dims: [, channels, height, width] }) =>
  Array.from({ length: height * width }, (_, cell) =>
    new Float32Array(channels).map((_, c) => data[c * height * width + cell])); // prettier-ignore

const POOLINGS = {
  spoc: ({ data, dims: [, channels, height, width] }) =>
    new Float32Array(channels).map((_, c) => {
      const of = data.subarray(c * height * width, (c + 1) * height * width);
      return of.reduce((sum, value) => sum + value) / of.length;
    }),
  rmac(map) {
    const side = map.dims[2]; // of a square
    const [cells, found] = [cellsOf(map), new Float32Array(map.dims[1])];
    for (const level of [1, 2, 3]) {
      const wide = Math.floor((2 * side) / (level + 1));
      const starts = Array.from({ length: level }, (_, k) =>
        Math.floor(((side - wide) * k) / Math.max(level - 1, 1)));
      for (const [top, left] of starts.flatMap((y) => starts.map((x) => [y, x]))) {
        const most = new Float32Array(found.length).fill(-Infinity);
        for (let y = top; y < top + wide; y += 1)
          for (const cell of cells.slice(y * side + left, y * side + left + wide))
            for (let c = 0; c < most.length; c += 1) if (cell[c] > most[c]) most[c] = cell[c];
        unit(most).forEach((value, c) => (found[c] += value));
      }
    }
    return found;
  },
}; // prettier-ignore

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
function heat(map, vector) {
  const [wanted, width] = [unit(vector), map.dims[3]];
  const alike = cellsOf(map).map((cell) => Math.max(0, dot(unit(cell), wanted)));
  return Array.from({ length: map.dims[2] }, (_, y) => alike.slice(y * width, (y + 1) * width));
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
