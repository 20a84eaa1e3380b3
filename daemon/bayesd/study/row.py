"""One event as bytes: what the desk hands over and what a log stores."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from bayesd.study.canonical import canonical, leaf_hash
from bayesd.study.texts import Text

Fields: TypeAlias = tuple[int, bytes, bytes, str, str | None, int | None, str, str | None]


class Row(NamedTuple):
    """One event as it is stored. `body` is the truth; the rest are copies out of it, in the table's order, and at
    the end the free text that is committed, or deleted, with it."""

    seq: int
    body: bytes
    hash: bytes
    type: str
    study: str | None
    trial: int | None
    actor: str
    cmd: str | None
    texts: tuple[Text, ...] = ()

    @classmethod
    def of(cls, envelope: Mapping[str, Any], texts: tuple[Text, ...] = ()) -> "Row":
        """The row of an envelope, whose `seq` and `prev` are already set."""
        body = canonical(envelope)
        return cls(envelope["seq"], body, leaf_hash(body), envelope["type"], envelope.get("study"),
                   envelope.get("trial"), envelope["actor"], envelope.get("cmd"), texts)

    @property
    def fields(self) -> Fields:
        return self[:8]
