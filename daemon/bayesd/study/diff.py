"""What changed between two moments of a log: two states beside each other, and what happened between.

    diff = Diff(before);  for event after `before`: diff.note(event);  diff.against(after)

Most of it can be read off the two states; what leaves no trace in a state (how many fits there were,
why a result was voided) is noted from the events on the way.
"""

from collections import Counter
from typing import Any

from bayesd.study import view
from bayesd.study.state import Data, Event, State, Study, Trial
from bayesd.study.texts import Words

STATES = ("running", "waiting", "complete", "fail", "pruned", "voided")


class Diff:
    """The events behind a moment, as they are noted, and then the moment after them."""

    def __init__(self, before: State, words: Words | None = None) -> None:
        self._before = before
        self._words = words or Words()
        self._types: Counter[str] = Counter()
        self._fits: Counter[str] = Counter()
        self._reasons: dict[tuple[str, int], str] = {}
        self._revoked: dict[str, str] = {}

    def note(self, event: Event) -> None:
        self._types[event.type] += 1
        if event.type == "worker.revoked":
            self._revoked[event.data["worker"]] = self._words.of(event.data).get("reason") or ""
        if event.study is None:
            return
        if event.type == "model.fitted":
            self._fits[event.study] += 1
        elif event.type == "outcome.voided" and event.trial is not None:
            self._reasons[event.study, event.trial] = self._words.of(event.data).get("reason") or ""

    def against(self, after: State) -> Data:
        """Everything that is different in `after`, ready for JSON; studies that are the same are not in it."""
        before = self._before
        studies = [self._study(before.studies.get(name), study, before.seq)
                   for name, study in after.studies.items()]
        return {"events": dict(sorted(self._types.items())), "epoch": [before.epoch, after.epoch],
                "engine_changed": before.fingerprint != after.fingerprint, "workers": self._workers(after),
                "studies": [study for study in studies if study is not None]}

    def _study(self, old: Study | None, new: Study, since: int) -> Data | None:
        blank = Study(new.name, new.spec, 0, new.goals) if old is None else old
        spec = {} if old is None else _changes(_flat(old), _flat(new))
        found: Data = {
            "study": new.name, "is_new": old is None, **view.origin(new),
            "state": [None if old is None else old.status, new.status], "closed_by": new.closed_by,
            "trials": {state: [blank.counts.get(state, 0), new.counts.get(state, 0)] for state in
                       (*STATES, *(("paused",) if new.spec.resumes else ()))},
            "imported": [blank.imported, new.imported],
            "outcomes": [_outcome(trial) for trial in new.trials if trial.outcome_seq > since
                         and trial.status != "voided"],
            "late": sum(late.seq > since for trial in new.trials for late in trial.late or ()),
            "voided": [self._voided(blank, trial) for trial in new.trials if trial.status == "voided"
                       and _status(blank, trial.number) != "voided"],
            "best": [view.best(blank), view.best(new)], "gained": _gained(blank, new),
            "fits": self._fits[new.name],
            "fitted_on": [None if each.fit is None else each.fit.n for each in (blank, new)],
            "spec": spec, "queued": [len(blank.queue), len(new.queue)],
            "elapsed_s": [blank.elapsed_s, new.elapsed_s], "cost": [blank.cost, new.cost],
            "told_seconds": [blank.told_seconds, new.told_seconds]}
        same = (not spec and not found["outcomes"] and not found["voided"] and not found["late"] and not found["fits"]
                and all(pair[0] == pair[1] for pair in (
                    found["state"], *found["trials"].values(), found["queued"], found["elapsed_s"], found["cost"])))
        return None if same and old is not None else found

    def _voided(self, old: Study, trial: Trial) -> Data:
        was = _status(old, trial.number)
        values = old.trials[trial.number - 1].values if was is not None else None
        return {"trial": trial.number, "was": was, "values": view.named(old, values),
                "reason": self._reasons.get((trial.study.name, trial.number), "")}

    def _workers(self, after: State) -> Data:
        before = self._before
        came = [name for name in after.workers if name not in before.workers]
        began = [name for name, worker in after.workers.items()
                 if name in before.workers and worker.run != before.workers[name].run]
        # Of a reason that lies outside the events a state keeps only which event it was.
        revoked = [{"worker": name, "reason": self._revoked.get(name) or worker.revoked}
                   for name, worker in after.workers.items()
                   if worker.revoked is not None and before.worker(name).revoked is None]
        return {"came": came, "began_again": began, "revoked": revoked}


def _status(study: Study, number: int) -> str | None:
    return study.trials[number - 1].status if number <= len(study.trials) else None


def _outcome(trial: Trial) -> Data:
    row = view.trial_row(trial)
    return {"seq": trial.outcome_seq, **{key: row[key] for key in (
        "trial", "state", "values", "se", "class", "seconds", "worker", "sampler", "params")}}


def _gained(old: Study, new: Study) -> float | None:
    """How much better the best value became; negative when a void took the best away."""
    if old.best is None or new.best is None or old.best.values is None or new.best.values is None:
        return None
    sign = 1.0 if new.goals[0].direction == "maximize" else -1.0
    return sign * (new.best.values[0] - old.best.values[0]) + 0.0


def _flat(study: Study) -> Data:
    """A declaration as dotted keys, so that an amendment is told key by key."""
    out: Data = {}

    def put(path: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, each in value.items():
                put(f"{path}.{key}" if path else str(key), each)
        else:
            out[path] = value
    put("", study.spec.model_dump(mode="json", exclude_unset=True, exclude={"enqueue"}))
    return out


def _changes(old: Data, new: Data) -> dict[str, list[Any]]:
    return {key: [old.get(key), new.get(key)] for key in sorted({*old, *new}) if old.get(key) != new.get(key)}
