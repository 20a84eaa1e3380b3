"""What deploy/README.md says to type is there: commands, with their help, and files."""

import re
from pathlib import Path

import pytest
from click import Context, Group
from click.testing import CliRunner
from tests.edges.daemon import Daemon, Wire
from tests.edges.mosquitto import Mosquitto
from tests.edges.test_cli import Shell

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
    assert len(named) > 6
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


# --- What it promises of a daemon --------------------------------------------------------------------


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.mark.mosquitto
def test_a_restored_backup_is_served_once_what_is_lost_is_given_up(tmp_path: Path, sh: Shell) -> None:
    heads, copy = tmp_path / "heads.txt", tmp_path / "copy.db"
    with Mosquitto(tmp_path) as broker, Wire(broker.url) as wire:
        def life(*flags: str) -> Daemon:
            return Daemon(tmp_path, broker.url, "--heads", str(heads), *flags)

        with life() as daemon:
            daemon.ready(wire)
            wire.create("s1")
            sh(f"log backup {daemon.log} -o {copy}")
            wire.create("s2")
            assert daemon.stop() == 0
        said = sh(f"log restore {copy} -o {daemon.log} --move-aside --head {heads} -f json")
        assert said.json["lacks"] is not None
        with life() as daemon:
            assert daemon.wait() == 65              # as the restore has said
        with life("--accept-rollback", "the disk died") as daemon:
            daemon.ready(wire)
            assert [each["study"] for each in wire.ok("study.list")["studies"]] == ["s1"]
            assert daemon.stop() == 0
    sh(f"log verify {daemon.log}")


@pytest.mark.mosquitto
def test_a_new_key_signs_and_the_notes_of_the_old_one_stay_valid(tmp_path: Path, sh: Shell) -> None:
    with Mosquitto(tmp_path) as broker, Wire(broker.url) as wire:
        for number in range(2):
            with Daemon(tmp_path, broker.url) as daemon:
                daemon.ready(wire)
                wire.create(f"s{number}")
                assert daemon.stop() == 0
            key = Path(f"{daemon.log}.key")
            if number == 0:
                key.rename(tmp_path / "old.key")
    assert key.read_text() != (tmp_path / "old.key").read_text()
    found = sh(f"log verify {daemon.log} -f json").json
    assert len(found["keys"]) == 2
    assert found["notes"] >= 2
    assert found["signed_events"] == found["events"]
