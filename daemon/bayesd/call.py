"""A request to the daemon and its reply: what every client verb of the command line stands on.

A request is sent again with the same id until its reply comes, over a new connection if need be.
That is safe for writes too, because the daemon answers a copy of (client, id) from its log.
Nothing here needs more than the light install.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bayesd.bus import BrokerAddress, BusError, Caller, Message
from bayesd.config import read_runtime
from bayesd_client.certificate import common_name
from bayesd_schemas.names import is_name
from bayesd_schemas.sealed import NotSigned, Sealer, read_key
from bayesd_schemas.topics import Topics

DEFAULT_BROKER = "mqtt://127.0.0.1:1883"
TIMEOUT_S = 10.0
AGAIN_S = 1.5               # how long to wait for a reply before the same request is sent again
PAST_TIMEOUT_S = 120.0      # an earlier moment is replayed before it is answered about
BUSY_S = 1.0                # how long a daemon that has too much to do is left alone
PAUSE_S = 0.3               # between two connections to a broker that hung up


class NoDaemon(BusError):
    """The broker is there, but nobody answers behind it."""


class Refusal(Exception):
    """The daemon understood and said no; the text says why and what is right."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.code = str(body.get("code", "error"))
        self.key = body.get("key")
        self.example = body.get("example")
        text = str(body.get("message", "the daemon refused"))
        super().__init__(f"{text}. For example: {self.example}" if self.example else text)


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the daemon is to be found, and who asks."""

    address: BrokerAddress
    client: str
    root: str = ""
    timeout_s: float = TIMEOUT_S
    known_as: str | None = None
    """The name by which the broker knows us: the user, else the one in our certificate; None for nobody."""
    key: bytes | None = None
    """What signs our messages and their answers."""

    @property
    def topics(self) -> Topics:
        return Topics(self.root)

    def caller(self, *filters: str, name: str | None = None) -> Caller:
        """A connection under our name, which is also what the broker's access list knows us by."""
        return Caller(self.address, client_id=f"bayesd-{name or self.client}-{secrets.token_hex(4)}", filters=filters)


def find(broker: str | None = None, *, root: str | None = None, client: str | None = None, username: str | None = None,
         password_file: Path | None = None, ca_file: Path | None = None, cert_file: Path | None = None,
         key_file: Path | None = None, timeout_s: float = TIMEOUT_S, sign_key: Path | None = None) -> Reach:
    """The broker that was named, else the one of the daemon that runs on this machine, else the default one."""
    note = None if broker else read_runtime()
    if note is not None and root is None and isinstance(note.get("root"), str):
        root = note["root"]
    address = BrokerAddress.parse(
        broker or (note["broker"] if note is not None else DEFAULT_BROKER), username=username,
        password_file=password_file, ca_file=ca_file, cert_file=cert_file, key_file=key_file)
    known_as = address.username or (common_name(cert_file) if cert_file is not None else None)
    name = client or (clean(known_as) if known_as else f"cli-{secrets.token_hex(4)}")
    if not is_name(name):
        raise ValueError(f"{name!r} is not a client's name: up to 64 of a-z, 0-9, dot, dash and underscore, "
                         "for example alice")
    Topics(root or "")
    return Reach(address, name, root or "", timeout_s, known_as, read_key(sign_key) if sign_key is not None else None)


def clean(text: str) -> str:
    """Some text as a name of the contract. A name that is one already stays what it is."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).lstrip("._-")[:64] or "someone"


def hand_name() -> str:
    """The worker's name of a person who asks and tells by hand: the same at each call, so that tells fit asks."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid{os.getuid()}"
    return clean(f"hand-{user}-{socket.gethostname().split('.')[0]}")


class Voice:
    """How messages are put, and which answers are believed: all of them without a key."""

    def __init__(self, reach: Reach) -> None:
        self._topics = reach.topics
        self._sealer = Sealer(reach.key, self._topics.prefix) if reach.key is not None else None
        self.daemon: str | None = None
        """online or offline, as the topic says."""
        self.complaint: str | None = None
        """Why the last answer was not believed."""

    def put(self, topic: str, message: Mapping[str, Any]) -> bytes | None:
        """A message for a topic, anew for each transmission; None while it cannot be signed yet."""
        if self._sealer is None:
            return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
        return self._sealer.seal(topic, message) if self._sealer.log is not None else None

    def take(self, message: Message) -> dict[str, Any] | None:
        """An answer that is believed."""
        said = read(message)
        if message.topic == self._topics.daemon:
            if said is not None:
                self.daemon = said.get("state")
                if self._sealer is not None:
                    self._sealer.heard(said)
            return None
        if self._sealer is None:
            return said
        try:
            believed: dict[str, Any] = json.loads(self._sealer.open(message.topic, message.payload))
        except (NotSigned, ValueError) as error:
            words = (said or {}).get("detail") or ((said or {}).get("error") or {}).get("message")
            self.complaint = f"An answer was not signed by our key ({error})" + (f"; it says: {words}" if words else "")
            return None
        return believed


class Client:
    """An operator's conversation with the daemon: requests one after another.

        async with Client(reach) as client:
            study = await client.request("study.show", {"study": "digits-svm"})
    """

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self._topics = reach.topics
        self._caller: Caller | None = None
        self._voice = Voice(reach)
        self.at: dict[str, Any] | None = None
        """The moment of the past that the last answer was of."""

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self._hang_up()

    async def _connect(self) -> None:
        caller = self.reach.caller(self._topics.to(self.reach.client, "reply"), self._topics.daemon)
        await caller.__aenter__()
        self._caller = caller

    async def _hang_up(self) -> None:
        caller, self._caller = self._caller, None
        if caller is not None:
            await caller.__aexit__(None, None, None)

    async def request(self, verb: str, args: Mapping[str, Any] | None = None, *, timeout_s: float | None = None,
                      again_s: float = AGAIN_S) -> Any:
        """The result of a verb. Raises Refusal, NoDaemon, or BusError."""
        return (await self.answer(verb, args, timeout_s=timeout_s, again_s=again_s))["result"]

    async def answer(self, verb: str, args: Mapping[str, Any] | None = None, *, timeout_s: float | None = None,
                     again_s: float = AGAIN_S) -> dict[str, Any]:
        """The whole reply, whose status is ok or exists."""
        if (args or {}).get("at") is not None:
            timeout_s = max(self.reach.timeout_s, PAST_TIMEOUT_S) if timeout_s is None else timeout_s
        id = secrets.token_hex(8)
        request = {"id": id, "verb": verb, "args": dict(args or {})}
        topic = self._topics.request(self.reach.client)
        limit_s = self.reach.timeout_s if timeout_s is None else timeout_s
        until = time.monotonic() + limit_s
        trouble: BusError | None = None
        while (left_s := until - time.monotonic()) > 0:
            try:
                if self._caller is None:
                    await self._connect()
                assert self._caller is not None
                payload = self._voice.put(topic, request)
                if payload is not None:
                    await self._caller.publish(topic, payload)
                reply = await self._reply(self._caller, id, min(again_s, left_s), payload is None)
            except BusError as error:
                # A broker that was there a moment ago is likely to come back: it may have been restarted.
                trouble = error
                await self._hang_up()
                await asyncio.sleep(PAUSE_S)
                continue
            trouble = None
            if reply is not None:
                if reply.get("status") != "error":
                    result = reply.get("result")
                    self.at = result.get("at") if isinstance(result, dict) else None
                    return reply
                refusal = Refusal(reply.get("error") or {})
                if refusal.code != "rate" or until - time.monotonic() < BUSY_S:
                    raise refusal
                await asyncio.sleep(BUSY_S)
        raise trouble or NoDaemon(self._silence(limit_s))

    async def _reply(self, caller: Caller, id: str, timeout_s: float, unsent: bool) -> dict[str, Any] | None:
        async for message in caller.messages(timeout_s):
            said = self._voice.take(message)
            if said is not None and said.get("id") == id:
                return said
            if unsent and self._voice.daemon is not None:
                return None
        return None

    def _silence(self, limit_s: float) -> str:
        """Whose silence it is: the broker answered, so it is the daemon that is missing, or the way to it."""
        where = f"The broker at {self.reach.address.url} answers, but no daemon replied within {limit_s:g} s"
        if self._voice.complaint is not None:
            return f"{where} that can be believed. {self._voice.complaint}"
        if self._voice.daemon == "online":
            return (f"{where}, although one is announced there as online: the broker's access list may not let"
                    f" {self.reach.client} write {self._topics.request(self.reach.client)}; try `bayesd doctor`.")
        return (f"{where}: start one with `bayesd serve --broker {self.reach.address.url}`, or check --broker"
                " and --root.")

    async def rows(self, verb: str, name: str, args: Mapping[str, Any] | None = None) -> AsyncIterator[dict[str, Any]]:
        """All rows of a list, page by page."""
        wanted = dict(args or {})
        while True:
            result = await self.request(verb, wanted)
            for row in result.get(name, ()):
                yield row
            if result.get("next") is None:
                return
            wanted["after"] = result["next"]

    async def all(self, verb: str, name: str, args: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        return [row async for row in self.rows(verb, name, args)]


def read(message: Message) -> dict[str, Any] | None:
    """A message as the object that it is, or None."""
    with contextlib.suppress(ValueError):
        said = json.loads(message.payload)
        if isinstance(said, dict):
            return said
    return None


async def once(reach: Reach, verb: str, args: Mapping[str, Any] | None = None) -> Any:
    """One request over a connection of its own."""
    async with Client(reach) as client:
        return await client.request(verb, args)
