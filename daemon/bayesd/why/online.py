"""The pages of a running daemon: its log is read and its numbers are made beside the event loop.

What is in memory is taken off the desk at once; everything else comes from the committed log, folded
again for this one study, so that a page never waits for the daemon, nor the daemon for a page.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from bayesd.log import Log
from bayesd.replay import event_of
from bayesd.study import admin
from bayesd.study.desk import Desk
from bayesd.study.row import Row
from bayesd.why import live, pages
from bayesd.why.witness import Witness, moments_for
from bayesd.why.worker import Diary, is_known, unknown, worker_page
from bayesd_schemas.messages import Request
from bayesd_schemas.names import is_name

Page = dict[str, Any]


async def page(log: Log, desk: Desk, committed: int, request: Request) -> Page:
    """Answer `why`: of a study, of one of its trials, or of a worker. Raises admin.Refused."""
    if "worker" in request.args:
        return await _worker(log, desk, committed, request.args)
    study = admin._study_of(desk, request)
    number, beside = None, {source.name for source in study.sources if source.study}
    if request.args.get("trial") is not None:
        trial = admin._trial_of(desk, request)
        number = trial.number
    if study.created_seq > committed or (number is not None and trial.proposed_seq > committed):
        raise admin.Refused("rate", "it is on its way to the disk; ask again in a second")
    seen_live = live.of_study(desk, study)
    if number is None:
        witness = Witness(study.name, beside=beside)
    else:
        async for rows in log.read(trial.proposed_seq - 1, trial.proposed_seq):
            proposed = event_of(rows[0].body, rows[0].hash)
        moments = moments_for([proposed.data], [trial.outcome_seq]) if trial.origin is None else ()
        witness = Witness(study.name, moments, {number}, beside)
    await _read(log, committed, witness)
    witness.words.there = await log.texts(witness.refs())
    return fitting(await asyncio.to_thread(pages.of, witness, number, seen_live))


async def _worker(log: Log, desk: Desk, committed: int, args: Mapping[str, Any]) -> Page:
    name = args["worker"]
    if not isinstance(name, str) or not is_name(name):
        raise admin.Refused("bad-field", "that is not a worker's name", "worker", '{"worker": "gpu-7"}')
    if not is_known(desk.state, name, live.of_worker(desk, name)):
        raise admin.Refused("unknown-worker", unknown(desk.state, name, live.of_worker(desk, name)), "worker")
    diary = Diary(name)
    marks = (f'"{name}"'.encode(), f'"worker/{name}"'.encode(), b'"text.redacted"')

    def see(rows: list[Row]) -> None:
        for row in rows:
            if any(mark in row.body for mark in marks):
                diary.see(event_of(row.body, row.hash), row.body)
    async for rows in log.read(0, committed):
        await asyncio.to_thread(see, rows)
    diary.words.there = await log.texts(diary.refs())
    return worker_page(desk.state, diary, live.of_worker(desk, name))


async def _read(log: Log, until: int, witness: Witness) -> None:
    def see(rows: list[Row]) -> None:
        for row in rows:
            if row.study is None or row.study == witness.name or row.study in witness.beside:
                witness.see(event_of(row.body, row.hash), row.body)
        witness.pass_by(rows[-1].seq)
    async for rows in log.read(0, until):
        await asyncio.to_thread(see, rows)
    witness.end()


def fitting(page: Page) -> Page:
    """The page, without its charts when a space of very many parameters makes it too large for a message."""
    def size() -> int:
        return len(orjson.dumps(page))
    made = page.get("recomputed")
    if size() > admin.PAGE_BYTES and made is not None:
        page["recomputed"] = {**made, "slices": []}
    if size() > admin.PAGE_BYTES and made is not None:
        page["recomputed"] = {**made, "slices": [], "rivals": []}
    return page
