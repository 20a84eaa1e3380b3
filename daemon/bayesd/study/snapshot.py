"""The folded state as bytes and back: a disposable cache that spares a start the fold.

Never pickle: the bytes are JSON, their digest is checked, and what this version cannot read is
ignored, since the log has it all. The digest also says in 32 bytes that two states are equal,
which is how replay and life are compared.
"""

import hashlib
from typing import Any

import orjson

from bayesd.study.knowledge import besides, read_besides
from bayesd.study.ladder import Rung
from bayesd.study.problem import Fit, Observation
from bayesd.study.spec import spec_data, spec_from
from bayesd.study.state import Earlier, Lease, Origin, Outcome, Repair, State, Study, Trial, Worker

CODEC = "bayesd-json-4"


def dump(state: State) -> tuple[bytes, bytes]:
    """(digest, bytes) of a state. Equal states give equal bytes."""
    blob = orjson.dumps(_state(state), option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hashlib.sha256(blob).digest(), blob


def digest(state: State) -> str:
    """The state in 64 hex digits."""
    return dump(state)[0].hex()


def load(digest: bytes, blob: bytes) -> State | None:
    """The state that `dump` wrote, or None when these bytes are not to be believed."""
    if hashlib.sha256(blob).digest() != digest:
        return None
    try:
        return _load_state(orjson.loads(blob))
    except Exception:      # written by another version, or made up: the log has it all, so never an error
        return None


# ---------------------------------------------------------------- out


def _state(state: State) -> dict[str, Any]:
    return {"seq": state.seq, "hash": state.hash.hex(), "log": state.log, "epoch": state.epoch,
            "fingerprint": state.fingerprint, "commands": state.commands,
            "studies": [_study(study) for study in state.studies.values()],
            "workers": [_worker(worker) for worker in state.workers.values()],
            **_said_if_any(state)}


def _said_if_any(state: State) -> dict[str, Any]:
    """What most logs do not have: left out, so that the digests of older logs stay what they were."""
    out: dict[str, Any] = {}
    if state.key is not None:
        out["key"] = state.key
    if len(state.keys) > 1:
        out["keys"] = state.keys
    if state.accepted is not None:
        out["repaired"] = [state.fence_base, state.given_up, state.accepted]
    if state.repairs:
        out["repairs"] = [[each.seq, each.prev, each.accepted, each.fences_from, each.shared, each.signature]
                          for each in state.repairs]
    return out


def _study(study: Study) -> dict[str, Any]:
    return {
        **spec_data(study.spec), "created_seq": study.created_seq,
        "created": None if study.created is None else spec_data(study.created),
        "space_rev": study.space_rev, "status": study.status, "closed_by": study.closed_by,
        "trials": [_trial(trial) for trial in study.trials], "running": list(study.running),
        "waiting": list(study.waiting), "queue": study.queue, "drawn": study.drawn,
        "history": [[seen.trial, seen.values, seen.se, *besides(seen)] for seen in study.history],
        "fit": None if study.fit is None else [study.fit.model, study.fit.n, study.fit.theta],
        "fit_seq": study.fit_seq, "elapsed_s": study.elapsed_s, "cost": study.cost, "counts": study.counts,
        "best": study.best.number if study.best is not None else None, "version": study.version,
        "told_seconds": study.told_seconds, "told_count": study.told_count, **_from_elsewhere(study),
        **_confirmation(study), **_stopping(study), **({"paused": list(study.paused)} if study.paused else {})}


def _stopping(study: Study) -> dict[str, Any]:
    """What only a study has whose stop rule fired."""
    if study.stopping is None and not study.patient_since:
        return {}
    return {"stopping": study.stopping, "patient_since": study.patient_since}


def _from_elsewhere(study: Study) -> dict[str, Any]:
    """What only a study with imported trials has: others keep the digests that they had before there were any."""
    out: dict[str, Any] = {}
    if study.origin is not None:
        out["origin"] = [study.origin.study, study.origin.at, study.origin.hash]
    if study.imported or study.streams:
        out["imported"], out["streams"] = study.imported, study.streams
    if study.sources:
        out["sources"] = [[each.name, each.at, each.hash, *_carried(each)] for each in study.sources]
    return out


def _carried(source: Earlier) -> list[Any]:
    """What only a source of another log has: its results."""
    if source.study is not None:
        return []
    return [source.log, [[list(params.items()), cost] for params, cost in source.rows]]


def _confirmation(study: Study) -> dict[str, Any]:
    """What only a study has whose leaders were measured again."""
    asked: dict[str, Any] = {"remeasure": study.remeasure, "again": study.again} if (
        study.remeasure or (study.again and not study.repeated)) else {}
    if not study.repeated:
        return asked
    leaders = list(study.repeated)      # best first; the keys of a table are sorted as they are written
    return {**asked, "confirm": study.confirm, "repeated": study.repeated, "again": study.again,
            **({} if leaders == sorted(leaders, key=str) else {"leaders": leaders}),
            "reopened": study.reopened, "winner": study.winner, "is_announced": study.is_announced}


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "params": list(trial.params.items()), "space_rev": trial.space_rev, "sampler": trial.sampler,
        "proposed_seq": trial.proposed_seq, "status": trial.status, "values": trial.values, "se": trial.se,
        "seconds": trial.seconds, "failure": trial.failure, "outcome_seq": trial.outcome_seq,
        "failures": trial.failures, **({} if trial.origin is None else {"origin": trial.origin}),
        **({} if trial.of is None else {"of": trial.of}), **({"limits": trial.limits} if trial.limits else {}),
        **({} if trial.stopped is None else {"stopped": trial.stopped}), **_rungs(trial),
        "reports": None if trial.reports is None else [
            [step, *((said[0], said[1], said[2].hex()) if isinstance(said, tuple) else (said,))]
            for step, said in trial.reports.items()],
        "late": None if trial.late is None else [
            [late.state, late.fence, late.values, late.se, late.seconds, late.failure, late.seq]
            for late in trial.late],
        "leases": [[lease.worker, lease.run, lease.ask, lease.lease_s, lease.at, lease.ended,
                    None if lease.proof is None else [lease.proof.hex(), lease.told_seq, lease.told_late],
                    *(() if lease.fence == place else (lease.fence,))]
                   for place, lease in enumerate(trial.leases, start=1)]}


def _rungs(trial: Trial) -> dict[str, Any]:
    """What only a trial has that pauses at rungs."""
    out: dict[str, Any] = {}
    if any(lease.fidelity for lease in trial.leases):
        out["targets"] = [lease.fidelity for lease in trial.leases]
    if trial.rungs:
        out["rungs"] = [[fidelity, *rung[:3], *([rung.measured] if rung.measured else [])]
                        for fidelity, rung in trial.rungs.items()]
        out["checkpoint"] = trial.checkpoint
    return out


def _key(lease: Lease) -> list[Any]:
    return [lease.trial.study.name, lease.trial.number, lease.fence]


def _worker(worker: Worker) -> dict[str, Any]:
    return {"name": worker.name, "run": worker.run, "replaced": sorted(worker.replaced), "revoked": worker.revoked,
            "open": [_key(lease) for lease in worker.open],
            "asks": {run: {ask: [_key(lease) for lease in worker.leases(run, ask)] for ask in asks}
                     for run, asks in worker.asks.items()}}


# ---------------------------------------------------------------- in


def _tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _load_state(data: dict[str, Any]) -> State:
    state = State(data["seq"], bytes.fromhex(data["hash"]), data["log"], data["epoch"], data["fingerprint"])
    state.key = data.get("key")
    state.keys = data.get("keys", [] if state.key is None else [state.key])
    state.repairs = [Repair(*each) for each in data.get("repairs", ())]
    if "repaired" in data:
        state.fence_base, state.given_up, state.accepted = data["repaired"]
    state.commands = {key: (seq, type) for key, (seq, type) in data["commands"].items()}
    for each in data["studies"]:
        study = _load_study(each)
        study.sources = [_load_source(state, *source) for source in each.get("sources", ())]
        state.studies[study.name] = study
    for each in data["workers"]:
        worker = Worker(each["name"], each["run"], set(each["replaced"]), revoked=each["revoked"])
        for run, asks in each["asks"].items():
            found = {ask: [_find(state, key) for key in keys] for ask, keys in asks.items()}
            worker.asks[run] = {ask: leases if len(leases) > 1 else leases[0] for ask, leases in found.items()}
        worker.open = {_find(state, key): None for key in each["open"]}
        state.workers[worker.name] = worker
    return state


def _load_source(state: State, name: str, at: int, hash: str, log: str | None = None, rows: Any = ()) -> Earlier:
    if log is None:
        return Earlier(name, state.studies[name], at, hash)
    return Earlier(name, None, at, hash, log, tuple((dict(params), cost) for params, cost in rows))


def _find(state: State, key: list[Any]) -> Lease:
    lease = state.lease(*key)
    if lease is None:
        raise ValueError(f"no lease {key}")
    return lease


def _load_study(data: dict[str, Any]) -> Study:
    spec = spec_from(data)
    created = None if data["created"] is None else spec_from(data["created"])
    study = Study(spec.name, spec, data["created_seq"], spec.goals, created, data["space_rev"], data["status"],
                  data["closed_by"])
    for number, each in enumerate(data["trials"], start=1):
        study.trials.append(_load_trial(study, number, each))
    study.running = {number: study.trials[number - 1] for number in data["running"]}
    study.waiting = {number: study.trials[number - 1] for number in data["waiting"]}
    study.paused = {number: study.trials[number - 1] for number in data.get("paused", ())}
    study.queue, study.drawn = data["queue"], data["drawn"]
    study.history = [Observation(number, study.trials[number - 1].params, _tuple(values), se,
                                 **read_besides(more))
                     for number, values, se, *more in data["history"]]
    if data["fit"] is not None:
        model, n, theta = data["fit"]
        study.fit = Fit(model, n, tuple(theta))
    study.fit_seq, study.elapsed_s, study.cost = data["fit_seq"], data["elapsed_s"], data["cost"]
    study.counts, study.version = data["counts"], data["version"]
    study.best = study.trials[data["best"] - 1] if data["best"] is not None else None
    study.told_seconds, study.told_count = data["told_seconds"], data["told_count"]
    study.imported, study.streams = data.get("imported", 0), data.get("streams", 0)
    if "origin" in data:
        study.origin = Origin(*data["origin"])
    study.stopping, study.patient_since = data.get("stopping"), data.get("patient_since", 0)
    study.remeasure, study.again = data.get("remeasure", []), data.get("again", 0)
    if "repeated" in data:
        study.confirm, study.reopened = data["confirm"], data["reopened"]
        study.repeated = {number: data["repeated"][str(number)] for number in
                          data.get("leaders") or map(int, data["repeated"])}
        study.winner, study.is_announced = data["winner"], data["is_announced"]
    return study


def _load_trial(study: Study, number: int, data: dict[str, Any]) -> Trial:
    trial = Trial(study, number, dict(data["params"]), data["space_rev"], data["sampler"],
                  data["proposed_seq"], data["status"], values=_tuple(data["values"]), se=data["se"],
                  seconds=data["seconds"],
                  failure=data["failure"], outcome_seq=data["outcome_seq"], failures=data["failures"])
    if "origin" in data:
        trial.origin = (data["origin"][0], data["origin"][1])
    trial.of, trial.stopped = data.get("of"), data.get("stopped")
    trial.limits = tuple(data.get("limits", ()))
    if data["reports"] is not None:
        trial.reports = {step: (said[0], said[1], bytes.fromhex(said[2])) if len(said) == 3 else said[0]
                         for step, *said in data["reports"]}
    if data["late"] is not None:
        trial.late = [Outcome(*late) for late in data["late"]]
    for place, (worker, run, ask, lease_s, at, ended, told, *fence) in enumerate(data["leases"], start=1):
        lease = Lease(trial, fence[0] if fence else place, worker, run, ask, lease_s, at, ended)
        if told is not None:
            proof, lease.told_seq, lease.told_late = told
            lease.proof = bytes.fromhex(proof)
        trial.leases.append(lease)
    for lease, fidelity in zip(trial.leases, data.get("targets", ()), strict=False):
        lease.fidelity = fidelity
    if "rungs" in data:
        trial.rungs = {fidelity: Rung(tuple(values), seq, se, tuple(*measured))
                       for fidelity, values, seq, se, *measured in data["rungs"]}
        trial.checkpoint = data["checkpoint"]
    return trial
