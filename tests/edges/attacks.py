"""Ten ways to falsify a log, at random places, and who notices: `python tests/edges/attacks.py --tries 1000`.

Each attack changes a copy of one log of 200 events, with a signed note every 20, and says which event it changed
first. The proof has to name that place: the event itself, or for a chain that was made anew the events between two
notes. Each is tried with one note from outside, as a worker or another disk has it, and again without: by who has the
file and the public key, and by who has nothing but the file.
"""

import argparse
import asyncio
import json
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from bayesd import Study, logfile, show
from bayesd.cli import offline
from bayesd.evidence import Head
from bayesd.log import SqliteLog, read_events
from bayesd.notes import Signer
from bayesd.replay import event_of, fold
from bayesd.study import snapshot
from bayesd.study.fold import apply
from bayesd.study.merkle import Tree
from bayesd.study.row import Row
from bayesd.study.state import State

EVENTS = 200
NOTE_EVERY = 20
COLUMNS = ("seq", "body", "hash", "type", "study", "trial", "actor", "cmd")
Envelope = dict[str, Any]


@dataclass(slots=True)
class Copy:
    """The content of a log file, to be changed at will: who owns the file can write anything."""

    rows: list[list[Any]]
    notes: dict[int, str]
    snapshots: list[tuple[Any, ...]]

    @property
    def envelopes(self) -> list[Envelope]:
        return [json.loads(row[1]) for row in self.rows]

    def write(self, path: Path, template: bytes) -> None:
        path.write_bytes(template)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN")
            triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
            for name, _ in triggers:
                db.execute(f"DROP TRIGGER {name}")
            db.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self.rows)
            db.executemany("INSERT INTO checkpoint VALUES (?, ?)",
                           [(seq, note.encode()) for seq, note in self.notes.items()])
            db.executemany("INSERT INTO snapshot VALUES (?, ?, ?, ?)", self.snapshots)
            db.execute("UPDATE writer SET epoch = 1")
            for _, sql in triggers:
                db.execute(sql)
            db.execute("COMMIT")


@dataclass(frozen=True, slots=True)
class Struck:
    """What an attack did: the first event that is not what it was, and by what it may be told."""

    variant: str
    place: int
    kind: str
    """exact: that event is named. near: it or its neighbour. between: two notes. missing: the end. state: the fold."""
    has_key: bool = False
    """The attacker signs with the daemon's own key."""


@dataclass(slots=True)
class World:
    """The true log, its key, and where an attacker's copy is written."""

    path: Path
    signer: Signer
    thief: Signer
    true: Copy
    heads: dict[int, str]
    template: bytes
    state: str = ""

    def copy(self) -> Copy:
        return Copy([list(row) for row in self.true.rows], dict(self.true.notes), list(self.true.snapshots))


# --- The true log ------------------------------------------------------------------------------------


def world(folder: Path) -> World:
    """A log as a daemon leaves it: a study, notes on the way, a snapshot that the stop vouches for."""
    source = folder / "source.db"
    study = Study({"x": {"type": "float", "low": 0, "high": 1}, "act": {"type": "categorical", "choices": ["a", "b"]}},
                  direction="minimize", method="random", log=source)
    with study:
        for number in range(EVENTS):
            trial = study.ask()
            study.tell(trial, trial.params["x"] + number / 7, seconds=1.5)
    bodies: list[Envelope] = [json.loads(body) for _, body, _ in read_events(source, 0, EVENTS - 1)]
    log = bodies[0]["log"]
    signer = Signer(log, bytes(32))
    bodies[1]["data"]["key"] = signer.vkey
    state = State()
    for row in chain(bodies):
        apply(state, event_of(row[1], row[2]))
    digest, blob = snapshot.dump(state)
    bodies.append({**bodies[1], "seq": EVENTS, "type": "daemon.stopped", "crit": False, "data": {
        "reason": "stop", "snapshot": {"seq": state.seq, "codec": snapshot.CODEC, "digest": digest.hex()}}})
    rows = chain(bodies)
    heads = signed(rows, signer, range(1, EVENTS + 1))
    empty = folder / "empty.db"
    logfile.create(empty)
    true = Copy(rows, {size: note for size, note in heads.items() if size % NOTE_EVERY == 0},
                [(state.seq, snapshot.CODEC, digest, blob)])
    made = World(folder / "log.db", signer, Signer(log, bytes(range(32))), true, heads, empty.read_bytes())
    true.write(made.path, made.template)
    made.state = folded_by_a_daemon(made.path)
    return made


def chain(bodies: Sequence[Envelope]) -> list[list[Any]]:
    """Rows of these events, with seq, prev and hash made right."""
    rows: list[list[Any]] = []
    prev = "0" * 64
    for seq, body in enumerate(bodies, start=1):
        row = Row.of({**body, "seq": seq, "prev": prev})
        prev = row.hash.hex()
        rows.append(list(row.fields))
    return rows


def signed(rows: Sequence[Sequence[Any]], signer: Signer, sizes: Sequence[int]) -> dict[int, str]:
    tree, notes = Tree(), {}
    for row in rows:
        tree.append(row[2])
        if tree.size in sizes:
            notes[tree.size] = signer.sign(tree.size, tree.root())
    return notes


def folded_by_a_daemon(path: Path) -> str:
    """The state from which a daemon would go on."""
    async def start() -> str:
        log = await SqliteLog.open(path)
        try:
            return snapshot.digest((await fold(log))[0])
        finally:
            await log.close()
    return asyncio.run(start())


# --- The attacks -------------------------------------------------------------------------------------

Attack = Callable[[World, Copy, random.Random, int], Struck]


def spoilt(body: bytes, dice: random.Random) -> bytes:
    """The same bytes but for one."""
    at = dice.randrange(len(body))
    return body[:at] + bytes([dice.choice([each for each in b'0123456789abcx"{},: \\' if each != body[at]])]) + \
        body[at + 1:]


def other_data(envelope: Envelope, dice: random.Random) -> Envelope:
    """The event with another content that makes sense: a better result, an earlier time."""
    said: Envelope = json.loads(json.dumps(envelope))
    if said["type"] == "trial.completed" and dice.random() < 0.7:
        said["data"]["values"] = {"value": -dice.random()}
    elif said["type"] == "trial.proposed" and dice.random() < 0.7:
        said["data"]["params"]["x"] = dice.random()
    else:
        said["time"] = f"2001-01-01T00:00:00.{dice.randrange(1_000_000):06d}Z"
    return said


def edit(world: World, copy: Copy, dice: random.Random, head: int) -> Struck:
    """Another byte in an event, with or without its hash made right; or another hash."""
    seq = dice.randint(1, head)
    row = copy.rows[seq - 1]
    variant = dice.choice(["body", "hash", "body and hash"])
    if variant == "hash":
        row[2] = bytes(dice.randrange(256) for _ in range(32))
        return Struck(variant, seq, "exact")
    if variant == "body":
        row[1] = spoilt(row[1], dice)
        return Struck(variant, seq, "exact")
    if dice.random() < 0.5:
        row[1] = spoilt(row[1], dice)
        row[2] = sha256(b"\0" + row[1]).digest()
    else:
        copy.rows[seq - 1] = list(Row.of(other_data(json.loads(row[1]), dice)).fields)
    return Struck(variant, seq, "near")


def delete(world: World, copy: Copy, dice: random.Random, head: int) -> Struck:
    seq = dice.randint(1, head)
    del copy.rows[seq - 1]
    variant = dice.choice(["a gap", "the rest moved up"])
    if variant != "a gap":
        for row in copy.rows[seq - 1:]:
            row[0] -= 1
    return Struck(variant, seq, "missing" if seq == EVENTS else "exact")


def insert(world: World, copy: Copy, dice: random.Random, head: int) -> Struck:
    """An event between two others; the ones behind move on by one."""
    seq = dice.randint(1, head)
    for row in copy.rows[seq - 1:]:
        row[0] += 1
    other = json.loads(dice.choice(copy.rows)[1])
    variant = dice.choice(["a copy", "made to fit"])
    if variant == "a copy":
        new = list(Row.of(other).fields)
        new[0] = seq
        copy.rows.insert(seq - 1, new)
        is_neighbour = other["seq"] in (seq - 1, seq)       # the same event twice: one of the two is too many
        return Struck(variant, seq, "near" if is_neighbour else "exact")
    prev = copy.rows[seq - 2][2].hex() if seq > 1 else "0" * 64
    copy.rows.insert(seq - 1, list(Row.of({**other_data(other, dice), "seq": seq, "prev": prev}).fields))
    return Struck(variant, seq, "near")


def swap(world: World, copy: Copy, dice: random.Random, head: int) -> Struck:
    """Two events change places, as they are or each with its new seq and prev."""
    one, two = sorted(dice.sample(range(1, head + 1), 2))
    first, second = copy.rows[one - 1], copy.rows[two - 1]
    variant = dice.choice(["as they are", "made to fit"]) if two > one + 1 else "as they are"
    if variant == "as they are":
        copy.rows[one - 1], copy.rows[two - 1] = [one, *second[1:]], [two, *first[1:]]
        return Struck(variant, one, "exact")
    a, b = json.loads(first[1]), json.loads(second[1])
    copy.rows[one - 1] = list(Row.of({**b, "seq": one, "prev": a["prev"]}).fields)
    copy.rows[two - 1] = list(Row.of({**a, "seq": two, "prev": b["prev"]}).fields)
    return Struck(variant, one, "near")


def truncate(world: World, copy: Copy, dice: random.Random, head: int) -> Struck:
    """The last events are cut off, and the notes about them, or not."""
    size = dice.randrange(0, head)
    del copy.rows[size:]
    copy.snapshots.clear()
    variant = dice.choice(["notes, too", "notes left"])
    if variant == "notes, too":
        copy.notes = {seq: note for seq, note in copy.notes.items() if seq <= size}
    return Struck(variant, size + 1, "missing")


def fork(world: World, copy: Copy, dice: random.Random, head: int) -> Struck:
    """From some event on another history, whole in itself."""
    size = dice.randrange(2, head)
    ends = dice.randint(size + 1, EVENTS)
    bodies = copy.envelopes[:ends]
    for seq in range(size, ends):
        bodies[seq] = {**other_data(bodies[seq], dice), "time": f"2027-01-01T00:00:00.{seq:06d}Z"}
        bodies[seq]["data"].pop("snapshot", None)
    copy.rows = chain(bodies)
    variant, has_key = _notes_of(world, copy, dice, size)
    shorter = ", shorter" if ends < head else ""
    return Struck(variant + shorter, size + 1, "missing" if shorter else "between", has_key)


def reseal(world: World, copy: Copy, dice: random.Random, head: int) -> Struck:
    """One event is changed and everything behind it made anew: the chain is whole, and so are the states on record."""
    seq = dice.randint(3, head)
    bodies = copy.envelopes
    bodies[seq - 1] = other_data(bodies[seq - 1], dice)
    bodies[-1]["data"].pop("snapshot", None)
    copy.snapshots.clear()
    variant = dice.choice(["notes as they were", "notes gone", "notes by another key", "notes by the key"])
    if variant == "notes by another key":
        bodies[1]["data"]["key"] = world.thief.vkey     # or the log itself would name the key that did not sign
    copy.rows = chain(bodies)
    if variant == "notes as they were":
        return Struck(variant, seq, "between")
    if variant == "notes gone":
        copy.notes = {size: note for size, note in copy.notes.items() if size < seq}
        return Struck(variant, seq, "between")
    if variant == "notes by another key":
        copy.notes = signed(copy.rows, world.thief, sorted(copy.notes))
        return Struck(variant, 2, "between")
    copy.notes = signed(copy.rows, world.signer, sorted(copy.notes))
    return Struck(variant, seq, "between", has_key=True)


def _notes_of(world: World, copy: Copy, dice: random.Random, size: int) -> tuple[str, bool]:
    """What becomes of the notes when another history begins behind `size`."""
    ends = len(copy.rows)
    copy.snapshots.clear()
    kept = {each: note for each, note in copy.notes.items() if each <= size}
    variant = dice.choice(["notes gone", "notes by the key"])
    sizes = range(NOTE_EVERY, ends + 1, NOTE_EVERY)
    copy.notes = kept if variant == "notes gone" else signed(copy.rows, world.signer, sizes)
    return variant, variant == "notes by the key"


def rollback(world: World, copy: Copy, dice: random.Random, head: int) -> Struck:
    """An older copy of the file in its place, all of it genuine."""
    size = dice.randrange(0, head)
    copy.rows = copy.rows[:size]
    copy.notes = {each: note for each, note in copy.notes.items() if each <= size}
    copy.snapshots.clear()
    return Struck("an older copy", size + 1, "missing")


def columns(world: World, copy: Copy, dice: random.Random, head: int) -> Struck:
    """A column beside the body says something else, for those who look with SQL; once it even looks like the body."""
    seq = dice.randint(1, head)
    column = dice.choice(["type", "study", "trial", "actor", "cmd"])
    row, at = copy.rows[seq - 1], COLUMNS.index(column)
    others = {other[at] for other in copy.rows} - {row[at]}
    if column in ("actor", "type") and dice.random() < 0.3:
        body = row[1].decode()
        reach = body.index('"', body.index(f'"{column}":"') + len(column) + 4)
        row[at] = body[reach - len(row[at]):reach + dice.randint(1, 12)]
        return Struck(f"{column}, over its end", seq, "exact")
    if column == "trial":
        others.add(dice.randrange(1000, 2000))
    elif column in ("type", "actor"):
        others.add(dice.choice([f"{row[at]}x", "", f"{row[at]} ", row[at].upper()]))
    row[at] = dice.choice(sorted(others, key=repr))
    return Struck(column, seq, "exact")


def cached_state(world: World, copy: Copy, dice: random.Random, head: int) -> Struck:
    """The snapshot from which a daemon would start: other bytes, or another state with its digest."""
    seq, codec, digest, blob = copy.snapshots[0]
    variant = dice.choice(["bytes", "digest", "state and digest", "of an earlier event"])
    if variant == "bytes":
        at = dice.randrange(len(blob))
        blob = blob[:at] + bytes([blob[at] ^ 1 << dice.randrange(8)]) + blob[at + 1:]
    elif variant == "digest":
        digest = bytes(dice.randrange(256) for _ in range(32))
    elif variant == "state and digest":
        said = json.loads(blob)
        for trial in dice.sample(said["studies"][0]["trials"], 3):
            trial["values"] = [-dice.random()]
        blob = json.dumps(said, separators=(",", ":"), sort_keys=True).encode()
        digest = sha256(blob).digest()
    else:
        seq = dice.randint(3, seq - 1)
        said = {**json.loads(blob), "seq": seq, "hash": copy.rows[seq - 1][2].hex()}
        blob = json.dumps(said, separators=(",", ":"), sort_keys=True).encode()
        digest = sha256(blob).digest()
    copy.snapshots = [(seq, codec, digest, blob)]
    return Struck(variant, seq, "state")


ATTACKS: dict[str, Attack] = {
    "edit": edit, "delete": delete, "insert": insert, "swap": swap, "truncate": truncate, "fork": fork,
    "reseal": reseal, "roll back": rollback, "edit a column": columns, "change a snapshot": cached_state}


# --- Who notices -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """One attack, and what three readers say of it."""

    name: str
    struck: Struck
    head: int
    fault: str | None = None
    """Why the reader with a note from outside did not find it, or not the place; None when all is right."""
    with_key: bool = False
    """Noticed by who has the file and the public key from elsewhere."""
    with_file: bool = False
    """Noticed by who has the file alone."""


def attempt(world: World, name: str, seed: int) -> Outcome:
    """One attack at a random place, drawn from the seed."""
    dice = random.Random(f"{name} {seed}")
    head = dice.randint(EVENTS // 2, EVENTS)
    copy = world.copy()
    struck = ATTACKS[name](world, copy, dice, head)
    for leftover in world.path.parent.glob(f"{world.path.name}*"):
        leftover.unlink()
    copy.write(world.path, world.template)
    outcome = Outcome(name, struck, head)
    keys = [world.signer.vkey] if dice.random() < 0.5 else []
    found = offline.examine(world.path, keys=keys, heads=[Head("a worker's note", world.heads[head])])
    outcome.fault = _place(struck, head, found)
    if struck.kind == "state" and outcome.fault is None and folded_by_a_daemon(world.path) != world.state:
        outcome.fault = "a daemon started from it"
    outcome.with_key = offline.examine(world.path, keys=[world.signer.vkey]).damage is not None
    outcome.with_file = offline.examine(world.path).damage is not None
    return outcome


def _place(struck: Struck, head: int, found: offline.Examined) -> str | None:
    damage = found.damage
    if damage is None:
        return "not noticed"
    told = f"it is event {struck.place}, named were {damage.first} to {damage.last}: {damage.why}"
    if struck.kind in ("exact", "state"):
        return None if (damage.seq, damage.first, damage.last) == (struck.place,) * 3 else told
    if struck.kind == "near" and not found.report.is_whole:     # or a note tells before the chain does
        wide = 2 if damage.narrowed == damage.first and damage.last - damage.first < 2 else NOTE_EVERY
        return None if damage.narrowed <= struck.place <= damage.last < damage.narrowed + wide else told
    if struck.kind == "missing" and damage.why.startswith("the log ends"):
        # What is missing begins where the log ends. Before that nothing is vouched for but what notes cover.
        fits = struck.place <= damage.first and damage.last <= head
        return None if fits and (damage.first == struck.place or found.report.verdict.signed < struck.place
                                 or struck.has_key) else told
    low = damage.first if struck.has_key else damage.narrowed
    return None if low <= struck.place <= damage.last <= head else told


def attempts(tries: int, names: Sequence[str] = tuple(ATTACKS), seed: int = 0) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory(prefix="bayesd-attacks-") as folder:
        made = world(Path(folder))
        for name in names:
            for number in range(tries):
                yield attempt(made, name, seed + number)


@dataclass(slots=True)
class Sum:
    tries: int = 0
    with_key: int = 0
    with_file: int = 0
    faults: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=1000, help="of each attack")
    parser.add_argument("--only", choices=list(ATTACKS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sums: dict[tuple[str, str], Sum] = {}
    total = Counter[str]()
    names = args.only or list(ATTACKS)
    with show.progress("attacking", args.tries * len(names)) as advance:
        for number, outcome in enumerate(attempts(args.tries, names, args.seed), start=1):
            each = sums.setdefault((outcome.name, outcome.struck.variant), Sum())
            each.tries += 1
            each.with_key += outcome.with_key
            each.with_file += outcome.with_file
            total[outcome.name] += 1
            if outcome.fault is not None:
                each.faults.append(outcome.fault)
            advance(number)
    print(f"{'attack':<18} {'variant':<30} {'tries':>6} {'named with a note':>18} {'key':>7} {'file':>7}")
    for (name, variant), each in sorted(sums.items(), key=lambda item: list(ATTACKS).index(item[0][0])):
        print(f"{name:<18} {variant:<30} {each.tries:>6} {each.tries - len(each.faults):>18} {each.with_key:>7} "
              f"{each.with_file:>7}")
    for (name, variant), each in sums.items():
        for fault in each.faults[:3]:
            print(f"{name}, {variant}: {fault}")
    raise SystemExit(any(each.faults for each in sums.values()))


if __name__ == "__main__":
    main()
