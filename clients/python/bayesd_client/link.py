"""The worker's line to the broker. Only this file knows aiomqtt.

A line that is down is the ordinary case: `Link.run` connects again for ever, with a pause that
doubles and jitter, and tells its owner when it is up and when it is down. What is sent while it
is down is dropped; the agent says everything again after a connect. Messages go out at QoS 0,
because the daemon's receipts are what counts and a PUBACK costs a turn; the inbox is subscribed
at QoS 1.
"""

import asyncio
import contextlib
import logging
import os
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiomqtt

from bayesd_client.certificate import common_name, ended
from bayesd_client.errors import BadAddress
from bayesd_schemas.address import shown

PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 60.0
KEEPALIVE_S = 30
SILENT = logging.getLogger("bayesd_client.mqtt")      # what the library has to say, we say in words
SILENT.propagate = False
SILENT.addHandler(logging.NullHandler())
OUTBOX_MAX = 10_000    # when full, the message is dropped: the agent sends again what matters


@dataclass(frozen=True, slots=True)
class Tls:
    """The certificate files. They are read at each connect, so that a renewed certificate needs no restart."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def context(self) -> ssl.SSLContext:
        """Checks the broker's certificate and its name, always. Raises BadAddress."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            raise BadAddress(f"the certificate files cannot be used: {error}") from error
        return context


@dataclass(frozen=True, slots=True)
class Address:
    """Where the broker is and who we are there."""

    host: str
    port: int
    user: str | None = None
    password: str | None = None
    tls: Tls | None = None
    name: str | None = None
    """Our name at the broker: the user, else the one in our certificate."""

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


def address(url: str, password_file: str | os.PathLike[str] | None = None, ca_file: str | None = None,
            cert_file: str | None = None, key_file: str | None = None) -> Address:
    """Read `mqtt://user@host:port` or `mqtts://…`; the password comes from a file.

    The file is `password_file`, else the one that BAYESD_PASSWORD_FILE names. Raises BadAddress.
    """
    try:
        parts = urlsplit(url if "://" in url else f"mqtt://{url}")
        port = parts.port
    except ValueError:
        # What urllib says quotes the part that it does not understand, and that may be a password with a slash.
        raise BadAddress(f"{shown(url)!r} is not a broker's address, or its port no number up to 65535, for example "
                         "mqtt://localhost:1883") from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise BadAddress(f"{shown(url)!r} is not a broker's address, for example mqtt://localhost or "
                         "mqtts://gpu-07@broker.example:8883")
    if parts.password is not None:
        raise BadAddress("a password in an address can be read in the list of processes; put it into a file and "
                         "name it with --password-file or BAYESD_PASSWORD_FILE")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadAddress(f"{shown(url)!r} has something after the port, for example mqtt://localhost:1883 has not")
    secure = parts.scheme == "mqtts"
    if not secure and (ca_file or cert_file or key_file):
        raise BadAddress(f"certificates are given, but {url!r} is not encrypted: write mqtts:// instead of mqtt://")
    user = unquote(parts.username) if parts.username else None
    tls = Tls(ca_file, cert_file, key_file) if secure else None
    if tls is not None:
        tls.context()
    return Address(parts.hostname, port or (8883 if secure else 1883), user, _password(password_file), tls,
                   user or (common_name(cert_file) if cert_file else None))


def _password(file: str | os.PathLike[str] | None) -> str | None:
    file = file or os.environ.get("BAYESD_PASSWORD_FILE")
    if not file:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadAddress(f"the password file {str(file)!r} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Presence:
    """The retained sign of life, and the last will that takes it back."""

    topic: str
    online: bytes
    offline: bytes


Received = Callable[[str, bytes, bool], None]
"""(topic, payload, retained)"""


class Link:
    """One connection at a time, for ever. The three callbacks run on the event loop."""

    def __init__(self, address: Address, client_id: str, subscriptions: Sequence[str], presence: Presence,
                 up: Callable[[], None], down: Callable[[], None], received: Received,
                 say: Callable[[str], None]) -> None:
        self._address = address
        self._client_id = client_id
        self._subscriptions = [(topic, 1) for topic in subscriptions]
        self._presence = presence
        self._up = up
        self._down = down
        self._received = received
        self._say = say
        self._outbox: asyncio.Queue[tuple[str, bytes]] | None = None
        self._has_ended = False
        self._random = random.Random()  # noqa: S311  # a pause between tries is no secret

    def send(self, topic: str, payload: bytes) -> None:
        """Publish soon, in order; dropped when the line is down or far behind."""
        if self._outbox is not None:
            with contextlib.suppress(asyncio.QueueFull):
                self._outbox.put_nowait((topic, payload))

    async def run(self, leave: asyncio.Event) -> None:
        """Keep the line up until `leave` is set; then empty the presence and close it."""
        tries = 0
        said = ""
        while not leave.is_set():
            self._say_if_ended()
            try:
                async with self._client() as client:
                    await client.subscribe(self._subscriptions)
                    if tries:
                        self._say(f"connected to {self._address} again")
                    tries, said = 0, ""
                    await self._serve(client, leave)
            except (aiomqtt.MqttError, OSError, BadAddress) as error:
                words = _words(error, self._address)
                if words != said and not leave.is_set():
                    said = words
                    self._say(f"warning: {words}; trying again for as long as it takes")
                pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(tries, 10))
                tries += 1
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._random.uniform(pause_s / 2, pause_s)):
                        await leave.wait()

    def _say_if_ended(self) -> None:
        """Once: a broker that refuses a certificate hangs up without a word, and that shows as a timeout."""
        file = self._address.tls.cert_file if self._address.tls is not None else None
        end = ended(file) if file else None
        if end is not None and not self._has_ended:
            self._say(f"warning: our certificate {file} ended on {end:%Y-%m-%d}, so the broker will hang up: put a new "
                      "one in its place (bayesd deploy certs FOLDER --renew makes it); it is read at the next try")
        self._has_ended = end is not None

    def _client(self) -> aiomqtt.Client:
        place = self._address
        return aiomqtt.Client(
            place.host, place.port, username=place.user, password=place.password,
            tls_context=place.tls.context() if place.tls is not None else None,
            identifier=self._client_id, clean_session=True, keepalive=KEEPALIVE_S,
            will=aiomqtt.Will(self._presence.topic, self._presence.offline, qos=1, retain=True),
            logger=SILENT,
            # Without it a round trip takes 48 ms instead of 0.3 ms (delayed acknowledgements).
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)])

    async def _serve(self, client: aiomqtt.Client, leave: asyncio.Event) -> None:
        await client.publish(self._presence.topic, self._presence.online, qos=1, retain=True)
        self._outbox = asyncio.Queue(OUTBOX_MAX)
        tasks = {asyncio.create_task(self._read(client), name="link reader"),
                 asyncio.create_task(self._write(client, self._outbox), name="link writer"),
                 asyncio.create_task(leave.wait(), name="link leave")}
        try:
            self._up()
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if leave.is_set():
                while not self._outbox.empty():
                    topic, payload = self._outbox.get_nowait()
                    await client.publish(topic, payload, qos=0)
                await client.publish(self._presence.topic, b"", qos=1, retain=True, timeout=2)
            for task in done:
                task.result()
        finally:
            self._outbox = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._down()

    async def _read(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            if isinstance(message.payload, bytes):
                self._received(message.topic.value, message.payload, bool(message.retain))

    async def _write(self, client: aiomqtt.Client, outbox: asyncio.Queue[tuple[str, bytes]]) -> None:
        while True:
            topic, payload = await outbox.get()
            await client.publish(topic, payload, qos=0)


def _words(error: Exception, address: Address) -> str:
    text = str(error) or type(error).__name__
    if "authori" in text.lower() or "password" in text.lower():
        who = f"user {address.user}" if address.user else "a client without user"
        return f"the broker {address} refused {who} ({text}): check the user and --password-file"
    if address.tls is not None and "timed out" in text.lower():
        text += "; a broker that wants a certificate of ours hangs up so when it gets none, or one that has ended"
    return f"no connection to the broker {address} ({text})"
