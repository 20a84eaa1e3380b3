"""What is said to a worker: receipts, grants, stops; and whether it may act at all."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from bayesd.study import pooled
from bayesd.study.desk import Desk
from bayesd.study.state import Lease, Study, Told, Worker
from bayesd_schemas.messages import Ask, Reason, Report, StopReason, Tell


def still_due(leases: Iterable[Lease], n: int) -> int:
    """How many leases an ask still has coming: a lease that ended untold gives its place back."""
    return n - sum(lease.holds_place for lease in leases)


def may_act(desk: Desk, known: Worker, run: str, id: str) -> bool:
    """A replaced run never becomes new again [4]; a revoked worker gets nothing more."""
    if run in known.replaced:
        desk.send(known.name, "receipt", {"id": run, "run": run, "status": "rejected", "reason": "name-in-use"})
        return False
    if known.revoked is not None:
        reject(desk, known.name, id, "bad-name", f"this worker is revoked: {known.revoked}", run)
        return False
    return True


def answer_ask(desk: Desk, worker: str, ask: Ask, status: str, reason: str | None = None) -> None:
    body = {"id": ask.id, "run": ask.run, "status": status}
    if reason is not None:
        body["reason"] = reason
    desk.send(worker, "receipt", body)


def send_grant(desk: Desk, lease: Lease) -> None:
    trial = lease.trial
    fidelity = trial.study.spec.fidelity
    desk.send(lease.worker, "grant", {
        "ask": lease.ask, "run": lease.run, "study": trial.study.name, "trial": trial.number, "fence": lease.fence,
        "params": trial.params, "lease_s": lease.lease_s, "at": lease.at, "epoch": desk.state.epoch,
        "space_rev": trial.space_rev, **({} if trial.of is None else {"repeat": pooled.repeat_of(trial)}),
        **({} if fidelity is None else {"fidelity": {
            "name": fidelity.name, "value": lease.fidelity or fidelity.max,
            **({} if trial.checkpoint is None else {"from": trial.checkpoint})}})})
    stop_again(desk, lease)


def stop_again(desk: Desk, lease: Lease) -> None:
    """A worker that still has a trial in hand which the pruning rule stopped may not have heard of it."""
    if stop_of(lease) == "pruned":
        desk.send(lease.worker, "stop", stop_body(lease.trial.study.name, lease.trial.number, lease.fence, "pruned"))


def stop_body(study: str, trial: int, fence: int, reason: StopReason) -> dict[str, Any]:
    return {"study": study, "trial": trial, "fence": fence, "reason": reason}


def stop_of(lease: Lease) -> StopReason | None:
    """Why a worker that still trains on this lease should end, if it should."""
    if lease.fence != lease.trial.fence:
        return "superseded"
    if lease.ended in ("cancelled", "voided"):
        return "cancelled"
    if lease.ended == "closed":
        return "closed"
    return "pruned" if lease.trial.stopped is not None and lease.proof is None else None


def leased_to(desk: Desk, worker: str, message: Tell | Report) -> Lease | None:
    """The lease that a tell or report names; a message about another worker's lease is rejected [5]."""
    if message.study not in desk.state.studies:
        reject(desk, worker, message.id, "unknown-study", f"this log has no study {message.study}")
        return None
    lease = desk.state.lease(message.study, message.trial, message.fence)
    if lease is None or lease.worker != worker:
        reject(desk, worker, message.id, "unknown-trial",
               f"trial {message.trial} with fence {message.fence} was not leased to {worker}")
        return None
    known = desk.state.workers[worker]
    if known.revoked is not None:
        reject(desk, worker, message.id, "bad-name", f"this worker is revoked: {known.revoked}")
        return None
    return lease


def send_receipt(desk: Desk, worker: str, id: str, status: str, seq: int | None = None, hash: bytes | None = None,
             *, stop: StopReason | None = None, detail: str | None = None) -> None:
    body: dict[str, Any] = {"id": id, "status": status}
    if seq is not None and hash is not None:
        body["seq"], body["hash"] = seq, hash.hex()
    if stop is not None:
        body["stop"] = stop
    if detail is not None:
        body["detail"] = detail
    desk.send(worker, "receipt", body)


def reject(desk: Desk, worker: str, id: str, reason: Reason, detail: str, run: str | None = None) -> None:
    """Answer bad input [10]: the sender's fault, never logged, not remembered."""
    body: dict[str, Any] = {"id": id, "status": "rejected", "reason": reason, "detail": detail}
    if run is not None:
        body["run"] = run
    if reason in ("rate", "disk-full"):
        body["retry_after_s"] = 10.0
    desk.send(worker, "receipt", body)


def digest_of(tell: Tell) -> bytes:
    """Digest of a tell's known fields without id, ask, seconds and error, normalised: two tells are the same
    when these are [2]. Sixteen bytes: it is kept for every trial, and by it an error that was redacted could
    be guessed, so that stays out."""
    return _digest_of(tell, None)


def _digest_of(tell: Tell, error: str | None) -> bytes:
    failure = (tell.failure or "crash") if tell.state == "fail" else tell.failure
    known = (tell.state, tell.value, tell.values, tell.folds, tell.cost, failure, error,
             *(() if tell.checkpoint is None else (tell.checkpoint,)))
    return hashlib.sha256(orjson.dumps(known, option=orjson.OPT_SORT_KEYS)).digest()[:16]


def answer_copy(desk: Desk, worker: str, tell: Tell, told: Told, message: bytes) -> None:
    id = tell.id
    if told.message in (message, _digest_of(tell, tell.error)):      # earlier logs counted the error in
        status = "late" if told.status == "late" else "duplicate"
        send_receipt(desk, worker, id, status, told.seq, told.hash)
    else:
        send_receipt(desk, worker, id, "late", told.seq, told.hash,
                 detail=f"another result with this fence is recorded at {told.seq}")


def out_of_bounds(study: Study, values: Mapping[str, float | None], told: Any = None) -> str | None:
    """Which value cannot be one of its metric, in words; of folds each counts, and not their rounded mean."""
    for goal in study.goals:
        if goal.bounds is not None:
            for value in (values.get(goal.name),) if told is None else told.get(goal.name, ()) if isinstance(
                    told, dict) else told:
                words = goal.misses(value) if value is not None else None
                if words is not None:
                    return words if told is None else f"in a fold, {words}"
    return None
