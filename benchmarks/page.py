"""What the app's page costs: first answers, visitors at once, many photographs, its networks.

    python benchmarks/page.py [--reloads 50] [--visitors 20] [--times 29] [--looks 60]

Chromium and the app share this machine, maybe with others: what a network costs is told as the
processor's time, too. The gallery is the app's own, of mini-battles; `times` as
many of the same photographs stand for a large one. Writes benchmarks/results/page.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from playwright.sync_api import Route
from turns import RESULTS, arguments, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import chromium

from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.trunks import load_trunk
from objemb_lib.search.retriever import embedder
from objemb_lib.show import app, front, pages
from objemb_lib.show.engine import write_network
from objemb_lib.show.serve import Server
from objemb_lib.teach.student import StudentTrunk, load_student

WATCH = """addEventListener("DOMContentLoaded", () => new MutationObserver((_, all) => {
  if (!document.querySelector(".answer")) return;
  window.firstAnswer = performance.now();
  all.disconnect();
}).observe(document.body, { childList: true, subtree: true }));"""
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
def served() -> Iterator[str]:
    """The app in a process of its own: its address."""
    command = [sys.executable, "-m", "objemb_lib.show.app", "--no-browser", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = next(line for line in process.stdout if "http" in line)
    yield next(word for word in line.split() if word.startswith("http"))
    process.terminate()
    process.wait()


def visit(page, address: str) -> float:
    """Milliseconds until the first answer was seen."""
    page.goto(address, wait_until="commit")
    page.wait_for_function("() => window.firstAnswer")
    return round(page.evaluate("firstAnswer"), 1)


def middle(values: list[float]) -> dict[str, float]:
    """Of milliseconds."""
    return {"median": round(statistics.median(values), 1), "most": round(max(values), 1)}


def of_browsers(asked) -> dict:
    """Until a first answer: reloads by one, then visitors at once."""
    with served() as address, chromium() as watched:
        context = watched.page.context
        context.add_init_script(WATCH)
        first, *again = (visit(watched.page, address) for _ in range(asked.reloads + 1))
        many = [context.browser.new_context() for _ in range(asked.visitors)]
        for one in many:
            one.add_init_script(WATCH)
        opened = [one.new_page() for one in many]
        for page in opened:
            page.evaluate("address => setTimeout(() => (location = address))", address)
        for page in opened:
            page.wait_for_function("() => window.firstAnswer", timeout=120_000)
        answers = [page.evaluate("firstAnswer") for page in opened]
        watched.check()
    return {"first_visit": first, "reloads": middle(again), "visitors": middle(answers)}


def of_networks(index: pages.Index, count: int) -> dict:
    """Milliseconds until a page has seen a photograph and its boxes, by each network of the app;
    and those of the processor's time that a photograph of a folder costs."""
    files, told, ways = index.about["network"], {}, {}
    for name, (pairs, context, size) in (*app.SCENES.items(), *app.PHOTOGRAPHS.items()):
        network = StudentTrunk(load_student(name)) if name else load_trunk()
        by = embedder(network, pairs, size, context)
        ways[f"{name or network.name}, {size} pixels"] = write_network(index.engine, by)
    me = psutil.Process()

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
            told[name] = {"first": round(taken[0], 1)} | middle(taken[1:])
        spent = []
        for many in (count // 4, count):
            start = np.array([cpu(), time.perf_counter()])
            page.evaluate("(of) => folder(...of)", [files, files["folder"]["looks"], many])
            spent.append(np.array([cpu(), time.perf_counter()]) - start)
        server.shutdown()
    processor, clock = (spent[1] - spent[0]) / (count - count // 4)
    return {"look": told, "folder": {"processor_ms": round(1000 * processor, 1),
                                     "a_minute": round(60 / clock)}}  # fmt: skip


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
        first = visit(watched.page, server.address)
        server.shutdown()
    return {"photographs": len(files), "objects": objects, "dim": ways[0]["dim"],
            "first_visit": first}  # fmt: skip


def main() -> None:
    asked = arguments(__doc__, reloads=50, visitors=20, times=29, looks=60)
    index, _ = app.index_folder(app.ways(app.gallery()))
    report = {"photographs": len(index.dataset), "milliseconds": of_browsers(asked),
              "networks": of_networks(index, asked.looks)}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        report["large"] = large(index, asked.times, Path(folder))
    write("page", report)
    print((RESULTS / "page.json").read_text())


if __name__ == "__main__":
    main()
