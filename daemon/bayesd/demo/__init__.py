"""The first minute: a real model is tuned, a worker and the daemon are killed, and the log proves that
nothing was lost.

Nothing here is staged: what is printed is read from the daemon, from its log, or from the
processes, and the demo ends with 0 only if the proof holds.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from bayesd import files, show, verdict
from bayesd.bus import BusError
from bayesd.call import Client, Reach, find, read
from bayesd.demo import model
from bayesd.demo.proof import Proof, Witnesses, prove
from bayesd.demo.stage import Actor, Broken, Stage

WORKERS = ("py-1", "py-2", "any-1")
VICTIM = "py-2"
POLL_S = 0.15
LIMIT_S = 300.0
MARK = "this-is-a-bayesd-demo"


def run(folder: Path, *, trials: int = 24, port: int | None = None, broker_kind: str = "auto") -> int:
    """Play the demo; returns the exit code."""
    began = time.monotonic()
    try:
        with _own(folder) as home:
            return asyncio.run(_play(Stage(home, port or _free_port(), broker_kind), folder, trials, began))
    except Broken as error:
        show.talk(f"error: {error}")
        return 1
    except asyncio.CancelledError:
        show.talk("ended by SIGTERM; everything that was started is ended, too")
        return 128 + signal.SIGTERM


# --- Where, and on which port ----------------------------------------------------------------------


@contextlib.contextmanager
def _own(folder: Path) -> Iterator[Path]:
    """The folder, empty but for what an older demo left, which moves to `old` in it."""
    home = folder.resolve()
    mark = home / MARK
    if home.exists() and not (home.is_dir() and (mark.exists() or not any(home.iterdir()))):
        raise Broken(f"{folder} is not empty and not a demo's: name another folder with --dir")
    home.mkdir(parents=True, exist_ok=True)
    lock = os.open(mark, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Broken(f"another demo runs in {folder}: name another folder with --dir") from error
        _move_aside(home)
        yield home
    finally:
        os.close(lock)


def _move_aside(home: Path) -> None:
    left = [path for path in home.iterdir() if path.name not in (MARK, "old")]
    if left:
        shutil.rmtree(home / "old", ignore_errors=True)
        (home / "old").mkdir()
        for path in left:
            path.rename(home / "old" / path.name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- The play --------------------------------------------------------------------------------------


class Screen:
    """Lines as they happen, and a bar below them on a terminal."""

    def __init__(self, trials: int) -> None:
        self._bar = Progress(TextColumn("  {task.description}"), BarColumn(),
                             TextColumn("{task.completed}/{task.total}"), TextColumn("best {task.fields[best]}"),
                             TextColumn("eta {task.fields[eta]}"), console=show.console(sys.stdout),
                             transient=True, disable=not sys.stdout.isatty())
        self._task = self._bar.add_task("tuning", total=trials, best="-", eta="-")
        self.best = self.eta = "-"

    def __enter__(self) -> "Screen":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        self._bar.console.print(line, markup=False)
        sys.stdout.flush()

    def advance(self, page: dict[str, Any]) -> None:
        done = sum(page["trials"][state] for state in ("complete", "fail", "pruned"))
        self.best = f"{page['best']['value']:.4f}" if page["best"] is not None else "-"
        self.eta = show.duration(page["eta_s"])
        self._bar.update(self._task, completed=done, best=self.best, eta=self.eta)


async def _play(stage: Stage, folder: Path, trials: int, began: float) -> int:
    # SIGTERM ends us like Ctrl-C does: through the clean-up.
    loop, us = asyncio.get_running_loop(), asyncio.current_task()
    assert us is not None
    loop.add_signal_handler(signal.SIGTERM, us.cancel)
    with Screen(trials) as screen:
        async with stage:
            took_s = await stage.start_daemon()
            screen.say(f"broker   {stage.broker}  (embedded)        log  {folder / 'log.db'}")
            screen.say(f"daemon   pid {stage.daemon.pid if stage.daemon else '?'}, ready after {took_s:.1f} s")
            reach = find(stage.broker, client="demo", root="", timeout_s=2.0)
            await _create(stage, reach, trials)
            screen.say(f"study    {model.STUDY}: {trials} trials, method bayes, {model.FOLDS}-fold cross-validation")
            seen = Witnesses()
            listening = asyncio.create_task(_listen(reach, seen), name="onlooker")
            try:
                for name in WORKERS:
                    actor = await stage.start_worker(name)
                    kind = "a program" if name.startswith("any") else "a decorated function"
                    screen.say(f"worker   {name}, pid {actor.pid}: {kind}")
                async with asyncio.timeout(LIMIT_S):
                    await Director(stage, reach, screen, seen, trials).run()
                chosen = await _ask(reach, "study.best", {"study": model.STUDY}, 30.0)
                seen.believed = await _ask(reach, "study.show", {"study": model.STUDY}, 30.0)
                await _wait_for_workers(stage)
            except TimeoutError as error:
                raise Broken(f"the study is not closed after {LIMIT_S:g} s; see {folder}/daemon.txt") from error
            finally:
                listening.cancel()
    seen.save(stage.folder / "heard.json")
    proof = prove(stage.log, stage.ledger, model.STUDY, trials, seen)
    return _end(folder, chosen, proof, time.monotonic() - began)


async def _create(stage: Stage, reach: Reach, trials: int) -> None:
    path = stage.folder / "study.toml"
    path.write_text(model.study_file(trials), encoding="utf-8")
    stage.ledger.touch()
    await _ask(reach, "study.create", {"spec": files.read_study(str(path)).data}, 30.0)


async def _ask(reach: Reach, verb: str, args: dict[str, Any], limit_s: float) -> Any:
    """An answer, also when the daemon is about to come."""
    until = time.monotonic() + limit_s
    while True:
        try:
            async with Client(reach) as client:
                return await client.request(verb, args)
        except BusError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(POLL_S)


async def _listen(reach: Reach, seen: Witnesses) -> None:
    """An onlooker on the broker, who notes every receipt for a result that he hears."""
    receipts = f"{reach.topics.prefix}/to/+/receipt"
    while True:
        with contextlib.suppress(BusError):
            async with reach.caller(receipts, name="onlooker") as caller:
                async for message in caller.messages():
                    said = read(message) or {}
                    parts = str(said.get("id", "")).split(".")
                    if parts[0] == "t" and said.get("status") in ("recorded", "duplicate", "late") and "seq" in said:
                        seen.receipts[int(parts[-2]), int(parts[-1])] = said["seq"], said["hash"]
        await asyncio.sleep(POLL_S)


async def _wait_for_workers(stage: Stage) -> None:
    """A worker leaves by itself when its study is closed and everything it told has a receipt."""
    workers = [actor for actor in stage.actors if actor.name in WORKERS and actor.lives]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(15):
            await asyncio.gather(*(actor.process.wait() for actor in workers))


class Director:
    """Reads the daemon's events, prints them, and strikes when the moment has come."""

    def __init__(self, stage: Stage, reach: Reach, screen: Screen, seen: Witnesses, trials: int) -> None:
        self.stage = stage
        self.reach = reach
        self.screen = screen
        self.seen = seen
        self.trials = trials
        self.after = 0
        self.params: dict[int, dict[str, Any]] = {}
        self.holder: dict[int, tuple[str, float]] = {}
        """Trial -> who has it, since when."""
        self.done = 0
        self.best: float | None = None
        self.worker_killed = False
        self.worker_back = False
        self.orphans: set[int] = set()
        self.daemon_killed = False
        self.closed = False

    async def run(self) -> None:
        """Until the study is closed."""
        while not self.closed:
            try:
                async with Client(self.reach) as client:
                    while not self.closed:
                        await self._look(client)
                        if await self._strike():
                            break        # that connection died with the broker
                        await asyncio.sleep(POLL_S)
            except BusError:
                await asyncio.sleep(POLL_S)
        if not (self.worker_killed and self.daemon_killed):
            raise Broken("the study was over before anything could be killed: give it more --trials")

    async def _look(self, client: Client) -> None:
        self._check_processes()
        self.screen.advance(await client.request("study.show", {"study": model.STUDY}))
        more = True
        while more:
            page = await client.request("events", {"after": self.after})
            for body in page["events"]:
                self.after = body["seq"]
                self._on_event(body)
            more = page.get("next") is not None

    def _check_processes(self) -> None:
        for actor in self.stage.actors:
            if actor.process.returncode not in (None, 0, -signal.SIGKILL):
                raise Broken(f"{actor.name} ended with status {actor.process.returncode}: {actor.last_words()}")

    def _on_event(self, body: dict[str, Any]) -> None:
        type, data, trial = body["type"], body["data"], body.get("trial", 0)
        if type == "trial.proposed":
            self.params[trial] = data["params"]
        elif type == "trial.leased":
            self.holder[trial] = data["worker"], time.monotonic()
            if data["fence"] > 1:
                self.screen.say(f"     #{trial:02} {data['worker']:<6} gets it again, fence {data['fence']}")
                self.orphans.discard(trial)
        elif type == "lease.expired":
            worker, _ = self.holder.pop(trial, ("?", 0.0))
            self.screen.say(f"     #{trial:02} {worker:<6} was silent: its lease has ended")
        elif type in ("trial.completed", "trial.failed"):
            self._on_result(trial, data, str(body["actor"]).partition("/")[2])
        elif type == "outcome.late":
            self.screen.say(f"     #{trial:02} a late result is kept as an observation")
        elif type == "study.closed":
            self.closed = True

    def _on_result(self, trial: int, data: dict[str, Any], worker: str) -> None:
        self.holder.pop(trial, None)
        self.orphans.discard(trial)
        self.done += not data.get("retry")
        value = next(iter((data.get("values") or {}).values()), None)
        words = show.params(self.params.get(trial, {}))
        if value is None:
            self.screen.say(f"#{trial:02}  {worker:<6} {words:<52} failed: {data.get('class')}")
            return
        # Sums of folds differ in their last bits, which is no progress.
        star = " *best" if self.best is None or value > self.best + 1e-9 else ""
        self.best = value if star else self.best
        self.screen.say(f"#{trial:02}  {worker:<6} {words:<52} {value:.4f}   best {self.best:.4f}   "
                        f"eta {self.screen.eta}{star}")

    # Striking

    async def _strike(self) -> bool:
        """Kill what is to be killed when its time has come; True when the broker went with it."""
        if not self.worker_killed and self.done >= self.trials // 4:
            await self._kill_worker()
        elif self.worker_killed and not self.worker_back and not self.orphans:
            actor = await self.stage.start_worker(VICTIM)
            self.worker_back = True
            self.screen.say(f"!!  {VICTIM} is started again         pid {actor.pid}, with what its spool holds")
        # The orphans keep the study open, so the daemon does not escape while they are not taken over.
        late = self.worker_back or self.done >= self.trials - 3
        if not self.daemon_killed and self.worker_killed and self.done >= self.trials // 2 and late:
            await self._kill_daemon()
            return True
        return False

    async def _kill_worker(self) -> None:
        """In the midst of a trial that it has just begun."""
        held = {trial: since for trial, (worker, since) in self.holder.items() if worker == VICTIM}
        if not held:
            return
        actor = self._actor(VICTIM)
        await actor.kill()
        self.worker_killed = True
        self.seen.killed_at[VICTIM] = time.time()
        self.orphans = set(held)
        names = ", ".join(f"#{trial:02}" for trial in sorted(held))
        self.screen.say(f"!!  {VICTIM} killed (SIGKILL)          its lease on {names} ends in a few seconds")

    def _actor(self, name: str) -> Actor:
        return next(actor for actor in reversed(self.stage.actors) if actor.name == name)

    async def _kill_daemon(self) -> None:
        daemon = self.stage.daemon
        assert daemon is not None
        await daemon.kill()
        self.daemon_killed = True
        self.screen.say("!!  daemon killed (SIGKILL)        its broker died with it; the workers go on")
        took_s = await self.stage.start_daemon()
        self.screen.say(f"    daemon restarted              {self.stage.replayed} events replayed, serving after "
                        f"{took_s:.1f} s")


# --- The end ---------------------------------------------------------------------------------------


def _end(folder: Path, chosen: dict[str, Any], proof: Proof, took_s: float) -> int:
    print(f"\ndone     {proof.trials} trials, {len(WORKERS)} workers, {proof.lives} lives of the daemon, "
          f"{took_s:.0f} s")
    if chosen.get("trial") is not None:
        error = f" ± {chosen['se']:.4f}" if chosen.get("se") is not None else ""
        print(f"pick     #{chosen['trial']}  {show.params(chosen['params'])}  {chosen['value']:.4f}{error}"
              f"{verdict.pooled(chosen)}")
        print(f"why      {chosen['reason']} (rule {chosen['rule']})")
        for said in (verdict.believed(chosen), verdict.doubt(chosen, model.STUDY)):
            if said is not None:
                print(f"         {said}")
        print(f"others   {verdict.otherwise(chosen)}")
    print(f"results  {proof.measured} measured, {proof.receipts} receipts heard, {len(proof.lost)} lost, "
          f"{len(proof.doubled)} doubled"
          + (f", {proof.untold} died with its worker and was measured again" if proof.untold else ""))
    print(f"log      {proof.events} events, chain {'broken' if proof.faults else 'intact'}, "
          f"head {proof.head[:4]}..{proof.head[-4:]}, state rebuilt equal: {proof.digest[:4]}..{proof.digest[-4:]}")
    for fault in (*proof.lost, *proof.doubled, *proof.invented, *proof.faults):
        print(f"FAULT    {fault}")
    log = folder / "log.db"
    commands = (
        (f"bayesd study best {model.STUDY} --rule one-se --log {log}", "another rule, another winner?"),
        (f"bayesd log show {log} --trial {chosen.get('trial') or 1}", "the life of the winner"),
        (f"bayesd why {model.STUDY} {chosen.get('trial') or 1} --log {log}", "why that point, and what came of it"),
        (f"bayesd log audit {log}", "every suggestion, asked for again"),
        (f"bayesd log replay {log} --at {max(1, proof.events // 2)}", "half-way, as it was"),
        (f"bayesd study create {folder / 'study.toml'}", "your own: change it, after `bayesd serve`"))
    width = max(len(command) for command, _ in commands)
    for i, (command, what) in enumerate(commands):
        print(f"{'' if i else 'next':8} {command:<{width}}  # {what}")
    return 0 if proof.holds else 1


__all__ = ["run"]
