"""`bayesd study audit-pack`: a study in one sealed file, for somebody who has no bayesd and no reason to trust one."""

from pathlib import Path
from typing import Any

import click

from bayesd import show
from bayesd.cli import offline, phrases
from bayesd.cli.common import USAGE, Trouble, format_option, need, study_argument, verb
from bayesd.cli.studies import study as studies


def register(top: click.Group) -> None:
    """The verb stands among those of `study`."""


@verb(studies, "audit-pack", "bayesd study audit-pack digits-svm -o digits-svm.zip\n"
                             "bayesd study audit-pack digits-svm --log tuning.db --whole -o digits-svm.zip")
@study_argument("name")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="The zip to write.")
@click.option("--log", type=click.Path(path_type=Path), help="The log; default: the one of the daemon on this machine.")
@click.option("--signing-key", "--key-file", "key_file", type=click.Path(path_type=Path, dir_okay=False),
              help="The log's PRIVATE key (serve --key), to sign the pack; default: the one beside the log, if it can "
                   "be read. Elsewhere --key-file is the key of a TLS certificate; here it is this one's old name.")
@click.option("--whole", is_flag=True, help="Other studies' events, too: then nobody has to believe that they are.")
@click.option("--recorded", is_flag=True, help="Reasons as they were recorded, with nothing computed again: fast.")
@click.option("--no-texts", is_flag=True,
              help="Leave out free text: errors of workers, reasons of people. (Logs of early releases have it in "
                   "their events, where it stays.)")
@format_option
def audit_pack(name: str, output: Path, log: Path | None, key_file: Path | None, whole: bool, recorded: bool,
               no_texts: bool, format: str) -> None:
    """Everything about a study in one file that proves itself.

    It has the events as they were hashed, the signed notes, a report for people, why each trial was tried, and how to
    check all of it offline. Needs no daemon; the log may be in use.
    """
    pack = need("bayesd.pack")
    path = log or _default_log()
    with show.progress("reading", offline.count(path)) as advance:
        try:
            record = pack.collect(path, name, whole=whole, with_texts=not no_texts, on_progress=advance)
        except pack.NoStudy as error:
            raise Trouble(str(error)) from error
    signer = _signer(path, key_file, record)
    pages = _pages(record, recorded)
    with show.patience("packing"):
        content = pack.files(record, pages, phrases.of, signer)
        pack.write(output, content)
    answer = {"study": name, "file": str(output), "log": record.state.log, "events": len(record.bodies),
              "of": len(record.hashes), "trials": len(record.study.trials), "head": record.hashes[-1].hex(),
              "notes": len(need("bayesd.notes").split(content["checkpoints.txt"].decode())),
              "texts": len(record.texts), "sealed": signer is not None, "bytes": output.stat().st_size}
    if record.texts:
        show.talk(f"free texts inside (errors of workers, reasons of people): {len(record.texts)}; "
                  "--no-texts leaves them out")
    if signer is None:
        show.talk("the pack is not sealed: the log's key cannot be read here; name it with --signing-key")
    show.record(format, answer, list(answer.items()), [answer["file"]])


def _default_log() -> Path:
    config = need("bayesd.config")
    running = config.read_runtime()
    path = Path(running["log"]) if running is not None and running.get("log") else config.state_directory() / "log.db"
    if not path.exists():
        raise Trouble(f"there is no log at {path}; name one with --log FILE", USAGE)
    return path


def _signer(path: Path, key_file: Path | None, record: Any) -> Any:
    """The log's key, if it may be read; one that was named must be right."""
    notes = need("bayesd.notes")
    try:
        signer = notes.Signer.load(key_file or f"{path}.key", record.state.log)
    except (OSError, notes.BadNote) as error:
        if key_file is not None:
            raise Trouble(f"{key_file}: {getattr(error, 'strerror', None) or error}", USAGE) from error
        return None
    if record.keys and signer.vkey not in record.keys:
        show.talk(f"this key is not one that the daemon signed with: {signer.vkey}")
    return signer


def _pages(record: Any, recorded: bool) -> dict[int, str]:
    """Trial -> why it was tried."""
    pack = need("bayesd.pack")
    count = len(record.study.trials)
    if recorded:
        return {number: pack.plain_page(record, number) for number in range(1, count + 1)}
    with show.progress("why each trial", count) as advance:
        pages: dict[int, str] = pack.pages(record, advance)
        return pages
