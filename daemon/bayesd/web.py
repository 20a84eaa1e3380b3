"""Pages for machines, only when asked for: GET /metrics, /healthz, /readyz, and nothing else.

Read-only and small on purpose. A connection is for one request; it has a limit on its size and its time, and there is
a limit on how many there are, so whoever dawdles holds a place for seconds and the daemon loses nothing. On TCP only
loopback is served without a token, and then a page of a browser must not reach us under a name of its own: the Host
header is checked. h11 reads HTTP.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

import h11

logger = logging.getLogger("bayesd")

CONNECTIONS_MAX = 16
REQUEST_MAX_BYTES = 8192
REQUEST_S = 5.0           # from the connection to the end of its request
ANSWER_S = 10.0           # to make the answer, and again for the other side to take it
TOKEN_MIN = 16            # characters


class CannotListen(Exception):
    """The address cannot be served; the text says why and what to change. Exit code 78."""

    exit_code = 78


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says."""

    body: str
    content_type: str = "application/json"
    status: int = 200


Page = Callable[[], Awaitable[Answer]]
Token = bytes | None


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a Unix socket, or a host and a port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> "Address":
        """From 127.0.0.1:9090, [::1]:9090, localhost:9090 or unix:/run/bayesd/http.sock. Raises CannotListen."""
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:"))
            if not path.is_absolute():
                raise CannotListen(f"listen: {text!r} needs an absolute path, for example unix:/run/bayesd/http.sock")
            return cls(path)
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) < 65536:
            raise CannotListen(f"listen: {text!r} is no address; 127.0.0.1:9090 is one, and "
                               "unix:/run/bayesd/http.sock")
        if host != "localhost":
            try:
                ipaddress.ip_address(host)
            except ValueError as error:
                raise CannotListen(f"listen: {host!r} is no IP address; name the one to listen at, for example "
                                   "127.0.0.1:9090") from error
        return cls(None, host, int(port))

    @property
    def is_local(self) -> bool:
        """Only this machine can reach it."""
        return self.path is not None or self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback


def read_token(path: Path) -> bytes:
    """The token in a file. Raises CannotListen."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotListen(f"listen_token_file: {path} cannot be read as a token ({error})") from error
    if len(token) < TOKEN_MIN or not token.isprintable() or " " in token:
        raise CannotListen(f"listen_token_file: {path} holds no token of at least {TOKEN_MIN} printable characters; "
                           "make one with `openssl rand -hex 32`")
    return token.encode()


def check(address: Address, token: Token) -> None:
    """Refuse what would show the daemon to a network without a word. Raises CannotListen."""
    if not address.is_local and token is None:
        raise CannotListen(f"listen: {address.host} can be reached from other machines, so it needs a token that they "
                           "send as `Authorization: Bearer TOKEN`: set listen_token_file, or listen at 127.0.0.1")


class Web:
    """The server. `async with Web(address, pages): ...`"""

    def __init__(self, address: Address, token: Token, pages: dict[str, Page]) -> None:
        check(address, token)
        self.address = address
        self._pages = pages
        self._token = token
        self._open: set[asyncio.Task[None]] = set()
        self._file: tuple[int, int] | None = None

    async def __aenter__(self) -> Self:
        """Raises CannotListen."""
        try:
            if self.address.path is not None:
                self._server = await self._at_path(self.address.path)
            else:
                self._server = await asyncio.start_server(
                    self._serve, self.address.host, self.address.port, limit=REQUEST_MAX_BYTES)
                host, port = self._server.sockets[0].getsockname()[:2]
                self.address = Address(None, host, port)
        except OSError as error:
            raise CannotListen(f"listen: {self._where} cannot be served ({error.strerror or error})") from error
        logger.info("metrics and health at %s", self._where)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)
        await self._server.wait_closed()
        path = self.address.path
        if path is not None and self._file is not None:
            with contextlib.suppress(OSError):
                if _identity(path) == self._file:      # not that of who came after us
                    path.unlink()

    @property
    def _where(self) -> str:
        if self.address.path is not None:
            return f"unix:{self.address.path}"
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return f"http://{host}:{self.address.port}"

    async def _at_path(self, path: Path) -> asyncio.Server:
        _make_room(path)
        # Nobody gets in before it has its mode: it is bound, and not served yet.
        server = await asyncio.start_unix_server(self._serve, path, limit=REQUEST_MAX_BYTES, start_serving=False)
        os.chmod(path, 0o660)
        self._file = _identity(path)
        await server.start_serving()
        return server

    # ------------------------------------------------------------ one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            # A cancelled task here is our own end; the protocol of asyncio would report it as a fault.
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            self._open.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers: list[tuple[str, str]] = []
        is_head = False
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_MAX_BYTES)
        try:
            async with asyncio.timeout(REQUEST_S):
                request = await self._request(connection, reader)
        except h11.RemoteProtocolError as error:
            answer = _error(error.error_status_hint, "this is not a request that is understood")
        else:
            if request is None:
                return
            is_head = request.method == b"HEAD"
            answer, headers = await self._page(request)
        # The answer to HEAD has the length of a body, and none.
        body = answer.body.encode()
        parts = [h11.EndOfMessage()] if is_head else [h11.Data(data=body), h11.EndOfMessage()]
        with contextlib.suppress(h11.LocalProtocolError):      # the request was so broken that none can be sent
            begin = h11.Response(status_code=answer.status, reason=HTTPStatus(answer.status).phrase, headers=[
                ("Content-Type", answer.content_type), ("Content-Length", str(len(body))), ("Connection", "close"),
                ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), *headers])
            writer.write(b"".join(connection.send(part) or b"" for part in (begin, *parts)))
            async with asyncio.timeout(ANSWER_S):
                await writer.drain()
                writer.write_eof()
                await reader.read(1)       # until the other side has it all and hangs up

    async def _request(self, connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                return event
            if event is not h11.NEED_DATA:
                return None                # gone without a word
            connection.receive_data(await reader.read(REQUEST_MAX_BYTES))

    async def _page(self, request: h11.Request) -> tuple[Answer, list[tuple[str, str]]]:
        said = dict(request.headers)
        if not self._is_for_us(said.get(b"host")):
            return _error(421, "this name is not served here: use the address that the daemon listens at"), []
        if self._token is not None and not hmac.compare_digest(
                said.get(b"authorization", b""), b"Bearer " + self._token):
            return _error(401, "a token is needed"), [("WWW-Authenticate", "Bearer")]
        page = self._pages.get(request.target.partition(b"?")[0].decode("ascii", "replace"))
        if page is None:
            return _error(404, f"there is {', '.join(self._pages)}"), []
        if request.method != b"GET":
            return _error(405, "pages are read, nothing more"), [("Allow", "GET")]
        try:
            async with asyncio.timeout(ANSWER_S):
                return await page(), []
        except TimeoutError:
            return _error(503, f"no answer within {ANSWER_S:g} s"), []
        except Exception:
            logger.exception("%s failed; please report this", request.target.decode("ascii", "replace"))
            return _error(500, "the daemon failed at this; its log says where"), []

    def _is_for_us(self, host: bytes | None) -> bool:
        """A name that anybody can point at this machine does not count, unless who uses it has the token."""
        if self.address.path is not None or not self.address.is_local:
            return True
        name, colon, port = (host or b"").decode("ascii", "replace").rpartition(":")
        if not colon or name.count("[") != name.count("]"):      # no port: a name, or an IPv6 address alone
            name, port = (host or b"").decode("ascii", "replace"), str(self.address.port)
        if port != str(self.address.port):
            return False
        return name.lower() in ("localhost", "127.0.0.1", "[::1]", self.address.host, f"[{self.address.host}]")


def _make_room(path: Path) -> None:
    """A socket that a killed daemon left may go; anything else stays, and so does that of a process that lives."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise CannotListen(f"listen: {path} is there and is no socket: move it away")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            probe.connect(str(path))
            raise CannotListen(f"listen: another process serves {path}")


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _error(status: int, text: str) -> Answer:
    return Answer(json.dumps({"error": text}) + "\n", status=status)


__all__ = ["Address", "Answer", "CannotListen", "Page", "Token", "Web", "check", "read_token"]
