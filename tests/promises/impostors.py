"""Forgers with names of their own on a real broker, in the three ways to be somebody, before a real daemon.

A round makes up some dozen forgeries: somebody says something right to a topic of somebody else, listens where another
is spoken to, leaves a last will in another's name, or says to its own topics what is another's: a result for a trial
that it was not leased, a beat that lists it, a request without being an operator. What a person may write and hear is
written down here once more, apart from the access list. Only delivery counts: what a witness saw that may hear all,
what the spy heard, and what the log has (tests/security/test_forgery.py has the machinery and the fixed matrix).
"""

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.promises.book import Fault, Proof, Round
from tests.security.brokers import ACL, PROFILES, Guarded, access_list
from tests.security.test_forgery import ROOT, World, living

FORGERS = ("w1", "alice", "bob")
SILENT = ("worker/w2", "operator/alice", "operator/bob", "operator/w1", "operator/w2")
"""Actors of events that nobody here may cause: they say nothing in a round that makes an event."""
FORGERIES = 24
CLAIMS = 6
"""Outcomes and reports of trials that w2 has, which w1 sends to its own topics."""
PROGRAM = str(Path(__file__).with_name("launch.py"))


def may_write(who: str, topic: str) -> bool:
    """What the contract lets a worker or an operator write."""
    words = topic.removeprefix(f"{ROOT}/").split("/")
    return (words[:2] == ["from", who] and len(words) == 3) or words == ["worker", who] or (
        words == ["admin", who, "request"] and who in ("alice", "bob"))


def may_hear(who: str, topic: str) -> bool:
    """What the contract lets a worker hear."""
    words = topic.removeprefix(f"{ROOT}/").split("/")
    return (words[:2] == ["to", who] and len(words) == 3) or topic in (f"{ROOT}/daemon", f"{ROOT}/head") or (
        words[0] == "study" and len(words) == 2)


def topic(rng: random.Random) -> str:
    """Somebody's place, now and then one that only looks like it."""
    who = rng.choice(("w1", "w2", "alice", "bob", "bayesd"))
    place = rng.choice((
        f"from/{who}/{rng.choice(('ask', 'beat', 'report', 'tell'))}", f"to/{who}/{rng.choice(('grant', 'receipt'))}",
        f"to/{who}/{rng.choice(('stop', 'reply'))}", f"admin/{who}/request", f"worker/{who}", "daemon", "head",
        "study/s1", "study/none", "study/s1/events"))
    if rng.random() < 0.15:
        at = rng.randint(0, len(place))
        place = place[:at] + rng.choice(("/", "//", "../", "\u200b", " ", "W", "%", "$", "\\")) + place[at:]
    return f"{ROOT}/{place}"


def message(rng: random.Random, mark: str) -> dict[str, Any]:
    """Something that would be understood, about what belongs to w2; with names of others inside."""
    lease = {"study": "s1", "trial": rng.randint(1, 20), "fence": 1}
    body = rng.choice((
        {"id": mark, **lease, "value": 1.0}, {"id": mark, **lease, "state": "fail"}, {"id": mark, **lease, "step": 1,
                                                                                    "value": 1.0},
        {"id": mark, "run": "r", "study": "none", "n": 1},
        {"id": mark, "run": "r", "leases": [["s1", lease["trial"], 1]], "asks": []},
        {"id": mark, "verb": "study.close", "args": {"study": "s1"}},
        {"id": mark, "verb": "worker.revoke", "args": {"worker": "w2", "reason": "r"}},
        {"id": mark, "status": "recorded"}, {**lease, "reason": "closed"}, {"state": "offline"}))
    inside = {name: rng.choice(("w2", "alice", f"{ROOT}/to/w2/receipt")) for name in
              rng.sample(("worker", "client", "actor", "user", "from", "reply_to", "topic"), 2)}
    return {**body, **inside, "mark": mark}


def filter_of(rng: random.Random) -> str:
    """What a spy listens to."""
    words = topic(rng).split("/")
    for _ in range(rng.randint(1, 3)):
        words[rng.randrange(len(words))] = "+"
    if rng.random() < 0.4:
        words = [*words[:rng.randrange(len(words))], "#"]
    out = "/".join(words)
    return f"$share/g{rng.randrange(9)}/{out}" if rng.random() < 0.15 else out


def is_fine(filter: str) -> bool:
    """Whether a client can send it at all."""
    words = filter.split("/")
    return bool(filter) and all("+" not in each or each == "+" for each in words)


def forge(world: World, seed: int) -> Round:
    rng, witness = random.Random(seed), world.people["witness"]  # a seeded test
    before, began = len(world.daemon.events()), len(witness.came)
    marks: dict[str, tuple[str, str]] = {}
    counts = {"forgeries": 0, "own topics": 0, "wills": 0, "messages heard by spies": 0}
    broken = []
    spy = world.guard.actor("w1")
    with spy:
        spy.subscribe(*[each for each in (filter_of(rng) for _ in range(8)) if is_fine(each)] or [f"{ROOT}/#"])
        for number in range(FORGERIES):
            mark = f"forged.{seed}.{number:02}"      # none is the beginning of another
            who, where = rng.choice(FORGERS), topic(rng)
            body = message(rng, mark)
            if may_write(who, where):
                counts["own topics"] += 1
                if body.get("verb") and who != "w1":       # an operator may close and revoke
                    continue
            else:
                marks[mark] = who, where
                counts["forgeries"] += 1
            data = json.dumps(body).encode()
            if rng.random() < 0.1 and mark in marks:
                counts["wills"] += 1
                dying = world.guard.actor(who, will=(where, data))
                if dying.log_in():
                    dying.die()
                continue
            world.people[who].say(where, data, retain=mark in marks and rng.random() < 0.3)
        for number in range(CLAIMS):
            counts["own topics"] += 1
            claim: dict[str, Any] = {"id": f"claim.{seed}.{number}", "study": "s1", "trial": rng.randint(1, 20),
                                     "fence": 1, "value": 1.0}
            kind = rng.choice(("tell", "report"))
            world.people["w1"].say(f"{ROOT}/from/w1/{kind}", claim if kind == "tell" else {**claim, "step": number})
        for who in (*FORGERS, "w2"):
            world.settled(world.people[who])        # one connection is one queue: what was before has come
        own, word = world.word("w1")
        spy.subscribe(f"{ROOT}/to/w1/+")
        spy.say(own, word)
        spy.receipt(f"{ROOT}/to/w1/receipt", json.loads(word)["id"])
    counts["messages heard by spies"] = len(spy.came)
    broken += [f"{who} was heard at {where}" for where, data in witness.came[began:]
               for mark, (who, place) in marks.items() if where == place and mark.encode() in data]
    broken += [f"w1 heard what was said at {where}" for where, _ in spy.came if not may_hear("w1", where)]
    for event in world.daemon.events()[before:]:
        if event["actor"] in SILENT or (event["actor"] == "worker/w1" and event.get("trial") is not None):
            broken.append(f"an event {event['type']} of {event['actor']}")
    del witness.came[:-1000]
    return Round(counts, tuple(broken))


@contextlib.contextmanager
def _lab(folder: Path, fault: Fault | None = None) -> Iterator[Callable[[int], Round]]:
    acl = access_list(ACL.read_text(encoding="utf-8"))
    program: tuple[str, ...] = ("-m", "bayesd.cli")
    if fault is not None and fault.is_in_a_file:
        acl = access_list(ACL.read_text(encoding="utf-8").replace(fault.old, fault.new))
    elif fault is not None:
        program = PROGRAM, "--fault", fault.name
    with contextlib.ExitStack() as stack:
        worlds: dict[str, World] = {}

        def round_of(seed: int) -> Round:
            profile = PROFILES[seed % len(PROFILES)]
            if profile not in worlds:
                place = folder / profile
                place.mkdir()
                worlds[profile] = stack.enter_context(living(Guarded(profile, place, acl=acl), place, program))
                worlds[profile].people["w1"].say(f"{ROOT}/from/w1/beat", {"run": "w", "leases": [], "asks": []})
            return forge(worlds[profile], seed)
        yield round_of


RULES, LIST = "bayesd.study.rules", "deploy/mosquitto/bayesd.acl"
PROOFS = [Proof("impostors", ("P28",), "rounds of forgeries", _lab, quick=3, release=300, within=3,
                needs=("mosquitto",), faulty=lambda fault, folder: _lab(folder, fault), faults=(
    Fault("a trial is told by whoever likes to", f"{RULES}.answers", "if lease is None or lease.worker != worker:",
          "if lease is None:"),
    Fault("workers write for each other", LIST, "pattern write bayesd/1/from/%u/+", "pattern write bayesd/1/from/+/+"),
    Fault("workers hear each other's answers", LIST, "pattern read bayesd/1/to/%u/+", "pattern read bayesd/1/to/+/+"),
    Fault("operators write for each other", LIST, "topic write bayesd/1/admin/alice/request",
          "topic write bayesd/1/admin/+/request"),
))]
