"""Nobody can say or hear what belongs to another: a matrix of forgeries on a real broker with a real daemon.

Three ways to be somebody (passwords, client certificates, the Dynamic Security plugin) times every forgery. A broker
says nothing to a publisher that it refuses, so exit codes and acknowledgements are worth nothing here: what counts is
what a witness that may read everything saw, and what the daemon's log has. After each forgery the forger says
something honest over the same broker, and one connection is one queue: once the honest word is there, what was before
it has been delivered or never will be.

Each forgery has a control: the same bytes at the same topic from the one whom it belongs to arrive. And the list of
the last test are faults in the access list, each of which this matrix catches.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.edges.daemon import SPACE, Daemon
from tests.security.brokers import ACL, PROFILES, Actor, Guarded, access_list

pytestmark = pytest.mark.mosquitto

ROOT = "bayesd/1"


@dataclass
class World:
    """A guarded broker, a real daemon with a study behind it, and one connection for everybody."""

    guard: Guarded
    daemon: Daemon
    people: dict[str, Actor]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def word(self, name: str) -> tuple[str, bytes]:
        """Something honest that `name` may always say, and that the daemon does not answer with an event."""
        body = json.dumps({"id": f"honest.{next(self.numbers)}", "study": "none", "trial": 1, "fence": 1, "step": 0,
                           "value": 0, "verb": "study.list", "args": {}}).encode()
        place = f"admin/{name}/request" if name in ("alice", "bob") else f"from/{name}/report"
        return f"{ROOT}/{place}", body

    def settled(self, actor: Actor) -> None:
        """What this connection sent has passed the broker, and the daemon has answered what came before."""
        topic, body = self.word(actor.name)
        actor.say(topic, body)
        self.people["witness"].got(topic, body)
        kind = "reply" if "/admin/" in topic else "receipt"
        self.people["witness"].receipt(f"{ROOT}/to/{actor.name}/{kind}", json.loads(body)["id"])

    def events(self) -> list[str]:
        return [f"{event['seq']} {event['type']} {event['actor']}" for event in self.daemon.events()]


@contextlib.contextmanager
def living(guard: Guarded, folder: Path, program: Sequence[str] = ("-m", "bayesd.cli")) -> Iterator[World]:
    flags = [*guard.flags("bayesd"), "--operators", "alice,bob"]
    with guard, contextlib.ExitStack() as stack:
        people = {name: stack.enter_context(guard.actor(name)) for name in ("witness", "w1", "w2", "alice", "bob")}
        witness = people["witness"]
        witness.subscribe("#", "$SYS/broker/version", "$CONTROL/#")
        for name in ("w1", "w2", "alice", "bob"):
            people[name].subscribe(f"{ROOT}/to/{name}/+")
        daemon = stack.enter_context(Daemon(folder, guard.url, *flags, program=program))

        def online() -> bool:
            assert daemon.alive, daemon.said()
            return any(topic == f"{ROOT}/daemon" and b'"online"' in body for topic, body in witness.came)

        witness.until(online, "the daemon is online")
        world = World(guard, daemon, people)
        people["alice"].say(f"{ROOT}/admin/alice/request", {
            "id": "create", "verb": "study.create",
            "args": {"spec": {"name": "s1", "method": "random", "space": SPACE, "lease": {"default_s": 600}}}})
        assert people["alice"].receipt(f"{ROOT}/to/alice/reply", "create")["status"] == "ok"
        people["w2"].say(f"{ROOT}/from/w2/beat", {"run": "r", "leases": [], "asks": []})
        people["w2"].say(f"{ROOT}/from/w2/ask", {"id": "a", "run": "r", "study": "s1", "n": 20})
        people["w2"].until(lambda: sum(topic.endswith("/grant") for topic, _ in people["w2"].came) == 20, "20 grants")
        yield world


@pytest.fixture(scope="module", params=PROFILES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("forgery")
    with living(Guarded(request.param, folder), folder) as made:
        yield made


# --- What must not be said -------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgery:
    """Bytes that `forger` sends to a topic which belongs to `owner`."""

    name: str
    forger: str
    topic: str
    body: dict[str, Any] | None        # None: nothing, which clears what is retained
    owner: str
    retain: bool = False

    def bytes_(self, mark: str) -> bytes:
        """Forgery and control have the same form, and are told apart by a field that readers ignore."""
        return b"" if self.body is None else json.dumps({**self.body, "mark": mark}).encode()


RUN, LEASE = {"run": "r"}, {"study": "s1", "trial": 1, "fence": 1}
GRANT = {"ask": "a", **RUN, **LEASE, "params": {"x": 0.1}, "lease_s": 600, "at": "2026-01-01T00:00:00Z", "epoch": 1,
         "space_rev": 1}
REQUEST = {"id": "forged", "verb": "study.list", "args": {}}

SAID = [
    Forgery("tell as another worker", "w1", "from/w2/tell", {"id": "t", **LEASE, "value": 1}, "w2"),
    Forgery("ask as another worker", "w1", "from/w2/ask", {"id": "more", **RUN, "study": "s1"}, "w2"),
    Forgery("beat as another worker", "w1", "from/w2/beat", {"run": "r2", "leases": [], "asks": []}, "w2"),
    Forgery("report as another worker", "w1", "from/w2/report", {"id": "p", **LEASE, "step": 1, "value": 1}, "w2"),
    Forgery("a grant to a worker", "w1", "to/w2/grant", GRANT, "bayesd"),
    Forgery("a receipt to a worker", "w1", "to/w2/receipt", {"id": "x", "status": "recorded"}, "bayesd"),
    Forgery("a stop to a worker", "w1", "to/w2/stop", {**LEASE, "reason": "closed"}, "bayesd"),
    Forgery("a receipt to oneself", "w1", "to/w1/receipt", {"id": "x", "status": "recorded"}, "bayesd"),
    Forgery("a reply to an operator", "w1", "to/alice/reply", {"id": "x", "status": "ok"}, "bayesd"),
    Forgery("the daemon's word", "w1", "daemon", {"state": "offline"}, "bayesd", retain=True),
    Forgery("a head", "w1", "head", {"note": "forged"}, "bayesd", retain=True),
    Forgery("a study's state", "w1", "study/s1", {"state": "closed", "best": None}, "bayesd", retain=True),
    Forgery("an unknown study's state", "w1", "study/s2", {"state": "open"}, "bayesd", retain=True),
    Forgery("a committed event", "w1", "study/s1/events", {"type": "trial.completed"}, "bayesd"),
    Forgery("clear the daemon's word", "w1", "daemon", None, "bayesd", retain=True),
    Forgery("clear a head", "w1", "head", None, "bayesd", retain=True),
    Forgery("clear a study's state", "w1", "study/s1", None, "bayesd", retain=True),
    Forgery("another worker's presence", "w1", "worker/w2", {"state": "offline"}, "w2", retain=True),
    Forgery("clear another worker's presence", "w1", "worker/w2", None, "w2", retain=True),
    Forgery("act as an operator", "w1", "admin/alice/request", REQUEST, "alice"),
    Forgery("act as another operator", "bob", "admin/alice/request", REQUEST, "alice"),
    Forgery("an operator as a worker", "alice", "from/w2/tell", {"id": "t2", **LEASE, "trial": 2, "value": 1}, "w2"),
    Forgery("an operator's grant", "alice", "to/w2/grant", GRANT, "bayesd"),
    Forgery("an operator's study state", "alice", "study/s1", {"state": "closed"}, "bayesd", retain=True),
    Forgery("an operator's reply to another", "alice", "to/bob/reply", {"id": "x", "status": "ok"}, "bayesd"),
    Forgery("a tell of the daemon's user", "bayesd", "from/w2/tell", {"id": "t3", **LEASE, "trial": 3, "value": 1},
            "w2"),
]


def by_name(each: Any) -> str:
    return str(each.name)


@pytest.mark.parametrize("forgery", SAID, ids=by_name)
def test_a_forgery_reaches_nobody_and_the_same_bytes_from_their_owner_do(world: World, forgery: Forgery) -> None:
    assert not reached(world, forgery)


def reached(world: World, forgery: Forgery) -> bool:
    """Whether somebody saw it. Asserts that the same is delivered when it comes from its owner."""
    witness, topic = world.people["witness"], f"{ROOT}/{forgery.topic}"
    # A connection of its own, after which the honest word comes: the broker has read all of the first by then.
    before, seen = world.events(), len(witness.came)
    forger = world.people.get(forgery.forger)
    if forger is None:
        with world.guard.actor(forgery.forger) as forger:
            forger.say(topic, forgery.bytes_("forged"), retain=forgery.retain)
            forger.say(f"{ROOT}/to/w1/receipt", b'{"id": "after"}')
            witness.got(f"{ROOT}/to/w1/receipt", b'{"id": "after"}')
        world.settled(world.people["w1"])
    else:
        forger.say(topic, forgery.bytes_("forged"), retain=forgery.retain)
        world.settled(forger)
    found = (topic, forgery.bytes_("forged")) in witness.came[seen:] or world.events() != before
    if found:
        return True
    with world.guard.actor(forgery.owner) as owner:
        owner.say(topic, forgery.bytes_("honest"), retain=forgery.retain)
        witness.got(topic, forgery.bytes_("honest"))
    if forgery.topic == "from/w2/tell":
        answer = witness.receipt(f"{ROOT}/to/w2/receipt", str((forgery.body or {})["id"]))
        assert answer["status"] == "recorded", answer
    elif forgery.topic == "from/w2/ask":       # it makes an event, in its own time
        world.people["w2"].until(lambda: any(b'"more"' in body for _, body in world.people["w2"].came), "a grant")
    world.settled(world.people["w1"])
    return False


def test_what_a_daemon_says_of_itself_survives_who_may_write_there(world: World) -> None:
    """After the controls, which came from the daemon's own user: what it keeps on the broker is right again."""
    world.settled(world.people["w1"])
    with world.guard.actor("w2") as reader:
        reader.subscribe(f"{ROOT}/daemon", f"{ROOT}/study/+")
        reader.until(lambda: any(topic == f"{ROOT}/daemon" for topic, _ in reader.came), "the daemon's word")
        reader.until(lambda: any(topic == f"{ROOT}/study/s1" for topic, _ in reader.came), "the study's state")
    assert {json.loads(body).get("mark") for topic, body in reader.came if body} == {None}


# --- What must not be heard ------------------------------------------------------------------------

HEARD = {
    "another's inbox": ["bayesd/1/to/w2/receipt", "bayesd/1/to/w2/grant", "bayesd/1/to/w2/#"],
    "all inboxes": ["bayesd/1/to/+/receipt", "bayesd/1/to/#"],
    "an operator's inbox": ["bayesd/1/to/alice/reply", "bayesd/1/to/alice/#"],
    "what others tell": ["bayesd/1/from/#", "bayesd/1/from/+/report", "bayesd/1/from/w2/report"],
    "what operators ask": ["bayesd/1/admin/#", "bayesd/1/admin/alice/request"],
    "everything": ["#"],
    "everything below the root": ["bayesd/#", "bayesd/1/#"],
    "everything, by levels": ["+/+/+/+/+", "+/1/+/+/+", "+/+/+/w2/+"],
    "a share of another's inbox": ["$share/g/bayesd/1/to/w2/receipt", "$share/g/bayesd/1/to/alice/reply"],
    "a share of what others tell": ["$share/g/bayesd/1/from/+/report", "$share/g/#"],
    "how the broker is run": ["$CONTROL/#", "$CONTROL/dynamic-security/v1/response", "$SYS/#"],
}


@pytest.mark.parametrize("name", HEARD)
def test_nobody_hears_what_is_for_another(world: World, name: str) -> None:
    with world.guard.actor("w1") as spy:
        spy.subscribe(*HEARD[name])
        world.settled(world.people["w2"])          # the witness heard it: there was something to hear
        world.settled(world.people["alice"])
        own = f"{ROOT}/from/w1/report"
        body = json.dumps({"id": f"own.{next(world.numbers)}", "study": "none", "trial": 1, "fence": 1, "step": 0,
                           "value": 0}).encode()
        spy.subscribe(f"{ROOT}/to/w1/+")
        spy.say(own, body)
        spy.receipt(f"{ROOT}/to/w1/receipt", json.loads(body)["id"])     # what was before it has come
    public = (f"{ROOT}/study/s1", f"{ROOT}/daemon", f"{ROOT}/head")
    assert {topic for topic, _ in spy.came if not topic.startswith(f"{ROOT}/to/w1/")} - set(public) == set()
    assert not [topic for topic, _ in spy.came if "share" in name and topic.startswith(f"{ROOT}/to/w2")]


# --- Wills, other roots, the broker's own topics, names that are patterns ---------------------------


@pytest.mark.parametrize("place", ["from/w2/tell", "worker/w2", "daemon", "head", "study/s1", "to/w2/stop",
                                   "admin/alice/request"])
def test_no_last_will_speaks_for_another(world: World, place: str) -> None:
    witness = world.people["witness"]
    before = world.events()
    will = json.dumps({"id": f"will.{next(world.numbers)}", "verb": "study.list", "args": {}}).encode()
    for topic, arrives in ((f"{ROOT}/{place}", False), (f"{ROOT}/worker/w1", True)):
        dying = world.guard.actor("w1", will=(topic, will))
        if dying.log_in():
            dying.die()
        if arrives:
            witness.got(topic, will)
    assert (f"{ROOT}/{place}", will) not in witness.came
    world.settled(world.people["w1"])
    assert world.events() == before


ELSEWHERE = [
    "acme/bayesd/1/from/w2/tell", "/bayesd/1/from/w2/tell", "bayesd/1//from/w2/tell", "bayesd/1/from//w2/tell",
    "bayesd/1/from/w2/tell/", "Bayesd/1/from/w2/tell", "bayesd/2/from/w2/tell", "bayesd/1/from/w1/../w2/tell",
    "bayesd/1/from/w1/tell/../../w2/tell", "bayesd/1/from/W2/tell", "bayesd/1/from/w2 /tell", "bayesd/1/from/ w2/tell",
    "bayesd/1/from/\uff572/tell", "bayesd/1/from/\u0461\u0032/tell", "bayesd/1/from/w2\u200b/tell",
    "bayesd/1/from/\u202ew2/tell", "bayesd/1/from/w%32/tell", "bayesd/1/from/w1\\..\\w2/tell",
    "bayesd/1/worker/w1/../w2", "bayesd/1/daemon/", "bayesd/1/study/s1/", "bayesd/1/admin/w1/request",
    "bayesd/1/admin/alice/request/", "bayesd/1/admin/al\u0456ce/request",
]


@pytest.mark.parametrize("topic", ELSEWHERE)
def test_a_topic_that_looks_like_another_one_is_nobodys(world: World, topic: str) -> None:
    """The broker lets a worker write below its own name; whatever it lets pass, the daemon does not take it for
    another's word."""
    before, w1 = world.events(), world.people["w1"]
    body = json.dumps({"id": "trick", **LEASE, "trial": 4, "value": 1, "verb": "study.close", "args": {"study": "s1"},
                       "run": "r"}).encode()
    w1.say(topic, body)
    world.settled(w1)
    if not topic.startswith(f"{ROOT}/from/w1/"):
        assert (topic, body) not in world.people["witness"].came
    assert world.events() == before
    assert not [said for where, said in world.people["witness"].came
                if where.startswith(f"{ROOT}/to/") and b'"trick"' in said]


@pytest.mark.parametrize("topic", ["$CONTROL/dynamic-security/v1", "$SYS/broker/version", "$SYS/broker/uptime",
                                   "$SYS/anything", "$share/g/bayesd/1/from/w2/tell", "bayesd/1/from/+/tell",
                                   "bayesd/1/from/#", "bayesd/1/to/+/grant", "#", "bayesd/1/from/w2/te\0ll"])
def test_the_brokers_own_topics_and_patterns_cannot_be_written(world: World, topic: str) -> None:
    """The broker may throw out who tries: a connection of its own, and the honest word over another one."""
    before, witness = world.events(), world.people["witness"]
    body = json.dumps({"commands": [{"command": "createClient", "username": "eve", "password": "eve"}]}).encode()
    with world.guard.actor("w1") as forger:
        forger.subscribe(f"{ROOT}/to/w1/+")
        forger.say(topic, body, retain=True)
        own, word = world.word("w1")
        forger.say(own, word)
        forger.until(lambda: forger.thrown_out or any(json.loads(word)["id"].encode() in said
                                                      for _, said in forger.came), "an end or an answer")
    world.settled(world.people["w1"])
    assert body not in [said for _, said in witness.came]
    assert world.events() == before
    assert any(where == "$SYS/broker/version" for where, _ in witness.came)     # the witness does hear such topics


DANGEROUS = ["+", "#", "w2/tell", "w2/+", "w2/#", "+/tell", "w2/receipt", "$SYS", "", "w2/", "/", "../w2"]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_user_whose_name_is_a_pattern_gets_nothing_by_it(
        profile: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever adds users should take names of the contract only. If one does not, no other worker pays for it."""
    folder = tmp_path_factory.mktemp("names")
    names = [name for name in DANGEROUS if name and not (profile == "dynsec" and set(name) & set("+#"))]
    with Guarded(profile, folder, more=names) as guard, guard.actor("witness") as witness, guard.actor("w2") as w2:
        witness.subscribe("#")
        for name in names:
            with contextlib.closing(guard.actor(name)) as spy:
                if not spy.log_in():
                    continue
                spy.subscribe("bayesd/1/to/w2/receipt")
                spy.subscribe(f"bayesd/1/to/{name}/#" if not set(name) & set("+#") else "bayesd/1/to/#")
                for kind in ("tell", "report"):
                    spy.say(f"bayesd/1/from/w2/{kind}", f"forged by {name}".encode())
                with guard.actor("bayesd") as daemon:
                    answer = f"for w2, not for {name}".encode()
                    daemon.say("bayesd/1/to/w2/receipt", answer)
                    witness.got("bayesd/1/to/w2/receipt", answer)
                # Subscribed and answered after everything else: what was to come has come.
                spy.subscribe("bayesd/1/sync")
            assert [body for _, body in spy.came if b"for w2" in body] == [], name
        w2.say("bayesd/1/from/w2/report", b"honest")
        witness.got("bayesd/1/from/w2/report", b"honest")
    assert [body for topic, body in witness.came if topic.startswith("bayesd/1/from/w2/")] == [b"honest"]


# --- The matrix can fail ---------------------------------------------------------------------------

FAULTS: dict[str, Callable[[str], str]] = {
    "workers write for each other": lambda text: text.replace("from/%u/", "from/+/"),
    "workers write into inboxes": lambda text: text + "\nuser w1\ntopic write bayesd/1/to/#\n",
    "workers write public state": lambda text: text.replace("topic read bayesd/1/daemon", "topic bayesd/1/daemon"),
    "operators for each other": lambda text: text.replace("admin/bob/request", "admin/+/request"),
}
CAUGHT_BY = {"workers write for each other": SAID[0], "workers write into inboxes": SAID[4],
             "workers write public state": SAID[9], "operators for each other": SAID[20]}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_access_list_is_caught(fault: str, tmp_path: Path) -> None:
    acl = access_list(ACL.read_text(encoding="utf-8"))
    broken = FAULTS[fault](acl)
    assert broken != acl
    with living(Guarded("password", tmp_path, acl=broken), tmp_path) as world:
        assert reached(world, CAUGHT_BY[fault])
