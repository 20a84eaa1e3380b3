"""The page of a worker: whether it is busy or idle, and why, as far as anybody can know.

The log knows its runs, its leases and what it told. That it stands in line, and with which answer,
only a running daemon remembers: that comes as `live`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from bayesd.study.desk import PATIENCE_S
from bayesd.study.state import Event, State, Worker
from bayesd.study.texts import Words, ref_of
from bayesd.why.live import Live
from bayesd.why.witness import Entry, entry_of
from bayesd.why.words import count, listed, span, when

Page = dict[str, Any]
NAMED = 8
TOLD = ("trial.completed", "trial.failed", "trial.pruned", "outcome.late", "lease.released")


@dataclass(slots=True)
class Diary:
    """What the log says of one worker, event by event."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    last: dict[str, Entry] = field(default_factory=dict)
    told: Entry | None = None
    seq: int = 0
    words: Words = field(default_factory=Words)

    def see(self, event: Event, body: bytes) -> None:
        self.seq = event.seq
        self.words.note(event.type, event.data)
        if event.actor != f"worker/{self.name}" and event.data.get("worker") != self.name:
            return
        entry = entry_of(event, body)
        self.counts[event.type] += 1
        self.last[event.type] = entry
        if event.type in TOLD:
            self.told = entry

    def refs(self) -> list[str]:
        """References to the free text that its page shows."""
        entry = self.last.get("worker.revoked")
        ref = ref_of("worker.revoked", entry.data) if entry is not None else None
        return [] if ref is None else [ref]

    @property
    def revoked(self) -> str | None:
        """Why it was revoked, in the words of who did it."""
        entry = self.last.get("worker.revoked")
        return None if entry is None else self.words.of(entry.data).get("reason") or None


def is_known(state: State, name: str, live: Live | None) -> bool:
    return name in state.workers or (live is not None and bool(live["asks"] or live["operator"]))


def unknown(state: State, name: str, live: Live | None) -> str:
    """What to say of a name that nobody knows."""
    known = sorted({*state.workers, *(live or {}).get("known", ())})
    near = get_close_matches(name, known, n=3)
    return (f"no worker {name} is known: no run of that name began, and none got a trial. "
            + (f"Is it {listed(near)}?" if near else f"Known: {listed(known)}." if known else "None is known yet."))


def worker_page(state: State, diary: Diary, live: Live | None) -> Page:
    """Why a worker is busy or idle. It is known by its name to log or daemon."""
    name = diary.name
    worker = state.worker(name)
    reasons = list(_reasons(state, worker, diary, live))
    status = "busy" if worker.open else "idle"
    return {
        "page": "worker", "worker": name, "state": status, "question": f"Why is {name} {status}?",
        "answer": reasons[0]["words"], "reasons": reasons, "live": live is not None, "run": worker.run,
        "runs_replaced": len(worker.replaced),
        "revoked": None if worker.revoked is None else diary.revoked or worker.revoked,
        "leases": [{"study": lease.trial.study.name, "trial": lease.trial.number, "fence": lease.fence,
                    "run": lease.run, "at": lease.at, "lease_s": lease.lease_s} for lease in list(worker.open)[:NAMED]],
        "asks": [] if live is None else live["standing"],
        "history": list(_history(worker, diary)),
        "unknown": None if live is not None else (
            "Whether it stands in line and why it waits, when it beat last, and when its leases run out is kept in "
            f"memory alone. Ask the daemon: bayesd why --worker {name}, without --log.")}


def _reason(code: str, words: str, remedy: str | None = None) -> Page:
    return {"code": code, "words": words, "remedy": remedy}


def _reasons(state: State, worker: Worker, diary: Diary, live: Live | None) -> Iterator[Page]:
    found = [*_revoked(worker, diary), *_working(worker, live), *_standing(state, live)]
    if live is not None and live["operator"]:
        found.append(_reason("operator", f"{worker.name} is the name of an operator, and a name is a worker or an "
                             "operator, not both.", "Give the worker another --name."))
    if live is not None and live["disk_full"]:
        found.append(_reason("disk-full", "The disk of the log is full: nothing is granted until a write succeeds.",
                             "Free some space on the daemon's machine."))
    yield from found or _idle(state, worker, diary, live)


def _revoked(worker: Worker, diary: Diary) -> Iterator[Page]:
    if worker.revoked is not None:
        entry = diary.last.get("worker.revoked")
        by = f" by {entry.operator or 'an operator'} at {when(entry.time)} (event {entry.seq})" if entry else ""
        yield _reason("revoked", f"It was revoked{by}: {diary.revoked or worker.revoked}. It gets nothing, and "
                      "what it tells is refused.", "That is for good: start the worker under another --name.")


def _working(worker: Worker, live: Live | None) -> Iterator[Page]:
    left = {(each["study"], each["trial"], each["fence"]): each["left_s"] for each in (live or {}).get("leases", ())}
    words = []
    for lease in list(worker.open):
        key = (lease.trial.study.name, lease.trial.number, lease.fence)
        ends = f", {span(left[key])} left" if left.get(key) is not None else ""
        words.append(f"trial {lease.trial.number} of {lease.trial.study.name} (since {when(lease.at)}{ends})")
    if words:
        yield _reason("works", f"It works on {listed(words, NAMED)}.")
        old = [lease for lease in worker.open if lease.run != worker.run]
        if old and worker.run is not None:
            yield _reason("other-run", f"{count(len(old), 'of these leases is', 'of these leases are')} of a run that "
                          "has not beaten: they end when they run out.")


_WAITS = {
    "paused": ("the study is paused", "bayesd study resume {study}"),
    "budget": ("all of its budget is handed out; a trial that comes free is the next", "bayesd why {study} names them"),
    "exhausted": ("every point that may be tried is tried or under way", "bayesd why {study}"),
    "unknown-study": ("there is no such study", "bayesd study create FILE, or another --study"),
    "disk-full": ("the disk of the log is full", "free some space on the daemon's machine")}


def _standing(state: State, live: Live | None) -> Iterator[Page]:
    alike: dict[tuple[str, ...], list[Live]] = {}
    for ask in (live or {}).get("standing", ()):
        alike.setdefault((ask["study"] or "", ask["reason"] or "", *ask["tags"]), []).append(ask)
    for asks in list(alike.values())[:NAMED]:
        ask = asks[0]
        study, reason = ask["study"], ask["reason"]
        line = f"It has stood in line for {study or 'any study'} for {span(max(each['for_s'] for each in asks))}"
        if len(asks) > 1:
            line += f", with {len(asks)} asks"
        if reason == "no-matching-tags":
            missing = sorted(set(ask["wanted_tags"]) - set(ask["tags"]))
            yield _reason(reason, f"{line}, but the study wants tags that its ask does not carry"
                          + (f": {listed(missing)}" if missing else "") + ".", "Start it with these tags.")
        elif reason in _WAITS:
            words, remedy = _WAITS[reason]
            if study is None and reason == "unknown-study":
                words, remedy = "no study is open", "bayesd study create FILE"
            yield _reason(reason, f"{line}, but {words}.", remedy.format(study=study or 'STUDY'))
        else:
            yield _reason("soon", f"{line}: a suggestion is on its way.")


def _idle(state: State, worker: Worker, diary: Diary, live: Live | None) -> Iterator[Page]:
    """It holds nothing and stands nowhere, as far as is known."""
    last = diary.last.get("trial.leased")
    study = state.studies.get(last.event.study or "") if last is not None else None
    if study is not None and study.status == "closed":
        yield _reason("closed", f"It holds no trial, and the study it worked for last, {study.name}, is closed by rule "
                      f"{study.closed_by}: a worker of that study ends then, unless it was started with --keep.",
                      f"bayesd why {study.name} says more.")
        return
    if live is not None:
        yield _reason("silent", f"It holds no trial and does not stand in line: it asked for nothing within "
                      f"{PATIENCE_S:g} seconds, or it was told that what it asked for is closed.",
                      "Look whether its process runs, and whether it reaches this broker: bayesd doctor")
        return
    if study is not None and study.status == "paused":
        yield _reason("paused", f"It holds no trial, and the study it worked for last, {study.name}, is paused.",
                      f"bayesd study resume {study.name}")
        return
    yield _reason("unknown", "It holds no trial. Nothing in the log says why: that it asks, and what it was answered, "
                  "is no event.")


def _history(worker: Worker, diary: Diary) -> Iterator[str]:
    began = diary.last.get("run.began")
    if worker.run is not None:
        at = f", which began at {when(began.time)} (event {began.seq})" if began is not None else ""
        yield f"Its run is {worker.run}{at}."
    else:
        yield "It never began a run: it sends no beats, so its leases end when they run out."
    if worker.replaced:
        yield (f"{count(len(worker.replaced), 'earlier run was', 'earlier runs were')} replaced; a process of such a "
               "run is told so (name-in-use) and ends.")
    counts = diary.counts
    leased = counts["trial.leased"]
    if not leased:
        yield "It never got a trial."
    else:
        kinds = (("trial.completed", "results"), ("trial.failed", "failures"), ("trial.pruned", "stopped early"),
                 ("outcome.late", "too late"), ("lease.released", "given back"), ("trial.reported", "reports"))
        told = [f"{counts[type]} {words}" for type, words in kinds if counts[type]]
        yield f"It got {count(leased, 'lease')} and told: {', '.join(told) if told else 'nothing'}."
    for entry, words in ((diary.last.get("trial.leased"), "It got a trial last"), (diary.told, "It told last")):
        if entry is not None:
            yield (f"{words}: trial {entry.event.trial} of {entry.event.study}, {entry.event.type}, {when(entry.time)} "
                   f"(event {entry.seq}).")
