"""A photograph's boxes and vectors, computed by Chromium, are Python's from the file's bytes on."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from browser import Watched, chromium, needs_chromium, needs_runtime
from PIL import ExifTags, Image, ImageCms
from sklearn.datasets import load_sample_images
from tiny_gallery import scenes

from objemb_lib.attend.proposer import propose
from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.embed.boxes import Boxes
from objemb_lib.embed.extract import ExtractOptions
from objemb_lib.embed.regions import Region, model_input
from objemb_lib.embed.trunks import Trunk, load_trunk
from objemb_lib.embed.whitening import l2
from objemb_lib.search.explain import explain
from objemb_lib.search.objects import photograph
from objemb_lib.search.retriever import Retriever, embedder
from objemb_lib.show import app, engine, front
from objemb_lib.teach.student import StudentTrunk, load_student

QUIET = ExtractOptions(cache=False, progress=False)
PAGE = """<!doctype html><link rel="icon" href="data:,"><title>engine</title><script type="module">
import { open } from "./engine.js";
import * as folder from "./folder.js";
import { decode, resized } from "./pixels.js";
const blob = async (name) => (await fetch(name)).blob();
const plain = (found) => ({ ...found, vectors: found.vectors.map((one) => [...one]) });
const seen = async (name) => [...resized(await decode(await blob(name)), 256)];
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  window.given = folder.dropped(event.dataTransfer);
};
Object.assign(window, { open, blob, folder, plain, seen });
</script>"""
INDEX = """async ([files, base, looks]) => {
  const told = [];
  const way = { ways: [{ settings: {}, calibration: {}, looks }] };
  const start = () => open(files, base);
  const made = await folder.index(await given, start, way, ({ done }) => told.push(done));
  return { ...made, told, bytes: [...new Uint8Array(await made.part("0.bin"))] };
}"""
KEPT = """async () => {
  const kept = await folder.kept();
  const side = (picture) => createImageBitmap(picture).then(({ width }) => width);
  const shown = await fetch(kept.picture(0)).then((answer) => answer.blob());
  const sides = [await side(shown), await side(await kept.original(0))];
  await folder.forget();
  return { about: kept.about, sides, forgotten: await folder.kept() };
}"""
OPEN = "async (of) => { window.network = await open(...of); }"
LOOK = "async ([looks, name, boxes]) => plain(await network.look(looks, await blob(name), boxes))"
WHY = """async ([looks, ...asked]) => {
  const [query, match] = await Promise.all(
    asked.map(async ([name, box]) => ({ blob: await blob(name), box })));
  const why = await network.why(looks, query, match);
  return { ...why, vectors: why.vectors.map((many) => many.map((one) => [...one])) };
}"""


def foreign_profile() -> bytes:
    """Of sRGB whose red and green changed places: who applies it, sees other colours."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    place = {}
    for k in range(int.from_bytes(profile[128:132], "big")):
        tag = profile[132 + 12 * k : 144 + 12 * k]
        place[bytes(tag[:4])] = int.from_bytes(tag[4:8], "big")
    red, green = (slice(place[name] + 8, place[name] + 20) for name in (b"rXYZ", b"gXYZ"))
    profile[red], profile[green] = profile[green], profile[red]
    return bytes(profile)


def write_kinds(folder: Path) -> ImageDataset:
    """Two photographs as files of every kind that a browser reads."""
    china, flower = map(Image.fromarray, load_sample_images().images)
    veil = np.linspace(0, 255, china.width).astype(np.uint8)
    veiled = np.dstack([china, np.broadcast_to(veil, china.size[::-1])])
    upright, profile = china.transpose(Image.Transpose.ROTATE_90), foreign_profile()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    flower.save(folder / "jpeg.jpg")
    upright.save(folder / "exif.jpg", exif=exif)
    flower.resize((3024, 4032)).save(folder / "12 megapixels.jpg")
    flower.resize((5000, 3300)).save(folder / "beyond 4096.jpg")
    Image.fromarray(veiled).save(folder / "alpha.png")
    Image.fromarray(veiled).save(folder / "alpha.webp")
    for name in ("profile.jpg", "profile.png", "profile.webp"):
        china.save(folder / name, icc_profile=profile)
    flower.convert("L").save(folder / "grey.jpg")
    china.quantize(64).save(folder / "palette.png")
    flower.resize((600, 1400)).save(folder / "upright.png")
    files = sorted(path.name for path in folder.iterdir())
    return ImageDataset("kinds", "all", folder, files, np.full(len(files), -1))


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Files of all kinds."""
    return write_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def watched(kinds: ImageDataset) -> Iterator[Watched]:
    """A page whose ``network`` looks at the files of a folder."""
    for part in ("engine", "folder", "pixels"):
        (kinds.root / f"{part}.js").write_text(front.module(part), "utf-8")
    (kinds.root / "index.html").write_text(PAGE, "utf-8")
    files = engine.write_engine(kinds.root / "engine")
    serve = functools.partial(Handler, directory=kinds.root)
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server, chromium() as watched:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        watched.page.goto(f"{base}/index.html")
        watched.root, watched.files = kinds.root, (files, f"{base}/engine/")
        watched.page.evaluate(OPEN, watched.files)
        yield watched
        watched.check()
        server.shutdown()


@pytest.fixture(scope="module")
def way(kinds: ImageDataset) -> Retriever:
    """The files as a gallery; embeds and proposes as the page does."""
    return retriever(kinds, "head", 0.0)


def retriever(dataset: ImageDataset, stage: str, context: float, size: int = 256) -> Retriever:
    return of_network(dataset, load_trunk(), [(stage, "spoc")], context, size)


def of_network(dataset: ImageDataset, trunk: Trunk, *how: object) -> Retriever:
    """A gallery by a network's pairs, context and size."""
    find = lambda data: propose(data, options=QUIET)  # noqa: E731
    pairs, context, size = how
    region = Region(find(dataset), context=context)
    return Retriever.build(dataset, trunk, pairs, region, size, find, progress=False)


@functools.cache
def looks(watched: Watched, way: Retriever) -> dict:
    """How the page looks, for vectors like a gallery's."""
    return engine.write_network(watched.root / "engine", way.embed)


def looked(
    watched: Watched, way: Retriever, file: str, boxes: list | None = None
) -> tuple[np.ndarray, ...]:
    """Boxes and vectors of a file."""
    found = watched.page.evaluate(LOOK, [looks(watched, way), file, boxes])
    return np.array(found["boxes"]), np.array(found["vectors"]), (found["width"], found["height"])


def agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(((ours * theirs).sum(axis=-1) >= 0.999).all())


@needs_chromium
@needs_runtime
def test_every_kind_of_file_gives_pythons_boxes_and_vectors(watched, way) -> None:
    for i, file in enumerate(way.dataset.files):
        ours = model_input(way.dataset.image(i), 256).astype(int)
        theirs = np.reshape(watched.page.evaluate("seen", file), ours.shape)
        reduced = file.startswith("beyond")  # by another filter
        assert np.abs(ours - theirs).max() <= (8 if reduced else 0), file
        query, (boxes, vectors, size) = way.query(i), looked(watched, way, file)
        assert size == tuple(way.dataset.sizes()[i])
        near = max(size) * (0.01 if reduced else 1e-5)
        assert np.allclose(boxes, query.boxes, atol=near) and agree(vectors, query.vectors), file
    with pytest.raises(Exception, match="not an image"):
        looked(watched, way, "index.html")


@needs_chromium
@needs_runtime
def test_boxes_drawn_by_hand_of_another_stage_and_size_with_a_context(watched, kinds) -> None:
    file = "jpeg.jpg"
    data = photograph(kinds.root / file)
    way = retriever(data, "stage4", -0.3, 384)
    width, height = data.sizes()[0].tolist()
    drawn = [[10, 20, 300.5, 200], [0, 0, width, height], [-5, 0, 3, 2], [width - 9, 0, width, 40]]
    proposed, of_proposed, _ = looked(watched, way, file)
    boxes, vectors, _ = looked(watched, way, file, drawn)
    query = way.query(0)
    assert np.allclose(proposed, query.boxes, atol=0.1) and agree(of_proposed, query.vectors)
    assert np.allclose(boxes, drawn)
    assert agree(vectors, way.embed(data, Boxes("drawn", [drawn])))
    once = [looks(watched, way) | {"once": True}, file, None]  # boxes from the vectors' own maps
    large = propose(data, options=replace(QUIET, size=384)).boxes[0]
    assert np.allclose(watched.page.evaluate(LOOK, once)["boxes"][:-1], large, atol=0.1)


@needs_chromium
@needs_runtime
@pytest.mark.parametrize("name", ["", "fork"])
def test_why_a_match_was_found_is_pythons_explanation(watched, kinds, way, name) -> None:
    if name:
        network = StudentTrunk(load_student(name))
        way = of_network(kinds, network, *app.PHOTOGRAPHS[name])
    names = list(way.dataset.files)
    query = way.query(names.index("jpeg.jpg"))
    found = way.search(query, 0, kind="box").matches
    match = next(one for one in found if names[one.image] == "12 megapixels.jpg")
    ours = explain(way, query, 0, match, "box")
    asked = [["jpeg.jpg", query.boxes[0].tolist()], [names[match.image], list(match.box)]]
    found = watched.page.evaluate(WHY, [looks(watched, way), *asked])
    assert np.allclose(found["cells"], ours.cells, atol=0.1)
    assert np.allclose(found["heat"], ours.heat, atol=1e-3)
    scores = [max(np.array(vectors) @ query.vectors[0]) for vectors in found["vectors"]]
    wanted = ours.score, ours.without_background, ours.without_object
    assert np.allclose(scores, wanted, atol=1e-3)


@needs_chromium
@needs_runtime
@pytest.mark.parametrize("name", ["", "student", "fork"])
def test_a_photograph_that_is_brought_finds_the_same_first_answers(watched, name) -> None:
    """Queries that the browser looked at ask Python's index, as those of Python do: by the plain
    network, the student for scenes and the one for photographs."""
    data = scenes(15)
    taken = {**app.PHOTOGRAPHS, "student": app.SCENES["student"]}[name]
    network = StudentTrunk(load_student(name)) if name else load_trunk()
    way = of_network(data, network, *taken)
    for i in range(len(data)):
        file = data.root / data.files[i]
        (watched.root / file.name).write_bytes(file.read_bytes())
        boxes, vectors, _ = looked(watched, way, file.name)
        ours = way.query_photograph(photograph(file))
        assert agree(vectors, ours.vectors)
        theirs = replace(ours, boxes=boxes, vectors=vectors.astype(np.float32))
        for box in range(len(boxes)):
            one, other = (way.search(q, box).matches for q in (ours, theirs))
            assert [match.image for match in one] == [match.image for match in other]


@needs_chromium
@needs_runtime
def test_a_dropped_folder_is_searched_in_the_page_and_kept_until_it_is_deleted(
    watched, way, tmp_path
) -> None:
    """As on a phone in a room: in no secure context."""
    names = ["12 megapixels.jpg", "alpha.png", "exif.jpg"]
    for place, name in zip(("b", "a/deep", "a"), names):
        (tmp_path / "drop" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "drop" / place / name).write_bytes((way.dataset.root / name).read_bytes())
    for name in ("broken.jpg", "phone.heic", "notes.txt", ".hidden.jpg"):
        (tmp_path / "drop" / name).write_bytes(b"no photograph")
    page, (files, base) = watched.page, watched.files
    base = base.replace("127.0.0.1", "room.test")
    page.goto(base.replace("engine/", "index.html"))
    assert not page.evaluate("isSecureContext")
    mouse = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "drop")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        mouse.send("Input.dispatchDragEvent", {"type": kind, "x": 9, "y": 9, "data": data})
    page.wait_for_function("window.given")
    found = page.evaluate(INDEX, [files, base, looks(watched, way)])
    skipped = {one["file"]: one["why"] for one in found["skipped"]}
    assert skipped.keys() == {"drop/broken.jpg", "drop/phone.heic"} and found["told"][-1] == 5
    assert all("not an image" in why for why in skipped.values())

    about = found["about"]
    files = ["a/deep/alpha.png", "a/exif.jpg", "b/12 megapixels.jpg"]
    assert about["names"] == [f"drop/{file}" for file in files]
    numbers = [way.dataset.names.index(Path(file).name) for file in files]
    assert about["sizes"] == way.dataset.sizes()[numbers].tolist()
    queries = [way.query(number) for number in numbers]
    (made,) = about["ways"]
    assert made["counts"] == [len(query.boxes) for query in queries]
    boxes, vectors = (
        np.concatenate([getattr(q, x) for q in queries]) for x in ("boxes", "vectors")
    )
    content = bytes(found["bytes"])
    kept = np.frombuffer(content, np.float32, 4 * len(boxes)).reshape(-1, 4)
    codes = np.frombuffer(content, np.int8, offset=16 * len(boxes)).reshape(len(boxes), made["dim"])
    assert np.allclose(kept, boxes, atol=0.1) and agree(l2(codes), vectors)

    page.reload()
    again = page.evaluate(KEPT)
    assert again["about"] == about and again["sides"] == [512, 512] and again["forgotten"] is None


def test_what_a_page_cannot_do_is_said_before_it_is_opened(tmp_path, monkeypatch) -> None:
    with pytest.raises(DataError, match="cannot make vectors of efficientnet_lite0, head, gem"):
        engine.write_network(tmp_path, embedder(load_trunk(), [("head", "gem")]))
    monkeypatch.setattr(engine, "RUNTIME", tmp_path)
    with pytest.raises(DataError, match="onnxruntime-web is not installed") as raised:
        engine.write_engine(tmp_path)
    assert raised.value.remedy == "Run make web."
