"""data/download.py: what a newcomer types, and what they read."""

import importlib.util
import subprocess
import sys

import pytest

from objemb_lib import settings
from objemb_lib.datasets import DATASETS
from objemb_lib.errors import DataError

SCRIPT = settings.PROJECT / "data" / "download.py"


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """``main`` of the script, with an empty data folder."""
    monkeypatch.setenv("OBJEMB_DATA", str(tmp_path))
    monkeypatch.delenv("OBJEMB_MIRROR", raising=False)
    spec = importlib.util.spec_from_file_location("data_download", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def _replace(monkeypatch, **parts):
    entry = DATASETS["mini-battles"]
    for part, value in parts.items():
        monkeypatch.setitem(entry.__dict__, part, value)


def test_help_teaches():
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    for word in ("list", "build", "verify", "pack", "OBJEMB_MIRROR", "--mirror"):
        assert word in shown.stdout


def test_list_shows_size_licence_and_state(cli, tmp_path, capsys):
    assert cli(["list"]) == 0
    shown = capsys.readouterr().out
    assert "mini-battles" in shown and "not built" in shown and "MB" in shown and "CC0" in shown
    (tmp_path / "mini-battles").mkdir()
    (tmp_path / "mini-battles" / "manifest.json").write_text("{}")
    cli(["list"])
    assert "not built" not in capsys.readouterr().out


def test_a_second_build_does_nothing(cli, tmp_path, capsys, monkeypatch):
    calls = []
    _replace(monkeypatch, build=lambda **options: calls.append(options) or tmp_path)
    (tmp_path / "mini-battles").mkdir()
    (tmp_path / "mini-battles" / "manifest.json").write_text("{}")
    assert cli(["build", "mini-battles"]) == 0 and not calls
    assert "nothing to do" in capsys.readouterr().out
    assert cli(["build", "mini-battles", "--force"]) == 0 and len(calls) == 1


def test_the_mirror_comes_from_the_option_or_the_environment(cli, tmp_path, monkeypatch):
    calls = []
    _replace(monkeypatch, build=lambda **options: calls.append(options["mirror"]) or tmp_path)
    monkeypatch.setenv("OBJEMB_MIRROR", "from-environment")
    cli(["build", "mini-battles"])
    cli(["build", "mini-battles", "--mirror", "from-option"])
    assert calls == ["from-environment", "from-option"]


@pytest.mark.parametrize(("differing", "status"), [([], 0), (["battle"], 2)])
def test_verify_says_by_its_exit_status(cli, capsys, monkeypatch, differing, status):
    _replace(monkeypatch, verify=lambda **_: differing)
    assert cli(["verify", "mini-battles"]) == status
    assert all(split in capsys.readouterr().out for split in differing)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "mini-battles"], "data/download.py build mini-battles"),
        (["pack", "mini-battles", "copy"], "data/download.py build mini-battles"),
        (["build", "no-such-set"], "mini-battles"),
    ],
)
def test_errors_are_sentences(cli, capsys, arguments, said):
    assert cli(arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error:") and said in shown and "Traceback" not in shown


def test_a_full_disk_is_a_sentence_too(cli, capsys, monkeypatch):
    def full(**_):
        raise DataError("the disk is full", "Free some space.")

    _replace(monkeypatch, build=full)
    assert cli(["build", "mini-battles"]) == 1
    assert "Free some space" in capsys.readouterr().err
