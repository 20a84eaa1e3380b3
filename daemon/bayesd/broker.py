"""The broker that comes with the daemon: a child process on loopback that cannot outlive it.

mosquitto when the machine has one, else rumqttd out of the iotcore wheel. Neither keeps
anything on disk: the receipts of the contract make that safe. The broker is told its whole
configuration by us and listens on 127.0.0.1 only, so anonymous clients are people on this machine.

The child is this very file, run as a script: it arranges to die with its parent (on Linux the
kernel does it, elsewhere a pipe whose other end the parent holds) and then becomes the broker.
So this file imports the standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self

logger = logging.getLogger(__name__)

Kind = Literal["auto", "mosquitto", "iotcore"]

DEFAULT_PORT = 1883
PORT_WAIT_S = 2.0         # a daemon that was killed leaves its port to the next one within this time
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 3.0
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
STABLE_S = 10.0           # a broker that ran this long is restarted without delay
PACKET_MAX_BYTES = 131_072
STDERR_LINES = 20         # the last lines of the broker, for the sentence that says why it died


class BrokerError(Exception):
    """The embedded broker cannot run; the text says why and what to do."""


class EmbeddedBroker:
    """`async with EmbeddedBroker(port=1883) as broker:` and then `broker.url`.

    `port` is what was asked for, or None for any free one; `broker.port` is what was taken, and
    `broker.port_taken` says that the two differ because somebody else listens there. A broker that
    dies is started again on the same port.
    """

    def __init__(
        self,
        port: int | None = DEFAULT_PORT,
        *,
        kind: Kind = "auto",
        port_wait_s: float = PORT_WAIT_S,
        start_timeout_s: float = START_TIMEOUT_S,
        pipe_watch: bool = not sys.platform.startswith("linux"),
    ) -> None:
        self.asked_port = port
        self.port = port or 0
        self.port_taken = False
        self.restarts = 0
        self.kind: Literal["mosquitto", "iotcore"] = choose(kind)
        self._port_wait_s = port_wait_s
        self._start_timeout_s = start_timeout_s
        self._pipe_watch = pipe_watch
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._stderr_task: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def wait_ready(self) -> None:
        """Returns at once while the broker answers, else when it answers again."""
        await self._ready.wait()

    async def __aenter__(self) -> Self:
        try:
            await self._start_somewhere()
        except BaseException:
            await self._stop()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="embedded broker")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))
        await self._stop()

    async def _start_somewhere(self) -> None:
        """Takes the port that was asked for, or another when somebody else keeps it."""
        self.port = self.asked_port or _free_port()
        if self.asked_port and not await self._port_becomes_free():
            self.port, self.port_taken = _free_port(), True
        for _ in range(3):
            try:
                await self._start()
            except _PortLostError:
                # Somebody was faster between our look and the broker's bind.
                self.port, self.port_taken = _free_port(), self.asked_port is not None
                continue
            if self.port_taken:
                logger.warning("port %s is taken by another program: the broker listens at %s",
                               self.asked_port, self.url)
            else:
                logger.info("the embedded broker (%s) listens at %s", self.kind, self.url)
            return
        raise BrokerError(
            f"The embedded broker found no port on 127.0.0.1 ({self._last_words()}): name a free one with --port.")

    async def _port_becomes_free(self) -> bool:
        deadline_s = time.monotonic() + self._port_wait_s
        while not _port_is_free(self.port):
            if time.monotonic() >= deadline_s:
                return False
            await asyncio.sleep(0.05)   # nothing tells us when a port of somebody else becomes free
        return True

    async def _start(self) -> None:
        """Starts the child and returns when it has answered a CONNECT."""
        self._stderr.clear()
        # Removed as soon as the broker has read it: a daemon that is killed leaves nothing behind.
        with tempfile.TemporaryDirectory(prefix="bayesd-broker-") as folder:
            config = Path(folder) / ("mosquitto.conf" if self.kind == "mosquitto" else "rumqttd.toml")
            config.write_text(_mosquitto_config(self.port) if self.kind == "mosquitto" else _rumqttd_config(self.port),
                              encoding="utf-8")
            broker = [_mosquitto_binary() or "mosquitto", "-c", str(config)] if self.kind == "mosquitto" else [
                "iotcore", str(config)]
            self._process = await asyncio.create_subprocess_exec(
                # -I: neither the folder of this file nor PYTHONPATH may put other modules before the real ones.
                sys.executable, "-I", __file__, "pipe" if self._pipe_watch else "kernel", str(os.getpid()), *broker,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
                # Ctrl-C goes to the whole group of the terminal; the broker must outlive our goodbye.
                start_new_session=True)
            self._stderr_task = asyncio.create_task(self._collect_stderr(self._process), name="embedded broker log")
            ended = asyncio.create_task(self._process.wait())
            answers = asyncio.create_task(_answers(self.port))
            try:
                async with asyncio.timeout(self._start_timeout_s):
                    await asyncio.wait((ended, answers), return_when=asyncio.FIRST_COMPLETED)
            except TimeoutError as error:
                await self._stop()
                raise BrokerError(
                    f"The embedded broker ({self.kind}) did not answer within {self._start_timeout_s:g} s"
                    f" ({self._last_words()}): start a broker yourself and give its address with --broker."
                ) from error
            finally:
                answers.cancel()
                ended.cancel()
                await asyncio.wait((answers, ended))
            if self._process.returncode is None:
                self._ready.set()
                return
        code = self._process.returncode
        await self._stop()
        if "address already in use" in " ".join(self._stderr).lower() or not _port_is_free(self.port):
            raise _PortLostError
        raise BrokerError(
            f"The embedded broker ({self.kind}) ended at its start with status {code} ({self._last_words()}):"
            " start a broker yourself and give its address with --broker.")

    async def _keep(self) -> None:
        """Starts the broker again whenever it dies, on the same port: its clients know no other."""
        delay_s = BACKOFF_MIN_S
        began_s = time.monotonic()
        while True:
            assert self._process is not None
            code = await self._process.wait()
            self._ready.clear()
            await self._stop()
            if time.monotonic() - began_s >= STABLE_S:
                delay_s = BACKOFF_MIN_S
            logger.warning("the embedded broker (%s) died with status %s (%s): starting it again",
                           self.kind, code, self._last_words())
            complaint = ""
            while True:
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, BACKOFF_MAX_S)
                try:
                    if not await self._port_becomes_free():
                        raise _PortLostError
                    await self._start()
                    break
                except (BrokerError, _PortLostError, OSError) as error:
                    sentence = (f"port {self.port} was taken by another program: end that, or restart the daemon"
                                if isinstance(error, _PortLostError) else str(error))
                    if sentence != complaint:
                        logger.error("the embedded broker does not start again: %s", sentence)
                        complaint = sentence
            self.restarts += 1
            began_s = time.monotonic()
            logger.info("the embedded broker listens again at %s", self.url)

    async def _stop(self) -> None:
        """Ends the child, by its id, and waits for it."""
        self._ready.clear()
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(OSError):
                await process.stdin.wait_closed()
        if self._stderr_task is not None:
            await asyncio.wait((self._stderr_task,), timeout=1.0)
            self._stderr_task.cancel()
        self._process = None

    async def _collect_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:
                continue   # a line longer than the reader's limit tells us nothing
            if not line:
                return
            text = line.decode(errors="replace").strip()
            if "should not be run as root" in text:
                continue   # true, but of the daemon; here it would pass for the reason of a death
            self._stderr.append(text)
            logger.debug("broker: %s", text)

    def _last_words(self) -> str:
        return self._stderr[-1] if self._stderr else "it said nothing"


class _PortLostError(Exception):
    """Another program listens on the port that we wanted."""


# --- Which broker, and its settings ---------------------------------------------------------------


def choose(kind: Kind) -> Literal["mosquitto", "iotcore"]:
    """The broker that this machine has: mosquitto, because it has TCP_NODELAY (0.3 ms a turn, not 50), else iotcore."""
    if kind != "iotcore" and _mosquitto_binary():
        return "mosquitto"
    if kind != "mosquitto" and importlib.util.find_spec("iotcore"):
        return "iotcore"
    what = {"auto": "neither mosquitto nor iotcore", "mosquitto": "no mosquitto", "iotcore": "no iotcore"}[kind]
    raise BrokerError(
        f"There is {what} on this machine: install mosquitto, or pip install 'bayesd[daemon]' for iotcore,"
        " or give the address of a broker with --broker.")


def _mosquitto_binary() -> str | None:
    # Debian puts servers into /usr/sbin, which is not on the PATH of ordinary users.
    places = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"]
    return shutil.which("mosquitto", path=os.pathsep.join(places))


def _mosquitto_config(port: int) -> str:
    # mosquitto started by root would change its user, and the kernel then forgets to end it with its parent.
    user = "user root\n" if os.geteuid() == 0 else ""
    return f"""\
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
persistence false
{user}\
max_queued_messages 100000
max_inflight_messages 1000
max_packet_size {PACKET_MAX_BYTES}
connection_messages false
log_dest stderr
log_type error
log_type warning
"""


def _rumqttd_config(port: int) -> str:
    # rumqttd keeps what was published in memory, ten segments a filter: 100 MiB each unless told otherwise.
    return f"""\
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 10

[v4.1]
name = "bayesd"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v4.1.connections]
connection_timeout_ms = 60000
max_payload_size = {PACKET_MAX_BYTES}
max_inflight_count = 1000
dynamic_filters = true
"""


# --- Ports ---------------------------------------------------------------------------------------


def _port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the brokers do: connections of a dead broker in TIME_WAIT are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise BrokerError(
                f"The embedded broker may not use port {port} ({error.strerror}):"
                " choose one above 1023 with --port.") from error
    return True


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _answers(port: int) -> None:
    """Returns when a CONNECT is answered by a CONNACK: an open port alone is not a broker."""
    name = f"bayesd-probe-{os.getpid()}".encode()
    # MQTT 3.1.1, clean session, keep-alive 60 s (rumqttd takes 0 for "at once").
    body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(name).to_bytes(2, "big") + name
    connect = bytes((0x10, len(body))) + body
    while True:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(connect)
                    if await reader.readexactly(4) == b"\x20\x02\x00\x00":
                        writer.write(b"\xe0\x00")
                        return
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        await asyncio.sleep(0.02)   # a program that has not opened its port yet cannot call us


# --- The child -----------------------------------------------------------------------------------


def _child(way: str, parent_pid: int, command: list[str]) -> NoReturn:
    """Becomes the broker, having arranged that it ends with the parent even when that is killed."""
    if way == "kernel":
        _ask_kernel_to_end_us(parent_pid)
    else:
        _leave_a_watcher()
    if command[0] == "iotcore":
        _run_iotcore(command[1])
    os.execv(command[0], command)   # noqa: S606   # the binary we chose, no shell


def _ask_kernel_to_end_us(parent_pid: int) -> None:
    # The kernel watches the thread that started us: the one of the event loop, which lives as long as the daemon.
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent_pid:   # it died before we asked
        os._exit(1)


def _leave_a_watcher() -> None:
    """Forks a process that waits for the end of the pipe, which the parent holds, and then kills the broker.

    The broker keeps the process id that the parent knows, so that killing it kills no watcher in its place.
    """
    broker_pid = os.getpid()
    if os.fork():
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)   # the parent reads the broker's stderr to its end, which we must not delay
    sys.stdin.buffer.read()
    if os.getppid() == broker_pid:
        os.kill(broker_pid, signal.SIGKILL)
    os._exit(0)


def _run_iotcore(config: str) -> NoReturn:
    from iotcore import IotCoreBroker

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # rumqttd reports every packet inside an error span; only its end is of interest, and that we see.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    IotCoreBroker(config_path=config).run_forever()
    os._exit(1)


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
