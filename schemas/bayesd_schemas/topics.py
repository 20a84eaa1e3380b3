"""Topic names, made and parsed in one place.

`root` is the operator's prefix (`--root acme` puts `acme/` before `bayesd/1`), "" without one.
"""

import re
from typing import NamedTuple

from bayesd_schemas.names import is_name

PROTOCOL = "bayesd/1"
KINDS = ("ask", "beat", "report", "tell")
"""What a worker sends, each at `from/{worker}/{kind}`."""

_is_root = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*").fullmatch


class Origin(NamedTuple):
    """Where an incoming message came from: the identity is the topic, so the broker's ACL is the authority."""

    who: str
    kind: str


class Topics:
    """The topics under one root."""

    def __init__(self, root: str = "") -> None:
        if root and (_is_root(root) is None or len(root) > 200):
            raise ValueError(f"root {root!r} is not a topic prefix, for example acme or acme/tuning")
        self.root = root
        self.prefix = f"{root}/{PROTOCOL}" if root else PROTOCOL
        self.daemon = f"{self.prefix}/daemon"
        self.head = f"{self.prefix}/head"
        self._from = f"{self.prefix}/from/"
        self._admin = f"{self.prefix}/admin/"

    def inbound(self) -> list[str]:
        """The exact filters a daemon subscribes to."""
        return [f"{self.prefix}/from/+/{kind}" for kind in KINDS] + [f"{self.prefix}/admin/+/request"]

    def retained(self) -> list[str]:
        """Filters for the retained topics that a daemon owns and clears when they are not its own."""
        return [f"{self.prefix}/study/+", self.daemon, self.head]

    def sent(self, worker: str, kind: str) -> str:
        return f"{self._from}{worker}/{kind}"

    def to(self, who: str, kind: str) -> str:
        return f"{self.prefix}/to/{who}/{kind}"

    def request(self, client: str) -> str:
        return f"{self._admin}{client}/request"

    def presence(self, worker: str) -> str:
        return f"{self.prefix}/worker/{worker}"

    def study(self, study: str) -> str:
        return f"{self.prefix}/study/{study}"

    def events(self, study: str) -> str:
        return f"{self.prefix}/study/{study}/events"

    def parse(self, topic: str) -> Origin | None:
        """Who sent what, or None for a topic that is not an inbound one of this root.

        The name is returned as it came; check it with `names.is_name` before answering to it.
        """
        if topic.startswith(self._from):
            who, _, kind = topic[len(self._from):].partition("/")
            return Origin(who, kind) if kind in KINDS else None
        if topic.startswith(self._admin):
            who, _, kind = topic[len(self._admin):].partition("/")
            return Origin(who, "request") if kind == "request" else None
        return None

    def study_of(self, topic: str) -> str | None:
        """The study of a `study/{study}` topic, or None."""
        start = f"{self.prefix}/study/"
        name = topic[len(start):] if topic.startswith(start) else ""
        return name if is_name(name) else None
