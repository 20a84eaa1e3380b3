"""`bayesd log redact`: take free text out of a log, and leave the chain as it is."""

import asyncio
import getpass
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bayesd import show
from bayesd.call import once
from bayesd.cli.common import USAGE, Reaching, Trouble, format_option, need, reaching, verb
from bayesd.cli.logs import log
from bayesd.show import Column

BATCH = 500                 # references in one event
_FOUND = (Column("ref", "REF"), Column("seq", "SEQ", True), Column("type", "TYPE"), Column("where", "WHERE"))


def register(top: click.Group) -> None:
    """The verb belongs to `log`, which registers itself."""


@verb(log, "redact", "bayesd log redact tuning.db --study digits-svm --trial 7 --reason \"a name in a traceback\"\n"
                     "bayesd log redact tuning.db 5f1c --reason \"a password\"    # a reference, or its beginning")
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.argument("refs", nargs=-1, metavar="[REF]...")
@click.option("--study", help="With --trial: of this study.")
@click.option("--trial", type=click.IntRange(min=1), help="All texts of this trial.")
@click.option("--worker", help="All texts that this worker sent, why it was revoked, and why that voided its trials.")
@click.option("--reason", required=True, help="Why. It is kept for ever, so it should name nobody.")
@reaching
@format_option
def redact(file: Path, refs: tuple[str, ...], study: str | None, trial: int | None, worker: str | None, reason: str,
           reach: Reaching, format: str) -> None:
    """Delete free text (errors, reasons) from FILE for ever; readers then show "(redacted)".

    Events, hashes and state stay, and the deletion is an event. A daemon that has FILE open does it, else it is
    done here. Copies of FILE elsewhere still have the text; segments never had it. What the first logs have
    inside their events cannot be taken out.
    """
    if not refs and trial is None and worker is None:
        raise click.UsageError("name a REF, --trial or --worker")
    if (trial is None) != (study is None):
        raise click.UsageError("--study and --trial go together")
    if not reason.strip():
        raise click.UsageError("--reason is empty: say why in a few words")
    found = list(_texts(file, refs, study, trial, worker))
    if found:
        wanted = [each["ref"] for each in found]
        try:
            asyncio.run(_here(file, wanted, reason))
        except need("bayesd.log").LockedOut:
            asyncio.run(_there(reach, file, wanted, reason))
    show.rows(format, found, _FOUND, "no such text, or it is redacted already")
    show.talk(f"{len(found)} texts are redacted")


def _texts(file: Path, refs: tuple[str, ...], study: str | None, trial: int | None,
           worker: str | None) -> Iterator[dict[str, Any]]:
    """Texts that are still there and are meant."""
    for ref in refs:
        if not re.fullmatch("[0-9a-f]{4,64}", ref):
            raise Trouble(f"{ref!r} is not a reference: 4 to 64 hex digits, as `bayesd log show {file} -f json` shows "
                          "them in error_ref and reason_ref", USAGE)
    texts, loads = need("bayesd.study.texts"), need("orjson").loads
    there = need("bayesd.logfile").read_texts(file)
    of_worker = _OfWorker(worker)
    for seq, body, _ in need("bayesd.log").read_events(file):
        said = loads(body)
        is_worker = of_worker.look(said)
        ref = texts.ref_of(said["type"], said["data"])
        if ref is None or ref not in there:
            continue
        if (any(ref.startswith(each) for each in refs)
                or (trial is not None and (said.get("study"), said.get("trial")) == (study, trial))
                or is_worker):
            where = said.get("study", "")
            yield {"ref": ref, "seq": seq, "type": said["type"],
                   "where": f"{where} #{said['trial']}" if said.get("trial") else where}


class _OfWorker:
    """Which events have words of a worker or of its revocation. One with --void is a row of events: the revocation,
    then a void for each trial, all by one request and with the same words."""

    def __init__(self, worker: str | None) -> None:
        self._worker = worker
        self._requests: set[tuple[str, str]] = set()
        self._follows = ""

    def look(self, said: dict[str, Any]) -> bool:
        """Events in order, all of them."""
        if self._worker is None:
            return False
        request = (said["actor"], said.get("cmd") or "")
        if said["type"] == "outcome.voided" and (request in self._requests or request[0] == self._follows):
            return True
        self._follows = ""
        is_ours: bool = said["actor"] == f"worker/{self._worker}" or said["data"].get("worker") == self._worker
        if is_ours and said["type"] == "worker.revoked":
            self._follows = said["actor"]
            if request[1]:
                self._requests.add(request)
        return is_ours


async def _here(file: Path, refs: list[str], reason: str) -> None:
    """No daemon has the log: be its writer for a moment."""
    logs, replay, states = need("bayesd.log"), need("bayesd.replay"), need("bayesd.study.fold")
    opened = await logs.SqliteLog.open(file, look=states.refuse_newer)
    try:
        state, _ = await replay.fold(opened)
        desk, clock = need("bayesd.study.desk").Desk(state), need("bayesd.daemon").SystemClock()
        desk.at(clock.now(), clock.time())
        for some in _batches(refs):
            desk.record("text.redacted", {"refs": some, "reason": reason[:400]}, actor=f"operator/{_name()}",
                        redacts=tuple(some))
        await opened.append(desk.take_rows())
        await opened.checkpoint()
    finally:
        await opened.close()


def _batches(refs: list[str]) -> list[list[str]]:
    return [refs[at:at + BATCH] for at in range(0, len(refs), BATCH)]


def _name() -> str:
    """Who types this, as a name that an event may hold."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    name = re.sub(r"[^a-z0-9._-]", "-", user.lower())[:64]
    return name if re.match("[a-z0-9]", name) else "operator"


async def _there(reach: Reaching, file: Path, refs: list[str], reason: str) -> None:
    for some in _batches(refs):
        await once(reach(), "text.redact", {"refs": some, "reason": reason})
    if set(refs) & set(need("bayesd.logfile").read_texts(file)):
        raise Trouble(f"the daemon that answered has another log than {file}; name its broker with --broker")
