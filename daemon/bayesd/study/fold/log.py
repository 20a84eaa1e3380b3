"""Events of the log itself, of its daemon, and of its workers."""

from sys import intern

from bayesd.study.fold.common import count_failure, end, move
from bayesd.study.state import Event, Repair, State, Worker


def log_opened(state: State, event: Event) -> None:
    state.log = event.data["log"]


def daemon_started(state: State, event: Event) -> None:
    state.epoch = event.data["epoch"]
    state.key = event.data.get("key", state.key)
    if state.key is not None and state.key not in state.keys:
        state.keys.append(state.key)


def log_repaired(state: State, event: Event) -> None:
    data = event.data
    state.fence_base = max(state.fence_base, data["fences_from"])
    state.given_up = max(state.given_up, data["size"])
    state.accepted = data["accepted"]
    if data.get("signature") is not None:       # logs of before have none: they excuse nothing and begin no branch
        state.repairs.append(Repair(event.seq, state.hash.hex(), data["accepted"], data["fences_from"],
                                    data.get("shared", 0), data["signature"]))


def engine_fingerprint(state: State, event: Event) -> None:
    state.fingerprint = event.data["fingerprint"]


def worker_revoked(state: State, event: Event) -> None:
    name = intern(event.data["worker"])
    # The reason may be redacted one day, and a replay must not notice: so the event stands for it.
    state.workers.setdefault(name, Worker(name)).revoked = (
        f"event {event.seq}" if "reason_ref" in event.data else event.data.get("reason") or "revoked")


def run_began(state: State, event: Event) -> None:
    data = event.data
    name, run = intern(data["worker"]), intern(data["run"])
    worker = state.workers.get(name)
    if worker is None:
        worker = state.workers[name] = Worker(name)
    for study, number, fence in data["took"]:
        lease = state.lease(study, number, fence)
        assert lease is not None
        lease.run = run
    for study, number, fence in data["ended"]:
        lease = state.lease(study, number, fence)
        assert lease is not None
        end(state, lease, "superseded")
        count_failure(lease.trial, "lost")
        move(lease.trial, "waiting")
    if worker.run is not None and worker.run != run:
        worker.replaced.add(worker.run)
    for other in [other for other in worker.asks if other != run]:
        worker.replaced.add(other)
        del worker.asks[other]
    worker.run = run
    worker.asks.setdefault(run, {})
