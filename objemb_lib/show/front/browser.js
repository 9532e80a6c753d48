// The protocol with the browser alone behind it: a gallery in memory (index.js), searched here as
// Retriever.search does it.
import { clamp } from "./dom.js";
import { gallery } from "./index.js";
import { atlas, ranking } from "./ranking.js";
import { judge } from "./truth.js";

const LATER = [8, 32]; // the ranks that first answers are compared with
const FEW = 16; // photographs below which there are no such ranks
const SAME = 1e-5; // how far two scores of one photograph may round
const KINDS = { box: "the box", whole: "the whole photograph", both: "the box and the whole" };

// How often answers of such scores, best first, are right, by the ratio test of calibration.py;
// null where that was not checked.
function chances({ chances: known }, scores, kind) {
  if (!known[kind] || scores.length < FEW) return scores.map(() => null);
  const later = scores.slice(...LATER);
  const far = Math.max(1 - later.reduce((a, b) => a + b) / later.length, 1e-6);
  const [slope, offset] = known[kind];
  return scores.map((score) => 1 / (1 + Math.exp((slope * (1 - score)) / far - offset)));
}

const dot = (a, b) => a.reduce((total, value, k) => total + value * b[k], 0);
const far = (box, other) => Math.max(...box.map((end, n) => Math.abs(end - other[n])));

// The photographs of the highest cosines, each by its best object, and copies once.
function nearest({ first, box, code }, cosines, count, own) {
  const best = [];
  for (let image = 0; image < first.length - 1; image += 1) {
    let top = first[image];
    for (let m = top; m < first[image + 1]; m += 1) if (cosines[m] > cosines[top]) top = m;
    if (image !== own && top < first[image + 1]) best.push({ image, m: top, cosine: cosines[top] });
  }
  best.sort((a, b) => b.cosine - a.cosine);
  const kept = [];
  const copy = (one, other) =>
    Math.abs(one.cosine - other.cosine) < SAME && !far(box(one.m), box(other.m)) &&
    code(one.m).every((value, d) => value === code(other.m)[d]); // prettier-ignore
  for (const one of best) {
    if (kept.length === count) break;
    if (!kept.some((other) => copy(one, other))) kept.push(one);
  }
  return kept;
}

// network: a function that gives the engine of engine.js, or null where there is none.
function searching(photographs, network) {
  const { chosen, missing, names, number, original, seen, sizes, truth, ways } = photographs;
  const own = new Map(); // photographs that somebody brought, and what was found in each
  const whole = (n) => [0, 0, ...sizes[n]];
  let asked = null; // the last question, for explain

  async function one(settings) {
    const [way] = await chosen(settings);
    if (!way) throw new Error("No index of these two. Choose another pair.");
    return way;
  }

  // What looks at photographs for vectors like a way's; an error says by which settings it can.
  async function engine({ looks }) {
    if (!network) throw new Error(`Only objects with a dot can be searched here. ${missing}`);
    if (looks) {
      const { look, why } = await network();
      return { look: (...given) => look(looks, ...given), why: (...given) => why(looks, ...given) };
    }
    const { settings } = ways.find((way) => way.looks);
    const words = `Only ${settings.network} can look at photographs here: see "advanced".`;
    throw Object.assign(new Error(words), { settings });
  }

  // A photograph that somebody brought, as a way sees it.
  async function brought({ found, ...mine }, way) {
    if (!found.has(way.looks)) found.set(way.looks, await (await engine(way)).look(mine.blob));
    const seen = found.get(way.looks);
    return { n: null, ...mine, ...seen, whole: seen.boxes.length - 1 };
  }

  // A photograph that asks: its number or null, its size, boxes, vectors, and which is the whole.
  async function query(id, way) {
    const mine = own.get(id);
    if (mine) return brought(mine, way);
    const n = number(id);
    const rows = Array.from({ length: way.first[n + 1] - way.first[n] }, (_, k) => way.first[n] + k);
    const boxes = rows.map(way.box);
    const at = boxes.findIndex((box) => far(box, whole(n)) < 0.5);
    return { n, ...seen(n), boxes, vectors: rows.map(way.vector), whole: at };
  }

  // Its number among the boxes, and the boxes with it.
  async function withBox(asking, ends, way) {
    const box = ends.map((end, n) => clamp(end, 0, n % 2 ? asking.height : asking.width));
    const known = asking.boxes.findIndex((one) => far(one, box) <= 0.5);
    if (known >= 0) return [asking, known];
    const { look } = await engine(way);
    const { vectors } = await look(await file(asking), [box]);
    const more = { boxes: [...asking.boxes, box], vectors: [...asking.vectors, ...vectors] };
    return [{ ...asking, ...more }, asking.boxes.length];
  }
  const file = (asking) => asking.blob ?? original(asking.n);

  async function embed({ file: name, bytes, settings }) {
    const [way, blob, id] = [await one(settings), new Blob([bytes]), `own/${own.size}/${name}`];
    const mine = { id, file: name, src: URL.createObjectURL(blob), blob, found: new Map() };
    await brought(mine, way);
    own.set(id, mine);
    return objects({ id, settings });
  }
  async function objects({ id, settings }) {
    const { vectors, blob, ...asking } = await query(id, await one(settings));
    return { ...asking, boxes: asking.boxes.filter((_, n) => n !== asking.whole) };
  }

  async function explain({ rank }) {
    const { way, asking, at, asks, matches } = asked;
    const { why } = await engine(way);
    const match = matches[rank];
    const found = { blob: await original(number(match.id)), box: match.box };
    const { cells, heat, vectors } = await why({ blob: await file(asking), box: asking.boxes[at] }, found);
    const [score, without_background, without_object] = vectors.map((both) =>
      Math.max(...asks.flatMap((n) => both.map((vector) => dot(vector, asking.vectors[n]))))); // prettier-ignore
    return { cells, heat, score, without_background, without_object };
  }

  function search(way, asking, asks, k) {
    const [most, found] = [Math.max(k, LATER[1]), new Map()];
    for (const one of asks.flatMap((n) => nearest(way, way.cosines(asking.vectors[n]), most, asking.n)))
      if (!(found.get(one.image)?.cosine >= one.cosine)) found.set(one.image, one);
    const best = [...found.values()].sort((a, b) => b.cosine - a.cosine || a.image - b.image);
    return best.slice(0, most).map(({ image, m, cosine }) => ({ image, score: cosine, box: way.box(m) }));
  }

  async function ask({ id, box, kind: wanted, k, settings }) {
    const way = await one(settings);
    const plain = await query(id, way);
    const [asking, at] = box && wanted !== "whole" ? await withBox(plain, box, way) : [plain, plain.whole];
    const kind = at === asking.whole ? "whole" : wanted;
    const asks = { box: [at], whole: [asking.whole], both: [at, asking.whole] }[kind];
    const found = search(way, asking, asks, k);
    const sure = chances(way.calibration, found.map(({ score }) => score), kind); // prettier-ignore
    const { name, state, found: told } = judge(truth, asking.n, asking.boxes[at], kind);
    const matches = found.slice(0, k).map(({ image, score, box: part }, rank) => ({ ...seen(image),
      box: part, score, chance: sure[rank], state: state(image, part), note: "", heat: null })); // prettier-ignore
    asked = { way, asking, at, asks, matches };
    const how = told(matches.map((match) => match.state)) || `${matches.length} photographs`;
    return { says: `${name || KINDS[box ? wanted : "whole"]} of ${asking.file}: ${how}`,
      nothing: way.calibration.nothing, rows: [{ title: "", matches }] }; // prettier-ignore
  }

  const answers = photographs.answers;
  return {
    ...answers, objects, embed, ask, explain,
    picture: async (given) => own.get(given.id) ?? answers.picture(given),
    original: async (given) => own.get(given.id)?.blob ?? answers.original(given),
  }; // prettier-ignore
}

// `link(id, box)` is what a press on a map asks.
function browser(index, network, link) {
  const photographs = gallery(index);
  const search = index.about.compares ? ranking(photographs) : searching(photographs, network);
  return { ...search, ...(index.about.map ? atlas(photographs, link) : {}) };
}

export { browser };
