"""What only a running daemon knows: who stands in line, which answer lies ready, when a lease runs out.

Read off the desk in one go, as plain values, so that a page can be made of it in another thread.
"""

from typing import Any

from bayesd.study.desk import Desk, Standing
from bayesd.study.rules import reason_of
from bayesd.study.state import Lease, Study

STANDING_MAX = 20       # asks that a page names, the oldest

Live = dict[str, Any]


def of_study(desk: Desk, study: Study) -> Live:
    standing = list(desk.waiting_for(study.name))
    drawer = desk.drawer(study.name)
    return {
        "time": desk.time, "elapsed_s": round(desk.elapsed(study), 3), "disk_full": desk.disk_full,
        "asks": len(standing), "standing": [_ask(desk, each) for each in standing[:STANDING_MAX]],
        "ready": len(drawer.candidates), "exhausted": drawer.exhausted,
        "thinking_s": None if drawer.busy_since is None else round(desk.now - drawer.busy_since, 3),
        "leases": [_lease(desk, trial.leases[-1]) for trial in list(study.running.values())[:STANDING_MAX]
                   if trial.leases]}


def of_worker(desk: Desk, name: str) -> Live:
    standing = sorted((each for each in desk.standing.values() if each.worker == name), key=lambda each: each.order)
    return {
        "time": desk.time, "disk_full": desk.disk_full, "asks": len(standing),
        "standing": [_ask(desk, each) for each in standing[:STANDING_MAX]],
        "leases": [_lease(desk, lease) for lease in list(desk.state.worker(name).open)[:STANDING_MAX]],
        "operator": name in desk.clients,
        "known": sorted({*desk.state.workers, *(each.worker for each in desk.standing.values())})[:200]}


def _ask(desk: Desk, standing: Standing) -> Live:
    ask = standing.ask
    status, reason = reason_of(desk, ask)
    study = desk.state.studies.get(ask.study or "")
    return {"worker": standing.worker, "run": ask.run, "ask": ask.id, "study": ask.study, "n": ask.n,
            "tags": list(ask.tags), "wanted_tags": list(study.spec.tags) if study is not None else [],
            "for_s": round(desk.now - standing.began, 1), "heard_s": round(desk.now - standing.since, 1),
            "lapses_s": round(standing.lapses - desk.now, 1), "status": status, "reason": reason}


def _lease(desk: Desk, lease: Lease) -> Live:
    deadline = desk.deadlines.get(lease)
    return {"study": lease.trial.study.name, "trial": lease.trial.number, "fence": lease.fence,
            "worker": lease.worker, "at": lease.at, "lease_s": lease.lease_s,
            "left_s": None if deadline is None else round(deadline - desk.now, 1)}
