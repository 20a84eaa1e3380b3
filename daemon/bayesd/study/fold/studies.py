"""Events of studies: declared, changed, stopped, closed; points by hand, fits of the model."""

from sys import intern

from bayesd.study.fold.common import as_number, study_of, trial_of, typed
from bayesd.study.problem import Fit
from bayesd.study.spec import spec_of
from bayesd.study.state import Earlier, Event, Origin, State, Study
from bayesd_schemas.warm import WarmStart


def study_created(state: State, event: Event) -> None:
    spec = spec_of(event.data)
    if spec.enqueue:      # typed by the space: canonical JSON writes 1.0 as 1
        spec = spec.model_copy(update={"enqueue": spec.first_points})
    name = intern(spec.name)
    state.studies[name] = Study(name, spec, event.seq, spec.goals, queue=list(spec.first_points))


def study_forked(state: State, event: Event) -> None:
    """A study that begins where another one was; what was measured there follows as imported trials."""
    study_created(state, event)
    assert event.study is not None
    study, data = state.studies[event.study], event.data
    origin = data["origin"]
    study.origin = Origin(intern(origin["study"]), origin["at"], origin["hash"])
    study.drawn, study.streams = data.get("drawn", 0), data.get("streams", 0)
    if data.get("queue") is not None:
        study.queue = [typed(study, params) for params in data["queue"]]


def study_warmed(state: State, event: Event) -> None:
    """What an earlier study measured is to help this one. It is read there, so nothing of it is kept here."""
    study, data = study_of(state, event), event.data
    name = intern(data["source"])
    if data.get("rows") is not None:
        said = [(row["params"], float(row["cost"]) + 0.0) for row in data["rows"]]
        rows, _ = WarmStart(study=name).fitted(study.spec.space, said)
        study.sources.append(Earlier(name, None, data["at"], data["hash"], data["log"], tuple(rows)))
    elif name in state.studies:      # else somebody folds a part of a log
        study.sources.append(Earlier(name, state.studies[name], data["at"], data["hash"]))


def study_amended(state: State, event: Event) -> None:
    study = study_of(state, event)
    study.created = study.created or study.spec
    study.spec = spec_of(event.data)
    study.goals = study.spec.goals
    study.version += 1
    if event.data["space_rev"] != study.space_rev:
        study.space_rev = event.data["space_rev"]
        study.drawn = 0
        study.fit = None
        study.confirm, study.remeasure = [], []  # points of another space
    study.confirm = [number for number in study.confirm if study.spec.allows(study.trials[number - 1].params)]
    study.remeasure = [number for number in study.remeasure if study.spec.allows(study.trials[number - 1].params)]
    if event.data.get("queue") is not None:      # points that are no longer allowed have left
        study.queue = [typed(study, params) for params in event.data["queue"]]
    study.leader_left = True
    study.board = study.ladder = None
    if study.stopping is not None:               # somebody wants it to go on
        study.stopping, study.patient_since = None, event.seq


def study_paused(state: State, event: Event) -> None:
    study_of(state, event).status = "paused"


def study_resumed(state: State, event: Event) -> None:
    study_of(state, event).status = "open"


def study_closed(state: State, event: Event) -> None:
    study = study_of(state, event)
    study.status = "closed"
    study.closed_by = event.data["rule"]
    study.confirm, study.reopened, study.is_announced = [], None, True
    study.remeasure = []


def study_stopping(state: State, event: Event) -> None:
    data = event.data
    study_of(state, event).stopping = {"rule": data["rule"], "as_of": data["as_of"], "numbers": {
        name: as_number(said) for name, said in data["numbers"].items()}}


def study_confirming(state: State, event: Event) -> None:
    study, data = study_of(state, event), event.data
    if study.status == "closed":
        study.status, study.reopened, study.closed_by = "open", study.closed_by, None
    study.repeated = {number: [] for number in data["trials"]}
    study.confirm = [number for _ in range(data["repeats"]) for number in data["trials"]]
    study.is_announced = False
    study.version += 1


def study_winner(state: State, event: Event) -> None:
    study = study_of(state, event)
    study.winner = {**event.data, "leaders": [
        {name: as_number(said) if name in ("value", "mean") else said for name, said in each.items()}
        for each in event.data["leaders"]]}
    study.is_announced = True


def study_ticked(state: State, event: Event) -> None:
    study_of(state, event)


def point_enqueued(state: State, event: Event) -> None:
    study = study_of(state, event)
    study.queue.append(typed(study, event.data["params"]))
    study.version += 1


def point_again(state: State, event: Event) -> None:
    trial = trial_of(state, event)
    trial.study.remeasure += [trial.number] * event.data["repeats"]
    trial.study.version += 1


def model_fitted(state: State, event: Event) -> None:
    study = study_of(state, event)
    data = event.data
    study.fit = Fit(data["model"], data["n"], tuple(map(float, data["theta"])))
    study.fit_seq = event.seq
