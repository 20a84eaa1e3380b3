"""Thousands of worlds live in a process of their own beside the rest of the suite; their test comes last and waits."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest

WORLDS = 5_000
LAST = "test_every_world_keeps_the_rules_and_comes_to_rest"
_beside: list[tuple["subprocess.Popen[bytes]", IO[bytes]]] = []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.name == LAST)      # stable: nothing else moves


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly and any(item.name == LAST for item in session.items):
        said = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the session ends
        _beside.append((subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run.py")), "--worlds", str(WORLDS)],
            stdout=said, stderr=said, env=os.environ | {"OMP_NUM_THREADS": "1"}), said))


def pytest_sessionfinish() -> None:
    for process, said in _beside:
        process.kill()
        process.wait()
        said.close()
    _beside.clear()


@pytest.fixture
def worlds() -> tuple[int, str]:
    """The exit status of the worlds, and what they said."""
    process, said = _beside[0]
    status = process.wait()
    said.seek(0)
    return status, said.read().decode()
