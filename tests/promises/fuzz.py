"""Messages that nobody in his right mind would send, ten thousand a round, to the service itself.

Seeds are valid messages of every kind about things that are there. They are changed in their bytes, in their JSON and
in their topics, and what made the decoder say something new is kept in `corpus.tsv` and sent again in every first round
(`python tests/promises/fuzz.py` looks for more). A round is broken by an exception, by a message that is read although
the contract calls it bad (judged here by other means than the decoder's), by an event of a message that is refused, by
memory that grows without an end, and by an honest worker that is no longer served afterwards.
"""

import asyncio
import base64
import contextlib
import copy
import gc
import json
import math
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / part) for part in ("daemon", "clients/python", "schemas"))]

from tests.promises.book import Fault, Proof, Round  # noqa: E402  # the path comes first

from bayesd.service import Service, Settings  # noqa: E402
from bayesd.testing import Daemon, MemoryBroker, MemoryClient, VirtualLoop  # noqa: E402
from bayesd_schemas.messages import BadMessage, decode  # noqa: E402

CORPUS = Path(__file__).with_name("corpus.tsv")
MESSAGES = 10_000
KEPT_BYTES = 2000
BATCH = 250                    # between two of them, time passes and the log commits
GROWTH_KIB = 96 * 1024         # standing asks are capped at 50,000, and so is all else; this is what they may take
KINDS = ("ask", "beat", "report", "tell", "request")
SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "k": {"type": "categorical", "choices": ["a", "b"]}}
SEEDS: dict[str, list[dict[str, Any]]] = {
    "ask": [{"id": "a1", "run": "r1", "study": "s"}, {"id": "a2", "run": "r1", "n": 3, "lease_s": 60, "tags": ["gpu"]},
            {"id": "a9", "run": "r1", "study": "nowhere"},
            {"id": "a3", "run": "r1", "study": "s", "seen": "bayesd.log/x\n1\nAAAA\n\n— x AAAA\n"}],
    "beat": [{"run": "r1", "leases": [["s", 1, 1]], "asks": ["a1"]}],
    "report": [{"id": "r.s.1.1.0", "study": "s", "trial": 1, "fence": 1, "step": 0, "value": 0.5},
               {"id": "r", "study": "s", "trial": 1, "fence": 1, "step": 7, "values": {"value": 1e-3, "other": 2}}],
    "tell": [{"id": "t.s.1.1", "study": "s", "trial": 1, "fence": 1, "value": 0.5, "seconds": 1.5, "cost": 2},
             {"id": "t", "study": "s", "trial": 1, "fence": 1, "folds": [0.1, 0.2, 0.3]},
             {"id": "t", "study": "s", "trial": 1, "fence": 1, "folds": {"value": [0.1, 1e200]}, "checkpoint": "c/1"},
             {"id": "t", "study": "s", "trial": 1, "fence": 1, "state": "fail", "class": "oom", "error": "no memory",
              "ask": {"id": "a4", "run": "r1", "study": "s"}}],
    "request": [{"id": "q1", "verb": "study.show", "args": {"study": "s"}},
                {"id": "q2", "verb": "trial.list", "args": {"study": "s", "after": 1, "limit": 5, "at": 3}},
                {"id": "q3", "verb": "study.create", "args": {"spec": {"name": "t", "space": SPACE}}},
                {"id": "q4", "verb": "study.amend", "args": {"study": "s", "changes": {"budget": {"trials": 5}}}},
                {"id": "q5", "verb": "events", "args": {"after": 0, "limit": 10}},
                {"id": "q6", "verb": "why", "args": {"study": "s", "trial": 1}},
                {"id": "q7", "verb": "study.whatif", "args": {"study": "s", "trials": 2}},
                {"id": "q8", "verb": "study.importance", "args": {"study": "s", "pairs": True, "of": "value"}},
                {"id": "q9", "verb": "study.effect", "args": {"study": "s", "param": "x"}},
                {"id": "q10", "verb": "study.warnings", "args": {"study": "s"}},
                {"id": "q11", "verb": "study.best", "args": {"study": "s", "rule": "one-se"}},
                {"id": "q12", "verb": "study.enqueue", "args": {"study": "s", "again": 1, "repeats": 2}},
                {"id": "q13", "verb": "study.create", "args": {"spec": {
                    "name": "u", "space": SPACE, "limits": [{"name": "size", "at_most": 1}], "cost": {"per": "cost"},
                    "prior": {"x": {"centre": 1.0}}, "warm_start": [{"study": "s", "assume": {"k": "a"}}],
                    "prune": {"rule": "asha", "resume": True}, "fidelity": {"name": "epochs", "max": 9},
                    "stop": {"patience": 3}}}}]}
NASTY: list[Any] = [
    None, True, False, 0, -0.0, -1, 1e308, 2**53, 2**64, 10**400, 5e-324, math.nan, math.inf, "", "nan", "-Infinity",
    "\x00", "../../etc/passwd", "a" * 5000, "s'; DROP TABLE event;--", "$(reboot)", "{x}", "%s%n", "\u202e\u0000\ud800",
    "ſ", "S", "s/+/#", [], {}, [[]], [{}] * 50, {"a": {"b": {"c": []}}}, "1", "1e5", 1.5, ["s", 1, 1],
    [["s", 1, 1]] * 300, json.loads("[" * 20 + "]" * 20), json.loads('{"a":' * 14 + "1" + "}" * 14)]
FIELDS = ("id", "run", "study", "trial", "value", "values", "folds", "x", "", "__class__", "a" * 300)
KNOWN = {"ask": ("id", "run", "study"), "beat": ("run",), "report": ("id", "study", "trial", "fence"),
         "tell": ("id", "study", "trial", "fence"), "request": ("id",)}
TOPICS = ("daemon", "head", "study/s", "study/zz", "to/w1/grant", "from", "from/w1", "x")
BYTES = [b"", b"\x00", b"\xff\xfe", b"{}", b"[]", b"null", b"NaN", b"1e999", b'"', b"{", b"[" * 40, b'{"a":' * 40,
         b"\xef\xbb\xbf", b'"id":"a1",', b"\\ud800", b"\\u0000", b"0" * 5000, b" " * 70_000, b"-", b"/*", b"9" * 4400]


def mutant(rng: random.Random, seed: dict[str, Any]) -> bytes:
    """A message that was valid before."""
    message = json.loads(json.dumps(seed))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        _change(rng, message)
    try:
        payload = json.dumps(message, ensure_ascii=rng.random() < 0.5).encode()
    except UnicodeEncodeError:
        payload = json.dumps(message).encode()
    for _ in range(rng.choice((0, 0, 0, 1, 1, 3, 8))):
        payload = _bytes(rng, payload)
    return payload


def _change(rng: random.Random, message: Any) -> None:
    """Change one place of a JSON value."""
    place = message
    while isinstance(place, dict | list) and place:
        key: Any = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.6:
            place = place[key]
            continue
        what = rng.random()
        if what < 0.6:
            place[key] = copy.deepcopy(rng.choice(NASTY))
        elif what < 0.75:
            del place[key]
        elif isinstance(place, dict):
            place[rng.choice(FIELDS)] = copy.deepcopy(rng.choice(NASTY))
        else:
            place.append(copy.deepcopy(rng.choice(NASTY)))
        return


def _bytes(rng: random.Random, payload: bytes) -> bytes:
    """Change some bytes."""
    at, what = rng.randint(0, len(payload)), rng.random()
    if what < 0.3:
        return payload[:at] + bytes([rng.randrange(256)]) + payload[at + 1:]
    if what < 0.5:
        return payload[:at] + payload[at + rng.randint(1, 20):]
    if what < 0.8:
        return payload[:at] + rng.choice(BYTES) + payload[at:]
    if what < 0.87:
        return payload[:at]
    if what < 0.93:
        return payload[:1] + rng.choice((b'"id":"a1",', b'"run":"r1",', b'"study":"s",')) + payload[1:]
    return payload + payload[at:]


def topic(rng: random.Random, kind: str) -> str:
    """Where it is sent: mostly where it belongs."""
    who = rng.choice(("w1", "w2", "op")) if rng.random() < 0.97 else rng.choice(
        ("", "W1", "w/1", "+", "#", "$SYS", "w" * 65, "\u202e", ".", "-w", "w\x00"))
    if rng.random() < 0.01:
        return f"bayesd/1/{rng.choice(TOPICS)}"
    if rng.random() < 0.02:
        kind = rng.choice(KINDS)
    return f"bayesd/1/admin/op-{who}/request" if kind == "request" else f"bayesd/1/from/{who}/{kind}"


def bad(kind: str, payload: bytes) -> str | None:
    """Why the contract calls these bytes bad; None: it does not, as far as is looked here."""
    if len(payload) > 64 * 1024:
        return "it is over 64 KiB"

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in found}) < len(found):
            raise ValueError("a key is there twice")
        return dict(found)

    def depth(value: Any) -> int:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + max(map(depth, inside), default=0) if isinstance(value, dict | list) else 0

    try:
        message = json.loads(payload.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        return str(error)
    if not isinstance(message, dict):
        return "it is no object"
    if depth(message) > 16:
        return "it nests deeper than 16"
    for name, wanted in (("id", r"[A-Za-z0-9._:-]{1,128}"), ("run", r"[A-Za-z0-9._:-]{1,32}"),
                         ("study", r"[a-z0-9][a-z0-9._-]{0,63}")):
        said = message.get(name)
        if isinstance(said, str) and name in KNOWN[kind] and re.fullmatch(wanted, said, re.ASCII) is None:
            return f"its {name} is {said[:50]!r}"
    for name in ("trial", "fence"):
        said = message.get(name)
        if name in KNOWN[kind] and not (type(said) is int and 1 <= said < 2**53):
            return f"its {name} is {str(said)[:50]}"
    return None


def corpus() -> list[tuple[str, bytes]]:
    """What is kept, as (kind, bytes)."""
    lines = CORPUS.read_text().splitlines() if CORPUS.exists() else []
    return [(kind, base64.b64decode(text)) for kind, _, text in (line.partition("\t") for line in lines)]


def said_of(kind: str, payload: bytes) -> str:
    """What the decoder says, without numbers and quotations: two messages with the same are alike."""
    try:
        decode(kind, payload)
    except BadMessage as error:
        return f"{kind} {error.reason} {re.sub(r'[0-9]+|.[^ ]*[^ a-zA-Z,.:][^ ]*', '*', error.detail)[:60]}"
    return f"{kind} fine"


class Target:
    """The service on a virtual loop, with an honest worker and an honest operator beside."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.broker = MemoryBroker()
        # Nobody is shed: every message shall be read.
        self.daemon = Daemon(self.broker, settings=Settings(settle_s=0.0, rate_burst=1e9, rate_per_s=1e9))
        self.heard: list[tuple[str, bytes]] = []
        self.numbers = iter(range(1, 10**9))
        self.floor_kib: int | None = None
        self.loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        await self.daemon.start()
        self.client = MemoryClient(self.broker, "honest", ["bayesd/1/to/honest/+", "bayesd/1/to/boss/+"],
                                   lambda topic, payload: self.heard.append((topic, payload)))
        assert self.client.connect()
        await asyncio.sleep(1.0)
        for name in ("s", "honest"):
            self._say("admin/boss/request", {"id": f"create-{name}", "verb": "study.create", "args": {"spec": {
                "name": name, "method": "random", "space": SPACE}}})
        for ask in ({"id": "a0", "run": "r1", "study": "s", "n": 3},):
            self._say("from/w1/ask", ask)
        await asyncio.sleep(1.0)

    def _say(self, topic: str, message: dict[str, Any]) -> None:
        self.client.publish(f"bayesd/1/{topic}", json.dumps(message).encode())

    @property
    def service(self) -> Service:
        service = self.daemon.service
        assert service is not None, f"the daemon ended: {self.daemon.ended!r}"
        return service

    async def round(self, seed: int) -> Round:
        rng, counts = random.Random(seed), {"refused": 0.0, "events": 0.0}
        messages = [(kind, payload, None) for kind, payload in (corpus() if seed == 0 else [])]
        while len(messages) < MESSAGES:
            kind = rng.choice(KINDS)
            messages.append((kind, mutant(rng, rng.choice(SEEDS[kind])), topic(rng, kind)))    # type: ignore[arg-type]  # a topic or None
        for at in range(0, len(messages), BATCH):
            for kind, payload, where in messages[at:at + BATCH]:
                where = where or ("bayesd/1/admin/op/request" if kind == "request" else f"bayesd/1/from/w1/{kind}")
                broken = self._one(where, payload, counts)
                if broken is not None:
                    return Round({}, (f"{broken}: {where} {payload[:200]!r}",))
            await asyncio.sleep(0.3)
        await asyncio.sleep(200.0)        # asks lapse, leases run out
        broken = await self._honest() or self._left_over()
        return Round({"messages": len(messages), **counts}, (broken,) if broken else ())

    def _one(self, where: str, payload: bytes, counts: dict[str, float]) -> str | None:
        service, origin = self.service, self.service.topics.parse(where)
        before = service.desk.state.seq
        try:
            service.on_message(where, payload, lambda: None)
        except Exception as error:
            return f"it raised {error!r}"
        if origin is None:
            return None
        try:
            decode(origin.kind, payload)
            fault = bad(origin.kind, payload)
            if fault is not None:
                return f"it is read although {fault}"
        except BadMessage as error:
            counts["refused"] += 1
            if service.desk.state.seq != before and error.ask is None:      # an ask inside is judged on its own
                return "an event of a message that is refused"
        counts["events"] += service.desk.state.seq - before
        return None

    def _left_over(self) -> str | None:
        """What nobody renews is gone after a while."""
        desk = self.service.desk
        left = {"standing asks": len(desk.standing), "letters": desk.letters, "slow reads": len(self.service._slow)}
        return next((f"{count} {name} are left over" for name, count in left.items() if count), None)

    async def _honest(self) -> str | None:
        """A worker that does nothing wrong gets its trial and its receipt; and memory has not grown for good."""
        number, before = next(self.numbers), len(self.heard)
        self._say("from/honest/beat", {"run": "h", "leases": [], "asks": []})
        self._say("from/honest/ask", {"id": f"h{number}", "run": "h", "study": "honest"})
        await asyncio.sleep(3.0)
        grants = [json.loads(payload) for topic, payload in self.heard[before:] if topic.endswith("/grant")]
        if not grants:
            return "an honest worker got no trial"
        self._say("from/honest/tell", {"id": f"t{number}", "study": "honest", "trial": grants[0]["trial"],
                                       "fence": grants[0]["fence"], "value": 1.0})
        await asyncio.sleep(3.0)
        receipts = [json.loads(payload) for topic, payload in self.heard[before:] if topic.endswith("/receipt")]
        self.heard.clear()
        if not any(said["id"] == f"t{number}" and said["status"] == "recorded" for said in receipts):
            return "an honest worker got no receipt"
        self.daemon.disk.notes.clear()
        gc.collect()
        rss_kib = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                       if line.startswith("VmRSS"))
        if number <= 3:                    # until all that is capped is full
            self.floor_kib = rss_kib
        assert self.floor_kib is not None
        growth_kib = rss_kib - self.floor_kib
        return f"{growth_kib} KiB more after {number} rounds" if growth_kib > GROWTH_KIB else None


@contextlib.contextmanager
def _lab(folder: Path) -> Iterator[Callable[[int], Round]]:
    target = Target()
    yield lambda seed: target.loop.run_until_complete(target.round(seed))
    target.daemon.kill()
    target.loop.run_until_complete(asyncio.sleep(1.0))
    asyncio.set_event_loop(None)
    target.loop.close()


SCHEMAS, SERVICE = "bayesd_schemas.messages", "bayesd.service"
PROOFS = [Proof("fuzzed messages", ("P26", "P27"), "rounds of 10,000 messages", _lab, quick=6, release=100, within=10,
                faults=(
    Fault("a message that nests too deep is read", SCHEMAS, "return deepest", "return 0"),
    Fault("a key that is there twice is taken", SCHEMAS, "if len(out) != len(pairs):", "if False:"),
    Fault("a message that is too large is read", SCHEMAS, "if len(payload) > size_max:", "if False:"),
    Fault("a message that breaks the contract ends the daemon", SERVICE,
          "        self._count(error.reason)\n        if error.id is None:\n            return",
          "        if error.id is None:\n            raise error"),
    Fault("standing asks are kept for ever", "bayesd.study.rules.time",
          "        if standing.lapses <= now:\n            desk.sit(standing)", "        if False:\n            pass"),
))]


def main() -> None:
    """Look for messages of which the decoder says something new, and keep the shortest of each."""
    rng = random.Random()
    found = {said_of(kind, payload): (kind, payload) for kind, payload in corpus()}
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 300_000):
        kind = rng.choice(KINDS)
        payload = mutant(rng, rng.choice(SEEDS[kind]))
        said = said_of(kind, payload)
        if len(payload) < KEPT_BYTES and (said not in found or len(payload) < len(found[said][1])):
            found[said] = kind, payload
    CORPUS.write_text("".join(
        f"{kind}\t{base64.b64encode(payload).decode()}\n" for kind, payload in sorted(found.values())))
    print(f"{len(found)} messages in {CORPUS.name}")


if __name__ == "__main__":
    main()
