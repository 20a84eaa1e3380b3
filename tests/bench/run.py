"""Throughput beside a floor and a peer, opening and verifying a long log, memory per trial: `make bench`.

Every figure is a ratio within this run or CPU seconds of one process, since wall time on a shared
machine says little. Nothing here is a test. `--floor E2E.PY` also runs a floor from elsewhere.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SPACE = {"lr": {"type": "float", "low": 1e-4, "high": 1.0, "scale": "log"},
         "wd": {"type": "float", "low": 0, "high": 1},
         "depth": {"type": "int", "low": 1, "high": 10}, "act": {"type": "categorical", "choices": ["relu", "gelu"]}}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def process(command: list[str], **kwargs: Any) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(command, text=True, **kwargs)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[int]:
    binary = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\npersistence false\n"
                      "max_queued_messages 100000\nmax_inflight_messages 1000\n")
    with process([binary, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
                break
            time.sleep(0.05)
        yield port


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(port: int, study: str, workers: int, seconds: float) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(HERE / "load.py"), str(port), study, str(workers), str(seconds), "1"],
                          capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def ours(port: int, folder: Path, workers: int, seconds: float) -> dict[str, Any]:
    from bayesd.bus import BrokerAddress, Caller

    async def create() -> None:
        async with Caller(BrokerAddress("127.0.0.1", port), client_id="bench",
                          filters=["bayesd/1/to/bench/reply"]) as caller:
            for _ in range(100):
                await caller.publish("bayesd/1/admin/bench/request", json.dumps(
                    {"id": "1", "verb": "study.create",
                     "args": {"spec": {"name": "d", "method": "random", "space": SPACE}}}).encode())
                with contextlib.suppress(TimeoutError):
                    await caller.receive(0.3)
                    return
            raise SystemExit("the daemon does not answer")

    log = folder / f"ours-{workers}-{time.monotonic_ns()}.db"
    code = ("import os,sys\nos.sched_setaffinity(0,{min(os.sched_getaffinity(0))})\n"
            "from bayesd.cli import main\nsys.exit(main())")
    with process([sys.executable, "-c", code, "serve", "--broker", f"mqtt://127.0.0.1:{port}", "--log", str(log),
                  "--log-level", "error"]) as daemon:
        asyncio.run(create())
        before = cpu_s(daemon.pid)
        found = load(port, "d", workers, seconds)
        # The warm-up second is in the CPU and not in the turns; count what the log has instead.
        found["daemon_cpu_s"] = cpu_s(daemon.pid) - before
    return found


def floor(port: int, folder: Path, workers: int, seconds: float) -> dict[str, Any]:
    path = folder / f"floor-{workers}-{time.monotonic_ns()}.db"
    with process([sys.executable, str(HERE / "floor.py"), str(port), str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        return load(port, "d", workers, seconds)


def optuna_rdb(folder: Path, seconds: float) -> float | None:
    """Trials a second of Optuna's RDB storage on SQLite: one process, random sampler, no objective."""
    try:
        import optuna
    except ImportError:
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db", sampler=optuna.samplers.RandomSampler(seed=0))
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        trial = study.ask()
        trial.suggest_float("lr", 1e-4, 1.0, log=True)
        trial.suggest_float("wd", 0, 1)
        trial.suggest_int("depth", 1, 10)
        trial.suggest_categorical("act", ["relu", "gelu"])
        study.tell(trial, 0.5)
        n += 1
    return n / (time.perf_counter() - began)


def throughput(args: argparse.Namespace, folder: Path) -> None:
    print("throughput with the whole contract on: a receipt and a grant for each tell, the ask inside the tell")
    print(f"{'workers':>8} {'ours/s':>8} {'floor/s':>8} {'ratio':>6} {'p50 ms':>7} {'p99 ms':>7}   "
          f"median of {args.rounds}")
    rate = 0.0
    for workers in args.workers:
        mine, base, half, most = [], [], [], []
        for _ in range(args.rounds):
            with mosquitto(folder) as port:
                base.append(floor(port, folder, workers, args.seconds)["turns_per_s"])
            with mosquitto(folder) as port:
                found = ours(port, folder, workers, args.seconds)
            mine.append(found["turns_per_s"])
            half.append(found["p50_ms"])
            most.append(found["p99_ms"])
        ratio = statistics.median(a / b for a, b in zip(mine, base, strict=True))
        middle = statistics.median
        rate = max(rate, middle(mine))
        print(f"{workers:>8} {middle(mine):>8.0f} {middle(base):>8.0f} {ratio:>6.2f} {middle(half):>7.1f} "
              f"{middle(most):>7.1f}", flush=True)
    if args.floor:
        with mosquitto(folder) as port:
            done = subprocess.run([sys.executable, args.floor, "aiomqtt_raw", str(port), str(args.seconds), "FULL",
                                   str(folder / "other.db"), "64"], capture_output=True, text=True, check=False,
                                  cwd=Path(args.floor).parent)
        print("another floor:", (done.stdout or done.stderr).strip())
    peer = optuna_rdb(folder, args.seconds)
    if peer is None:
        print("peer: Optuna is not installed here (pip install optuna), so it is left out")
    else:
        print(f"peer: Optuna RDB on SQLite {peer:.0f} trials/s; ours is {rate / peer:.0f} times that")


def make_log(path: Path, trials: int) -> int:
    """A log as a daemon writes it, made at the desk: three events a trial."""
    from bayesd.log import SqliteLog
    from bayesd.notes import Signer
    from bayesd.optimize import suggest
    from bayesd.study import admin, rules
    from bayesd.study.desk import Desk
    from bayesd_schemas.messages import Ask, Request, Tell

    async def fill() -> int:
        log = await SqliteLog.open(path)
        try:
            desk = Desk()
            desk.at(0.0, "2026-11-23T09:00:00.000000Z")
            desk.record("log.opened", {"log": "bench", "format": 1, "version": "0"})
            desk.record("daemon.started", {"epoch": 1, "version": "0", "key": Signer("bench", bytes(32)).vkey})
            admin.on_request(desk, "op", Request(id="1", verb="study.create", args={
                "spec": {"name": "d", "method": "random", "space": SPACE}}))
            for number in range(1, trials + 1):
                worker, run = f"w{number % 64}", f"r{number % 64}"
                ask = Ask(id=f"{run}.{number}", run=run, study="d")
                desk.at(number * 0.01, "2026-11-23T09:00:00.000000Z")
                rules.on_ask(desk, worker, ask)
                for order in rules.orders(desk):
                    rules.supply(desk, order, suggest(order.problem, order.wanted))
                rules.on_tell(desk, worker, Tell(id=f"t.{number}", study="d", trial=number, fence=1,
                                                 value=number / 7, seconds=12.5))
                if number % 500 == 0:
                    await log.append(desk.take_rows())
                    desk.committed(desk.state.seq)
            await log.append(desk.take_rows())
            return desk.state.seq
        finally:
            await log.close()

    return asyncio.run(fill())


OPEN = """
import asyncio, sys, time
from bayesd.log import SqliteLog
from bayesd.replay import fold
async def main():
    log = await SqliteLog.open(sys.argv[1])
    try:
        state, folded = await fold(log)
    finally:
        await log.close()
    return folded
began = time.process_time()
folded = asyncio.run(main())
print(folded, time.process_time() - began)
"""


def opening(args: argparse.Namespace, folder: Path) -> None:
    print("\nopening a log: chain verified, every event folded, no snapshot")
    print(f"{'events':>10} {'CPU s':>7} {'events/s':>10} {'file MB':>8}")
    for trials in args.trials:
        path = folder / f"open-{trials}.db"
        make_log(path, trials)
        done = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=True)
        folded, seconds = done.stdout.split()
        print(f"{int(folded):>10,} {float(seconds):>7.2f} {int(folded) / float(seconds):>10,.0f} "
              f"{path.stat().st_size / 1e6:>8.0f}", flush=True)


VERIFY = """
import sys, time
from pathlib import Path
import bayesd.service
from bayesd import logfile
from bayesd.cli import offline
path = Path(sys.argv[1])
for level in (logfile.verify, offline.examine):
    began = time.process_time()
    found = level(path)
    assert found.damage is None, found.damage
    print(time.process_time() - began)
"""


def verifying(args: argparse.Namespace, folder: Path) -> None:
    print("\nverifying offline, one pass: L0 is chain, Merkle tree and a signed note every 1,000 events; with L1 every "
          "event is folded, its bytes held against the canonical form, the states against those on record")
    print(f"{'events':>10} {'L0 CPU s':>9} {'events/s':>10} {'L0+L1 CPU s':>12} {'events/s':>10}")
    for trials in args.trials:
        path = folder / f"open-{trials}.db"
        if not path.exists():
            make_log(path, trials)
        events = sign(path)
        done = subprocess.run([sys.executable, "-c", VERIFY, str(path)], capture_output=True, text=True, check=True)
        zero, one = map(float, done.stdout.split())
        print(f"{events:>10,} {zero:>9.2f} {events / zero:>10,.0f} {one:>12.2f} {events / one:>10,.0f}", flush=True)


def sign(path: Path) -> int:
    """A note every 1,000 events, as a daemon leaves them."""
    from bayesd.notes import Signer
    from bayesd.study.merkle import Tree

    signer, tree = Signer("bench", bytes(32)), Tree()
    with contextlib.closing(sqlite3.connect(path)) as db:
        notes = []
        for (leaf,) in db.execute("SELECT hash FROM event ORDER BY seq"):
            tree.append(leaf)
            if tree.size % 1000 == 0:
                notes.append((tree.size, signer.sign(tree.size, tree.root()).encode()))
        db.executemany("INSERT OR REPLACE INTO checkpoint VALUES (?, ?)", notes)
        db.commit()
    return tree.size


def memory(args: argparse.Namespace, folder: Path) -> None:
    from bayesd.log import read_events
    from bayesd.replay import event_of
    from bayesd.study.fold import apply
    from bayesd.study.state import State

    path = folder / f"open-{args.trials[0]}.db"
    if not path.exists():
        make_log(path, args.trials[0])
    tracemalloc.start()
    state = State()
    for _, body, hash in read_events(path):
        apply(state, event_of(body, hash))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    trials = len(state.studies["d"].trials)
    print(f"\nmemory: {used / trials:,.0f} bytes for each of {trials:,} finished trials of 4 parameters")


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=numbers, default=[8, 64, 256])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=numbers, default=[33_333, 333_333],
                        help="trials of the logs to open; three events each")
    parser.add_argument("--floor", help="path of another minimal loop to run once")
    parser.add_argument("--only", choices=["throughput", "opening", "verifying", "memory"])
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="bayesd-bench-") as name:
        for part in (throughput, opening, verifying, memory):
            if args.only in (None, part.__name__):
                part(args, Path(name))


if __name__ == "__main__":
    main()
