"""What notes say of a log: what they vouch for, where they place a change, and whose word that is."""

import json
from hashlib import sha256
from typing import Any

import pytest

from bayesd import lineage
from bayesd.evidence import Evidence, Head, Verdict
from bayesd.notes import BadKey, BadNote, Signer, read
from bayesd.study.merkle import root_of
from bayesd.study.row import Row

LOG = "a1"
SIGNER, OTHER = Signer(LOG, bytes(32)), Signer(LOG, bytes(range(32)))


def rows(count: int, key: str | None = SIGNER.vkey, history: str = "", forks: int = 0,
         repaired: tuple[int, str] | None = None, by: Signer | None = SIGNER) -> list[Row]:
    """Events of which the second names a key; behind `forks` they are of another history."""
    made: list[Row] = []
    for seq in range(1, count + 1):
        data: dict[str, Any] = {"epoch": 1, "version": "0"} if seq == 2 else {"n": seq}
        type = "daemon.started" if seq in (2, forks + 1) and seq > 1 else "clock.jumped"
        if seq == 2 and key is not None:
            data["key"] = key
        data["history"] = history if seq > forks else ""
        if repaired is not None and seq == repaired[0]:
            prev, accepted = made[-1].hash.hex(), read(repaired[1])
            type, data = "log.repaired", {"reason": "r", "accepted": repaired[1], "fences_from": 1, "shared": forks}
            if by is not None:
                data["signature"] = lineage.sign(by, prev, accepted, forks, 1)
        made.append(Row.of({"actor": "daemon", "crit": True, "data": data, "epoch": 1, "log": LOG,
                            "prev": made[-1].hash.hex() if made else "0" * 64, "seq": seq,
                            "time": "2026-01-01T00:00:00.000000Z", "tv": 1, "type": type, "v": 1}))
    return made


def note(of: list[Row], size: int, signer: Signer = SIGNER) -> str:
    return signer.sign(size, root_of([row.hash for row in of[:size]]))


def stored(of: list[Row], *sizes: int, signer: Signer = SIGNER) -> list[tuple[int, bytes]]:
    return [(size, note(of, size, signer).encode()) for size in sizes]


def judged(log: list[Row], notes: list[tuple[int, bytes]], *heads: str, keys: tuple[str, ...] = (), chunk: int = 7,
           is_whole: bool = True) -> Verdict:
    evidence = Evidence(notes, [Head(f"head {n}", text) for n, text in enumerate(heads)], keys)
    for at in range(0, len(log), chunk):
        evidence.take([row.fields for row in log[at:at + chunk]])
    assert evidence.tree.root() == root_of([row.hash for row in log])
    return evidence.verdict(LOG, is_whole)


def place(verdict: Verdict) -> tuple[int, int, int]:
    assert verdict.finding is not None
    return verdict.finding.first, verdict.finding.narrowed, verdict.finding.last


TRUE = rows(50)
FORGED = rows(50, history="forged", forks=24)       # events 25 to 50 are others


@pytest.mark.parametrize("chunk", [1, 7, 10, 50])
def test_notes_vouch_for_the_events_before_them(chunk: int) -> None:
    verdict = judged(TRUE, stored(TRUE, 10, 20, 40), note(TRUE, 33), chunk=chunk)
    assert verdict == Verdict(signed=40, notes=3, heads=1, keys=(SIGNER.vkey,), keys_given=False)
    assert judged(TRUE, stored(TRUE, 10), keys=(SIGNER.vkey,)).keys_given


def test_a_log_without_notes_has_nobody_who_vouches_for_it() -> None:
    assert judged(TRUE, []) == Verdict(keys=(SIGNER.vkey,))
    assert judged([], []) == Verdict()


def test_notes_fit_without_a_key_but_then_nobody_signed() -> None:
    log = rows(50, key=None)
    assert judged(log, stored(log, 10, 20)) == Verdict(unsigned=2)
    other = rows(50, key=None, history="x", forks=14)
    assert place(judged(other, stored(log, 10, 20))) == (1, 1, 20)     # an unsigned note narrows nothing


def test_a_change_lies_between_two_notes() -> None:
    assert place(judged(FORGED, stored(TRUE, 10, 20, 30, 40))) == (21, 21, 30)


def test_an_outside_note_is_narrowed_by_notes_in_the_file_for_a_hint_only() -> None:
    notes = stored(TRUE, 10, 20)
    assert place(judged(FORGED, notes, note(TRUE, 40))) == (1, 21, 40)
    assert place(judged(FORGED, notes, note(TRUE, 12), note(TRUE, 40), keys=(SIGNER.vkey,))) == (13, 21, 40)
    # Who has the key signs the other history: the hint is then wrong, and the place is not.
    resigned = judged(FORGED, stored(FORGED, 10, 20, 30), note(TRUE, 40))
    assert place(resigned) == (1, 31, 40)


def test_a_log_that_ends_before_a_note_lacks_the_rest() -> None:
    assert place(judged(TRUE[:30], stored(TRUE, 10), note(TRUE, 40))) == (31, 31, 40)
    assert place(judged(TRUE[:30], stored(TRUE, 10, 35))) == (31, 31, 35)
    assert place(judged([], [], note(TRUE, 40), keys=(SIGNER.vkey,))) == (1, 1, 40)
    # But where the chain is broken, that is what is told.
    assert judged(TRUE[:30], [], note(TRUE, 40), is_whole=False).finding is None


def test_a_note_in_the_file_that_the_key_did_not_sign_is_no_note() -> None:
    forged = stored(TRUE, 10, 20) + stored(TRUE, 30, signer=OTHER)
    verdict = judged(TRUE, forged)
    assert (place(verdict), verdict.signed, verdict.notes) == ((21, 21, 30), 20, 2)
    assert judged(TRUE, forged, keys=(SIGNER.vkey, OTHER.vkey)).signed == 30
    assert judged(TRUE, stored(TRUE, 30), keys=(OTHER.vkey,)).finding is not None


@pytest.mark.parametrize("bad", [b"", b"\xff", b"bayesd/a1\n10\n", note(TRUE, 20).encode()])
def test_what_is_not_a_note_of_its_event_is_named(bad: bytes) -> None:
    verdict = judged(TRUE, [(10, bad), *stored(TRUE, 40)])
    assert verdict.finding is not None
    assert (verdict.finding.first, verdict.finding.last) == (10, 10)


def test_a_head_of_another_log_or_another_key_is_told_apart_from_a_mistake_of_the_caller() -> None:
    resigned = rows(50, key=OTHER.vkey)
    verdict = judged(resigned, stored(resigned, 10, 20, signer=OTHER), note(TRUE, 40))
    assert place(verdict) == (1, 1, 40)      # the log names a key that did not sign the note: no hint from its notes
    with pytest.raises(BadNote, match="head 0: the note is not signed by the key"):
        judged(TRUE, [], note(TRUE, 40, OTHER), keys=(SIGNER.vkey,))
    with pytest.raises(BadNote, match="head 0: this is not a note"):
        judged(TRUE, [], "no note")
    with pytest.raises(BadKey):
        judged(TRUE, [], keys=("no key",))
    other = Signer("other", bytes(32)).sign(40, sha256().digest())
    found = judged(TRUE, [], other).finding
    assert found is not None
    assert "is of the log other, and the file says that it is the log a1" in found.why


def test_a_note_of_nothing_is_right_for_every_log() -> None:
    empty = SIGNER.sign(0, sha256(b"").digest())
    assert judged(TRUE, [], empty).heads == 1
    assert judged([], [], empty, keys=(SIGNER.vkey,)).heads == 1
    assert place(judged(TRUE, [], SIGNER.sign(0, bytes(32)))) == (1, 1, 1)


def test_keys_of_earlier_daemons_still_count() -> None:
    """Who lost a key goes on with another; notes of before stay good."""
    log = rows(50, forks=24)                # event 25 is a daemon.started, too, without a key
    log_two = [*log[:24], *rows(50, history="", forks=24)[24:]]
    assert judged(log_two, stored(log_two, 10, 40)).notes == 2


# --- A history that was given up -----------------------------------------------------------------

LOST = note(TRUE, 40)
REPAIRED = rows(60, history="after", forks=24, repaired=(27, LOST))     # a life began at 25; what came to 40 is lost


def test_notes_of_a_history_that_the_operator_gave_up_are_explained_by_the_key() -> None:
    after, key = stored(REPAIRED, 20, 50), (SIGNER.vkey,)
    verdict = judged(REPAIRED, after, note(TRUE, 20), note(TRUE, 30), LOST, keys=key)
    assert (verdict.finding, verdict.given_up, verdict.heads, verdict.signed) == (None, 2, 1, 50)
    # It explains no more than what was accepted, and nothing of what both histories have.
    assert place(judged(REPAIRED, after, LOST, note(TRUE, 45), keys=key)) == (1, 21, 45)
    earlier = rows(60, history="x", forks=9)
    assert place(judged(REPAIRED, after, note(earlier, 22), LOST, keys=key)) == (1, 21, 22)


def test_a_history_that_was_given_up_is_nobodys_word_without_the_key() -> None:
    verdict = judged(REPAIRED, stored(REPAIRED, 20, 50), LOST)
    assert verdict.finding is not None
    assert "only the public key from elsewhere" in verdict.finding.why
    assert judged(REPAIRED, [*stored(REPAIRED, 20, 50), (40, LOST.encode())]).finding is None   # nothing from outside


@pytest.mark.parametrize("by", [None, OTHER])
def test_who_has_no_key_cannot_give_a_history_up(by: Signer | None) -> None:
    forged = rows(60, history="after", forks=24, repaired=(27, LOST), by=by)
    notes = stored(forged, 20, 50)
    for keys in ((), (SIGNER.vkey,)):
        verdict = judged(forged, notes, LOST, keys=keys)
        assert (place(verdict), verdict.given_up) == ((1, 21, 40), 0)


def test_a_repair_of_another_place_gives_nothing_up() -> None:
    moved = rows(60, history="moved", forks=20, repaired=(27, LOST), by=None)
    sign = json.loads(REPAIRED[26].body)["data"]["signature"]
    body = json.loads(moved[26].body)
    moved[26] = Row.of({**body, "data": {**body["data"], "signature": sign}})
    assert judged(moved[:27], [], LOST, keys=(SIGNER.vkey,)).finding is not None


def test_the_branch_that_goes_on_is_never_excused_whatever_its_size() -> None:
    """A second rollback, to below the size that the first one accepted."""
    late = SIGNER.sign(38, root_of([row.hash for row in REPAIRED[:38]]), branch=27)
    back, before = REPAIRED[:30], REPAIRED[:26]
    for log in (back, before):
        verdict = judged(log, [], late, keys=(SIGNER.vkey,))
        assert (verdict.given_up, verdict.finding is not None) == (0, True)
    assert judged(REPAIRED, [], late, LOST, keys=(SIGNER.vkey,)).finding is None


def test_a_log_that_is_still_shorter_than_what_was_given_up_is_explained_too() -> None:
    short = REPAIRED[:30]
    verdict = judged(short, stored(short, 20, 28), LOST, keys=(SIGNER.vkey,))
    assert (verdict.finding, verdict.given_up) == (None, 1)
