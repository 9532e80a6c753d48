"""Run the course's notebooks in order and check their numbers against the committed ones.

    python -m objemb_lib.course.reproduce                          every notebook
    python -m objemb_lib.course.reproduce --notebooks 01           one of them (several: 00 01)
    python -m objemb_lib.course.reproduce --update                 make this run the committed one
    python -m objemb_lib.course.reproduce --profile smoke          other settings, see profiles/
    python -m objemb_lib.course.reproduce --profile folder --data folder:PATH      your photographs

Executed copies, results.json and results.md go to runs/<profile>/, or, where a profile has several
data sets or --data names one, to runs/<profile>/<data>/. Exit status: 0 all ran and every number
is within its tolerance; 1 a notebook failed, or a number strayed (it is named); 130 stopped by
Ctrl-C: what was computed is kept, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from objemb_lib import config
from objemb_lib.cache import atomic_write_bytes, atomic_write_text
from objemb_lib.config import ObjembError, ReproduceError
from objemb_lib.course import profiles
from objemb_lib.data import catalogue
from objemb_lib.data.catalogue import Splits
from objemb_lib.measure import claims, results

USUAL = "workshop"  # its run is the one that the README and the committed notebooks show
PACKAGES = ("torch", "torchvision", "timm", "faiss-cpu", "numpy", "scipy", "pillow")
MARKS = "<!-- results:start -->", "<!-- results:end -->"


def run_notebook(notebook: Path, parameters: dict, run_dir: Path) -> float:
    """Execute one notebook into ``run_dir``; returns the seconds it took.

    Raises:
        ReproduceError: a cell failed, with its source and error.
    """
    output, start = run_dir / notebook.name, time.monotonic()
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters=parameters,
            cwd=str(notebook.parent),
            kernel_name="python3",
            extra_arguments=["--log-level=CRITICAL"],  # no note on TCP, nor a trace on Ctrl-C
            progress_bar=sys.stderr.isatty(),
        )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":  # Ctrl-C reached the notebook first
            raise KeyboardInterrupt from error
        raise ReproduceError(
            f"{notebook.name}, cell {error.exec_count}:\n\n{error.source}\n\n"
            f"{error.ename}: {error.evalue}",
            f"The executed copy is {output}, with the whole traceback.",
        ) from error
    return time.monotonic() - start


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


def reproduce(
    name: str, numbers: Sequence[str] = (), update: bool = False, data: str = ""
) -> list[str]:
    """Run the notebooks of a profile on each of its data sets; returns the numbers that strayed.

    Args:
        numbers: of the notebooks; default those of the profile.
        update: make the run the committed one.
        data: run on these instead, as for :func:`catalogue.load_splits`.
    Raises:
        ReproduceError: a notebook failed, or there is no such profile. DataError,
        DownloadError: no data.
    """
    stated = profiles.profile(name)
    notebooks, planned, problems = stated.choose(numbers), runs(stated, absolute(data)), []
    known = {run: ready(one) for run, one in planned.items() if one}  # all, before any starts
    for run, roles in known.items():
        print(f"{run}: {profiles.forecast(stated, notebooks, planned[run], roles)}", flush=True)
    for run, one in planned.items():
        try:
            about = {one: manifest(one, known[run])} if one else {}
            problems += run_on(one, run, stated, notebooks, about, update)
        except ReproduceError as error:
            if len(planned) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)  # a night's other data sets still run
            problems.append(f"{run} failed")
    return problems


def runs(stated: profiles.Profile, data: str = "") -> dict[str, str]:
    """Name of each run of a profile, its folder below runs/ -> its data; "" asks for none.

    >>> one = profiles.Profile("p", ["cub"], 0)
    >>> runs(one), runs(one, "folder:/home/Zoë/my cats")
    ({'p': 'cub'}, {'p/folder-my_cats': 'folder:/home/Zoë/my cats'})
    """
    if not data and len(stated.data) < 2:
        return {stated.name: "".join(stated.data)}
    return {f"{stated.name}/{folder_name(one)}": one for one in ([data] if data else stated.data)}


def folder_name(data: str) -> str:
    """A data set's name as that of a folder."""
    name, _, path = data.partition(":")
    return re.sub(r"[^\w.-]+", "_", f"{name}-{Path(path).name}" if path else name)


def absolute(data: str) -> str:
    """The same data by a path that does not depend on where we stand: notebooks run elsewhere."""
    name, colon, path = data.partition(":")
    return f"{name}:{Path(path).expanduser().absolute()}" if colon and path else data


def run_on(
    data: str,
    run: str,
    stated: profiles.Profile,
    notebooks: Sequence[Path],
    about: dict,
    update: bool,
) -> list[str]:
    """Run notebooks on one data set into ``runs/<run>/``; returns the numbers that strayed."""
    run_dir = config.PROJECT / "runs" / run
    run_dir.mkdir(parents=True, exist_ok=True)
    seconds = {nb.stem: timed(nb, stated.given(nb, data), stated.seed, run_dir) for nb in notebooks}
    fresh = gather(notebooks, run_dir)
    report = {"environment": environment(stated.seed), "data": about}
    report |= {"seconds": {k: round(s) for k, s in seconds.items()}, **plain(fresh)}
    atomic_write_text(run_dir / "results.json", json.dumps(report, indent=1))
    atomic_write_text(run_dir / "results.md", as_text(report, every=True))
    if rows_of(report, "measurements"):
        print("\n" + as_text(report))
    if update:
        commit_results(run, report, notebooks, run_dir)
        return []
    return against_committed(run, fresh, about)


def ready(data: str) -> Splits:
    """A data set that is there; the course's own is built if need be, others have terms to read."""
    if data == profiles.USUAL:
        entry = catalogue.entry(data)
        if entry.built():
            print(f"data: {data} is built already", flush=True)
        else:
            entry.build(mirror=config.mirror())
    return catalogue.load_splits(data)


def timed(notebook: Path, parameters: dict, seed: int, run_dir: Path) -> float:
    """Run a notebook and say how long it took and what it left in the cache; its seconds."""
    print(f"{notebook.name} ...", flush=True)
    before = cached_files()
    for part in ("results", "claims"):  # an earlier run's must not stand in for this one's
        written(run_dir, notebook, part).unlink(missing_ok=True)
    where = {"RUN_DIR": str(run_dir), "SEED": seed}
    seconds = run_notebook(notebook, {**where, **parameters}, run_dir)
    new = len(cached_files() - before)
    cache = counted(new, "new table of vectors", "new tables of vectors")
    print(f"{notebook.name}: {seconds:.0f} s, {cache}", flush=True)
    return seconds


def cached_files() -> set[tuple[Path, int]]:
    """Finished tables of vectors in the cache, with the time each was written."""
    tables = (config.cache_root() / "embeddings").glob("*/*[!0-9].safetensors")
    return {(table, table.stat().st_mtime_ns) for table in tables}


def counted(count: int, one: str, many: str) -> str:
    """A number with its noun.

    >>> counted(0, "table", "tables"), counted(1, "table", "tables"), counted(2, "table", "tables")
    ('no tables', '1 table', '2 tables')
    """
    return f"{count or 'no'} {one if count == 1 else many}"


def written(run_dir: Path, notebook: Path, part: str) -> Path:
    """Where a notebook of this run writes its results or its claims, if it has any."""
    return run_dir / part / f"{notebook.stem}.json"


Fresh = dict[str, dict[str, list]]  # "measurements" and "claims": notebook -> what it wrote


def gather(chosen: Sequence[Path], run_dir: Path) -> Fresh:
    """What the notebooks of a run wrote."""
    found: Fresh = {"measurements": {}, "claims": {}}
    for notebook in chosen:
        for part, folder, read in (
            ("measurements", "results", results.read),
            ("claims", "claims", claims.read),
        ):
            path = written(run_dir, notebook, folder)
            found[part][notebook.stem] = read(path) if path.is_file() else []
    return found


def plain(fresh: Fresh) -> dict:
    """The same as JSON knows it."""
    return {
        part: {stem: [vars(row) for row in rows] for stem, rows in many.items()}
        for part, many in fresh.items()
    }


def manifest(data: str, roles: Splits) -> dict:
    """What the data of a run were: what its build wrote down, or what can be seen."""
    if data in catalogue.DATASETS:
        return json.loads((catalogue.entry(data).folder() / "manifest.json").read_text())
    splits = {"train": roles.train} | roles.tests
    seen = {
        split: {"images": len(images), "fingerprint": images.fingerprint}
        for split, images in splits.items()
    }
    return {"splits": seen}


def rows_of(report: dict, part: str) -> list:
    """All measurements or claims of a report."""
    kind = {"measurements": results.Measurement, "claims": claims.Difference}[part]
    return [kind(**row) for rows in report.get(part, {}).values() for row in rows]


def as_text(report: dict, every: bool = False) -> str:
    """A report's tables in Markdown; ``every`` also what a summary leaves out."""
    rows, differences = rows_of(report, "measurements"), rows_of(report, "claims")
    text = results.table(row for row in rows if every or row.shown)
    if differences:
        text += f"\n{claims.summary(differences)}"
    return f"{text}\n{claims.table(differences)}" if differences and every else text


def against_committed(name: str, fresh: Fresh, data: dict) -> list[str]:
    """What differs from ``results/<run>.json``, for the notebooks that ran; says how many
    numbers were compared.
    """
    path = config.PROJECT / "results" / f"{name}.json"
    if not path.exists():
        said = f"{name}: no committed results; --update makes them"
        if name == USUAL:
            return [said]
        print(said)  # other runs are compared where somebody chose to keep them
        return []
    stated = json.loads(path.read_text())
    for key, manifest in data.items():
        if manifest["splits"] != stated["data"].get(key, {}).get("splits"):
            print(f"note: {key} is not pixel for pixel the data of the committed run")
    problems, compared = [], 0
    for part, compare in (("measurements", results.compare), ("claims", claims.compare)):
        for stem, rows in fresh[part].items():
            then = rows_of({part: {stem: stated.get(part, {}).get(stem, [])}}, part)
            problems += [f"{stem}: {problem}" for problem in compare(rows, then)]
            compared += len({row.key for row in rows} & {row.key for row in then})
    if compared:
        what = counted(compared, "number", "numbers")
        print(f"{what} compared with the committed run{'' if problems else ', none strayed'}")
    elif not problems:
        which = "this notebook" if len(fresh["claims"]) == 1 else "these notebooks"
        print(f"nothing to compare in {which}")
    return problems


# --- making a run the committed one ------------------------------------------------------


def commit_results(name: str, report: dict, chosen: Sequence[Path], run_dir: Path) -> None:
    """Write results/<run>.json; of the workshop also the README's table, outputs and pictures."""
    path = config.PROJECT / "results" / f"{name}.json"
    if path.exists():  # notebooks that did not run keep their numbers
        earlier = json.loads(path.read_text())
        for part in ("seconds", "measurements", "claims"):
            report[part] = dict(sorted((earlier.get(part, {}) | report[part]).items()))
    if name != USUAL:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(report, indent=1) + "\n")
        print(f"committed: results/{name}.json")
        return
    readme = config.PROJECT / "README.md"
    text = with_table(readme.read_text(encoding="utf-8"), report)  # may fail: before any write
    atomic_write_text(path, json.dumps(report, indent=1) + "\n")
    atomic_write_text(readme, text)
    for notebook in chosen:
        atomic_write_text(notebook, clean_copy(run_dir / notebook.name))
    for picture in run_dir.glob("*.png"):  # the README shows them
        atomic_write_bytes(profiles.NOTEBOOKS / "images" / picture.name, picture.read_bytes())
    print(f"committed: {path.name}, README.md and {len(chosen)} notebooks")


def with_table(readme: str, report: dict) -> str:
    """README text with its generated part made anew from a report."""
    where = report["environment"]
    note = (
        f"\n95 % confidence intervals, bootstrap over query objects. Run with torch "
        f"{where['torch']} on {where['cores']} cores ({where['device']}, {where['precision']}), "
        f"seed {where['seed']}.\n"
    )
    start, end = MARKS
    pattern = re.compile(f"{re.escape(start)}.*{re.escape(end)}", re.DOTALL)
    text, _, verdicts = as_text(report).partition("\n\n")  # fifty rows in front of all else tire
    count = text.count("\n") - 1
    body = f"{start}\n{verdicts}{note}\n<details><summary>All {count} measurements</summary>\n\n"
    body += f"{text}\n\n</details>\n{end}"
    if not pattern.search(readme):
        raise ReproduceError("README.md has no place for the results", f"Add {start} and {end}.")
    return pattern.sub(lambda _: body, readme)


def clean_copy(executed: Path) -> str:
    """An executed notebook without papermill's traces, ready to be committed."""
    nb = nbformat.read(executed, as_version=4)
    nb.cells = [c for c in nb.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    nb.metadata.pop("papermill", None)
    nb.metadata.pop("widgets", None)  # megabytes that a page without a kernel cannot use
    for cell in nb.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    number = 0
    for cell in nb.cells:
        if cell.cell_type == "code":
            number += 1
            cell.execution_count = number
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
    parser.add_argument("--update", action="store_true", help="make this run the committed one")
    asked = parser.parse_args(arguments)
    numbers = [n for part in asked.notebooks for n in part.replace(",", " ").split()]
    try:
        problems = reproduce(asked.profile, numbers, asked.update, asked.data)
    except ObjembError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what was computed is kept: the same command goes on", file=sys.stderr)
        return 130
    for problem in problems:
        print(f"strayed: {problem}", file=sys.stderr)
    if not problems:
        print(f"executed notebooks: runs/{asked.profile}/")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
