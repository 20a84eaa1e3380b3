"""Who gets which trial: the waiting one, the promoted one, the one by hand, or a new one from the drawer."""

import math

from bayesd.study import again, confirm, ladder
from bayesd.study.desk import Candidate, Desk, Standing
from bayesd.study.rules.answers import answer_ask, send_grant, still_due
from bayesd.study.state import Data, Study, Trial
from bayesd_schemas.messages import Ask

BUDGET_RULES = frozenset(("trials", "wall", "cost", "fidelity"))


def studies_of(desk: Desk, ask: Ask) -> list[Study]:
    """Studies that may serve an ask: the one it names, else open ones, the least busy first."""
    studies = desk.state.studies
    if ask.study is not None:
        return [studies[ask.study]] if ask.study in studies else []
    return sorted((study for study in studies.values() if study.status != "closed"),
                  key=lambda study: (study.counts["running"], study.created_seq))


def fits(study: Study, ask: Ask) -> bool:
    return not study.spec.tags or set(study.spec.tags) <= set(ask.tags)


def serve(desk: Desk, study: Study) -> None:
    """Hand out what the study has to those who stand in line for it, oldest first."""
    if study.status != "open" or desk.disk_full:
        return
    if not (study.waiting or study.queue or study.confirm or study.remeasure or study.paused
            or desk.drawer(study.name).candidates):
        return
    for standing in desk.waiting_for(study.name):
        if not fits(study, standing.ask):
            continue
        ask = standing.ask
        known = desk.state.worker(standing.worker)
        rest = still_due(known.leases(ask.run, ask.id), ask.n)
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
    elif not has_room(study):
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


def has_room(study: Study) -> bool:
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
    send_grant(desk, lease)


def explain(desk: Desk, standing: Standing, *, late: bool = False) -> None:
    """Tell a standing ask why it waits, or that it ends; say nothing while a suggestion is on its way."""
    ask = standing.ask
    status, reason = reason_of(desk, ask)
    if status == "soon":
        if not late:
            return
        status, reason = "waiting", None      # the suggestion is slow: say that the ask stands
    standing.answered = True
    answer_ask(desk, standing.worker, ask, status, reason)
    if status == "closed":
        desk.sit(standing)


def reason_of(desk: Desk, ask: Ask) -> tuple[str, str | None]:
    """How an unserved ask stands, and why: waiting, closed, or soon while a suggestion is on its way."""
    if ask.study is not None:
        return _standing_reason(desk, desk.state.studies.get(ask.study), ask)
    reasons = [_standing_reason(desk, study, ask) for study in studies_of(desk, ask)]
    found = [pair for pair in reasons if pair[0] != "closed"]
    soon = [pair for pair in found if pair[0] == "soon"]
    return (soon or found or [("waiting", "unknown-study")])[0]


def _standing_reason(desk: Desk, study: Study | None, ask: Ask) -> tuple[str, str | None]:
    if study is None:
        return "waiting", "unknown-study"
    if study.status == "closed":
        return "closed", _close_reason(study)
    if not fits(study, ask):
        return "waiting", "no-matching-tags"
    if desk.disk_full:
        return "waiting", "disk-full"
    if study.status == "paused":
        return "waiting", "paused"
    if not has_room(study):
        return "waiting", "budget"
    if desk.drawer(study.name).exhausted:
        return "waiting", "exhausted"
    return "soon", None


def _close_reason(study: Study) -> str:
    rule = study.closed_by or "operator"
    return "budget" if rule in BUDGET_RULES else rule


def freshen(desk: Desk, study: Study) -> None:
    """Empty the drawer of a model's candidates when more became known since they were made than is
    good for them. With few workers a fresh one is better than a ready one; with many, one outcome
    among many pending moves little."""
    drawer = desk.drawer(study.name)
    if drawer.candidates and study.spec.method == "bayes":
        behind = len(study.history) - drawer.candidates[0].known
        if behind > len(study.running) // 4:
            drawer.drop()
