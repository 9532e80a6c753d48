// A gallery in memory, and the vectors of its objects.
/**
 * @typedef {object} Index what pages.py makes, or folder.js of a folder
 * @property about {views: [{view, about, start}], names, sizes: [[width, height]], truth: {labels,
 *   names, boxes: of each photograph [[x0, y0, x1, y1, label]]} or null, ways: [{settings: what
 *   menus say, dim, counts: of each photograph's objects, calibration, looks: of engine.js, or null
 *   where no page makes such vectors}], map: of Map or null, network: what opens engine.js, or null}
 * @property part name -> Promise of an ArrayBuffer; "0.bin" is the first way's: a box of float32
 *   for each object, then a vector of int8 each
 * @property picture (n, side) -> an address
 * @property original n -> Promise of a Blob
 * @property address name -> of a file beside it
 */

// From whoever serves the files of a folder.
async function fetched(folder) {
  const get = async (name) => {
    const answer = await fetch(folder + name).catch(() => ({}));
    if (!answer.ok) throw new Error("The app does not answer. Is it still running?");
    return answer;
  };
  return {
    about: await (await get("index.json")).json(),
    part: async (name) => (await get(name)).arrayBuffer(),
    picture: (n, side) => `${folder}${side}/${n}.jpg`,
    original: async (n) => (await get(`original/${n}`)).blob(),
    address: (name) => new URL(folder + name, location).href,
  };
}

const decoded = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// From a script, which a page may read from a stick as well: it sets a name of `objembIndexes`.
async function packed(script) {
  const [folder, name] = [script.replace(/[^/]*$/, ""), script.match(/([^/]*)\.js$/)[1]];
  if (!globalThis.objembIndexes?.[name])
    await new Promise((done, fail) => {
      const wrong = () => fail(new Error(`${script} is not there.`));
      const part = Object.assign(document.createElement("script"), { src: script, onload: done, onerror: wrong }); // prettier-ignore
      document.head.append(part);
    });
  const { about, parts, pictures } = globalThis.objembIndexes[name];
  const picture = (n) => pictures?.[n] ?? `${folder}pictures/${n}.jpg`;
  const original = async (n) => {
    if (pictures) return new Blob([decoded(pictures[n].split(",")[1])], { type: "image/jpeg" });
    const answer = await fetch(picture(n)).catch(() => null);
    if (!answer?.ok) throw new Error("A page from a file cannot read another file.");
    return answer.blob();
  };
  return { about, part: async (one) => decoded(parts[one]).buffer, picture, original,
    address: (one) => new URL(folder + one, location).href }; // prettier-ignore
}

const norm = (vector) => Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));

// Objects of all photographs, image by image; those of image n are first[n] to first[n + 1].
async function objects(index, n) {
  const { dim, counts } = index.about.ways[n];
  const bytes = await index.part(`${n}.bin`);
  const first = [0];
  for (const count of counts) first.push(first.at(-1) + count);
  const total = first.at(-1);
  const [ends, codes] = [new Float32Array(bytes, 0, 4 * total), new Int8Array(bytes, 16 * total)];
  const code = (m) => codes.subarray(m * dim, (m + 1) * dim);
  const norms = Float32Array.from({ length: total }, (_, m) => norm(code(m)) || 1);
  return {
    first,
    code,
    box: (m) => [...ends.subarray(4 * m, 4 * m + 4)],
    vector: (m) => Float32Array.from(code(m), (value) => value / norms[m]),
    cosines(vector) {
      const found = new Float32Array(total);
      for (let m = 0, at = 0; m < total; m += 1) {
        let sum = 0;
        for (let d = 0; d < dim; d += 1, at += 1) sum += codes[at] * vector[d];
        found[m] = sum / norms[m];
      }
      return found;
    },
  };
}

const [THUMBNAIL, CARD, LARGE] = [160, 480, 1600]; // pixels of the longer side

// An index with what every view asks of it.
function gallery(index) {
  const { names, sizes, ways } = index.about;
  const numbers = new Map(names.map((name, n) => [name, n]));
  const loaded = new Map();
  const seen = (n, side = CARD) => ({ id: names[n], file: names[n], src: index.picture(n, side),
    width: sizes[n][0], height: sizes[n][1] }); // prettier-ignore
  const number = (id) => {
    if (id && !numbers.has(id)) throw new Error(`${id} is not here. Choose another photograph.`);
    return numbers.get(id) ?? 0;
  };
  async function load(n) {
    if (!loaded.has(n)) loaded.set(n, objects(index, n));
    try {
      return { ...ways[n], ...(await loaded.get(n)) };
    } catch (error) {
      loaded.delete(n); // it may be there the next time
      throw error;
    }
  }
  // The ways that the menus say: one to search, several to compare.
  const says = (settings) => ([name, value]) => settings[name] === value;
  const chosen = (settings) =>
    Promise.all(ways.flatMap((way, n) => (Object.entries(way.settings).every(says(settings)) ? [load(n)] : [])));
  return {
    ...index, ...index.about, seen, number, chosen,
    answers: {
      photographs: async ({ from, many }) => ({ total: names.length,
        items: [...names.keys()].slice(from, from + many).map((n) => seen(n, THUMBNAIL)) }),
      picture: async ({ id }) => seen(number(id), LARGE),
      original: async ({ id }) => index.original(number(id)),
    },
  }; // prettier-ignore
}

export { fetched, gallery, packed };
