"""The daemon's side of signed messages: whose key is known, what was said before, who must sign.

`bayesd_schemas.sealed` says what a signature is and what it is good for. Here is the memory that it needs: the keys,
the two newest nonces, and which counts were used under them. All of it may be lost: a new life has a new nonce.
"""

import json
import secrets
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from bayesd.config import ConfigError
from bayesd.durable import write_private
from bayesd_schemas import sealed
from bayesd_schemas.messages import BadMessage, salvage_raw_id
from bayesd_schemas.names import is_name
from bayesd_schemas.sealed import NotSigned

NONCE_S = 300.0
"""How long a nonce is the newest; afterwards it is good for as long again."""
WINDOW = 64
"""A transmission may be overtaken by so many later ones."""
RETRY_S = 60.0


class Unverified(BadMessage):
    """A message that may be anybody's: it is never acted on, and its answer is not signed."""

    def __init__(self, detail: str, id: str | None) -> None:
        super().__init__("bad-field", detail, id)


class Seals:
    """Keys by name, and what makes a transmission count once. With no key, and none required, it does nothing."""

    def __init__(self, keys: Mapping[str, bytes] | None = None, *, required: bool = False,
                 new_nonce: Callable[[], str] = lambda: secrets.token_hex(8)) -> None:
        self._new_nonce = new_nonce
        self._turned = float("-inf")
        self._seen: dict[str, dict[tuple[str, str], tuple[int, int]]] = {}
        """Nonce, oldest first -> (who, run or id) -> the highest count, and as bits which of those before it."""
        self.nonce: str | None = None
        self.replace(keys or {}, required=required)

    def replace(self, keys: Mapping[str, bytes], *, required: bool) -> None:
        """Take other keys, as at SIGHUP."""
        self.keys = dict(keys)
        self.required = required
        self.active = bool(keys) or required
        if not self.active:
            self._seen, self.nonce, self._turned = {}, None, float("-inf")
        elif self.nonce is None:
            self._renew()

    def turn(self, now: float) -> bool:
        """Change the nonce when it is time; True when a new one must be announced."""
        if not self.active or now - self._turned < NONCE_S:
            return False
        first = self._turned == float("-inf")
        self._turned = now
        if not first:
            self._renew()
        return True

    def _renew(self) -> None:
        self.nonce = self._new_nonce()
        self._seen[self.nonce] = {}
        while len(self._seen) > 2:
            del self._seen[next(iter(self._seen))]

    def open(self, log: str, topic: str, who: str, kind: str, payload: bytes) -> tuple[bytes, bool]:
        """What a payload says, and whether `who` signed it; `topic` is below the root's prefix. Raises Unverified."""
        key = self.keys.get(who)
        if key is not None:
            try:
                return sealed.unseal(key, log, topic, payload), True
            except NotSigned as error:
                raise Unverified(f"{who} has a key here, so its messages must be signed by it, and this one is not "
                                 f"taken: {error}", _id_of(kind, payload)) from error
        if sealed.is_sealed(payload):
            raise Unverified(f"this daemon has no key for {who}, so it takes nothing that {who} signed: add the key to "
                             "its worker_keys, or sign nothing", _id_of(kind, payload))
        if self.required and kind != "request":
            raise Unverified(f"this daemon takes signed messages only and has no key for {who}: `bayesd worker key "
                             f"{who}` makes one", _id_of(kind, payload))
        return payload, False

    def seal(self, log: str, topic: str, who: str, text: bytes) -> bytes:
        """What is said to `who`: signed if there is a key."""
        key = self.keys.get(who)
        return text if key is None else sealed.seal(key, log, topic, text)

    def is_fresh(self, who: str, source: str, nonce: str | None, count: int | None) -> bool:
        """Whether this transmission is recent and comes for the first time. `source`: the run, or a request's id."""
        seen = self._seen.get(nonce or "")
        if seen is None or count is None:
            return False
        highest, bits = seen.get((who, source), (0, 0))
        if count > highest:
            bits = (bits << count - highest | 1) if count - highest < WINDOW else 1
            seen[who, source] = count, bits & (1 << WINDOW) - 1
            return True
        behind = highest - count
        if behind >= WINDOW or bits >> behind & 1:
            return False
        seen[who, source] = highest, bits | 1 << behind
        return True


def _id_of(kind: str, payload: bytes) -> str | None:
    """The id, or a beat's run, in bytes that nobody vouches for, in an envelope or out of it."""
    name = "run" if kind == "beat" else "id"
    return salvage_raw_id(payload, name) or salvage_raw_id(payload.replace(b'\\"', b'"'), name)


# --- The file of keys ----------------------------------------------------------------------------


def load_keys(path: Path) -> dict[str, bytes]:
    """Name -> key, from TOML or JSON. Raises ConfigError, which shows no key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the keys in {path} (setting worker_keys) cannot be read: {error}") from error
    try:
        table = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError):           # its words might show a key
        raise ConfigError(f'{path} (setting worker_keys) is neither TOML nor JSON; a line is "gpu-7" = "64 hex digits"'
                          ) from None
    keys: dict[str, bytes] = {}
    for name, value in table.items():
        if not is_name(name):
            raise ConfigError(f"{path} (setting worker_keys): {name!r} is not a name; a name with a dot needs quotes")
        try:
            keys[name] = sealed.key_of(value if isinstance(value, str) else "")
        except ValueError as error:
            raise ConfigError(f"{path} (setting worker_keys), {name}: {error}") from None
    return keys


def add_key(path: Path, name: str, key: bytes) -> None:
    """Put a key into the file, which may not have been there, and is the owner's alone. Raises ConfigError, OSError."""
    keys = {**(load_keys(path) if path.exists() else {}), name: key}
    lines = "".join(f'"{each}" = "{secret.hex()}"\n' for each, secret in sorted(keys.items()))
    write_private(path, f"# Keys of workers and operators that sign; see `bayesd worker key --help`.\n{lines}".encode())
