"""What the app's page costs: first paint and answers, reloads, visitors, sizes, many photographs.

    python benchmarks/page.py [--reloads 50] [--visitors 20] [--queries 100] [--times 29] [...]

Chromium and the app share this machine, maybe with others: what a network costs is told as the
processor's time, too. The gallery is the app's own, of mini-battles; `times` as
many of the same photographs stand for a large one. Writes benchmarks/results/page.json.
"""

from __future__ import annotations

import http.client
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
from playwright.sync_api import Route
from turns import arguments, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import chromium

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import Objects
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search.objects import ObjectIndex
from objemb_lib.search.retriever import Retriever, embedder
from objemb_lib.show import app, front, pages
from objemb_lib.show.engine import write_network
from objemb_lib.show.pictures import picture
from objemb_lib.show.serve import Server
from objemb_lib.teach.student import StudentTrunk, load_student

FIRST = 8
WATCH = """addEventListener("DOMContentLoaded", () => new MutationObserver((_, all) => {
  if (!document.querySelector(".answer")) return;
  window.firstAnswer = performance.now();
  all.disconnect();
}).observe(document.body, { childList: true, subtree: true }));"""
PRESS = """async (n) => {
  const says = document.querySelector(".rows");
  const dots = [...document.querySelectorAll(".dot:not([aria-pressed=true])")];
  const answered = new Promise((done) => new MutationObserver((_, all) => {
    all.disconnect();
    done(performance.now());
  }).observe(says, { childList: true }));
  const start = performance.now();
  dots[n % dots.length].click();
  return (await answered) - start;
}"""


LOOKS = """<!doctype html><link rel="icon" href="data:,"><script type="module">
import { open } from "./engine.js";
import { index } from "./folder.js";
const base = new URL("engine/", location).href;
const get = async (n) => ({ path: `${n}`, file: await (await fetch(`original/${n}`)).blob() });
window.looks = async (files, looks, count) => {
  const some = await Promise.all(Array.from({ length: count }, (_, n) => get(n)));
  const [engine, taken] = [await open(files, base), []];
  for (const { file } of some) {
    const start = performance.now();
    await engine.look(looks, file);
    taken.push(performance.now() - start);
  }
  engine.close();
  return taken;
};
window.folder = async (files, looks, count) => {
  const some = await Promise.all(Array.from({ length: count }, (_, n) => get(n)));
  const start = () => open(files, base);
  await index(some, start, { ways: [{ settings: {}, calibration: {}, looks }] });
};
</script>"""


@contextmanager
def served() -> Iterator[tuple[str, psutil.Process]]:
    """The app in a process of its own: its address."""
    command = [sys.executable, "-m", "objemb_lib.show.app", "--no-browser", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = next(line for line in process.stdout if "http" in line)
    yield (
        next(word for word in line.split() if word.startswith("http")),
        psutil.Process(process.pid),
    )
    process.terminate()
    process.wait()


def mb(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 1e6, 1)


def visit(page, address: str) -> dict[str, float]:
    """Milliseconds until something was seen, and until the first answer was."""
    page.goto(address, wait_until="commit")
    paint = "performance.getEntriesByName('first-paint')[0]?.startTime"
    page.wait_for_function(f"() => window.firstAnswer && {paint}")
    return {"first_paint": page.evaluate(paint), "first_answer": page.evaluate("firstAnswer")}


def middle(values: list[float]) -> dict[str, float]:
    """Of milliseconds."""
    return {"median": round(statistics.median(values), 1), "most": round(max(values), 1)}


def of_visits(seen: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: middle([one[name] for one in seen]) for name in seen[0]}


def latency(address: str, path: str, count: int = 100) -> dict[str, float]:
    """Milliseconds of a small file, asked for over one connection."""
    to, taken = http.client.HTTPConnection(urlsplit(address).netloc), []
    for _ in range(count):
        start = time.perf_counter()
        to.request("GET", path)
        to.getresponse().read()
        taken.append(1000 * (time.perf_counter() - start))
    return middle(taken)


def of_browsers(asked) -> dict:
    """Reloads by one, then visitors at once."""
    with served() as (address, process), chromium() as watched:
        at_start, context = mb(process), watched.page.context
        context.add_init_script(WATCH)
        first = visit(watched.page, address)
        seen = [visit(watched.page, address) for _ in range(asked.reloads)]
        reloads = of_visits(seen) | {"server_mb": mb(process)}
        press = [watched.page.evaluate(PRESS, n) for n in range(asked.reloads)]
        many = [context.browser.new_context() for _ in range(asked.visitors)]
        for one in many:
            one.add_init_script(WATCH)
        opened = [one.new_page() for one in many]
        for page in opened:
            page.evaluate("address => setTimeout(() => (location = address))", address)
        for page in opened:
            page.wait_for_function("() => window.firstAnswer", timeout=120_000)
        answers = [page.evaluate("firstAnswer") for page in opened]
        picture = urlsplit(opened[0].evaluate("document.querySelector('.frame img').src")).path
        visitors = {"first_answer": middle(answers), "server_mb": mb(process),
                    "picture": latency(address, picture)}  # fmt: skip
        watched.check()
    return {"server_mb": at_start, "first_visit": {k: round(v, 1) for k, v in first.items()},
            "reloads": reloads, "press": middle(press), "visitors": visitors}  # fmt: skip


def sizes(index: pages.Index) -> dict[str, float]:
    """Of what a browser loads, in MB, and of the one file that needs no server."""
    with tempfile.TemporaryDirectory() as folder:
        pages.write_folder(index, folder)
        pages.write_one_file(index, Path(folder) / "one.html")
        told = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
    told |= {"page.js": len(pages.program()), "one picture": len(one_picture(index))}
    if index.about["network"]:
        told |= {path.name: path.stat().st_size for path in index.engine.iterdir()}
    return {name: round(size / 1e6, 3) for name, size in sorted(told.items())}


def of_networks(index: pages.Index, count: int) -> dict:
    """Milliseconds until a page has seen a photograph and its boxes, by each network of the app;
    and those of the processor's time that a photograph of a folder costs."""
    files, told, ways = index.about["network"], {"look": {}, "folder": {}}, {}
    for name, (pairs, context, size) in (*app.SCENES.items(), *app.PHOTOGRAPHS.items()):
        network = StudentTrunk(load_student(name)) if name else load_trunk()
        by = embedder(network, pairs, size, context)
        ways[f"{name or network.name}, {size} pixels"] = write_network(index.engine, by)
    once, me = files["folder"]["looks"], psutil.Process()
    sides = {"its size": once, "256 pixels": once | {"size": 256}}
    sides["boxes by a pass of their own"] = {**once, "once": False}

    def cpu() -> float:
        every = (one for one in me.children(recursive=True) if "chrom" in one.name())
        return sum(sum(one.cpu_times()[:2]) for one in every)

    with tempfile.TemporaryDirectory() as folder, Server() as server, chromium() as watched:
        pages.write_folder(index, folder)
        server.show(Path(folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, base = watched.page, f"{server.address}{Path(folder).name}/"
        ours = {f"{name}.js": front.module(name) for name in ("engine", "folder")}
        ours["looks.html"] = LOOKS

        def send(route: Route) -> None:
            name = route.request.url.removeprefix(base)
            kind = "text/html" if name == "looks.html" else "text/javascript"
            route.fulfill(body=ours[name], content_type=kind)

        for name in ours:
            page.route(base + name, send)
        page.goto(f"{base}looks.html")
        page.wait_for_function("() => !!window.folder")
        for name, looks in ways.items():
            taken = page.evaluate("(of) => looks(...of)", [files, looks, count])
            told["look"][name] = {"first": round(taken[0], 1)} | middle(taken[1:])
        for name, looks in sides.items():
            spent = []
            for many in (count // 4, count):
                start = np.array([cpu(), time.perf_counter()])
                page.evaluate("(of) => folder(...of)", [files, looks, many])
                spent.append(np.array([cpu(), time.perf_counter()]) - start)
            processor, clock = (spent[1] - spent[0]) / (count - count // 4)
            told["folder"][name] = {"processor_ms": round(1000 * processor, 1),
                                    "a_minute": round(60 / clock)}  # fmt: skip
        server.shutdown()
    return told


def one_picture(index: pages.Index) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return picture(index.dataset, 0, 480, folder).read_bytes()


def kept(way: Retriever, queries: int) -> float:
    """The share of the first answers by floats that are among those by bytes."""
    boxes, vectors = zip(*way.index.of_images(range(len(way.dataset))))
    table = pages.packed(boxes, np.concatenate(vectors))
    codes = np.frombuffer(table, np.int8, offset=16 * len(way.index))
    codes = codes.reshape(len(way.index), -1).astype(np.float32)
    index, pair = ObjectIndex(codes.shape[1]), ("bytes", "")
    index.add(Objects({pair: codes}, Boxes("bytes", boxes)), pair, way.dataset.names)
    other, same = replace(way, index=index), []
    for image in np.linspace(0, len(way.dataset) - 1, queries).astype(int).tolist():
        for kind in ("box", "whole", "both"):
            found = [{match.image for match in one.search(one.query(image), 0, FIRST, kind).matches}
                     for one in (way, other)]  # fmt: skip
            same.append(len(found[0] & found[1]) / len(found[0]))
    return round(float(np.mean(same)), 4)


def large(index: pages.Index, times: int, folder: Path) -> dict:
    """First answers among so many times as many photographs: the same, with vectors nearly so."""
    data, about = index.dataset, index.about
    for n in range(times):
        (folder / f"{n}").symlink_to(Path(data.root).resolve())
    files = [f"{n}/{file}" for n in range(times) for file in data.files]
    many = ImageDataset("large", "all", folder, files, np.tile(data.labels, times))
    ways = [way | {"counts": way["counts"] * times} for way in about["ways"][:1]]
    views = [view | {"start": {"id": files[0]}} for view in about["views"]]
    about = about | {"names": files, "sizes": about["sizes"] * times, "ways": ways}
    about |= {"views": views, "truth": None, "network": None}
    objects = sum(ways[0]["counts"])
    boxes, codes = np.split(np.frombuffer(index.parts["0.bin"], np.int8), [16 * objects // times])
    codes = np.tile(codes, times)  # copies would count once
    noise = np.random.default_rng(0).integers(-3, 4, len(codes), np.int8)
    codes = np.clip(codes.astype(np.int16) + noise, -127, 127).astype(np.int8)
    whole = pages.Index(many, about, {"0.bin": np.tile(boxes, times).tobytes() + codes.tobytes()})
    pages.write_folder(whole, folder / "index")
    with Server() as server, chromium() as watched:
        server.show(folder / "index")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        watched.page.context.add_init_script(WATCH)
        seen = visit(watched.page, server.address)
        press = [watched.page.evaluate(PRESS, n) for n in range(10)]
        server.shutdown()
    about = {"photographs": len(files), "objects": objects, "dim": ways[0]["dim"]}
    table = round(len(whole.parts["0.bin"]) / 1e6, 1)
    first = {name: round(value, 1) for name, value in seen.items()}
    return about | {"mb": table, "first_visit": first, "press": middle(press)}


def main() -> None:
    asked = arguments(__doc__, reloads=50, visitors=20, queries=100, times=29, looks=60)
    ways = app.ways(app.gallery())
    index, _ = app.index_folder(ways)
    report = {"photographs": len(index.dataset), "milliseconds": of_browsers(asked),
              "mb": sizes(index), "networks": of_networks(index, asked.looks),
              "first_eight_kept": {f"{way.network}, {way.boxes}, {way.index.vectors.shape[1]}":
                                   kept(way, asked.queries) for way in ways}}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        report["large"] = large(index, asked.times, Path(folder))
    write("page", report)
    print((Path(__file__).parent / "results" / "page.json").read_text())


if __name__ == "__main__":
    main()
