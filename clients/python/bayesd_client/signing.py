"""What a worker that signs says and believes. `bayesd_schemas.sealed` says why.

It stands between the agent and the line: the agent stays as it is, and hears only what the daemon has said to this
process. Until an answer that names this run has come, nothing fixes the log, so the agent is not told of any.
"""

from collections.abc import Mapping
from typing import Any

from bayesd_schemas.messages import BadMessage, parse
from bayesd_schemas.sealed import NotSigned, Sealer
from bayesd_schemas.topics import Topics

COMPLAINTS_MAX = 20


class Ignored(Exception):
    """A message that is not believed. The text is for people, "" when there is nothing to say."""


class Signing:
    """The key of one process, and what is known of the daemon behind the broker."""

    def __init__(self, key: bytes, name: str, run: str, topics: Topics) -> None:
        self._sealer = Sealer(key, topics.prefix)
        self._name = name
        self._tail = f":{run}"
        self._run = run
        self._topics = topics
        self._log: str | None = None
        """The daemon's log, once it is beyond doubt."""
        self._epoch: Any = None
        self._complaints: set[str] = set()

    @property
    def ready(self) -> bool:
        """Whether anything can be signed yet."""
        return self._sealer.log is not None

    def knows(self, log: object) -> bool:
        """Whether this is the daemon's log beyond doubt."""
        return self._log is not None and log == self._log

    def seal(self, kind: str, message: Mapping[str, Any], log: str | None) -> bytes:
        """A message of the agent, for the log that it belongs to. Raises NotSigned while no log is known."""
        if kind in ("tell", "report"):
            message = {**message, "id": message["id"] + self._tail}
        return self._sealer.seal(self._topics.sent(self._name, kind), message, log)

    def heard(self, said: dict[str, Any]) -> bool:
        """What the topic `daemon` claims; True when the agent may hear it. Raises Ignored for another log."""
        if self._log is not None and said.get("log") != self._log:
            self._complain(f"the topic of the daemon names log {said.get('log')}; this worker works for log "
                           f"{self._log} and believes no other: if the daemon has a new log, start the worker again")
        self._sealer.heard(said)
        self._epoch = said.get("epoch")
        return self._log is not None

    def open(self, kind: str, topic: str, payload: bytes) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """A message to this process, and what the agent must hear of the daemon before it. Raises Ignored."""
        try:
            data = parse(self._sealer.open(topic, payload))
        except (NotSigned, BadMessage) as error:
            self._complain(f"a {kind} that the daemon did not sign with our key was ignored: {error}{_words(payload)}")
        if kind == "stop":
            if self._log is None:
                raise Ignored("")
            return data, None
        id = data.get("id")
        if kind == "receipt" and isinstance(id, str) and id.endswith(self._tail):
            data["id"] = id.removesuffix(self._tail)
        elif data.get("run") != self._run:
            raise Ignored("")            # said to another process of this name
        if self._log is not None:
            return data, None
        self._log = self._sealer.log
        epoch = self._epoch if isinstance(self._epoch, int) and self._epoch > 0 else 1
        return data, {"state": "online", "version": "", "log": self._log, "epoch": epoch}

    def _complain(self, text: str) -> None:
        if text in self._complaints or len(self._complaints) >= COMPLAINTS_MAX:
            raise Ignored("")
        self._complaints.add(text)
        raise Ignored(text)


def _words(payload: bytes) -> str:
    """What an unsigned answer says, for people: perhaps it is the daemon's, and the key is wrong."""
    try:
        said = parse(payload).get("detail")
    except BadMessage:
        return ""
    return f" (it says, unsigned: {said[:300]!r})" if isinstance(said, str) else ""
