"""The documentation tells the truth: the real program understands every command line in it, and nothing is missing."""

import re
import shlex
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PAGES = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("**/*.md"))]
FENCE = re.compile(r"^```.*?\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """Lines of code blocks that run crkd, without comments and prompts, continued lines joined."""
    blocks = [block for page in PAGES for block in FENCE.findall(page.read_text(encoding="utf-8"))]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({line for line in lines if line.startswith("crkd ")})


@pytest.mark.parametrize("line", command_lines())
def test_a_documented_command_line_is_understood(line):
    import typer.main
    from typer.testing import CliRunner

    from crkd_cli.cli import app

    words = shlex.split(line, comments=True)[1:]
    if words[0].startswith("-"):
        assert CliRunner().invoke(app, ["--help"]).exit_code == 0
        return
    group = typer.main.get_command(app)
    command = group.commands[words[0]]    # KeyError: no such command
    if not {"--help", "-h"} & set(words):
        command.make_context(words[0], words[1:])    # parses, runs nothing; raises where an option is unknown


def test_there_are_command_lines():
    assert len(command_lines()) > 10


def test_every_command_and_method_is_documented():
    import typer.main

    from crkd_cli.cli import app
    from crkd_cli.methods import METHODS

    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    for command in typer.main.get_command(app).commands:
        assert f"crkd {command} " in readme, command
    for method in METHODS.names():
        assert method in readme, method


def test_links_to_files_of_the_project_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
