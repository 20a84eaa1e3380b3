"""What a worker keeps, so that it outlives its process: grants, tells without receipt, the head of the log."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Key: TypeAlias = tuple[str, int, int]
"""(study, trial, fence): what a grant is known by."""


@dataclass(frozen=True, slots=True)
class SavedGrant:
    """A grant as it lies in the spool, the number of its starts, and the log that it is from."""

    grant: dict[str, Any]
    starts: int
    log: str | None = None


@dataclass(frozen=True, slots=True)
class SavedTell:
    """A tell without receipt as it lies in the spool."""

    tell: dict[str, Any]
    log: str | None = None


@dataclass(frozen=True, slots=True)
class SavedHead:
    """The signed head of a log, word for word. We cannot verify it; we show it to the daemon, which can."""

    log: str
    note: str

    @property
    def size(self) -> int:
        """How many events it says that the log had."""
        lines = self.note.split("\n", 2)
        return int(lines[1]) if len(lines) == 3 and re.fullmatch("[0-9]{1,16}", lines[1]) else -1

    @property
    def age(self) -> tuple[int, int]:
        """A greater one is newer: the branch counts first, since a log that an operator let go on from an old copy
        begins a new branch with fewer events."""
        found = re.match("[^\n]*\n[^\n]*\n[^\n]*\nbranch ([0-9]{1,16})\n", self.note)
        return int(found[1]) if found is not None else 0, self.size


class Spool(Protocol):
    """What must outlive the process. Each call has reached the disk when it returns; it may raise OSError."""

    def load(self) -> tuple[list[SavedGrant], list[SavedTell]]: ...
    def save_grant(self, key: Key, saved: SavedGrant) -> None: ...
    def drop_grant(self, key: Key) -> None: ...
    def save_tell(self, key: Key, saved: SavedTell) -> None:
        """Save the tell, then drop the grant of the same key."""
    def drop_tell(self, key: Key) -> None: ...
    def reject_tell(self, key: Key, why: Mapping[str, Any]) -> None:
        """Set a tell aside that the daemon will never take; `why` is its receipt."""
    def load_head(self) -> SavedHead | None: ...
    def save_head(self, head: SavedHead) -> None: ...


class MemorySpool:
    """A spool for tests and simulations: it survives an agent, as the disk survives a process."""

    def __init__(self) -> None:
        self.grants: dict[Key, SavedGrant] = {}
        self.tells: dict[Key, SavedTell] = {}
        self.rejected: dict[Key, Mapping[str, Any]] = {}
        self.head: SavedHead | None = None

    def load_head(self) -> SavedHead | None:
        return self.head

    def save_head(self, head: SavedHead) -> None:
        self.head = head

    def load(self) -> tuple[list[SavedGrant], list[SavedTell]]:
        return list(self.grants.values()), list(self.tells.values())

    def save_grant(self, key: Key, saved: SavedGrant) -> None:
        self.grants[key] = saved

    def drop_grant(self, key: Key) -> None:
        self.grants.pop(key, None)

    def save_tell(self, key: Key, saved: SavedTell) -> None:
        self.tells[key] = saved
        self.grants.pop(key, None)

    def drop_tell(self, key: Key) -> None:
        self.tells.pop(key, None)

    def reject_tell(self, key: Key, why: Mapping[str, Any]) -> None:
        self.rejected[key] = {"tell": self.tells.pop(key).tell, "receipt": why}
