"""Whether a daemon lives, and whether it can do what it is there for: one answer for probes, managers and people.

Live: the loop turns and no commit hangs. Who is not live should be restarted. Ready: the log is replayed, the broker
connected, the disk has space, and no head speaks against the log. Who is not ready needs help, or time; a restart
would not do any good.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesd.service import Service  # a probe need not import the optimiser

LIVE_S = 20.0       # a loop, or a commit, that was not seen for so long hangs
BEAT_S = 5.0        # how often the daemon leaves word in its note
STALE_S = 30.0      # word that is older comes from a daemon that hangs


@dataclass(frozen=True, slots=True)
class Health:
    """What is said. `why` has (reason, what it means) of whatever is not as it should be."""

    live: bool
    ready: bool
    why: tuple[tuple[str, str], ...] = ()

    def body(self) -> dict[str, Any]:
        return {"live": self.live, "ready": self.ready,
                "why": [{"reason": reason, "detail": detail} for reason, detail in self.why]}


def of(service: "Service | None") -> Health:
    """How a daemon is; None: it is still verifying and replaying its log."""
    if service is None:
        return Health(True, False, (("starting", "the log is being verified and replayed"),))
    why: list[tuple[str, str]] = []
    live = service.is_healthy(LIVE_S)
    if not live:
        why.append(("hangs", f"the ticker was not seen, or a commit has been under way, for {LIVE_S:g} s: "
                             "look at the disk"))
    if service.refused is not None:
        why.append(("log-refused", str(service.refused)))
    elif service.stopping:
        why.append(("stopping", "the daemon is on its way out"))
    if service.desk.disk_full:
        why.append(("disk-full", "the log's disk is full: free some space, and the daemon goes on by itself"))
    if not service.bus.connected:
        why.append(("broker", service.bus.last_error or "the broker is not connected yet"))
    elif not service.announced:
        why.append(("broker", "the broker is connected; the daemon listens for another one before it speaks"))
    return Health(live, not why, tuple(why))


def of_note(note: dict[str, Any] | None) -> Health:
    """The same from the note of a daemon on this machine, which it renews while it lives."""
    if note is None:
        return Health(False, False, (("no-daemon", "no daemon has left a note here, or its process is gone"),))
    said = note.get("health")
    if not isinstance(said, dict) or not isinstance(said.get("at"), (int, float)):
        return Health(True, False, (("starting", "its process lives and has not said yet how it is"),))
    age_s = time.clock_gettime(time.CLOCK_MONOTONIC) - said["at"]
    if not 0 <= age_s <= STALE_S:
        return Health(False, False, (("hangs", f"its process lives and has said nothing for {abs(age_s):.0f} s"),))
    why = tuple((str(each["reason"]), str(each["detail"])) for each in said.get("why", ()))
    return Health(said.get("live") is True, said.get("ready") is True, why)


def word(health: Health) -> dict[str, Any]:
    """What `of_note` reads. The clock is the machine's since its start, which every process on it shares."""
    return {**health.body(), "at": time.clock_gettime(time.CLOCK_MONOTONIC)}
