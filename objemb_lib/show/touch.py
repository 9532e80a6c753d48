"""Things to touch on a page that has no kernel: a guess before a number, a search by eye, steps.

Each is a piece of HTML that computes in the browser alone, and asks no host for anything.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from string import Template

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure

from objemb_lib.config import DataError
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.measure.intervals import Interval
from objemb_lib.show.pictures import address
from objemb_lib.show.plots import QUERY, RIGHT, WRONG

SIDE = 84  # pixels of an image to choose
GUESS = Template("""<div class="objemb-touch"><p><label>$question <input type="range" min="$low"
max="$high" step="0.01" value="$middle" style="width:16em; min-height:24px" oninput="
 this.closest('div').querySelector('output').value = this.value"></label> <output>$middle</output>
<button type="button" style="min-height:24px" onclick="
 const all = this.closest('div'), guess = all.querySelector('input').value;
 const x = 10 + 380 * (guess - $low) / ($high - $low);
 all.querySelector('.guess').setAttribute('d', 'M' + x + ' 2v28');
 all.querySelector('.answer').hidden = false;
 all.querySelector('b').textContent = guess;
">Compare</button></p><div class="answer" role="status" hidden><p>You said <b></b>; measured:
$said.</p><svg viewBox="0 0 400 32" style="max-width:400px" aria-hidden="true">
<path d="M10 16H390" stroke="#999"/><path d="M$a 16H$b" stroke="$ink" stroke-width="6"/>
<circle cx="$at" cy="16" r="6" fill="$ink"/><path class="guess" stroke="#d55e00" stroke-width="4"/>
</svg></div></div>""")
FIND = Template("""<div class="objemb-touch"><p>$question</p><p>$query</p><p>$choices</p>
<p role="status"></p></div>""")
CHOICE = Template("""<button type="button" aria-label="image $n" style="padding:3px" onclick="
 this.closest('div').querySelector('[role=status]').textContent = '$said';
 this.style.outline = '4px $line $ink';
"><img alt="" src="$source" width="$side"></button>""")
STEPS = Template("""<div class="objemb-touch"><p><label>$label <input type="range" min="0"
max="$last" value="0" style="width:16em; min-height:24px" oninput="
 this.closest('div').querySelectorAll('figure').forEach((one, n) => one.hidden = n != this.value);
"></label></p>$figures</div>""")
STEP = Template("""<figure style="margin:0" $hidden><figcaption>$name</figcaption>
<img alt="$name" src="data:image/webp;base64,$drawn" style="max-width:100%"></figure>""")


def guess(question: str, answer: Interval, low: float = 0.0, high: float = 1.0) -> HTML:
    """A slider to guess a number with, before it is seen beside its interval."""
    ends = (answer.low, answer.value, answer.high)
    a, at, b = (round(10 + 380 * (end - low) / (high - low), 1) for end in ends)
    asked = {"question": escape(question), "low": low, "high": high, "middle": (low + high) / 2}
    return HTML(GUESS.substitute(asked, said=str(answer), a=a, at=at, b=b, ink=QUERY))


def find_it(dataset: ImageDataset, query: int, choices: Sequence[int], network: int) -> HTML:
    """Which of some images shows the object of the query? A press says whether one does, and what
    a network thought.

    Args:
        choices: images, among them what the network chose.
    Raises:
        DataError: none of them shows it.
    """
    choices = [int(i) for i in choices]
    right = set(choices) & set(dataset.gallery[dataset.relevant(query)].tolist())
    if not right:
        raise DataError("none of these images shows the object", "Put one that does among them.")
    theirs = f"The network took image {choices.index(network) + 1}"
    theirs += ", too." if network in right else ", which shows another object."
    buttons = [
        CHOICE.substitute(
            n=n, source=address(dataset.image(i), SIDE, 80), side=SIDE,
            said=("Right. " if i in right else "No, that is another object. ") + theirs,
            ink=RIGHT if i in right else WRONG, line="solid" if i in right else "dashed",
        )
        for n, i in enumerate(choices, 1)
    ]  # fmt: skip
    source = address(dataset.image(query), 2 * SIDE, 80)
    shown = f'<img alt="the query" src="{source}" width="{2 * SIDE}">'
    question = "Which of the small images show the same object as the large one? Press one."
    return HTML(FIND.substitute(question=question, query=shown, choices=" ".join(buttons)))


def steps(label: str, figures: Mapping[str, Figure]) -> HTML:
    """A slider through figures, by name; they are closed."""
    shown = ""
    for n, (name, figure) in enumerate(figures.items()):
        how = {"format": "webp", "dpi": 100, "pil_kwargs": {"quality": 80}}  # photographs: small
        figure.savefig(file := io.BytesIO(), bbox_inches="tight", **how)
        plt.close(figure)
        drawn = base64.b64encode(file.getvalue()).decode()
        shown += STEP.substitute(name=escape(name), drawn=drawn, hidden="hidden" if n else "")
    return HTML(STEPS.substitute(label=escape(label), last=len(figures) - 1, figures=shown))
