"""The docs against the code: generated tables, links, targets and commands that exist."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from inferbus_cli.__main__ import cli

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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    context = click.Context(cli)
    for line in re.findall(r"(?:`|^|/)inferbus ([a-z][^`\n]*)", TEXTS[page], re.MULTILINE):
        name, *words = line.split()
        command = cli.get_command(context, name)
        assert command is not None, f"inferbus {line}"
        if isinstance(command, click.Group) and words:
            command = command.get_command(context, words[0]) or command
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if re.fullmatch(r"--[a-z-]+", word)} <= known, line


def test_sources_that_the_pages_name_exist() -> None:
    for page, text in TEXTS.items():
        for path in re.findall(r"`((?:libs|services|tests|proto|deploy|docs)/[\w./-]+)`", text):
            if not path.startswith("deploy/secrets"):  # made on the machine that runs the containers
                assert (ROOT / path).exists(), f"{page.name} names {path}"
