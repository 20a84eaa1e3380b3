"""What another pruning rule would have made of the reports on record: the daemon's own rules, asked again.

The events of the study are folded as they came, under a declaration that has the other rule, and after each report the
rule says whether to go on, as it would have in the daemon. A trial that it stops ends there: what it did afterwards
is saved, and it is no yardstick for others any more. A trial that the study's own rule had stopped has no more reports
than it had: what it would have come to, nobody measured.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from bayesd.study import pruning
from bayesd.study.fold import apply
from bayesd.study.state import Event, State
from bayesd_schemas.study import LOGGED, Fidelity, Prune, StudySpec

Body = dict[str, Any]
KEYS = ("startup", "warmup", "percentile", "chance", "error", "min_folds", "by")
"""What can be asked of a rule beside its name, as in [prune] of a study file."""
_SKIPPED = frozenset(("trial.stopped", "study.warmed", "text.redacted"))
_WORK = frozenset(("trial.reported", "trial.completed", "trial.failed", "trial.pruned", "trial.paused", "outcome.late"))


@dataclass(slots=True)
class Judged:
    """What the rule said."""

    rule: Body
    """As it was asked, with its defaults."""
    cut: dict[int, int] = field(default_factory=dict)
    """Trial -> the step at which it is stopped."""
    per: dict[int, list[int]] = field(default_factory=dict)
    """Trial -> how many reports it made until then, and in all."""
    reports: int = 0
    saved: int = 0
    already: int = 0
    """Trials that the study's own rule had stopped."""
    notes: list[str] = field(default_factory=list)


def asked(args: Mapping[str, Any]) -> Prune | None:
    """The rule that a question names; None: it names none. Raises ValueError in words for the sender."""
    rule = args.get("prune")
    said = {key: args[key] for key in KEYS if args.get(key) is not None}
    if rule is None:
        if said:
            raise ValueError(f"{', '.join(said)}: of which pruning rule? Give prune as well")
        return None
    if rule not in pruning.RULES:
        raise ValueError(f"prune is one of {', '.join(pruning.RULES)}")
    try:
        return Prune.model_validate({"rule": rule, **said})
    except ValidationError as error:
        raise ValueError(_words(error, "prune")) from error


def judged(events: Iterable[Body], prune: Prune, spec: StudySpec, skipped: frozenset[int]) -> Judged:
    """What the rule would have said of the reports on record, in the order in which they came, of all trials but those
    that are void or measured a point again. Raises ValueError where the study cannot have the rule."""
    bodies = list(events)
    said = {key: getattr(prune, key) for key in KEYS[2:] if key in prune.model_fields_set}
    answer = Judged({"rule": prune.rule, "startup": prune.needed, "warmup": prune.warmup, **said})
    assumed = None
    if spec.fidelity is None and prune.rule in ("asha", "hyperband"):
        last = max((body["data"]["step"] for body in bodies if body["type"] == "trial.reported"), default=2)
        assumed = Fidelity(name="step", max=max(2, last))
        answer.notes.append(f"The study has no [fidelity]: rungs of steps up to {assumed.max}, the last that was "
                            "reported, stand for it.")
    state = State()
    for body in bodies:
        _fold(state, body, answer, skipped, prune, assumed)
    if answer.already:
        answer.notes.append(f"The study's own pruning had stopped {answer.already} trials; what they would have come "
                            "to, nobody measured.")
    return answer


def _fold(state: State, body: Body, answer: Judged, skipped: frozenset[int], prune: Prune,
          assumed: Fidelity | None) -> None:
    """One event of the record."""
    type, number, data = body["type"], body.get("trial"), body["data"]
    if type == "trial.stopped" and number not in skipped and number not in answer.cut:
        answer.already += 1
    if type in _SKIPPED or (type in _WORK and number in skipped):
        return
    if number in answer.cut:
        if type == "trial.reported":
            answer.reports += 1
            answer.saved += 1
            answer.per[number][1] += 1
        return
    if type == "trial.leased":
        state.fence_base = data["fence"] - 1        # what an accepted rollback skipped is no event of the study
    before = None
    if type == "trial.leased" and (found := state.trial(body["study"], number or 0)) is not None and found.rungs:
        before = found.reports      # it goes on from a rung: so do its reports
    apply(state, Event(body["seq"], b"", type, body["study"], number, body["actor"], None, data))
    study = state.studies[body["study"]]
    if type in ("study.created", "study.forked", "study.amended"):
        study.spec, study.board = _under(study.spec, prune, assumed), None
    if number is None:
        return
    if type == "trial.imported" and number in skipped:
        apply(state, Event(body["seq"], b"", "outcome.voided", study.name, number, "daemon", None, {}))
    trial = study.trials[number - 1]
    if before is not None:
        trial.reports = before
    if type == "trial.reported":
        answer.reports += 1
        counts = answer.per.setdefault(number, [0, 0])
        counts[0] += 1
        counts[1] += 1
        verdict = pruning.verdict(study, trial)
        if verdict is not None:
            answer.cut[number] = verdict.step
            apply(state, Event(body["seq"], b"", "trial.pruned", study.name, number, "daemon", None,
                               {"fence": trial.fence}))


def _under(spec: StudySpec, prune: Prune, assumed: Fidelity | None) -> StudySpec:
    """The declaration with the other rule. Raises ValueError in words."""
    changed: Body = {"prune": prune, **({} if assumed is None else {"fidelity": assumed})}
    try:
        return StudySpec.model_validate({**{name: getattr(spec, name) for name in spec.model_fields_set}, **changed},
                                        context=LOGGED)
    except ValidationError as error:
        raise ValueError(_words(error, "")) from error


def _words(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    place = ".".join([*([where] if where else []), *map(str, first["loc"])])
    words = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {words}" if place else words
