"""A note verifies under its key as C2SP defines it, and nothing else does."""

import base64
import os
import stat
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bayesd import notes
from bayesd.notes import BadKey, BadNote, Checkpoint, Signer, open_note

LOG = "01JD7Q8Z"
SIGNER = Signer(LOG, bytes(range(32)))
ROOT = sha256(b"root").digest()
NOTE = SIGNER.sign(1842, ROOT)


def test_a_note_is_what_the_two_c2sp_formats_say() -> None:
    text, signature = NOTE.split("\n\n")
    assert text == f"bayesd/{LOG}\n1842\n{base64.b64encode(ROOT).decode()}"
    dash, name, encoded = signature.removesuffix("\n").split(" ")
    name_of_key, id, key = SIGNER.vkey.split("+", 2)
    raw, public = base64.b64decode(encoded), base64.b64decode(key)
    assert (dash, name, name_of_key) == ("\u2014", f"bayesd/{LOG}", f"bayesd/{LOG}")
    assert (len(raw), len(public), public[0]) == (68, 33, 1)
    assert raw[:4].hex() == id == sha256(f"{name}\n".encode() + public).hexdigest()[:8]
    Ed25519PublicKey.from_public_bytes(public[1:]).verify(raw[4:], f"{text}\n".encode())
    assert open_note(NOTE, SIGNER.vkey) == Checkpoint(LOG, 1842, ROOT) == notes.read(NOTE)


def test_a_verifier_key_from_the_note_package_of_go_is_understood() -> None:
    """The example key of golang.org/x/mod/sumdb/note and the note that it signed."""
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    note = ("If you think cryptography is the answer to your problem,\n"
            "then you don't know what your problem is.\n"
            "\n"
            "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngo"
            "tpRZb6KE6RyyBwJnAM=\n")
    assert notes.Verifier(vkey).text(note).startswith("If you think cryptography")
    with pytest.raises(BadNote, match="not right"):
        notes.Verifier(vkey).text(note.replace("problem is", "problem was"))


def test_no_character_of_a_note_may_be_another() -> None:
    for at, character in enumerate(NOTE):
        for other in {"A", "0", "\n", " ", "="} - {character}:
            with pytest.raises(BadNote):
                open_note(NOTE[:at] + other + NOTE[at + 1:], SIGNER.vkey)
        with pytest.raises(BadNote):
            open_note(NOTE[:at] + NOTE[at + 1:], SIGNER.vkey)
        with pytest.raises(BadNote):
            open_note(NOTE[:at], SIGNER.vkey)


def test_a_note_of_another_key_or_another_log_is_refused() -> None:
    with pytest.raises(BadNote, match="not signed by the key"):
        open_note(Signer.generate(LOG).sign(1842, ROOT), SIGNER.vkey)
    with pytest.raises(BadNote, match="not signed by the key"):
        open_note(Signer("other", bytes(range(32))).sign(1842, ROOT), SIGNER.vkey)
    with pytest.raises(BadNote, match="is of bayesd/other"):
        open_note(SIGNER.sign_text(Checkpoint("other", 1, ROOT).text), SIGNER.vkey)


@pytest.mark.parametrize("text", [
    "bayesd/{log}/pack\nabc\n", "bayesd/{log}\n01\n{root}\n", "bayesd/{log}\n-1\n{root}\n",
    "bayesd/{log}\n1\n{root}\nmore\n", "bayesd/{log}\n1\nAAAA\n", "bayesd/{log}\n1\n",
    "bayesd/{log}\n\u0661\n{root}\n", "bayesd/{log}\n1\n{root}=\n"])
def test_a_signed_text_that_is_no_head_is_no_note_of_one(text: str) -> None:
    note = SIGNER.sign_text(text.format(log=LOG, root=base64.b64encode(ROOT).decode()))
    assert notes.Verifier(SIGNER.vkey).text(note)
    with pytest.raises(BadNote):
        open_note(note, SIGNER.vkey)


def test_signatures_of_others_beside_ours_are_no_matter() -> None:
    other = Signer.generate("witness").sign_text(Checkpoint(LOG, 1842, ROOT).text).split("\n\n")[1]
    assert open_note(NOTE + other, SIGNER.vkey).size == 1842
    assert open_note(NOTE.replace("\n\n", "\n\n" + other), SIGNER.vkey).size == 1842


def test_a_note_of_any_length_is_not_read() -> None:
    other = Signer.generate("witness").sign_text(Checkpoint(LOG, 1842, ROOT).text).split("\n\n")[1]
    full = NOTE + other * ((notes.NOTE_MAX_BYTES - len(NOTE)) // len(other))
    assert open_note(full, SIGNER.vkey).size == 1842
    assert len(full) <= notes.NOTE_MAX_BYTES < len(full + other)
    with pytest.raises(BadNote, match="not a signed note"):
        open_note(full + other, SIGNER.vkey)


@pytest.mark.parametrize("log", ["", "a b", "a+b", "a\tb"])
def test_a_name_that_a_note_could_not_hold_is_none_of_a_key(log: str) -> None:
    with pytest.raises(BadKey, match="cannot be in the name of a key"):
        Signer(log, bytes(32))


def test_a_text_that_could_hide_a_signature_is_not_signed() -> None:
    for text in ("", "no newline", "an\n\nempty line\n", "\nempty first\n"):
        with pytest.raises(ValueError, match="empty"):
            SIGNER.sign_text(text)


def test_a_public_key_is_bound_to_its_name() -> None:
    name, rest = SIGNER.vkey.split("+", 1)
    for wrong, why in ((f"{name}2+{rest}", "changed"), (SIGNER.vkey[:-4], "form"), ("", "form"),
                       (f"{name}+{rest.upper()}", "form"), (SIGNER.vkey.replace("+A", "+B"), "form")):
        with pytest.raises(BadKey, match=why):
            open_note(NOTE, wrong)


# --- Key files -----------------------------------------------------------------------------------


def test_a_saved_key_is_for_its_owner_alone_and_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "tuning.db.key"
    old = os.umask(0)
    try:
        SIGNER.save(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith(f"PRIVATE+KEY+bayesd/{LOG}+")
    assert path.read_text().count("\n") == 1
    again = Signer.load(path, LOG)
    assert (again.vkey, again.sign(1842, ROOT)) == (SIGNER.vkey, NOTE)
    assert [each.name for each in tmp_path.iterdir()] == ["tuning.db.key"]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    SIGNER.save(path)
    with pytest.raises(FileExistsError, match="never overwritten"):
        Signer.generate(LOG).save(path)
    assert Signer.load(path, LOG).vkey == SIGNER.vkey


def test_a_wrong_key_file_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "key"
    SIGNER.save(path)
    with pytest.raises(BadKey, match=f"is the key of bayesd/{LOG}, but the log is bayesd/other"):
        Signer.load(path, "other")
    line = path.read_text()
    path.write_text(line.replace("+AQ", "+AR"))
    with pytest.raises(BadKey, match="damaged"):
        Signer.load(path, LOG)
    for other in (SIGNER.vkey, line[:-8], "", "\xff"):
        path.write_text(other, "latin-1")
        with pytest.raises(BadKey, match="private key"):
            Signer.load(path, LOG)


def test_a_signer_does_not_print_its_seed() -> None:
    assert base64.b64encode(bytes(range(32))).decode()[:20] not in repr(SIGNER)
    assert SIGNER.vkey in repr(SIGNER)


def test_a_generated_key_is_another_each_time() -> None:
    assert Signer.generate(LOG).vkey != Signer.generate(LOG).vkey


# --- Heads files ---------------------------------------------------------------------------------


def test_notes_in_a_file_come_back_as_they_were() -> None:
    many = [SIGNER.sign(n, ROOT) for n in range(1, 4)]
    assert notes.split(notes.join(many)) == many
    assert notes.split(NOTE) == [NOTE]
    assert notes.split("".join(many)) == many
    assert notes.split("\n\n" + notes.join(many) + "\n") == many
    assert notes.split("") == []


def test_a_half_written_note_does_not_hide_the_ones_before() -> None:
    many = [SIGNER.sign(n, ROOT) for n in range(1, 4)]
    text = notes.join(many)
    for cut in range(len(notes.join(many[:2])), len(text) - 1):
        found = notes.split(text[:cut])
        assert found[:2] == many[:2]
        for rest in found[2:]:
            with pytest.raises(BadNote):
                open_note(rest, SIGNER.vkey) if rest != many[2] else open_note("", SIGNER.vkey)


def test_a_branch_is_a_fourth_line() -> None:
    note = SIGNER.sign(1842, ROOT, branch=47)
    assert note.split("\n")[3:5] == ["branch 47", ""]
    assert note.split("\n")[:3] == NOTE.split("\n")[:3]
    assert open_note(note, SIGNER.vkey) == Checkpoint(LOG, 1842, ROOT, 47) == notes.read(note)
    for other in ("branch 0", "branch 07", "branch", "Branch 47", "branch 47 ", "branch 47\nbranch 47"):
        with pytest.raises(BadNote):
            open_note(SIGNER.sign_text(f"{Checkpoint(LOG, 1842, ROOT).text}{other}\n"), SIGNER.vkey)
