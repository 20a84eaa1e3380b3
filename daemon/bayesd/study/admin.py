"""What operators ask for: verbs, each a rule like any other.

A write carries the sender's (client, id) into its event, so a copy of it is answered from the log
and changes nothing. A read answers from the newest state; its reply waits behind the commits
like everything else. Replies are paged to stay under 60 KiB.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
from pydantic import ValidationError

from bayesd.study import again, confirm, fork, view, warm
from bayesd.study.desk import Desk
from bayesd.study.rules import close, end_lease, reject, serve, settle
from bayesd.study.spec import spec_data
from bayesd.study.state import FINAL, Event, State, Study, Trial
from bayesd_schemas import constraints
from bayesd_schemas.messages import Request, cut
from bayesd_schemas.names import is_name
from bayesd_schemas.study import Confirm, StudySpec
from bayesd_schemas.warm import Carried

PAGE_BYTES = 56 * 1024
REPLY_BYTES = 60 * 1024
SLOW = ("events", "metrics", "study.best", "study.effect", "study.front", "study.importance", "study.warnings",
        "study.whatif", "why")      # read the log or compute: the service answers
QUEUE_MAX = 10_000
REPEATS_MAX = 100                   # of one point in one request
REDACT_MAX = 500                    # references in one request
_REF = re.compile(r"[0-9a-f]{64}")


class Refused(Exception):
    """An operator's request that cannot be done: says whose fault it is and what is right."""

    def __init__(self, code: str, message: str, key: str | None = None, example: str | None = None) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": cut(message, 2000)}       # it may quote what was sent
        if key is not None:
            self.body["key"] = cut(key, 200)
        if example is not None:
            self.body["example"] = example


def on_request(desk: Desk, client: str, request: Request, act: "Act | None" = None) -> None:
    """Do a verb and reply. Survives copies: a write is done once and answered from its event.

    `act` does the verb in place of its entry below: with a moment of the past in hand.
    """
    desk.heard(client)
    verb = request.verb
    if verb in WRITES and not may_write(desk, client, request):
        return
    act = act or WRITES.get(verb) or READS.get(verb)
    if act is None:
        fail(desk, client, request.id, Refused(
            "unknown-verb", f"{verb} is not a verb; there are {', '.join(sorted({*WRITES, *READS, *SLOW}))}", "verb"))
        return
    try:
        status, result = act(desk, client, request)
    except Refused as refused:
        fail(desk, client, request.id, refused)
        return
    reply(desk, client, request.id, status, result)


def may_write(desk: Desk, client: str, request: Request) -> bool:
    """Whether a write is to be done now; if not, it is answered."""
    done = desk.state.commands.get(f"{client} {request.id}")
    if done is not None:
        reply(desk, client, request.id, "ok", {"seq": done[0], "event": done[1], "again": True})
        return False
    if desk.operators is not None and client not in desk.operators:
        fail(desk, client, request.id, Refused(
            "not-allowed", f"{client} is not in the list of operators", "operators", f'operators = ["{client}"]'))
        return False
    if desk.disk_full:             # a decision that cannot be written would hold back every answer after it
        fail(desk, client, request.id, Refused(
            "disk-full", "the log's disk is full and nothing was changed; free some space, then ask again"))
        return False
    return True


def reply(desk: Desk, client: str, id: str, status: str, result: Any) -> None:
    body = {"id": id, "status": status, "result": result}
    if len(orjson.dumps(body)) > REPLY_BYTES:
        fail(desk, client, id, Refused("too-large", "the answer does not fit into a message; the log file has it all"))
    else:
        desk.send(client, "reply", body)


def fail(desk: Desk, client: str, id: str, refused: Refused) -> None:
    desk.send(client, "reply", {"id": id, "status": "error", "error": refused.body})


# ---------------------------------------------------------------- arguments


def _need(request: Request, key: str, kind: type | tuple[type, ...], example: str) -> Any:
    value = request.args.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Refused("bad-field", f"{request.verb} needs {key}", key, example)
    return value


def _reason(request: Request, example: str) -> str:
    """Why: words that somebody reads years later, so none at all are refused."""
    reason: str = _need(request, "reason", str, example)
    if not reason.strip():
        raise Refused("bad-field", f"{request.verb} needs a reason: say why in a few words", "reason", example)
    return reason


def _study_of(desk: Desk, request: Request) -> Study:
    name = _need(request, "study", str, '{"study": "digits-svm"}')
    study = desk.state.studies.get(name)
    if study is None:
        known = ", ".join(list(desk.state.studies)[:20]) or "none yet"
        raise Refused("unknown-study", f"this log has no study {cut(name, 80)!r}; it has {known}", "study")
    return study


def _open_study_of(desk: Desk, request: Request) -> Study:
    study = _study_of(desk, request)
    if study.status == "closed" or study.reopened is not None:
        only = "" if study.status == "closed" else " and open to measure its leaders again, nothing else"
        raise Refused("closed", f"{study.name} is closed by rule {study.closed_by or study.reopened}{only}; "
                                "a closed study stays closed: create another", "study")
    return study


def _trial_of(desk: Desk, request: Request) -> Trial:
    study = _study_of(desk, request)
    number = _need(request, "trial", int, '{"study": "digits-svm", "trial": 7}')
    trial = desk.state.trial(study.name, number)
    if trial is None:
        raise Refused("unknown-trial", f"{study.name} has {len(study.trials)} trials, no trial {number}", "trial")
    return trial


def explain(error: ValidationError) -> tuple[str, str]:
    """The first fault of a study file as (key, what was expected)."""
    first = error.errors(include_url=False, include_context=False)[0]
    loc = [str(part) for part in first["loc"] if part not in ("float", "int", "categorical", "ordinal")]
    words = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        words = "unknown key"
    return ".".join(loc), words


def _spec(data: Any) -> StudySpec:
    if not isinstance(data, dict):
        raise Refused("bad-field", "spec is the study file as an object", "spec", '{"spec": {"name": "digits-svm"}}')
    try:
        return StudySpec.model_validate(data)
    except ValidationError as error:
        key, words = explain(error)
        raise Refused("bad-field", f"{key}: {words}" if key else words, key or "spec") from error


def _actor(client: str, request: Request) -> dict[str, Any]:
    return {"actor": f"operator/{client}", "cmd": request.id}


# ---------------------------------------------------------------- writes

Result = tuple[str, Any]


def study_create(desk: Desk, client: str, request: Request) -> Result:
    """The same file again answers `exists`; another file under a used name is refused."""
    spec = _spec(request.args.get("spec"))
    known = desk.state.studies.get(spec.name)
    if known is not None:
        if spec in (known.spec, known.created):
            return "exists", view.study_row(known)
        raise Refused("name-used", f"this log has another study named {spec.name}; amend it, or choose another name",
                      "name", f'name = "{spec.name}-2"')
    try:
        warmed = warm.events(desk.state, spec)
        if request.args.get("warm") is not None:
            warmed.append(warm.brought(_carried(request.args["warm"]), spec))
    except warm.Unusable as error:
        raise Refused("bad-field", f"warm_start: {error}", "warm_start") from error
    event = desk.record("study.created", spec_data(spec), study=spec.name, **_actor(client, request))
    desk.since[spec.name] = desk.now
    study = desk.state.studies[spec.name]
    for data in warmed:
        desk.record("study.warmed", data, study=study, actor=f"operator/{client}")
    serve(desk, study)
    return "ok", {**view.study_row(study), "seq": event.seq}


def _carried(said: Any) -> Carried:
    try:
        return Carried.model_validate(said)
    except ValidationError as error:
        key, words = explain(error)
        raise Refused("bad-field", f"warm.{key}: {words}", "warm") from error


def study_pause(desk: Desk, client: str, request: Request) -> Result:
    study = _open_study_of(desk, request)
    if study.status == "paused":
        return "exists", view.study_row(study)
    desk.record("study.paused", {}, study=study, elapsed=True, **_actor(client, request))
    desk.drawer(study.name).drop()
    return "ok", view.study_row(study)


def study_resume(desk: Desk, client: str, request: Request) -> Result:
    study = _open_study_of(desk, request)
    if study.status == "open":
        return "exists", view.study_row(study)
    desk.record("study.resumed", {}, study=study, elapsed=True, **_actor(client, request))
    settle(desk, study)
    serve(desk, study)
    return "ok", view.study_row(study)


def study_close(desk: Desk, client: str, request: Request) -> Result:
    running = request.args.get("running", "finish")
    if running not in ("finish", "stop"):
        raise Refused("bad-field", "running is finish or stop", "running", '{"running": "finish"}')
    study = _study_of(desk, request)
    if study.status == "closed":
        return "exists", view.study_row(study)
    close(desk, study, "operator", running=running, **_actor(client, request))
    return "ok", view.study_row(study)


def study_confirm(desk: Desk, client: str, request: Request) -> Result:
    """Have the leaders measured again, on other workers where there are any; a closed study opens for that alone."""
    study = _study_of(desk, request)
    try:
        wanted = Confirm.model_validate({key: request.args[key] for key in ("top", "repeats") if key in request.args})
    except ValidationError as error:
        key, words = explain(error)
        raise Refused("bad-field", f"{key}: {words}", key, '{"top": 3, "repeats": 1}') from error
    if not study.is_announced:
        raise Refused("busy", f"{study.name} measures its leaders again already: trials "
                              f"{', '.join(map(str, study.repeated))}; wait for its winner", "study")
    chosen = confirm.begin(desk, study, wanted.top, wanted.repeats, **_actor(client, request))
    if not chosen:
        raise Refused("bad-field", f"no trial of {study.name} is complete: there is nothing to measure again", "study")
    serve(desk, study)
    return "ok", {**view.study_row(study), "leaders": [trial.number for trial in chosen], "repeats": wanted.repeats,
                  "to_measure": len(chosen) * wanted.repeats}


AMENDABLE = ("budget", "stop", "lease", "retry", "confirm", "folds", "late", "noise", "tags", "method", "surrogate",
             "space", "constraints", "prior", "bounds", "objectives", "cost", "limits", "prune", "winner")
FIXED = {
    "fidelity": "what trials told at their rungs, and how far workers train now, is counted in it: fork the study",
    "warm_start": "what helps a study is read when it is created: create another",
    "seed": "the points that were drawn already came from it: fork the study",
    "enqueue": "its points are in the queue: enqueue others"}
"""Why parts of a declaration cannot be amended, where somebody may expect it."""
PARTS = ("budget", "stop", "lease", "retry", "confirm", "cost", "prune", "winner")
"""Tables of which an amendment changes what it names, and the rest stays."""


def study_amend(desk: Desk, client: str, request: Request) -> Result:
    """Change parts of an open study from now on. Old trials stay as they are."""
    study = _open_study_of(desk, request)
    changes = _need(request, "changes", dict, '{"changes": {"budget": {"trials": 100}}}')
    if not changes:
        raise Refused("bad-field", "changes is empty", "changes")
    for key in changes:
        if key not in AMENDABLE:
            why = f" ({FIXED[key]})" if key in FIXED else ""
            raise Refused("bad-field", f"{cut(str(key), 80)} cannot be amended{why}; {', '.join(AMENDABLE)} can",
                          str(key))
    spec = _spec(_changed(study.spec, changes))
    if [goal.model_copy(update={"bounds": None}) for goal in spec.goals] != [
            goal.model_copy(update={"bounds": None}) for goal in study.goals]:
        raise Refused("bad-field", "of objectives only the bounds can be amended: results of another metric or "
                      "direction would mean something else; fork the study", "objectives")
    if (spec.cost and spec.cost.per) != (study.spec.cost and study.spec.cost.per):
        raise Refused("bad-field", "of cost only aware can be amended: what a model of costs learned is in one unit; "
                      "fork the study", "cost")
    if [limit.metric_name for limit in spec.limits] != [limit.metric_name for limit in study.spec.limits]:
        raise Refused("bad-field", "of limits only what they allow can be amended: trials were not asked for another "
                      "metric; fork the study", "limits")
    if spec.resumes != study.spec.resumes:
        raise Refused("bad-field", "of prune everything but resume can be amended: trials stand at their rungs, and "
                      "workers train up to them; fork the study", "prune")
    new_space = spec.space != study.spec.space
    data: dict[str, Any] = {**spec_data(spec), "space_rev": study.space_rev + new_space}
    dropped = 0
    if (new_space or spec.constraints != study.spec.constraints) and study.queue:
        kept = []
        for params in study.queue:
            try:
                kept.append(_allowed(spec, params))
            except ValueError:
                dropped += 1
        data["queue"] = kept
    event = desk.record("study.amended", data, study=study, elapsed=True, **_actor(client, request))
    desk.drawer(study.name).drop()
    settle(desk, study)
    serve(desk, study)
    result = {**view.study_row(study), "space_rev": study.space_rev, "seq": event.seq}
    return "ok", {**result, "dropped_from_queue": dropped} if dropped else result


def _changed(spec: StudySpec, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A study file with parts of it changed; of PARTS and of the space, what is not named stays."""
    before = spec.model_dump(mode="json", exclude_unset=True)
    before.pop("enqueue", None)            # handed out, or in the queue
    after = {**before, **changes}
    for part in PARTS:
        if isinstance(changes.get(part), dict):
            after[part] = {**(before.get(part) or {}), **changes[part]}
    if isinstance(changes.get("space"), dict):
        # A parameter given as null leaves the space.
        merged = {**before["space"], **changes["space"]}
        after["space"] = {name: parameter for name, parameter in merged.items() if parameter is not None}
    return after


def study_fork(desk: Desk, client: str, request: Request, past: State | None = None,
               taken: fork.Prefix | None = None) -> Result:
    """Begin another study with what this one knew at a moment: `past`, or now. `taken`: what `fork_prefix` found
    before, of that very moment.

    Its declaration is that of the moment, with `changes` as in an amend, or `spec` as a whole. The study and all
    that it takes over are recorded in one go, so they are committed as one.
    """
    study, spec, keep_queue = _fork_of(desk, request, past or desk.state)
    taken = taken or fork.prefix(past or desk.state, study, spec, keep_queue=keep_queue)
    if taken.left_out and not taken.imported:
        raise Refused("bad-field", f"the new space has no place for any trial of {study.name} ({taken.why})", "space")
    event = desk.record("study.forked", taken.forked, study=spec.name, **_actor(client, request))
    desk.since[spec.name] = desk.now
    made = desk.state.studies[spec.name]
    for number, data in taken.imported:
        desk.record("trial.imported", data, actor=f"operator/{client}", study=made, trial=number)
    for data in warm.kept(study, spec):
        desk.record("study.warmed", data, actor=f"operator/{client}", study=made)
    serve(desk, made)
    result = {**view.study_row(made), "seq": event.seq, "origin": taken.forked["origin"], "imported": made.imported,
              "left_out": taken.left_out, "not_carried": taken.pending}
    return "ok", {**result, "why_left_out": taken.why} if taken.why else result


def fork_prefix(desk: Desk, request: Request, past: State) -> fork.Prefix:
    """What a fork at a moment of the past begins with: it takes long for many trials, and nothing moves there, so
    it may be found in a thread. Raises Refused."""
    study, spec, keep_queue = _fork_of(desk, request, past)
    return fork.prefix(past, study, spec, keep_queue=keep_queue)


def _fork_of(desk: Desk, request: Request, past: State) -> tuple[Study, StudySpec, bool]:
    """The study that is forked, the declaration of the fork, and whether it keeps the points enqueued by hand."""
    study = _study_of(Desk(past), request)
    name = _need(request, "as", str, '{"as": "digits-svm-2"}')
    changes, whole = request.args.get("changes") or {}, request.args.get("spec")
    if not isinstance(changes, dict) or not isinstance(whole, dict | None):
        raise Refused("bad-field", "changes and spec are objects", "changes", '{"changes": {"method": "random"}}')
    spec = _spec({**(_changed(study.spec, changes) if whole is None else {**whole, **changes}), "name": name})
    if spec.warm_start and spec.warm_start != study.spec.warm_start:
        raise Refused("bad-field", f"a fork keeps the earlier studies that help {study.name}, or has none",
                      "warm_start")
    if spec.name in desk.state.studies:
        raise Refused("name-used", f"this log has a study named {spec.name} already", "as",
                      f'{{"as": "{spec.name}-2"}}')
    missing = [goal.name for goal in spec.goals if goal.name not in {goal.name for goal in study.goals}]
    if missing:
        raise Refused("bad-field", f"{study.name} measured no {missing[0]}, so its results mean nothing to a fork that "
                                   f"looks at it; it measured {', '.join(goal.name for goal in study.goals)}", "metric")
    return study, spec, whole is None and "enqueue" not in changes


def study_enqueue(desk: Desk, client: str, request: Request) -> Result:
    """Try this point next, before any drawn one."""
    study = _open_study_of(desk, request)
    if "again" in request.args:
        return _measure_again(desk, client, request, study)
    given = _need(request, "params", dict, '{"params": {"C": 1.0, "kernel": "rbf"}}')
    if len(study.queue) >= QUEUE_MAX:
        raise Refused("full", f"{QUEUE_MAX} points are enqueued already; wait for some to be handed out", "params")
    try:
        params = _allowed(study.spec, given)
    except ValueError as error:
        raise Refused("bad-field", str(error), "params") from error
    event = desk.record("point.enqueued", {"params": params}, study=study, **_actor(client, request))
    desk.drawer(study.name).drop()
    serve(desk, study)
    return "ok", {"study": study.name, "params": params, "queued": len(study.queue), "seq": event.seq}


def _measure_again(desk: Desk, client: str, request: Request, study: Study) -> Result:
    """Have the point of a trial measured again, by whoever asks first."""
    example = '{"study": "digits-svm", "again": 7, "repeats": 2}'
    number, repeats = _need(request, "again", int, example), request.args.get("repeats", 1)
    if "params" in request.args:
        raise Refused("bad-field", "again is the point of a trial, so params has no place beside it", "params", example)
    if not isinstance(repeats, int) or isinstance(repeats, bool) or not 1 <= repeats <= REPEATS_MAX:
        raise Refused("bad-field", f"repeats is a whole number from 1 to {REPEATS_MAX}", "repeats", example)
    trial = desk.state.trial(study.name, number)
    if trial is None:
        raise Refused("unknown-trial", f"{study.name} has {len(study.trials)} trials, no trial {number}", "again")
    if study.reopened is not None:
        raise Refused("busy", f"{study.name} is open for a confirmation alone; wait for its winner", "study")
    if len(study.remeasure) + repeats > QUEUE_MAX:
        raise Refused("full", f"{len(study.remeasure)} evaluations are enqueued already; wait for some", "repeats")
    trial = again.point_of(study, trial)
    words = again.obstacle(study, trial)
    if words is not None:
        raise Refused("bad-field", words, "again")
    event = desk.record("point.again", {"repeats": repeats}, study=study, trial=trial.number,
                        **_actor(client, request))
    desk.drawer(study.name).drop()
    serve(desk, study)
    return "ok", {"study": study.name, "of": trial.number, "params": dict(trial.params), "repeats": repeats,
                  "queued": len(study.remeasure), "seq": event.seq}


def _allowed(spec: StudySpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """A point by hand, typed by the space. Raises ValueError when space or constraints do not have it."""
    params = spec.space.check(given)
    constraints.check(spec.constrained, params)
    return params


def trial_cancel(desk: Desk, client: str, request: Request) -> Result:
    """End a trial for good: its worker is stopped, and it fails with class cancelled."""
    trial = _trial_of(desk, request)
    if trial.status in FINAL:
        return "exists", view.trial_row(trial)
    lease = trial.open_lease
    reason = request.args.get("reason")
    if isinstance(reason, str):
        reason = _reason(request, '{"reason": "it diverges"}')
    event = desk.record("trial.failed", {
        "fence": trial.fence, "class": "cancelled", "ended": "cancelled",
        "error": cut(reason, 400) if isinstance(reason, str) else "cancelled by an operator",
    }, study=trial.study, trial=trial.number, **_actor(client, request))
    if lease is not None:
        _forget_lease(desk, trial)
        desk.send(lease.worker, "stop", {"study": trial.study.name, "trial": trial.number, "fence": lease.fence,
                                         "reason": "cancelled"})
    settle(desk, trial.study)
    return "ok", {**view.trial_row(trial), "seq": event.seq}


def trial_void(desk: Desk, client: str, request: Request) -> Result:
    """Take a trial out of what the optimiser knows, with a reason, and with it its copies in forks of its study,
    in the same commit. The old events stay."""
    trial = _trial_of(desk, request)
    reason = _reason(request, '{"reason": "the sensor was unplugged"}')
    copies = _live(fork.copies(desk.state, {trial: 0}))
    doomed = [*_live([trial]), *copies]
    if not doomed:
        return "exists", view.trial_row(trial)
    by = _actor(client, request)
    seq = min(_void(desk, each, reason, by).seq for each in doomed)
    for study in {each.study.name: each.study for each in doomed}.values():
        desk.drawer(study.name).drop()
        settle(desk, study)
        serve(desk, study)
    return "ok", {**view.trial_row(trial), "seq": seq, **_copies(copies)}


def _live(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.status != "voided"]


def _copies(voided: list[Trial]) -> dict[str, Any]:
    """For a reply: how many trials of forks were voided with those that they were taken over from, and where."""
    if not voided:
        return {}
    return {"copies": len(voided), "forks": sorted({trial.study.name for trial in voided})[:view.SHOWN_MAX]}


def _void(desk: Desk, trial: Trial, reason: str, by: dict[str, Any]) -> Event:
    lease = trial.open_lease
    event = desk.record("outcome.voided", {"reason": cut(reason, 1000)}, study=trial.study, trial=trial.number, **by)
    for other in desk.state.studies.values():
        if other.learned_from(trial):
            desk.drawer(other.name).drop()
    if lease is not None:
        _forget_lease(desk, trial)
        desk.send(lease.worker, "stop", {"study": trial.study.name, "trial": trial.number, "fence": lease.fence,
                                         "reason": "cancelled"})
    return event


def _forget_lease(desk: Desk, trial: Trial) -> None:
    desk.deadlines.pop(trial.leases[-1], None)
    desk.missed.pop(trial.leases[-1], None)


def worker_revoke(desk: Desk, client: str, request: Request) -> Result:
    """Give a worker nothing more and take nothing more from it; its open trials are offered again. With `void`,
    all that it told leaves what the optimiser knows, too, in forks as well: an event for each trial, in the same
    commit."""
    name = _need(request, "worker", str, '{"worker": "gpu-7"}')
    if not is_name(name):
        raise Refused("bad-field", "that is not a worker's name", "worker", "gpu-7")
    void = request.args.get("void", False)
    if not isinstance(void, bool):
        raise Refused("bad-field", "void is true or false", "void", '{"void": true}')
    reason: Any = request.args.get("reason")
    if void or isinstance(reason, str):
        reason = _reason(request, '{"reason": "its clock was wrong"}')
    else:
        reason = "revoked by an operator"
    by = _actor(client, request)
    event = desk.record("worker.revoked", {"worker": name, "reason": cut(reason, 400)}, **by)
    worker = desk.state.workers[name]
    for standing in [standing for standing in desk.standing.values() if standing.worker == name]:
        desk.sit(standing)
        reject(desk, name, standing.ask.id, "bad-name", "this worker is revoked", standing.ask.run)
    told = _told_by(desk, name) if void else {}
    copies = _live(fork.copies(desk.state, told))
    voided = [*_live(told), *copies]
    for trial in voided:
        _void(desk, trial, reason, by)
    touched = {trial.study.name: trial.study for trial in voided}
    for study in touched.values():
        desk.drawer(study.name).drop()
    for lease in list(worker.open):
        end_lease(desk, lease.trial, "cancelled")
        touched[lease.trial.study.name] = lease.trial.study
    for study in touched.values():
        settle(desk, study)
        serve(desk, study)
    result = {**view.worker_row(worker), "seq": event.seq}
    if void:
        result["voided"] = len(voided)
        result["trials"] = [[trial.study.name, trial.number] for trial in voided[:view.SHOWN_MAX]]
        result.update(_copies(copies))
    return "ok", result


def _told_by(desk: Desk, worker: str) -> dict[Trial, int]:
    """Trials of which the optimiser knows, or may yet know, something from this worker, void ones too, and since
    which event. An attempt that failed and was tried again is no outcome. A late one counts where it is known, or
    is next in line to become the result; a trial that has both is void as a whole."""
    found: dict[Trial, int] = {}
    for study in desk.state.studies.values():
        known = Counter(seen.trial for seen in study.history)
        for trial in study.trials:
            fences = _late_fences(trial, known[trial.number])
            at_rungs = {rung.seq for rung in (trial.rungs or {}).values()}
            seqs = [lease.told_seq for lease in trial.leases if lease.worker == worker and lease.proof is not None
                    and (lease.told_seq == trial.outcome_seq or lease.told_seq in at_rungs or lease.fence in fences)]
            if seqs:
                found[trial] = min(seqs)
    return found


def _late_fences(trial: Trial, known: int) -> set[int]:
    """Fences whose late outcomes move the optimiser, or may; `known`: how many observations it has of the trial."""
    if not trial.late:
        return set()
    if trial.status == "voided" and trial.study.spec.late == "use":      # what forks may have taken over
        return {late.fence for late in trial.late}
    first = {trial.late[0].fence}
    if trial.is_pending or trial.promoted:
        return first | ({late.fence for late in trial.late} if known else set())
    return {late.fence for late in trial.late} if known > 1 else set()


def text_redact(desk: Desk, client: str, request: Request) -> Result:
    """Delete free text of the log for ever. What it was referred to by stays, and so does the chain."""
    refs = _need(request, "refs", list, '{"refs": ["<64 hex digits>"]}')
    if not refs or len(refs) > REDACT_MAX or not all(isinstance(ref, str) and _REF.fullmatch(ref) for ref in refs):
        raise Refused("bad-field", f"refs are 1 to {REDACT_MAX} references of 64 hex digits, as `bayesd log show "
                                   "-f json` shows them", "refs")
    reason = _reason(request, '{"reason": "it names a person"}')
    event = desk.record("text.redacted", {"refs": refs, "reason": cut(reason, 400)}, redacts=tuple(refs),
                        **_actor(client, request))
    return "ok", {"redacted": len(refs), "seq": event.seq}


# ---------------------------------------------------------------- reads


def study_list(desk: Desk, client: str, request: Request) -> Result:
    return "ok", page(request, ((name, view.study_row(study)) for name, study in sorted(desk.state.studies.items())),
                      "studies")


def study_show(desk: Desk, client: str, request: Request) -> Result:
    study = _study_of(desk, request)
    state = view.study_state(desk.state, study, desk.elapsed(study))
    shown = {**state, "spec": study.spec.model_dump(mode="json", exclude_unset=True), "queued": len(study.queue),
             **view.origin(study), **view.confirmation(study)}
    if len(orjson.dumps(shown)) > PAGE_BYTES:
        shown["spec"].pop("space")             # it stands beside
        shown["spec"].pop("enqueue", None)
    return "ok", shown


def trial_list(desk: Desk, client: str, request: Request) -> Result:
    study = _study_of(desk, request)
    return "ok", page(request, ((trial.number, view.trial_row(trial)) for trial in study.trials), "trials")


def trial_show(desk: Desk, client: str, request: Request) -> Result:
    shown = view.trial_page(_trial_of(desk, request))
    reports = ((said[0], said) for said in shown.pop("reports"))
    return "ok", {**shown, **page(request, reports, "reports", len(orjson.dumps(shown)))}


def worker_list(desk: Desk, client: str, request: Request) -> Result:
    """With the daemon's time, by which others can see how far their clocks are apart."""
    rows = ((name, view.worker_row(worker)) for name, worker in sorted(desk.state.workers.items()))
    return "ok", {"time": desk.time, **page(request, rows, "workers")}


def page(request: Request, rows: Iterable[tuple[Any, Any]], name: str, size: int = 0) -> dict[str, Any]:
    """Rows after `after`, at most `limit` and at most what fits into one reply that holds `size` bytes already,
    with `next` if there are more."""
    after, limit = request.args.get("after"), request.args.get("limit", 1000)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise Refused("bad-field", "limit is a number from 1", "limit", '{"limit": 100}')
    out: list[dict[str, Any]] = []
    last = None
    for key, row in rows:
        if after is not None and (not isinstance(after, type(key)) or key <= after):
            if not isinstance(after, type(key)):
                raise Refused("bad-field", "after is the `next` of the page before", "after")
            continue
        size += len(orjson.dumps(row)) + 1
        if out and (len(out) >= limit or size > PAGE_BYTES):
            return {name: out, "next": last}
        out.append(row)
        last = key
    return {name: out}


Act = Callable[[Desk, str, Request], Result]

WRITES: dict[str, Act] = {
    "study.create": study_create, "study.pause": study_pause, "study.resume": study_resume,
    "study.close": study_close, "study.amend": study_amend, "study.enqueue": study_enqueue,
    "study.confirm": study_confirm,
    "study.fork": study_fork,
    "trial.cancel": trial_cancel, "trial.void": trial_void, "worker.revoke": worker_revoke,
    "text.redact": text_redact,
}
READS: dict[str, Act] = {
    "study.list": study_list, "study.show": study_show, "trial.list": trial_list, "trial.show": trial_show,
    "worker.list": worker_list,
}
