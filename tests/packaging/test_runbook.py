"""What deploy/README.md says to type is there: commands, with their help, and files."""

import re
from pathlib import Path

import pytest
from click import Context, Group
from click.testing import CliRunner

from bayesd.cli import bayesd
from bayesd.config import Config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "deploy" / "README.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
INLINE = [text.replace("\n", " ") for text in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", PAGE)]


def verbs() -> set[tuple[str, ...]]:
    """Each command, wherever it stands in a line, but for a version of its own such as /tmp/next/bin/bayesd."""
    found = set()
    for text in [*INLINE, *(line for block in BLOCKS for line in block.splitlines())]:
        for after in re.findall(r"(?:^|[\s/;&]|run --rm )(?:bayesd|alice) ((?:[a-z-]+ ?)+)", text):
            words, group, path = after.split(), bayesd, []
            while words and isinstance(group, Group):
                below = group.get_command(Context(group), words[0])
                if below is None:
                    break
                path.append(words.pop(0))
                group = below       # type: ignore[assignment]
            if path:
                found.add(tuple(path))
    return found


def test_every_command_that_it_names_has_help() -> None:
    named = verbs()
    assert {("log", "backup"), ("log", "restore"), ("log", "verify"), ("log", "archive"), ("log", "import"),
            ("config", "check"), ("doctor",), ("worker", "run"), ("study", "create"), ("watch",)} <= named
    for path in named:
        done = CliRunner().invoke(bayesd, [*path, "--help"])
        assert done.exit_code == 0, path


def test_every_file_of_ours_that_it_names_is_there() -> None:
    named = set(re.findall(r"(?:^|[\s`(])(deploy/[\w./@-]+[\w])", PAGE))
    assert len(named) > 8
    assert [each for each in named if not (ROOT / each).exists()] == []


@pytest.mark.parametrize("name", ["archive", "archive_events", "heads"])
def test_a_setting_that_it_names_is_one(name: str) -> None:
    assert re.search(rf"\b{name} = ", PAGE)
    assert name in Config.model_fields


def test_every_exit_code_of_the_contract_is_explained() -> None:
    rows = re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)
    assert {"65", "74", "75", "76", "78"} == set(rows)


def test_every_unit_and_drop_in_is_in_the_page() -> None:
    for path in (ROOT / "deploy" / "systemd").iterdir():
        assert path.name in PAGE, f"{path.name} is nowhere explained"
