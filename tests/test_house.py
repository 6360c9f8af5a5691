"""The layout that `CONTRIBUTING.md` promises: rooms in order, imports one way, files that can be read in one go."""

from __future__ import annotations

import ast
import re
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LONGEST = 320  # lines of a file
MOST = 20  # entries of `common`


def module_name(path: Path) -> str:
    """`common.cam.base` of `common/cam/base.py`, `common.cam` of `common/cam/__init__.py`."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((REPOSITORY / "common").rglob("*.py"))}


def imports(name: str) -> set[str]:
    """Full names of all that a module of `common` imports, wherever in it; a module where that is one."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {part if (part := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return found


def room(name: str) -> str:
    """`common.cam` of `common.cam.base`."""
    return ".".join(name.split(".")[:2])


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a ring, none if imports run one way."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def tracked(*endings: str) -> list[Path]:
    """Files of the repository with these endings, without the result files in the bundles' docs."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [REPOSITORY / name for name in listed.stdout.split("\0") if name.endswith(endings)]
    return [file for file in files if file.is_file() and not (file.parent.name == "docs" and file.suffix == ".json")]


def test_no_module_of_common_imports_itself_by_way_of_others():
    assert cycle({name: imports(name) & MODULES.keys() for name in MODULES}) == []


def test_imports_between_rooms_run_one_way():
    graph: dict[str, set[str]] = {room(name): set() for name in MODULES}
    for name in MODULES:
        graph[room(name)] |= {room(found) for found in imports(name) & MODULES.keys()} - {room(name)}
    assert cycle(graph) == []


def test_common_imports_neither_bundles_nor_benchmarks_nor_tests():
    outside = {"bundles", "benchmarks", "scripts", "tests"}
    assert [(name, found) for name in MODULES for found in imports(name) if found.split(".")[0] in outside] == []


@pytest.mark.parametrize("name", ["files", "tensors", "metrics"])
def test_what_all_rooms_stand_on_imports_none_of_them(name):
    own = [found for module in MODULES if room(module) == f"common.{name}" for found in imports(module)]
    assert {room(found) for found in own if found.startswith("common")} <= {f"common.{name}"}


def test_commands_are_imported_by_no_other_room():
    users = {room(name) for name in MODULES if any(room(found) == "common.commands" for found in imports(name))}
    assert users <= {"common.commands", "common.__main__"}


def test_common_has_the_length_of_a_table_of_contents():
    entries = {path.name for path in (REPOSITORY / "common").iterdir()} - {"__pycache__", "__init__.py"}
    assert len(entries) <= MOST, sorted(entries)


def test_docstrings_have_one_markup():
    roles = re.compile(r"(?<!`)`{2}(?!`)|:(?:func|class|meth|mod|data):`")
    assert [path.name for path in tracked(".py") if roles.search(path.read_text()) and path != Path(__file__)] == []


def test_no_file_is_too_long_to_read():
    lines = {str(file.relative_to(REPOSITORY)): file.read_text().count("\n") for file in tracked(".py", ".json", ".md")}
    assert len(lines) > 200
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


def test_what_a_killed_write_left_is_taken_for_no_file():
    # `atomic_path` writes to a hidden name, which `Path.glob("*.json")` finds: only `[!.]*` leaves it out.
    sources = [path for room in ("common", "benchmarks", "bundles") for path in (REPOSITORY / room).rglob("*.py")]
    found = {
        path.name: re.findall(r"""glob\(f?["']\*[^"'/]*\.[^"'/]+["']\)""", path.read_text("utf-8")) for path in sources
    }
    assert not {name: hits for name, hits in found.items() if hits}
