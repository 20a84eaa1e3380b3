"""Messages under a key that worker and daemon share, so that whoever carries them can delay and drop, not forge.

    topic    bayesd/1/from/w1/tell
    payload  {"signed": "<the JSON message as a string>", "mac": "<64 hex digits>"}
    mac      HMAC-SHA-256(key, "bayesd/1\\n" + log + "\\n" + "from/w1/tell" + "\\n" + the string)

The string is signed as it is, so nobody needs a canonical form. The topic below the root's prefix is signed with it,
so a message cannot be moved to another worker, kind or direction; and the log's name, so not to another daemon either.
Log and nonce are read from the retained topic `daemon`, which nobody signs: who lies there makes codes not match.

What is said again later, rule by rule, and what keeps it harmless:

- tell, report: there is one outcome for a (trial, fence) and one value for a step; a copy is answered with the first.
- ask, beat, request: an old one could lease trials to a process that is gone, hold its lease for ever, end the run
  that replaced it, or pause a study once more. So each transmission carries `nonce`, a word that the daemon makes up,
  changes every few minutes and announces in `daemon`, and `count`, which grows with each transmission of one run (of
  one id in requests). The daemon acts on each count once, under the newest two nonces: what is held back lapses within
  ten minutes, and no clocks are compared. A stale one is lost like a dropped one; its sender says it again.
- grant, receipt, reply: each names the `run`, or an `id` with the run or a random word in it, so a process believes
  only what was said to itself, and once. A worker that signs ends the ids of its tells and reports with ":", run.
- stop: it names a trial and a fence and is final for them, now or later.
- an answer to what could not be verified is not signed: signed, it would reject the true message of the same id.
- the first signed answer that names its run fixes the log for a process: another name in `daemon` is then no news, so
  a lie about it cannot make a worker set its results aside.
- retained topics are for all and unsigned: a worker that signs takes neither space nor names of objectives from them.

Not covered: who holds the key; a log that is put back to an earlier copy (heads show that); names without a key.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayesd_schemas.messages import BadMessage, parse
from bayesd_schemas.topics import PROTOCOL

KEY_BYTES = 32
ENVELOPE_MAX = 128 * 1024
"""Bytes of an envelope: a string in JSON is longer than what it says."""
STAMPED = ("ask", "beat", "request")
"""Kinds that carry `nonce` and `count`."""

_is_key = re.compile(r"[0-9a-fA-F]{64}").fullmatch
_is_mac = re.compile(r"[0-9a-f]{64}").fullmatch


class NotSigned(ValueError):
    """A message that our key did not sign; the text says what is wrong with it."""


def key_of(text: str) -> bytes:
    """A key from its 64 hex digits. Raises ValueError, without showing them."""
    text = text.strip()
    if _is_key(text) is None:
        raise ValueError("a key is 64 hex digits, as `bayesd worker key NAME` makes one")
    return bytes.fromhex(text)


def read_key(path: str | Path) -> bytes:
    """The key in a file. Raises ValueError that names the file."""
    try:
        return key_of(Path(path).read_text(encoding="ascii"))
    except OSError as error:
        raise ValueError(f"the key file {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"the key file {str(path)!r} has no key: a key is 64 hex digits, as "
                         "`bayesd worker key NAME` makes one") from error


def mac(key: bytes, log: str, topic: str, text: bytes) -> str:
    """The code of a message at a topic below the root's prefix."""
    return hmac.digest(key, b"%b\n%b\n%b\n%b" % (PROTOCOL.encode(), log.encode(), topic.encode(), text),
                       hashlib.sha256).hex()


def seal(key: bytes, log: str, topic: str, text: bytes) -> bytes:
    """A message, as UTF-8, in its envelope."""
    return b'{"signed":%b,"mac":"%b"}' % (
        json.dumps(text.decode("utf-8"), ensure_ascii=False).encode("utf-8"), mac(key, log, topic, text).encode())


def is_sealed(payload: bytes) -> bool:
    """Whether it looks like an envelope; no proof of anything."""
    return b'"signed"' in payload[:100] or b'"mac"' in payload[:100]


def unseal(key: bytes, log: str, topic: str, payload: bytes) -> bytes:
    """The message in an envelope. Raises NotSigned unless `key` signed it for this log and topic."""
    try:
        envelope = parse(payload, ENVELOPE_MAX)
    except BadMessage as error:
        raise NotSigned(f"it is no envelope: {error.detail}") from error
    text, given = envelope.get("signed"), envelope.get("mac")
    if not isinstance(text, str) or not isinstance(given, str):
        raise NotSigned("it is not signed")
    raw = text.encode("utf-8", "surrogatepass")
    if _is_mac(given) is None or not hmac.compare_digest(mac(key, log, topic, raw), given):
        raise NotSigned("its code does not match: another key, another log, or it was changed on the way")
    return raw


class Sealer:
    """One process that speaks with a daemon under a key, behind a broker that it need not trust."""

    def __init__(self, key: bytes, prefix: str) -> None:
        self._key = key
        self._skip = len(prefix) + 1
        self.log: str | None = None
        """As the topic `daemon` claims it."""
        self.nonce: str | None = None
        self._count = 0

    def heard(self, said: Mapping[str, Any]) -> None:
        """Take log and nonce from what the topic `daemon` says. If it lies, nothing that we sign is taken."""
        log, nonce = said.get("log"), said.get("nonce")
        if isinstance(log, str):
            self.log = log
            self.nonce = nonce if isinstance(nonce, str) else None

    def seal(self, topic: str, message: Mapping[str, Any], log: str | None = None) -> bytes:
        """A message for a topic, signed for the log that it belongs to. Raises NotSigned while no log is known."""
        log = log or self.log
        if log is None:
            raise NotSigned("no daemon has said yet what its log is")
        said = self._stamped(message) if topic.rpartition("/")[2] in STAMPED else dict(message)
        if isinstance(said.get("ask"), dict):
            said["ask"] = self._stamped(said["ask"])
        text = json.dumps(said, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        return seal(self._key, log, topic[self._skip:], text)

    def _stamped(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._count += 1
        return {**message, "count": self._count, **({"nonce": self.nonce} if self.nonce is not None else {})}

    def open(self, topic: str, payload: bytes, log: str | None = None) -> bytes:
        """The message that came to a topic. Raises NotSigned."""
        log = log or self.log
        if log is None:
            raise NotSigned("no daemon has said yet what its log is")
        return unseal(self._key, log, topic[self._skip:], payload)
