"""The docs against the code: generated tables, links, targets and commands that exist."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest
from inferbus_cli.__main__ import cli

from tests.faults.test_who_pays_rows import CASES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path: path.read_text() for path in PAGES}


def test_tables_are_what_the_code_says() -> None:
    """Write them anew: python docs/generate_tables.py"""
    run = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate_tables.py"), "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", TEXTS[page])
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^|&& )make ([a-z-]+)", TEXTS[page], re.MULTILINE)) <= targets


@cache
def options_of(command: str) -> set[str]:
    """As its own help says."""
    program = Path(sys.executable).parent / "inferbus"
    said = subprocess.run([program, command, "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z-]+", said))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    context = click.Context(cli)
    for line in re.findall(r"(?:`|^|/)inferbus ([a-z][^`\n]*)", TEXTS[page], re.MULTILINE):
        name, *words = line.split()
        command = cli.get_command(context, name)
        assert command is not None, f"inferbus {line}"
        for word in words:  # a group may lie in a group
            if isinstance(command, click.Group):
                command = command.get_command(context, word) or command
        known = {option for parameter in command.params for option in parameter.opts}
        if command.context_settings.get("ignore_unknown_options"):  # another program's
            known = options_of(name)
        assert {word for word in words if re.fullmatch(r"--[a-z-]+", word)} <= known, line


# Rows of who pays that no case of test_who_pays shows: their race cannot be won at will, or its trouble is everybody's.
WITHOUT_CASE = {
    "cancelled before the engine had it",
    "503 `bus_unavailable` at the edge",
    "its worker was lost, and a part of what it had made is not on the log any more (500 `token_gap`)",
}


def test_each_row_of_who_pays_names_tests_that_exist() -> None:
    """Or says that what it is about is not built."""
    section = TEXTS[ROOT / "docs" / "billing.md"].split("## Who pays when")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    acted = set()
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row[-1])
        cases = re.findall(r"\[(\w+)\]", row[-1])
        acted |= set(cases)
        assert cases or row[0].strip() in WITHOUT_CASE or "*not built*" in row[1], row[0]
        for path, test in named:
            assert re.search(rf"def {test}\(", (ROOT / path).read_text()), f"{path}::{test}"
    assert acted == set(CASES), "each case is in the table, and each that the table names is there"


def test_sources_that_the_pages_name_exist() -> None:
    for page, text in TEXTS.items():
        for path in re.findall(r"`((?:libs|services|tests|proto|deploy|docs)/[\w./-]+)`", text):
            if not path.startswith("deploy/secrets"):  # made on the machine that runs the containers
                assert (ROOT / path).exists(), f"{page.name} names {path}"
