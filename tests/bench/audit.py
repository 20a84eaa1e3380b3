"""Are the suggestions of a whole log found again, on the engine that made them and on others?

    python tests/bench/audit.py [--suggestions 5000] [--jobs 2] [--keep FOLDER]

The real service, on virtual time, serves many small studies of mixed kinds one after another: every method and both
models, mixed, conditional and constrained spaces, one to eight workers, some of which ask ahead, failures, two
objectives, points by hand, trials taken back, spaces that change, suggestions too slow for their deadline. Its log is
then audited with `bayesd log audit`: by a process like the one that wrote it, for which everything must be equal to
the last bit, and by processes under other kernels of OpenBLAS, other thread counts, and a numpy and a C library that
may not use what a newer processor can. What a process really loaded is in its report; a setting that did not take
effect ends the program. Ends with 1 when anything diverged.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

from tests.bench.determinism import CONSTRAINTS, LOADED, SPACES, Configuration, objective  # noqa: E402  # the path first

from bayesd import __version__  # noqa: E402
from bayesd.fingerprint import fingerprint  # noqa: E402
from bayesd.log import MemoryDisk, SqliteLog  # noqa: E402
from bayesd.optimize import suggest  # noqa: E402
from bayesd.study.problem import Problem, Suggestion  # noqa: E402
from bayesd.testing import Daemon, MemoryBroker, MemoryClient, run  # noqa: E402

POINTS = 50         # of a study
GRID = {"n": {"type": "int", "low": 1, "high": 6}, "k": {"type": "categorical", "choices": ["a", "b", "c"]},
        "size": {"type": "ordinal", "choices": ["s", "m", "l"], "when": {"k": ["a", "b"]}}}


@dataclass(frozen=True)
class Setting:
    """Under what a log is audited."""

    name: str
    environment: dict[str, str]
    wanted: Configuration | None = None


def settings() -> list[Setting]:
    made = [Setting("as it was written", {})]
    made += [Setting(str(each), each.environment(), each) for each in (
        Configuration("Haswell", 1), Configuration("Haswell", 2), Configuration("Sandybridge", 1),
        Configuration("Sandybridge", 2), Configuration("Prescott", 1), Configuration("Prescott", 2),
        Configuration("Prescott", 1, plain=True))]
    old = Configuration("", 1, plain=True).environment()
    del old["OPENBLAS_CORETYPE"]
    return [*made, Setting("its kernel, 1 thread, old processor", old)]


# --- A log of many studies -----------------------------------------------------------------------------


class Client:
    """Somebody on the memory broker: says things and waits for what is said back."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self._broker, self._name = broker, name
        self._heard: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._client = MemoryClient(broker, name, [broker.topics.to(name, "+")], self._hear)
        self._client.connect()

    def _hear(self, topic: str, payload: bytes) -> None:
        self._heard.put_nowait((topic.rsplit("/", 1)[1], json.loads(payload)))

    def say(self, kind: str, **fields: Any) -> None:
        topics = self._broker.topics
        topic = topics.request(self._name) if kind == "request" else topics.sent(self._name, kind)
        self._client.publish(topic, json.dumps(fields).encode())

    async def heard(self) -> tuple[str, dict[str, Any]]:
        return await self._heard.get()

    def leave(self) -> None:
        self._client.disconnect()


def study(i: int, draw: Random) -> tuple[dict[str, Any], str, int]:
    """(spec, kind of objective, workers) of the i-th study."""
    names = list(SPACES)
    name, kind = names[i % len(names)], ("smooth", "failing", "noisy", "two objectives")[i // len(names) % 4]
    method = ("bayes", "bayes", "grid", "bayes", "sobol", "bayes", "bayes", "random", "bayes")[i % 9]
    spec: dict[str, Any] = {
        "name": f"s{i}", "method": method, "seed": 1000 + i, "budget": {"trials": POINTS},
        "space": GRID if method == "grid" else SPACES[name], "noise": "learn" if kind == "noisy" else "none"}
    if method != "grid" and name in CONSTRAINTS:
        spec["constraints"] = list(CONSTRAINTS[name])
    if method == "bayes" and i % 5 == 4:
        spec["surrogate"] = "forest"
    if kind == "two objectives":
        spec["objectives"] = [{"name": "loss"}, {"name": "size"}]
    else:
        spec["direction"] = "minimize"
    return spec, kind, draw.choice([1, 1, 2, 4, 8])


async def work(broker: MemoryBroker, name: str, spec: dict[str, Any], kind: str, draw: Random) -> None:
    """A worker until its study is over; every other one asks for its next trial while it works on this one."""
    client, seed, ahead = Client(broker, name), spec["seed"], draw.random() < 0.5
    client.say("beat", run=name)
    client.say("ask", id="a0", run=name, study=spec["name"])
    asked = 0
    while True:
        said, body = await client.heard()
        if said == "receipt" and body.get("status") == "closed":
            break
        if said != "grant":
            continue
        asked += 1
        if ahead:
            client.say("ask", id=f"a{asked}", run=name, study=spec["name"])
        await asyncio.sleep(draw.uniform(0.5, 5.0))
        values = objective(body["params"], kind, seed, body["trial"])
        told: dict[str, Any] = {"state": "fail"} if values is None else {"value": values[0]}
        if values is not None and len(values) == 2:
            told = {"values": {"loss": values[0], "size": values[1]}}
        client.say("tell", id=f"t{body['trial']}-{body['fence']}", study=spec["name"], trial=body["trial"],
                   fence=body["fence"], **told)
        if not ahead:
            client.say("ask", id=f"a{asked}", run=name, study=spec["name"])
    client.leave()


async def meddle(operator: Client, spec: dict[str, Any], draw: Random) -> None:
    """What operators do to a running study."""
    name, first = spec["name"], next(iter(spec["space"]))
    for turn in range(3):
        await asyncio.sleep(draw.uniform(8.0, 20.0))
        choices: list[tuple[str, dict[str, Any]]] = [
            ("trial.void", {"trial": 3 + turn, "reason": "the sensor was unplugged"}),
            ("study.amend", {"changes": {"noise": "learn"}}),
            ("study.amend", {"changes": {"space": {f"extra{turn}": {"type": "float", "low": 0, "high": 1}}}}),
            ("study.pause", {}),
            ("study.enqueue", {"params": {first: spec["space"][first].get("low", "a")}})]
        verb, args = draw.choice(choices)
        if spec["method"] == "grid" and verb == "study.amend":
            continue
        operator.say("request", id=f"{name}-{turn}", verb=verb, args={"study": name, **args})
        if verb == "study.pause":
            await asyncio.sleep(3.0)
            operator.say("request", id=f"{name}-{turn}-on", verb="study.resume", args={"study": name})


async def sometimes_slow(draw: Random, problem: Problem, count: int) -> Suggestion:
    made = suggest(problem, count)
    await asyncio.sleep(draw.uniform(2.0, 6.0) if draw.random() < 0.02 else draw.uniform(0.0, 0.05))
    return made


def written(path: Path, suggestions: int, first: int = 0) -> Counter[str]:
    """Write a log with at least so many suggestions, in studies from the `first` on; how many of each sampler."""
    async def story() -> MemoryDisk:
        broker, disk, draw = MemoryBroker(), MemoryDisk(), Random(7 + first)
        daemon = Daemon(broker, disk, suggest=partial(sometimes_slow, Random(8 + first)),
                        fingerprint=fingerprint(__version__))
        service = await daemon.start()
        await asyncio.sleep(1.0)
        operator = Client(broker, "operator")
        i, made = first, 0
        while made < suggestions:
            spec, kind, workers = study(i, draw)
            operator.say("request", id=spec["name"], verb="study.create", args={"spec": spec})
            jobs = [asyncio.create_task(work(broker, f"w{i}-{j}", spec, kind, draw)) for j in range(workers)]
            jobs += [asyncio.create_task(meddle(operator, spec, draw))] * (i % 3 == 0)
            _, late = await asyncio.wait(jobs, timeout=3600.0)
            if late:
                raise SystemExit(f"study {spec['name']} did not end: {service.desk.state.studies[spec['name']].counts}")
            i += 1
            made += sum(trial.sampler != "enqueued" for trial in service.desk.state.studies[spec["name"]].trials)
            print(f"\rwriting: {made} of {suggestions} suggestions, {i - first} studies", end="", file=sys.stderr,
                  flush=True)
        await daemon.stop()
        return disk

    async def keep(disk: MemoryDisk) -> None:
        log = await SqliteLog.open(path)
        await log.append(disk.rows)
        await log.close()

    disk = run(story())
    asyncio.run(keep(disk))
    print(file=sys.stderr)
    proposals = [json.loads(row.body)["data"] for row in disk.rows if row.type == "trial.proposed"]
    return Counter(str(each.get("fallback") or each["sampler"]).split(":")[0] for each in proposals)


# --- Audited -------------------------------------------------------------------------------------------


def audited(path: Path, setting: Setting, jobs: int) -> dict[str, Any]:
    """The report of a process of its own."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "bayesd.cli", "log", "audit", str(path), "-f", "json", "--jobs", str(jobs)],
        env={**os.environ, **setting.environment}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"the audit under {setting.name} ended with {done.returncode}")
    report: dict[str, Any] = json.loads(done.stdout)
    report["seconds"] = time.monotonic() - began
    wanted = setting.wanted
    for blas in report["here"]["blas"] if wanted is not None else ():
        assert wanted is not None
        kernels = LOADED.get(wanted.kernel, (wanted.kernel.lower(),))
        if blas["core"].lower() not in kernels:
            raise SystemExit(f"{setting.name} was asked for, and {blas} was loaded")
    return report


_COUNTS = (("checked", 8), ("same", 8), ("tied", 6), ("diverged", 9), ("to_the_bit", 11))


def row(setting: Setting, report: dict[str, Any]) -> str:
    cells = f"{setting.name:38s}"
    for what in ("suggestions", "fits"):
        found: Counter[str] = Counter()
        levels = [each for each in report["levels"] if each["what"].startswith(what)]
        for each in levels:
            found.update({name: each[name] for name, _ in _COUNTS})
        cells += f"{levels[0]['level'] if levels else '':>5s}" if what == "suggestions" else ""
        cells += "".join(f"{found[name]:{width}d}" for name, width in _COUNTS)
    return cells + f"{report['seconds']:7.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--suggestions", type=int, default=5000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes of an audit")
    parser.add_argument("--keep", type=Path, help="leave log and reports in this folder")
    options = parser.parse_args()
    with TemporaryDirectory() as made:
        folder = options.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.db"
        path.unlink(missing_ok=True)
        began = time.monotonic()
        samplers = written(path, options.suggestions)
        print(f"written in {time.monotonic() - began:.0f} s: {dict(samplers)}\n")
        heads = "".join(f"{head.replace('_', ' '):>{width}s}" for head, width in _COUNTS)
        print(f"{'':43s}{'suggestions':>42s}{'fits':>42s}\n{'audited':38s}{'level':>5s}{heads}{heads}{'s':>7s}")
        diverged: list[str] = []
        for at, setting in enumerate(settings()):
            report = audited(path, setting, options.jobs)
            print(row(setting, report), flush=True)
            (folder / f"report-{at}.json").write_text(json.dumps(report, indent=2))
            diverged += [f"{setting.name}: {each}" for each in report["diverged"]]
            if report["first_difference"] is not None:
                diverged.append(f"the first in full: {json.dumps(report['first_difference'])}")
    print("\n".join(["", *diverged]) if diverged else "\nnothing diverged")
    return int(bool(diverged))


if __name__ == "__main__":
    sys.exit(main())
