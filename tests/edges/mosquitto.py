"""Helpers for tests of the MQTT edge: a real mosquitto on loopback, and a fake broker that shows every packet."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

CONNACK = b"\x20\x02\x00\x00"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing(what: str, reason: str) -> None:
    """Skips, unless everything was asked for: then what is missing is a failure."""
    if os.environ.get("BAYESD_TEST_ALL") == "1":
        pytest.fail(f"BAYESD_TEST_ALL=1, but {what} is missing: {reason}")
    pytest.skip(f"{what} is missing: {reason}")


def binary(name: str = "mosquitto") -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if found is None:
        missing(name, "install the package of that name to run this test")
        raise AssertionError("unreachable")
    return found


class Mosquitto:
    """A mosquitto without persistence, on one port for all its lives."""

    def __init__(self, folder: Path, *settings: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.config = folder / f"mosquitto-{self.port}.conf"
        lines = [f"listener {self.port} 127.0.0.1", "set_tcp_nodelay true", "persistence false",
                 "user root",   # another user could not read the files of a test that root runs
                 "max_queued_messages 100000", "log_dest none", *settings]
        if not any(each.startswith("allow_anonymous") for each in settings):
            lines.append("allow_anonymous true")
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [binary(), "-c", str(self.config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                assert self._process.poll() is None, f"mosquitto ended: is {self.config} right?"
                assert time.monotonic() < deadline_s, "mosquitto does not open its port"
                time.sleep(0.005)   # mosquitto has no way to tell us
            else:
                return

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def publish_packet(topic: str, payload: bytes, packet_id: int | None = None, *, retained: bool = False) -> bytes:
    """A PUBLISH, with QoS 1 when it has an id."""
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name
    body += packet_id.to_bytes(2, "big") if packet_id is not None else b""
    body += payload
    size, length = len(body), b""
    while True:
        length += bytes((size & 0x7F | (0x80 if size > 0x7F else 0),))
        size >>= 7
        if not size:
            return bytes((0x30 | (2 if packet_id is not None else 0) | retained,)) + length + body


class FakeBroker:
    """Answers CONNECT, SUBSCRIBE and PINGREQ, and shows every other packet it gets; nothing else is sent unasked."""

    def __init__(self, *, connack: bytes = CONNACK, suback_code: int = 1, puback: bool = False) -> None:
        self.connack: bytes | None = connack   # None: hang up without an answer
        self.suback_code = suback_code
        self.puback = puback
        self.packets: asyncio.Queue[bytes] = asyncio.Queue()
        self.connects: asyncio.Queue[bytes] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []
        self._handlers: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.hang_up()
        if self._handlers:
            await asyncio.wait(self._handlers)   # or a later test is blamed for their open sockets
        await self._server.wait_closed()

    def hang_up(self) -> None:
        for writer in self.writers:
            writer.close()
        self.writers.clear()

    def send(self, *packets: bytes) -> None:
        """To the client that came last."""
        self.writers[-1].write(b"".join(packets))

    async def packet(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.packets.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                packet = await self._read(reader)
                match packet[0] & 0xF0:
                    case 0x10:
                        self.connects.put_nowait(packet)
                        if self.connack is None:
                            break
                        writer.write(self.connack)
                    case 0x80:
                        # The filters: two bytes of length, the filter, one byte of QoS each; after length and id.
                        start, count = 4, 0
                        while start < len(packet):
                            start += 3 + int.from_bytes(packet[start:start + 2], "big")
                            count += 1
                        writer.write(bytes((0x90, 2 + count)) + packet[2:4] + bytes([self.suback_code] * count))
                    case 0xC0:
                        writer.write(b"\xd0\x00")
                    case 0xE0:
                        self.packets.put_nowait(packet)
                        break
                    case _:
                        self.packets.put_nowait(packet)
                        if self.puback and packet[0] & 0xF6 == 0x32:
                            writer.write(b"\x40\x02" + id_of(packet))
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """One packet, its remaining length left out when that takes one byte only as in all small packets."""
        first = await reader.readexactly(1)
        size, shift, length = 0, 0, b""
        while True:
            byte = await reader.readexactly(1)
            length += byte
            size |= (byte[0] & 0x7F) << shift
            shift += 7
            if not byte[0] & 0x80:
                return first + length + await reader.readexactly(size)


def _body(packet: bytes) -> bytes:
    start = 1
    while packet[start] & 0x80:
        start += 1
    return packet[start + 1:]


def topic_of(packet: bytes) -> str:
    body = _body(packet)
    return body[2:2 + int.from_bytes(body[:2], "big")].decode()


def id_of(packet: bytes) -> bytes:
    body = _body(packet)
    start = 2 + int.from_bytes(body[:2], "big")
    return body[start:start + 2]


def payload_of(packet: bytes) -> bytes:
    body = _body(packet)
    start = 2 + int.from_bytes(body[:2], "big") + (2 if packet[0] & 0x06 else 0)
    return body[start:]


def kinds(packets: Sequence[bytes]) -> list[int]:
    return [each[0] & 0xF0 for each in packets]
