"""Planted faults, each of which some world must see: `python tests/simulation/mutants.py`.

A mutant is a piece of source text and what stands there instead. The mutated module is compiled
and the code of the functions that differ is put into the living ones, so nothing is imported
anew and nothing is left behind. A text that is no longer found is an error: whoever changed the
rules says here what breaking the new ones looks like.
"""

import argparse
import importlib
import inspect
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, Protocol

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

from tests.simulation.world import simulate  # noqa: E402  # the path comes first

WORLDS_MAX = 2000


class Planted(Protocol):
    """A fault that can be planted: in `module`, `old` becomes `new`."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def old(self) -> str: ...
    @property
    def new(self) -> str: ...


class Mutant(NamedTuple):
    """One fault: in `module`, `old` became `new`. Whether it is seen does not depend on `seed`, only how soon."""

    name: str
    module: str
    old: str
    new: str

    @property
    def seed(self) -> int:
        """A world that saw it once. Worlds change with every line of theirs, so the others are tried, too."""
        return SEEDS.get(self.name, 0)


STATE, DESK = "bayesd.study.state", "bayesd.study.desk"
TRIALS, OUTCOMES = "bayesd.study.fold.trials", "bayesd.study.fold.outcomes"
ANSWERS, ASKS, BEATS, ENDS, REPORTS, SERVING, SUGGESTIONS, TELLS, TIME = (f"bayesd.study.rules.{name}" for name in (
    "answers", "asks", "beats", "ends", "reports", "serving", "suggestions", "tells", "time"))
ADMIN, SNAPSHOT, SERVICE = "bayesd.study.admin", "bayesd.study.snapshot", "bayesd.service"
HEADS, CONFIRM, PRUNING = "bayesd.heads", "bayesd.study.confirm", "bayesd.study.pruning"
STOPPING, LADDER, WARM = "bayesd.study.stopping", "bayesd.study.ladder", "bayesd.study.warm"

MUTANTS = [
    # Nothing goes outward before its commit.
    Mutant("a letter leaves before its commit", DESK,
           "self._letters.append(Letter(self.state.seq, who", "self._letters.append(Letter(0, who"),
    Mutant("a message is acknowledged before its commit", SERVICE,
           "if self.desk.state.seq == before:\n            ack()", "if True:\n            ack()"),
    Mutant("a full disk leaves the memory as it is", SERVICE,
           "        await self._fold()\n        self.desk.disk_full = True\n        self._deliver()",
           "        self.desk.disk_full = True\n        self._deliver()"),
    Mutant("while the disk is full, decisions are taken", SERVICE,
           "        await self._start_writing()    #",
           "        desk.disk_full = False; await self._start_writing()    #"),
    Mutant("while the disk is full, operators decide", ADMIN,
           "    if desk.disk_full:             # a", "    if False:             # a"),
    # Heads.
    Mutant("a head is said and not saved", HEADS, "        await self._log.save_note(size, note.encode())\n", ""),
    Mutant("a head of our own looks like another future", HEADS,
           "return await self._root_at(theirs.size) == theirs.root", "return False"),
    # Pruning.
    Mutant("a stopped trial is leased again", ENDS,
           "if is_over(trial) or trial.stopped is not None or failure not in", "if is_over(trial) or failure not in"),
    Mutant("a trial is stopped a second time", PRUNING, " or trial.stopped is not None", ""),
    # Trials that go on from rungs.
    Mutant("a trial goes on though it is not among the best of its rung", LADDER,
           "if rank < kept and (", "if (kept or 1) and ("),
    Mutant("a budget of fidelity is not kept", LADDER,
           "(first if leads is None else leads[0]) <= most", "(first if leads is None else leads[0]) <= most + 9"),
    Mutant("a new trial begins while one may go on", SERVING, "if (trial := ladder.going_on(study)) is not None:",
           "if (trial := None) is not None:"),
    # Tells and fences.
    Mutant("an older fence counts", TELLS, "newest = lease.fence == trial.fence", "newest = True"),
    Mutant("an expired lease does not count", TELLS,
           "counts = newest and (trial.status not in FINAL or trial.is_provisional)",
           "counts = newest and lease.is_open"),
    Mutant("a failure that nobody told is final", TELLS,
           "counts = newest and (trial.status not in FINAL or trial.is_provisional)",
           "counts = newest and trial.status not in FINAL"),
    Mutant("a late tell is called recorded", TELLS,
           '"late" if type == "outcome.late" else "recorded", event.seq', '"recorded", event.seq'),
    Mutant("a copy of a tell is recorded again", TELLS,
           "    if told is not None:\n        answer_copy(",
           "    if told is not None and told.message != message:\n        answer_copy("),
    Mutant("a copy of a late tell is called a duplicate", ANSWERS,
           'status = "late" if told.status == "late" else "duplicate"', 'status = "duplicate"'),
    Mutant("the tell of somebody else counts", ANSWERS,
           "if lease is None or lease.worker != worker:", "if lease is None:"),
    Mutant("a step is recorded twice", REPORTS,
           "if trial.reports is not None and report.step in trial.reports:", "if report.step is None:"),
    Mutant("a late outcome is forgotten when its trial is lost", ENDS, "    if late is None:\n", "    if True:\n"),
    Mutant("a trial given back after the close waits for ever", TELLS,
           "    elif is_over(trial) or trial.stopped is not None:\n        after_loss(desk, trial)",
           "    elif False:\n        after_loss(desk, trial)"),
    # Confirmation.
    Mutant("a repeat counts for the budget", STATE, " - self.imported - self.again", " - self.imported"),
    Mutant("a winner is announced while a leader is being measured", CONFIRM,
           "return bool(study.confirm) or any(", "return bool(study.confirm) and any("),
    Mutant("a study that is open for its confirmation goes on", SERVING,
           "return (study.reopened is None and study", "return ((study.reopened or True) and study"),
    Mutant("a leader that was voided is measured again", OUTCOMES,
           "for number in trial.study.confirm if number != trial.number]", "for number in trial.study.confirm]"),
    Mutant("a repeat leads its study", STATE,
           "and trial.of is None and limits.keeps(trial)", "and limits.keeps(trial)"),
    # Stop rules.
    Mutant("a study goes on after its stop rule fired", SERVING,
           "return (study.reopened is None and study.stopping is None and (", "return (study.reopened is None and ("),
    Mutant("patience ends one result early", STOPPING, "barren >= stop.patience", "barren + 1 >= stop.patience"),
    # Limits, costs and earlier studies.
    Mutant("a trial that breaks a limit leads its study", STATE,
           "and trial.of is None and limits.keeps(trial)", "and trial.of is None"),
    Mutant("a trial that breaks a limit is confirmed", CONFIRM,
           "                    and limits.keeps(trial))", "                    )"),
    Mutant("a trial that breaks a limit goes on first", LADDER,
           "return bool(limits.broken(study, rung.measured)), self", "return False, self"),
    Mutant("what a trial took is not learned", OUTCOMES,
           "return None if study.spec.cost is None else as_number(data.get(study.spec.cost.per))", "return None"),
    Mutant("what was voided in an earlier study still helps", WARM,
           'return trial.status == "complete" and trial', "return bool(trial.values) and trial"),
    Mutant("what was made with a voided result is handed out", ADMIN,
           "        if other.learned_from(trial):\n            desk", "        if False:\n            desk"),
    # Retries.
    Mutant("a failure is never tried again", TELLS, '        data["retry"] = True\n', "        pass\n"),
    Mutant("one retry too many", ENDS, "+ after <= limit", "+ after <= limit + 1"),
    Mutant("a lost lease is not counted", TRIALS,
           '    count_failure(trial, "lost")\n    move(trial, "waiting")\n\n\ndef lease_held',
           '    move(trial, "waiting")\n\n\ndef lease_held'),
    Mutant("a lease held again stays counted as lost", TRIALS, 'count_failure(trial, "lost", -1)', "pass"),
    # Leases and time.
    Mutant("a beat renews everything", BEATS,
           "        if lease.run == beat.run and lease not in listed:",
           "        desk.deadlines[lease] = desk.now + lease.lease_s\n"
           "        if lease.run == beat.run and lease not in listed:"),
    Mutant("a beat renews nothing", BEATS,
           "            listed.add(lease)\n            desk.deadlines[lease] = desk.now + lease.lease_s\n",
           "            listed.add(lease)\n"),
    Mutant("a lease is never held again", BEATS, "lease.worker == worker and lease.may_hold_again:", "False:"),
    Mutant("a lease is held again after its tell", STATE,
           "return (self.proof is None and self.ended in", "return (self.ended in"),
    Mutant("a restart forgets the leases", DESK,
           "                desk.deadlines[lease] = desk.now + lease.lease_s", "                pass"),
    Mutant("a restart ends the leases", DESK,
           "                desk.deadlines[lease] = desk.now + lease.lease_s",
           "                desk.deadlines[lease] = desk.now"),
    Mutant("leases run on the wall clock", SERVICE, "self.desk.at(self.clock.now(), self.clock.time())",
           'self.desk.at(__import__("datetime").datetime.fromisoformat(self.clock.time()).timestamp(), "")'),
    Mutant("a lease that is held again never ends", BEATS,
           "trial=trial.number)\n    desk.deadlines[lease] = desk.now + lease.lease_s\n", "trial=trial.number)\n"),
    Mutant("missed beats are counted for a lease that has ended", BEATS,
           "        desk.deadlines.pop(lease, None)\n        desk.missed.pop(lease, None)\n        after_loss",
           "        desk.deadlines.pop(lease, None)\n        after_loss"),
    # Runs.
    Mutant("a replaced run comes back", ANSWERS, "if run in known.replaced:", "if run in known.replaced and not run:"),
    Mutant("a new run ends nothing", BEATS, "        elif lease.run != beat.run:\n", "        elif False:\n"),
    Mutant("a new run takes over what it does not list", BEATS, "        if key in named:\n", "        if True:\n"),
    # Asks.
    Mutant("an ask is served again once its trials are told", ANSWERS,
           "return n - sum(lease.holds_place for", "return n - sum(lease.is_open for"),
    Mutant("a copy of an ask does not get its grants again", ASKS,
           "    for lease in open_:\n        send_grant(desk, lease)\n", ""),
    Mutant("a withdrawn ask comes back", ASKS, "    if key in desk.withdrawn:\n", "    if ask.n == 0:\n"),
    Mutant("a slow suggestion leaves its asks without a word", TIME,
           "elif not standing.answered and now - standing.since >= ANSWER_S:", "elif False:"),
    Mutant("a worker is served whose tags do not match", SERVING,
           "        if not fits(study, standing.ask):\n            continue\n", ""),
    # Studies.
    Mutant("a closed study leases again", SERVING, 'if study.status != "open" or desk.disk_full:',
           'if study.status == "paused" or desk.disk_full:'),
    Mutant("a paused study leases", SERVING, 'if study.status != "open" or desk.disk_full:',
           'if study.status == "closed" or desk.disk_full:'),
    Mutant("the budget of trials is not looked at", SERVING,
           "study.stopping is None and (budget is None or study.used < budget)", "study.stopping is None"),
    Mutant("the budget counts every lease", STATE, 'return len(self.trials) - self.counts["voided"] - self.imported',
           "return sum(trial.fence for trial in self.trials)"),
    Mutant("new trials go before those that came back", SERVING,
           "    if study.waiting:\n        others", "    if study.waiting and not has_room(study):\n        others"),
    Mutant("a study with a running trial is closed", ENDS,
           "    elif not study.running and not study.waiting and not study.confirm and not study.remeasure:\n"
           "        rule = None",
           "    elif True:\n        rule = None"),
    Mutant("the drawer is not emptied for a point by hand", ADMIN,
           '    desk.drawer(study.name).drop()\n    serve(desk, study)\n    return "ok", {"study": study.name, "para',
           '    serve(desk, study)\n    return "ok", {"study": study.name, "para'),
    Mutant("the constraints are forgotten", DESK, "constraints=study.spec.constrained", "constraints=()"),
    Mutant("points that a plainer sampler made are made again", SUGGESTIONS,
           "    if overtaken and not", "    if False and not"),
    Mutant("a voided outcome is still known", OUTCOMES, "    forget(trial, keep_late=False)\n", ""),
    Mutant("a lost trial that is told is known twice", OUTCOMES,
           "    if trial.is_provisional:\n        forget(trial, keep_late=True)\n    if not promoted:",
           "    if not promoted:"),
    Mutant("a request is done twice", ADMIN, "    if done is not None:\n",
           "    if done is not None and False:\n"),
    Mutant("a revoked worker gets trials", ANSWERS,
           "    if known.revoked is not None:\n        reject(desk, known.name, id",
           "    if False:\n        reject(desk, known.name, id"),
    Mutant("a tell is forgotten when its trial is given up", OUTCOMES,
           "        if told is not None:           #",
           "        lease.told = told\n        if told is not None:           #"),
    # Replay.
    Mutant("a snapshot forgets the replaced runs", SNAPSHOT, '"replaced": sorted(worker.replaced)', '"replaced": []'),
]

# Those that take more than a few worlds.
SEEDS = {
    "a trial is stopped a second time": 29,
    "a budget of fidelity is not kept": 70008,
    "a late outcome is forgotten when its trial is lost": 83,
    "a repeat counts for the budget": 18,
    "a study that is open for its confirmation goes on": 330,
    "a repeat leads its study": 12,
    "patience ends one result early": 24,
    "a trial that breaks a limit is confirmed": 19,
    "what was made with a voided result is handed out": 119,
    "a lease held again stays counted as lost": 12,
    "a lease is held again after its tell": 2035,
    "a lease that is held again never ends": 12,
    "a slow suggestion leaves its asks without a word": 184,
    "a closed study leases again": 20,
    "the drawer is not emptied for a point by hand": 116,
    "points that a plainer sampler made are made again": 15,
    "while the disk is full, decisions are taken": 38,
    "a stopped trial is leased again": 285,
    "a new trial begins while one may go on": 15,
    "a leader that was voided is measured again": 1482,
    "a trial that breaks a limit leads its study": 19,
    "a trial that breaks a limit goes on first": 43,
    "what was voided in an earlier study still helps": 119,
    "a beat renews everything": 52,
    "a lease is never held again": 12,
    "leases run on the wall clock": 10,
    "an ask is served again once its trials are told": 88,
    "a withdrawn ask comes back": 295,
    "a paused study leases": 36,
    "a tell is forgotten when its trial is given up": 1017,
}


@contextmanager
def planted(mutant: Planted) -> Iterator[None]:
    """The fault, for as long as the block lasts."""
    module = importlib.import_module(mutant.module)
    source = inspect.getsource(module)
    if source.count(mutant.old) != 1:
        raise LookupError(f"{mutant.name}: its text is found {source.count(mutant.old)} times in {mutant.module}")
    file = module.__file__ or "?"
    before = _codes(compile(source, file, "exec"))
    after = _codes(compile(source.replace(mutant.old, mutant.new), file, "exec"))
    changed = [name for name in before if _plain(before[name]) != _plain(after[name])]
    if not changed:
        raise LookupError(f"{mutant.name}: it changes no function")
    kept: list[tuple[FunctionType, CodeType]] = []
    try:
        for name in changed:
            function = _find(module, name)
            kept.append((function, function.__code__))
            function.__code__ = after[name]
        yield
    finally:
        for function, code in kept:
            function.__code__ = code


def _codes(code: CodeType) -> dict[str, CodeType]:
    """Every function of a module or class body by its qualified name, the outermost ones only."""
    out: dict[str, CodeType] = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & inspect.CO_NEWLOCALS:
                out[constant.co_qualname] = constant
            else:
                out.update(_codes(constant))
    return out


def _plain(code: CodeType) -> Any:
    """What a function does, wherever it stands."""
    return (code.co_code, code.co_names, code.co_varnames,
            [_plain(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts])


def _find(module: ModuleType, name: str) -> FunctionType:
    found: Any = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    found = getattr(found, "fget", found)
    found = getattr(found, "__func__", found)
    assert isinstance(found, FunctionType)
    return found


def hunt(mutant: Mutant, worlds: int) -> tuple[int, str] | None:
    """A world that sees the fault, as (seed, what it saw); None when it survives."""
    with planted(mutant):
        for seed in (mutant.seed, *range(worlds)):
            try:
                outcome = simulate(seed)
            except Exception as error:
                return seed, f"{type(error).__name__}: {error}"
            if outcome.faults:
                return seed, outcome.faults[0]
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=WORLDS_MAX, help=f"how many each may take ({WORLDS_MAX})")
    parser.add_argument("--only", default="", help="those with this in their name")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)       # a broken daemon has much to say
    chosen = [mutant for mutant in MUTANTS if given.only in mutant.name]
    killed, began = 0, time.monotonic()
    for mutant in chosen:
        found = hunt(mutant, given.worlds)
        killed += found is not None
        how = "SURVIVES" if found is None else f"seed {found[0]}: {found[1][:140]}"
        print(f"{mutant.name}: {how}", flush=True)
    print(f"{killed}/{len(chosen)} in {time.monotonic() - began:.0f} s")
    return int(killed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
