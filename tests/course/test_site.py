"""The readable site: every picture is described, no page asks another host, every page is found."""

from __future__ import annotations

import html
import json
import pkgutil
import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from browser import chromium, needs_chromium

import objemb_lib

PROJECT = Path(__file__).resolve().parents[2]
SITE = PROJECT / "runs" / "site"
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.stem[0].isdigit()]  # the others are appendices
ASKED = re.compile(
    r"<(?:script|link|img|iframe|source|video)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)"
    r"|(?:url\(|@import|import\(|fetch\()\s*[\"']?((?:https?:)?//[^\"') ]+)"
)


def pages() -> list[Path]:
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built: make site")
    return sorted(SITE.rglob("*.html"))


def described(cell: nbformat.NotebookNode) -> str:
    return cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_picture_of_a_notebook_is_described(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    drawn = [cell for cell in cells if cell.cell_type == "code" and any(
        kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})
    )]  # fmt: skip
    assert drawn or path.stem.startswith("05")
    bare = [cell.source.splitlines()[0] for cell in drawn if len(described(cell)) < 20]
    assert not bare, 'these cells need metadata {"mystnb": {"image": {"alt": "..."}}}'
    texts = [described(cell) for cell in drawn]
    assert len(set(texts)) == len(texts), "two pictures have the same description"


def test_every_picture_of_the_site_is_described() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"<button\b[^>]*aria-label=.*?</button>", "", text, flags=re.S)  # described
        for image in re.findall(r"<img\b[^>]*>", text):
            alt = re.search(r'alt="([^"]*)"', image)
            assert alt and alt[1].strip() and not alt[1].endswith((".png", ".jpeg")), (page, image)


@needs_chromium
@pytest.mark.parametrize("width", (390, 1024, 1400))
def test_nobody_is_kept_out_of_a_page(width: int) -> None:
    """axe finds nothing, and the page does not scroll sideways."""
    pages()
    with chromium(width) as watched:
        for name in ("docs/index", "docs/keep", *(f"notebooks/{p.stem}" for p in LESSONS)):
            watched.page.goto((SITE / f"{name}.html").as_uri())
            assert watched.page.evaluate("document.documentElement.scrollWidth") <= width, name
            watched.is_accessible()


@needs_chromium
@pytest.mark.parametrize("page, touched", [
    ("docs/index", ".dot >> nth=2"), ("docs/index", ".plane canvas"),
    ("notebooks/01_embedding_extraction", ".answer button >> nth=1"),
    ("notebooks/02_detection_vs_classification", ".answer button >> nth=1"),
    ("notebooks/03_hard_attention_object_embeddings", ".dot >> nth=2"),
])  # fmt: skip
def test_what_a_page_shows_is_searched_without_a_kernel(page: str, touched: str) -> None:
    """Also where the page is a file; a press is answered, by others than before."""
    pages()
    with chromium() as watched:
        watched.page.goto((SITE / f"{page}.html").as_uri())
        live = watched.page.locator(".objemb")
        live.scroll_into_view_if_needed()
        live.locator(".answer").first.wait_for()
        before = live.locator(".says").inner_text()
        live.locator(touched).click()
        live.locator(".says").filter(has_not_text=before).wait_for()
        live.locator(".answer").first.wait_for()
        assert not watched.errors
        assert all(address.startswith(SITE.as_uri()) for address in watched.outside)


@needs_chromium
def test_a_figure_becomes_larger_by_a_key() -> None:
    pages()
    with chromium(390) as watched:
        watched.page.goto((SITE / "docs" / "index.html").as_uri())
        figure = watched.page.locator("button.enlarge").first
        before = figure.locator("img").bounding_box()
        figure.press("Enter")
        large = watched.page.get_by_role("dialog").locator("img")
        assert large.bounding_box()["width"] > 2 * before["width"]
        watched.page.keyboard.press("Escape")
        large.wait_for(state="detached")
        assert watched.page.evaluate("document.activeElement.className") == "enlarge"


@needs_chromium
def test_a_search_finds_the_word_before_the_code() -> None:
    pages()
    with chromium() as watched:
        for word in ("mAP", "trunk", "RoIAlign"):
            watched.page.goto(f"{(SITE / 'search.html').as_uri()}?q={word}")
            first = watched.page.locator("ul.search a").first.get_attribute("href")
            assert first == f"docs/glossary.html#term-{word}"


def test_every_page_has_a_title_of_its_own() -> None:
    found = [
        re.search(r"<title>(.*?)</title>", page.read_text(encoding="utf-8")) for page in pages()
    ]
    titles = [title[1] for title in found if title]
    assert len(set(titles)) == len(titles) == len(pages())


def test_no_page_asks_another_host_for_anything() -> None:
    for file in [*pages(), *SITE.rglob("*.css")]:
        asked = [a or b for a, b in ASKED.findall(html.unescape(file.read_text(encoding="utf-8")))]
        assert not asked, f"{file.relative_to(SITE)} asks {asked[:3]}"


def test_formulas_are_drawn_without_scripts() -> None:
    pages()
    text = (SITE / "notebooks" / "01_embedding_extraction.html").read_text(encoding="utf-8")
    assert "<math" in text and "MathJax" not in text


def test_every_notebook_and_room_has_its_page() -> None:
    pages()
    for path in NOTEBOOKS:
        assert (SITE / "notebooks" / f"{path.stem}.html").is_file()
    for file in (PROJECT / "objemb_lib").rglob("*.py"):
        if file.stem == "__main__":  # a command, not a module to import
            continue
        name = ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
        page = SITE / "docs" / "generated" / f"{name}.html"
        assert page.is_file(), f"{name} has no page: make site"


def test_what_the_page_on_architecture_names_is_there() -> None:
    """Each `module.function` in backticks; each room is in the picture."""
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture, prose = page.split("```")[1:3]
    assert re.findall(r"^  (\w+) ", picture, re.M)[1:] == re.findall(
        r":mod:`(\w+)`", objemb_lib.__doc__
    )
    names = re.findall(r"`(\w+(?:\.\w+)+)`", prose)
    assert len(names) >= 15
    for name in names:
        assert pkgutil.resolve_name(f"objemb_lib.{name}"), name


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_answer_of_a_quiz_explains(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    (quiz,) = (c.source for c in cells if re.search("^## Quiz", c.source, re.M))
    answers = re.findall(r"<details><summary>(.+?)</summary>\s*(.+?)</details>", quiz, re.S)
    questions = re.findall(r"^\*\*\d+\.", quiz, re.M)
    assert len(questions) >= 3 and len(answers) >= 3 * len(questions)
    assert len(answers) == quiz.count("<details")
    for answer, why in answers:
        assert re.match(r"(Right|Not quite)", why.strip()), answer
        assert len(why.split()) >= 8, answer
    assert quiz.count("Right.") == len(questions)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_exercises_are_of_three_kinds(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    (exercises,) = (c.source for c in cells if re.search("^## Exercises", c.source, re.M))
    kinds = re.findall(r"^\d+\. \*(\w+)", exercises, re.M)
    assert {"Predict", "Change", "Build"} <= set(kinds)
    assert f"solutions/{path.stem[:2]}.md" in exercises


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_its_time_is_said_for_both_kinds_of_machine(path: Path) -> None:
    prose = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells[:3])
    assert "CPU" in prose and "GPU" in prose


def test_the_citation_says_what_the_project_says() -> None:
    cited = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what its schema asks
    stated = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{cited["version"]}"' in stated
    assert cited["license"] == "MIT" and "MIT License" in (PROJECT / "LICENSE").read_text()
    (paper,) = cited["references"]
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert paper["title"] in readme and str(paper["year"]) in readme


def test_a_codespace_makes_what_the_course_needs() -> None:
    told = json.loads((PROJECT / ".devcontainer" / "devcontainer.json").read_text())
    (target,) = re.findall(r"^make (\w+)$", told["postCreateCommand"])
    makefile = (PROJECT / "Makefile").read_text()
    assert re.search(rf"^{target}: .*\binstall\b", makefile, re.M)
    for file in told["customizations"]["codespaces"]["openFiles"]:
        assert (PROJECT / file).is_file()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Colab has a later Python")
def test_colab_keeps_its_jupyter_and_gets_the_rest() -> None:
    colab = runpy.run_path(str(PROJECT / "notebooks" / "colab.py"))
    wanted = colab["wanted"](PROJECT / "pyproject.toml")
    names = {re.split(r"[^\w.-]", line)[0] for line in wanted}
    assert {"torch", "timm", "faiss-cpu", "anywidget"} <= names
    assert not names & {"jupyterlab", "ipykernel", "ipython", "ipywidgets"}
