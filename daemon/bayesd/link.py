"""One MQTT connection, from its dialling to its loss: where the broker is, who we are, bytes in and out.

This is the only file of the daemon that knows aiomqtt.

How it is fast. aiomqtt (and paho inside it) dials, logs in, subscribes, pings and does TLS.
PUBLISH and PUBACK, nearly all of the traffic, do not pass through paho: it makes three system
calls to read a message and one to write each, and takes about eight locks between. We read
what the socket has into one buffer, cut the packets out of it, and gather what goes out into
one write a turn of the event loop. paho is handed a socket of ours (`_PahoSocket`), on which it
sees only the packets that are its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import aiomqtt

from bayesd_client.certificate import ended
from bayesd_schemas.address import shown

if TYPE_CHECKING:
    from paho.mqtt.client import Client as PahoClient

CONNECT_TIMEOUT_S = 5.0
MESSAGE_OVERHEAD_BYTES = 128           # what a waiting message costs in memory beside its bytes
UNACKED_MAX = 1000                     # QoS 1 messages on their way to the broker; more wait in the queue
WRITE_HIGH_BYTES = 1024 * 1024         # a broker that reads slower than this much behind makes messages wait
READ_BYTES = 64 * 1024                 # about 200 messages, after which others have their turn
PACKET_MAX_BYTES = 1024 * 1024         # a larger packet is skipped, acknowledged and counted, never held
FIRST_PUBLISH_ID = 1024                # packet ids below are left to paho, which numbers subscriptions from 1

Ack = Callable[[], None]


class BusError(Exception):
    """The broker cannot be used; the text says whose fault it is and what to do."""


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes in our name when the connection dies without a goodbye."""

    topic: str
    payload: bytes
    retain: bool = True


# --- Where the broker is, and who we are -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is and who we say we are. A password lives in a file and is read at each connect."""

    host: str = "127.0.0.1"
    port: int = 1883
    tls: bool = False
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        username: str | None = None,
        password_file: Path | str | None = None,
        ca_file: Path | str | None = None,
        cert_file: Path | str | None = None,
        key_file: Path | str | None = None,
    ) -> BrokerAddress:
        """Reads `mqtt://[user@][host][:port]` or `mqtts://...`; the secrets come in files, never in the URL."""
        example = "write mqtt://HOST, mqtt://HOST:PORT, or mqtts://HOST for TLS"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            # What urllib says quotes the part that it does not understand, and that may be a password with a slash.
            raise BusError(f"The broker address {shown(url)!r} is not a URL, or its port no number up to 65535:"
                           f" {example}.") from None
        if parts.password is not None:
            # The URL is not repeated here: the sentence would carry the password into a log.
            raise BusError(
                "The broker address holds a password, which everyone on this machine can read in the list of"
                " processes: put it into a file that only you can read, and name that file as the password file.")
        if parts.scheme not in ("mqtt", "mqtts"):
            raise BusError(f"The broker address {shown(url)!r} does not begin with mqtt:// or mqtts://: {example}.")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise BusError(f"The broker address {shown(url)!r} has something after the port: {example}.")
        tls = parts.scheme == "mqtts"
        if not tls and (ca_file or cert_file or key_file):
            raise BusError(f"Certificates are given, but {shown(url)!r} is not encrypted: write mqtts:// instead of"
                           " mqtt://.")
        if key_file and not cert_file:
            raise BusError("A key file is given without its certificate: name the certificate file as well.")
        name = username if username is not None else unquote(parts.username) if parts.username else None
        if password_file is not None and name is None:
            raise BusError("A password file is given without a user name: name the user as well.")
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=port or (8883 if tls else 1883),
            tls=tls,
            username=name,
            password_file=Path(password_file) if password_file is not None else None,
            ca_file=Path(ca_file) if ca_file is not None else None,
            cert_file=Path(cert_file) if cert_file is not None else None,
            key_file=Path(key_file) if key_file is not None else None,
        )

    @property
    def url(self) -> str:
        """The address for people; it never holds a secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    def check(self) -> None:
        """Reads every file once, so that a wrong setting shows at the start and not at the first connect."""
        self.password()
        self.tls_context()

    def password(self) -> str | None:
        """The first line of the password file."""
        if self.password_file is None:
            return None
        try:
            text = self.password_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BusError(
                f"The password file {self.password_file} cannot be read ({os_reason(error)}):"
                " check its path and its permissions.") from error
        return text.splitlines()[0] if text else ""

    def tls_context(self) -> ssl.SSLContext | None:
        """Checks the broker's certificate and its name, always; there is no switch to turn that off."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        except (OSError, ssl.SSLError) as error:
            raise BusError(
                f"The file of trusted certificates {self.ca_file} cannot be used ({os_reason(error)}):"
                " it must hold PEM certificates and be readable.") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert_file is not None:
            try:
                # An encrypted key would make OpenSSL ask on the terminal; a daemon has none.
                context.load_cert_chain(self.cert_file, self.key_file, password=_no_passphrase)
            except (OSError, ssl.SSLError, ValueError) as error:
                raise BusError(
                    f"Our certificate {self.cert_file} with key {self.key_file or self.cert_file} cannot be used"
                    f" ({os_reason(error)}): both must be PEM, belong together, be readable, and the key"
                    " must not be encrypted.") from error
        return context


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted")


def os_reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


# --- One connection ------------------------------------------------------------------------------


def _no_ack() -> None:
    """QoS 0 has nothing to acknowledge."""


class _PahoSocket:
    """The socket that paho sees: it reads only the packets that are paho's own, and writes into our buffer."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.unread = b""
        self.ended = False

    def recv(self, size: int) -> bytes:
        if not self.unread:
            if self.ended:
                return b""
            raise BlockingIOError
        head, self.unread = self.unread[:size], self.unread[size:]
        return head

    def send(self, data: bytes | bytearray) -> int:
        self._link.write(data)
        return len(data)

    def pending(self) -> int:
        return len(self.unread)

    def fileno(self) -> int:
        return self._link.fileno()

    def setblocking(self, flag: bool) -> None:
        """paho sets this before it hands the socket over; there is nothing left to set."""

    def close(self) -> None:
        self._link.shut()


class Outgoing(NamedTuple):
    """A message on its way out, and how often it was sent without an answer."""

    topic: str
    payload: bytes
    retain: bool
    qos: int
    tries: int = 0

    @property
    def size_bytes(self) -> int:
        return len(self.topic) + len(self.payload) + MESSAGE_OVERHEAD_BYTES


class Link:
    """One connection from its dialling to its loss. It is never used twice.

    `deliver` gets topic, payload, ack and whether the message was retained, straight from the
    reader; `on_room` is called when more may be sent than could be before.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        will: Will | None,
        keepalive_s: int,
        deliver: Callable[[str, bytes, Ack, bool], None],
        on_room: Callable[[], None],
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._will = will
        self._keepalive_s = keepalive_s
        self._deliver = deliver
        self._on_room = on_room
        self._loop = asyncio.get_running_loop()
        self._client: aiomqtt.Client | None = None
        self._sock: socket.socket | None = None
        self._paho_socket = _PahoSocket(self)
        self._tls_sock: ssl.SSLSocket | None = None
        self._partial = bytearray()      # the beginning of a packet whose end has not come; see PACKET_MAX_BYTES
        self._partial_need = 0           # with fewer bytes than this there is nothing to parse
        self._skip_bytes = 0             # what is left of a packet that was too large
        self._out = bytearray()          # whole packets, and the rest of one; see WRITE_HIGH_BYTES
        self._flush_due = False
        self._writer_set = False
        self._next_id = FIRST_PUBLISH_ID
        self._leaving = False
        self._freed = False              # PUBACKs came, so that more may be sent
        self._watcher: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.unacked: dict[int, Outgoing] = {}   # at most UNACKED_MAX, in the order of sending
        self.skipped = 0
        self.failure: BaseException | None = None
        self.reason = "the broker closed the connection"

    # Opening

    async def open(self, filters: Sequence[str], qos: int) -> None:
        """Connects, logs in and subscribes, or raises a BusError with the sentence for people."""
        await self._dial()
        self._watcher = self._loop.create_task(self._watch(), name="mqtt connection")
        try:
            await self.subscribe(filters, qos)
        except BaseException:
            await self.end()
            raise

    async def _dial(self) -> None:
        # Files are read at each connect, so that a new certificate or password needs no restart.
        password, context = await asyncio.to_thread(
            lambda: (self._address.password(), self._address.tls_context()))
        if context is not None:
            self._remember_tls_socket(context)
        will = self._will
        client = self._client = aiomqtt.Client(
            self._address.host,
            self._address.port,
            username=self._address.username,
            password=password,
            tls_context=context,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=True,
            will=aiomqtt.Will(will.topic, will.payload, 1, will.retain) if will else None,
            keepalive=self._keepalive_s,
            timeout=CONNECT_TIMEOUT_S,
            # Without it a QoS 1 round trip waits for Nagle and delayed acknowledgements: 48 ms, not 0.3 ms.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            logger=_SILENT,
        )
        paho = client._client
        paho.connect_timeout = CONNECT_TIMEOUT_S
        dropped = self._watch_for_early_end(paho)
        entering = self._loop.create_task(client.__aenter__(), name="mqtt connect")
        try:
            await asyncio.wait((entering, dropped), return_when=asyncio.FIRST_COMPLETED)
            if not entering.done():
                raise BusError(f"The broker at {self._address.url} closed the connection before it answered: "
                               f"{_why_closed(self._address)}.")
            try:
                entering.result()
            except aiomqtt.MqttError as error:
                raise BusError(_sentence(error, self._address)) from error
            except UnicodeError as error:
                raise BusError(
                    f"The host name {self._address.host!r} of the broker cannot be one: check its spelling.") from error
            self._take_over(paho)
        except BaseException:
            entering.cancel()
            await asyncio.wait((entering,))
            self._abandon(paho)
            if self._tls_sock is not None:
                self._tls_sock.close()
            raise

    def _remember_tls_socket(self, context: ssl.SSLContext) -> None:
        """paho loses its socket when the handshake fails, without closing it."""
        wrap = context.wrap_socket

        def remember(*args: Any, **kwargs: Any) -> ssl.SSLSocket:
            self._tls_sock = wrap(*args, **kwargs)
            return self._tls_sock

        context.wrap_socket = remember   # type: ignore[method-assign]

    def _watch_for_early_end(self, paho: PahoClient) -> asyncio.Future[None]:
        """aiomqtt overlooks a connection that ends before its CONNACK, and would wait the whole timeout."""
        dropped: asyncio.Future[None] = self._loop.create_future()
        on_connect, on_disconnect = paho.on_connect, paho.on_disconnect
        answered = False

        def answer(*args: Any) -> None:
            nonlocal answered
            answered = True
            on_connect(*args)   # type: ignore[misc]   # aiomqtt has just set it

        def end(*args: Any) -> None:
            on_disconnect(*args)   # type: ignore[misc]   # aiomqtt has just set it
            if not answered and not dropped.done():
                dropped.set_result(None)

        paho.on_connect, paho.on_disconnect = answer, end
        return dropped

    def _take_over(self, paho: PahoClient) -> None:
        """Puts our reader and writer between the socket and paho. Clean session: nothing can have come yet."""
        sock = paho.socket()
        if sock is None:
            raise BusError(f"The broker at {self._address.url} closed the connection after it had accepted it.")
        assert isinstance(sock, socket.socket), "only plain TCP and TLS are ever dialled"
        self._sock = sock
        self._loop.remove_reader(sock.fileno())
        self._loop.remove_writer(sock.fileno())
        paho.on_socket_register_write = self._on_paho_writes
        paho.on_socket_unregister_write = None
        paho._sock = self._paho_socket
        read = self._on_readable_tls if isinstance(sock, ssl.SSLSocket) else self._on_readable
        self._loop.add_reader(sock.fileno(), read)
        self._loop.call_soon(read)   # TLS may hold decrypted bytes that no selector will announce

    def _abandon(self, paho: PahoClient) -> None:
        """Leaves nothing of a failed try in the event loop, not even what a thread that still dials may open."""
        paho.on_disconnect = None
        paho.on_socket_open = lambda _client, _userdata, sock: sock.close()
        if paho.socket() is not None:
            paho._sock_close()
        paho.on_socket_close = None
        paho.on_socket_register_write = None

    async def subscribe(self, filters: Sequence[str], qos: int) -> None:
        if not filters:
            return
        assert self._client is not None
        asking = self._loop.create_task(
            self._client.subscribe([(each, qos) for each in filters]), name="mqtt subscribe")
        try:
            await asyncio.wait((asking, self._ended), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise BusError(f"The broker at {self._address.url} hung up when we subscribed: {self.reason}.")
            codes = asking.result()
        except aiomqtt.MqttError as error:
            raise BusError(f"The broker at {self._address.url} did not answer our subscription: {error}.") from error
        finally:
            asking.cancel()
        refused = [each for each, code in zip(filters, codes, strict=False) if _code(code) >= 0x80]
        if refused:
            raise BusError(
                f"The broker at {self._address.url} refuses our subscription to {', '.join(refused)}:"
                f" let its access list grant reading to {_who(self._address)}.")

    async def wait_ended(self) -> None:
        """Returns when the connection is gone; `reason` and `failure` say why."""
        assert self._watcher is not None
        await asyncio.wait((self._watcher,))

    async def end(self) -> None:
        """Hangs up without a goodbye, unless it was said, and leaves nothing in the event loop."""
        self.abort(self.reason)
        if self._watcher is not None:
            await asyncio.wait((self._watcher,))

    async def _watch(self) -> None:
        """Waits for the end as aiomqtt sees it: silence beyond the keep-alive is known to paho only."""
        assert self._client is not None
        try:
            async for _ in self._client.messages:   # messages never come this way; the end of the connection does
                pass
        except aiomqtt.MqttError as error:
            if isinstance(error.__cause__, aiomqtt.MqttCodeError) and "alive" in str(error.__cause__).lower():
                self.reason = f"the broker was silent for {self._keepalive_s} s"
        finally:
            self._abandon(self._client._client)
            self.shut()

    # Reading

    def _on_readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            data = sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            self.abort(os_reason(error))
            return
        if not data:
            self.abort(self.reason)
            return
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            data = data[skipped:]
        if self._partial:
            self._partial += data
            if len(self._partial) < self._partial_need:
                return
            data = bytes(self._partial)
            self._partial.clear()
        try:
            used = self._parse(data)
        except _MalformedError as error:
            self.abort(f"the broker sent something that is not MQTT ({error})")
            return
        except BaseException as error:
            # A bug in the receiver must not pass as a lost connection: run() raises it.
            self.failure = error
            self.abort("the receiver of messages failed")
            return
        if used < len(data):
            self._partial += data[used:]
        if self._freed:
            self._freed = False
            self._on_room()

    def _on_readable_tls(self) -> None:
        self._on_readable()
        sock = self._sock
        if isinstance(sock, ssl.SSLSocket):
            if sock.pending():
                self._loop.call_soon(self._on_readable_tls)
            if self._out:
                self._flush()   # TLS may have waited for these bytes before it could write

    def _parse(self, data: bytes) -> int:
        """Handles every whole packet and returns how many bytes were used."""
        position, end = 0, len(data)
        self._partial_need = 0
        deliver, leaving = self._deliver, self._leaving
        while end - position >= 2:
            first = data[position]
            body, length = position + 2, data[position + 1]
            if length & 0x80:
                length &= 0x7F
                shift = 7
                while True:
                    if body == end:
                        return position
                    byte = data[body]
                    body += 1
                    length |= (byte & 0x7F) << shift
                    if not byte & 0x80:
                        break
                    shift += 7
                    if shift > 21:
                        raise _MalformedError("a length of more than four bytes")
            stop = body + length
            if stop > end:
                if length > PACKET_MAX_BYTES:
                    return self._skip(data, position, body, stop)
                self._partial_need = stop - position
                return position
            kind = first & 0xF0
            if kind == 0x30:
                if length < 2:
                    raise _MalformedError("a PUBLISH without a topic")
                topic_end = body + 2 + (data[body] << 8 | data[body + 1])
                ack: Ack = _no_ack
                payload_start = topic_end
                if first & 0x06:
                    payload_start += 2
                    if payload_start <= stop:
                        ack = partial(self.acknowledge, data[topic_end] << 8 | data[topic_end + 1])
                if payload_start > stop:
                    raise _MalformedError("a PUBLISH shorter than its topic")
                if not leaving:
                    try:
                        topic = data[body + 2:topic_end].decode()
                    except UnicodeDecodeError:
                        self.skipped += 1
                        ack()
                    else:
                        deliver(topic, data[payload_start:stop], ack, first & 1 == 1)
            elif kind == 0x40 and length == 2:
                self._freed = self.unacked.pop(data[body] << 8 | data[body + 1], None) is not None or self._freed
            else:
                self._hand_to_paho(data[position:stop])
            position = stop
            if self._sock is None:
                return end
        return position

    def _skip(self, data: bytes, position: int, body: int, stop: int) -> int:
        """Passes over a packet that is too large to hold; it must be acknowledged, or it would come for ever."""
        end = len(data)
        if data[position] & 0xF0 != 0x30:
            raise _MalformedError(f"a packet of {stop - position} bytes that is no PUBLISH")
        mid_start = body + 2 + (data[body] << 8 | data[body + 1]) if end - body >= 2 else end
        if mid_start + 2 > end:
            self._partial_need = (mid_start + 2 if mid_start < end else end + 1) - position
            return position
        if data[position] & 0x06:
            self.acknowledge(data[mid_start] << 8 | data[mid_start + 1])
        self.skipped += 1
        self._skip_bytes = stop - end
        return end

    def acknowledge(self, packet_id: int) -> None:
        """Sends the PUBACK; for a connection that is gone it does nothing."""
        if self._sock is not None and not self._leaving:
            self.write(bytes((0x40, 2, packet_id >> 8, packet_id & 0xFF)))

    def _on_paho_writes(self, paho: PahoClient, _userdata: object, _sock: object) -> None:
        self._loop.call_soon(paho.loop_write)

    def _hand_to_paho(self, packet: bytes) -> None:
        assert self._client is not None
        self._paho_socket.unread += packet
        self._client._client.loop_read()

    # Writing

    def has_room(self, qos: int) -> bool:
        return self._sock is not None and len(self._out) < WRITE_HIGH_BYTES and (
            qos == 0 or len(self.unacked) < UNACKED_MAX)

    @property
    def idle(self) -> bool:
        """Everything is in the hands of the broker (QoS 1) or of the kernel (QoS 0)."""
        return not self._out and not self.unacked

    def publish(self, message: Outgoing) -> None:
        topic, payload, retain, qos, tries = message
        name = topic.encode()
        size = 2 + len(name) + len(payload)
        if qos:
            assert qos == 1, "QoS 2 is never used"
            packet_id = self._next_id
            while packet_id in self.unacked:
                packet_id = packet_id + 1 if packet_id < 0xFFFF else FIRST_PUBLISH_ID
            self._next_id = packet_id + 1 if packet_id < 0xFFFF else FIRST_PUBLISH_ID
            self.unacked[packet_id] = Outgoing(topic, payload, retain, qos, tries + 1)
            head = bytes((0x33 if retain else 0x32, *_varint(size + 2), len(name) >> 8, len(name) & 0xFF))
            self.write(b"%b%b%b%b" % (head, name, packet_id.to_bytes(2, "big"), payload))
        else:
            head = bytes((0x31 if retain else 0x30, *_varint(size), len(name) >> 8, len(name) & 0xFF))
            self.write(b"%b%b%b" % (head, name, payload))

    def write(self, packet: bytes | bytearray) -> None:
        """Adds a whole packet; one system call at the end of this turn of the loop sends all of them."""
        self._out += packet
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        sock = self._sock
        if sock is None:
            return
        was_full = len(self._out) >= WRITE_HIGH_BYTES
        wants_to_read = False
        try:
            sent = sock.send(self._out) if self._out else 0
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
            sent = 0
        except ssl.SSLWantReadError:
            sent, wants_to_read = 0, True   # waiting to write would spin; _on_readable_tls calls us
        except OSError as error:
            self.abort(os_reason(error))
            return
        del self._out[:sent]
        self._flush_due = bool(self._out)   # what is left is sent when the selector calls, not in the next turn
        wants_to_write = self._flush_due and not wants_to_read
        if wants_to_write and not self._writer_set:
            self._loop.add_writer(sock.fileno(), self._flush)
        elif self._writer_set and not wants_to_write:
            self._loop.remove_writer(sock.fileno())
        self._writer_set = wants_to_write
        if (was_full and len(self._out) < WRITE_HIGH_BYTES) or not self._out:
            self._on_room()

    # Ending

    async def leave(self, timeout_s: float) -> None:
        """Says goodbye and waits for the broker to hang up.

        A socket that is closed with unread bytes resets the connection, and a reset may overtake
        our last messages and the goodbye itself: so the other side closes first.
        """
        if self._sock is None:
            return
        self._leaving = True
        self.reason = "we said goodbye"
        self.write(b"\xe0\x00")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._ended)
        self.abort(self.reason)

    def fileno(self) -> int:
        return self._sock.fileno() if self._sock is not None else -1

    def abort(self, reason: str) -> None:
        """Lets paho find the end of its socket, which closes ours."""
        if self._sock is None:
            return
        self.reason = reason
        self._paho_socket.ended = True
        assert self._client is not None
        self._client._client.loop_read()
        self.shut()

    def shut(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()
        if not self._ended.done():
            self._ended.set_result(None)


class _MalformedError(Exception):
    """These bytes are not MQTT."""


def _varint(size: int) -> tuple[int, ...]:
    if size < 0x80:
        return (size,)
    if size < 0x4000:
        return (size & 0x7F | 0x80, size >> 7)
    return (size & 0x7F | 0x80, *_varint(size >> 7))


def _silent_logger() -> logging.Logger:
    """paho reports each failed system call as an error; one sentence an outage is ours to say."""
    silent = logging.Logger("mqtt")   # not in the tree, so that nobody's settings wake it
    silent.disabled = True
    return silent


_SILENT = _silent_logger()


# --- Why it did not work -------------------------------------------------------------------------


def _code(code: object) -> int:
    return int(getattr(code, "value", code))   # type: ignore[call-overload, no-any-return]


def _why_closed(address: BrokerAddress) -> str:
    """What a broker may mean that hangs up without a word: over TLS 1.3 that is how it refuses a certificate, too."""
    if not address.tls:
        return "check that it speaks MQTT there, and without TLS"
    if address.cert_file is None:
        return "it may want a certificate of ours (--cert-file, --key-file), or speaks no MQTT with TLS there"
    end = ended(address.cert_file)
    if end is not None:
        return (f"our certificate {address.cert_file} ended on {end:%Y-%m-%d}; bayesd deploy certs FOLDER --renew, "
                "then copy it and its key to here")
    return (f"it may not take our certificate {address.cert_file} (another authority's, or not valid by its clock), "
            "or speaks no MQTT with TLS there")


def _who(address: BrokerAddress) -> str:
    return f"user {address.username!r}" if address.username else "clients without a login"


def _sentence(error: Exception, address: BrokerAddress) -> str:
    """One sentence for people: what went wrong at which broker, and what to do."""
    where = f"The broker at {address.url}"
    if isinstance(error, aiomqtt.MqttCodeError) and error.rc is not None:
        # CONNACK codes of MQTT 3.1.1, and the MQTT 5 codes into which paho translates them.
        match _code(error.rc):
            case 1 | 132:
                return f"{where} does not speak MQTT 3.1.1: turn that version on there."
            case 2 | 133:
                return f"{where} does not accept our client id: let its settings allow it."
            case 3 | 136:
                return f"{where} says that it is unavailable: look into its log."
            case 4 | 134 | 5 | 135:
                how = f"user {address.username!r}" if address.username else "without a user name"
                return (f"{where} refused our login {'as ' if address.username else ''}{how}: check the"
                        " user name, the password file and, with certificates, the name in ours.")
        return f"{where} refused the connection: {error}."
    # aiomqtt keeps only the text of an OSError; the error itself is still in the context.
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(cause, socket.gaierror):
        return f"The host name {address.host!r} of the broker is not known: check its spelling and the name service."
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (f"The certificate of the broker at {address.url} is not to be trusted ({cause.verify_message}):"
                " name the right file of trusted certificates, or reach the broker under the name that is in its"
                " certificate.")
    if isinstance(cause, ssl.SSLError):
        return (f"{where} does not agree on TLS ({cause.reason or cause}): check the port, and whether"
                " the broker wants a certificate of ours.")
    if isinstance(cause, ConnectionRefusedError):
        return f"Nothing listens at {address.url}: start the broker, or check the address."
    if isinstance(cause, TimeoutError) or "timed out" in str(error):
        return f"{where} does not answer within {CONNECT_TIMEOUT_S:g} s: check address and firewall."
    detail = os_reason(cause) if isinstance(cause, OSError) else str(error)
    return f"{where} cannot be reached ({detail}): check the address and the network."
