// Photographs of a folder become an index (index.js) in this page: nothing is uploaded. What is
// small of it is kept in the browser until somebody deletes it.
const SIDE = 512; // pixels of the pictures that are kept
const CREW = 4; // workers at most: each takes 0.2 GB
const ALSO = /\.(heic|heif|tiff?|jxl|jp2|psd|dng|cr[23w]|nef|arw|orf|rw2|raf)$/i; // photographs, too

// Of what was dropped: folders with all that is in them. To be called at once, while it is there.
async function dropped({ items }) {
  const found = [];
  const settle = (entry, call) => new Promise((done, fail) => entry[call](done, fail));
  async function visit(entry) {
    const path = entry.fullPath.slice(1);
    if (entry.isFile) found.push({ path, file: await settle(entry, "file") });
    if (!entry.isDirectory) return;
    const reader = entry.createReader();
    for (let some; (some = await settle(reader, "readEntries")).length; ) // a hundred at a time
      for (const one of some) await visit(one);
  }
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  await Promise.all(entries.map(visit));
  return photographs(found);
}

// Of an input's files.
const chosen = (files) =>
  photographs([...files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));

function photographs(found) {
  const shown = found.filter(({ path, file }) =>
    !/(^|\/)\./.test(path) && (file.type.startsWith("image/") || ALSO.test(path))); // prettier-ignore
  return shown.sort((a, b) => (a.path < b.path ? -1 : 1));
}

/**
 * @param some [{path, file}], of `dropped` or `chosen`
 * @param start gives a Promise of an engine (engine.js); is called for each worker
 * @param about of an index, whose only way says `settings`, `calibration` and `looks`
 * @param tell is called with {done, total}
 * @returns Promise of an index, and `skipped`: [{file, why}]
 */
async function index(some, start, about, tell = () => {}) {
  const [seen, skipped] = [[], []];
  let [next, done] = [0, 0];
  async function work(engine) {
    while (next < some.length) {
      const at = (next += 1) - 1;
      const { path, file } = some[at];
      try {
        seen[at] = { path, file, ...(await engine.look(about.ways[0].looks, file, null, SIDE)) };
      } catch (error) {
        skipped.push({ file: path, why: error.message });
      }
      tell({ done: (done += 1), total: some.length });
    }
  }
  const many = Math.min(CREW, some.length, navigator.hardwareConcurrency || 2);
  const crew = await Promise.all(Array.from({ length: many }, start));
  await Promise.all(crew.map(work));
  for (const engine of crew) engine.close();
  const found = seen.filter(Boolean);
  if (!found.length) throw new Error("No photograph in it could be read.");
  const pictures = found.map(({ picture }) => picture);
  const stored = { about: told(found, about), objects: packed(found), pictures, skipped };
  await store("readwrite", (shelf) => shelf.put(stored, KEPT)).catch(() => {}); // the disk is full
  return opened(stored, found.map(({ file }) => file)); // prettier-ignore
}

// What is known of the photographs of a folder, and of the only way to search them.
function told(found, about) {
  const names = found.map(({ path }) => path);
  const sizes = found.map(({ width, height }) => [width, height]);
  const counts = found.map(({ boxes }) => boxes.length);
  const ways = [{ ...about.ways[0], dim: found[0].vectors[0].length, counts }];
  return { ...about, names, sizes, truth: null, map: null, ways };
}

// All boxes as float32, then all vectors as int8: as pages.py packs them.
function packed(found) {
  const boxes = Float32Array.from(found.flatMap((one) => one.boxes).flat());
  const vectors = found.flatMap((one) => one.vectors);
  const dim = vectors[0].length;
  const bytes = new ArrayBuffer(boxes.byteLength + vectors.length * dim);
  new Float32Array(bytes, 0, boxes.length).set(boxes);
  vectors.forEach((vector, m) => {
    const most = vector.reduce((top, value) => Math.max(top, Math.abs(value)), 1e-12);
    const codes = vector.map((value) => Math.round((127 * value) / most));
    new Int8Array(bytes, boxes.byteLength + m * dim, dim).set(codes);
  });
  return bytes;
}

// The index of what is stored; of originals that are gone there are the pictures.
function opened({ about, objects, pictures, skipped }, files = pictures) {
  const addresses = [];
  const picture = (n) => (addresses[n] ??= URL.createObjectURL(pictures[n]));
  const original = async (n) => files[n];
  return { about, part: async () => objects, picture, original, skipped };
}

// --- what is kept: one folder, the last ---

const KEPT = "folder";

function store(mode, act) {
  const settled = (request) =>
    new Promise((done, fail) => {
      request.onsuccess = () => done(request.result);
      request.onerror = request.onabort = () => fail(request.error);
    });
  const request = indexedDB.open("objemb");
  request.onupgradeneeded = () => request.result.createObjectStore("indexes");
  return settled(request).then((base) =>
    settled(act(base.transaction("indexes", mode).objectStore("indexes"))).finally(() => base.close()));
} // prettier-ignore

// The index of last time, or null.
const kept = async () => {
  const stored = await store("readonly", (shelf) => shelf.get(KEPT)).catch(() => null);
  return stored ? opened(stored) : null;
};

const forget = () => store("readwrite", (shelf) => shelf.delete(KEPT));

export { chosen, dropped, forget, index, kept };
