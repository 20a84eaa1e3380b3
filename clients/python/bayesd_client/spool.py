"""Results and grants on disk until the daemon has them.

One file per tell and per grant: written under a temporary name, flushed, renamed, and the folder
flushed, so that a crash leaves the old file or the new one and never half of one. One append-only
file was the other choice; it needs compaction, and a torn last line takes care to live with.

    workers/<name>/lock       held by a record lock while a process works under this name
    workers/<name>/grants/    what is queued or in training, with the number of its starts
    workers/<name>/tells/     results without receipt
    workers/<name>/rejected/  results that the daemon refused, with its words
    workers/<name>/head.json  the newest signed head of the daemon's log that was seen
    workers/<name>/damaged/   files that could not be read, set aside
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bayesd_client.errors import BadAddress, BadOptions, NameInUse
from bayesd_client.kept import Key, SavedGrant, SavedHead, SavedTell
from bayesd_schemas.names import is_name

log = logging.getLogger(__name__)

_open_here: set[Path] = set()
_open_here_guard = threading.Lock()
"""Record locks do not keep two workers of one process apart, so this does."""


def state_folder() -> Path:
    """Where the spools of all workers of this user are."""
    home = os.environ.get("XDG_STATE_HOME")
    base = Path(home) if home and os.path.isabs(home) else Path.home() / ".local" / "state"
    return base / "bayesd" / "workers"


class FileSpool:
    """The spool of one worker name on this machine. Open it with `claim`; it is locked until `close`."""

    def __init__(self, folder: Path) -> None:
        """Lock `folder`, made when missing. Raises NameInUse when another worker has it, or BadOptions."""
        self.folder = folder
        try:
            for part in ("grants", "tells", "rejected", "damaged"):
                (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadOptions(f"the spool {folder} cannot be made ({error}); name another one with --spool") from error
        self._lock = _lock(folder)

    def close(self) -> None:
        if self._lock >= 0:
            with _open_here_guard:
                _open_here.discard(self.folder.resolve())
                os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def load(self) -> tuple[list[SavedGrant], list[SavedTell]]:
        """What an earlier process left, oldest first. What cannot be read is set aside with a warning."""
        grants = [SavedGrant(data["grant"], data["starts"], data.get("log"))
                  for data in self._read_all("grants", _is_grant)]
        tells = [SavedTell(data["tell"], data.get("log")) for data in self._read_all("tells", _is_tell)]
        return grants, tells

    def save_grant(self, key: Key, saved: SavedGrant) -> None:
        write_safely(self._path("grants", key), {"grant": saved.grant, "starts": saved.starts, "log": saved.log})

    def drop_grant(self, key: Key) -> None:
        self._path("grants", key).unlink(missing_ok=True)

    def save_tell(self, key: Key, saved: SavedTell) -> None:
        write_safely(self._path("tells", key), {"tell": saved.tell, "log": saved.log})
        self.drop_grant(key)      # a crash between the two leaves both, and then the tell counts

    def drop_tell(self, key: Key) -> None:
        # Not flushed: a tell that comes back after a power cut is answered `duplicate`.
        self._path("tells", key).unlink(missing_ok=True)

    def reject_tell(self, key: Key, why: Mapping[str, Any]) -> None:
        path = self._path("tells", key)
        if path.exists():
            tell = json.loads(path.read_bytes())["tell"]
            write_safely(self._path("rejected", key), {"tell": tell, "receipt": dict(why)})
            path.unlink()

    def load_head(self) -> SavedHead | None:
        try:
            data = json.loads((self.folder / "head.json").read_bytes())
            return SavedHead(str(data["log"]), str(data["note"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def save_head(self, head: SavedHead) -> None:
        # Not flushed: there is one a minute, and after a power cut an older one is still a witness.
        part = self.folder / "head.part"
        part.write_text(json.dumps({"log": head.log, "note": head.note}), encoding="utf-8")
        part.rename(self.folder / "head.json")

    def _path(self, part: str, key: Key) -> Path:
        study, trial, fence = key
        return self.folder / part / f"{study}.{trial}.{fence}.json"

    def _read_all(self, part: str, is_right: Callable[[Any], bool]) -> list[dict[str, Any]]:
        found: list[tuple[float, dict[str, Any]]] = []
        for path in sorted((self.folder / part).iterdir()):
            if path.suffix == ".part":           # a write that a crash cut off; the old file stands
                path.unlink(missing_ok=True)
                continue
            try:
                data = json.loads(path.read_bytes())
                right = is_right(data)
            except (OSError, ValueError, RecursionError):
                right = False
            if right:
                found.append((path.stat().st_mtime, data))
            else:
                self._set_aside(path)
        return [data for _, data in sorted(found, key=lambda pair: pair[0])]

    def _set_aside(self, path: Path) -> None:
        aside = self.folder / "damaged" / path.name
        number = 1
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{path.name}.{number}")
        try:
            path.rename(aside)
            log.warning("spool: %s cannot be read and was set aside as %s", path, aside)
        except OSError as error:
            log.warning("spool: %s cannot be read (%s); it is left where it is", path, error)


def claim(name: str | None, user: str | None, base: Path | None = None) -> tuple[str, FileSpool]:
    """A worker's name and its locked spool: the given name, else the broker's user, else this host with a number.

    The number is the lowest whose spool is not locked, so a restart finds its own spool again.
    """
    base = base or state_folder()
    given = name or user
    if given is not None:
        if is_name(given) is None:
            raise BadAddress(f"{given!r} is not a worker's name; use a-z, 0-9, '.', '_', '-', at most 64, "
                             "for example gpu-07 (--name, or the broker's user)")
        return given, FileSpool(base / given)
    host = clean(socket.gethostname())
    for number in range(1, 10_000):
        with contextlib.suppress(NameInUse):
            return f"{host}-{number}", FileSpool(base / f"{host}-{number}")
    raise NameInUse(f"10,000 workers are at work on {host}; give this one a name of its own with --name")


def clean(host: str) -> str:
    """A host's name as the beginning of a worker's name."""
    text = re.sub(r"[^a-z0-9._-]+", "-", host.lower()).strip("._-")[:56]
    return text or "worker"


def write_safely(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON so that a crash at any moment leaves the old content or the new one."""
    part = path.with_suffix(".part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "wb") as file:
        file.write(json.dumps(data, allow_nan=False, separators=(",", ":")).encode())
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _lock(folder: Path) -> int:
    """A record lock, not flock: a child that outlives a killed worker must not keep its name."""
    with _open_here_guard:
        place = folder.resolve()
        if place not in _open_here:
            fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _open_here.add(place)
                return fd
            except OSError:
                os.close(fd)
    raise NameInUse(f"another process on this machine works as {folder.name} (its spool {folder} is locked); "
                    "end it, or give this one another --name")


def _is_grant(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("grant"), dict) and type(data.get("starts")) is int


def _is_tell(data: Any) -> bool:
    if not isinstance(data, dict) or not isinstance(tell := data.get("tell"), dict):
        return False
    return isinstance(tell.get("id"), str) and isinstance(tell.get("study"), str) \
        and type(tell.get("trial")) is int and type(tell.get("fence")) is int
