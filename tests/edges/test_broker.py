"""The embedded broker: it answers, it comes back, and it never outlives its parent."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.edges.mosquitto import binary, free_port

from bayesd import broker as module
from bayesd.broker import BrokerError, EmbeddedBroker
from bayesd.bus import BrokerAddress, Caller, MqttBus

BOTH = [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"]
WAYS = [pytest.param(True, id="pipe"), pytest.param(False, id="kernel", marks=pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only the kernel of Linux ends a child with its parent"))]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("mosquitto"):
        binary()


def listening(port: int) -> set[str]:
    """The addresses, as the kernel writes them, where somebody listens on that port."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, number = local.split(":")
            if state == "0A" and int(number, 16) == port:
                found.add(address)
    return found


def closes(connection: socket.socket) -> None:
    """Returns when the other side is gone, which is how the end of a broker shows without asking again and again."""
    connection.settimeout(10)
    with contextlib.suppress(ConnectionError):
        while connection.recv(100):
            pass


async def exchange(url: str, payload: bytes = b"hello") -> None:
    async with Caller(BrokerAddress.parse(url), client_id=f"test-{os.getpid()}", filters=["x"]) as caller:
        await caller.publish("x", payload)
        assert (await caller.receive(5)).payload == payload


@pytest.mark.parametrize("pipe_watch", WAYS)
@pytest.mark.parametrize("kind", BOTH)
def test_it_answers_and_is_gone_afterwards(
    kind: Literal["mosquitto", "iotcore"], pipe_watch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def story() -> None:
        port = free_port()
        async with EmbeddedBroker(port, kind=kind, pipe_watch=pipe_watch) as broker:
            assert broker.url == f"mqtt://127.0.0.1:{port}"
            assert (broker.kind, broker.port_taken, broker.restarts) == (kind, False, 0)
            await exchange(broker.url)
            await exchange(broker.url, b"x" * 120_000)
            assert list(tmp_path.iterdir()) == [], "a daemon that is killed now must leave nothing behind"
            pid = broker.pid
            assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert module._port_is_free(port)

    asyncio.run(story())


@LINUX
@pytest.mark.parametrize("kind", BOTH)
def test_it_listens_on_loopback_only(kind: Literal["mosquitto", "iotcore"]) -> None:
    async def story() -> None:
        async with EmbeddedBroker(None, kind=kind) as broker:
            assert listening(broker.port) == {"0100007F"}

    asyncio.run(story())


@pytest.mark.parametrize("kind", BOTH)
def test_a_taken_port_is_replaced_by_a_free_one_and_said(
    kind: Literal["mosquitto", "iotcore"], caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            async with EmbeddedBroker(port, kind=kind, port_wait_s=0.1) as broker:
                assert broker.port_taken
                assert broker.port != port
                await exchange(broker.url)
                assert f"port {port} is taken by another program: the broker listens at {broker.url}" in caplog.text

    asyncio.run(story())


def test_a_port_that_becomes_free_in_time_is_taken() -> None:
    async def story() -> None:
        other = socket.socket()
        other.bind(("127.0.0.1", 0))
        other.listen()
        asyncio.get_running_loop().call_later(0.2, other.close)
        port = other.getsockname()[1]
        async with EmbeddedBroker(port, kind="iotcore") as broker:
            assert (broker.port, broker.port_taken) == (port, False)

    asyncio.run(story())


def test_a_port_lost_between_the_look_and_the_bind_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        looks = iter([True])
        real = module._port_is_free
        monkeypatch.setattr(module, "_port_is_free", lambda port: next(looks, None) or real(port))
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            async with EmbeddedBroker(other.getsockname()[1], kind="mosquitto") as broker:
                assert broker.port_taken
                await exchange(broker.url)

    binary()
    asyncio.run(story())


@pytest.mark.parametrize("pipe_watch", WAYS)
@pytest.mark.parametrize("kind", BOTH)
def test_a_broker_that_dies_is_started_again_on_its_port(
    kind: Literal["mosquitto", "iotcore"], pipe_watch: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def story() -> None:
        async with EmbeddedBroker(None, kind=kind, pipe_watch=pipe_watch) as broker:
            bus = MqttBus(BrokerAddress.parse(broker.url), client_id="daemon", filters=["x"], jitter=lambda: 0.0)
            connects: asyncio.Queue[None] = asyncio.Queue()
            task = asyncio.create_task(bus.run(lambda *_: None, lambda: connects.put_nowait(None)))
            await connects.get()
            for life in (1, 2):
                url, pid = broker.url, broker.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                async with asyncio.timeout(10):
                    while bus.connects == life:   # the first connection, and one for each life before this one
                        await connects.get()
                    await broker.wait_ready()
                assert (broker.url, broker.restarts) == (url, life)
                assert broker.pid not in (None, pid)
                await exchange(broker.url)
            await bus.close()
            await task
        assert f"the embedded broker ({kind}) died with status -9" in caplog.text

    asyncio.run(story())


PARENT = """
import asyncio, sys
from bayesd.broker import EmbeddedBroker

async def main():
    async with EmbeddedBroker(int(sys.argv[1]), kind=sys.argv[2], pipe_watch=sys.argv[3] == "True") as broker:
        print(broker.pid, broker.port, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def parent(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a broker of its own, and the port of that; a test that fails leaves neither behind."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", PARENT, *map(str, arguments)],
                               stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    broker_pid, port = map(int, process.stdout.readline().split())
    process.stdout.close()
    try:
        yield process, port
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(broker_pid, signal.SIGKILL)
        raise
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("pipe_watch", WAYS)
@pytest.mark.parametrize("kind", BOTH)
def test_it_dies_with_a_killed_parent_and_the_next_parent_gets_the_port(kind: str, pipe_watch: bool) -> None:
    wanted = free_port()
    with parent(wanted, kind, pipe_watch) as (first, _):
        first.kill()
        first.wait()
        # At once, while the broker of the first may still be dying.
        with parent(wanted, kind, pipe_watch) as (second, port):
            assert port == wanted
            with socket.create_connection(("127.0.0.1", port)) as connection:
                second.kill()
                second.wait()
                closes(connection)
            deadline_s = time.monotonic() + 5
            while not module._port_is_free(port):   # the listener is closed a moment after its connections
                assert time.monotonic() < deadline_s


def test_ctrl_c_in_the_terminal_of_the_daemon_does_not_reach_the_broker() -> None:
    async def story() -> None:
        async with EmbeddedBroker(None, kind="iotcore") as broker:
            assert broker.pid is not None
            assert os.getpgid(broker.pid) != os.getpgid(0)

    asyncio.run(story())


def test_what_is_missing_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_mosquitto_binary", lambda: None)
    assert module.choose("auto") == "iotcore"
    with pytest.raises(BrokerError, match=r"There is no mosquitto on this machine: install mosquitto"):
        EmbeddedBroker(kind="mosquitto")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BrokerError, match=r"neither mosquitto nor iotcore .*pip install 'bayesd\[daemon\]'"):
        EmbeddedBroker()


def test_a_broker_that_ends_at_once_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "mosquitto"
    fake.write_text("#!/bin/sh\necho 'Error: out of luck' >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(module, "_mosquitto_binary", lambda: str(fake))

    async def story() -> None:
        with pytest.raises(BrokerError, match=r"ended at its start with status 3 \(Error: out of luck\):"):
            async with EmbeddedBroker(None, kind="mosquitto"):
                pass

    asyncio.run(story())


def test_a_broker_that_never_answers_is_given_up_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, pid_file = tmp_path / "mosquitto", tmp_path / "pid"
    fake.write_text(f"#!/bin/sh\necho $$ >{pid_file}\nexec sleep 100\n")
    fake.chmod(0o755)
    monkeypatch.setattr(module, "_mosquitto_binary", lambda: str(fake))

    async def story() -> None:
        with pytest.raises(BrokerError, match=r"did not answer within 0\.5 s"):
            async with EmbeddedBroker(None, kind="mosquitto", start_timeout_s=0.5):
                pass
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)

    asyncio.run(story())


def test_a_port_that_we_may_not_use_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(**settings: Any) -> None:
        async with EmbeddedBroker(80, **settings):
            pass

    if os.geteuid() == 0:                  # root may use every port, so the kernel's answer is played
        def refuse(probe: socket.socket, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")
        monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(BrokerError, match="may not use port 80"):
        asyncio.run(story(kind="iotcore"))
