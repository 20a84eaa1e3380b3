"""What belongs to a log and is not in it: the key that signs its heads, and heads that were kept elsewhere.

    LOG.key         the private key, unless the operator keeps it somewhere else
    LOG.refused     the head that ended the daemon: the next start is refused as well, until the newest copy of the
                    log is back or the operator accepts
    the heads file  every note as it was signed, for another disk (--heads)

A copy of the key beside the log is a compromise: who takes both can sign. It still shows an old copy that was put back
by mistake, and what a worker or an auditor keeps shows the rest.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from bayesd.config import ConfigError
from bayesd.durable import put_in_place
from bayesd.log import Log
from bayesd.notes import NOTE_MAX_BYTES, PREFIX, BadKey, BadNote, Signer, is_cut, read, split

logger = logging.getLogger("bayesd")


async def signer_of(log: Log, log_id: str, log_path: Path, given: Path | None,
                    credential: str | None) -> tuple[Signer, Callable[[], None]]:
    """The key of a log: the one that is given, else the manager's, else the one beside the log. A log that has
    never signed a head gets a new one.

    Also what saves a new key: to be called when the log has its first event, which names the log. A key that a crash
    left beside a log without a name would be the key of no log, and in the way of every start after it. Both raise
    ConfigError.
    """
    path = given or (Path(credential) if credential is not None else Path(f"{log_path}.key"))
    try:
        if path.exists():
            return Signer.load(path, log_id), lambda: None
        before = await log.load_note()
        if before is not None and given is not None:
            raise ConfigError(f"the key {path} (setting key) is not there, but the log has signed heads: put the key "
                              "back, or leave the setting out to go on with a new key beside the log")
    except BadKey as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise _unusable(path, error) from error
    signer = Signer.generate(log_id)

    def save() -> None:
        try:
            signer.save(path)
        except OSError as error:
            raise _unusable(path, error) from error
        if before is not None:
            logger.warning("%s is missing, so a new key signs this log's heads from now on; who holds the public key "
                           "of before must be told", path)
        logger.warning("the public key of this log is %s. Keep a copy of this line on another machine: with it "
                       "anybody can tell later whether the log is still the same. The private key is %s",
                       signer.vkey, path)

    return signer, save


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"the key {path} cannot be used ({error.strerror or error}): name another one with --key")


class HeadFiles:
    """The files with heads of one log: the heads file, and the head that ended the daemon."""

    def __init__(self, log_path: Path, heads: Path | None) -> None:
        self._heads = heads
        self._refused = Path(f"{log_path}.refused")

    def read(self) -> Sequence[tuple[str, Sequence[str]]]:
        """Where heads were kept, and the notes there. Raises ConfigError when the heads file cannot be read: it is
        a witness that an operator has asked for."""
        if self._heads is not None and not self._heads.parent.is_dir():
            raise ConfigError(f"the heads file {self._heads} has no folder to be in; is its disk mounted?")
        out: list[tuple[str, Sequence[str]]] = []
        for where, path in (("the file", self._heads), ("the last life, as it says in", self._refused)):
            if path is not None and path.exists():
                try:
                    text = path.read_text(encoding="utf-8", errors="replace")
                except OSError as error:
                    raise ConfigError(f"the heads in {path} cannot be read: {error.strerror}") from error
                notes = split(text)
                if path is self._heads:
                    notes = self._checked(text, notes)
                out.append((f"{where} {path}", notes))
        return out

    def _checked(self, text: str, notes: list[str]) -> list[str]:
        """Notes and nothing else: a file that no verifier can read is no witness. Raises ConfigError."""
        out: list[str] = []
        at = 0
        for note in notes:
            at = text.index(note, at)
            if is_cut(note):
                logger.warning("%s, line %d: a note that a crash cut short; it is left out", self._heads,
                               text.count("\n", 0, at) + 1)
            else:
                try:
                    read(note)
                except BadNote as error:
                    raise ConfigError(f"{self._heads}, line {text.count(chr(10), 0, at) + 1}: {error}. The heads file "
                                      "holds nothing but notes: take out what is none, or name another file with "
                                      "--heads") from error
                out.append(note)
            at += len(note)
        return out

    def keep(self, note: str) -> None:
        """Append a note to the heads file and flush it. What a crash left of the one before goes: it is no note, and
        what checks the file later should find nothing else in it."""
        if self._heads is not None:
            file = os.open(self._heads, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                os.write(file, _to_the_end_of_a_note(file) + f"{note}\n".encode())
                os.fsync(file)
            finally:
                os.close(file)

    def remember(self, note: str) -> None:
        """The head that ended the daemon: a restart must not forget it."""
        new = self._refused.with_name(self._refused.name + ".new")
        try:
            with new.open("w", encoding="utf-8") as file:
                file.write(note)
                file.flush()
                os.fsync(file.fileno())
            put_in_place(new, self._refused)
        except OSError as error:
            logger.error("%s cannot be written: %s", self._refused, error)

    def forget(self) -> None:
        """The log is right again, or what was lost is given up."""
        self._refused.unlink(missing_ok=True)


def _to_the_end_of_a_note(file: int) -> bytes:
    """Cut off a note at the end of a heads file that is only begun. Returns what has to stand before the next one."""
    size = os.fstat(file).st_size
    begin = max(0, size - NOTE_MAX_BYTES)
    tail = os.pread(file, NOTE_MAX_BYTES, begin)
    last = split(tail.decode("utf-8", "replace"))[-1:]
    if not last or not is_cut(last[0]):
        return b"" if not tail or tail.endswith(b"\n\n") else b"\n" if tail.endswith(b"\n") else b"\n\n"
    whole = tail.rfind(b"\n" + (PREFIX if last[0].startswith(PREFIX) else last[0].rstrip("\n")).encode()) + 1
    try:
        os.ftruncate(file, begin + whole)
    except OSError:         # a file that can only grow: readers leave the piece out
        return b"\n\n"
    return b""
