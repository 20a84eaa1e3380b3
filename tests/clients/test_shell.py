"""The shell worker, met over the wire only: the scenarios of all workers, and what is special about a script."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clients.fakedaemon import REPOSITORY, SCENARIOS, STUDY, Bench, Scenario, need, open_bench, open_daemon, until

pytestmark = pytest.mark.mosquitto

# Bounded, because a script that is broken by a change may leave its training behind.
HOLD = """n=0; while [ ! -e "$HERE/go" ] && [ $n -lt 600 ]; do sleep 0.05; n=$((n + 1)); done"""
TRAINING = f"""echo $$ >>"$HERE/starts"; {HOLD}; echo "a line before"; echo "$BAYESD_PARAMS" | jq '.x * .x'"""


def launch(bench: Bench, name: str, spool: str, training: str = TRAINING) -> list[str]:
    settings = {
        "BAYESD_BROKER_PORT": bench.broker.port,
        "BAYESD_SPOOL": spool,
        "BAYESD_TICK_S": 0.2,
        "BAYESD_ASK_S": 2,
        "BAYESD_TELL_S": 1,
        "BAYESD_LOCK_S": 1,
    }
    script = REPOSITORY / "clients/shell/bayesd-worker.sh"
    return ["env", *(f"{key}={value}" for key, value in settings.items()), str(script), name, STUDY, training]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    need("mosquitto", "mosquitto_pub", "mosquitto_sub", "jq", "flock", "setsid", "timeout")
    with open_bench(tmp_path, launch) as bench:
        yield bench


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_over_the_wire(bench: Bench, scenario: Scenario) -> None:
    asyncio.run(scenario(bench))


def test_what_a_training_may_end_with(bench: Bench) -> None:
    lines = ["echo nan", "echo -inf", """echo '{"values": {"a": 1}, "cost": 2}'""", "echo done", "echo 1; exit 3", ":"]
    training = """eval "$(echo "$BAYESD_PARAMS" | jq -r .line)" """
    bench.launch = lambda bench, name, spool: launch(bench, name, spool, training)

    async def scenario() -> None:
        async with open_daemon(bench.broker, [{"line": line} for line in lines]) as daemon:
            assert await bench.ended(bench.start()) == 0
            assert list((await daemon.outcomes()).values()) == [
                {"state": "fail", "class": "nonfinite"},
                {"state": "fail", "class": "nonfinite"},
                {"state": "complete", "values": {"a": 1}},
                {"state": "fail", "class": "other"},
                {"state": "fail", "class": "crash"},
                {"state": "fail", "class": "other"},
            ]
            assert daemon.count("tell", cost=2)
            assert daemon.count("tell", error="exit status 3: 1")

    asyncio.run(scenario())


def test_no_process_of_a_training_outlives_its_stop_or_its_worker(bench: Bench) -> None:
    training = f"({TRAINING}) & wait; exit 1"  # a child that the command leaves to itself when it is ended
    bench.launch = lambda bench, name, spool: launch(bench, name, spool, training)

    async def scenario() -> None:
        async with open_daemon(bench.broker, [{"x": 1}, {"x": 2}]) as daemon:
            worker = bench.start()
            await bench.trained(1)
            first = processes(bench)
            await daemon.stop(1, "pruned")
            await bench.trained(2)
            await until(lambda: not first & processes(bench), "the end of what was stopped", bench.log)
            worker.kill()
            await until(lambda: not processes(bench), "the end of what lost its worker", bench.log)

    asyncio.run(scenario())


def test_two_processes_never_share_a_spool(bench: Bench) -> None:
    async def scenario() -> None:
        async with open_daemon(bench.broker, [{"x": 1}]):
            first = bench.start()
            await bench.trained(1)
            assert await bench.ended(bench.start()) == 1
            bench.let_go()
            assert await bench.ended(first) == 0

    asyncio.run(scenario())


def processes(bench: Bench) -> set[int]:
    """The processes that run this test's trainings, found by the folder in their environment."""
    mark = f"HERE={bench.directory}\0".encode()
    params = b"BAYESD_PARAMS="
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:  # it has ended, or is not ours
            continue
        if mark in environment and params in environment:
            found.add(int(folder.name))
    return found
