"""What README, docs and recipe headers say can be typed, and their figures are those of the recipes."""

import re
import shlex

import broken
import pytest
import tiny
from typer.main import get_command

from hftune import cli, metrics, task

PAGES = [
    tiny.ROOT / "README.md",
    *sorted((tiny.ROOT / "docs").glob("*.md")),
    *sorted((tiny.ROOT / "recipes").rglob("*.yaml")),
]
COMMAND = re.compile(r"^(?:#   )?(hftune [a-z].*?)(?:\s{2,}#.*)?$|`(hftune [a-z][^`]*)`", re.MULTILINE)
EXACT = re.compile(r"\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]")


def commands():
    for path in PAGES:
        for whole, inline in COMMAND.findall(path.read_text(encoding="utf-8")):
            yield pytest.param(whole or inline, id=f"{path.name}: {(whole or inline)[:50]}")


@pytest.mark.parametrize("line", commands())
def test_a_command_that_is_shown_is_one(line):
    if line.count('"') % 2:  # goes on in the next line
        line += '"'
    words = [word for word in shlex.split(line)[1:] if word != "..."]
    command = get_command(cli.app)
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, line
        command, words = command.commands[words[0]], words[1:]
    if words:  # else it only names the command
        command.make_context("hftune", words)


def test_the_figures_of_the_readme_are_those_of_the_recipes():
    rows = re.findall(
        r"^\|.*`hftune \w+ recipes/([\w-]+)\.yaml`.*$", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) >= 15
    for line in PAGES[0].read_text(encoding="utf-8").splitlines():
        if found := re.match(r"\|.*`hftune \w+ recipes/([\w-]+)\.yaml`", line):
            header = re.match(r"(#.*\n)+", (tiny.ROOT / "recipes" / f"{found[1]}.yaml").read_text(encoding="utf-8"))[0]
            said = " ".join(part.lstrip("# ") for part in header.splitlines())
            assert not [figure for figure in EXACT.findall(line) if figure not in said], found[1]


def test_the_map_of_the_code_names_every_module():
    page = (tiny.ROOT / "docs/code.md").read_text(encoding="utf-8")
    modules = {path.stem for path in (tiny.ROOT / "hftune").glob("[!_]*.py")}
    assert not {name for name in modules if f"`{name}`" not in page}


def test_what_is_counted_is_as_many():
    pages = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
    cases = [case.warning for case in broken.CASES.values()]
    said = re.search(
        r"(\d+) recipes and data sets broken(?:.|\n)*?(\d+) as faults, (\d+) as warnings", pages["reliability.md"]
    )
    assert [int(number) for number in said.groups()] == [len(cases), cases.count(False), cases.count(True)]
    assert "twenty metrics" in pages["README.md"]
    assert len(metrics.names()) == 20
    assert "\n- Twelve tasks" in (tiny.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert len(task.names()) == 12
