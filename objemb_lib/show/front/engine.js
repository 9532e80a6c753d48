// Photographs become boxes and vectors, in a worker. Nothing leaves the page.
/**
 * @typedef {object} Engine `looks` is what write_network of show/engine.py says of a network, whose
 *   files are fetched once they are needed
 * @property look (looks, Blob, boxes?, side?) -> {width, height, boxes, vectors, picture}: the boxes given,
 *   else those that are proposed, best first, and the whole photograph last; a Float32Array of
 *   length 1 for each; where a side is given a JPEG of at most so many pixels
 * @property why (looks, {blob, box}, {blob, box}) -> {cells, heat, vectors}, as search/explain.py, for a
 *   query and a match: vectors of [the box, the whole] of the match as it is, without its
 *   background, without its object
 * @property close () ends the worker
 */

// `files`: what write_engine of show/engine.py says, names relative to the address `base` ->
// Promise<Engine>
async function open(files, base) {
  const thread = new Worker(new URL(files.worker, base).href, { type: "module" });
  const waiting = new Map();
  let [count, stopped] = [0, ""];
  thread.onmessage = ({ data: { number, answer, error } }) => {
    const { done, fail } = waiting.get(number);
    waiting.delete(number);
    if (error) fail(new Error(error));
    else done(answer);
  };
  const stop = (why) => {
    stopped = why;
    thread.terminate();
    for (const { fail } of waiting.values()) fail(new Error(why));
  };
  thread.onerror = () => stop("The network has stopped.");
  const ask = (call) => (...given) =>
    new Promise((done, fail) => {
      if (stopped) fail(new Error(stopped));
      waiting.set((count += 1), { done, fail });
      thread.postMessage({ number: count, call, given });
    }); // prettier-ignore
  const close = () => stop("The network was closed.");
  try {
    await ask("load")(files, base);
  } catch (error) {
    close();
    throw error;
  }
  return { look: ask("look"), why: ask("why"), close };
}

export { open };
