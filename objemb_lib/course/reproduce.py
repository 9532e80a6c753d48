"""Run the course's notebooks in order and check their numbers against the committed ones.

    python -m objemb_lib.course.reproduce                          every notebook
    python -m objemb_lib.course.reproduce --notebooks 01           one of them (several: 00 01)
    python -m objemb_lib.course.reproduce --update                 make this run the committed one
    python -m objemb_lib.course.reproduce --profile smoke          other settings, see profiles/
    python -m objemb_lib.course.reproduce --profile folder --data folder:PATH      your photographs
    ... --boxes boxes.json                                    and who says where to look in them

Executed copies and results.json go to runs/<profile>/, or, where a profile has several
data sets or --data names one, to runs/<profile>/<data>/. Exit status: 0 all ran and every number
is within its tolerance; 1 a notebook failed, or a number strayed (it is named); 130 stopped by
Ctrl-C: what was computed is kept, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from papermill.exceptions import PapermillExecutionError

from objemb_lib import config
from objemb_lib.cache import atomic_write_bytes, atomic_write_text
from objemb_lib.config import ObjembError, ReproduceError
from objemb_lib.course import profiles
from objemb_lib.data import catalogue
from objemb_lib.embed.regions import every_image_has_a_box
from objemb_lib.measure import leaderboard

USUAL = "workshop"  # its run is the one that the README and the committed notebooks show
PACKAGES = ("torch", "torchvision", "timm", "faiss-cpu", "numpy", "scipy", "pillow")
PARTS = ("seconds", "seconds_full_cache", "measurements", "claims")  # a report's, by notebook
PAGES = "README.md", "docs/keep.md"  # that show the committed results
MARKS = "<!-- results:start -->", "<!-- results:end -->"


def reproduce(
    name: str, numbers: Sequence[str] = (), update: bool = False, data: str = "", boxes: str = ""
) -> list[str]:
    """Run notebooks of a profile on each of its data sets; returns the numbers that strayed.

    Args:
        numbers: of the notebooks; default those of the profile.
        update: make the run the committed one.
        data: run on these instead, as for :func:`catalogue.load_splits`.
        boxes: who says where to look: a COCO file or a detector's name; default the profile's.
    Raises:
        ReproduceError: a notebook failed, or there is no such profile. DataError,
        DownloadError: no data.
    """
    stated = replace(profiles.profile(name), boxes=boxes)
    notebooks = profiles.choose(numbers or list(stated.notebooks))
    planned, problems = runs(stated, data), []
    about = {run: {one: manifest(one)} if one else {} for run, one in planned.items()}  # all first
    took = profiles.minutes(name)
    if len(took := took[took.index.isin([notebook.stem for notebook in notebooks])]):
        print(f"{took.index.name}, in the committed run:\n{took.to_string(index_names=False)}\n")
    for run, one in planned.items():
        try:
            those = [nb for nb in notebooks if nb.stem not in stated.boxed or every_box(one)]
            for notebook in [nb for nb in notebooks if nb not in those]:
                print(f"{notebook.name}: left out, not every photograph of {one} has a box")
            fresh = run_on(one, run, stated, those) | {"data": about[run]}
            read = stated.committed and run == name  # on other data they are not the course's
            problems += finish(run, fresh, update, notebooks if read else ())
        except ObjembError as error:
            if len(planned) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)  # a night's other data sets still run
            problems.append(f"{run} failed")
    if not problems:
        print("executed notebooks:", *(f"runs/{run}/" for run in planned))
    return problems


def runs(stated: profiles.Profile, data: str = "") -> dict[str, str]:
    """Name of each run of a profile, its folder below runs/ -> its data; "" asks for none.

    A path becomes absolute: notebooks run elsewhere.
    """
    every, found = [data] if data else stated.data, {}
    for one in every:
        name, _, path = one.partition(":")
        folder = name
        if path:
            path = os.path.abspath(os.path.expanduser(path))
            mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]  # others may have its name
            folder = re.sub(r"[^\w.-]+", "_", f"{name}-{Path(path).name}-{mark}")
            one = f"{name}:{path}"
        found[f"{stated.name}/{folder}" if data or len(every) > 1 else stated.name] = one
    return found or {stated.name: ""}


def every_box(data: str) -> bool:
    """Whether every image of some data, of all splits, has a box."""
    train, tests = catalogue.load_splits(data)
    return every_image_has_a_box(train, *tests.values())


def manifest(data: str) -> dict:
    """What the data of a run are. The course's own are built if need be; others have terms."""
    if data == profiles.USUAL and not catalogue.entry(data).built():
        catalogue.entry(data).build(mirror=config.mirror())
    train, tests = catalogue.load_splits(data)
    if data in catalogue.DATASETS:
        return json.loads((catalogue.entry(data).folder() / "manifest.json").read_text())
    every = {"train": train, **tests}
    return {"splits": {split: {"images": len(images), "fingerprint": images.fingerprint}
                       for split, images in every.items()}}  # fmt: skip


def run_on(data: str, run: str, stated: profiles.Profile, notebooks: Sequence[Path]) -> dict:
    """Run notebooks on one data set, into ``runs/<run>/``; returns a report of what they measured.

    Raises ReproduceError with the cell that failed, or without a place to write.
    """
    run_dir = config.PROJECT / "runs" / run
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{run_dir} cannot be made: {error.strerror}"
        raise ReproduceError(problem, "Change the permissions above it, or free space.") from error
    fresh = {"environment": environment(stated.seed), **{part: {} for part in PARTS}}
    for notebook in notebooks:
        rows = run_dir / "leaderboard" / f"{notebook.stem}.jsonl"
        rows.unlink(missing_ok=True)  # an earlier run's must not stand in for this one's
        print(f"{notebook.name} ...", flush=True)
        before, start = cached_files(), time.monotonic()
        given = {"RUN_DIR": str(run_dir), "SEED": stated.seed, **stated.given(notebook, data)}
        execute(notebook, run_dir / notebook.name, given)
        seconds, new = round(time.monotonic() - start), len(cached_files() - before)
        print(f"{notebook.name}: {seconds} s, {new or 'no'} new tables of vectors", flush=True)
        board = leaderboard.read(*([rows] if rows.exists() else []))
        fresh["seconds" if new else "seconds_full_cache"][notebook.stem] = seconds
        fresh["measurements"][notebook.stem] = [n for row in board.rows for n in row.numbers]
        fresh["claims"][notebook.stem] = [asdict(one) for one in board.differences]
    return fresh


def execute(notebook: Path, output: Path, parameters: dict) -> None:
    """Execute a notebook into ``output``. Raises ReproduceError with the cell that failed."""
    config.fix_places()
    for name in ("traitlets", "asyncio"):  # what they would say is raised, too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    places = profiles.literal(notebook), profiles.literal(output)
    try:
        papermill.execute_notebook(
            *places, parameters, cwd=notebook.parent, kernel_name="python3",
            extra_arguments=["--log-level=CRITICAL"],  # no note on TCP, nor a trace on Ctrl-C
            progress_bar=sys.stderr.isatty(),
        )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":  # Ctrl-C reached the notebook first
            raise KeyboardInterrupt from error
        raise ReproduceError(
            f"{notebook.name}, cell {error.exec_count}:\n\n{error.source}\n\n"
            f"{error.ename}: {error.evalue}",
            f"The executed copy is {output}, with the whole traceback.",
        ) from error
    except KeyError as error:  # Jupyter's NoSuchKernel is one
        remedy = "Run `make install`, or `python -m ipykernel install --sys-prefix`."
        problem = f"{notebook.name}: Jupyter has no kernel ({error})"
        raise ReproduceError(problem, remedy) from error
    except RuntimeError as error:  # of the kernel: it died, or did not even start
        raise ReproduceError(
            f"{notebook.name}, {running_cell(output)}\n\n{error}",
            "Most often memory ran out: close other programs and notebooks, then run the same "
            "command again; what was computed is kept.",
        ) from error
    except OSError as error:
        problem = f"{notebook.name} could not be run into {output}: {error}"
        remedy = f"Free some space on the disk of {output}, or run `make install` if a program is "
        remedy += "not there; the same command then goes on."
        raise ReproduceError(problem, remedy) from error


def running_cell(output: Path) -> str:
    """The cell at which an executed copy ends, with its source."""
    cells = nbformat.read(output, as_version=4).cells if output.exists() else []
    code = [cell for cell in cells if cell.cell_type == "code"]
    begun = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    return f"cell {len(begun)}:\n\n{begun[-1].source}" if begun else "before its first cell"


def environment(seed: int) -> dict:
    """What a reader must know of where the numbers come from."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": str(config.device()),
        "precision": config.precision(),
        "seed": seed,
    }


def cached_files() -> set[tuple[Path, int]]:
    """Finished tables of vectors in the cache, with the time each was written."""
    tables = (config.cache_root() / "embeddings").glob("*/*[!0-9].safetensors")
    return {(table, table.stat().st_mtime_ns) for table in tables}


def finish(run: str, fresh: dict, commit: bool, outputs: Sequence[Path]) -> list[str]:
    """Write and print a report; returns what strayed. ``commit``: make it the committed one
    instead, and so the ``outputs`` of these notebooks.
    """
    run_dir = config.PROJECT / "runs" / run
    report = merged(run_dir / "results.json", fresh)
    atomic_write_text(run_dir / "results.json", json.dumps(report, indent=1))
    print(summary(fresh))
    if commit:
        commit_results(run, fresh, outputs)
        return []
    return against_committed(run, fresh)


def merged(path: Path, fresh: dict) -> dict:
    """A report, and what the one at ``path`` says of notebooks that did not run this time."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    every = {part: earlier.get(part, {}) | fresh[part] for part in PARTS}
    return fresh | {part: dict(sorted(known.items())) for part, known in every.items()}


def summary(report: dict) -> str:
    """In Markdown: the leaderboard's rows for the README, and the claims in short."""
    rows, shared = leaderboard.readme_rows(leaderboard.measured(report)[0])
    table = f"{pd.DataFrame(rows).to_markdown(index=False)}\n\n{shared}.\n\n" if rows else ""
    return table + findings(report)


def findings(report: dict) -> str:
    """Each claim in short, in Markdown: its first two pairs, and what real photographs say."""
    numbers, found = leaderboard.measured(report)
    _, elsewhere = leaderboard.measured(leaderboard.committed("photographs"))
    value = {(n["data"], n["metric"], n["name"]): n["value"] for n in numbers}
    text = ""
    for number, claim in leaderboard.CLAIMS.items():
        mine = [one for one in found if [one.a, one.b] in claim["pairs"][:2]]
        if not mine:
            continue
        sides = [[value[key] for side in (one.a, one.b)
                  if (key := (one.data, one.metric, side)) in value] for one in mine]  # fmt: skip
        said = "; ".join(one.said(*means) for one, means in zip(mine, sides))
        text += f"{number}. **{claim['says']}.**\n   - {said}\n"
        real = [one for one in elsewhere if one.claim == number and one.metric == "mAP"
                and [one.setting, one.a, one.b] in claim["photographs"]]  # fmt: skip
        if real:
            of = f"{real[0].data.partition('/')[0]}, {real[0].queries} queries"
            text += f"   - *real photographs ({of}):* {'; '.join(one.said() for one in real)}\n"
    return text


def against_committed(name: str, fresh: dict) -> list[str]:
    """What differs from ``results/<name>.json``, for the notebooks that ran; says how much was
    compared.
    """
    if not (stated := leaderboard.committed(name)):
        said = f"{name}: no committed results; --update makes them"
        if name == USUAL:
            return [said]
        print(said)  # other runs are compared where somebody chose to keep them
        return []
    for key, about in fresh["data"].items():
        if about.get("splits") != stated["data"].get(key, {}).get("splits"):
            print(f"note: {key} is not pixel for pixel the data of the committed run")
    problems, compared = [], 0
    for part in ("measurements", "claims"):
        for stem, numbers in fresh[part].items():
            count, strayed = leaderboard.compare(numbers, stated[part].get(stem, []))
            compared, problems = compared + count, problems + [f"{stem}: {s}" for s in strayed]
    end = "" if problems else ", none strayed"
    print(f"{compared} numbers compared with the committed run{end}")
    return problems


# --- making a run the committed one ------------------------------------------------------


def commit_results(name: str, fresh: dict, notebooks: Sequence[Path]) -> None:
    """Write results/<run>.json and the outputs of notebooks; of the workshop also the README's
    table and pictures."""
    path = config.PROJECT / "results" / f"{name}.json"
    run_dir, report = config.PROJECT / "runs" / name, merged(path, fresh)
    if name == USUAL:
        pages = [page for page in map(config.PROJECT.joinpath, PAGES) if page.exists()]
        texts = [with_table(page.read_text("utf-8"), report) for page in pages]  # first: may fail
        for page, text in zip(pages, texts):
            atomic_write_text(page, text)
        for picture in run_dir.glob("*.png"):  # the README shows them
            atomic_write_bytes(profiles.NOTEBOOKS / "images" / picture.name, picture.read_bytes())
    for notebook in notebooks:
        atomic_write_text(notebook, clean_copy(run_dir / notebook.name))
    atomic_write_text(path, json.dumps(report, indent=1) + "\n")
    print(f"committed: {path.name}")


def with_table(page: str, report: dict) -> str:
    """A page's text with its generated part made anew from a report."""
    where, (start, end) = report["environment"], MARKS
    how = f"torch {where['torch']}, {where['cores']} cores ({where['device']})"
    if start not in page or end not in page:
        raise ReproduceError("a page has no place for the results", f"Add {start} and {end}.")
    body = f"{start}\n{summary(report)}\nRun with {how}, seed {where['seed']}.\n{end}"
    return page.partition(start)[0] + body + page.partition(end)[2]


def clean_copy(executed: Path) -> str:
    """An executed notebook without papermill's traces, ready to be committed."""
    nb = nbformat.read(executed, as_version=4)
    nb.cells = [c for c in nb.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for key in ("papermill", "widgets"):  # megabytes that a page without a kernel cannot use
        nb.metadata.pop(key, None)
    number = 0
    for cell in nb.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            number = cell.execution_count = number + 1
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = number
    return nbformat.writes(nb) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    config.tune_process()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="workshop", help="default: workshop")
    parser.add_argument("--notebooks", nargs="*", default=[], help="numbers, e.g. 00 01")
    parser.add_argument("--data", default="", help="another data set, or folder:PATH")
    who = "who says where to look in notebook 03: a COCO file, a detector"
    parser.add_argument("--boxes", default="", metavar="FILE|DETECTOR", help=who)
    parser.add_argument("--update", action="store_true", help="make this run the committed one")
    asked = parser.parse_args(arguments)
    try:
        boxes = asked.boxes
        if boxes.endswith(".json"):  # notebooks run elsewhere
            boxes = str(Path(boxes).expanduser().absolute())
        problems = reproduce(asked.profile, asked.notebooks, asked.update, asked.data, boxes)
    except ObjembError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what was computed is kept: the same command goes on", file=sys.stderr)
        return 130
    for problem in problems:
        print(f"strayed: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
