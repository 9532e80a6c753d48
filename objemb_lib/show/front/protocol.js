// Who searches: a kernel (kernel.js) or the browser alone (browser.js). All are asynchronous;
// what cannot be done is an Error whose message people can read; by its `settings`, if it has any, it
// can be done. Boxes are [x0, y0, x1, y1] in
// pixels of the photograph; `settings` are the names chosen under "advanced".
/**
 * @typedef {object} Backend
 * @property photographs {from, many} -> {total, items: [{id, file, src}]}
 * @property objects {id, settings} -> Query; id "" is the first photograph
 * @property embed {file, bytes, settings} -> Query, of a photograph that is not in the gallery
 * @property ask {id, box, kind, k, settings} -> Answer; kind is "box", "whole" or "both"
 * @property explain {rank} -> Why, of the last answer; ranks count from 0
 * @property picture {id} -> {src}, large
 * @property original {id} -> Blob, the file itself
 * @property map {settings} -> points, groups, names, glyphs, says; choose {rows, only} -> says, cards
 *
 * @typedef {object} Query {id, file, src, width, height, boxes}; `file` is a name to read
 * @typedef {object} Answer {says, nothing, rows: [{title, matches: [Match]}]}; a match of a chance
 *   below `nothing` (null: nobody knows) is probably none
 * @typedef {object} Match {id, file, src, width, height, box, score, chance, state, note, heat}:
 *   chance in 0..1 or null; state "right", "loose", "wrong" or ""; heat rows of 0..1, or null
 * @typedef {object} Why {cells: [[x, y, x, y, similarity]], heat, score, without_background,
 *   without_object}: cells of the query and of the match that are most alike
 */

const PATIENCE = 10000; // milliseconds without an answer, after which somebody should be told

// A backend that is watched: `say` gets words while it does not answer, and "" once it does.
function watched(backend, say) {
  const watch = (question) => async (given) => {
    const late = "The search has not answered for ten seconds: it is busy, or has stopped.";
    const timer = setTimeout(() => say(late), PATIENCE);
    try {
      const answer = await backend[question](given);
      say("");
      return answer;
    } finally {
      clearTimeout(timer);
    }
  };
  return Object.fromEntries(Object.keys(backend).map((question) => [question, watch(question)]));
}

// Of calls that come while one is under way only the last is made: quick clicks end right.
function latest(work) {
  let [next, running] = [null, false];
  return async () => {
    next = work;
    if (running) return;
    running = true;
    while (next) {
      next = null;
      await work();
    }
    running = false;
  };
}

export { latest, watched };
