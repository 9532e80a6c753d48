"""data/download.py: what a newcomer types, and what they read."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from objemb_lib import config
from objemb_lib.data import mini_battles
from objemb_lib.data.catalogue import COURSE, DATASETS, Entry

if TYPE_CHECKING:
    from tiny_battles import Tiny

pytest_plugins = ("tiny_battles",)
SCRIPT = config.PROJECT / "data" / "download.py"
NAME = mini_battles.NAME
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    """``cli("build", NAME)`` -> exit status, what was printed, errors; never a traceback."""
    monkeypatch.setenv("OBJEMB_DATA", str(tmp_path / "data"))
    spec = importlib.util.spec_from_file_location("data_download", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = module.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return status, shown.out, shown.err

    return run


def test_help_teaches() -> None:
    """In a process of its own, as typed: the script must find the library by itself."""
    command = [sys.executable, SCRIPT, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.anchor)
    assert shown.returncode == 0
    words = ("list", "build", "verify", "pack", "--source DIR", "--force", "--mirror",
             "--accept-licence", "--retry-dead", "OBJEMB_MIRROR", "OBJEMB_DATA")  # fmt: skip
    for word in words:
        assert word in shown.stdout
    assert f"python data/download.py build {COURSE}" in shown.stdout
    for name in DATASETS:
        assert name in shown.stdout


def test_list_shows_size_licence_and_state(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    status, shown, _ = cli("list")
    assert status == 0 and str(tmp_path / "data") in shown
    (row,) = [line for line in shown.splitlines() if line.startswith(NAME)]
    assert "not built" in row and "MB" in row and "GPL" in row and "CC-BY" in row
    cli("build", NAME, "--source", tiny.source)
    _, shown, _ = cli("list")
    (row,) = [line for line in shown.splitlines() if line.startswith(NAME)]
    assert "not built" not in row and "built" in row


def test_terms_are_accepted_first(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def build(self: Entry, **options: object) -> Path:
        asked.append(options)
        return tmp_path / "there"

    monkeypatch.setattr(Entry, "build", build)
    status, _, errors = cli("build", "cub")
    assert status == 1 and "non-commercial research" in errors and "--accept-licence" in errors
    assert asked == []
    status, shown, _ = cli("build", "cub", "--accept-licence", "--source", tmp_path)
    assert status == 0 and str(tmp_path / "there") in shown
    assert asked == [{"source": tmp_path, "mirror": None}]
    assert cli("build", "ps-battles", "--accept-licence", "--retry-dead")[0] == 0
    assert asked[1] == {"source": None, "mirror": None, "retry_dead": True}
    status, _, errors = cli("build", "cub", "--accept-licence", "--retry-dead")
    assert status == 1 and "no links" in errors and len(asked) == 2


def test_a_second_build_does_nothing(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    status, shown, _ = cli("build", NAME, "--source", tiny.source)
    assert status == 0 and str(tmp_path / "data" / NAME) in shown
    manifest = tmp_path / "data" / NAME / "manifest.json"
    before = manifest.stat().st_mtime_ns
    status, shown, _ = cli("build", NAME)  # without --source: nothing is asked for again
    assert status == 0 and "nothing to do" in shown and "--force" in shown
    assert manifest.stat().st_mtime_ns == before
    assert cli("build", NAME, "--force", "--source", tiny.source)[0] == 0
    assert manifest.stat().st_mtime_ns > before


def test_verify_says_by_its_exit_status(cli: Cli, tiny_root: Path, tiny_reference: Path) -> None:
    status, shown, _ = cli("verify", NAME)
    assert status == 0 and "as in the reference build" in shown
    reference = json.loads(tiny_reference.read_text())
    reference["splits"]["clean"]["sha256"] = "of another image library"
    tiny_reference.write_text(json.dumps(reference))
    status, shown, _ = cli("verify", NAME)
    assert status == 2 and "intact, but clean differ" in shown
    (tiny_root / NAME / "battle" / "00001.jpg").unlink()
    status, _, errors = cli("verify", NAME)
    assert status == 1 and "00001.jpg" in errors and f"build {NAME} --force" in errors


def test_pack_serves_a_classroom(cli: Cli, tiny_root: Path, tmp_path: Path, monkeypatch) -> None:
    status, shown, _ = cli("pack", NAME, tmp_path / "copy")
    assert status == 0 and str(tmp_path / "copy" / f"{NAME}.tar") in shown
    monkeypatch.setenv("OBJEMB_DATA", str(tmp_path / "new"))
    monkeypatch.setenv("OBJEMB_MIRROR", str(tmp_path / "gone"))
    status, _, errors = cli("build", NAME)
    assert status == 1 and str(tmp_path / "gone") in errors
    assert cli("build", NAME, "--mirror", tmp_path / "copy")[0] == 0  # the option wins
    built = [root / NAME / "manifest.json" for root in (tiny_root, tmp_path / "new")]
    assert built[0].read_bytes() == built[1].read_bytes()


def test_pack_refuses_damaged_data(cli: Cli, tiny_root: Path, tmp_path: Path) -> None:
    (tiny_root / NAME / "train" / "00002.jpg").write_bytes(b"")
    status, _, errors = cli("pack", NAME, tmp_path / "copy")
    assert status == 1 and "00002.jpg" in errors and not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "no-such-set"], f"There are: {NAME}"),
        (["verify", NAME], f"data/download.py build {NAME}"),
        (["pack", NAME, "copy"], f"data/download.py build {NAME}"),
        (["build", NAME, "--mirror", "no-such-folder"], "no-such-folder is not a folder"),
        (["build", NAME, "--source", "no-such-folder"], "no-such-folder is not a folder"),
        (["verify", "cub"], "data/download.py build cub"),
        (["pack", "cub", "copy"], "into the mirror's folder"),
        (["build", NAME], "--source"),  # no route: no package, no network
    ],
)
def test_errors_are_sentences(cli: Cli, tmp_path: Path, arguments: list[str], says: str) -> None:
    status, _, errors = cli(*arguments)
    assert status == 1 and "error: " in errors
    assert says in errors and "What to do: " in errors
    assert not (tmp_path / "data" / NAME).exists()


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [(OSError(28, "No space left"), 1, "Free some space"), (KeyboardInterrupt(), 130, "untouched")],
)
def test_a_full_disk_or_ctrl_c_keeps_the_old_data(
    cli: Cli, tiny: Tiny, tiny_root: Path, tiny_reference, monkeypatch, error, code: int, says: str
) -> None:
    def fails(*args: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(mini_battles, "_compose_all", fails)
        status, _, errors = cli("build", NAME, "--force", "--source", tiny.source)
    assert status == code and says in errors
    assert cli("verify", NAME)[0] == 0
