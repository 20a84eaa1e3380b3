"""`bayesd log prove`, `prove-consistent`, `check-proof`: one event, or one older log, proved without the log.

A proof is a small file. Who has it, the public key and nothing else can check that this event, word
for word, is in the log that the key signed, or that a newer head goes on from an older one.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bayesd import show
from bayesd.cli import offline, phrases
from bayesd.cli.common import USAGE, Trouble, format_option, need, verb

if TYPE_CHECKING:
    from bayesd.evidence import Head

T = TypeVar("T")
DAMAGED = 65      # what is not what was signed ends as a damaged log does

_FILE = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


def register(log: click.Group) -> None:
    verb(log, "prove", "bayesd log prove tuning.db 842 > proof.json")(prove)
    verb(log, "prove-consistent", "bayesd log prove-consistent tuning.db 1000 > proof.json")(prove_consistent)
    verb(log, "check-proof", "bayesd log check-proof proof.json --key log.vkey")(check_proof)


# --- Keys and notes as they are given ----------------------------------------------------------------


def key_option(command: Any) -> Any:
    return click.option("--key", "keys", metavar="VKEY|FILE", multiple=True,
                        help="The log's PUBLIC key, which must have signed, or a file of such keys, from elsewhere "
                             "than the log. (serve --key is the private one.) May be repeated.")(command)


def keys_of(given: Sequence[str]) -> list[str]:
    """Each is a key, or a file with one key a line."""
    keys = []
    for each in given:
        path = Path(each)
        if "+" in each and not path.is_file():
            keys.append(each)
            continue
        try:
            keys += [line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
        except (OSError, UnicodeDecodeError) as error:
            raise Trouble(f"--key {each} is neither a public key (bayesd/<log>+...) nor a file of them: {error}",
                          USAGE) from error
    if any(key.startswith("PRIVATE+KEY+") for key in keys):
        raise Trouble("--key wants the public key; this is the private one, which stays with the daemon", USAGE)
    return keys


def heads_of(files: Sequence[Path]) -> "list[Head]":
    """The notes of heads files. Those that a crash cut short are left out, and that is said."""
    notes, head = need("bayesd.notes"), need("bayesd.evidence").Head
    found = []
    for file in files:
        try:
            texts = notes.split(file.read_text("utf-8", errors="replace"))
        except OSError as error:
            raise Trouble(f"cannot read the notes in {file}: {error}", USAGE) from error
        if len(texts) > 1:
            whole = [text for text in texts if not notes.is_cut(text)]
            if len(whole) < len(texts):
                show.talk(f"{len(texts) - len(whole)} of the notes in {file} was cut short by a crash and is left out")
            texts = whole
        if not texts:
            raise Trouble(f"there is no note in {file}", USAGE)
        found += [head(f"{file.name}, note {number}" if len(texts) > 1 else str(file.name), text)
                  for number, text in enumerate(texts, start=1)]
    return found


def asking(work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call it; a key or note that is none was typed wrongly, and is no fault of a log."""
    try:
        return work(*args, **kwargs)
    except need("bayesd.notes").BadNote as error:
        raise Trouble(str(error), USAGE) from error


# --- Made from a log ---------------------------------------------------------------------------------


@_FILE
@click.argument("seq", type=click.IntRange(min=1))
@click.option("--size", type=click.IntRange(min=1),
              help="Prove it in the tree of so many events; default: the newest signed note that has it.")
def prove(file: Path, seq: int, size: int | None) -> None:
    """Print a proof that event SEQ is in the log, as JSON.

    It holds the event, and the signed note if there is one of that size. `check-proof` needs no more than a key.
    """
    merkle = need("bayesd.study.merkle")
    stored = _stored(file)
    if size is None:
        size = max((each for each in stored if each >= seq), default=None)
    leaves, body = _leaves(file, size, seq)
    if seq > len(leaves) or (size is not None and size > len(leaves)):
        raise Trouble(f"the log has {len(leaves)} events, so there is no proof of event {seq} among {size or seq}",
                      USAGE)
    if size is not None and seq > size:
        raise Trouble(f"event {seq} is not among the first {size}", USAGE)
    size = size or len(leaves)
    proof = {"log": json.loads(body)["log"], "seq": seq, "size": size, "leaf": leaves[seq - 1].hex(),
             "proof": [each.hex() for each in merkle.inclusion(leaves, seq - 1)],
             "root": merkle.root_of(leaves).hex(), "event": body.decode(), "note": stored.get(size)}
    _give(proof, f"no note of {size} events is stored, so this proof is as good as its root")


@_FILE
@click.argument("old", type=click.IntRange(min=0))
@click.argument("new", type=click.IntRange(min=1), required=False)
def prove_consistent(file: Path, old: int, new: int | None) -> None:
    """Print a proof that the log of NEW events begins with the log of OLD events, as JSON.

    NEW is the newest signed note by default.
    """
    merkle = need("bayesd.study.merkle")
    stored = _stored(file)
    if new is None:
        new = max((each for each in stored if each >= old), default=None)
    leaves, body = _leaves(file, new, 1)
    new = len(leaves) if new is None else new
    if not old <= new <= len(leaves) or not leaves:
        raise Trouble(f"the log has {len(leaves)} events, so it cannot show that {new} go on from {old}", USAGE)
    proof = {"log": json.loads(body)["log"], "old_size": old, "new_size": new,
             "old_root": merkle.root_of(leaves[:old]).hex(), "new_root": merkle.root_of(leaves).hex(),
             "proof": [each.hex() for each in merkle.consistency(leaves, old)],
             "old_note": stored.get(old), "note": stored.get(new)}
    _give(proof, f"no note of {new} events is stored, so this proof is as good as its roots")


def _give(proof: dict[str, Any], unsigned: str) -> None:
    if proof["note"] is None:
        show.talk(unsigned)
    click.echo(json.dumps({key: value for key, value in proof.items() if value is not None}, indent=1,
                          ensure_ascii=False))


def _stored(file: Path) -> dict[int, str]:
    logfile = need("bayesd.logfile")
    with logfile.reading(file.resolve()) as db, logfile.translated(0):
        return {seq: note.decode() for seq, note in db.execute("SELECT seq, note FROM checkpoint")}


def _leaves(file: Path, until: int | None, seq: int) -> tuple[list[bytes], bytes]:
    """The verified hashes up to `until`, and the body of event `seq`."""
    leaves, found = [], b""
    with show.progress("reading", until or offline.count(file)) as advance:
        for each, body, hash in need("bayesd.log").read_events(file, 0, until):
            leaves.append(hash)
            if each == seq:
                found = body
            if each % 1000 == 0:
                advance(each)
    return leaves, found


# --- Checked without a log ---------------------------------------------------------------------------


@click.argument("file", metavar="PROOF", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@key_option
@click.option("--head", "heads", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True,
              help="A file of signed notes of your own, for a proof without one or instead of the one in it.")
@format_option
def check_proof(file: Path, keys: tuple[str, ...], heads: tuple[Path, ...], format: str) -> None:
    """Check a proof offline, with the public key and without the log.

    Ends with 65 when PROOF does not hold, with 1 when it holds but nothing signed says of what log.
    """
    try:
        proof = json.loads(file.read_text("utf-8"))
        found = _Check(proof, keys_of(keys), [head.note for head in heads_of(heads)])
        answer = found.inclusion() if "seq" in proof else found.consistency()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Trouble(f"{file} is not a proof: {type(error).__name__} {error}", USAGE) from error
    answer["signed_by"] = ", ".join(found.signers) or None
    show.record(format, answer, [(key, value) for key, value in answer.items() if value is not None],
                [answer["holds"], answer["signed_by"] or "nobody"])
    if not answer["holds"]:
        raise Trouble(answer["why"], DAMAGED)
    if not found.signers:
        if found.has_note or heads:
            raise Trouble("the proof holds for its root, but no key was given that says whose root it is: give --key "
                          "VKEY" if not keys else
                          "the proof holds for its root, but it has no note, and those of --head are of other sizes: "
                          f"give the note of {answer.get('size', answer.get('new_size'))} events")
        raise Trouble("the proof holds for its root, but it has no note that says whose root it is: give --head NOTE, "
                      f"a signed note of {answer.get('size', answer.get('new_size'))} events, and --key VKEY")


class _Check:
    """One proof, held against keys and notes."""

    def __init__(self, proof: dict[str, Any], keys: list[str], notes: list[str]) -> None:
        self._proof, self._keys = proof, keys
        self._notes = notes
        self.signers: list[str] = []
        self.has_note = proof.get("note") is not None

    def inclusion(self) -> dict[str, Any]:
        proof, merkle = self._proof, need("bayesd.study.merkle")
        body, leaf, root = proof["event"].encode(), bytes.fromhex(proof["leaf"]), bytes.fromhex(proof["root"])
        event = json.loads(body)
        why = None
        if need("bayesd.study.canonical").leaf_hash(body) != leaf:
            why = "the event is not the one of the leaf: it was changed"
        elif event["seq"] != proof["seq"]:
            why = f"the event says that it is event {event['seq']}, not {proof['seq']}"
        elif not merkle.holds_inclusion(leaf, proof["seq"] - 1, proof["size"], self._hashes(), root):
            why = f"the event is not number {proof['seq']} in the tree of {proof['size']} events with this root"
        else:
            why = self._signed(event["log"], proof["size"], root, proof.get("note"))
        return {"holds": why is None, "why": why, "log": event["log"], "seq": proof["seq"], "size": proof["size"],
                "root": root.hex(), "time": event["time"], "actor": event["actor"], "type": event["type"],
                "event": phrases.of(event)}

    def consistency(self) -> dict[str, Any]:
        proof, merkle = self._proof, need("bayesd.study.merkle")
        old, new = proof["old_size"], proof["new_size"]
        old_root, new_root = bytes.fromhex(proof["old_root"]), bytes.fromhex(proof["new_root"])
        why = None
        if not merkle.holds_consistency(old, new, old_root, new_root, self._hashes()):
            why = f"the log of {new} events does not begin with the log of {old} events"
        else:
            why = self._signed(proof["log"], new, new_root, proof.get("note"))
            signers = list(self.signers)
            why = why or self._signed(proof["log"], old, old_root, proof.get("old_note"))
            self.signers = signers          # only who signed the new root vouches for it
        return {"holds": why is None, "why": why, "log": proof["log"], "old_size": old, "new_size": new,
                "old_root": old_root.hex(), "new_root": new_root.hex()}

    def _hashes(self) -> list[bytes]:
        return [bytes.fromhex(each) for each in self._proof["proof"]]

    def _signed(self, log: str, size: int, root: bytes, note: str | None) -> str | None:
        """Every note of this size, in the proof or given, must be of this root; without a key it is no signature."""
        notes = need("bayesd.notes")
        for text in ([note] if note is not None else []) + self._notes:
            said = asking(notes.read, text)
            if text is not note and said.size != size:
                continue
            if (said.log, said.size, said.root) != (log, size, root):
                return f"the note is of another log or another root than the proof ({said.log}, {said.size} events)"
            errors = []
            for key in self._keys:
                try:
                    asking(notes.Verifier, key).open(text)
                except notes.BadNote as error:
                    errors.append(str(error))
                else:
                    if key not in self.signers:
                        self.signers.append(key)
                    break
            else:
                if errors:
                    return errors[-1]
        return None
