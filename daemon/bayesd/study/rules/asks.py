"""An ask: contract rule 3."""

from bayesd.study.desk import Desk
from bayesd.study.rules.answers import answer_ask, may_act, reject, send_grant, still_due
from bayesd.study.rules.serving import explain, serve, studies_of
from bayesd_schemas.messages import Ask

WITHDRAWN_MAX = 100_000    # withdrawn asks remembered; the oldest are forgotten first
STANDING_MAX = 1000        # unserved asks kept for one worker
STANDING_ALL_MAX = 50_000  # and for all: each takes about 1 KiB


def on_ask(desk: Desk, worker: str, ask: Ask) -> None:
    """Answer an ask or a copy of it: its open leases again, then new ones, then a receipt for the rest."""
    known = desk.state.worker(worker)
    if not may_act(desk, known, ask.run, ask.id):
        return
    key = (worker, ask.run, ask.id)
    if ask.n == 0:
        standing = desk.standing.get(key)
        if standing is not None:
            desk.sit(standing)
        desk.withdrawn[key] = None
        if len(desk.withdrawn) > WITHDRAWN_MAX:
            del desk.withdrawn[next(iter(desk.withdrawn))]
    if key in desk.withdrawn:
        answer_ask(desk, worker, ask, "closed", "withdrawn")
        return
    leases = known.leases(ask.run, ask.id)
    open_ = [lease for lease in leases if lease.is_open]
    for lease in open_:
        send_grant(desk, lease)
    if still_due(leases, ask.n) <= 0:
        standing = desk.standing.get(key)
        if standing is not None:
            desk.sit(standing)
        if not open_:
            answer_ask(desk, worker, ask, "duplicate")
        return
    if key not in desk.standing and (
            desk.standing_count(worker) >= STANDING_MAX or len(desk.standing) >= STANDING_ALL_MAX):
        reject(desk, worker, ask.id, "rate", f"{desk.standing_count(worker)} asks of this worker stand already, "
                                             f"{len(desk.standing)} of all workers", ask.run)
        return
    standing = desk.stand(worker, ask)
    for study in studies_of(desk, ask):
        serve(desk, study)
    if key in desk.standing:
        explain(desk, standing)
