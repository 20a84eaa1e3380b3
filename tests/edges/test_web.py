"""The pages: read-only, for this machine, and no way to hold the daemon up."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.edges.daemon import Daemon as Process
from tests.edges.daemon import Wire
from tests.edges.mosquitto import Mosquitto, free_port

from bayesd import health, web
from bayesd.cli import run as bayesd
from bayesd.config import runtime_file, write_runtime
from bayesd.log import DiskFull, LogError, MemoryDisk
from bayesd.service import Settings
from bayesd.testing import Daemon, MemoryBroker, run
from bayesd.web import Address, Answer, CannotListen, Web

TOKEN = b"0123456789abcdef"


async def good() -> Answer:
    return Answer('{"good": true}\n')


async def bad() -> Answer:
    raise ZeroDivisionError("a bug of ours")


PAGES: dict[str, web.Page] = {"/healthz": good, "/bad": bad}


async def ask(server: Web, text: str | bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and read to the end: (status, headers, body)."""
    if server.address.path is not None:
        reader, writer = await asyncio.open_unix_connection(server.address.path)
    else:
        reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
    writer.write(text if isinstance(text, bytes) else text.replace("\n", "\r\n").encode())
    said = b""
    try:
        async with asyncio.timeout(10):
            said = await reader.read()
    except ConnectionError:
        pass
    writer.close()
    head, _, body = said.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]) if said else 0, headers, body


def get(target: str = "/healthz", host: str = "127.0.0.1", method: str = "GET", more: str = "") -> str:
    return f"{method} {target} HTTP/1.1\nHost: {host}\n{more}\n"


def served(story: Callable[[Web], Awaitable[Any]], address: str = "127.0.0.1:0", token: bytes | None = None) -> Any:
    async def go() -> Any:
        async with Web(Address.parse(address), token, PAGES) as server:
            return await story(server)
    return asyncio.run(go())


def test_a_page_is_read_and_nothing_else_is_done() -> None:
    async def story(server: Web) -> None:
        status, headers, body = await ask(server, get())
        assert (status, json.loads(body)) == (200, {"good": True})
        assert headers["connection"] == "close"
        assert int(headers["content-length"]) == len(body)
        assert (await ask(server, get("/healthz?deep=1")))[0] == 200
        status, headers, _ = await ask(server, get(method="POST", more="Content-Length: 3\n") + "abc")
        assert (status, headers["allow"]) == (405, "get")
        for method in ("HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PURGE"):
            assert (await ask(server, get(method=method)))[0] == 405
        assert (await ask(server, get("/")))[0] == 404
        assert (await ask(server, get("/../etc/passwd")))[0] == 404
        # Two requests on one connection: the second is not heard, since the first one closes it.
        assert (await ask(server, get() * 2))[2].count(b"good") == 1

    served(story)


def test_a_name_that_was_pointed_at_us_is_not_ours() -> None:
    async def story(server: Web) -> None:
        port = server.address.port
        for host in ("127.0.0.1", f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}",
                     "[::1]"):
            assert (await ask(server, get(host=host)))[0] == 200, host
        for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1:{port + 1}", "127.0.0.1.evil.example",
                     f"localhost.evil.example:{port}", f"[::1].evil.example:{port}", "", ":", "[", "]:", "127.0.0.1:"):
            assert (await ask(server, get(host=host)))[0] in (400, 421), host
        assert (await ask(server, "GET /healthz HTTP/1.1\n\n"))[0] == 400
        assert (await ask(server, "GET /healthz HTTP/1.0\n\n"))[0] == 421
        assert (await ask(server, get(more="Host: evil.example\n")))[0] == 400

    served(story)


@pytest.mark.parametrize("text", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 is what a TLS client says\r\n\r\n", b"GET\r\n\r\n",
    b"GET /healthz HTTP/9.9\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nA B: c\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
    b"GET /" + b"y" * 100_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_what_is_no_request_is_refused_and_served_no_page(text: bytes) -> None:
    async def story(server: Web) -> None:
        status, _, body = await ask(server, text)
        assert status in (0, 400, 421, 431, 505), status      # 0: hung up, with more of it under way
        assert b"good" not in body
        assert (await ask(server, get()))[0] == 200

    served(story)


def test_who_dawdles_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "REQUEST_S", 0.2)

    async def story(server: Web) -> None:
        assert (await ask(server, b"GET /healthz HT"))[0] == 0        # read to the end: we were hung up on
        assert (await ask(server, b""))[0] == 0

    served(story)


def test_places_are_few_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(server: Web) -> None:
        port = server.address.port
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(web.CONNECTIONS_MAX)]
        while len(server._open) < web.CONNECTIONS_MAX:
            await asyncio.sleep(0)
        assert (await ask(server, get()))[0] == 0
        for _, writer in idle:
            writer.close()
        while server._open:
            await asyncio.sleep(0)
        assert (await ask(server, get()))[0] == 200

    served(story)


def test_a_page_that_fails_is_told_to_the_log_and_not_to_the_reader(caplog: pytest.LogCaptureFixture) -> None:
    async def story(server: Web) -> None:
        status, _, body = await ask(server, get("/bad"))
        assert status == 500
        assert b"Zero" not in body

    served(story)
    assert "ZeroDivisionError" in caplog.text


def test_beyond_loopback_a_token_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CannotListen, match="listen_token_file"):
        Web(Address.parse("0.0.0.0:0"), None, PAGES)

    async def story(server: Web) -> None:
        server.address = Address(None, "127.0.0.1", server.address.port)     # how it is reached here
        for more in ("", "Authorization: Bearer wrong\n", f"Authorization: Basic {TOKEN.decode()}\n",
                     "Authorization: Bearer \u00e9\n", f"Authorization: Bearer {TOKEN.decode()}x\n"):
            status, _, body = await ask(server, get(more=more).encode("utf-8").replace(b"\n", b"\r\n"))
            assert status in (400, 401), more
            assert b"good" not in body
        assert (await ask(server, get(more=f"Authorization: Bearer {TOKEN.decode()}\n")))[0] == 200

    served(story, "0.0.0.0:0", TOKEN)
    served(story, "127.0.0.1:0", TOKEN)
    file = tmp_path / "token"
    file.write_bytes(TOKEN + b"\n")
    assert web.read_token(file) == TOKEN
    for text in (b"", b"short", b"two words but long enough", b"\xff" * 40):
        file.write_bytes(text)
        with pytest.raises(CannotListen, match="token"):
            web.read_token(file)
    with pytest.raises(CannotListen, match="cannot be read"):
        web.read_token(tmp_path / "none")


@pytest.mark.parametrize("text", ["9090", ":9090", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:-1",
                                  "example.com:9090", "unix:here.sock", "http://127.0.0.1:9090", "127.0.0.1:9x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(CannotListen, match="listen"):
        Address.parse(text)


def test_a_port_that_is_taken_is_named() -> None:
    async def story(server: Web) -> None:
        with pytest.raises(CannotListen, match=str(server.address.port)):
            async with Web(server.address, None, PAGES):
                pass

    served(story)


def test_a_socket_has_its_mode_and_goes_with_us_and_a_living_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))                # what a killed daemon leaves

    async def story(server: Web) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert (await ask(server, get(host="any.example")))[0] == 200       # no browser gets here
        with pytest.raises(CannotListen, match="another process"):
            async with Web(Address.parse(f"unix:{path}"), None, PAGES):
                pass
        assert (await ask(server, get()))[0] == 200

    served(story, f"unix:{path}")
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(CannotListen, match="no socket"):
        served(story, f"unix:{path}")
    assert path.read_text() == "mine"


# ---------------------------------------------------------------- health


def reasons(of: health.Health) -> set[str]:
    return {reason for reason, _ in of.why}


def test_a_daemon_says_how_it_is() -> None:
    async def story() -> None:
        broker, hang, full = MemoryBroker(), asyncio.Event(), False

        async def before(rows: object) -> None:
            if full:
                raise DiskFull("no space")
            if hang.is_set():
                await asyncio.sleep(60.0)

        daemon = Daemon(broker, MemoryDisk(), before_commit=before, settings=Settings(settle_s=0.0))
        assert health.of(None) == health.Health(True, False, health.of(None).why)
        service = await daemon.start()
        assert reasons(health.of(service)) == {"broker"}
        await asyncio.sleep(1.0)
        assert health.of(service) == health.Health(True, True)

        hang.set()
        service.desk.record("clock.jumped", {"by_s": 9.0})
        await asyncio.sleep(health.LIVE_S - 1)
        assert health.of(service).live
        await asyncio.sleep(2.0)
        assert not health.of(service).live
        assert reasons(health.of(service)) == {"hangs"}
        hang.clear()
        await asyncio.sleep(60.0)
        assert health.of(service).ready

        full = True
        service.desk.record("clock.jumped", {"by_s": 9.0})
        await asyncio.sleep(1.0)
        found = health.of(service)
        assert (found.live, reasons(found)) == (True, {"disk-full"})
        full = False
        await asyncio.sleep(6.0)
        assert health.of(service).ready

        service._conflict = LogError("another future of this log")
        assert "log-refused" in reasons(health.of(service))
        service._conflict = None
        service.stop()
        assert reasons(health.of(service)) == {"stopping"}
        await daemon.stop()

    run(story())


def test_a_note_speaks_for_a_daemon_as_long_as_it_is_fresh() -> None:
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    said = health.word(health.Health(True, False, (("broker", "away"),)))
    assert health.of_note({"health": said}) == health.Health(True, False, (("broker", "away"),))
    for age_s in (health.STALE_S + 5, -60.0):           # too old; or from before this machine's start
        found = health.of_note({"health": {**said, "at": now - age_s}})
        assert (found.live, found.ready, reasons(found)) == (False, False, {"hangs"})
    assert health.of_note({"pid": 1}).live              # a daemon of before, or one that has just begun
    assert not health.of_note(None).live
    assert not health.of_note({"health": {**said, "live": False}}).live


def test_a_probe_ends_with_what_the_note_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert bayesd(["health"]) == 1
    note = write_runtime("mqtt://127.0.0.1:2", tmp_path / "log.db", "")
    assert note is not None
    note.say({"health": health.word(health.Health(True, False, (("broker", "away"),)))})
    assert bayesd(["health"]) == 0
    assert bayesd(["health", "--ready"]) == 1
    assert bayesd(["health", "--log", str(tmp_path / "log.db")]) == 0
    assert bayesd(["health", "--log", str(tmp_path / "other.db")]) == 1
    capsys.readouterr()
    assert bayesd(["health", "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["why"] == [{"reason": "broker", "detail": "away"}]
    note.say({"health": {**health.word(health.Health(True, True)), "at": 0.0}})
    assert bayesd(["health"]) == 1
    other = json.loads(runtime_file().read_text())
    runtime_file().write_text(json.dumps({**other, "pid": os.getppid()}))
    note.say({"health": health.word(health.Health(True, True))})          # not ours any more
    assert json.loads(runtime_file().read_text())["health"]["at"] == 0.0


def fetch(port: int, target: str) -> tuple[int, dict[str, Any] | str]:
    """One page over TCP, without a library that would follow, retry or ask a proxy."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        wire.sendall(get(target).replace("\n", "\r\n").encode())
        said = b""
        while part := wire.recv(65536):
            said += part
    head, _, body = said.partition(b"\r\n\r\n")
    text = body.decode()
    return int(head.split()[1]), json.loads(text) if text.startswith("{") else text


@pytest.mark.mosquitto
def test_a_real_daemon_is_ready_until_its_broker_is_away(tmp_path: Path) -> None:
    port = free_port()
    with (Mosquitto(tmp_path) as broker, Wire(broker.url) as wire,
          Process(tmp_path, broker.url, "--listen", f"127.0.0.1:{port}") as daemon):
        daemon.ready(wire)
        assert fetch(port, "/readyz") == (200, {"live": True, "ready": True, "why": []})
        assert fetch(port, "/healthz")[0] == 200
        status, text = fetch(port, "/metrics")
        assert status == 200
        assert "bayesd_build_info{" in text
        probe = [sys.executable, "-m", "bayesd.cli", "health", "--log", str(daemon.log), "-f", "json"]
        done = subprocess.run(probe, env=daemon._environment, capture_output=True, text=True, check=False)
        assert (done.returncode, json.loads(done.stdout)["live"]) == (0, True), done.stderr
        broker.kill()
        deadline_s = time.monotonic() + 20
        while (answer := fetch(port, "/readyz"))[0] == 200:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert answer[0] == 503
        assert isinstance(answer[1], dict)
        assert answer[1]["why"][0]["reason"] == "broker"
        assert fetch(port, "/healthz")[0] == 200
        assert daemon.stop() == 0
