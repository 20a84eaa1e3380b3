"""Signed notes of a log's head: who has one can tell later whether the log is still the same.

A note is three or four lines and an Ed25519 signature in the formats of C2SP, signed-note and
tlog-checkpoint, so that tools of others can read it, too:

    bayesd/<log id>
    <how many events>
    <root of their Merkle tree, base64>
    branch <seq of the newest log.repaired among them>      (an extension line, once there was a repair)

    — bayesd/<log id> <signature, base64>

The file of a log proves nothing against who owns it. A note that left the machine does: no later
file can have another beginning and the same root.
"""

import base64
import binascii
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bayesd.durable import put_in_place

PREFIX = "bayesd/"
NOTE_MAX_BYTES = 16_384         # four lines and a few signatures; more is not a note
_ED25519 = b"\1"
_SEED = "PRIVATE+KEY+"
_SIGNED = re.compile("(?P<text>(?s:.*?)\n)\n(?P<signatures>(?:\u2014 [^\\s+]+ [A-Za-z0-9+/=]+\n)+)")
_SIZE = re.compile("0|[1-9][0-9]{0,15}")
_BRANCH = re.compile("branch (?P<seq>[1-9][0-9]{0,15})\n")


class BadNote(Exception):
    """This is not a note that the key signed, or not a note at all. The text is for people."""


class BadKey(BadNote):
    """This is not a key, or the key of another log."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a note says: the log `log` had `size` events, and their tree this root."""

    log: str
    size: int
    root: bytes
    branch: int = 0
    """The repair behind which the log goes on, see lineage.py; 0 before the first."""

    @property
    def text(self) -> str:
        return f"{PREFIX}{self.log}\n{self.body}"

    @property
    def body(self) -> str:
        """The text without its name."""
        return f"{self.size}\n{_base64(self.root)}\n" + (f"branch {self.branch}\n" if self.branch else "")


# --- Signing -------------------------------------------------------------------------------------


class Signer:
    """The private key of one log."""

    def __init__(self, log_id: str, seed: bytes) -> None:
        self.log = log_id
        self.name = _name(log_id)
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key().public_bytes_raw()
        self._id = _key_id(self.name, self._public)
        self.vkey = f"{self.name}+{self._id.hex()}+{_base64(_ED25519 + self._public)}"
        """What verifiers are given: the public key with its name."""

    def __repr__(self) -> str:
        return f"Signer({self.vkey!r})"     # never the seed

    @classmethod
    def generate(cls, log_id: str) -> "Signer":
        return cls(log_id, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: Path | str, log_id: str) -> "Signer":
        """Read a key that `save` wrote. Raises BadKey, or OSError."""
        try:
            line = Path(path).read_text("ascii").strip()
        except UnicodeDecodeError as error:
            raise BadKey(f"{path} is not a private key: it begins with {_SEED}") from error
        name, id, seed = _parts(line.removeprefix(_SEED) if line.startswith(_SEED) else "", f"{path} (a private key)")
        if name != _name(log_id):
            raise BadKey(f"{path} is the key of {name}, but the log is {_name(log_id)}: give the key of this log")
        signer = cls(log_id, seed)
        if signer._id != id:
            raise BadKey(f"{path} is damaged: its key is not the one that it names. Restore a copy of it")
        return signer

    def save(self, path: Path | str) -> None:
        """Write the key for its owner alone (0600); never over another file, never half of it."""
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} is there already; a key is never overwritten")
        new = path.with_name(path.name + ".new")
        new.unlink(missing_ok=True)
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            line = f"{_SEED}{self.name}+{self._id.hex()}+{_base64(_ED25519 + self._seed)}\n"
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)
        put_in_place(new, path)

    def sign(self, size: int, root: bytes, branch: int = 0) -> str:
        """The note of a head."""
        return self.sign_text(Checkpoint(self.log, size, root, branch).text)

    def sign_text(self, text: str) -> str:
        """A note with any text. It ends with a newline and has no empty line, which is where signatures begin."""
        if not text.endswith("\n") or "\n\n" in text or text.startswith("\n"):
            raise ValueError("the text of a note is lines without an empty one, each with its newline")
        return f"{text}\n\u2014 {self.name} {_base64(self._id + self._key.sign(text.encode()))}\n"


# --- Verifying -----------------------------------------------------------------------------------


class Verifier:
    """The public key of one log, parsed once for many notes."""

    def __init__(self, vkey: str) -> None:
        self.name, self._id, public = _parts(vkey.strip(), "this public key")
        if _key_id(self.name, public) != self._id:
            raise BadKey(f"the public key of {self.name} was changed: {self._id.hex()} is not its fingerprint")
        self._key = Ed25519PublicKey.from_public_bytes(public)

    def text(self, note: str) -> str:
        """The signed text of a note, if this key signed it. Signatures by others beside ours are no matter."""
        found = _SIGNED.fullmatch(note) if len(note) <= NOTE_MAX_BYTES else None
        if found is None:
            raise BadNote("this is not a signed note: text, an empty line, then lines that begin with an em dash")
        text, known = found["text"], False
        for line in found["signatures"].split("\n")[:-1]:
            _, name, encoded = line.split(" ")
            signature = _from_base64(encoded)
            if name != self.name or signature is None or signature[:4] != self._id:
                continue
            known = True
            try:
                self._key.verify(signature[4:], text.encode())
            except (InvalidSignature, ValueError):
                continue
            return text
        if known:
            raise BadNote(f"the signature by {self.name} is not right: the note was changed or made up")
        raise BadNote(f"the note is not signed by the key {self.name}+{self._id.hex()}")

    def open(self, note: str) -> Checkpoint:
        """What a note of a head says, if this key signed it."""
        checkpoint = read(self.text(note))
        if PREFIX + checkpoint.log != self.name:
            raise BadNote(f"the note is of {PREFIX}{checkpoint.log}, but the key of {self.name}")
        return checkpoint


def open_note(note: str, vkey: str) -> Checkpoint:
    """What a note says, if the key `vkey` signed it. Raises BadNote."""
    return Verifier(vkey).open(note)


def read(note: str) -> Checkpoint:
    """What a note says, whoever signed it: for messages and for finding the key, never for trust."""
    name, _, rest = note.partition("\n")
    size, _, rest = rest.partition("\n")
    encoded, newline, rest = rest.partition("\n")
    branch = _BRANCH.match(rest)
    if branch is not None:
        rest = rest[branch.end():]
    root = _from_base64(encoded)
    log = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or not log or not _SIZE.fullmatch(size) or root is None or len(root) != 32 \
            or not newline or (rest and not rest.startswith("\n")):
        raise BadNote(f"this is not a note of a head: {PREFIX}<log id>, a size and a root, each on a line")
    return Checkpoint(log, int(size), root, int(branch["seq"]) if branch is not None else 0)


# --- Notes in files ------------------------------------------------------------------------------


def split(text: str) -> list[str]:
    """The notes of a heads file: one after the other, an empty line between them. One note is such a file, too.

    A half-written note, as a crash leaves it, comes back as it is: its reader decides what that means.
    """
    notes: list[str] = []
    current: list[str] = []
    signed = False
    for line in re.findall("[^\n]*\n|[^\n]+", text):
        if signed and not line.startswith("\u2014 "):
            notes.append("".join(current))
            current, signed = [], False
            if line == "\n":
                continue
        if current and line.startswith(PREFIX):         # before it a crash cut a note short
            notes.append("".join(current))
            current, signed = [], False
        if not current and line == "\n":
            continue
        signed = line.startswith("\u2014 ")
        current.append(line)
    if current:
        notes.append("".join(current))
    return notes


def is_finished(note: str) -> bool:
    """Whether its last line is there and ends: a note that a crash cut short is not."""
    return _SIGNED.fullmatch(note) is not None


_ID, _BASE64 = "[^\\s+]+", "[A-Za-z0-9+/=]+"
_CUT = re.compile(f"{PREFIX}{_ID}(\n[0-9]+(\n{_BASE64}(\n\n(\u2014|\u2014 {_ID}|\u2014 {_ID} {_BASE64}))?)?)?")
_SIGNATURE_BYTES = 68           # 4 of the key's id and 64 of Ed25519: the shortest that there is


def is_cut(note: str) -> bool:
    """Whether it is the beginning of a note and no more: what a crash leaves of one, at whatever byte it came."""
    if is_finished(note):
        signature = _from_base64(note.rstrip("\n").rpartition(" ")[2])
        return signature is None or len(signature) < _SIGNATURE_BYTES
    text = note.rstrip("\n").rstrip("\ufffd").rstrip("\n ")         # a dash is three bytes
    return PREFIX.startswith(text) or _CUT.fullmatch(text) is not None


def join(notes: Iterable[str]) -> str:
    """The text of a heads file; `split` takes it apart again."""
    return "".join(note + "\n" for note in notes)


# --- Parts ---------------------------------------------------------------------------------------


def _name(log_id: str) -> str:
    if not log_id or re.search(r"[\s+]", log_id):
        raise BadKey(f"{log_id!r} cannot be in the name of a key: it is empty, or has a space or a plus")
    return PREFIX + log_id


def _key_id(name: str, public: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def _parts(line: str, what: str) -> tuple[str, bytes, bytes]:
    """Name, id and 32 bytes of a key in one line: <name>+<8 hex>+<base64>. The base64 may hold a plus."""
    name, _, rest = line.partition("+")
    id, _, encoded = rest.partition("+")
    raw = _from_base64(encoded)
    if not name or not re.fullmatch("[0-9a-f]{8}", id) or raw is None or len(raw) != 33 or raw[:1] != _ED25519:
        raise BadKey(f"{what} is not a key of the form {PREFIX}<log id>+<8 hex digits>+<base64>")
    return name, bytes.fromhex(id), raw[1:]


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _from_base64(text: str) -> bytes | None:
    """None unless `text` is the one way to write its bytes: a note has no second spelling."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    return raw if _base64(raw) == text else None
