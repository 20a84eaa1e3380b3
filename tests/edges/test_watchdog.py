"""The manager hears that the daemon lives only as long as it does its work: the loop turns and commits come back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.edges.daemon import WAIT_S, Wire
from tests.edges.mosquitto import free_port
from tests.edges.test_daemon import Manager

WATCHDOG_S = 0.6

STUCK = """
import asyncio, signal, sys, time
from pathlib import Path
from bayesd import daemon
from bayesd.config import Config

async def hang(*_):
    await asyncio.Event().wait()

def ready(service, url):
    log = service.log
    def stick():
        if how == "loop":
            time.sleep(3600)
        elif how == "commit":
            log.append = hang
        elif how == "checkpoint":
            log.checkpoint = hang
            type(log).checkpoint_due = property(lambda self: True)
        elif how == "ticker":
            service._answer_overdue = hang
        print("stuck", flush=True)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stick)

how, folder, port = sys.argv[1:]
asyncio.run(daemon.serve(Config(port=int(port), log=Path(folder, "log.db")), on_ready=ready))
"""


def manager_gives_up(manager: Manager) -> bool:
    """Whether no sign of life comes for as long as the manager waits."""
    manager.socket.settimeout(WATCHDOG_S)
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        try:
            manager.socket.recv(4096)
        except TimeoutError:
            return True
    return False


@pytest.mark.parametrize("how", ["loop", "commit", "checkpoint", "ticker"])
def test_a_daemon_that_does_nothing_any_more_is_given_up(tmp_path: Path, how: str) -> None:
    port = free_port()
    manager = Manager(tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BAYESD_")} | {
        "NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    environment.pop("WATCHDOG_PID", None)
    daemon = subprocess.Popen([sys.executable, "-c", STUCK, how, str(tmp_path), str(port)], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert daemon.stdout is not None
    try:
        manager.until("READY=1")
        with Wire(f"mqtt://127.0.0.1:{port}") as wire:
            wire.until(lambda: wire.daemon is not None, "the daemon is online")
            wire.create("before")
            manager.until("WATCHDOG=1")
            manager.heard.clear()
            manager.until("WATCHDOG=1")             # again and again, while it works
            daemon.send_signal(signal.SIGUSR1)
            if how != "loop":
                assert daemon.stdout.readline() == "stuck\n"
            if how == "checkpoint":
                wire.create("between")              # is answered, and then the writer hangs
            wire.say("admin/op/request", {"id": "q", "verb": "study.pause", "args": {"study": "before"}})
            assert manager_gives_up(manager)
            assert daemon.poll() is None            # it did not end: only the manager can tell
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
        manager.socket.close()
