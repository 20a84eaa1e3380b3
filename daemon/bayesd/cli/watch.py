"""`bayesd watch`: how a study goes, live; in a pipe, one line for each change."""

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from bayesd import show
from bayesd.bus import BusError
from bayesd.call import Client, Reach, Refusal, read
from bayesd.cli.common import Reaching, Trouble, Verb, reaching

PATIENCE_S = 3.0         # how long a retained state may take to come
WORKERS_S = 2.0
PAUSES_S = (0.2, 0.5, 1.0, 2.0)


def register(top: click.Group) -> None:
    top.add_command(watch)


@click.command("watch", cls=Verb, example="bayesd watch digits-svm\nbayesd watch | tee progress.txt")
@click.argument("study", required=False)
@reaching
def watch(study: str | None, reach: Reaching) -> None:
    """Look on, live.

    Shows how far a study is, the best so far, the workers, the time that is left. Without STUDY: all of them.
    Ends with 0 when what is watched is closed.
    """
    where = reach()
    asyncio.run(_watch(where, study, Screen() if sys.stdout.isatty() else Lines()))


@dataclass(slots=True)
class Seen:
    """What is known of the studies that are watched."""

    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    workers: list[dict[str, Any]] = field(default_factory=list)
    daemon: str | None = None

    @property
    def is_over(self) -> bool:
        return bool(self.studies) and all(state["state"] == "closed" for state in self.studies.values())


class Lines:
    """One line for each change, for pipes and files."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None: ...

    def draw(self, seen: Seen) -> None:
        for name, state in seen.studies.items():
            line = _line(state)
            # The ETA moves by itself, which is no change.
            key = line.partition("  eta ")[0]
            if self._last.get(name) != key:
                self._last[name] = key
                click.echo(show.harmless(line))

    def say(self, words: str) -> None:
        show.talk(words)


class Screen:
    """Bars that are drawn again in place."""

    def __init__(self) -> None:
        self._bars = Progress(TextColumn("[bold]{task.description}"), BarColumn(),
                              TextColumn("{task.fields[done]}"), TextColumn("{task.fields[best]}"),
                              TextColumn("eta {task.fields[eta]}"))
        self._tasks: dict[str, TaskID] = {}
        self._below = Text("")
        self._live = Live(Group(self._bars, self._below), refresh_per_second=4, console=show.console(sys.stdout))

    def __enter__(self) -> "Screen":
        self._live.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.__exit__(None, None, None)

    def draw(self, seen: Seen) -> None:
        for name, state in seen.studies.items():
            done, total = _done(state), state["budget"]["trials"]
            fields: dict[str, Any] = {"done": f"{done}/{total or '?'}  {_counts(state)}", "best": _best(state),
                      "eta": show.eta(state)}
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total, **fields)
            self._bars.update(self._tasks[name], completed=done, total=total, **fields)
        self._below.plain = "\n".join(f"  {row['worker']:<20} {_holds(row, seen)}" for row in seen.workers)
        if seen.daemon == "offline":
            self._below.plain += "\n  the daemon is away; what the workers measure is kept until it is back"

    def say(self, words: str) -> None:
        self._live.console.print(show.harmless(words), markup=False)


def _holds(worker: dict[str, Any], seen: Seen) -> str:
    """What a worker has; the list of workers is older than the states, which may be closed by now."""
    open_ = [f"{study} #{trial}" for study, trial, _ in worker["leases"]
             if seen.studies.get(study, {}).get("state") != "closed"]
    return ", ".join(open_) or "idle"


def _done(state: dict[str, Any]) -> int:
    """Own trials with an outcome; imported ones were done before."""
    trials = state["trials"]
    return sum(int(trials[each]) for each in ("complete", "fail", "pruned")) - int(trials.get("imported", 0))


def _counts(state: dict[str, Any]) -> str:
    return "  ".join(f"{each} {n}" for each in ("running", "waiting", "paused", "fail", "pruned", "imported")
                     if (n := state["trials"].get(each)))


def _best(state: dict[str, Any]) -> str:
    best = state["best"]
    return f"best {best['value']:.6g} (#{best['trial']})" if best is not None else "best -"


def _line(state: dict[str, Any]) -> str:
    """A study in one line."""
    total = state["budget"]["trials"]
    words = [f"{state['study']}  {_done(state)}{f'/{total}' if total else ''}", _counts(state), _best(state)]
    if state["state"] != "open":
        words.append(state["state"] + (f" by {state['closed_by']}" if state["closed_by"] else ""))
    if state["state"] != "closed":
        words.append(f"eta {show.eta(state)}")
    return "  ".join(word for word in words if word)


async def _watch(reach: Reach, study: str | None, view: Lines | Screen) -> None:
    """Until everything is closed; a lost connection is made again, because a long study outlives many."""
    seen = Seen()
    tries = 0
    with view:
        asking = asyncio.create_task(_look_after_workers(reach, seen), name="workers") \
            if isinstance(view, Screen) else None
        try:
            while True:
                try:
                    await _follow(reach, study, seen, view)
                    return
                except BusError as error:
                    if not seen.studies:
                        raise      # it was never there: the address is wrong, or nothing runs
                    if tries == 0:
                        view.say(f"{error} Trying again.")
                    await asyncio.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
                    tries += 1
        finally:
            if asking is not None:
                asking.cancel()


async def _follow(reach: Reach, study: str | None, seen: Seen, view: Lines | Screen) -> None:
    topics = reach.topics
    async with reach.caller(topics.study(study or "+"), topics.daemon) as caller:
        began = time.monotonic()
        while not seen.is_over:
            with contextlib.suppress(TimeoutError):
                message = await caller.receive(0.5)
                said = read(message)
                name = topics.study_of(message.topic)
                if name is not None and said is not None:
                    seen.studies[name] = said
                elif message.topic == topics.daemon and said is not None:
                    seen.daemon = said.get("state")
            if not seen.studies and time.monotonic() - began > PATIENCE_S:
                await _explain_nothing(reach, study)
                began = time.monotonic()
            view.draw(seen)
        if study is None:      # more retained states may be on their way: all of them are shown, then it ends
            with contextlib.suppress(TimeoutError):
                while (said := read(await caller.receive(0.3))) is not None:
                    if "study" in said:
                        seen.studies[said["study"]] = said
            view.draw(seen)
            if not seen.is_over:
                await _follow(reach, study, seen, view)


async def _explain_nothing(reach: Reach, study: str | None) -> None:
    """No state came: because there is no study, or no daemon. The daemon knows."""
    async with Client(reach) as client:
        if study is not None:
            await client.request("study.show", {"study": study})
        elif not await client.all("study.list", "studies"):
            raise Trouble("there are no studies yet; create one with bayesd study create FILE")


async def _look_after_workers(reach: Reach, seen: Seen) -> None:
    """Who holds what: nice to see, so no reason to stop when the daemon is away or says no."""
    while True:
        with contextlib.suppress(BusError, Refusal):
            async with Client(reach) as client:
                while True:
                    seen.workers = await client.all("worker.list", "workers")
                    await asyncio.sleep(WORKERS_S)
        await asyncio.sleep(WORKERS_S)
