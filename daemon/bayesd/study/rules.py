"""The rules: what each message and each passing moment means.

A rule looks at the newest state, uncommitted facts included, and records events, writes letters,
or both. It survives every message arriving twice, late, never, or in any order; where it matters
which, its docstring says so. The numbers in brackets are the rules of the wire contract.

Nothing here reads a clock: `desk.now` is given, and only differences of it are used.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from bayesd.study import again, confirm, folds, ladder, paired, pooled, pruning, stopping
from bayesd.study.desk import ANSWER_S, PATIENCE_S, Candidate, Desk, Order, Standing
from bayesd.study.problem import Suggestion
from bayesd.study.state import FINAL, Data, Lease, Study, Told, Trial, Worker
from bayesd_schemas.messages import Ask, Beat, Reason, Report, StopReason, Tell

SUGGESTIONS_MAX = 256      # candidates made in one go
PATIENCE_SHARE = 0.02      # of a mean trial's seconds: so long may a worker wait for a modelled point
MODELLED_MAX = 8           # of a model: each takes milliseconds, and the first is not held up by the last
TICK_EVENT_S = 60.0        # open time is noted at most this often, while leases are open or a budget counts it
WITHDRAWN_MAX = 100_000    # withdrawn asks remembered; the oldest are forgotten first
STANDING_MAX = 1000        # unserved asks kept for one worker
STANDING_ALL_MAX = 50_000  # and for all: each takes about 1 KiB
BUDGET_RULES = frozenset(("trials", "wall", "cost", "fidelity"))
RETRIED = frozenset(("crash", "timeout", "oom"))

# ---------------------------------------------------------------- asks [3]


def on_ask(desk: Desk, worker: str, ask: Ask) -> None:
    """Answer an ask or a copy of it: its open leases again, then new ones, then a receipt for the rest."""
    known = desk.state.worker(worker)
    if not _may_act(desk, known, ask.run, ask.id):
        return
    key = (worker, ask.run, ask.id)
    if ask.n == 0:
        standing = desk.standing.get(key)
        if standing is not None:
            desk.sit(standing)
        desk.withdrawn[key] = None
        if len(desk.withdrawn) > WITHDRAWN_MAX:
            del desk.withdrawn[next(iter(desk.withdrawn))]
    if key in desk.withdrawn:
        _answer(desk, worker, ask, "closed", "withdrawn")
        return
    leases = known.leases(ask.run, ask.id)
    open_ = [lease for lease in leases if lease.is_open]
    for lease in open_:
        _grant(desk, lease)
    if _rest(leases, ask.n) <= 0:
        standing = desk.standing.get(key)
        if standing is not None:
            desk.sit(standing)
        if not open_:
            _answer(desk, worker, ask, "duplicate")
        return
    if key not in desk.standing and (
            desk.standing_count(worker) >= STANDING_MAX or len(desk.standing) >= STANDING_ALL_MAX):
        reject(desk, worker, ask.id, "rate", f"{desk.standing_count(worker)} asks of this worker stand already, "
                                             f"{len(desk.standing)} of all workers", ask.run)
        return
    standing = desk.stand(worker, ask)
    for study in _studies_of(desk, ask):
        serve(desk, study)
    if key in desk.standing:
        _explain(desk, standing)


def _rest(leases: Iterable[Lease], n: int) -> int:
    """How many leases an ask still has coming: a lease that ended untold gives its place back."""
    return n - sum(lease.holds_place for lease in leases)


def _may_act(desk: Desk, known: Worker, run: str, id: str) -> bool:
    """A replaced run never becomes new again [4]; a revoked worker gets nothing more."""
    if run in known.replaced:
        desk.send(known.name, "receipt", {"id": run, "run": run, "status": "rejected", "reason": "name-in-use"})
        return False
    if known.revoked is not None:
        reject(desk, known.name, id, "bad-name", f"this worker is revoked: {known.revoked}", run)
        return False
    return True


def _answer(desk: Desk, worker: str, ask: Ask, status: str, reason: str | None = None) -> None:
    body = {"id": ask.id, "run": ask.run, "status": status}
    if reason is not None:
        body["reason"] = reason
    desk.send(worker, "receipt", body)


def _studies_of(desk: Desk, ask: Ask) -> list[Study]:
    """Studies that may serve an ask: the one it names, else open ones, the least busy first."""
    studies = desk.state.studies
    if ask.study is not None:
        return [studies[ask.study]] if ask.study in studies else []
    return sorted((study for study in studies.values() if study.status != "closed"),
                  key=lambda study: (study.counts["running"], study.created_seq))


def _fits(study: Study, ask: Ask) -> bool:
    return not study.spec.tags or set(study.spec.tags) <= set(ask.tags)


def serve(desk: Desk, study: Study) -> None:
    """Hand out what the study has to those who stand in line for it, oldest first."""
    if study.status != "open" or desk.disk_full:
        return
    if not (study.waiting or study.queue or study.confirm or study.remeasure or study.paused
            or desk.drawer(study.name).candidates):
        return
    for standing in desk.waiting_for(study.name):
        if not _fits(study, standing.ask):
            continue
        ask = standing.ask
        known = desk.state.worker(standing.worker)
        rest = _rest(known.leases(ask.run, ask.id), ask.n)
        while rest > 0:
            trial = _next_trial(desk, study, standing.worker)
            if trial is None:
                break
            _lease(desk, study, trial, standing)
            rest -= 1
        if rest <= 0:
            desk.sit(standing)
        elif not study.confirm:      # a leader that is to be measured again may be for somebody else in line
            return


def _next_trial(desk: Desk, study: Study, worker: str) -> Trial | None:
    """A trial to lease: one that came back, before one that goes on from its rung, before any new one [5]; a point by
    hand, before a drawn one."""
    if study.waiting:
        others = (trial for trial in study.waiting.values() if trial.leases[-1].worker != worker)
        return next(others, None) or next(iter(study.waiting.values()))
    if (trial := ladder.going_on(study)) is not None:
        return trial
    number = len(study.trials) + 1
    data = confirm.proposal(desk, study, worker) or again.proposal(study, desk.state.seq)
    if data is not None:
        desk.drawer(study.name).drop()      # what lies there was made for this number
    elif not _has_room(study):
        return None
    elif study.queue:
        data = {"params": dict(study.queue[0]), "space_rev": study.space_rev, "sampler": "enqueued",
                      "drawn": study.drawn, "as_of": desk.state.seq}
    else:
        drawer = desk.drawer(study.name)
        if not drawer.candidates:
            return None
        candidate = drawer.candidates.popleft()
        data = _provenance(desk, study, candidate)
    desk.record("trial.proposed", data, study=study, trial=number)
    return study.trials[number - 1]


def _has_room(study: Study) -> bool:
    budget = study.spec.budget.trials
    return (study.reopened is None and study.stopping is None and (budget is None or study.used < budget)
            and ladder.may_begin(study))


def _provenance(desk: Desk, study: Study, candidate: Candidate) -> Data:
    """Everything that led to a proposal, so that it can be derived again."""
    proposal = candidate.proposal
    data: Data = {"params": dict(proposal.params), "space_rev": study.space_rev, "sampler": proposal.sampler,
                  "stream": proposal.stream, "drawn": proposal.drawn, "as_of": candidate.as_of}
    if proposal.sampler == "bayes":
        data["pending"] = list(candidate.pending)
        data["fit"] = candidate.fit_seq
        data["age_s"] = round(desk.now - candidate.made, 3)
    if candidate.ahead:
        data["ahead"] = [dict(params) for params in candidate.ahead]
    if candidate.number != study.next_stream:
        data["number"] = candidate.number
    if candidate.drawn != study.drawn:
        data["after"] = candidate.drawn
    if desk.state.fingerprint is not None:
        data["engine"] = desk.state.fingerprint[:16]
    for name in ("acquisition", "gap", "mean", "sd", "index", "fallback", "prior", "power", "cost"):
        value = getattr(proposal, name)
        if value is not None and (isinstance(value, str) or math.isfinite(value)):
            data[name] = value
    if proposal.sources is not None:
        data["sources"] = dict(proposal.sources)
    for name in ("means", "sds"):
        several = getattr(proposal, name)
        if several is not None and all(map(math.isfinite, several)):
            data[name] = list(several)
    return data


def _lease(desk: Desk, study: Study, trial: Trial, standing: Standing) -> None:
    ask, limits = standing.ask, study.spec.lease
    lease_s = min(ask.lease_s or limits.default_s, limits.max_s)
    fidelity = ladder.target_of(trial)
    desk.record("trial.leased", {
        "fence": desk.state.next_fence(trial), "worker": standing.worker, "run": ask.run, "ask": ask.id,
        "lease_s": lease_s, "at": desk.time, **({} if fidelity is None else {"fidelity": fidelity})},
        study=study, trial=trial.number, elapsed=True)
    lease = trial.leases[-1]
    desk.deadlines[lease] = desk.now + lease_s
    _grant(desk, lease)


def _grant(desk: Desk, lease: Lease) -> None:
    trial = lease.trial
    fidelity = trial.study.spec.fidelity
    desk.send(lease.worker, "grant", {
        "ask": lease.ask, "run": lease.run, "study": trial.study.name, "trial": trial.number, "fence": lease.fence,
        "params": trial.params, "lease_s": lease.lease_s, "at": lease.at, "epoch": desk.state.epoch,
        "space_rev": trial.space_rev, **({} if trial.of is None else {"repeat": pooled.repeat_of(trial)}),
        **({} if fidelity is None else {"fidelity": {
            "name": fidelity.name, "value": lease.fidelity or fidelity.max,
            **({} if trial.checkpoint is None else {"from": trial.checkpoint})}})})
    _stop_again(desk, lease)


def _stop_again(desk: Desk, lease: Lease) -> None:
    """A worker that still has a trial in hand which the pruning rule stopped may not have heard of it."""
    if _stop_of(lease) == "pruned":
        desk.send(lease.worker, "stop", _stop(lease.trial.study.name, lease.trial.number, lease.fence, "pruned"))


def _explain(desk: Desk, standing: Standing, *, late: bool = False) -> None:
    """Tell a standing ask why it waits, or that it ends; say nothing while a suggestion is on its way."""
    ask = standing.ask
    status, reason = reason_of(desk, ask)
    if status == "soon":
        if not late:
            return
        status, reason = "waiting", None      # the suggestion is slow: say that the ask stands
    standing.answered = True
    _answer(desk, standing.worker, ask, status, reason)
    if status == "closed":
        desk.sit(standing)


def reason_of(desk: Desk, ask: Ask) -> tuple[str, str | None]:
    """How an unserved ask stands, and why: waiting, closed, or soon while a suggestion is on its way."""
    if ask.study is not None:
        return _standing_reason(desk, desk.state.studies.get(ask.study), ask)
    reasons = [_standing_reason(desk, study, ask) for study in _studies_of(desk, ask)]
    found = [pair for pair in reasons if pair[0] != "closed"]
    soon = [pair for pair in found if pair[0] == "soon"]
    return (soon or found or [("waiting", "unknown-study")])[0]


def _standing_reason(desk: Desk, study: Study | None, ask: Ask) -> tuple[str, str | None]:
    if study is None:
        return "waiting", "unknown-study"
    if study.status == "closed":
        return "closed", _close_reason(study)
    if not _fits(study, ask):
        return "waiting", "no-matching-tags"
    if desk.disk_full:
        return "waiting", "disk-full"
    if study.status == "paused":
        return "waiting", "paused"
    if not _has_room(study):
        return "waiting", "budget"
    if desk.drawer(study.name).exhausted:
        return "waiting", "exhausted"
    return "soon", None


def _close_reason(study: Study) -> str:
    rule = study.closed_by or "operator"
    return "budget" if rule in BUDGET_RULES else rule


# ---------------------------------------------------------------- suggestions


def orders(desk: Desk) -> list[Order]:
    """What the optimiser should work on now: studies with room and too little in the drawer."""
    out = []
    for study in desk.state.studies.values():
        drawer = desk.drawer(study.name)
        if study.status != "open" or drawer.busy_since is not None or drawer.exhausted or study.queue:
            continue
        wanted = _wanted(desk, study) - len(drawer.candidates)
        if wanted <= 0:
            continue
        problem, pending = desk.problem(study)
        if study.spec.stop is not None and study.spec.stop.by_model:
            problem = replace(problem, judged=True)
        drawer.busy_since = desk.now
        out.append(Order(study.name, drawer.generation, study.version, problem,
                         min(wanted, SUGGESTIONS_MAX), desk.state.seq, pending))
    return out


def _wanted(desk: Desk, study: Study) -> int:
    """How many candidates should lie ready: enough that nobody waits, few enough to stay fresh."""
    if not _has_room(study):
        return 0
    room = SUGGESTIONS_MAX if study.spec.budget.trials is None else study.spec.budget.trials - study.used
    queue = desk.queues.get(study.name, {})
    asked = sum(standing.ask.n for standing in queue.values()) + sum(
        standing.ask.n for standing in desk.queues.get("", {}).values())
    if not asked and not study.running:
        return 0                                   # nobody is there: make nothing
    held = len(desk.drawer(study.name).candidates)
    if study.spec.method == "bayes":
        # A fresh point is better than a ready one, and takes milliseconds: few workers get theirs made
        # when they ask (those that ask ahead do not wait), many find some ready.
        return min(room, asked + len(study.running) // 4, held + MODELLED_MAX)
    busy = asked + len(study.running)
    # A model-free point never grows stale, so draw many at once and not before they run low.
    return min(room, 4 * busy + 8) if held < busy else 0


def supply(desk: Desk, order: Order, suggestion: Suggestion) -> None:
    """Put what the optimiser made into the drawer, note its fit, and serve those who wait.

    Survives coming late: what is no longer wanted is dropped, and the study is asked for again.
    """
    study = desk.state.studies[order.study]
    drawer = desk.drawer(study.name)
    drawer.busy_since = None
    if order.version == study.version and suggestion.fit is not None and study.status != "closed":
        # A fit is logged whatever becomes of the candidates that asked for it.
        fit = suggestion.fit
        desk.record("model.fitted", {"model": fit.model, "n": fit.n, "theta": list(fit.theta),
                                     "as_of": order.as_of, "number": order.problem.number}, study=study)
    if order.version == study.version and suggestion.convergence is not None and _may_stop(study):
        fired = stopping.by_model(study.spec.stop, suggestion.convergence)
        if fired is not None:
            _stop_by(desk, study, fired, order.as_of)
            settle(desk, study)
    if order.version != study.version or order.generation != drawer.generation or study.status == "closed":
        return
    overtaken = order.problem.number != study.next_stream + len(drawer.candidates)
    if overtaken and not (study.spec.method == "bayes" and study.repeats):
        return         # a plainer sampler answered meanwhile, and these may be the same points
    # By value where a model saw them; elsewhere they are the trials proposed since `as_of`, and may be hundreds.
    ahead = order.problem.pending[len(order.pending):] if study.spec.method == "bayes" else None
    drawn = order.problem.drawn
    for number, proposal in enumerate(suggestion.proposals, order.problem.number):
        drawer.candidates.append(Candidate(proposal, order.as_of, order.pending, ahead or (),
                                           len(order.problem.history), desk.now, study.fit_seq, number, drawn))
        drawn = proposal.drawn
        if ahead is not None:
            ahead = (*ahead, proposal.params)
    if suggestion.exhausted and not suggestion.proposals:
        drawer.exhausted = True
    serve(desk, study)
    _freshen(desk, study)
    if drawer.exhausted:
        settle(desk, study)
        for standing in desk.waiting_for(study.name):
            _explain(desk, standing)


def _freshen(desk: Desk, study: Study) -> None:
    """Empty the drawer of a model's candidates when more became known since they were made than is
    good for them. With few workers a fresh one is better than a ready one; with many, one outcome
    among many pending moves little."""
    drawer = desk.drawer(study.name)
    if drawer.candidates and study.spec.method == "bayes":
        behind = len(study.history) - drawer.candidates[0].known
        if behind > len(study.running) // 4:
            drawer.drop()


def overdue(desk: Desk, deadline_s: float) -> list[Order]:
    """Studies whose suggestions are slow while somebody waits: a plainer sampler should answer now.

    Who trains for an hour does better to wait some seconds for a good point than to train on any.
    """
    out = []
    for name, drawer in desk.drawers.items():
        study = desk.state.studies.get(name)
        if study is None or drawer.busy_since is None:
            continue
        patience_s = max(deadline_s, PATIENCE_SHARE * study.told_seconds / max(1, study.told_count))
        waiting = [standing for standing in desk.waiting_for(name)
                   if desk.now - standing.began >= patience_s and _fits(study, standing.ask)]
        if waiting and study.status == "open" and _has_room(study) and not drawer.candidates:
            problem, pending = desk.problem(study)
            room = math.inf if study.spec.budget.trials is None else study.spec.budget.trials - study.used
            count = int(min(sum(standing.ask.n for standing in waiting), room, SUGGESTIONS_MAX))
            out.append(Order(name, drawer.generation, study.version, replace(problem, method="random"),
                             count, desk.state.seq, pending))
    return out


def supply_fallback(desk: Desk, order: Order, suggestion: Suggestion) -> None:
    """Serve from a plainer sampler under a deadline; the slow suggestion stays under way."""
    drawer = desk.drawer(order.study)
    busy_since = drawer.busy_since
    proposals = tuple(replace(proposal, fallback="deadline", drawn=order.problem.drawn)
                      for proposal in suggestion.proposals)
    supply(desk, order, replace(suggestion, proposals=proposals, fit=None, exhausted=False))
    drawer.busy_since = busy_since


# ---------------------------------------------------------------- beats and runs [4]


def on_beat(desk: Desk, worker: str, beat: Beat) -> None:
    """Renew what the beat lists and nothing else; a run's first beat begins it."""
    known = desk.state.worker(worker)
    if not _may_act(desk, known, beat.run, beat.run):
        return
    if beat.run != known.run:
        _begin_run(desk, known, beat)
        known = desk.state.worker(worker)
    listed: set[Lease] = set()
    for study, number, fence in beat.leases:
        lease = desk.state.lease(study, number, fence)
        if lease is not None and lease.worker == worker and lease.is_open:
            listed.add(lease)
            desk.deadlines[lease] = desk.now + lease.lease_s
            desk.missed.pop(lease, None)
            _stop_again(desk, lease)
        elif lease is not None and lease.worker == worker and lease.may_hold_again:
            _hold_again(desk, lease, beat.run)
            _stop_again(desk, lease)
            listed.add(lease)
        else:
            desk.send(worker, "stop", _stop(study, number, fence, "superseded"))
    for lease in known.open:
        if lease.run == beat.run and lease not in listed:
            missed = desk.missed.get(lease, 0) + 1
            if missed >= 2:                      # its grant was lost on the way
                _grant(desk, lease)
                missed = 0
            desk.missed[lease] = missed
    for id in beat.asks:
        standing = desk.standing.get((worker, beat.run, id))
        if standing is not None:
            standing.lapses = desk.now + PATIENCE_S


def _stop(study: str, trial: int, fence: int, reason: StopReason) -> dict[str, Any]:
    return {"study": study, "trial": trial, "fence": fence, "reason": reason}


def _begin_run(desk: Desk, known: Worker, beat: Beat) -> None:
    """Take over the leases that the first beat lists, end this worker's others, and log both."""
    named = {tuple(key) for key in beat.leases}
    took, ended = [], []
    for lease in known.open:
        key = (lease.trial.study.name, lease.trial.number, lease.fence)
        if key in named:
            took.append(key)
        elif lease.run != beat.run:
            ended.append(lease)
    desk.record("run.began", {
        "worker": known.name, "run": beat.run, "took": [list(key) for key in took],
        "ended": [[lease.trial.study.name, lease.trial.number, lease.fence] for lease in ended],
    }, actor=f"worker/{known.name}")
    replaced = desk.state.worker(known.name).replaced
    for standing in [s for s in desk.standing.values() if s.worker == known.name and s.ask.run in replaced]:
        desk.sit(standing)
    for lease in ended:
        desk.deadlines.pop(lease, None)
        desk.missed.pop(lease, None)
        _lost(desk, lease.trial)
    for study in {lease.trial.study.name: lease.trial.study for lease in ended}.values():
        settle(desk, study)
        serve(desk, study)


def _hold_again(desk: Desk, lease: Lease, run: str) -> None:
    """A listed lease that expired, or that a new run ended, goes on with the same fence and its full time."""
    trial = lease.trial
    desk.record("lease.held", {"fence": lease.fence, "run": run, "at": desk.time},
                actor=f"worker/{lease.worker}", study=trial.study, trial=trial.number)
    desk.deadlines[lease] = desk.now + lease.lease_s
    desk.missed.pop(lease, None)


# ---------------------------------------------------------------- reports [8]


def on_report(desk: Desk, worker: str, report: Report) -> None:
    """Record an intermediate value once per step, and ask the pruning rule. It renews nothing.

    A stop is an event, so it is decided once; until the worker tells, every report, copy and beat of this lease gets
    it again. A worker that goes on and tells a result is recorded all the same."""
    lease = _leased_to(desk, worker, report)
    if lease is None:
        return
    trial = lease.trial
    values = report.values if report.values is not None else {trial.study.goals[0].name: report.value}
    if lease.fence != trial.fence or trial.status in FINAL or trial.status == "paused":
        _receipt(desk, worker, report.id, "late", stop=_stop_of(lease))
        return
    outside = _outside(trial.study, values)
    if outside is not None:
        reject(desk, worker, report.id, "bad-field", f"values: {outside}")
        return
    if trial.reports is not None and report.step in trial.reports:
        first, seq, hash = trial.reports[report.step]
        _receipt(desk, worker, report.id, "duplicate" if first == values else "late", seq, hash, stop=_stop_of(lease))
        return
    event = desk.record("trial.reported", {"fence": lease.fence, "step": report.step, "values": values},
                        actor=f"worker/{worker}", study=trial.study, trial=trial.number, cmd=report.id)
    verdict = pruning.verdict(trial.study, trial)
    if verdict is not None:
        desk.record("trial.stopped", verdict.data(lease.fence), study=trial.study, trial=trial.number)
    _receipt(desk, worker, report.id, "recorded", event.seq, event.hash, stop=_stop_of(lease))
    if verdict is not None:
        _stop_again(desk, lease)


def _stop_of(lease: Lease) -> StopReason | None:
    """Why a worker that still trains on this lease should end, if it should."""
    if lease.fence != lease.trial.fence:
        return "superseded"
    if lease.ended in ("cancelled", "voided"):
        return "cancelled"
    if lease.ended == "closed":
        return "closed"
    return "pruned" if lease.trial.stopped is not None and lease.proof is None else None


def _leased_to(desk: Desk, worker: str, message: Tell | Report) -> Lease | None:
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


def _receipt(desk: Desk, worker: str, id: str, status: str, seq: int | None = None, hash: bytes | None = None,
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


# ---------------------------------------------------------------- tells [2, 5, 7]


def on_tell(desk: Desk, worker: str, tell: Tell, auth: str | None = None) -> None:
    """Record an outcome once per (trial, fence); every copy gets the first answer again. `auth`: how it is known
    that the worker said it, beside the broker's word."""
    lease = _leased_to(desk, worker, tell)
    if lease is None:
        return
    trial, study = lease.trial, lease.trial.study
    message = digest_of(tell)
    told = lease.told
    if told is not None:
        _answer_again(desk, worker, tell, told, message)
        return
    try:
        type, data = _outcome(study, tell, folds.reported(trial, tell) if lease.fence == trial.fence else None)
    except ValueError as error:
        reject(desk, worker, tell.id, "bad-field", str(error))
        return
    data = {"fence": lease.fence, "message": message.hex(), **data}
    is_part = bool(lease.fidelity) and type == "trial.completed"
    newest = lease.fence == trial.fence
    counts = newest and (trial.status not in FINAL or trial.is_provisional)
    if tell.state == "released":
        if not newest or trial.status in FINAL:
            _receipt(desk, worker, tell.id, "late")
            return
        type = "lease.released"
    elif not counts:
        data["state"] = tell.state if type != "trial.failed" else "fail"
        if is_part or (data["state"] == "fail" and data.get("values") is not None):
            data["learn"] = False
        type = "outcome.late"
    elif type == "trial.failed" and _may_retry(study, trial, data["class"], after=1):
        data["retry"] = True
    elif is_part:
        type, data["fidelity"] = "trial.paused", lease.fidelity
    elif type == "trial.pruned" and (estimate := paired.estimate(trial)) is not None:
        data["estimate"] = estimate
    if auth is not None and type != "lease.released":
        data["auth"] = auth
    desk.deadlines.pop(lease, None)
    desk.missed.pop(lease, None)
    event = desk.record(type, data, actor=f"worker/{worker}", study=study, trial=trial.number,
                        cmd=tell.id, elapsed=study.status == "open")
    _receipt(desk, worker, tell.id, "late" if type == "outcome.late" else "recorded", event.seq, event.hash)
    if trial.status == "paused" and _is_over(trial):
        _end_paused(desk, trial)
    elif _is_over(trial) or trial.stopped is not None:
        _lost(desk, trial)             # given back after the close, or after a stop: nobody will have it any more
    _moved(desk, study)


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


def _answer_again(desk: Desk, worker: str, tell: Tell, told: Told, message: bytes) -> None:
    id = tell.id
    if told.message in (message, _digest_of(tell, tell.error)):      # earlier logs counted the error in
        status = "late" if told.status == "late" else "duplicate"
        _receipt(desk, worker, id, status, told.seq, told.hash)
    else:
        _receipt(desk, worker, id, "late", told.seq, told.hash,
                 detail=f"another result with this fence is recorded at {told.seq}")


def _outcome(study: Study, tell: Tell, reported: Any = None) -> tuple[str, Data]:
    """The event type and measured data of a tell; `reported`: its folds, when it rests on reports for them. Raises
    ValueError in words for the sender."""
    data: Data = {}
    for name in ("seconds", "cost", "error", "checkpoint"):
        value = getattr(tell, name)
        if value is not None:
            data[name] = value
    goals = study.goals
    values: dict[str, float | None] | None = None
    told = tell.folds if tell.folds is not None else reported
    if isinstance(told, dict):
        data["folds"] = told
        found = {name: folds.mean_and_se(each) for name, each in told.items()}
        values = {**_beside(tell), **{name: mean for name, (mean, _) in found.items()}}
        se = found[goals[0].name][1] if goals[0].name in found else None
        if se is not None:
            data["se"] = se
    elif told is not None:
        if len(goals) > 1:
            raise ValueError("folds: this study has several objectives; tell the folds of each by name")
        data["folds"] = told
        mean, se = folds.mean_and_se(told)
        values = {**_beside(tell), goals[0].name: mean}
        if se is not None:
            data["se"] = se
    elif tell.values is not None:
        values = dict(tell.values)
    elif tell.state == "complete" and "value" not in tell.model_fields_set:
        raise ValueError("value is missing; a trial without one is told with state fail, pruned or released"
                         + ("" if study.spec.folds is None else f", or once all of its {study.spec.folds.count} folds "
                            "are reported"))
    elif tell.value is not None or tell.state == "complete":
        if len(goals) > 1:
            raise ValueError(f"value: this study has several objectives; tell values with "
                             f"{', '.join(goal.name for goal in goals)}")
        values = {goals[0].name: tell.value}
    if values is not None:
        data["values"] = values
    if tell.state == "released":
        return "lease.released", {}
    if tell.state == "fail":
        return "trial.failed", {**data, "class": tell.failure or "crash"}
    wanted = [*(goal.name for goal in goals), *(limit.metric_name for limit in study.spec.limits)]
    missing = [name for name in wanted if values is None or name not in values]
    if tell.state == "complete" and missing:
        raise ValueError(_missing(study, missing[0], tell))
    if tell.state == "complete" and any(values is not None and values[name] is None for name in wanted):
        return "trial.failed", {**data, "class": "nonfinite"}
    outside = _outside(study, values or {}, told)
    if outside is not None:
        # On record as a failure: a rejection would be sent again by some, and forgotten by all.
        data["values"] = {name: None if name in wanted else value for name, value in (values or {}).items()}
        return "trial.failed", {**data, "class": "other", "error": outside}
    return ("trial.completed" if tell.state == "complete" else "trial.pruned"), data


def _beside(tell: Tell) -> dict[str, float | None]:
    """What was told by name beside folds that were reported: they speak for the metrics that they were reported for."""
    return {} if tell.folds is not None or tell.values is None else dict(tell.values)


def _missing(study: Study, name: str, tell: Tell) -> str:
    """That a metric was not told, in words for who wrote the worker."""
    goals, limits = [goal.name for goal in study.goals], study.spec.limits
    if name in goals:
        return f"values: {name} is missing; this study's objectives are {', '.join(goals)}"
    all_ = ", ".join(dict.fromkeys([*goals, *(limit.metric_name for limit in limits)]))
    told = "values" if tell.values is not None else "folds" if tell.folds is not None else "value"
    return (f"{told}: {name} is missing, on which this study has a limit; tell "
            + (f"the folds of {all_}, each by name" if told == "folds" else f"values with {all_}"))


def _outside(study: Study, values: Mapping[str, float | None], told: Any = None) -> str | None:
    """Which value cannot be one of its metric, in words; of folds each counts, and not their rounded mean."""
    for goal in study.goals:
        if goal.bounds is not None:
            for value in (values.get(goal.name),) if told is None else told.get(goal.name, ()) if isinstance(
                    told, dict) else told:
                words = goal.misses(value) if value is not None else None
                if words is not None:
                    return words if told is None else f"in a fold, {words}"
    return None


def _is_over(trial: Trial) -> bool:
    """Whether nobody will have this trial any more: its study is closed, or open again for a confirmation alone."""
    return trial.study.status == "closed" or (trial.study.reopened is not None and trial.of is None)


def _may_retry(study: Study, trial: Trial, failure: str, after: int) -> bool:
    """The policy allows another lease after this failure (`after` 1: the failure is not counted yet)."""
    if _is_over(trial) or trial.stopped is not None or failure not in RETRIED | {"lost"}:
        return False
    limit: int = getattr(study.spec.retry, failure)
    return (trial.failures or {}).get(failure, 0) + after <= limit


def _lost(desk: Desk, trial: Trial) -> None:
    """A lease ended without a word. Past the retry limit, or after a close, the trial fails with class
    lost, provisionally; an earlier late outcome becomes the result at that moment [5]. A trial that the pruning rule
    has stopped is not leased again: it ends as pruned, as provisionally."""
    study = trial.study
    if trial.status != "waiting" or _may_retry(study, trial, "lost", after=0):
        return
    data: Data
    late = next((late for late in trial.late or () if not _is_part(trial, late.fence)), None)
    if late is None and trial.rungs:       # what it told at its rungs stands
        desk.record("trial.pruned", {**ladder.at_rung(trial), "class": "lost"}, study=study, trial=trial.number)
        return
    if late is None and trial.stopped is not None:
        data = {"fence": trial.fence, "class": "lost"}
        if (estimate := paired.estimate(trial)) is not None:
            data["estimate"] = estimate
        desk.record("trial.pruned", data, study=study, trial=trial.number)
        return
    if late is None:
        desk.record("trial.failed", {"fence": trial.fence, "class": "lost",
                                     "error": "no word from any worker that held it"},
                    study=study, trial=trial.number)
        return
    types = {"complete": "trial.completed", "fail": "trial.failed", "pruned": "trial.pruned"}
    data = {"fence": late.fence, "promoted": late.seq}
    for key, value in (("values", late.values), ("se", late.se), ("seconds", late.seconds), ("class", late.failure)):
        if value is not None:
            data[key] = value
    if late.state == "pruned" and late.values is not None and study.spec.late == "use":
        data["learn"] = False          # it is known already
    desk.record(types[late.state], data, study=study, trial=trial.number)


def _is_part(trial: Trial, fence: int) -> bool:
    """Whether what was told with this fence is of a part of the training: never in place of a result."""
    lease = trial.lease(fence)
    return lease is not None and lease.fidelity > 0


def _end_paused(desk: Desk, trial: Trial) -> None:
    """A paused trial that will not go on any more, by the rule of its study."""
    desk.record("trial.pruned", ladder.at_rung(trial, by_rule=True), study=trial.study, trial=trial.number)


def _moved(desk: Desk, study: Study) -> None:
    """After an outcome: empty a stale drawer, close by budget, serve what came free."""
    _freshen(desk, study)
    settle(desk, study)
    if study.waiting or study.confirm or study.paused:
        serve(desk, study)


# ---------------------------------------------------------------- budgets, close, time


def settle(desk: Desk, study: Study) -> None:
    """Close a study whose budget is used up; the rule that fired is on record."""
    confirm.correct(desk, study)
    if study.status == "closed":
        return
    budget = study.spec.budget
    if not study.is_announced and not confirm.is_under_way(study):
        confirm.announce(desk, study)
        if study.reopened is not None:
            close(desk, study, study.reopened)
            return
    if study.reopened is not None:
        return                         # for the confirmation alone: its budgets were used up before
    if _may_stop(study) and desk.has_news(study):
        fired = stopping.by_results(study)
        if fired is not None:
            _stop_by(desk, study, fired, desk.state.seq)
    if budget.cost is not None and study.cost >= budget.cost:
        close(desk, study, "cost")
    elif budget.wall is not None and desk.elapsed(study) >= budget.wall:
        close(desk, study, "wall")
    elif not study.running and not study.waiting and not study.confirm and not study.remeasure:
        rule = None
        if study.stopping is not None:
            rule = study.stopping["rule"]
        elif not _has_room(study):
            rule = "trials" if ladder.may_begin(study) else "fidelity"
        elif desk.drawer(study.name).exhausted and not study.queue:
            rule = "exhausted"
        if rule is not None and ladder.going_on(study) is None:
            for trial in list(study.paused.values()):
                _end_paused(desk, trial)
            _finish(desk, study, rule)


def _may_stop(study: Study) -> bool:
    return study.spec.stop is not None and study.status == "open" and study.stopping is None and study.reopened is None


def _stop_by(desk: Desk, study: Study, fired: stopping.Fired, as_of: int) -> None:
    """Record that a stop rule fired: from here on nothing new is handed out."""
    rule, numbers = fired
    desk.record("study.stopping", {"rule": rule, "numbers": numbers, "as_of": as_of}, study=study, elapsed=True)
    desk.drawer(study.name).drop()


def _finish(desk: Desk, study: Study, rule: str) -> None:
    """Every trial has its outcome: confirm the leaders if that is wanted and not done, else close."""
    wanted = study.spec.confirm
    if (wanted is None or confirm.is_done(study, wanted.top)
            or not confirm.begin(desk, study, wanted.top, wanted.repeats)):
        close(desk, study, rule)
    else:
        serve(desk, study)


def close(desk: Desk, study: Study, rule: str, *, running: str = "finish", actor: str = "daemon",
          cmd: str | None = None) -> None:
    """Close a study: nothing is leased afterwards, open leases are still recorded (running = finish)
    or ended (running = stop), and one that ends untold fails with class lost."""
    desk.record("study.closed", {"rule": rule, "running": running}, study=study, actor=actor, cmd=cmd, elapsed=True)
    desk.drawer(study.name).drop()
    if running == "stop":
        for trial in list(study.running.values()):
            end_lease(desk, trial, "closed")
    for trial in list(study.waiting.values()):
        _lost(desk, trial)
    for trial in list(study.paused.values()):
        _end_paused(desk, trial)
    confirm.correct(desk, study)       # what became known during a confirmation that this cuts off
    for standing in list(desk.queues.get(study.name, {}).values()):
        _explain(desk, standing)


def end_lease(desk: Desk, trial: Trial, reason: StopReason) -> None:
    """End a trial's open lease from this side; the worker is told after the commit."""
    lease = trial.open_lease
    if lease is None:
        return
    desk.record("lease.expired", {"fence": lease.fence, "reason": reason}, study=trial.study, trial=trial.number)
    desk.deadlines.pop(lease, None)
    desk.missed.pop(lease, None)
    _lost(desk, trial)
    desk.send(lease.worker, "stop", _stop(trial.study.name, trial.number, lease.fence, reason))


def on_tick(desk: Desk) -> None:
    """Let time act: leases run out, asks lapse or get their answer, budgets of time are used up."""
    now = desk.now
    for lease in [lease for lease, deadline in desk.deadlines.items() if deadline <= now]:
        del desk.deadlines[lease]
        desk.missed.pop(lease, None)
        if not lease.is_open:
            continue
        trial = lease.trial
        desk.record("lease.expired", {"fence": lease.fence}, study=trial.study, trial=trial.number,
                    elapsed=trial.study.status == "open")
        _lost(desk, trial)
        _moved(desk, trial.study)
    for study in desk.state.studies.values():
        if study.status != "open":
            continue
        settle(desk, study)
        if study.confirm:
            serve(desk, study)       # a leader may have waited long enough for another worker
        if ((study.running or study.spec.budget.wall is not None) and study.status == "open"
                and now - desk.since.setdefault(study.name, now) >= TICK_EVENT_S):
            desk.record("study.ticked", {}, study=study, elapsed=True)
    for standing in list(desk.standing.values()):
        if standing.lapses <= now:
            desk.sit(standing)
        elif not standing.answered and now - standing.since >= ANSWER_S:
            _explain(desk, standing, late=True)


def on_stop(desk: Desk) -> None:
    """Note the open time of studies whose budget counts it: the next daemon life knows only what is logged."""
    for study in desk.state.studies.values():
        if study.status == "open" and study.spec.budget.wall is not None:
            desk.record("study.ticked", {}, study=study, elapsed=True)
