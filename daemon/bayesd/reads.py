"""Reads that take time: they go through the log, or think, beside a daemon that goes on.

Each is a function of what is committed and of a request; it raises `admin.Refused`. What needs no time is a rule of
`study/admin.py` and answered at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from bayesd import front, whatif, winner
from bayesd.importance import asked
from bayesd.importance.belief import NothingToSay
from bayesd.log import Log
from bayesd.past import Moment
from bayesd.study import admin, limits, texts
from bayesd.study.desk import Desk
from bayesd.why import online
from bayesd_schemas.messages import Request


@dataclass(frozen=True, slots=True)
class Reading:
    """What a read may look at."""

    log: Log
    desk: Desk
    committed: int
    """The seq up to which the log is on disk."""
    moment: Moment | None
    """The moment that was asked about; None: now."""

    @property
    def until(self) -> int:
        return self.committed if self.moment is None else self.moment.seq


async def best(reading: Reading, request: Request) -> Any:
    """The winner of a study under a rule."""
    desk = reading.desk if reading.moment is None else Desk(reading.moment.state)
    study = admin._study_of(desk, request)
    rule, rules = request.args.get("rule"), (*winner.RULES, winner.CONFIRMED)
    if rule not in (None, *rules):
        raise admin.Refused("bad-field", f"rule is one of {', '.join(rules)}", "rule", '{"rule": "one-se"}')
    problem, _ = desk.problem(study)
    limited, choose = limits.Reading.of(study), winner.later(study, problem, rule)
    return {"study": study.name, **limited.beside(await asyncio.to_thread(choose))}


async def front_of(reading: Reading, request: Request) -> Any:
    """The front of a study, and its hypervolume over time."""
    desk = reading.desk if reading.moment is None else Desk(reading.moment.state)
    study = admin._study_of(desk, request)
    found = await asyncio.to_thread(front.later(study))
    for shown in (found["trials"][:limit] for limit in (400, 100, 20)):
        if len(orjson.dumps({**found, "trials": shown})) <= admin.PAGE_BYTES:
            break
    return {"study": study.name, **found, "trials": shown, "size": len(found["trials"])}


async def what_if(reading: Reading, request: Request) -> Any:
    """A recorded study under other rules; read from the log, and thought about in a thread."""
    now = admin._study_of(reading.desk, request)
    desk = Desk((reading.desk if reading.moment is None else reading.moment).state)      # what lies ready is no record
    study = admin._study_of(desk, request)
    known = whatif.known(study, desk.problem(study)[0])
    try:
        question = whatif.Question.read(request.args)
    except ValueError as error:
        raise admin.Refused("bad-field", str(error), "args", '{"trials": 20, "rule": "one-se"}') from error
    if question.limits.by_model:
        raise admin.Refused("bad-field", "improvement, regret and converged fit a model at every result, and a daemon "
                            "has other work to do: ask bayesd study what-if with --log FILE", "args",
                            '{"patience": 20}')
    measured = winner.entries(now)
    bodies: list[dict[str, Any]] = []
    if question.needs_events:
        async for rows in reading.log.read(study.created_seq - 1, reading.until):
            bodies += await asyncio.to_thread(whatif.bodies_of, rows, study.name)
    try:
        return await asyncio.to_thread(whatif.answer, question, bodies, known, measured)
    except ValueError as error:      # the study cannot have that pruning rule
        raise admin.Refused("bad-field", str(error), "args", '{"prune": "median"}') from error


Answering = Callable[[asked.Known, Mapping[str, Any]], dict[str, Any]]


def _mattered(answer: Answering) -> Callable[[Reading, Request], Awaitable[Any]]:
    """A question about what mattered: taken off the desk at once, thought about in a thread."""
    async def read(reading: Reading, request: Request) -> Any:
        desk = Desk((reading.desk if reading.moment is None else reading.moment).state)
        study = admin._study_of(desk, request)
        known = asked.Known.of(study, desk.problem(study)[0])
        try:
            return await asyncio.to_thread(answer, known, request.args)
        except asked.BadQuestion as error:
            raise admin.Refused("bad-field", str(error), error.key) from error
        except NothingToSay as error:
            raise admin.Refused("too-few", str(error), "study") from error
    return read


async def why(reading: Reading, request: Request) -> Any:
    """A page about a trial, a study or a worker."""
    return await online.page(reading.log, reading.desk, reading.committed, request)


async def events(reading: Reading, request: Request) -> Any:
    """Committed events after a seq, of one study or of all; each as its envelope."""
    after, limit = request.args.get("after", 0), request.args.get("limit", 1000)
    study = request.args.get("study")
    if not isinstance(after, int) or not isinstance(limit, int) or limit < 1 or after < 0:
        raise admin.Refused("bad-field", "after and limit are numbers", "after", '{"after": 100, "limit": 50}')
    out: list[Any] = []
    size, last = 0, after
    async for rows in reading.log.read(after, reading.committed):
        found = [(row.seq, len(row.body), orjson.loads(row.body)) for row in rows
                 if study is None or row.study == study]
        refs = [ref for _, _, body in found if (ref := texts.ref_of(body["type"], body["data"])) is not None]
        said = await reading.log.texts(refs) if refs else {}
        for seq, length, body in found:
            body = texts.resolved(body, said)
            size += length + 1
            size += len(said.get(texts.ref_of(body["type"], body["data"]) or "", "")) * 2
            if out and (len(out) >= limit or size > admin.PAGE_BYTES):
                return {"events": out, "next": last}
            out.append(body)
            last = seq
        last = rows[-1].seq
    return {"events": out}


SLOW: dict[str, Callable[[Reading, Request], Awaitable[Any]]] = {
    "study.best": best, "study.front": front_of, "study.whatif": what_if, "events": events, "why": why,
    "study.importance": _mattered(asked.importance), "study.effect": _mattered(asked.effects),
    "study.warnings": _mattered(asked.warned)}
