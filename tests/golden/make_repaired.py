"""Write the golden log of a rollback that was accepted: signed heads, and fences that go on far above.

    python tests/golden/make_repaired.py tests/golden/log-repaired-2.jsonl

log-repaired.jsonl is of a time when repairs had no signature and a log had no branch
"""

import json
import sys
from pathlib import Path

from tests.golden.make import SPACE, Story

from bayesd import lineage
from bayesd.notes import Checkpoint, Signer
from bayesd.study import snapshot
from bayesd.study.knowledge import knowledge_digest


def story() -> Story:
    world, signer = Story(), Signer("golden", bytes(range(32)))
    desk = world.desk
    desk.record("log.opened", {"log": "golden", "format": 1, "version": "0.1.0"})
    desk.record("daemon.started", {"epoch": 1, "version": "0.1.0", "key": signer.vkey})
    world.admin("study.create", spec={"name": "s", "seed": 3, "space": SPACE, "method": "random",
                                      "lease": {"default_s": 60}, "retry": {"lost": 3}})
    world.say("w1", "beat", run="r1")
    for ask in ("a1", "a2", "a3"):
        world.say("w1", "ask", id=ask, run="r1", study="s")
    world.say("w1", "tell", id="t1", study="s", trial=1, fence=1, value=0.5)
    other = Signer("golden", bytes(32))
    desk.record("daemon.started", {"epoch": 2, "version": "0.1.0", "key": other.vkey})
    desk.record("daemon.started", {"epoch": 3, "version": "0.1.0", "key": signer.vkey})
    accepted = Checkpoint("golden", 40, bytes(range(32)))
    desk.record("log.repaired", {
        "reason": "the disk died", "accepted": signer.sign_text(accepted.text), "size": 40, "shared": 5,
        "fences_from": 1_767_225_600_000,
        "signature": lineage.sign(signer, desk.state.hash.hex(), accepted, 5, 1_767_225_600_000)})
    world.say("w1", "tell", id="t2", study="s", trial=2, fence=1, value=0.4)     # handed out before: it counts
    world.tick(61)
    world.say("w2", "ask", id="b1", run="r2", study="s")                         # trial 3 again, with a high fence
    world.say("w1", "tell", id="t3", study="s", trial=3, fence=1, value=0.3)     # late
    fence = desk.state.studies["s"].trials[2].fence
    world.say("w2", "tell", id="t4", study="s", trial=3, fence=fence, value=0.2)
    world.say("w2", "ask", id="b2", run="r2", study="s")                         # a new trial begins high
    world.tick(61)
    world.say("w1", "ask", id="a4", run="r1", study="s")
    desk.record("daemon.stopped", {"reason": "stop"})
    world.settle()
    return world


def main() -> None:
    world = story()
    lines = [body.decode() for body in world.bodies]
    state = world.desk.state
    last = {"digest": snapshot.digest(state),
            "knowledge": {name: knowledge_digest(study) for name, study in state.studies.items()}}
    Path(sys.argv[1]).write_text("\n".join([*lines, json.dumps(last)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
