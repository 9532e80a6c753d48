// Whether answers are right, where the gallery says what its photographs show: as objects.Answer.

function overlap([a0, b0, a1, b1], [c0, d0, c1, d1]) {
  const across = Math.max(Math.min(a1, c1) - Math.max(a0, c0), 0);
  const both = across * Math.max(Math.min(b1, d1) - Math.max(b0, d0), 0);
  return both / ((a1 - a0) * (b1 - b0) + (c1 - c0) * (d1 - d0) - both);
}

// The label of the true box that a box meets by an overlap of one half at least, else -1.
function labelOf(boxes, box) {
  let [label, most] = [-1, 0.5];
  for (const ends of boxes) {
    const meets = overlap(ends, box);
    if (meets >= most && (meets > most || label < 0)) [label, most] = [ends[4], meets];
  }
  return label;
}

const listed = (ranks) =>
  [ranks.slice(0, -1).join(", "), ...ranks.slice(-1)].filter(String).join(" and ");

// query: the number of the photograph that asks, null for one that is not in the gallery.
function judge(truth, query, box, kind) {
  if (!truth || query === null) return { name: "", state: () => "", found: () => "" };
  const { labels, names, boxes } = truth;
  let label = labelOf(boxes[query], box);
  if (label < 0 && (kind !== "box" || !boxes[query].length)) label = labels[query];
  const shows = labels.map((own, n) => {
    if (label < 0 || n === query) return null;
    if (boxes[n].some(([, , , , other]) => other >= 0))
      return own === label || boxes[n].some(([, , , , other]) => other === label);
    return own < 0 ? null : own === label;
  });
  const state = (n, part) => {
    if (shows[n] === null) return "";
    if (!shows[n]) return "wrong";
    const loose = kind !== "whole" && boxes[n].length && labelOf(boxes[n], part) !== label;
    return loose ? "loose" : "right";
  };
  const found = (states) => {
    if (label < 0) return "";
    const relevant = shows.filter(Boolean).length;
    if (!relevant) return "no other photograph shows it";
    const ranks = states.flatMap((one, n) => (one === "right" || one === "loose" ? [n + 1] : []));
    const where = ranks.length ? `, at rank${ranks.length > 1 ? "s" : ""} ${listed(ranks)}` : "";
    return `${ranks.length} of ${relevant} found${where}`;
  };
  return { name: names[label] ?? "", state, found };
}

export { judge };
