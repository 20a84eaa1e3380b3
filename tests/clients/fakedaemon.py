"""A small daemon over a real broker, and the scenarios that a worker in any language has to stand.

The daemon follows the wire contract and nothing else: it knows no study file, writes no log and suggests nothing; it
hands out a list of points. What the contract says of leases, fences, runs and receipts is here in its plainest form,
and a worker that breaks a rule is noted in `complaints`.

The scenarios get it only from `open_daemon`, so that another daemon can take its place there. A language joins with
one function that starts its worker, as `test_shell.py` does.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

Message = dict[str, Any]

STUDY = "digits-svm"
REPOSITORY = Path(__file__).parents[2]
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
STATES = {"complete", "fail", "pruned", "released"}
HEAD = "bayesd/fake\n7\n" + "A" * 43 + "=\n\n\u2014 bayesd/fake " + "A" * 91 + "=\n"  # nobody's signature
FAILURES = {"crash", "timeout", "oom", "nonfinite", "other"}


@contextlib.asynccontextmanager
async def open_daemon(broker: "Broker", points: list[Message], lease_s: float = 30) -> AsyncIterator["FakeDaemon"]:
    """The daemon under test, with one open study. Another daemon is put in here, and nowhere else."""
    daemon = FakeDaemon(points, lease_s)
    async with asyncio.TaskGroup() as group:  # a daemon that fails ends the test at once
        tasks = [group.create_task(daemon.serve(broker)), group.create_task(daemon.watch_leases())]
        try:
            yield daemon
        finally:
            for task in tasks:
                task.cancel()
    assert daemon.complaints == []


@dataclass
class Lease:
    """A trial in a worker's hands. `state` goes from open to told, released or ended."""

    trial: int
    fence: int
    worker: str
    run: str
    ask: tuple[str, str, str]
    ends_at: float
    state: str = "open"
    missed: int = 0  # beats in a row that did not list it

    @property
    def key(self) -> tuple[int, int]:
        return self.trial, self.fence


@dataclass
class FakeDaemon:
    """All state is here, so it outlives the connection as the real daemon's outlives the process."""

    points: list[Message]
    lease_s: float
    complaints: list[str] = field(default_factory=list)
    heard: list[tuple[str, Message]] = field(default_factory=list)  # (kind, message), as they came
    leases: dict[tuple[int, int], Lease] = field(default_factory=dict)  # by (trial, fence)
    recorded: list[tuple[int, int]] = field(default_factory=list)  # (trial, fence) of each result, in order
    results: dict[int, Message] = field(default_factory=dict)
    tells: dict[tuple[int, int], tuple[str, Message]] = field(default_factory=dict)  # content and first receipt
    runs: dict[str, str] = field(default_factory=dict)  # worker -> the run that has the name
    replaced: set[tuple[str, str]] = field(default_factory=set)
    pruning: set[int] = field(default_factory=set)  # trials whose reports are answered with a stop
    standing: dict[tuple[str, str, str], int] = field(default_factory=dict)  # ask -> n
    withdrawn: set[tuple[str, str, str]] = field(default_factory=set)
    seq: int = 0
    ends: int = 0  # leases that ran out
    losing: int = 0  # receipts still to lose
    copies: int = 1  # how often each message is sent
    refuse: Callable[[Message], Message | None] = lambda tell: None  # the receipt for a tell that is not recorded
    client: aiomqtt.Client | None = None
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    # --- for the tests ---

    async def outcomes(self) -> Mapping[int, Message]:
        """The result of each trial that has one: its `state`, the `class` of a failure, its value if it has one."""
        return self.results

    async def lose_receipts(self, count: int) -> None:
        """Let the next receipts for tells get lost on their way; the tells are recorded all the same."""
        self.losing = count

    async def stop(self, trial: int, reason: str) -> None:
        """Send the stop for an open lease, after ending the lease when the reason is not `pruned`."""
        async with self.one_at_a_time:
            lease = self.leases[trial, self.newest_fence(trial)]
            if reason != "pruned":
                lease.state = "ended"
            await self.send(lease.worker, "stop", {**self.names(lease), "reason": reason})
            await self.serve_standing()

    def states(self) -> dict[int, str]:
        return {trial: outcome["state"] for trial, outcome in self.results.items()}

    def count(self, kind: str, **fields: object) -> int:
        """How many messages of a kind came with these fields."""
        return sum(k == kind and fields.items() <= m.items() for k, m in self.heard)

    # --- the wire ---

    async def serve(self, broker: "Broker") -> None:
        """Serve for ever, over every loss of the connection."""
        while True:
            with contextlib.suppress(aiomqtt.MqttError):
                async with aiomqtt.Client("127.0.0.1", broker.port, identifier="fake-daemon") as self.client:
                    await self.client.subscribe("bayesd/1/from/+/+", qos=1)
                    state = {"state": "online", "version": "0", "log": "fake", "epoch": 1}
                    await self.client.publish("bayesd/1/daemon", json.dumps(state), retain=True)
                    head = {"log": "fake", "epoch": 1, "note": HEAD, "key": "bayesd/fake+00000000+AQ=="}
                    await self.client.publish("bayesd/1/head", json.dumps(head), retain=True)
                    async for message in self.client.messages:
                        _, _, _, worker, kind = message.topic.value.split("/")
                        assert isinstance(message.payload, bytes)
                        async with self.one_at_a_time:
                            await self.hear(worker, kind, message.payload)
            await asyncio.sleep(0.1)

    async def send(self, worker: str, kind: str, message: Message) -> None:
        assert self.client is not None
        with contextlib.suppress(aiomqtt.MqttError):  # lost, as any message may be
            for _ in range(self.copies):
                await self.client.publish(f"bayesd/1/to/{worker}/{kind}", json.dumps(message), qos=1)

    async def hear(self, worker: str, kind: str, payload: bytes) -> None:
        message = json.loads(payload)
        self.heard.append((kind, message))
        if not NAME.fullmatch(worker):
            self.complaints.append(f"{worker} is no name for a worker")
        match kind:
            case "beat":
                await self.hear_beat(worker, message["run"], message["leases"])
            case "ask":
                await self.hear_ask(worker, message)
            case "tell":
                await self.hear_tell(worker, message)
                if "ask" in message:
                    await self.hear_ask(worker, message["ask"])
            case "report":
                stop = {"stop": "pruned"} if message["trial"] in self.pruning else {}
                receipt = {"id": message["id"], "status": "recorded", **self.next_seq(), **stop}
                await self.send(worker, "receipt", receipt)
            case _:
                self.complaints.append(f"nothing is called {kind}")

    # --- beats: runs and leases ---

    async def hear_beat(self, worker: str, run: str, listed: list[list[Any]]) -> None:
        if (worker, run) in self.replaced:
            refusal = {"id": run, "run": run, "status": "rejected", "reason": "name-in-use"}
            await self.send(worker, "receipt", refusal)
            return
        keys = {(trial, fence) for study, trial, fence in listed if study == STUDY}
        if self.runs.get(worker) != run:
            self.begin_run(worker, run, keys)
        for key in keys:
            lease = self.leases.get(key)
            if lease and lease.worker == worker and self.may_hold(lease):
                lease.state, lease.run, lease.missed = "open", run, 0
                lease.ends_at = time.monotonic() + self.lease_s
            else:  # also for a told lease whose receipt is on its way: no worker may drop its tell for this
                superseded = {"study": STUDY, "trial": key[0], "fence": key[1], "reason": "superseded"}
                await self.send(worker, "stop", superseded)
        for lease in self.leases.values():
            if (lease.worker, lease.run, lease.state) == (worker, run, "open") and lease.key not in keys:
                lease.missed += 1
                if lease.missed >= 2:
                    lease.missed = 0
                    await self.grant(lease)
        await self.serve_standing()

    def begin_run(self, worker: str, run: str, keys: set[tuple[int, int]]) -> None:
        if worker in self.runs:
            self.replaced.add((worker, self.runs[worker]))
        self.runs[worker] = run
        for lease in self.leases.values():
            if lease.worker == worker and lease.run != run and lease.state == "open" and lease.key not in keys:
                lease.state = "ended"
        self.standing = {ask: n for ask, n in self.standing.items() if (ask[0], ask[1]) not in self.replaced}

    def may_hold(self, lease: Lease) -> bool:
        newest = lease.fence == self.newest_fence(lease.trial)
        return newest and lease.state in ("open", "ended") and lease.trial not in self.results

    async def watch_leases(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            async with self.one_at_a_time:
                for lease in self.leases.values():
                    if lease.state == "open" and lease.ends_at < time.monotonic():
                        lease.state = "ended"
                        self.ends += 1
                await self.serve_standing()

    # --- asks and grants ---

    async def hear_ask(self, worker: str, message: Message) -> None:
        run, ask_id, n = message["run"], message["id"], message.get("n", 1)
        ask = (worker, run, ask_id)
        if not ID.fullmatch(ask_id) or not ID.fullmatch(run) or len(run) > 32 or "study" not in message:
            self.complaints.append(f"not an ask for this study: {message}")
        if self.runs.get(worker) != run and (worker, run) not in self.replaced:
            self.complaints.append(f"run {run} asked before its first beat")
        if (worker, run) in self.replaced:
            await self.answer(ask, "rejected", "name-in-use")
        elif n == 0 or ask in self.withdrawn:
            self.withdrawn.add(ask)
            self.standing.pop(ask, None)
            await self.answer(ask, "closed", "withdrawn")
        else:
            for lease in self.leases.values():
                if lease.ask == ask and lease.state == "open":
                    await self.grant(lease)
            self.standing[ask] = n
            await self.serve_ask(ask, say_waiting=True)

    async def serve_standing(self) -> None:
        for ask in list(self.standing):
            await self.serve_ask(ask, say_waiting=False)

    async def serve_ask(self, ask: tuple[str, str, str], say_waiting: bool) -> None:
        """Give the rest of an ask what there is, and say so when there is nothing."""
        n = self.standing[ask]
        mine = [lease for lease in self.leases.values() if lease.ask == ask and lease.state in ("open", "told")]
        while len(mine) < n and (trial := self.free_trial()) is not None:
            lease = Lease(trial, self.newest_fence(trial) + 1, *ask[:2], ask, time.monotonic() + self.lease_s)
            self.leases[lease.key] = lease
            mine.append(lease)
            await self.grant(lease)
        if len(mine) >= n:
            del self.standing[ask]
            if all(lease.state == "told" for lease in mine):
                await self.answer(ask, "duplicate")
        elif len(self.results) == len(self.points):
            del self.standing[ask]
            await self.answer(ask, "closed", "budget")
        elif say_waiting:
            await self.answer(ask, "waiting", "budget")

    def free_trial(self) -> int | None:
        """The first trial that nobody has and that has no outcome: one handed out before goes before a new one."""
        for trial in range(1, len(self.points) + 1):
            fence = self.newest_fence(trial)
            open_lease = fence and self.leases[trial, fence].state == "open"
            if trial not in self.results and not open_lease:
                return trial
        return None

    async def grant(self, lease: Lease) -> None:
        await self.send(lease.worker, "grant", self.grant_of(lease))

    def grant_of(self, lease: Lease) -> Message:
        return {
            "ask": lease.ask[2],
            "run": lease.run,
            **self.names(lease),
            "params": self.points[lease.trial - 1],
            "lease_s": self.lease_s,
            "at": "2026-11-23T09:00:00Z",
            "epoch": 1,
            "space_rev": 1,
        }

    async def answer(self, ask: tuple[str, str, str], status: str, reason: str | None = None) -> None:
        worker, run, ask_id = ask
        receipt = {"id": ask_id, "run": run, "status": status} | ({"reason": reason} if reason else {})
        await self.send(worker, "receipt", receipt)

    # --- tells ---

    async def hear_tell(self, worker: str, message: Message) -> None:
        key = message["trial"], message["fence"]
        lease = self.leases.get(key)
        state = message.get("state", "complete")
        content = json.dumps({k: v for k, v in message.items() if k not in ("id", "ask", "seconds")}, sort_keys=True)
        if state not in STATES or message.get("class", "crash") not in FAILURES:
            self.complaints.append(f"not a tell: {message}")
        if state == "complete" and not {"value", "values", "folds"} & message.keys():
            self.complaints.append(f"a complete trial without a value: {message}")
        if not lease or lease.worker != worker or message["study"] != STUDY:
            self.complaints.append(f"a tell for a trial that {worker} was never given: {message}")
            receipt: Message = {"status": "rejected", "reason": "unknown-trial"}
        elif refusal := self.refuse(message):
            receipt = refusal
            if "retry_after_s" not in refusal:
                lease.state = "ended"  # at once, so that no test waits for it
        elif key in self.tells:
            first_content, first = self.tells[key]
            receipt = first | {"status": "duplicate" if content == first_content else "late"}
        elif lease.fence != self.newest_fence(lease.trial):
            receipt = {"status": "late"} | self.next_seq()
            self.tells[key] = content, receipt
        else:
            receipt = {"status": "recorded"} | self.next_seq()
            self.tells[key] = content, receipt
            lease.state = "released" if state == "released" else "told"
            if state != "released":
                self.recorded.append(key)
                self.results[lease.trial] = outcome(message)
        if self.losing:
            self.losing -= 1
        else:
            await self.send(worker, "receipt", {"id": message["id"], **receipt})
        await self.serve_standing()

    def next_seq(self) -> Message:
        self.seq += 1
        return {"seq": self.seq, "hash": hashlib.sha256(str(self.seq).encode()).hexdigest()}

    def newest_fence(self, trial: int) -> int:
        return max((fence for t, fence in self.leases if t == trial), default=0)

    def names(self, lease: Lease) -> Message:
        return {"study": STUDY, "trial": lease.trial, "fence": lease.fence}


def outcome(tell: Message) -> Message:
    """What a recorded tell makes of its trial: a value that is no finite number is a failure."""
    state = tell.get("state", "complete")
    if state == "fail":
        return {"state": "fail", "class": tell.get("class", "crash")}
    if state == "complete" and "value" in tell:
        value = tell["value"]
        if not isinstance(value, int | float) or not abs(value) <= 1e300:
            return {"state": "fail", "class": "nonfinite"}
    return {"state": state, **{name: tell[name] for name in ("value", "values", "folds") if name in tell}}


# --- What the tests of all languages share ---------------------------------------------------------------------------


@dataclass
class Broker:
    """A mosquitto on a free loopback port, which a test may kill and start again on the same port."""

    directory: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        config = self.directory / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
        self.process = subprocess.Popen(
            ["mosquitto", "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise RuntimeError("mosquitto does not listen")

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def running_broker(directory: Path) -> Iterator[Broker]:
    broker = Broker(directory)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


Launch = Callable[["Bench", str, str], list[str]]  # the command line for a worker of this name with this spool


@dataclass
class Bench:
    """A broker and the workers of one language. Their one training squares x, once the test has let it go.

    A training adds a line to `$HERE/starts`, and waits until `$HERE/go` exists.
    """

    directory: Path
    broker: Broker
    launch: Launch
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str = "w1", spool: str = "spool") -> subprocess.Popen[bytes]:
        with (self.directory / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                self.launch(self, name, str(self.directory / spool)),
                env={**os.environ, "HERE": str(self.directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def starts(self) -> list[str]:
        file = self.directory / "starts"
        return file.read_text().split() if file.exists() else []

    async def trained(self, count: int) -> None:
        await until(lambda: len(self.starts()) >= count, f"training {count}", self.log)

    def let_go(self) -> None:
        (self.directory / "go").touch()

    async def ended(self, worker: subprocess.Popen[bytes]) -> int:
        await until(lambda: worker.poll() is not None, "the worker to end", self.log)
        if worker.returncode:
            print(f"{worker.args!r:.80} ended with {worker.returncode}\n{self.log()}")      # shown where a test fails
        return worker.returncode

    def log(self) -> str:
        return (self.directory / "worker.log").read_text(errors="replace")[-2000:]

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


@contextlib.contextmanager
def open_bench(directory: Path, launch: Launch) -> Iterator[Bench]:
    with running_broker(directory) as broker:
        bench = Bench(directory, broker, launch)
        try:
            yield bench
        finally:
            bench.close()


# --- The scenarios ----------------------------------------------------------------------------------------------------

POINTS: list[Message] = [{"x": n / 4, "kernel": "rbf"} for n in range(5)]


async def a_study_completes(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS) as daemon:
        bench.let_go()
        assert await bench.ended(bench.start()) == 0
        values = {trial: outcome["value"] for trial, outcome in (await daemon.outcomes()).items()}
        assert values == {1: 0, 2: 0.0625, 3: 0.25, 4: 0.5625, 5: 1}


async def beats_keep_the_lease_of_a_long_training(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:1], lease_s=3) as daemon:
        worker = bench.start()
        await bench.trained(1)
        await asyncio.sleep(3.5)
        bench.let_go()
        assert await bench.ended(worker) == 0
        assert daemon.ends == 0


async def a_killed_worker_trains_its_trial_again_and_its_result_counts_once(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:2]) as daemon:
        bench.start()
        await bench.trained(1)
        bench.workers[0].kill()
        worker = bench.start()
        await bench.trained(2)
        bench.let_go()
        assert await bench.ended(worker) == 0
        assert daemon.states() == {1: "complete", 2: "complete"}
        assert sorted(daemon.recorded) == [(1, 1), (2, 1)]  # the restart cost no fence


async def a_trial_that_kills_its_worker_twice_has_failed(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:1]) as daemon:
        for number in (1, 2):
            worker = bench.start()
            await bench.trained(number)
            worker.kill()
        assert await bench.ended(bench.start()) == 0
        assert await daemon.outcomes() == {1: {"state": "fail", "class": "crash"}}
        assert len(bench.starts()) == 2


async def a_result_outlives_its_worker(bench: Bench) -> None:
    """Killed between its tell and the receipt: the next process tells it again and does not train it again."""
    async with open_daemon(bench.broker, POINTS[:1]) as daemon:
        await daemon.lose_receipts(1000)
        bench.let_go()
        worker = bench.start()
        await until(lambda: daemon.count("tell"), "the tell", bench.log)
        worker.kill()
        worker.wait()
        await daemon.lose_receipts(0)
        before = daemon.count("tell")
        assert await bench.ended(bench.start()) == 0
        assert daemon.count("tell") > before
        assert daemon.states() == {1: "complete"}
        assert len(bench.starts()) == 1


async def a_tell_is_sent_until_its_receipt_comes(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:2]) as daemon:
        await daemon.lose_receipts(1)
        bench.let_go()
        assert await bench.ended(bench.start()) == 0
        assert daemon.count("tell", trial=1) >= 2
        assert sorted(daemon.recorded) == [(1, 1), (2, 1)]


async def a_refused_tell_waits_or_is_put_aside(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:1]) as daemon:

        def refuse(tell: Message) -> Message | None:
            if tell["fence"] > 1:
                return None
            if daemon.count("tell", fence=1) == 1:
                return {"status": "rejected", "reason": "disk-full", "retry_after_s": 1}
            return {"status": "rejected", "reason": "bad-field"}

        daemon.refuse = refuse
        bench.let_go()
        assert await bench.ended(bench.start()) == 0
        assert daemon.count("tell", fence=1) >= 2
        assert daemon.recorded == [(1, 2)]
        assert len(list((bench.directory / "spool/rejected").iterdir())) == 1


async def what_comes_twice_counts_once(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS) as daemon:
        daemon.copies = 2
        bench.let_go()
        assert await bench.ended(bench.start()) == 0
        assert sorted(daemon.recorded) == [(trial, 1) for trial in range(1, 6)]
        assert len(bench.starts()) == 5


async def a_broker_that_dies_during_a_training_costs_nothing(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS) as daemon:
        worker = bench.start()
        await bench.trained(1)
        bench.broker.kill()
        bench.let_go()
        kept = bench.directory / "spool"
        await until(lambda: any('"tell":{' in f.read_text() for f in kept.glob("*.json")), "the kept tell", bench.log)
        bench.broker.start()
        assert await bench.ended(worker) == 0
        assert set(daemon.states().values()) == {"complete"}
        assert len(daemon.recorded) == len(bench.starts()) == 5


async def a_stop_ends_the_training(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:2]) as daemon:
        worker = bench.start()
        await bench.trained(1)
        await daemon.stop(1, "pruned")
        await bench.trained(2)
        await daemon.stop(2, "superseded")
        await bench.trained(3)  # the second trial with its next fence
        bench.let_go()
        assert await bench.ended(worker) == 0
        assert daemon.states() == {1: "pruned", 2: "complete"}
        assert not daemon.count("tell", trial=2, fence=1)  # nothing is owed for a lease that the daemon ended


async def a_stop_never_ends_the_sending_of_a_tell(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:1]) as daemon:
        await daemon.lose_receipts(1000)
        bench.let_go()
        worker = bench.start()
        await until(lambda: daemon.count("tell"), "the tell", bench.log)
        await daemon.send("w1", "stop", {**daemon.names(daemon.leases[1, 1]), "reason": "superseded"})
        before = daemon.count("tell")
        await until(lambda: daemon.count("tell") > before + 1, "the tell again", bench.log)
        await daemon.lose_receipts(0)
        assert await bench.ended(worker) == 0


async def a_clean_stop_gives_the_trial_back(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:1]) as daemon:
        worker = bench.start()
        await bench.trained(1)
        worker.terminate()
        assert await bench.ended(worker) == 0
        assert daemon.leases[1, 1].state == "released"
        assert list((bench.directory / "spool").glob("*.json")) == []
        bench.let_go()
        assert await bench.ended(bench.start()) == 0
        assert daemon.states() == {1: "complete"}


async def a_clean_stop_withdraws_the_ask(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:1]) as daemon:
        busy = bench.start()
        await bench.trained(1)
        idle = bench.start("w2", "spool 2")
        await until(lambda: any(worker == "w2" for worker, *_ in daemon.standing), "the ask that waits", bench.log)
        idle.terminate()
        assert await bench.ended(idle) == 0
        assert not daemon.standing
        bench.let_go()
        assert await bench.ended(busy) == 0


async def of_two_workers_with_one_name_the_older_gives_up(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:1], lease_s=3) as daemon:
        older = bench.start()
        await bench.trained(1)
        newer = bench.start(spool="spool on another machine")
        assert await bench.ended(older) == 1
        bench.let_go()
        assert await bench.ended(newer) == 0
        assert daemon.recorded == [(1, 2)]
        assert not daemon.count("tell", fence=1)


async def foreign_grants_are_ignored_and_surplus_ones_given_back(bench: Bench) -> None:
    async with open_daemon(bench.broker, POINTS[:3]) as daemon:
        worker = bench.start()
        await bench.trained(1)
        await daemon.stop(1, "pruned")
        await bench.trained(2)
        lease = daemon.leases[2, 1]
        await daemon.grant(daemon.leases[1, 1])  # a late copy of what is over
        await daemon.grant(lease)  # a copy of what it trains
        await daemon.send("w1", "grant", {**daemon.grant_of(lease), "trial": 66, "run": "another"})
        surplus = Lease(3, 1, "w1", lease.run, ("w1", lease.run, "an-older-ask"), time.monotonic() + 30)
        daemon.leases[surplus.key] = surplus
        await daemon.grant(surplus)
        await until(lambda: surplus.state == "released", "the surplus grant's release", bench.log)
        bench.let_go()
        assert await bench.ended(worker) == 0
        assert daemon.states() == {1: "pruned", 2: "complete", 3: "complete"}
        assert len(bench.starts()) == 3
        assert not daemon.count("tell", trial=66)
        assert daemon.count("tell", state="released") == daemon.count("tell", trial=3, state="released")


Scenario = Callable[[Bench], Coroutine[Any, Any, None]]
SCENARIOS: list[Scenario] = [
    a_study_completes,
    beats_keep_the_lease_of_a_long_training,
    a_killed_worker_trains_its_trial_again_and_its_result_counts_once,
    a_trial_that_kills_its_worker_twice_has_failed,
    a_result_outlives_its_worker,
    a_tell_is_sent_until_its_receipt_comes,
    a_refused_tell_waits_or_is_put_aside,
    what_comes_twice_counts_once,
    a_broker_that_dies_during_a_training_costs_nothing,
    a_stop_ends_the_training,
    a_stop_never_ends_the_sending_of_a_tell,
    a_clean_stop_gives_the_trial_back,
    a_clean_stop_withdraws_the_ask,
    of_two_workers_with_one_name_the_older_gives_up,
    foreign_grants_are_ignored_and_surplus_ones_given_back,
]


# --- Waiting and skipping --------------------------------------------------------------------------------------------


async def until(
    condition: Callable[[], object], what: str, log: Callable[[], str] = str, timeout_s: float = 20
) -> None:
    """Wait for something that another process does. The limit is for the case that it never does."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, f"waited {timeout_s} s for {what}\n{log()}"
        await asyncio.sleep(0.02)


def missing(*programs: str) -> str | None:
    """The reason to skip, or none: with BAYESD_TEST_ALL=1 nothing is skipped, so that what is missing shows."""
    absent = [program for program in programs if not shutil.which(program)]
    return f"not on the PATH: {', '.join(absent)}" if absent else None


def need(*programs: str) -> None:
    if reason := missing(*programs):
        if os.environ.get("BAYESD_TEST_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
