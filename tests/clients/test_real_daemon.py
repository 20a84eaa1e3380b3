"""Workers in shell and JavaScript, written from the contract alone, against the real daemon.

One study, both at work, and both killed with SIGKILL on the way: every trial ends complete, once.
"""

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.clients.test_javascript import packages
from tests.edges.daemon import Broker, Daemon, Wire
from tests.edges.mosquitto import binary

ROOT = Path(__file__).parents[2]
SHELL = ROOT / "clients" / "shell" / "bayesd-worker.sh"
MODULE = (ROOT / "clients" / "javascript" / "bayesd-worker.mjs").as_uri()
OBJECTIVE = "async trial => { await new Promise(r => setTimeout(r, 80)); return (trial.params.x - 0.3) ** 2 }"
TRIALS = 24

__all__ = ["packages"]


def shell_worker(port: int, folder: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "BAYESD_BROKER_PORT": str(port), "BAYESD_SPOOL": str(folder / "shell"),
                   "BAYESD_ASK_S": "2", "BAYESD_TELL_S": "2"}
    command = "sleep 0.05; echo \"$BAYESD_PARAMS\" | jq '(.x - 0.3) * (.x - 0.3)'"
    return subprocess.Popen(["sh", str(SHELL), "sh-1", "both", command], env=environment, start_new_session=True)


def node_worker(port: int, folder: Path) -> "subprocess.Popen[bytes]":
    program = (f"import {{ run }} from '{MODULE}'\n"
               f"await run({{ broker: 'mqtt://127.0.0.1:{port}', name: 'js-1', study: 'both', slots: 2, "
               f"spool: '{folder / 'js'}' }}, {OBJECTIVE})")
    return subprocess.Popen(["node", "--input-type=module", "--eval", program], start_new_session=True)


def kill(worker: "subprocess.Popen[bytes]") -> None:
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


@pytest.mark.mosquitto
@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_shell_and_javascript_complete_a_study(tmp_path: Path) -> None:
    binary("jq")
    with Broker(tmp_path) as broker, Daemon(tmp_path, broker.url) as daemon, Wire(broker.url) as wire:
        daemon.ready(wire)
        wire.create("both", budget={"trials": TRIALS}, lease={"default_s": 30})

        def complete() -> int:
            said = wire.study("both")
            return said["trials"]["complete"] if said else 0

        start = {"shell": shell_worker, "node": node_worker}
        workers = {name: begin(broker.port, tmp_path) for name, begin in start.items()}
        try:
            wire.until(lambda: complete() >= 4, "four trials are complete", 60)
            for name in start:
                kill(workers[name])
                workers[name] = start[name](broker.port, tmp_path)
            wire.until(lambda: complete() >= 10, "ten trials are complete", 60)
            daemon.kill()
            daemon.start().ready(wire)
            deadline = time.monotonic() + 120
            while any(worker.poll() is None for worker in workers.values()) and time.monotonic() < deadline:
                wire.until(lambda: True, "a moment passes")
                time.sleep(0.1)
            assert {name: worker.poll() for name, worker in workers.items()} == {"shell": 0, "node": 0}
        finally:
            for worker in workers.values():
                if worker.poll() is None:
                    kill(worker)
        events: list[dict[str, Any]] = daemon.events()
        results = Counter(event["trial"] for event in events if event["type"] == "trial.completed")
        assert results == dict.fromkeys(range(1, TRIALS + 1), 1)
        who = {event["actor"] for event in events if event["type"] == "trial.completed"}
        assert who == {"worker/sh-1", "worker/js-1"}
        for event in events:
            if event["type"] == "trial.completed":
                params = next(each["data"]["params"] for each in events
                              if each["type"] == "trial.proposed" and each["trial"] == event["trial"])
                assert event["data"]["values"]["value"] == pytest.approx((params["x"] - 0.3) ** 2)
