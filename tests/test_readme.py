"""The commands in the documentation: all are accepted by the command line, and code blocks run."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crkd_cli.methods import METHODS
from crkd_cli.runtime.run_folder import newest_checkpoint
from tests.command_server import CHECKOUT, CommandServer
from tests.newcomer import (
    Newcomer,
    add_raw_files,
    environment_of,
    make_program,
    words_of,
)

README = CHECKOUT / "README.md"
DOCS = sorted((CHECKOUT / "docs").glob("**/*.md"))
PAGES = [README, CHECKOUT / "CONTRIBUTING.md", *DOCS]
SCRIPTED = [CHECKOUT / "docs" / "start.md"]  # tests/test_recipes.py runs all their lines
FENCE = re.compile(r"^```.*?\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
# Commands that the README must contain.
PROMISED = {
    "crkd prepare-data isic2018",
    "crkd train --dataset la --labeled 4",
    "crkd evaluate checkpoint.pth",
    "crkd predict folder",
}


def command_lines(*pages: Path) -> list[str]:
    """Return the lines of code blocks that run crkd, in order, with continued lines joined.

    Lines that pass on the arguments of a script, which tests/test_recipes.py runs, are left out.
    """
    blocks = [block for page in pages for block in FENCE.findall(page.read_text(encoding="utf-8"))]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line.strip().removeprefix("$ ") for line in lines]
    commands = [line for line in commands if '"$@"' not in line]
    return [line for line in commands if re.match(r"(for .*; do )?crkd |torchrun ", line)]


def inline_commands(*pages: Path) -> list[str]:
    """Return the crkd commands with arguments that stand in sentences."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    quoted = re.findall(r"`(crkd [^`]+)`", FENCE.sub("", text))
    commands = [" ".join(part.split()) for line in quoted for part in line.split(";")]
    return [command for command in commands if len(command.split()) > 2]


@pytest.mark.parametrize("line", sorted({*command_lines(*PAGES), *inline_commands(*PAGES)}))
def test_documented_command_is_accepted(line):
    import typer.main

    from crkd_cli.cli import app

    words = words_of(line)[1:]
    if words[0].startswith("-"):
        assert CliRunner().invoke(app, ["--help"]).exit_code == 0
        return
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # KeyError: no such command
    if not {"--help", "-h"} & set(words):
        command.make_context(words[0], words[1:])  # parses only; raises for an unknown option


def test_every_command_and_method_is_documented():
    import typer.main

    from crkd_cli.cli import app

    readme = README.read_text(encoding="utf-8")
    for command in typer.main.get_command(app).commands:
        assert re.search(rf"\bcrkd {command}\b", readme), command
    for method in METHODS.names():
        assert f"`{method}`" in readme, method


def test_readme_contains_the_promised_commands():
    assert set(command_lines(README)) >= PROMISED


def test_links_point_to_existing_files_and_headings():
    for page in PAGES:
        links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        for path, _, anchor in (link.partition("#") for link in links if "://" not in link):
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {path}"
            if anchor:
                assert anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.realdata
@pytest.mark.slow
def test_every_documented_command_runs(shared_data: Path, tmp_path: Path, my_method: Path) -> None:
    program = make_program(tmp_path / "program", shared_data)
    with CommandServer(environment_of(program, tmp_path), tmp_path / "output") as server:
        newcomer = Newcomer(tmp_path / "newcomer", server)
        add_raw_files(newcomer.folder, shared_data)
        for line in command_lines(README):
            if "checkpoint.pth" in words_of(line):
                trained = newest_checkpoint(newcomer.folder / "runs")
                shutil.copy(trained, newcomer.folder / "checkpoint.pth")
            newcomer.run(line)

        # Each page has its own folder: its runs may be named like those of the README, but differ.
        for page in (page for page in DOCS if page not in SCRIPTED):
            reader = Newcomer(tmp_path / page.stem, server)
            add_raw_files(reader.folder, shared_data)
            (reader.folder / "data").symlink_to(newcomer.folder / "data")
            shutil.copy(my_method, reader.folder)
            distinct = {
                tuple(words_of(line)): line
                for line in command_lines(page)
                if not line.startswith("torchrun")  # tests/training/test_distributed.py does that
            }
            for line in distinct.values():
                reader.run(line)
