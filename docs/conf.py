"""The readable site: README, notebooks as executed, the course's pages, the library's reference.

Sphinx reads the project where it lies (`make site`), so that the links between README, notebooks
and pages are the same here as in a checkout. The pages ask no other host for anything.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from docutils.nodes import SkipNode, math, math_block
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import live

import objemb_lib

release = objemb_lib.__version__

project = "objemb"
author = "the objemb authors"
project_copyright = "2026, " + author
language = "en-GB"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["README.md", "data/README.md", "docs/**", "notebooks/**"]
exclude_patterns = [".*", "docs/templates", "benchmarks", "data/[!R]*", "results", "runs", "tests",
                    "**/.ipynb_checkpoints"]  # fmt: skip
templates_path = [str(Path(__file__).with_name("templates"))]

# The notebooks are shown as they were run.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
nb_ipywidgets_js = {}  # from a CDN; see _live_widgets
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_copy_source = False

autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "objemb: object embeddings"
html_static_path = ["static"]
html_extra_path = ["extra"]  # the way from the site's root to its first page
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = "static/favicon.svg"
html_math_renderer = "mathml"

# GitHub names the repository in its workflows, so that a fork's site links to the fork.
if repository := os.environ.get("GITHUB_REPOSITORY"):
    start = "notebooks/00_welcome_and_data.ipynb"
    places = {
        "Binder": f"https://mybinder.org/v2/gh/{repository}/HEAD?labpath={start}",
        "Colab": f"https://colab.research.google.com/github/{repository}/blob/HEAD/{start}",
        "Codespaces": f"https://codespaces.new/{repository}",
    }
    links = ", ".join(f'<a href="{address}">{place}</a>' for place, address in places.items())
    html_theme_options = {"announcement": f"Open the course in {links}"}


WIDGET = "application/vnd.jupyter.widget-view+json"


def _inline_math(writer: HTML5Translator, node: math) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise SkipNode


def _block_math(writer: HTML5Translator, node: math_block) -> None:
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise SkipNode


def _live_widgets(app: Sphinx, page: str, text: list[str]) -> None:
    """Widgets that search without a kernel in place of those with one; the others, and progress
    bars, are left out (figures stand beside them)."""
    up = "../" * page.count("/") + "_static"
    text[0] = text[0].replace("{{ search }}", live.element("ObjectSearch", up, only=""))
    if not str(app.env.doc2path(page)).endswith(".ipynb"):
        return
    notebook = json.loads(text[0])
    for cell in notebook["cells"]:
        if "outputs" in cell:
            outputs = [live.replaced(o, up) if WIDGET in o.get("data", ()) else o
                       for o in cell["outputs"]]  # fmt: skip
            cell["outputs"] = list(filter(None, outputs))
    text[0] = json.dumps(notebook)


def _what_they_load(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        live.write(Path(app.outdir) / "_static" / "live")


def setup(app: Sphinx) -> None:
    """MathML is drawn by the browser itself; Sphinx's own way asks a CDN for MathJax."""
    app.connect("source-read", _live_widgets)
    app.connect("build-finished", _what_they_load)
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
