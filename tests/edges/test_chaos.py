"""Kill the broker and the daemon at random instants; nothing that was acknowledged may be lost or doubled.

Real parts: a mosquitto without persistence, the daemon as a process, eight workers as processes with
the Python client. A witness on the bus notes every receipt that it sees. Afterwards the log is asked.
The counts may be changed: BAYESD_CHAOS="broker kills,daemon kills,seed".
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.edges.mosquitto import Mosquitto

from bayesd.bus import Ack, BrokerAddress, Caller, MqttBus
from bayesd.log import read_events, verify
from bayesd.replay import event_of
from bayesd.study.state import replay

HERE = Path(__file__).parent
WORKERS = 8
SPEC = {"name": "chaos", "method": "random", "lease": {"default_s": 20},
        "space": {"x": {"type": "float", "low": 0, "high": 1}, "k": {"type": "categorical", "choices": ["a", "b"]}}}


class World:
    """The processes, and what the witness saw."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.broker = Mosquitto(folder)
        self.log = folder / "log.db"
        self.receipts: list[dict[str, object]] = []
        self.epoch = 0
        """The epoch of the daemon that the witness saw online last."""
        self.daemon: subprocess.Popen[bytes] | None = None

    def start_daemon(self) -> None:
        with (self.folder / "daemon.err").open("ab") as err:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "bayesd.cli", "serve", "--broker", self.broker.url, "--log", str(self.log)],
                stderr=err)

    def kill_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()

    async def witness(self) -> None:
        def see(topic: str, payload: bytes, ack: Ack) -> None:
            ack()
            receipt = json.loads(payload)
            if topic == "bayesd/1/daemon":
                self.epoch = receipt["epoch"] if receipt["state"] == "online" else self.epoch
            elif receipt["status"] in ("recorded", "duplicate", "late"):
                self.receipts.append(receipt)

        bus = MqttBus(BrokerAddress("127.0.0.1", self.broker.port), client_id="witness",
                      filters=["bayesd/1/to/+/receipt", "bayesd/1/daemon"])
        await bus.run(see, lambda: None)

    async def request(self, verb: str, args: dict[str, object]) -> dict[str, object]:
        """Ask until there is an answer, with one id: a write is done once."""
        payload = json.dumps({"id": f"chaos-{verb}", "verb": verb, "args": args}).encode()
        while True:
            try:
                async with Caller(BrokerAddress("127.0.0.1", self.broker.port), client_id="chaos-op",
                                  filters=["bayesd/1/to/op/reply"]) as caller:
                    await caller.publish("bayesd/1/admin/op/request", payload)
                    reply: dict[str, object] = json.loads((await caller.receive(2.0)).payload)
                    assert reply["status"] in ("ok", "exists"), reply
                    return reply
            except (OSError, TimeoutError, Exception) as error:
                if isinstance(error, AssertionError):
                    raise
                await asyncio.sleep(0.2)


async def rage(world: World, broker_kills: int, daemon_kills: int) -> list[int]:
    """The kills, in random order at random instants; then peace, and every worker must end by itself."""
    world.broker.start()
    world.start_daemon()
    witness = asyncio.create_task(world.witness())
    await world.request("study.create", {"spec": SPEC})
    environment = {**os.environ, "XDG_STATE_HOME": str(world.folder / "state")}
    workers = [subprocess.Popen([sys.executable, str(HERE / "chaos_worker.py"), world.broker.url, "chaos", f"w{i}",
                                 str(world.folder)], env=environment) for i in range(WORKERS)]
    try:
        kills = ["broker"] * broker_kills + ["daemon"] * daemon_kills
        world.rng.shuffle(kills)
        killed = 0
        for victim in kills:
            # Most kills hit a daemon that serves, some one that is still starting.
            while victim == "daemon" and world.epoch <= killed and world.rng.random() < 0.98:
                await asyncio.sleep(0.1)
            await asyncio.sleep(world.rng.uniform(0.1, 1.5))
            killed += victim == "daemon"
            if victim == "broker":
                world.broker.kill()
                await asyncio.sleep(world.rng.uniform(0.0, 0.4))
                world.broker.start()
            else:
                world.kill_daemon()
                await asyncio.sleep(world.rng.uniform(0.0, 0.4))
                world.start_daemon()
        await world.request("study.close", {"study": "chaos", "running": "finish"})
        deadline = time.monotonic() + 120
        while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        return [worker.poll() if worker.poll() is not None else -99 for worker in workers]  # type: ignore[misc]  # polled
    finally:
        witness.cancel()
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        if world.daemon is not None and world.daemon.poll() is None:
            world.daemon.terminate()
            world.daemon.wait(20)
        world.broker.kill()


@pytest.mark.mosquitto
@pytest.mark.slow
def test_nothing_acknowledged_is_lost_or_doubled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker_kills, daemon_kills, seed = map(int, os.environ.get("BAYESD_CHAOS", "25,20,7").split(","))
    world = World(tmp_path, seed)
    ends = asyncio.run(rage(world, broker_kills, daemon_kills))
    assert ends == [0] * WORKERS, (tmp_path / "daemon.err").read_text()[-3000:]

    report = verify(world.log)
    assert report.damage is None
    events = {seq: event_of(body, hash) for seq, body, hash in read_events(world.log)}
    replay(list(events.values()))

    # Every receipt names exactly what the log holds.
    for receipt in world.receipts:
        seq = receipt.get("seq")
        if seq is not None:
            assert isinstance(seq, int)
            event = events[seq]
            assert event.hash.hex() == receipt["hash"]
            assert receipt["id"] == f"t.{event.study}.{event.trial}.{event.data['fence']}"

    # No (trial, fence) is told twice, and no trial has two results.
    outcomes = [event for event in events.values() if event.type in ("trial.completed", "outcome.late")]
    told = Counter((event.trial, event.data["fence"]) for event in outcomes)
    assert max(told.values()) == 1
    results = Counter(event.trial for event in outcomes if event.type == "trial.completed")
    assert max(results.values()) == 1

    # Every value that a worker returned is in the log, once.
    logged = Counter((event.trial, event.data["values"]["value"]) for event in outcomes)
    returned = [tuple(line.split()) for path in tmp_path.glob("*.values") for line in path.read_text().splitlines()]
    for number, value in returned:
        assert logged[int(number), float(value)] == 1, f"trial {number} = {value} is in the log {logged} times"
    starts = sum(event.type == "daemon.started" for event in events.values())
    with capsys.disabled():
        print(f"\nchaos: {broker_kills} broker kills, {daemon_kills} daemon kills ({starts} starts), "
              f"{len(returned)} results, {len(world.receipts)} receipts seen: 0 lost, 0 doubled")
    assert starts > 0.7 * daemon_kills
    assert len(returned) > 20 * WORKERS
