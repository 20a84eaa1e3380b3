"""`log verify` with keys and notes from outside; proofs that are made from a log and checked without it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.edges.attacks import World, chain, signed, world
from tests.edges.test_cli import Shell

from bayesd.notes import Signer, join


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A log of 200 events with a note every 20."""
    return world(tmp_path_factory.mktemp("proofs"))


@pytest.fixture
def sh(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def key(made: World, tmp_path: Path) -> Path:
    path = tmp_path / "log.vkey"
    path.write_text(f"# from the daemon's first start\n{made.signer.vkey}\n")
    return path


def saved(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# --- Verify ------------------------------------------------------------------------------------------


def test_verify_says_who_vouches_for_how_much(made: World, sh: Shell, key: Path, tmp_path: Path) -> None:
    heads = saved(tmp_path / "heads.txt", join([made.heads[7], made.heads[133]]))
    said = sh(f"log verify {made.path}")
    assert "200 of 200 events, by the key that the log itself names (10 notes)" in said.out
    said = sh(f"log verify {made.path} --key {key} --head {heads}")
    assert "by the key that was given (12 notes, 2 of them from outside)" in said.out
    said = sh(f"log verify {made.path} --key {made.signer.vkey} --head {heads} -f json")
    assert {name: said.json[name] for name in ("signed_events", "notes", "heads", "keys_from", "states_compared")} == {
        "signed_events": 200, "notes": 10, "heads": 2, "keys_from": "outside", "states_compared": 2}
    assert said.json["keys"] == [made.signer.vkey]


def test_a_log_that_is_not_what_was_signed_ends_with_65_and_the_place(made: World, sh: Shell, tmp_path: Path) -> None:
    heads = saved(tmp_path / "heads.txt", join([made.heads[90], made.heads[150]]))
    old = made.copy()
    old.rows, old.notes = old.rows[:120], {size: note for size, note in old.notes.items() if size <= 120}
    old.snapshots.clear()
    old.write(tmp_path / "old.db", made.template)
    assert "120 of 120 events" in sh(f"log verify {tmp_path}/old.db").out
    said = sh(f"log verify {tmp_path}/old.db --head {heads} -f json", code=65)
    assert (said.json["damaged_seq"], said.json["damaged_between"], said.json["chain"]) == (121, [121, 150], "intact")
    assert "the log ends at event 120, but heads.txt, note 2 was signed over 150" in said.err


def test_a_heads_file_that_a_crash_cut_short_is_used_up_to_there(made: World, sh: Shell, tmp_path: Path) -> None:
    heads = saved(tmp_path / "heads.txt", join([made.heads[90], made.heads[150]])[:-40])
    said = sh(f"log verify {made.path} --head {heads} -f json")
    assert said.json["heads"] == 1
    assert "cut short" in said.err


def test_pieces_of_notes_between_notes_are_left_out(made: World, sh: Shell, tmp_path: Path) -> None:
    whole = join([made.heads[90]])
    for end in (3, 12, len(whole) // 2, len(whole) - 30):
        heads = saved(tmp_path / "heads.txt", whole[:end] + "\n\n" + join([made.heads[150]]))
        said = sh(f"log verify {made.path} --head {heads} -f json")
        assert (said.json["heads"], "cut short" in said.err) == (1, True)


def test_a_key_that_was_given_must_have_signed(made: World, sh: Shell, tmp_path: Path) -> None:
    said = sh(f"log verify {made.path} --key {made.thief.vkey}", code=65).err
    assert ("is signed by the key that was given" in said, "restore a backup" in said) == (True, False)
    bare = made.copy()
    bare.notes.clear()
    bare.write(tmp_path / "bare.db", made.template)
    assert "it has no signed note" in sh(f"log verify {tmp_path}/bare.db --key {made.signer.vkey}", code=1).err
    heads = saved(tmp_path / "heads.txt", join([made.heads[200]]))
    sh(f"log verify {tmp_path}/bare.db --key {made.signer.vkey} --head {heads}")


def test_heads_of_another_log_are_no_damage(made: World, sh: Shell, tmp_path: Path) -> None:
    other = Signer("00000000deadbeef", bytes(32))
    for notes in ([other.sign(7, bytes(32))], [made.heads[90], other.sign(999, bytes(32))]):
        said = sh(f"log verify {made.path} --head {saved(tmp_path / 'heads.txt', join(notes))}", code=2)
        assert ("of another log" in said.err, "00000000deadbeef" in said.err, "backup" in said.err) == (
            True, True, False)


@pytest.mark.parametrize(("options", "words"), [
    ("--key nothing", "neither a public key"),
    ("--key bayesd/x+00000000+AAAA", "not a key of the form"),
    ("--key {private}", "the private one"),
    ("--head {empty}", "no note in"),
    ("--head {text}", "not a note of a head"),
    ("--head {other} --key {vkey}", "not signed by the key")])
def test_what_was_typed_wrongly_is_no_damage(made: World, sh: Shell, tmp_path: Path, options: str, words: str) -> None:
    private = tmp_path / "log.key"
    made.signer.save(private)
    names = {"private": private, "empty": saved(tmp_path / "empty", "\n"), "text": saved(tmp_path / "text", "a\nb\n"),
             "vkey": made.signer.vkey, "other": saved(tmp_path / "other", made.thief.sign(7, bytes(32)))}
    assert words in sh(f"log verify {made.path} {options.format(**names)}", code=2).err


# --- Proofs ------------------------------------------------------------------------------------------


def proof_of(sh: Shell, line: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(sh(line).out)
    return said


@pytest.mark.parametrize(("seq", "size"), [(1, 200), (133, 200), (200, 200), (133, 140), (5, 20)])
def test_an_event_is_proved_without_the_log(made: World, sh: Shell, key: Path, tmp_path: Path, seq: int,
                                            size: int) -> None:
    proof = proof_of(sh, f"log prove {made.path} {seq} --size {size}")
    assert (proof["seq"], proof["size"], proof["note"]) == (seq, size, made.true.notes[size])
    assert proof["event"].encode() == made.true.rows[seq - 1][1]
    assert proof["leaf"] == made.true.rows[seq - 1][2].hex()
    path = saved(tmp_path / "proof.json", json.dumps(proof))
    said = sh(f"log check-proof {path} --key {key} -f json")
    assert (said.json["holds"], said.json["signed_by"]) == (True, made.signer.vkey)
    assert sh(f"log check-proof {path} --key {key} -f value").out == f"yes\t{made.signer.vkey}\n"


def test_the_newest_note_is_the_tree_by_default(made: World, sh: Shell) -> None:
    assert proof_of(sh, f"log prove {made.path} 133")["size"] == 200
    assert proof_of(sh, f"log prove-consistent {made.path} 133")["new_size"] == 200


def test_a_proof_without_a_note_needs_one_of_the_reader(made: World, sh: Shell, key: Path, tmp_path: Path) -> None:
    said = sh(f"log prove {made.path} 100 --size 133")
    assert "no note of 133 events" in said.err
    path = saved(tmp_path / "proof.json", said.out)
    alone = sh(f"log check-proof {path} --key {key}", code=1).err
    assert ("it has no note" in alone, "a signed note of 133 events" in alone) == (True, True)
    heads = saved(tmp_path / "heads.txt", join([made.heads[90], made.heads[133]]))
    assert sh(f"log check-proof {path} --key {key} --head {heads} -f json").json["signed_by"] == made.signer.vkey
    assert "no key was given" in sh(f"log check-proof {path} --head {heads}", code=1).err


def test_no_part_of_a_proof_may_be_another(made: World, sh: Shell, key: Path, tmp_path: Path) -> None:
    proof = proof_of(sh, f"log prove {made.path} 133")
    forged = Signer(made.signer.log, bytes(range(32)))
    root = bytes.fromhex(proof["root"])
    wrong: dict[str, dict[str, Any]] = {
        "event": {"event": proof["event"].replace('"crit":true', '"crit":false')},
        "leaf": {"leaf": made.true.rows[7][2].hex()},
        "seq": {"seq": 132}, "size": {"size": 199}, "root": {"root": "00" * 32},
        "proof": {"proof": proof["proof"][:-1]}, "order": {"proof": proof["proof"][::-1]},
        "another note": {"note": made.true.notes[180]}, "note of another key": {"note": forged.sign(200, root)},
        "event of another place": {"event": made.true.rows[131][1].decode(), "leaf": made.true.rows[131][2].hex()}}
    for name, change in wrong.items():
        path = saved(tmp_path / "proof.json", json.dumps({**proof, **change}))
        said = sh(f"log check-proof {path} --key {key} -f json", code=65)
        assert said.json["holds"] is False, name
    for text in ("{}", "[]", "nothing", json.dumps({**proof, "leaf": "xyz"})):
        assert "is not a proof" in sh(f"log check-proof {saved(tmp_path / 'bad', text)} --key {key}", code=2).err


def test_a_log_is_proved_to_go_on_from_an_older_one(made: World, sh: Shell, key: Path, tmp_path: Path) -> None:
    mine = saved(tmp_path / "mine.txt", made.heads[77])
    for old, new in ((0, 200), (1, 20), (20, 140), (77, 200), (128, 200), (200, 200)):
        path = saved(tmp_path / "proof.json", sh(f"log prove-consistent {made.path} {old} {new}").out)
        said = sh(f"log check-proof {path} --key {key} --head {mine} -f json")
        assert (said.json["holds"], said.json["old_size"], said.json["new_size"]) == (True, old, new)
    # A log with another past proves that one, and not the one of which a note was kept.
    other = made.copy()
    bodies = other.envelopes
    bodies[50]["time"] = "2001-01-01T00:00:00.000000Z"
    other.rows = chain(bodies)
    other.notes = signed(other.rows, made.signer, sorted(other.notes))
    other.write(tmp_path / "other.db", made.template)
    path = saved(tmp_path / "proof.json", sh(f"log prove-consistent {tmp_path}/other.db 77").out)
    sh(f"log check-proof {path} --key {key}")
    assert "another root" in sh(f"log check-proof {path} --key {key} --head {mine}", code=65).err


def test_an_older_signed_root_alone_vouches_for_nothing_newer(made: World, sh: Shell, key: Path,
                                                              tmp_path: Path) -> None:
    path = saved(tmp_path / "proof.json", sh(f"log prove-consistent {made.path} 20 133").out)
    assert "it has no note" in sh(f"log check-proof {path} --key {key}", code=1).err


@pytest.mark.parametrize("line", [
    "log prove {log} 201", "log prove {log} 10 --size 201", "log prove {log} 30 --size 20",
    "log prove-consistent {log} 201", "log prove-consistent {log} 50 20"])
def test_what_the_log_does_not_have_cannot_be_proved(made: World, sh: Shell, line: str) -> None:
    assert sh(line.format(log=made.path), code=2).err.startswith("error: ")
