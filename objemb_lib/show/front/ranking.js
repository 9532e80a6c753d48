// Views of whole photographs, and of objects on a map, without a kernel.

// Photographs by one embedding or several: as the widgets Retrieval and Compare.
function ranking(photographs) {
  const { answers, chosen, names, number, seen, truth } = photographs;

  // Of the query's label, and what is left out: itself, and where its object is not the main one.
  function judged(query) {
    const label = truth.labels[query];
    const right = (n) => label >= 0 && truth.labels[n] === label;
    const beside = (n) => !right(n) && label >= 0 && truth.boxes[n].some((box) => box[4] === label);
    const state = (n) => (right(n) ? "right" : label >= 0 && truth.labels[n] >= 0 ? "wrong" : "");
    return { state, junk: (n) => n === query || beside(n) };
  }

  async function ask({ id, k, settings }) {
    const query = number(id);
    const { state, junk } = judged(query);
    const ways = await chosen(settings);
    const cosines = ways.map((way) => way.cosines(way.vector(query)));
    const kept = [...names.keys()].filter((n) => !junk(n));
    const orders = cosines.map((row) => kept.toSorted((a, b) => row[b] - row[a] || a - b));
    const match = (r) => (n, rank) => {
      const move = orders[0].indexOf(n) - rank;
      const moved = move ? `, ${move > 0 ? "▲" : "▼"} ${Math.abs(move)}` : "";
      return { ...seen(n), box: null, score: cosines[r][n], chance: null, heat: null, state: state(n),
        note: `cosine ${cosines[r][n].toFixed(2)}${moved}` }; // prettier-ignore
    };
    const rows = ways.map((way, r) => ({
      title: way.title.replace("{}", way.of?.[query]),
      matches: orders[r].slice(0, k).map(match(r)),
    }));
    const first = rows[0].matches;
    const right = first.filter((one) => one.state === "right").length;
    const counted = rows.length > 1 || truth.labels[query] < 0 ? "" : `: ${right} of ${first.length} right`;
    const name = truth.names[truth.labels[query]] ?? "unlabelled";
    return { says: `${names[query]}, ${name}${counted}`, nothing: null, rows };
  }
  return { ...answers, ask, objects: async ({ id }) => ({ ...seen(number(id)), boxes: [] }) };
}

// Objects as points that Python has placed and named: as the widget Map.
function atlas({ map, names, seen }, link) {
  const { points, groups, objects, says } = map;
  const card = (row) => {
    const [n, box, name] = objects[row];
    return { ...seen(n), box, row, note: `${name}, ${names[n]}` };
  };
  return {
    map: async (settings) => ({ points: points[settings.map], ...groups[settings["colour by"]], says }),
    async choose({ rows, only }) {
      const cards = rows.slice(0, 24).map(card);
      if (rows.length === 1 && !only) link(cards[0].id, cards[0].box);
      const more = rows.length > cards.length ? `, the first ${cards.length} of them here` : "";
      return { says: `${rows.length} objects${more}`, cards };
    },
  };
}

export { atlas, ranking };
