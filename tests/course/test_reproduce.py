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
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from tiny_queries import dataset

from objemb_lib import config
from objemb_lib.config import ReproduceError
from objemb_lib.course import profiles, reproduce
from objemb_lib.data import catalogue
from objemb_lib.data.catalogue import Splits

SETTING = {"data": "d/s", "trunk": "t", "size": 256, "stage": "head", "pooling": "gem",
           "region": "whole image", "boxes": "none"}  # fmt: skip
NUMBER = {"name": "crop", "queries": 2, **SETTING, "metric": "mAP", "value": 0.5, "low": 0.4,
          "high": 0.6, "tolerance": 0.01}  # fmt: skip
ROW = {"name": "crop", "setting": SETTING, "numbers": [NUMBER],
       "evaluation": {"values": {"mAP": [0, 1]}, "groups": [0, 1], "queries": [0, 1]}}  # fmt: skip
CLAIM = {"claim": 1, "setting": "", "metric": "mAP", "a": "crop", "b": "detector's box head",
         "data": "d/s", "queries": 9, "value": 0.2, "low": 0.1, "high": 0.3}  # fmt: skip


def test_readme_table_is_made_from_the_committed_results():
    report = json.loads((config.PROJECT / "results" / "workshop.json").read_text())
    for page in map(config.PROJECT.joinpath, reproduce.PAGES):
        text = page.read_text(encoding="utf-8")
        assert reproduce.with_table(text, report) == text
    assert {"torch", "device", "seed", "precision"} <= report["environment"].keys()
    assert report["data"]["mini-battles"]["splits"]["battle"]["images"] >= 800


# --- running notebooks, in a small project ------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of two notebooks and no data; returns its folder."""
    for folder in ("notebooks", "profiles", "results"):
        (tmp_path / folder).mkdir()
    _profile(tmp_path, "workshop", "data: []\nseed: 3\ncommitted: true\nnotebooks: {}\n")
    (tmp_path / "README.md").write_text("top\n<!-- results:start -->\n<!-- results:end -->\nend\n")
    _write(tmp_path, "00_first", "print(SEED)")
    _write(tmp_path, "01_second", _lines("01_second", ROW))
    monkeypatch.setattr(profiles, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(profiles, "PROFILES", tmp_path / "profiles")
    monkeypatch.setattr(config, "PROJECT", tmp_path)
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _profile(project, name, text):
    (project / "profiles" / f"{name}.yaml").write_text(text)


def _write(project, name, *cells, parameters='RUN_DIR = ""\nSEED = 0'):
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=[first, *map(new_code_cell, cells)])
    notebook.metadata["kernelspec"] = kernel
    nbformat.write(notebook, project / "notebooks" / f"{name}.ipynb")


def _lines(name, *lines):
    """Code that writes a leaderboard's file, without a library to import."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    code = f'import pathlib\nto = pathlib.Path(RUN_DIR) / "leaderboard" / "{name}.jsonl"\n'
    return code + f"to.parent.mkdir(exist_ok=True)\n_ = to.write_text({text!r})"


def _report(project, where="results/workshop.json"):
    return json.loads((project / where).read_text())


def _change(project, value, where="results/workshop.json"):
    report = _report(project, where)
    report["measurements"]["01_second"][0]["value"] = value
    (project / where).write_text(json.dumps(report))


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
    assert "1 numbers compared with the committed run, none strayed" in capsys.readouterr().out
    _change(project, 0.6)
    assert reproduce.main(["--notebooks", "00"]) == 0  # the other one did not run
    assert "0 numbers compared" in capsys.readouterr().out
    assert reproduce.main(["--notebooks", "01"]) == 1
    shown = capsys.readouterr()
    assert "name crop" in shown.err and "0.5000, committed 0.6000" in shown.err
    assert "1 numbers compared" in shown.out and "none strayed" not in shown.out


def test_a_notebook_run_alone_keeps_the_others_results(project):
    """Once, runs/<profile>/results.json then held nothing but its own."""
    assert reproduce.main(["--update"]) == 0
    assert reproduce.main(["--notebooks", "00", "--update"]) == 0
    for where in ("runs/workshop/results.json", "results/workshop.json"):
        assert _report(project, where)["measurements"] == {"00_first": [], "01_second": [NUMBER]}
    assert "0.50 [0.40, 0.60]" in (project / "README.md").read_text()


def test_times_of_an_empty_and_of_a_full_cache_are_kept_apart(project, capsys):
    """A table of vectors counts also where a damaged one is written anew under its old name."""
    place = project / "cache" / "embeddings" / "key"
    place.mkdir(parents=True)
    for name in ("damaged", "kept"):
        (place / f"{name}.safetensors").write_text("")
        os.utime(place / f"{name}.safetensors", (1, 1))
    code = f"import os, pathlib\nplace = pathlib.Path({str(place)!r})\n"
    code += "for name in ('damaged', 'new'):\n    file = place / f'{name}.safetensors'\n"
    code += (
        "    if not file.exists() or not file.read_text():\n        _ = file.write_text('whole')"
    )
    _write(project, "01_second", code)
    reproduce.main(["--update"])
    shown = capsys.readouterr().out
    assert re.search("00_first.ipynb: .* no new tables of vectors", shown)
    assert re.search("01_second.ipynb: .* 2 new tables of vectors", shown)
    report = _report(project)
    assert set(report["seconds"]) == {"01_second"}
    assert set(report["seconds_full_cache"]) == {"00_first"}
    reproduce.main(["--update"])
    report = _report(project)
    assert set(report["seconds"]) == {"01_second"}
    assert set(report["seconds_full_cache"]) == {"00_first", "01_second"}
    report["seconds"]["01_second"] = 90
    (project / "results" / "workshop.json").write_text(json.dumps(report))
    assert profiles.minutes().loc["01_second", "empty cache"] == 1.5
    reproduce.main(["--notebooks", "01"])
    assert re.search(r"minutes on \d+ cores.*\n.*\n01_second +1.5 +\d", capsys.readouterr().out)


def test_a_folder_says_where_to_look_and_notebooks_that_need_boxes_wait_for_them(
    project, tmp_path, capsys, monkeypatch
):
    """A file of boxes is found from where the notebook runs; only who asks for it gets it."""
    asks = 'RUN_DIR = ""\nSEED = 0\nDATA = ""\nBOXES = "mask_rcnn"'
    _write(project, "00_first", "print(SEED)", parameters='RUN_DIR = ""\nSEED = 0\nDATA = ""')
    _write(project, "01_second", "print(BOXES)", parameters=asks)
    own = "notebooks: {00_first: {}, 01_second: {BOXES: proposer}}\nboxed: [00_first]\n"
    _profile(project, "folder", f"data: [folder]\nseed: 3\n{own}")
    boxed = dataset([0, 0, 1, 1])
    bare = replace(boxed, boxes=(), box_labels=(), box_categories=())
    for data, more, said in ((bare, [], "proposer"), (boxed, ["--boxes", "b.json"], "b.json")):
        monkeypatch.setattr(catalogue, "load_splits", lambda _, d=data: Splits(d, {"test": d}))
        (tmp_path / "photos").mkdir(exist_ok=True)
        arguments = ["--profile", "folder", "--data", f"folder:{tmp_path / 'photos'}", *more]
        assert reproduce.main(arguments) == 0
        printed = capsys.readouterr().out
        assert ("00_first.ipynb: left out" in printed) == (data is bare)
        (place,) = (project / "runs" / "folder").iterdir()
        assert f"executed notebooks: runs/folder/{place.name}/" in printed
        cell = nbformat.read(place / "01_second.ipynb", 4).cells[-1]
        assert cell.outputs[0].text == f"{Path.cwd() / said if more else said}\n"


def test_a_failing_cell_is_shown(project, capsys):
    _write(project, "00_first", "x = 1", "y = x / 0  # here")
    assert reproduce.main(["--notebooks", "00"]) == 1
    said = capsys.readouterr().err
    assert "00_first.ipynb" in said and "y = x / 0  # here" in said and "ZeroDivisionError" in said


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(3)", "os.abort()"])
def test_a_kernel_that_dies_is_told_with_its_cell_and_the_others_go_on(
    project, monkeypatch, capsys, end
):
    """nteract/papermill#478, #476: as where memory ran out, once a traceback without a cell."""
    _profile(project, "many", "data: [one, two]\nseed: 0\n")
    data = dataset([0, 0, 1, 1])
    monkeypatch.setattr(catalogue, "load_splits", lambda name: Splits(data, {"test": data}))
    parameters = 'DATA = ""\nRUN_DIR = ""\nSEED = 0'
    _write(project, "00_first", f"import os\nDATA == 'two' or {end}", parameters=parameters)
    assert reproduce.main(["--profile", "many", "--notebooks", "00"]) == 1
    said = capsys.readouterr().err
    assert "00_first.ipynb, cell 3:" in said and end in said and "memory" in said
    assert "many/one failed" in said and "many/two" not in said
    report = _report(project, "runs/many/two/results.json")
    assert report["data"]["two"]["splits"]["test"]["images"] == 4


def test_what_hinders_a_notebook_from_starting_is_told(project, monkeypatch, capsys):
    """No kernel, a kernel whose program is gone, no place to write, no notebook."""
    with monkeypatch.context() as patch:
        patch.setattr("ipykernel.kernelspec.RESOURCES", "/nowhere", raising=False)
        gone = project / "jupyter" / "kernels" / "python3"
        gone.mkdir(parents=True)
        spec = {"argv": ["/nowhere/python"], "display_name": "gone", "language": "python"}
        (gone / "kernel.json").write_text(json.dumps(spec))
        patch.setenv("JUPYTER_PATH", str(project / "jupyter"))
        assert reproduce.main(["--notebooks", "00"]) == 1
        assert "/nowhere/python" in capsys.readouterr().err

    kernels = pytest.importorskip("jupyter_client.kernelspec")

    def absent(*_, **__):
        raise kernels.NoSuchKernel("python3")

    with monkeypatch.context() as patch:
        patch.setattr(kernels.KernelSpecManager, "get_kernel_spec", absent)
        assert reproduce.main(["--notebooks", "00"]) == 1
        assert "ipykernel install" in capsys.readouterr().err
    (project / "runs" / "workshop" / "00_first.ipynb").unlink()
    (project / "runs" / "workshop" / "00_first.ipynb").mkdir()  # a disk that cannot be written
    assert reproduce.main(["--notebooks", "00"]) == 1
    assert "00_first.ipynb could not be run" in capsys.readouterr().err
    (project / "notebooks" / "00_first.ipynb").write_text("{")
    assert reproduce.main(["--notebooks", "00"]) == 1
    assert "00_first.ipynb: its parameters" in capsys.readouterr().err


def test_a_run_without_a_place_to_write_is_told(project, capsys):
    (project / "runs").write_text("a file where a folder should be")
    assert reproduce.main(["--notebooks", "00"]) == 1
    assert "workshop cannot be made: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["{course}", "a{}b", "50%{x", "}{"])
def test_braces_in_a_path_are_no_parameters(project, monkeypatch, name):
    """nteract/papermill#392."""
    (project / "notebooks").rename(project / name)
    monkeypatch.setattr(profiles, "NOTEBOOKS", project / name)
    (notebook,) = profiles.choose(["00"])
    assert profiles.defaults(notebook) == {"RUN_DIR": "", "SEED": 0}
    reproduce.execute(notebook, project / name / "out.ipynb", {"SEED": 5})
    done = nbformat.read(project / name / "out.ipynb", 4)
    assert done.cells[-1].outputs[0].text == "5\n"


def test_relative_folders_are_the_same_in_the_notebooks(project, monkeypatch):
    """nteract/papermill#316: they were of another place there."""
    monkeypatch.chdir(project)
    for name in ("OBJEMB_DATA", "OBJEMB_CACHE", "OBJEMB_MIRROR"):
        monkeypatch.setenv(name, f"here/{name}")
    code = "import os\nprint(*(os.environ[f'OBJEMB_{x}'] for x in ('DATA', 'CACHE', 'MIRROR')))"
    _write(project, "00_first", code)
    reproduce.execute(project / "notebooks" / "00_first.ipynb", project / "out.ipynb", {})
    told = nbformat.read(project / "out.ipynb", 4).cells[-1].outputs[0].text.split()
    assert told == [str(config.data_root()), str(config.cache_root()), config.mirror()]
    assert told[0] == str(project / "here" / "OBJEMB_DATA")


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
    assert "only in the committed run" in capsys.readouterr().err


def test_an_update_writes_all_or_nothing(project, capsys):
    (project / "README.md").write_text("no marks")
    before = (project / "notebooks" / "00_first.ipynb").read_text()
    assert reproduce.main(["--notebooks", "00", "--update"]) == 1
    assert "a page has no place" in capsys.readouterr().err
    assert not (project / "results" / "workshop.json").exists()
    assert (project / "notebooks" / "00_first.ipynb").read_text() == before


def test_claims_are_said_and_compared_and_the_readme_has_a_few_rows(project, capsys):
    other = ROW | {"name": "z", "numbers": [NUMBER | {"name": "z"}]}
    appendix = CLAIM | {"setting": "stage4, FPN", "a": "e"}  # one of very many
    _write(project, "00_first", _lines("00_first", CLAIM, appendix, other))
    assert reproduce.main(["--update"]) == 0
    readme = (project / "README.md").read_text()
    assert (
        "- crop against detector's box head: +0.20 [+0.10, +0.30] mAP, holds\n" in readme
        and "e against" not in readme
    )
    assert "| crop " in readme and "| z " not in readme
    assert reproduce.main([]) == 0
    assert "4 numbers compared" in capsys.readouterr().out
    _write(project, "00_first", _lines("00_first", CLAIM | {"value": 0.26}, appendix, other))
    assert reproduce.main(["--notebooks", "00"]) == 1
    assert "a crop, b detector's box head" in capsys.readouterr().err


def test_ctrl_c_stops_the_notebook_too_and_the_same_command_goes_on(project):
    """What a notebook finished is on disk; its kernel must not live on without us."""
    begun = project / "begun"
    code = f"import os, pathlib, time\nbegun = pathlib.Path({str(begun)!r})\n"
    code += "again = begun.exists()\n_ = begun.write_text(str(os.getpid()))\n"
    code += "time.sleep(0 if again else 600)"
    _write(project, "00_first", code)
    start = "import signal, sys, pathlib\nfrom objemb_lib import config\n"
    start += "from objemb_lib.course import profiles, reproduce\n"
    # A job in the background of a shell ignores Ctrl-C, and so does all that it starts.
    start += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    start += f"root = pathlib.Path({str(project)!r})\nconfig.PROJECT = root\n"
    start += "profiles.NOTEBOOKS, profiles.PROFILES = root / 'notebooks', root / 'profiles'\n"
    start += "sys.exit(reproduce.main(['--notebooks', '00', '--profile', 'other']))"
    _profile(project, "other", "data: []\nseed: 3\n")
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


def test_every_data_set_of_a_profile_gets_a_run_of_its_own(project):
    _profile(project, "many", "data: [one, 'two:/x/my cats']\nseed: 0\n")
    stated = profiles.profile("many")
    (one, first), (two, second) = reproduce.runs(stated).items()
    assert (one, first, second) == ("many/one", "one", "two:/x/my cats")
    assert two.startswith("many/two-my_cats-")
    assert reproduce.runs(stated, "three") == {"many/three": "three"}
    ((run, found),) = reproduce.runs(stated, "folder:photos").items()
    assert run.startswith("many/folder-photos-") and found == f"folder:{Path.cwd() / 'photos'}"
    alone = replace(stated, data=["folder:photos"])
    assert reproduce.runs(alone) == {"many": f"folder:{Path.cwd() / 'photos'}"}


@pytest.mark.parametrize(
    "two",
    [("holidays/photos", "shop/photos"), ("a b", "a+b"), ("x/c", "x/C"), ("é", "è")],
)
def test_folders_of_one_name_are_run_in_two_places(two):
    """numbbo/coco#2291, tsduck/tsduck#1740: one's results overwrote the other's."""
    places = [list(reproduce.runs(profiles.profile("folder"), f"folder:/{one}")) for one in two]
    assert places[0] != places[1]
    here = list(reproduce.runs(profiles.profile("folder"), f"folder:/y/../{two[0]}"))
    assert here == places[0]  # another way to write it is no other folder


def test_shared_parameters_go_where_they_are_taken_and_data_must_be(project):
    text = "data: [one]\nseed: 0\nparameters: {SIZE: 8}\nnotebooks: {00_first: {SEED: 5}}\n"
    _profile(project, "many", text)
    _write(project, "01_second", parameters='DATA = "mini-battles"\nSIZE = 256')
    stated, (first, second) = profiles.profile("many"), profiles.choose([])
    assert profiles.choose(["01"]) == [second]
    assert stated.given(first, profiles.USUAL) == {"SEED": 5}  # it takes no SIZE
    assert stated.given(second, "one") == {"DATA": "one", "SIZE": 8}
    with pytest.raises(ReproduceError, match="00_first.ipynb takes no parameter DATA"):
        stated.given(first, "one")  # or its numbers would be of other data
    with pytest.raises(ReproduceError, match="SIZZE"):
        replace(stated, notebooks={"00_first": {"SIZZE": 3}}).given(first, "")


def test_other_runs_are_compared_and_committed_only_where_somebody_kept_them(project, capsys):
    _profile(project, "other", "data: []\nseed: 3\n")
    other = ["--notebooks", "01", "--profile", "other"]
    assert reproduce.main(other) == 0
    assert "no committed results" in capsys.readouterr().out
    before = (project / "README.md").read_text()
    assert reproduce.main([*other, "--update"]) == 0
    assert (project / "README.md").read_text() == before  # it shows the workshop's
    notebook = project / "notebooks" / "01_second.ipynb"
    assert '"outputs": []' in notebook.read_text()
    _profile(project, "appendix", "data: []\nseed: 3\ncommitted: true\nnotebooks: {A1_third: {}}\n")
    _write(project, "A1_third", "print(SEED)")
    assert reproduce.main(["--profile", "appendix", "--update"]) == 0
    assert nbformat.read(project / "notebooks" / "A1_third.ipynb", 4).cells[1].outputs
    assert '"outputs": []' in notebook.read_text()
    _change(project, 0.6, "results/other.json")
    assert reproduce.main(other) == 1
    assert "committed 0.6000" in capsys.readouterr().err


def test_a_profile_with_an_unknown_setting_is_named(project):
    _profile(project, "odd", "data: []\nseed: 0\nnotebook: {}\n")
    with pytest.raises(ReproduceError, match="odd.yaml.*notebook"):
        profiles.profile("odd")


@pytest.mark.parametrize("name", sorted(path.stem for path in profiles.PROFILES.glob("*.yaml")))
def test_notebooks_take_what_the_profiles_give_them(name):
    stated = profiles.profile(name)
    every = {path.stem: path for path in profiles.choose([])}
    assert stated.notebooks.keys() <= every.keys()
    adapted = [every[stem] for stem in stated.notebooks if "DATA" in profiles.defaults(every[stem])]
    assert adapted or not stated.data
    for notebook in adapted:
        assert stated.given(notebook, stated.data[0])["DATA"] == stated.data[0]
