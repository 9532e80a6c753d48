// The answer to keep: a page of its own, or a table.
import { words } from "./answers.js";
import { make, photograph } from "./dom.js";

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const cell = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;

function table({ rows }) {
  const names = ["row", "rank", "file", "x0", "y0", "x1", "y1", "score", "chance", "state"];
  const lines = rows.flatMap(({ title, matches }) =>
    matches.map(({ file, box, score, chance, state }, rank) =>
      [title, rank + 1, file, ...(box ?? ["", "", "", ""]), score, chance, state].map(cell).join(),
    ),
  );
  return new Blob([[names.join(), ...lines, ""].join("\r\n")], { type: "text/csv" });
}

const STYLE = `body { font: 16px sans-serif; margin: 2em; } svg { display: block; width: 300px; max-height: 300px; }
ol { display: flex; flex-wrap: wrap; gap: 1em; padding: 0; list-style: none; } li { width: 300px; overflow-wrap: anywhere; }
rect { fill: none; stroke: #0072b2; stroke-width: 3px; vector-effect: non-scaling-stroke; } .around { stroke: #fff; stroke-width: 6px; }`;

function page(query, { says, rows }) {
  const figure = (one, said) => make("li", {}, photograph(one, undefined, said), said);
  const found = rows.flatMap(({ title, matches }) => [
    make("h2", {}, title || "Found"),
    make("ol", {}, ...matches.map((match, rank) => figure(match, words(match, rank).join(", ")))),
  ]); // prettier-ignore
  const asked = make("ol", {}, figure(query, `query: ${query.file}`));
  const body = make("body", {}, make("h1", {}, says), asked, ...found);
  const head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>What was found</title>';
  const text = `${head}<style>${STYLE}</style>${body.outerHTML}</html>`;
  return new Blob([text], { type: "text/html" });
}

export { page, save, table };
