"""What the optimiser was asked when it proposed a recorded point, made again from the events before it.

Whoever explains a suggestion and whoever asks for it again must speak of one problem, so it is built here alone.
The parts are: the study as it stood at the proposal's `as_of`, the candidates that lay before it, the fit that it
used, and the number and the draws that it was made for. Most of it follows from the trials; what the event says
besides is compared, and what the record does not bear out is named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bayesd.study.canonical import canonical
from bayesd.study.desk import problem_of
from bayesd.study.problem import Fit, Problem
from bayesd.study.state import Data, Study, Trial
from bayesd_schemas.space import Params, Space, Value


@dataclass(frozen=True, slots=True)
class Frozen:
    """A study as it was when it was asked about."""

    problem: Problem
    """With nothing ahead."""
    pending: tuple[int, ...]
    fit_seq: int
    trials: int
    """How many were proposed."""
    streams: int


def freeze(study: Study) -> Frozen:
    problem, pending = problem_of(study, (), study.drawn)
    return Frozen(problem, pending, study.fit_seq, len(study.trials), study.streams)


@dataclass(frozen=True, slots=True)
class Known:
    """A fit on record, by the seq of its event."""

    fit: Fit
    as_of: int
    study: str


def asked(frozen: Frozen, trials: list[Trial], number: int, drawn: int, data: Data,
          fits: Mapping[int, Known], *, study: str) -> tuple[Problem, tuple[str, ...]]:
    """The problem behind the proposal of trial `number`, `drawn` before it, and which of its fields are not borne out.

    `trials` are those of the study, at least up to the one before it.
    """
    wrong: list[str] = []
    stream = number + frozen.streams
    ahead = _ahead(frozen, trials[frozen.trials:number - 1], data, wrong)
    fit = _fit(frozen, data, fits, study, wrong)
    # Candidates leave the drawer in their order, so number and draws follow from the trial before; but where two
    # answers overtook each other the event says them.
    if "number" in data and not (data["number"] < stream and data["number"] == frozen.problem.number + len(ahead)):
        wrong.append("number")
    if data.get("after") == drawn:
        wrong.append("after")
    if "pending" in data and tuple(data["pending"]) != frozen.pending:
        wrong.append("pending")
    return replace(frozen.problem, number=data.get("number", stream), drawn=data.get("after", drawn),
                   pending=(*frozen.problem.pending, *ahead), fit=fit), tuple(wrong)


def _ahead(frozen: Frozen, since: list[Trial], data: Data, wrong: list[str]) -> tuple[Params, ...]:
    """The candidates that lay before it.

    A drawer is first in, first out, and dropping one drops all behind it; so they are the trials proposed since
    `as_of`. Where another answer came in between, they are some of those, and only the event knows which.
    """
    said = tuple(typed(frozen.problem.space, params) for params in data.get("ahead", ()))
    found = tuple(trial.params for trial in since)
    if "number" in data:
        if not _is_among(said, found):
            wrong.append("ahead")
        return said
    # Logs from before proposals named their engine left the points of a design out, and model-free methods do.
    if "engine" in data and not _same(said, found if frozen.problem.method == "bayes" else ()):
        wrong.append("ahead")
    return found


def _same(one: tuple[Params, ...], other: tuple[Params, ...]) -> bool:
    return canonical(list(map(dict, one))) == canonical(list(map(dict, other)))


def _is_among(some: tuple[Params, ...], all_: tuple[Params, ...]) -> bool:
    """Whether these are some of those, in their order."""
    rest = iter(all_)
    return all(any(_same((each,), (other,)) for other in rest) for each in some)


def _fit(frozen: Frozen, data: Data, fits: Mapping[int, Known], study: str, wrong: list[str]) -> Fit | None:
    """The fit that a proposal used: the study's at `as_of`, or the one that was made on the way to it."""
    seq = data.get("fit")
    if seq is None or seq == frozen.fit_seq:      # None if it was taken back, or if the model has no use for it
        return frozen.problem.fit
    known = fits.get(seq)
    if known is not None and known.study == study and known.as_of == data["as_of"]:
        return known.fit
    wrong.append("fit")
    return frozen.problem.fit if known is None else known.fit


def typed(space: Space, params: Params) -> Params:
    """Params as the space has them, in its order: canonical JSON sorts keys and writes 1.0 as 1."""
    out: dict[str, Value] = {}
    for name, parameter in space.root.items():
        if name in params:
            value = params[name]
            out[name] = float(value) if parameter.type == "float" and type(value) is int else value
    return out
