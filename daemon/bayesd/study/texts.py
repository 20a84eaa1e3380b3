"""Free text that people and programs send: an error's message, the reason of a void or a revocation.

It may hold what must go again one day: a name, a password in a traceback. So an event's body, which is hashed for
ever, has only a reference to it, SHA-256 of a random salt and the text; salt and text lie beside the events, in
the same commit. Who redacts it deletes both: the chain holds, and without the salt nobody can try texts against
the reference. The words of the daemon itself stay in the body, as all words did in logs of earlier releases.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FREE: dict[str, str] = {
    "trial.completed": "error", "trial.paused": "error", "trial.failed": "error", "trial.pruned": "error",
    "outcome.late": "error", "outcome.voided": "reason", "worker.revoked": "reason"}
"""Event type -> the field that may hold free text; `<field>_ref` holds the reference."""
REDACTED = "(redacted)"
MISSING = "(missing)"
"""A text that is gone though nobody redacted it: the file is a copy without its texts, or was damaged."""


class Text(NamedTuple):
    """A text to keep beside the events or, without salt and text, to delete there."""

    ref: str
    salt: bytes | None
    text: str | None


def of(salt: bytes, text: str) -> Text:
    return Text(reference(salt, text), salt, text)


def reference(salt: bytes, text: str) -> str:
    return hashlib.sha256(salt + text.encode("utf-8", "surrogatepass")).hexdigest()


def ref_of(type: str, data: Mapping[str, Any]) -> str | None:
    """The reference in an event's data, if it has one."""
    name = FREE.get(type)
    return data.get(f"{name}_ref") if name is not None else None


def resolved(body: dict[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """An envelope with its free text in place, for people: it is no longer what was hashed."""
    ref = ref_of(body["type"], body["data"])
    if ref is None:
        return body
    return {**body, "data": {**body["data"], FREE[body["type"]]: texts.get(ref, REDACTED)}}


@dataclass(slots=True)
class Words:
    """Puts free text in its place, for people, as far as it is there."""

    there: Mapping[str, str] = field(default_factory=dict)
    """Reference -> text."""
    redacted: set[str] = field(default_factory=set)

    def note(self, type: str, data: Mapping[str, Any]) -> None:
        """Look at every event of the log: a redaction comes after what it redacts."""
        if type == "text.redacted":
            self.redacted.update(data["refs"])

    def of(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The data of an event; its text stands beside the reference, whatever the event."""
        return {**data, **{key.removesuffix("_ref"): self.there.get(ref, REDACTED if ref in self.redacted else MISSING)
                           for key, ref in data.items() if key.endswith("_ref")}}
