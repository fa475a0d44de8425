"""A room declares what it imports: the development environment has everything, an image only what its rooms declare."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS_OF_THE_REPOSITORY = sorted(str(path.parent.relative_to(ROOT)) for path in ROOT.glob("*/*/pyproject.toml"))


# Modules of ours, and in which room they are.
OURS = {path.name: room for room in ROOMS_OF_THE_REPOSITORY for path in (ROOT / room / "src").iterdir()}


def closure(room: str) -> set[str]:
    """``room`` and all rooms of ours that it depends on."""
    needs = tomllib.loads((ROOT / room / "pyproject.toml").read_text())["project"]["dependencies"]
    ours = {f"libs/{need.removeprefix('inferbus-')}" for need in needs if need.startswith("inferbus-")}
    return {room}.union(*(closure(each) for each in ours))


def plain(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(room: str) -> set[str]:
    """Distributions that ``room`` names, those of its extras included."""
    project = tomllib.loads((ROOT / room / "pyproject.toml").read_text())["project"]
    names = [
        *project["dependencies"],
        *(name for extra in project.get("optional-dependencies", {}).values() for name in extra),
    ]
    return {plain(re.split(r"[\[<>=~! ;]", name)[0]) for name in names}


def imported(room: str) -> set[str]:
    """Top-level modules that the sources of ``room`` import, wherever they do it."""
    found: set[str] = set()
    for path in (ROOT / room / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return {name for name in found if name not in sys.stdlib_module_names}


@pytest.mark.parametrize("room", ROOMS_OF_THE_REPOSITORY)
def test_a_room_declares_what_it_imports(room: str) -> None:
    given = set().union(*(declared(each) for each in closure(room)))
    distributions = packages_distributions()
    for module in imported(room) - {"pydantic_core"}:  # pydantic itself is made of it
        if module in OURS:
            assert OURS[module] in closure(room), f"{room} imports {module} and does not declare {OURS[module]}"
            continue
        names = {plain(name) for name in distributions.get(module, [])}
        assert names & given, f"{room} imports {module} ({', '.join(sorted(names))}) and does not declare it"
