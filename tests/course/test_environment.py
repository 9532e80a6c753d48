"""pyproject.toml, requirements.lock and environment.yml state one environment, and this is it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parents[2]
CONDA_NAMES = {"pytorch": "torch"}  # where conda-forge's name is not PyPI's
DISTRIBUTIONS = {"PIL": "pillow", "faiss": "faiss-cpu",
                 "skimage": "scikit-image", "sklearn": "scikit-learn", "hnswlib": "chroma-hnswlib",
                 "yaml": "pyyaml"}  # fmt: skip
OF_THE_SYSTEM = {"python", "pip", "make", "setuptools"}  # environment.yml needs them, pip does not
SYSTEMS = {
    "Linux": {"sys_platform": "linux", "os_name": "posix", "platform_machine": "x86_64"},
    "macOS": {"sys_platform": "darwin", "os_name": "posix", "platform_machine": "arm64"},
    "Windows": {"sys_platform": "win32", "os_name": "nt", "platform_machine": "AMD64"},
}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def project() -> dict:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))


def by_name(lines) -> dict[str, Requirement]:
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def direct(extra: bool = True) -> dict[str, Requirement]:
    """What pyproject.toml asks for, by name; with ``extra`` what the tests need too."""
    stated = project()["project"]
    tests = stated["optional-dependencies"]["test"] if extra else []
    return by_name([*stated["dependencies"], *tests])


def optional() -> dict[str, Requirement]:
    """What pyproject.toml offers as extras that the course does without."""
    extras = project()["project"]["optional-dependencies"]
    return by_name(line for name, lines in extras.items() if name != "test" for line in lines)


def lock_lines(name: str = "requirements.lock") -> list[str]:
    return (PROJECT / name).read_text(encoding="utf-8").splitlines()


def test_environment_yml_has_the_dependencies_and_ranges_of_pyproject():
    parts = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    (pip,) = (part["pip"] for part in parts if isinstance(part, dict))
    specs = [part for part in parts if isinstance(part, str)]
    (python,) = (spec.removeprefix("python=") for spec in specs if spec.startswith("python="))
    assert python in PYTHONS and "-e ." in pip
    wanted = by_name([spec for spec in specs + pip if spec not in (f"python={python}", "-e .")])
    asked = {(CONDA_NAMES.get(name, name), str(r.specifier)) for name, r in wanted.items()
             if name not in OF_THE_SYSTEM}  # fmt: skip
    stated = {(name, str(r.specifier)) for name, r in direct().items()}
    assert not asked ^ stated, "in one of environment.yml and pyproject.toml only"


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_each_dependency_once_and_within_its_ranges(system, python):
    here = {"python_version": python, "python_full_version": f"{python}.9", **SYSTEMS[system]}
    here |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    here |= {"platform_system": system.replace("macOS", "Darwin")}
    locked: dict[str, list[str]] = {}
    for requirement in map(Requirement, lock_lines() + lock_lines("requirements-extras.lock")):
        if requirement.marker is None or requirement.marker.evaluate(here):
            (one,) = requirement.specifier
            assert one.operator == "=="
            locked.setdefault(canonicalize_name(requirement.name), []).append(one.version)
    twice = {name: versions for name, versions in locked.items() if len(versions) > 1}
    assert not twice
    offered = {n: r for n, r in optional().items() if not r.marker or r.marker.evaluate(here)}
    for name, wanted in (direct() | offered).items():
        assert name in locked, f"{name} of pyproject.toml is not in the lock: run `make lock`"
        assert wanted.specifier.contains(locked[name][0]), f"{wanted}, not {locked[name]}"


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-extras.lock"])
def test_the_lock_fits_every_index_and_a_cpu_build_of_torch(lock):
    text = "\n".join(lock_lines(lock))  # no option, no address, nothing that torch's metadata pins
    assert not re.search(r"^\s*-|://|file:|^(nvidia|cuda|triton)", text, re.M)


def imported(nodes) -> set[str]:
    """Top-level modules that some statements import."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("folder", ["objemb_lib", "data", "tests", "benchmarks"])
def test_what_is_imported_is_asked_for_and_what_is_optional_only_where_it_is_used(folder):
    """A package that another one happens to bring can leave with it."""
    course, extra = direct(extra=folder in ("tests", "benchmarks")).keys(), optional().keys()
    helpers = {path.stem for path in (PROJECT / "tests").glob("*.py")}
    files = [f for f in (PROJECT / folder).rglob("*.py") if "mini-battles" not in f.parts]
    assert files
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        ours = helpers | {path.stem for path in file.parent.glob("*.py")} | {"objemb_lib", "tomli"}
        for module in imported(ast.walk(tree)) - sys.stdlib_module_names - ours:
            name = canonicalize_name(DISTRIBUTIONS.get(module, module))
            assert name in course | extra, f"{file}: add {name} to pyproject.toml"
            at_once = module in imported(tree.body) and folder == "objemb_lib"
            assert name in course or not at_once, f"{file}: import {module} where it is used"


LOADS_WHAT_IS_SHIPPED = """
import sys
from objemb_lib import config, detect
from objemb_lib.detect.weights import load_detector, read_card, weights_root
names = sorted(path.stem for path in weights_root().glob("*.safetensors"))
assert "student" in names and all(read_card(name) for name in names)
print(load_detector("fcos").kind, detect.__file__, sep="\\n")
print(config.data_root(), config.cache_root(), sep="\\n")
"""


def test_an_installed_wheel_has_all_files_and_keeps_the_users_data_elsewhere(tmp_path):
    """Not an editable one: weights come with it, data and cache stay out of site-packages."""
    source, target = tmp_path / "source", tmp_path / "site-packages"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "node_modules")
    shutil.copytree(PROJECT / "objemb_lib", source / "objemb_lib", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "--target", str(target), str(source)], check=True)
    for file in (source / "objemb_lib").rglob("*.*"):
        assert (target / file.relative_to(source)).exists(), file
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OBJEMB_")}
    clean |= {"PYTHONPATH": str(target), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", LOADS_WHAT_IS_SHIPPED]
    ran = subprocess.run(command, env=clean, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    kind, package, *folders = ran.stdout.splitlines()
    assert kind == "fcos" and Path(package).is_relative_to(target)
    assert len(folders) == 2
    for folder in map(Path, folders):
        assert not folder.is_relative_to(target) and not folder.is_relative_to(source)


def test_the_gate_and_a_forks_first_push_run_the_two_commands():
    gate = (PROJECT / ".ci" / "run").read_text()
    assert re.findall(r"^make .+$", gate, re.M) == ["make test", "make reproduce"]
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text())
    when, jobs = workflow[True], workflow["jobs"]  # YAML 1.1 reads "on" as true
    assert {"push", "pull_request", "workflow_dispatch"} <= when.keys()
    for job in jobs.values():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert commands == ["make test", "make reproduce"]
    by_hand = {name for name, job in jobs.items() if "workflow_dispatch" in job.get("if", "")}
    assert by_hand == {"gpu"} and "gpu" in when["workflow_dispatch"]["inputs"]
    pythons = jobs["course"]["strategy"]["matrix"]["python"]
    assert set(pythons) <= set(PYTHONS) and pythons[0] == PYTHONS[0]


def test_the_lowest_versions_are_tried_every_week_on_the_oldest_python():
    file = PROJECT / ".github" / "workflows" / "lowest.yml"
    workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert "schedule" in workflow[True]
    setup, run = workflow["jobs"]["lowest"]["steps"][1:]
    assert setup["with"]["python-version"] == PYTHONS[0] and run["run"] == "make lowest"
    stated = project()["project"]
    asked = [*stated["dependencies"], *stated["optional-dependencies"]["test"]]
    bounds = {spec.operator for line in asked for spec in Requirement(line).specifier}
    assert bounds <= {">=", "=="}, "a dependency without a lower bound cannot be tried"


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_clean_removes_what_a_killed_build_leaves_and_nothing_of_the_users(tmp_path):
    shutil.copy(PROJECT / "Makefile", tmp_path)
    ours = [".cache/x", "runs/site/x", "docs/generated/x", "data/mini-battles/x",
            "data/.mini-battles-k3v_9x2a/x", "data/.mini-battles.lock",
            "data/.downloads-mini-battles/x.part", "objemb_lib/data/__pycache__/x.pyc",
            "tests/__pycache__/x.pyc", "benchmarks/__pycache__/x.pyc"]  # fmt: skip
    theirs = ["data/photos/x.jpg", "data/mini-battles-mine/x", "data/.mini-battlesmine/x",
              "data/.downloads-mine/x", "notebooks/mine.ipynb", "results/x",
              ".venv/bin/python"]  # fmt: skip
    for name in ours + theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    subprocess.run(["make", "clean", "VENV=.venv"], cwd=tmp_path, check=True)
    assert [name for name in ours if (tmp_path / name).exists()] == []
    assert [name for name in theirs if not (tmp_path / name).exists()] == []


def test_this_environment_is_the_locked_one():
    if not (Path(sys.prefix) / ".installed").exists():
        pytest.skip("not an environment that `make install` made from the lock")
    wrong = []
    for requirement in map(Requirement, lock_lines()):
        if requirement.marker is None or requirement.marker.evaluate():
            found = version(requirement.name)
            if not requirement.specifier.contains(found, prereleases=True):
                wrong.append(f"{requirement}, here {found}")
    assert not wrong, "run `make install`"
