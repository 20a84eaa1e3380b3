"""How each event moves the state of a log.

`apply` is total: it accepts every event ever logged, in log order, and never refuses; see state.py. A module holds
the handlers of one kind of events, and they do nothing but move the state.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bayesd.study.fold import common, log, outcomes, studies, trials
from bayesd.study.state import Event, State
from bayesd_schemas.upcast import VERSIONS


class UnknownEvent(Exception):
    """The log holds a critical event that this version does not know: use a newer one."""

    def __init__(self, seq: int, type: str, tv: int = 1) -> None:
        what = f"of type {type!r}" + (f", version {tv}" if type in KNOWN else "")
        super().__init__(f"event {seq} is {what}, which this version of bayesd does not know; "
                         "open the log with the version that wrote it, or a newer one")
        self.seq = seq


def refuse_newer(envelope: Mapping[str, Any]) -> bool:
    """True when a later release wrote this event and it may be passed over; raises UnknownEvent when it may not."""
    type, tv = envelope["type"], envelope.get("tv", 1)
    if type in KNOWN and tv <= VERSIONS.get(type, 1):
        return False
    if envelope.get("crit", True):
        raise UnknownEvent(envelope["seq"], type, tv)
    return True


def apply(state: State, event: Event) -> None:
    """Move the state by one event. Total: never refuses an event of a known type."""
    state.seq = event.seq
    if event.cmd is not None and event.actor.startswith("operator/"):
        state.commands.setdefault(f"{event.actor[9:]} {event.cmd}", (event.seq, event.type))
    _APPLY[event.type](state, event)
    state.hash = event.hash


def replay(events: Iterable[Event], state: State | None = None) -> State:
    """Fold events into a state."""
    state = State() if state is None else state
    for event in events:
        apply(state, event)
    return state


_APPLY: dict[str, Callable[[State, Event], None]] = {
    "log.opened": log.log_opened,
    "log.repaired": log.log_repaired,
    "daemon.started": log.daemon_started,
    "daemon.stopped": common.nothing,
    "engine.fingerprint": log.engine_fingerprint,
    "clock.jumped": common.nothing,
    "study.created": studies.study_created,
    "study.forked": studies.study_forked,
    "study.warmed": studies.study_warmed,
    "study.amended": studies.study_amended,
    "study.paused": studies.study_paused,
    "study.resumed": studies.study_resumed,
    "study.closed": studies.study_closed,
    "study.stopping": studies.study_stopping,
    "study.confirming": studies.study_confirming,
    "study.winner": studies.study_winner,
    "study.ticked": studies.study_ticked,
    "run.began": log.run_began,
    "point.enqueued": studies.point_enqueued,
    "point.again": studies.point_again,
    "trial.proposed": trials.trial_proposed,
    "trial.leased": trials.trial_leased,
    "lease.expired": trials.lease_expired,
    "lease.held": trials.lease_held,
    "lease.released": trials.lease_released,
    "trial.reported": trials.trial_reported,
    "trial.stopped": trials.trial_stopped,
    "trial.completed": outcomes.trial_completed,
    "trial.paused": outcomes.trial_paused,
    "trial.failed": outcomes.trial_failed,
    "trial.pruned": outcomes.trial_pruned,
    "trial.imported": outcomes.trial_imported,
    "outcome.late": outcomes.outcome_late,
    "outcome.voided": outcomes.outcome_voided,
    "model.fitted": studies.model_fitted,
    "worker.revoked": log.worker_revoked,
    "text.redacted": common.nothing,
}
KNOWN = frozenset(_APPLY)
