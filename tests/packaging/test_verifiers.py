"""The verifiers that share no code with us: both find the same, in logs, exports and packs, whole and damaged."""

import contextlib
import io
import json
import os
import runpy
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.clients.fakedaemon import need
from tests.golden.test_golden import LOGS, read

from bayesd import lineage, logfile, notes, pack
from bayesd.cli import phrases
from bayesd.evidence import Head
from bayesd.study.canonical import ZERO, canonical, leaf_hash
from bayesd.study.merkle import root_of

FOLDER = Path(__file__).parents[2] / "deploy" / "verify"
OWNER = notes.Signer("golden", bytes(range(32)))
FORGER = notes.Signer("golden", bytes(range(1, 33)))
AT = 60             # the event that is tampered with
NOTED = (50, 120)   # and these many events, and all of them, have a note


# --- Records -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A log in the hands of whoever may change it."""

    bodies: list[bytes]
    notes: list[str]
    hashes: list[bytes] | None = None
    """As they stand beside the bodies; None: right."""

    @property
    def leaves(self) -> list[bytes]:
        return self.hashes if self.hashes is not None else [leaf_hash(body) for body in self.bodies]


def signed(bodies: Sequence[bytes], signer: notes.Signer = OWNER) -> Record:
    leaves = [leaf_hash(body) for body in bodies]
    sizes = [*(size for size in NOTED if size < len(bodies)), len(bodies)]
    return Record(list(bodies), [signer.sign(size, root_of(leaves[:size])) for size in sizes])


def golden() -> Record:
    return signed(read(LOGS[0])[0])


def write_log(record: Record, path: Path, copies: dict[int, dict[str, Any]] | None = None) -> None:
    """As the daemon keeps it, without its triggers; `copies` are what stands beside a body in place of the truth."""
    logfile.create(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        for body, leaf in zip(record.bodies, record.leaves, strict=True):
            try:
                told = json.loads(body)
            except ValueError:
                told = {"type": "?", "actor": "?"}
            row = {"seq": told.get("seq"), **told, **(copies or {}).get(told.get("seq"), {})}
            db.execute("INSERT OR REPLACE INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                       (row["seq"], body, leaf, *(row.get(key) for key in ("type", "study", "trial", "actor", "cmd"))))
        for i, note in enumerate(record.notes):
            db.execute("INSERT INTO checkpoint VALUES (?, ?)", (i, note.encode()))
        db.commit()
        db.execute("PRAGMA journal_mode = DELETE").fetchall()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a good pack."""
    return pack_files(golden(), tmp_path_factory.mktemp("packed"))


def pack_files(record: Record, folder: Path, signer: notes.Signer | None = OWNER) -> dict[str, bytes]:
    """A pack of the first study, made the proper way from a whole log."""
    path = folder / "whole.db"
    write_log(record, path)
    events = map(json.loads, record.bodies)
    found = pack.collect(path, next(event["study"] for event in events if event["type"] == "study.created"))
    path.unlink()
    pages = {trial.number: pack.plain_page(found, trial.number) for trial in found.study.trials}
    return pack.files(found, pages, phrases.of, signer)


def write_pack(files: dict[str, bytes], path: Path, *, manifest: bool = True) -> None:
    """`manifest`: whoever changed the files made a new manifest, but has no key to seal it."""
    if manifest:
        files = {name: data for name, data in files.items() if name not in (pack.MANIFEST, pack.SEAL)}
        files[pack.MANIFEST] = "".join(f"{sha256(files[name]).hexdigest()}  {name}\n"
                                       for name in sorted(files)).encode()
    pack.write(path, files)


def write_lines(record: Record, path: Path) -> None:
    path.write_bytes(b"".join(body + b"\n" for body in record.bodies))


# --- The two ----------------------------------------------------------------------------------------


def run(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    assert " at " not in done.stderr, done.stderr
    return done.returncode, done.stdout


def python(*arguments: object) -> tuple[int, str]:
    """In this process, as a script: a new one for each of many files would take most of the time."""
    said, before, code = io.StringIO(), sys.argv, 0
    sys.argv = ["bayesd-verify.py", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(str(FOLDER / "bayesd-verify.py"), run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return code, said.getvalue()


def javascript(*arguments: object) -> tuple[int, str]:
    return run(["node", str(FOLDER / "bayesd-verify.mjs"), *map(str, arguments)])


@pytest.fixture(scope="session")
def reads_sqlite() -> bool:
    need("node")
    probe = "import('node:sqlite').then(() => process.exit(0), () => process.exit(1))"
    return subprocess.run(["node", "-e", probe], capture_output=True).returncode == 0


@pytest.fixture
def both(reads_sqlite: bool) -> Callable[..., tuple[int, str]]:
    """The verdict of both, which is one."""
    def verify(file: Path, *arguments: object) -> tuple[int, str]:
        said = python(file, *arguments)
        if file.suffix == ".db" and not reads_sqlite:
            assert javascript(file, *arguments)[0] == 2
        else:
            assert javascript(file, *arguments) == said
        return said
    return verify


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A note that left the machine when there were 100 events."""
    path = tmp_path / "head"
    path.write_text(OWNER.sign(100, root_of(golden().leaves[:100])))
    return path


# --- Whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_golden_logs_verify_in_every_form(path: Path, tmp_path: Path, both: Callable[..., tuple[int, str]]) -> None:
    bodies = read(path)[0]
    log = json.loads(bodies[0])["log"]
    owner = notes.Signer(log, bytes(range(32)))
    record, count = signed(bodies, owner), len(bodies)
    write_log(record, tmp_path / "log.db")
    write_lines(record, tmp_path / "events.jsonl")
    pack.write(tmp_path / "pack.zip", pack_files(record, tmp_path, owner))
    for name in ("log.db", "events.jsonl", "pack.zip"):
        code, said = both(tmp_path / name)
        assert code == 0, said
        here = len(lines(pack_files(record, tmp_path, owner)["events.jsonl"])) if name == "pack.zip" else count
        assert said.splitlines()[-1] == (f"VERIFIED: events 1 to {count} of log {log}" if here == count else
                                         f"VERIFIED: {here} of {count} events of log {log} (the others by hash alone)")
    for name in ("log.db", "pack.zip"):
        code, said = both(tmp_path / name, "--key", owner.vkey)
        assert code == 0, said
        assert f"{len(record.notes)} signed, the newest is about {count} of {count} events" in said
    studies = {json.loads(body).get("study") for body in bodies} - {None}
    assert ("the others by hash alone" in said) == (len(studies) > 1)
    assert "seal" in said


def test_it_says_what_a_verdict_rests_on(packed: dict[str, bytes], tmp_path: Path, head: Path,
                                         both: Callable[..., tuple[int, str]]) -> None:
    record = golden()
    write_lines(record, tmp_path / "events.jsonl")
    assert "could have been made anew" in both(tmp_path / "events.jsonl")[1]
    code, said = both(tmp_path / "events.jsonl", "--head", head)
    assert (code, "worth what their source is" in said) == (0, True)
    code, said = both(tmp_path / "events.jsonl", "--head", head, "--key", OWNER.vkey)
    assert (code, "made anew" in said, "1 signed, the newest is about 100 of" in said) == (0, False, True)
    code, said = both(tmp_path / "events.jsonl", "--key", OWNER.vkey)
    assert (code, said.splitlines()[-1]) == (1, "FAILED at key: it signed nothing here")
    pack.write(tmp_path / "pack.zip", packed)
    assert f"compare it with a copy from elsewhere: {OWNER.vkey}" in both(tmp_path / "pack.zip")[1]
    assert both(tmp_path / "pack.zip", "--key", FORGER.vkey)[0] == 1


def test_the_key_that_a_log_names_is_taken_for_want_of_another(
        tmp_path: Path, both: Callable[..., tuple[int, str]]) -> None:
    bodies = reseal(golden().bodies, 2, lambda event: event["data"].update(key=OWNER.vkey))
    record = signed(bodies)
    write_log(record, tmp_path / "log.db")
    assert "3 signed" in both(tmp_path / "log.db")[1]
    write_log(replace(record, notes=[*record.notes[:1], FORGER.sign(120, root_of(record.leaves[:120]))]),
              tmp_path / "forged.db")
    assert both(tmp_path / "forged.db")[1].splitlines()[-1] == "FAILED at seq 120: the key did not sign this note"


def test_reading_changes_nothing_and_takes_what_is_in_the_wal(tmp_path: Path, reads_sqlite: bool) -> None:
    log = tmp_path / "log.db"
    write_log(golden(), log)
    with contextlib.closing(sqlite3.connect(log)) as db:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        last = db.execute("SELECT max(seq) FROM event").fetchone()[0]
        prev = db.execute("SELECT hash FROM event WHERE seq = ?", (last,)).fetchone()[0].hex()
        body = canonical({"actor": "daemon", "data": {}, "log": "golden", "prev": prev, "seq": last + 1, "type": "x"})
        db.execute("INSERT INTO event VALUES (?, ?, ?, 'x', NULL, NULL, 'daemon', NULL)",
                   (last + 1, body, leaf_hash(body)))
        db.commit()
        before = sha256(log.read_bytes()).digest()
        for verify in (python, javascript) if reads_sqlite else (python,):
            code, said = verify(log)
            assert (code, f"events 1 to {last + 1}" in said) == (0, True), said
        assert sha256(log.read_bytes()).digest() == before
    log.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        assert python(log)[0] == 0
    finally:
        tmp_path.chmod(0o700)


def test_without_the_library_everything_but_signatures_is_checked(tmp_path: Path) -> None:
    (tmp_path / "cryptography.py").write_text("raise ImportError('not installed')")
    write_log(golden(), tmp_path / "log.db")

    def verify(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, FOLDER / "bayesd-verify.py", *arguments], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=60)
        return done.returncode, done.stdout
    code, said = verify(str(tmp_path / "log.db"))
    assert (code, "Signatures were NOT checked" in said) == (0, True)
    assert verify(str(tmp_path / "log.db"), "--key", OWNER.vkey)[0] == 1
    record = golden()
    write_log(replace(record, bodies=reseal(record.bodies, AT, spoil)), tmp_path / "forged.db")
    assert "FAILED at seq 120" in verify(str(tmp_path / "forged.db"))[1]


def test_what_cannot_be_looked_at_is_neither_yes_nor_no(tmp_path: Path, reads_sqlite: bool) -> None:
    for verify in (python, javascript):
        assert verify(tmp_path / "nothing")[0] == 2
        write_lines(golden(), tmp_path / "events.jsonl")
        assert verify(tmp_path / "events.jsonl", "--head", tmp_path / "nothing")[0] == 2
        assert verify(tmp_path)[0] == 2
    for program, name in zip((sys.executable, "node"), pack.VERIFIERS, strict=True):
        done = subprocess.run([program, FOLDER / name, tmp_path], capture_output=True, text=True, timeout=60)
        assert done.stderr == f"{tmp_path} is a folder: give the .zip itself\n"


# --- Damaged ------------------------------------------------------------------------------------------


def spoil(event: dict[str, Any]) -> None:
    event["data"]["forged"] = 1


def spoiled(body: bytes, change: Callable[[dict[str, Any]], None] = spoil, **more: Any) -> bytes:
    event = json.loads(body)
    change(event)
    return canonical({**event, **more})


def reseal(bodies: Sequence[bytes], seq: int, change: Callable[[dict[str, Any]], None]) -> list[bytes]:
    """Change an event, then make every hash after it anew: what the owner of a file can do without a trace in it."""
    out = list(bodies)
    prev = leaf_hash(out[seq - 2]).hex() if seq > 1 else ZERO
    for i in range(seq - 1, len(out)):
        out[i] = spoiled(out[i], change if i == seq - 1 else lambda event: None, prev=prev)
        prev = leaf_hash(out[i]).hex()
    return out


def edit(record: Record) -> Record:
    bodies = list(record.bodies)
    bodies[AT - 1] = spoiled(bodies[AT - 1])
    return Record(bodies, record.notes, record.leaves)


def mend(record: Record) -> Record:
    return replace(edit(record), hashes=None)


def delete(record: Record) -> Record:
    return replace(record, bodies=[*record.bodies[:AT - 1], *record.bodies[AT:]])


def insert(record: Record) -> Record:
    """One more event in the middle, with a good hash and prev."""
    more = spoiled(record.bodies[AT - 1], prev=leaf_hash(record.bodies[AT - 2]).hex())
    rest = [spoiled(body, lambda event: event.update(seq=event["seq"] + 1)) for body in record.bodies[AT - 1:]]
    return replace(record, bodies=[*record.bodies[:AT - 1], more, *rest])


def swap(record: Record) -> Record:
    bodies = list(record.bodies)
    bodies[AT - 1], bodies[AT] = spoiled(bodies[AT], seq=AT), spoiled(bodies[AT - 1], seq=AT + 1)
    return replace(record, bodies=bodies)


def truncate(record: Record) -> Record:
    return replace(record, bodies=record.bodies[:AT])


def roll_back(record: Record) -> Record:
    """An old copy, with its old notes: only a note from outside knows better."""
    return Record(record.bodies[:AT], record.notes[:1])


def fork(record: Record) -> Record:
    """Another future from an event on, with the old notes."""
    return replace(record, bodies=reseal(record.bodies[:140], AT, spoil))


def forge(record: Record) -> Record:
    """All of it made anew, with the notes and the key of the forger."""
    return signed(reseal(record.bodies, AT, spoil), FORGER)


def break_signature(record: Record) -> Record:
    note = record.notes[1]
    return replace(record, notes=[record.notes[0], note[:-6] + ("A" if note[-6] != "A" else "B") + note[-5:],
                                  *record.notes[2:]])


def graft(record: Record) -> Record:
    """An event of another log, chained properly."""
    return Record(reseal(record.bodies, AT, lambda event: event.update(log="another")), [])


def no_json(record: Record) -> Record:
    bodies = list(record.bodies)
    bodies[AT - 1] = bodies[AT - 1][:-1]
    return replace(record, bodies=bodies)


def borrow(record: Record) -> Record:
    """The note of another log, which its own key signed, stands in the table."""
    other = notes.Signer("another", bytes(range(32)))
    return replace(record, notes=[*record.notes, other.sign(70, root_of(record.leaves[:70]))])


# (what, what a log says, what an export says); each has the outside note about 100 events, and the key
DAMAGES: list[tuple[Callable[[Record], Record], str, str]] = [
    (edit, "60: its hash is not", "61: its prev is not"),
    (mend, "61: its prev is not", "61: its prev is not"),
    (delete, "60: it is not in its place", "60: it is not in its place"),
    (insert, "61: its prev is not", "61: its prev is not"),
    (swap, "60: its prev is not", "60: its prev is not"),
    (truncate, "61: it is missing: a note is about 120", "61: it is missing: a note is about 100"),
    (roll_back, "61: it is missing: a note is about 100", "61: it is missing: a note is about 100"),
    (fork, "120: events 51 to 120 are not all", "100: events 1 to 100 are not all"),
    (forge, "50: the key did not sign", "100: events 1 to 100 are not all"),
    (break_signature, "120: the key did not sign", ""),
    (graft, "60: it is of another log", "60: it is of another log"),
    (no_json, "", "60: it is not an event in JSON"),
    (borrow, "70: a note of another log", ""),
]


@pytest.mark.parametrize(("damage", "in_log", "in_lines"), DAMAGES, ids=lambda each: getattr(each, "__name__", ""))
def test_damage_is_found_where_it_is(damage: Callable[[Record], Record], in_log: str, in_lines: str, tmp_path: Path,
                                     head: Path, both: Callable[..., tuple[int, str]]) -> None:
    record = damage(golden())
    for name, write, wanted in (("log.db", write_log, in_log), ("events.jsonl", write_lines, in_lines)):
        if wanted:
            write(record, tmp_path / name)
            code, said = both(tmp_path / name, "--key", OWNER.vkey, "--head", head)
            assert (code, said.splitlines()[-1][:len("FAILED at seq ") + len(wanted)]) == (1, f"FAILED at seq {wanted}")


def test_an_edited_copy_beside_the_bytes_is_found(tmp_path: Path, both: Callable[..., tuple[int, str]]) -> None:
    write_log(golden(), tmp_path / "log.db", {AT: {"study": "another"}})
    assert "FAILED at seq 60: what stands beside its line" in both(tmp_path / "log.db")[1]


def test_a_forgery_of_everything_passes_only_without_anything_from_outside(
        tmp_path: Path, head: Path, both: Callable[..., tuple[int, str]]) -> None:
    """What the README says: the file alone proves nothing against who can make all of it."""
    pack.write(tmp_path / "pack.zip", pack_files(forge(golden()), tmp_path, FORGER))
    assert both(tmp_path / "pack.zip")[0] == 0
    assert both(tmp_path / "pack.zip", "--key", OWNER.vkey)[0] == 1
    assert "FAILED at seq 100: the key did not sign" in both(tmp_path / "pack.zip", "--head", head)[1]
    pack.write(tmp_path / "bare.zip", {**pack_files(forge(golden()), tmp_path, None), "key.txt": b"",
                                       "checkpoints.txt": b""})
    assert "FAILED at seq 100: events 1 to 100 are not all" in both(tmp_path / "bare.zip", "--head", head)[1]


def lines(data: bytes) -> list[bytes]:
    return data.split(b"\n")[:-1]


def joined(parts: Sequence[bytes]) -> bytes:
    return b"".join(part + b"\n" for part in parts)


PACK_DAMAGES: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "an event is edited": (lambda files: {"events.jsonl": files["events.jsonl"].replace(b'"cost":1.5', b'"cost":2.5')},
                           "FAILED at seq 8: its hash is not"),
    "an event is left out": (lambda files: {"events.jsonl": joined(lines(files["events.jsonl"])[:-1])},
                             "FAILED at seal.txt: no seal: events of the study may have been left out"),
    "another study file": (lambda files: {"study.json": files["study.json"].replace(b'"fingerprint"', b'"finger"')},
                           "FAILED at seal.txt: no seal"),
    "another report": (lambda files: {"report.html": b"<h1>all fine</h1>"}, "FAILED at seal.txt: no seal"),
    "an event is there twice": (lambda files: {"events.jsonl": joined([*lines(files["events.jsonl"])[:9],
                                                                       *lines(files["events.jsonl"])[8:]])},
                                "FAILED at seq 10: it is not in its place"),
    "the hash of another study's event is changed": (
        lambda files: {"hashes.txt": joined([*lines(files["hashes.txt"])[:129], b"0" * 64,
                                             *lines(files["hashes.txt"])[130:]])},
        "FAILED at seq 186: events 121 to 186 are not all"),
    "the end is cut": (
        lambda files: {"hashes.txt": joined(lines(files["hashes.txt"])[:60]),
                       "events.jsonl": joined(lines(files["events.jsonl"])[:60])},
        "FAILED at seq 61: it is missing: a note is about 120"),
    "a note is changed": (lambda files: {"checkpoints.txt": files["checkpoints.txt"].replace(b"\n120\n", b"\n121\n")},
                          "FAILED at seq 121: the key did not sign"),
    "half a note": (lambda files: {"checkpoints.txt": files["checkpoints.txt"].rpartition(b"\n\n\xe2")[0]},
                    "FAILED at seq 186: the key did not sign"),
}


@pytest.mark.parametrize("what", PACK_DAMAGES)
def test_damage_in_a_pack_is_found_although_its_manifest_was_made_anew(
        what: str, packed: dict[str, bytes], tmp_path: Path, both: Callable[..., tuple[int, str]]) -> None:
    (change, wanted), files = PACK_DAMAGES[what], packed
    changed = change(files)
    assert any(files[name] != data for name, data in changed.items())
    write_pack({**files, **changed}, tmp_path / "pack.zip")
    code, said = both(tmp_path / "pack.zip", "--key", OWNER.vkey)
    assert (code, said.splitlines()[-1][:len(wanted)]) == (1, wanted)



@pytest.mark.parametrize(("change", "why"), [
    (lambda about: about["spec"].update(seed=4), "its spec is not the one"),
    (lambda about: about["spec"]["space"].pop("x"), "its spec is not the one"),
    (lambda about: about.update(study="other"), "its spec is not the one"),
    (lambda about: about["winner"].update(value=about["winner"]["value"] + 1), "its winner is another"),
    (lambda about: about["winner"]["params"].update(x=7.5), "its winner is another"),
    (lambda about: about["winner"].update(trial=None), "its winner is another"),
    (lambda about: about["winner"].update(rule="robust"), "its winner is another"),
    (lambda about: about["rules"]["one-se"].update(value=about["winner"]["value"] + 1), "a winner is not a trial"),
    (lambda about: about["rules"]["one-se"]["params"].update(x=7.5), "a winner is not a trial"),
    (lambda about: about["rules"]["one-se"].update(trial=99), "a winner is not a trial"),
    (lambda about: about["rules"]["one-se"].update(trial=None), "a winner is not a trial"),
    (lambda about: about["rules"]["one-se"].update(evaluations=[1, 2]), "a winner is not a trial"),
    (lambda about: about["rules"]["one-se"].update(value=True), "a winner is not a trial"),
    (lambda about: about["rules"]["one-se"].update(trial=3), "a winner is not a trial"),     # void
    (lambda about: about["rules"]["best"].update(worse(about)), "another trial is better"),
])
def test_the_spec_and_the_winners_of_a_pack_are_those_of_its_events(
        change: Callable[[dict[str, Any]], None], why: str, packed: dict[str, bytes], tmp_path: Path,
        both: Callable[..., tuple[int, str]]) -> None:
    about = json.loads(packed["study.json"])
    about["events"] = [json.loads(line) for line in lines(packed["events.jsonl"])]
    change(about)
    del about["events"]
    write_pack({**packed, "study.json": json.dumps(about).encode()}, tmp_path / "pack.zip")
    for more in ((), ("--key", OWNER.vkey)):
        code, said = both(tmp_path / "pack.zip", *more)
        assert (code, said.splitlines()[-1][:len(why) + 22]) == (1, f"FAILED at study.json: {why}"), said


def worse(about: dict[str, Any]) -> dict[str, Any]:
    """A complete trial that is not the best, as a winner is described."""
    data = {event["type"]: event for event in about["events"]
            if event.get("study") == "s" and event.get("trial") not in (None, about["winner"]["trial"])}
    told = data["trial.completed"]
    params = next(event["data"]["params"] for event in about["events"]
                  if event["type"] == "trial.proposed" and event["trial"] == told["trial"] and event["study"] == "s")
    return {"trial": told["trial"], "value": next(iter(told["data"]["values"].values())), "params": params,
            "evaluations": [told["trial"]]}


def test_without_a_seal_a_pack_says_what_nobody_vouches_for(
        packed: dict[str, bytes], tmp_path: Path, both: Callable[..., tuple[int, str]]) -> None:
    """The events of a whole log prove themselves; that a missing one is of another study needs somebody's word."""
    count, path = len(golden().bodies), tmp_path / "pack.zip"
    few = lines(packed["events.jsonl"])[:-1]
    write_pack({**packed, "events.jsonl": joined(few)}, path)
    code, said = both(path)
    *_, warning, verdict = said.splitlines()
    assert (code, warning) == (0, "WARNING: no seal: events of the study may have been left out; ask for a sealed "
                                  "pack, or one made with --whole")
    assert verdict.startswith(f"VERIFIED: {len(few)} of {count} events of log golden (the others by hash alone); no ")
    pack.write(path, packed)
    assert "no seal" not in both(path)[1]
    whole = {**packed, "events.jsonl": joined(golden().bodies)}
    write_pack(whole, path)
    for more in ((), ("--key", OWNER.vkey)):
        code, said = both(path, *more)
        assert (code, "WARNING" in said) == (0, False)
        assert said.splitlines()[-1] == (f"VERIFIED: events 1 to {count} of log golden; no seal: NOBODY VOUCHES for "
                                         "report.html, study.json, texts and why/")


def test_a_seal_by_a_key_that_the_pack_brings_along_is_no_seal(
        packed: dict[str, bytes], tmp_path: Path, both: Callable[..., tuple[int, str]]) -> None:
    files = {**packed, "events.jsonl": joined(lines(packed["events.jsonl"])[:-1]),
             "key.txt": packed["key.txt"] + f"{FORGER.vkey}\n".encode()}
    write_pack(files, tmp_path / "made.zip")
    with zipfile.ZipFile(tmp_path / "made.zip") as made:
        manifest = made.read(pack.MANIFEST)
    seal = FORGER.sign_text(f"bayesd/golden/pack\n{sha256(manifest).hexdigest()}\n").encode()
    write_pack({**files, pack.MANIFEST: manifest, pack.SEAL: seal}, tmp_path / "pack.zip", manifest=False)
    assert both(tmp_path / "pack.zip", "--key", OWNER.vkey)[1].splitlines()[-1] == (
        "FAILED at seal.txt: the key did not sign this note")
    note = tmp_path / "note"
    note.write_text(OWNER.sign(100, root_of(golden().leaves[:100])))
    code, said = both(tmp_path / "pack.zip", "--head", note)
    assert code == 0
    assert f"file's own word; compare it with a copy from elsewhere: {OWNER.vkey} {FORGER.vkey}" in said


def test_the_files_of_a_pack_are_those_of_its_manifest_and_seal(
        packed: dict[str, bytes], tmp_path: Path, both: Callable[..., tuple[int, str]]) -> None:
    files = packed

    def said(changed: dict[str, bytes], manifest: bool = False) -> str:
        write_pack(changed, tmp_path / "pack.zip", manifest=manifest)
        return both(tmp_path / "pack.zip", "--key", OWNER.vkey)[1].splitlines()[-1]
    assert said(files).startswith("VERIFIED")
    other = {**files, "report.html": files["report.html"].replace(b"winner", b"loser!")}
    assert said(other) == "FAILED at report.html: it is not the file that was packed"
    assert said({**files, "why/0.txt": b""}).startswith("FAILED at why/0.txt")
    assert said({name: data for name, data in files.items() if name != "why/1.txt"}).startswith("FAILED at why/1.txt")
    write_pack(other, tmp_path / "made.zip")
    with zipfile.ZipFile(tmp_path / "made.zip") as made:
        assert said({**other, pack.MANIFEST: made.read(pack.MANIFEST)}) == "FAILED at seal.txt: it seals another pack"
    seal = OWNER.sign_text(f"bayesd/golden/pack\n{'0' * 64}\n").encode()
    assert said({**files, pack.SEAL: seal}) == "FAILED at seal.txt: it seals another pack"
    broken = files[pack.SEAL][:-8] + b"AAAAAAA\n"
    assert said({**files, pack.SEAL: broken}) == "FAILED at seal.txt: the key did not sign this note"
    less = {name: data for name, data in files.items() if name != "hashes.txt"}
    assert said(less).endswith("pack.zip: it is not whole")


def test_a_zip_that_is_not_whole(packed: dict[str, bytes], tmp_path: Path,
                                 both: Callable[..., tuple[int, str]]) -> None:
    pack.write(tmp_path / "pack.zip", packed)
    data = (tmp_path / "pack.zip").read_bytes()
    for damaged in (data[:-40], data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]):
        (tmp_path / "pack.zip").write_bytes(damaged)
        assert both(tmp_path / "pack.zip") == (1, f"FAILED at {tmp_path / 'pack.zip'}: it is not whole\n")
    (tmp_path / "twice.zip").write_bytes(data)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.zip", "a") as twice:
        twice.writestr("events.jsonl", b"")
    assert both(tmp_path / "twice.zip")[1].endswith("two files have one name\n")


# --- Rolled back, and accepted ---------------------------------------------------------------------


def repaired() -> tuple[list[bytes], list[int]]:
    """A log of two accepted rollbacks, and the seqs of these."""
    bodies: list[bytes] = []
    repairs: list[int] = []

    def record(type: str, **data: Any) -> None:
        prev = leaf_hash(bodies[-1]).hex() if bodies else ZERO
        bodies.append(canonical({"actor": "daemon", "crit": True, "data": data, "epoch": 1, "log": "golden",
                                 "prev": prev, "seq": len(bodies) + 1, "time": "2026-01-01T00:00:00.000000Z", "tv": 1,
                                 "type": type, "v": 1}))

    def repair(size: int, shared: int, branch: int, why: str) -> None:
        accepted = notes.Checkpoint("golden", size, bytes([size] * 32), branch)
        record("log.repaired", reason=why, accepted=OWNER.sign_text(accepted.text), size=size, shared=shared,
               fences_from=1000, signature=lineage.sign(OWNER, leaf_hash(bodies[-1]).hex(), accepted, shared, 1000))
        repairs.append(len(bodies))
    record("log.opened", log="golden")
    record("daemon.started", epoch=1, key=OWNER.vkey)
    repair(20, 2, 0, "the disk died")
    for _ in range(4):
        record("clock.jumped")
    repair(30, 5, len(bodies) + 1, "and again")         # the lost history had a repair at this very place
    record("clock.jumped")
    return bodies, repairs


def test_heads_that_a_signed_repair_gave_up_are_no_damage_and_all_others_are(
        tmp_path: Path, reads_sqlite: bool) -> None:
    """The verdict of both is that of `bayesd log verify`, for heads of all sizes and branches."""
    bodies, (first, second) = repaired()
    less = reseal(bodies, second, lambda event: event["data"].update(shared=0))         # not what the key signed
    unsigned = reseal(bodies, second, lambda event: event["data"].pop("signature"))
    head, seen = tmp_path / "head", set[tuple[bool, int]]()
    for record in (Record(log, []) for log in (bodies, less, unsigned)):
        write_log(record, tmp_path / "log.db")
        size, root = len(record.bodies), root_of(record.leaves)
        with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as db:
            db.execute("INSERT INTO checkpoint VALUES (?, ?)", (size, OWNER.sign(size, root, second).encode()))
            db.commit()
        write_lines(record, tmp_path / "log.jsonl")
        for size in (2, 3, 5, 6, 20, 21, 30, 31) if record.bodies == bodies else (6, 30):
            for branch in (0, first, second, 4):
                note = OWNER.sign(size, bytes([size] * 32), branch)
                head.write_text(note)
                for keys in ([OWNER.vkey], []) if size == 6 else ([OWNER.vkey],):
                    ours = logfile.verify(tmp_path / "log.db", keys=keys, heads=[Head("head", note)]).verdict
                    more = [each for key in keys for each in ("--key", key)]
                    code, said = python(tmp_path / "log.db", "--head", head, *more)
                    assert (code == 0) == (ours.finding is None), (size, branch, keys, said, ours)
                    assert ("1 of the outside notes was given up" in said) == (
                        ours.given_up == 1 and bool(keys)), (size, branch, keys, said, ours)
                    seen.add((code == 0, ours.given_up))
                    if size in (6, 30) and keys:
                        by = python(tmp_path / "log.jsonl", "--head", head, *more)
                        assert javascript(tmp_path / "log.jsonl", "--head", head, *more) == by
        (tmp_path / "log.db").unlink()
    assert seen == {(True, 1), (False, 1), (False, 0)}


def test_a_head_that_was_given_up_is_told_with_its_reason(tmp_path: Path, both: Callable[..., tuple[int, str]]) -> None:
    path = next(path for path in LOGS if path.stem == "log-repaired-2")
    bodies = read(path)[0]
    repair = next(event for body in bodies if (event := json.loads(body))["type"] == "log.repaired")
    record, head = signed(bodies), tmp_path / "head"
    write_log(record, tmp_path / "log.db")
    pack.write(tmp_path / "pack.zip", pack_files(record, tmp_path))
    head.write_text(notes.join([repair["data"]["accepted"], OWNER.sign(30, bytes(32)), record.notes[0]]))
    for name in ("log.db", "pack.zip"):
        code, said = both(tmp_path / name, "--head", head, "--key", OWNER.vkey)
        assert code == 0, said
        assert f"2 of the outside notes were given up by a repair at seq {repair['seq']}: the disk died\n" in said
        assert both(tmp_path / name, "--head", head)[1].splitlines()[-1] == (
            "FAILED at seq 30: this head was given up, says the log; only --key can tell if that is true")
    head.write_text(OWNER.sign(41, bytes(32)))
    assert "FAILED at seq 25: it is missing: a note is about 41" in both(
        tmp_path / "log.db", "--head", head, "--key", OWNER.vkey)[1]


def test_they_are_short_and_use_none_of_our_code() -> None:
    for name in pack.VERIFIERS:
        text = (FOLDER / name).read_text()
        assert len(text.splitlines()) < 300
        assert "import bayesd" not in text
        assert "from bayesd" not in text
