"""A daemon that archives its log by itself, and goes on when it cannot."""

import asyncio
import logging
from pathlib import Path

import pytest
from tests.edges.daemon import serving
from tests.edges.test_cli import Shell
from tests.edges.test_segments import live

from bayesd import segments
from bayesd.archiver import Archiver
from bayesd.log import LockedOut
from bayesd.logfile import verify


def ranges(folder: Path) -> list[tuple[int, int]]:
    headers = [segments.header_of(path) for path in sorted(folder.glob(f"*{segments.SUFFIX}"))]
    return [(each.first, each.last) for each in headers if each is not None]


@pytest.mark.mosquitto
def test_a_start_archives_what_has_come_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = live(tmp_path / "log.db", 10, log_notes=False)
    events = verify(log).events
    folder = tmp_path / "archive"
    with serving(tmp_path, "--archive", str(folder), "--archive-events", "10") as (daemon, wire):
        wire.until(lambda: "are archived in" in daemon.said(), "whole segments are written")
        assert wire.ok("study.list")["studies"]
        assert daemon.stop() == 0
    assert ranges(folder) == [(first, first + 9) for first in range(1, events - 9, 10)]
    Shell(capsys)(f"log verify {' '.join(map(str, folder.glob('*.gz')))} {log}")


@pytest.mark.mosquitto
def test_an_archive_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    live(tmp_path / "log.db", 10, log_notes=False)
    with serving(tmp_path, "--archive", str(tmp_path / "nowhere" / "archive"), "--archive-events", "10") as both:
        daemon, wire = both
        wire.until(lambda: "is its disk mounted?" in daemon.said(), "it says why")
        wire.create("s1")
        assert daemon.stop() == 0
    assert not (tmp_path / "nowhere").exists()


def test_it_follows_the_log_and_tries_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = live(tmp_path / "log.db", 3, log_notes=False)
    folder = tmp_path / "mount" / "archive"
    report = verify(log)
    assert report.log is not None

    async def follow(id: str) -> None:
        committed = 9

        def head() -> int:
            return committed

        async def until(last: int) -> None:
            while segments.last_in(folder, id) != last:
                await asyncio.sleep(0.01)

        running = asyncio.create_task(Archiver(log, folder, 5, look_s=0.01, retry_s=0.01).run(id, head))
        while "is its disk mounted?" not in caplog.text:
            await asyncio.sleep(0.01)
        folder.parent.mkdir()
        await until(report.events // 5 * 5)
        await asyncio.to_thread(live, log, 4, log_notes=False)
        committed = verify(log).events
        await until(committed // 5 * 5)
        running.cancel()
        await asyncio.wait({running})

    with caplog.at_level(logging.INFO, "bayesd"):
        asyncio.run(asyncio.wait_for(follow(report.log), 60))
    assert ranges(folder) == [(first, first + 4) for first in range(1, verify(log).events - 4, 5)]


def test_two_at_one_folder_do_not_mix(tmp_path: Path) -> None:
    log = live(tmp_path / "log.db", 3, log_notes=False)
    folder = tmp_path / "archive"
    folder.mkdir()
    with segments._alone_in(folder), pytest.raises(LockedOut):
        segments.archive(log, folder)
