"""`bayesd log backup` and `bayesd log restore`: a proved copy of a log, and the way back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bayesd import show
from bayesd.cli import offline
from bayesd.cli.common import USAGE, Trouble, Verb, format_option, need
from bayesd.cli.logs import log
from bayesd.cli.proofs import asking, heads_of
from bayesd.config import load, read_runtime

if TYPE_CHECKING:
    from bayesd.evidence import Head

_ROLLBACK = "start the daemon once with --accept-rollback 'WHY', which gives up what is lost and goes on from here"


def register(top: click.Group) -> None:
    log.add_command(backup)
    log.add_command(restore)


@contextmanager
def _copying(what: str) -> Iterator[Callable[[int, int], None]]:
    with show.progress(f"copying {what}", 100) as advance:
        yield lambda done, total: advance(round(100 * done / max(1, total)))


def _proved(file: Path) -> offline.Examined:
    """L0 and L1: bytes, chain, notes and texts; and the states on record. Raises what is wrong."""
    with show.progress("verifying the copy", offline.count(file)) as advance:
        found = offline.examine(file, advance)
    if found.damage is not None:
        raise found.damage
    return found


def _answer(found: offline.Examined, path: Path, source: Path) -> dict[str, Any]:
    return {"file": str(path), "from": str(source), "log": found.report.log, "events": found.report.events,
            "head": found.report.hash.hex(), "epoch": found.report.epoch,
            "state": need("bayesd.study.snapshot").digest(found.folded.state),
            "signed_events": found.report.verdict.signed, "last": found.folded.time, "size": path.stat().st_size}


def _show(format: str, answer: dict[str, Any]) -> None:
    shown = {**answer, "size": show.size(answer["size"])}
    show.record(format, answer, [(key, value) for key, value in shown.items() if value is not None],
                [answer["file"], answer["events"], answer["head"]])


# --- Out -----------------------------------------------------------------------------------------------


@click.command("backup", cls=Verb, example="bayesd log backup -o /mnt/backup/tuning.db\n"
               "bayesd log backup /var/lib/bayesd/log.db -o /mnt/backup/")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("-o", "--output", required=True, metavar="PATH",
              help="The copy; in a folder, which ends with a slash or is there, it is named by its log and last event. "
                   "An older copy of the same log is "
                   "replaced, anything else is refused.")
@format_option
def backup(file: Path | None, output: str, format: str) -> None:
    """Copy a log while its daemon runs, and prove the copy before it gets its name.

    FILE is the log of the daemon on this machine by default. The copy is one moment of it, flushed, its bytes, chain,
    notes and states verified as by log verify. Whatever goes wrong, what had the name before is still there. The key
    that signs heads is not in it. Ends with 65 when FILE is damaged, 74 when the copy cannot be written.
    """
    source = file if file is not None else _log_here()
    backups = need("bayesd.backup")
    with _copying(source.name) as advance:
        path, found = backups.copy(source, Path(output), _proved, advance, is_folder=output.endswith("/"))
    _show(format, _answer(found, path, source))
    show.talk("the key that signs heads is not in the copy: keep it, too, in another place than the copies")


def _log_here() -> Path:
    """The log of the daemon that runs here, else the one that the settings name."""
    note = read_runtime()
    if note is not None and isinstance(note.get("log"), str):
        return Path(note["log"])
    path: Path = need("bayesd.daemon").log_path(load({})[0])
    if not path.exists():
        raise Trouble(f"no daemon of this user runs here and there is no log {path}: name the FILE", USAGE)
    return path


# --- Back ----------------------------------------------------------------------------------------------


@click.command("restore", cls=Verb, example="bayesd log restore /mnt/backup/tuning.db -o /var/lib/bayesd/log.db\n"
               "bayesd log restore tuning.db -o /var/lib/bayesd/log.db --move-aside --head /mnt/elsewhere/heads.txt")
@click.argument("copy", type=click.Path(path_type=Path, dir_okay=False), metavar="COPY")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="LOG",
              help="Where the daemon looks for its log.")
@click.option("--move-aside", is_flag=True,
              help="Keep a log that is there as LOG.before-N; without this it is refused.")
@click.option("--head", "heads", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True,
              help="A file of signed notes kept elsewhere, such as the heads file: say now whether the daemon will "
                   "find the copy too old.")
@format_option
def restore(copy: Path, output: Path, move_aside: bool, heads: tuple[Path, ...], format: str) -> None:
    """Put a copy in the place of a log that is lost or damaged, proved before it gets that name.

    The daemon must be stopped; a second one is refused with 75. A log that is there is never overwritten. It then
    says what the copy lacks, as far as the log that was there and heads kept elsewhere tell: a daemon that finds a
    signed head which its log cannot have made ends with 65, and what to do about that is said here.
    """
    known = heads_of((*heads, *(each for each in (Path(f"{output}.refused"),) if each.exists())))
    backups = need("bayesd.backup")

    def prove(part: Path) -> tuple[offline.Examined, str | None]:
        return _proved(part), _ahead(part, known)

    with _copying(copy.name) as advance:
        done = backups.put_back(copy, output, prove, advance, move_aside=move_aside)
    found: offline.Examined
    found, lacks = done.proof
    lacks = _shorter(done, found.report) or lacks
    _show(format, _answer(found, done.path, copy) | {"aside": None if done.aside is None else str(done.aside),
                                                     "lacks": lacks})
    if lacks is not None:
        show.talk(f"this copy is not the newest: {lacks}. Restore a newer copy if there is one; else {_ROLLBACK}")
    else:
        show.talk("whether it is the newest copy, only heads kept elsewhere can tell. When the daemon ends with 65 for "
                  f"a head that is ahead of it, restore a newer copy; if there is none, {_ROLLBACK}")
    _say_key(done.path, found)


def _ahead(part: Path, heads: "list[Head]") -> str | None:
    """What heads from outside say of the copy; that it is whole in itself is known."""
    damage = asking(need("bayesd.logfile").verify, part, heads=heads).damage if heads else None
    return None if damage is None else str(damage.why)


def _shorter(done: Any, report: Any) -> str | None:
    """What the log that was there says of the copy."""
    before = done.before
    if before is None or before.log != report.log or before.seq <= report.events:
        return None
    return (f"it ends at event {report.events}, and the log that was moved to {done.aside} at event {before.seq}; "
            f"bayesd log verify {done.aside} says up to where that one is whole")


def _say_key(path: Path, found: offline.Examined) -> None:
    """A daemon without its key makes a new one, and who checks heads should not learn that by surprise."""
    known = found.folded.state.keys
    key = Path(f"{path}.key")
    if not known:
        return
    if not key.exists():
        show.talk(f"{key} is not there: put the key of this log back, or name it (setting key, credential "
                  "signing-key). Without it the daemon makes a new one")
        return
    notes = need("bayesd.notes")
    try:
        if notes.Signer.load(key, found.report.log).vkey not in known:
            show.talk(f"{key} is not a key that this log names: put its own key back, or tell those who check heads")
    except (notes.BadKey, OSError) as error:
        show.talk(f"the key {key} cannot be used: {error}")
