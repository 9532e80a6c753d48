"""A reproduction: notebooks run, numbers are compared, failures are named."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from tiny_queries import dataset

from objemb_lib import config
from objemb_lib.config import ReproduceError
from objemb_lib.course import profiles, reproduce
from objemb_lib.data import catalogue
from objemb_lib.data.catalogue import Splits
from objemb_lib.measure.metrics import Evaluation
from objemb_lib.measure.results import Measurement, Results, compare, read, table

ONE = Measurement(
    "a", "d/s", 8, "t", 256, "head", "gem", "whole image", "none", "mAP", 0.5, 0.4, 0.6
)
WHERE = {
    "data": "d/s",
    "trunk": "t",
    "size": 256,
    "stage": "head",
    "pooling": "gem",
    "region": "r",
    "boxes": "n",
}


def test_compare_names_what_strayed():
    assert compare([ONE], [ONE]) == []
    assert compare([replace(ONE, value=0.509)], [ONE]) == []
    (off,) = compare([replace(ONE, value=0.52)], [ONE])
    assert "a, d/s, whole image, mAP" in off and "0.5200" in off and "tolerance 0.01" in off
    assert compare([replace(ONE, value=float("nan"))], [ONE])
    (other,) = compare([replace(ONE, trunk="u")], [ONE])
    assert "trunk is u, committed is t" in other
    (gone,) = compare([], [ONE])
    (new,) = compare([ONE], [])
    assert "not in this run" in gone and "not in the committed" in new


def test_table_has_a_line_a_setting_and_a_column_a_metric():
    lines = table([ONE, replace(ONE, metric="R@1", value=0.9), replace(ONE, name="b")]).splitlines()
    assert len(lines) == 4
    assert lines[2].split(" | ")[0] == "| a" and "0.50 [0.40, 0.60] | 0.90" in lines[2]


def test_results_are_on_disk_at_once_and_replaced_by_name(tmp_path):
    def scores(value):
        groups = np.array([0, 0, 1, 1])
        return Evaluation({"mAP": np.full(4, value)}, groups, np.arange(4))

    results = Results("nb", tmp_path)
    results.add("a", scores(0.25), ["mAP"], **WHERE)
    results.add("a", scores(0.75), ["mAP"], **WHERE)
    (row,) = read(tmp_path / "results" / "nb.json")
    assert (row.value, row.low, row.high, row.queries) == (0.75, 0.75, 0.75, 4)


def test_a_damaged_results_file_is_named(tmp_path):
    (tmp_path / "x.json").write_text('[{"name": 1')
    with pytest.raises(ReproduceError, match="x.json"):
        read(tmp_path / "x.json")


def test_readme_table_is_made_from_the_committed_results():
    readme = (config.PROJECT / "README.md").read_text(encoding="utf-8")
    report = json.loads((config.PROJECT / "results" / "workshop.json").read_text())
    assert reproduce.with_table(readme, report) == readme
    assert {"torch", "device", "seed", "precision"} <= report["environment"].keys()
    assert report["data"]["mini-battles"]["splits"]["battle"]["images"] >= 800


# --- running notebooks, in a small project ------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of two notebooks and no data; returns its folder."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "profiles").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "profiles" / "workshop.yaml").write_text("data: []\nseed: 3\nnotebooks: {}\n")
    (tmp_path / "README.md").write_text("top\n<!-- results:start -->\n<!-- results:end -->\nend\n")
    _write(tmp_path, "00_first", "print(SEED)")
    measure = f"import json, pathlib\nrows = [{vars(ONE)!r}]\n"
    measure += 'to = pathlib.Path(RUN_DIR) / "results" / "01_second.json"\n'
    measure += "to.parent.mkdir(exist_ok=True)\n_ = to.write_text(json.dumps(rows))"
    _write(tmp_path, "01_second", measure)
    monkeypatch.setattr(profiles, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(profiles, "PROFILES", tmp_path / "profiles")
    monkeypatch.setattr(config, "PROJECT", tmp_path)
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _write(project, name, *cells):
    parameters = new_code_cell('RUN_DIR = ""\nSEED = 0', metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=[parameters, *map(new_code_cell, cells)])
    notebook.metadata["kernelspec"] = kernel
    nbformat.write(notebook, project / "notebooks" / f"{name}.ipynb")


def test_update_then_rerun_then_stray(project, capsys):
    assert reproduce.main([]) == 1  # nothing is committed yet
    assert "--update" in capsys.readouterr().err
    assert reproduce.main(["--update"]) == 0
    assert "0.50 [0.40, 0.60]" in (project / "README.md").read_text()
    first = nbformat.read(project / "notebooks" / "00_first.ipynb", 4)
    assert [c.source for c in first.cells] == ['RUN_DIR = ""\nSEED = 0', "print(SEED)"]
    assert first.cells[1].outputs[0].text == "3\n"
    assert "papermill" not in first.metadata
    capsys.readouterr()
    assert reproduce.main([]) == 0
    assert "1 number compared with the committed run, none strayed" in capsys.readouterr().out

    committed = project / "results" / "workshop.json"
    report = json.loads(committed.read_text())
    report["measurements"]["01_second"][0]["value"] = 0.6
    committed.write_text(json.dumps(report))
    assert reproduce.main(["--notebooks", "00"]) == 0  # the other one did not run
    shown = capsys.readouterr().out
    assert "nothing to compare in this notebook" in shown and "strayed" not in shown
    assert reproduce.main(["--notebooks", "01"]) == 1
    shown = capsys.readouterr()
    assert "a, d/s, whole image, mAP: 0.5000, committed 0.6000" in shown.err
    assert "1 number compared" in shown.out and "none strayed" not in shown.out


def test_new_tables_of_vectors_are_counted(project, capsys):
    """Also one that was damaged, and was written anew under its old name."""
    place = project / "cache" / "embeddings" / "key"
    place.mkdir(parents=True)
    (place / "damaged.safetensors").write_text("")
    (place / "kept.safetensors").write_text("")
    os.utime(place / "damaged.safetensors", (1, 1))
    code = "import pathlib\n"
    for name in ("damaged", "new"):
        code += f"_ = pathlib.Path({str(place / f'{name}.safetensors')!r}).write_text('whole')\n"
    _write(project, "01_second", code)
    reproduce.main([])
    shown = capsys.readouterr().out
    assert re.search("00_first.ipynb: .* no new tables of vectors", shown)
    assert re.search("01_second.ipynb: .* 2 new tables of vectors", shown)


def test_a_failing_cell_is_shown(project, capsys):
    _write(project, "00_first", "x = 1", "y = x / 0  # here")
    assert reproduce.main(["--notebooks", "00"]) == 1
    said = capsys.readouterr().err
    assert "00_first.ipynb" in said and "y = x / 0  # here" in said and "ZeroDivisionError" in said


def test_an_unknown_parameter_is_refused(project):
    text = "data: []\nseed: 0\nnotebooks:\n  00_first:\n    SIZZE: 3\n"
    (project / "profiles" / "workshop.yaml").write_text(text)
    with pytest.raises(ReproduceError, match="SIZZE"):
        reproduce.reproduce("workshop", ["00"])


@pytest.mark.parametrize(
    ("arguments", "named"), [(["--notebooks", "07"], "01_second"), (["--profile", "x"], "workshop")]
)
def test_an_unknown_name_lists_those_there_are(project, capsys, arguments, named):
    assert reproduce.main(arguments) == 1
    assert named in capsys.readouterr().err


def test_a_notebook_that_no_longer_measures_is_noticed(project, capsys):
    assert reproduce.main(["--notebooks", "01", "--update"]) == 0
    _write(project, "01_second", "pass")  # an earlier run's numbers must not stand in for it
    assert reproduce.main(["--notebooks", "01"]) == 1
    assert "mAP: in the committed results, not in this run" in capsys.readouterr().err


def test_an_update_writes_all_or_nothing(project, capsys):
    (project / "README.md").write_text("no marks")
    before = (project / "notebooks" / "00_first.ipynb").read_text()
    assert reproduce.main(["--notebooks", "00", "--update"]) == 1
    assert "README.md has no place" in capsys.readouterr().err
    assert not (project / "results" / "workshop.json").exists()
    assert (project / "notebooks" / "00_first.ipynb").read_text() == before


def test_a_partial_update_keeps_the_other_numbers(project):
    assert reproduce.main(["--update"]) == 0
    assert reproduce.main(["--notebooks", "00", "--update"]) == 0
    report = json.loads((project / "results" / "workshop.json").read_text())
    assert [row["value"] for row in report["measurements"]["01_second"]] == [0.5]
    assert "0.50 [0.40, 0.60]" in (project / "README.md").read_text()


def test_claims_of_a_run_are_summed_up_compared_and_kept(project, capsys):
    row = {"claim": 1, "setting": "crop", "metric": "mAP", "a": "c", "b": "d", "data": "d/s"}
    row |= {"queries": 9, "value": 0.2, "low": 0.1, "high": 0.3}
    code = f"import json, pathlib\nrows = [{row!r}]\n"
    code += 'to = pathlib.Path(RUN_DIR) / "claims" / "00_first.json"\n'
    code += "to.parent.mkdir(exist_ok=True)\n_ = to.write_text(json.dumps(rows))"
    _write(project, "00_first", code)
    assert reproduce.main(["--update"]) == 0
    assert "holds in 1 of 1 settings" in (project / "README.md").read_text()
    full = (project / "runs" / "workshop" / "results.md").read_text()
    assert (
        "| crop | d/s, 9 queries | c minus d | mAP | +0.2000 [+0.1000, +0.3000] | holds |" in full
    )
    capsys.readouterr()
    assert reproduce.main([]) == 0
    assert "2 numbers compared" in capsys.readouterr().out
    _write(project, "00_first", code.replace("0.2,", "0.26,"))
    assert reproduce.main(["--notebooks", "00"]) == 1
    assert "claim 1 crop" in capsys.readouterr().err


def test_measurements_that_are_not_shown_are_kept_out_of_the_readme_only(project):
    hidden = replace(ONE, name="hidden", shown=False)
    report = {"measurements": {"nb": [vars(ONE), vars(hidden)]}}
    assert "hidden" not in reproduce.as_text(report)
    assert "hidden" in reproduce.as_text(report, every=True)


def test_ctrl_c_stops_the_notebook_too_and_the_same_command_goes_on(project):
    """What a notebook finished is on disk; its kernel must not live on without us."""
    begun = project / "begun"
    code = f"import os, pathlib, time\nbegun = pathlib.Path({str(begun)!r})\n"
    code += "again = begun.exists()\n_ = begun.write_text(str(os.getpid()))\n"
    code += "time.sleep(0 if again else 600)"
    _write(project, "00_first", code)
    start = "import sys, pathlib\nfrom objemb_lib import config\nfrom objemb_lib.course import "
    start += "profiles, reproduce\n"
    start += f"root = pathlib.Path({str(project)!r})\nconfig.PROJECT = root\n"
    start += "profiles.NOTEBOOKS, profiles.PROFILES = root / 'notebooks', root / 'profiles'\n"
    start += "sys.exit(reproduce.main(['--notebooks', '00', '--profile', 'other']))"
    (project / "profiles" / "other.yaml").write_text("data: []\nseed: 3\n")
    command = [sys.executable, "-c", start]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        while not (begun.exists() and begun.read_text()):
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        said = running.communicate()[1]
    assert running.returncode == 130 and "the same command goes on" in said
    assert "Traceback" not in said
    assert not psutil.pid_exists(int(begun.read_text()))
    assert subprocess.run(command, capture_output=True).returncode == 0


# --- several data sets, other profiles ----------------------------------------------------


def test_every_data_set_of_a_profile_gets_a_run_of_its_own(project, monkeypatch):
    text = "data: [one, 'two:/x/my cats']\nseed: 0\nparameters: {SIZE: 8, SEED: 5}\n"
    (project / "profiles" / "many.yaml").write_text(text)
    stated = profiles.profile("many")
    assert reproduce.runs(stated) == {"many/one": "one", "many/two-my_cats": "two:/x/my cats"}
    assert reproduce.runs(stated, "three") == {"many/three": "three"}
    assert reproduce.absolute("folder:photos") == f"folder:{Path.cwd() / 'photos'}"
    assert reproduce.absolute("cub") == "cub"


def test_one_data_set_that_fails_does_not_stop_the_others(project, monkeypatch, capsys):
    (project / "profiles" / "many.yaml").write_text("data: [one, two]\nseed: 0\n")
    data = dataset([0, 0, 1, 1])
    monkeypatch.setattr(catalogue, "load_splits", lambda name: Splits(data, {"test": data}))
    cell = new_code_cell('DATA = ""\nRUN_DIR = ""\nSEED = 0', metadata={"tags": ["parameters"]})
    notebook = nbformat.read(project / "notebooks" / "00_first.ipynb", 4)
    notebook.cells = [cell, new_code_cell('assert DATA == "two", "not here"')]
    nbformat.write(notebook, project / "notebooks" / "00_first.ipynb")
    assert reproduce.main(["--profile", "many", "--notebooks", "00"]) == 1
    said = capsys.readouterr()
    assert "not here" in said.err and "many/one failed" in said.err
    report = json.loads((project / "runs" / "many" / "two" / "results.json").read_text())
    assert report["data"]["two"]["splits"]["test"]["images"] == 4


def test_shared_parameters_go_where_they_are_taken_and_data_must_be(project):
    text = "data: [one]\nseed: 0\nparameters: {SIZE: 8}\nnotebooks: {00_first: {SEED: 5}}\n"
    (project / "profiles" / "many.yaml").write_text(text)
    stated, (first, second) = profiles.profile("many"), profiles.choose([])
    assert stated.choose() == [first] and stated.choose(["01"]) == [second]
    assert stated.given(first, profiles.USUAL) == {"SEED": 5}  # it takes no SIZE
    with pytest.raises(ReproduceError, match="00_first.ipynb takes no parameter DATA"):
        stated.given(first, "one")  # or its numbers would be of other data
    cell = new_code_cell('DATA = "mini-battles"\nSIZE = 256', metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=[cell], metadata={"kernelspec": kernel}), second)
    assert stated.given(second, "one") == {"DATA": "one", "SIZE": 8}
    assert profiles.defaults(second) == {"DATA": "mini-battles", "SIZE": 256}


def test_other_runs_are_compared_only_where_somebody_kept_them(project, capsys):
    (project / "profiles" / "other.yaml").write_text("data: []\nseed: 3\n")
    other = ["--notebooks", "01", "--profile", "other"]
    assert reproduce.main(other) == 0
    assert "no committed results" in capsys.readouterr().out
    before = (project / "README.md").read_text()
    assert reproduce.main([*other, "--update"]) == 0
    assert (project / "README.md").read_text() == before  # it shows the workshop's
    report = json.loads((project / "results" / "other.json").read_text())
    report["measurements"]["01_second"][0]["value"] = 0.6
    (project / "results" / "other.json").write_text(json.dumps(report))
    assert reproduce.main(other) == 1
    assert "committed 0.6000" in capsys.readouterr().err


def test_a_profile_with_an_unknown_setting_is_named(project):
    (project / "profiles" / "odd.yaml").write_text("data: []\nseed: 0\nnotebook: {}\n")
    with pytest.raises(ReproduceError, match="odd.yaml.*notebook"):
        profiles.profile("odd")


PROFILES = sorted(path.stem for path in profiles.PROFILES.glob("*.yaml"))


@pytest.mark.parametrize("name", PROFILES)
def test_notebooks_take_what_the_profiles_give_them(name):
    stated = profiles.profile(name)
    every = {path.stem: path for path in profiles.choose([])}
    assert stated.notebooks.keys() <= every.keys()
    adapted = [every[stem] for stem in stated.notebooks if "DATA" in profiles.defaults(every[stem])]
    assert adapted
    for notebook in adapted:
        given = stated.given(notebook, stated.data[0])
        assert given["DATA"] == stated.data[0]


def test_a_forecast_counts_the_images_that_are_left(monkeypatch):
    data = dataset(np.repeat([0, 1], 50))
    monkeypatch.setattr(profiles, "estimate", lambda images, trunk, size, probe: images / 10)
    monkeypatch.setattr(profiles, "load_trunk", lambda name: name)
    monkeypatch.setattr(profiles, "WORK", {"01": profiles.Work(2, 1000, fixed=40)})
    stated = profiles.Profile("x", ["d"], 0, {"LIMIT": 20})
    found = profiles.forecast(
        stated, profiles.choose(["00", "01"]), "d", Splits(data, {"test": data})
    )
    assert (found.images, found.kept) == (40, 40_000)
    assert found.seconds == pytest.approx((40 * 2 + 40) / 10)
    monkeypatch.setattr(profiles, "free_bytes", lambda folder: 39_999)
    with pytest.raises(ReproduceError, match="has no room") as error:
        profiles.forecast(stated, profiles.choose(["01"]), "d", Splits(data, {"test": data}))
    assert "OBJEMB_CACHE" in error.value.remedy
