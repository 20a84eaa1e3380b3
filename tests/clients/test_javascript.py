"""The JavaScript worker, met over the wire only: the scenarios of all workers, and what an objective may do."""

import asyncio
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clients.fakedaemon import (
    HEAD,
    REPOSITORY,
    SCENARIOS,
    STUDY,
    Bench,
    Scenario,
    need,
    open_bench,
    open_daemon,
    until,
)

pytestmark = pytest.mark.mosquitto

FOLDER = REPOSITORY / "clients/javascript"

# The training that the scenarios expect.
SQUARE = """
    fs.appendFileSync(`${here}/starts`, `${process.pid}\\n`)
    while (!fs.existsSync(`${here}/go`)) await sleep(20, null, { signal: trial.signal })
    return trial.params.x ** 2
"""
PROGRAM = """
import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { run, NameInUse } from '%(module)s'
const here = process.env.HERE
const leaving = new AbortController()
process.once('SIGTERM', () => leaving.abort())
const times = { tick: 50, ask: 2000, tell: 500, tellMost: 1000, report: 100, leave: 10000 }
const options = {
  broker: 'mqtt://127.0.0.1:%(port)d', name: '%(name)s', study: '%(study)s', slots: %(slots)d,
  spool: %(spool)r, signal: leaving.signal, times, connect: { reconnectPeriod: 100 },
}
await run(options, async trial => { %(objective)s }).catch(error => {
  console.error(error)
  process.exit(1)
})
process.exit(0)
"""


def launch(bench: Bench, name: str, spool: str, objective: str = SQUARE, slots: int = 1) -> list[str]:
    program = PROGRAM % {
        "module": (FOLDER / "bayesd-worker.mjs").as_uri(),
        "port": bench.broker.port,
        "name": name,
        "study": STUDY,
        "slots": slots,
        "spool": spool,
        "objective": objective,
    }
    return ["node", "--input-type=module", "--eval", program]


@pytest.fixture(scope="module")
def packages() -> None:
    """The module's own dependencies beside it, as its users install them; git ignores them."""
    need("mosquitto", "node", "npm")
    quiet = ["--no-package-lock", "--no-audit", "--no-fund", "--prefer-offline"]
    with open(Path(tempfile.gettempdir()) / f"bayesd-npm-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)        # the suite runs in several processes
        if (FOLDER / "node_modules/mqtt").exists():
            return
        install = subprocess.run(["npm", "install", *quiet], cwd=FOLDER, capture_output=True, text=True, timeout=120)
    if install.returncode:
        reason = f"npm install failed: {install.stderr[-500:]}"
        if os.environ.get("BAYESD_TEST_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def bench(packages: None, tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path, launch) as bench:
        yield bench


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_over_the_wire(bench: Bench, scenario: Scenario) -> None:
    asyncio.run(scenario(bench))


def test_what_an_objective_may_end_with(bench: Bench) -> None:
    ends = [
        "return NaN",
        "return { values: { a: 1 }, cost: 2 }",
        "return 'done'",
        "throw new Error('no luck')",
        "throw Object.assign(new Error(), { class: 'oom' })",
        "return { value: 1, error: 'x'.repeat(70000) }",
    ]
    objective = "return await (Object.getPrototypeOf(async () => {}).constructor(trial.params.end))()"
    bench.launch = lambda bench, name, spool: launch(bench, name, spool, objective)

    async def scenario() -> None:
        async with open_daemon(bench.broker, [{"end": end} for end in ends]) as daemon:
            assert await bench.ended(bench.start()) == 0
            assert list((await daemon.outcomes()).values()) == [
                {"state": "fail", "class": "nonfinite"},
                {"state": "complete", "values": {"a": 1}},
                {"state": "fail", "class": "crash"},
                {"state": "fail", "class": "crash"},
                {"state": "fail", "class": "oom"},
                {"state": "fail", "class": "other"},
            ]
            assert daemon.count("tell", cost=2)
            errors = [message["error"] for _, message in daemon.heard if "error" in message and message["trial"] == 4]
            assert errors[0].startswith("Error: no luck")

    asyncio.run(scenario())


def test_a_report_may_be_answered_with_a_stop(bench: Bench) -> None:
    objective = """
        for (let step = 0; step < 200; step++) {
            trial.report(trial.params.x, step)
            await sleep(50, null, { signal: trial.signal })
        }
    """
    bench.launch = lambda bench, name, spool: launch(bench, name, spool, objective)

    async def scenario() -> None:
        async with open_daemon(bench.broker, [{"x": 3}]) as daemon:
            worker = bench.start()
            await until(lambda: daemon.count("report", value=3) > 2, "some reports", bench.log)
            daemon.pruning.add(1)
            assert await bench.ended(worker) == 0
            assert daemon.states() == {1: "pruned"}

    asyncio.run(scenario())


def test_slots_train_at_the_same_time(bench: Bench) -> None:
    bench.launch = lambda bench, name, spool: launch(bench, name, spool, slots=3)

    async def scenario() -> None:
        async with open_daemon(bench.broker, [{"x": n} for n in range(7)]) as daemon:
            killed = bench.start()
            await bench.trained(3)
            killed.kill()
            killed.wait()
            worker = bench.start()
            await bench.trained(6)
            assert sum(lease.state == "open" for lease in daemon.leases.values()) == 3
            bench.let_go()
            assert await bench.ended(worker) == 0
            assert daemon.states() == dict.fromkeys(range(1, 8), "complete")
            assert len(daemon.recorded) == 7

    asyncio.run(scenario())


def test_asks_show_the_head_of_the_log(bench: Bench) -> None:
    async def scenario() -> None:
        async with open_daemon(bench.broker, [{"x": 1}, {"x": 2}]) as daemon:
            bench.let_go()
            assert await bench.ended(bench.start()) == 0
            assert daemon.count("ask", seen=HEAD)

    asyncio.run(scenario())


def test_the_example_runs(bench: Bench) -> None:
    async def scenario() -> None:
        async with open_daemon(bench.broker, [{"x": 0.3}, {"x": 0.5}]) as daemon:
            settings = [f"BAYESD_BROKER=mqtt://127.0.0.1:{bench.broker.port}", f"XDG_STATE_HOME={bench.directory}"]
            bench.launch = lambda *_: ["env", *settings, "node", str(FOLDER / "example.mjs"), "w1", STUDY]
            assert await bench.ended(bench.start()) == 0
            assert daemon.states() == {1: "complete", 2: "complete"}
            assert daemon.count("report", step=0)

    asyncio.run(scenario())
