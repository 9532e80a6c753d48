"""The numbers in a lesson's prose are those of the committed run: of a row, or of what is printed.

A snippet has ``#`` where its number stands.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

PROJECT = Path(__file__).resolve().parents[2]
Said = tuple[str, str, str]  # snippet, row (":clean" after it for that data; "" if printed), metric
SAID: dict[str, list[Said]] = {
    "00_welcome_and_data": [
        ("We test it on # cut-outs", "", ""),
        ("cut-outs pasted on # photographs, with", "", ""),
    ],
    "01_embedding_extraction": [
        ("mAP # on clean, **0.06** on battle", "whole image:clean", "mAP"),
        ("on clean, **#** on battle", "whole image", "mAP"),
        ("from 0.06 to **#**", "whole image, best pooling", "mAP"),
        ("whitened #. That helps", "whole image, whitened", "mAP"),
        ("the crop gains nothing (#)", "crop:clean", "mAP"),
        ("reaches 0.14, the crop without it #", "crop", "mAP"),
        ("with R-MAC #.", "crop, R-MAC", "mAP"),
    ],
    "02_detection_vs_classification": [
        ("again: mAP # on", "crop", "mAP"),
        ("as good as its start (# and", "crop, detector's body", "mAP"),
        ("is behind (#)", "crop, practised classifier", "mAP"),
        ("(The crop's: #.)", "crop", "R@1"),
        ("from 0.66 to the map's #", "true main box on the map", "mAP"),
        ("From 0.43 to # is", "detector's box head", "mAP"),
        ("falls from # to", "true main box on the map", "R@1"),
        ("falls from 0.50 to #", "detector's box head", "R@1"),
        ("the body does not (#)", "crop, detector's body", "R@1"),
        ("FPN #, RoI", "detector's FPN", "mAP"),
        ("RoI features #, box", "detector's RoI features", "mAP"),
        ("On clean it gives #,", "crop, detector's body:clean", "mAP"),
        ("its start #, the", "crop:clean", "mAP"),
        ("the practised classifier #. -", "crop, practised classifier:clean", "mAP"),
    ],
    "03_hard_attention_object_embeddings": [
        ("mAP # on battle scenes", "whole image", "mAP"),
        ("crop found the *object* (#)", "crop", "mAP"),
        ("first answer is right for # of", "whole image", "R@1"),
        ("detector's boxes reach #, true", "detector's boxes", "mAP"),
        ("reach 0.38, true ones #, the", "true boxes", "mAP"),
        ("like the detector's reach #:", "random boxes, detector's sizes", "mAP"),
        ("one pass, and # instead", "detector's boxes, chosen", "mAP"),
        ("True boxes come to #, the", "true boxes, chosen", "mAP"),
    ],
    "05_search_at_scale": [
        ("**mAP #, 0.52", "Flat:vectors", "mAP"),
        ("**mAP 0.54, #, 0.31", "PQ64:vectors", "mAP"),
        ("0.52, # and 0.15** with 512", "PQ16:vectors", "mAP"),
        ("and #** with 512", "PQ8:vectors", "mAP"),
        ("comes back: #,", "PQ16, ranked again:vectors", "mAP"),
        ("whitened **#**", "PQ16, whitened, ranked again:vectors", "mAP"),
        ("half the time, and have #;", "IVF256,Flat:vectors", "mAP"),
        ("16 bytes give #;", "PQ16, whitened:vectors", "mAP"),
        ("codes, ranked again, #.", "IVF256,PQ16, whitened, ranked again:vectors", "mAP"),
    ],
    "04_student_teacher": [
        ("the student has **#**", "student", "mAP"),
        ("the box head #. But", "detector's box head, chosen", "mAP"),
        ("the untrained branch has **#**", "untrained branch", "mAP"),
        ("The fork has # without", "fork", "mAP"),
        ("own boxes the student reaches #.", "student, own boxes", "mAP"),
        ("ten crops #, a second", "", ""),
        ("multiply-adds, ten crops #.", "", ""),
    ],
    "06_outside_our_world": [
        ("that knows nothing gives #: judge", "boxes: R-MAC grid (14):COCO", "mAP"),
        ("from a recall of # on boxes help", "boxes: five fixed boxes:COCO", "recall"),
        ("up to # they do not", "boxes: mask_rcnn:COCO", "recall"),
        ("battle rises from # to", "claim 1: classification:battle", "mAP"),
        ("from 0.44 to # for the practised", "claim 1: practised classifier:battle", "mAP"),
        ("practised classifier, to # for `faster_rcnn`", "claim 1: faster_rcnn:battle", "mAP"),
        ("both fall, from # to", "claim 1: classification:COCO", "mAP"),
        ("both fall, from 0.57 to # and", "claim 1: practised classifier:COCO", "mAP"),
        ("from 0.57 to 0.42 and #.", "claim 1: faster_rcnn:COCO", "mAP"),
        ("on birds, small photographs, it has # at 384", "embedding: fork:birds", "mAP"),
        ("at 384 pixels and # at 256", "embedding: fork on a smaller map:birds", "mAP"),
        ("by their crop have # as before", "pasted: crop teacher:birds, pasted", "mAP"),
        ("crop have # as before", "embedding: crop teacher:birds", "mAP"),
        ("by the plain map # where", "pasted: head of the map:birds, pasted", "mAP"),
        ("where they had #.", "embedding: teacher's head on the map:birds", "mAP"),
        ("adaptive cut brings it to #,", "pasted: adaptive cut:birds, pasted", "mAP"),
        ("a larger input to #:", "pasted: adaptive cut, larger input:birds, pasted", "mAP"),
        ("true boxes lift mAP from # to", "boxes: whole image:COCO", "mAP"),
        ("lift mAP from 0.47 to #, the", "boxes: true boxes:COCO", "mAP"),
        ("proposer (recall #) to", "boxes: proposer:COCO", "recall"),
        ("(recall 0.71) to #; our", "boxes: proposer:COCO", "mAP"),
        ("stays at #, inconclusive", "boxes: mask_rcnn:COCO", "mAP"),
        ("is its box head: #.", "embedding: detector's box head:COCO", "mAP"),
        ("the student has #, the box", "embedding: student:COCO", "mAP"),
        ("teacher's plain map #. The", "embedding: teacher's head on the map:COCO", "mAP"),
        ("near the crop (#,", "embedding: fork:COCO", "mAP"),
        ("near the crop (0.60, #)", "embedding: crop teacher:COCO", "mAP"),
    ],
}
ELSEWHERE = {  # shares that another notebook or a benchmark measured, tested below or with its page
    "04_student_teacher": {"0.08"},
    "05_search_at_scale": {"0.87", "0.95"},
    "A3_purity": {"0.06", "0.21"},
}
COMMITTED = {  # notebook -> its numbers; of photographs, those of a run with photographs
    notebook: numbers
    for run in ("workshop", "photographs")
    for notebook, numbers in json.loads(
        (PROJECT / "results" / f"{run}.json").read_text(encoding="utf-8")
    )["measurements"].items()
}


def measured(notebook: str, row: str, metric: str) -> float:
    name, split = re.fullmatch(r"(.*?)(?::(?! )(.*))?", row).groups("battle")
    (value,) = (
        n["value"] for n in COMMITTED[notebook]
        if (n["name"], n["metric"]) == (name, metric) and n["data"].endswith(split)
        and n.get("chosen_on", "photographs") == "photographs"
    )  # fmt: skip
    return value


def said_by(outputs: list) -> str:
    """All text of outputs; pictures have digits by chance."""
    every = [o.get("text", "") for o in outputs]
    every += [str(value) for o in outputs for kind, value in o.get("data", {}).items()
              if kind.startswith("text/")]  # fmt: skip
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", " ".join(every))


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_no_share_in_prose_is_typed(path: Path) -> None:
    """Each stands in an output or in the code of its notebook."""
    cells = nbformat.read(path, as_version=4).cells
    shown = said_by([o for c in cells for o in c.get("outputs", [])])
    shown += " ".join(c.source for c in cells if c.cell_type == "code")
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    prose = re.sub(r"\]\([^)]*\)|`[^`]*`", "]", prose)  # neither addresses nor code
    found = set(re.findall(r"(?<![\d.])0\.\d+", prose)) - ELSEWHERE.get(path.stem, set())
    typed = [n for n in found if not re.search(rf"(?<![\d.]){re.escape(n)}", shown)]
    assert not typed


@pytest.mark.parametrize("notebook", SAID)
def test_numbers_in_prose_are_those_of_the_committed_run(notebook: str) -> None:
    cells = nbformat.read(PROJECT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    prose = " ".join(" ".join(c.source for c in cells if c.cell_type == "markdown").split())
    outputs = [o for c in cells for o in c.get("outputs", [])]
    printed = said_by(outputs)
    for snippet, row, metric in SAID[notebook]:
        found = re.search(re.escape(snippet).replace(r"\#", r"([-−+]?\d+(?:\.\d+)?)"), prose)
        assert found, f"the prose does not say {snippet!r}"
        number = found[1].replace("−", "-")
        if row:
            digits = len(number.partition(".")[2])
            assert f"{measured(notebook, row, metric):.{digits}f}" == number.lstrip("+"), snippet
        else:
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", printed), snippet


def test_what_is_said_of_a_million_was_measured() -> None:
    text = (PROJECT / "notebooks" / "05_search_at_scale.ipynb").read_text(encoding="utf-8")
    path = PROJECT / "benchmarks" / "results" / "search_million.json"
    families = json.loads(path.read_text(encoding="utf-8"))["families"]
    rows = {(row["factory"], row["setting"]): row for row in families}
    lists, graph = rows["IVF2048,Flat", "nprobe=16"], rows["HNSW32", "efSearch=256"]
    for row in (lists, graph):
        assert f"{row['recall@10']:.2f}" in text and f"{row['queries_per_second']:,.0f}" in text
    assert 9 < graph["build_s"] / lists["build_s"] < 10
