"""A secret never leaves the file that holds it: canaries, looked for in everything that comes out.

A real daemon, a worker with a program, and the command line, on a broker with passwords and on one with certificates;
good ways and bad ones. Then every output is searched: what was printed, each message that a witness heard, arguments
and environment of each process, the note for clients, the log's bytes, the spool, the pack. A canary counts as found
as it is, in base64, in hex, or as in a URL.
"""

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.edges.daemon import SPACE, Daemon, serving
from tests.edges.mosquitto import free_port
from tests.security.brokers import Actor, Guarded

from bayesd.bus import BrokerAddress, BusError
from bayesd_client.errors import BadAddress
from bayesd_client.link import address
from bayesd_schemas.address import shown

SLASHED = "pa/ss+wo=rd?x&#%40-canary"
"""A password whose characters mean something in a URL."""

RUN_S = 60


def forms(canary: bytes) -> set[bytes]:
    """How a secret may look when it has been through somebody's hands."""
    plain = base64.b64encode(canary)
    out = {canary, canary.hex().encode(), canary.hex().upper().encode(), plain, base64.urlsafe_b64encode(canary),
           quote(canary, safe="").encode(), json.dumps(canary.decode("latin-1")).strip('"').encode(),
           repr(canary)[2:-1].encode()}
    # In base64 of something longer it stands at one of three places.
    for shift in range(3):
        inside = base64.b64encode(bytes(shift) + canary)
        out.add(inside[(4 if shift else 0):-4])
    return out


def hits(canaries: dict[str, bytes], outputs: Iterable[tuple[str, bytes]]) -> list[str]:
    known = {name: forms(canary) for name, canary in canaries.items()}
    return [f"{name} in {where}" for where, said in outputs for name, some in known.items()
            if any(form in said for form in some)]


class Stage:
    """A daemon behind a guarded broker, and everything that was said around it."""

    def __init__(self, profile: str, folder: Path) -> None:
        self.folder = folder
        self.guard = Guarded(profile, folder)
        if profile == "password":
            self.guard.passwords |= {name: f"{name}-{SLASHED}" for name in self.guard.people}
            self.guard._settings()          # which writes the password file
        self.outputs: list[tuple[str, bytes]] = []
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("BAYESD_")} | {
            "XDG_RUNTIME_DIR": str(folder / "daemon-run"), "XDG_STATE_HOME": str(folder / "daemon-state"),
            "COLUMNS": "200"}

    @property
    def canaries(self) -> dict[str, bytes]:
        seed = Path(f"{self.folder / 'log.db'}.key").read_bytes().strip().split(b"+", 4)[4]
        out = {"the signing key": seed, "the signing key's bytes": base64.b64decode(seed)[1:]}
        if self.guard.profile == "password":
            out |= {f"the password of {name}": word.encode() for name, word in self.guard.passwords.items()}
        else:
            for path in self.folder.glob("*.key"):
                if path.name != "log.db.key":
                    body = path.read_bytes().split(b"\n")
                    out |= {f"{path.name} line {at}": line for at, line in enumerate(body[1:-2]) if len(line) > 20}
        return out

    def bayesd(self, *words: str, as_: str | None = "alice",
               **environment: str) -> subprocess.CompletedProcess[bytes]:
        """One command, whose every word is kept."""
        reach = ["--broker", self.guard.url, *self.guard.flags(as_)] if as_ else []
        if as_ and "--username" not in reach:
            reach += ["--username", as_]
        done = subprocess.run([sys.executable, "-m", "bayesd.cli", *words, *reach], check=False,
                              env=self.environment | environment, capture_output=True, timeout=RUN_S, cwd=self.folder)
        self.outputs.append((" ".join(words), done.stdout + done.stderr))
        return done

    def keep_process(self, process: subprocess.Popen[bytes]) -> None:
        for what in ("cmdline", "environ"):
            self.outputs.append((f"{what} of a process", Path(f"/proc/{process.pid}/{what}").read_bytes()))

    def keep_files(self, *patterns: str) -> None:
        for pattern in patterns:
            found = [path for path in self.folder.rglob(pattern) if path.is_file()]
            assert found, pattern
            self.outputs += [(str(path.relative_to(self.folder)), path.read_bytes()) for path in found]


def worker(stage: Stage, *command: str) -> list[str]:
    url = stage.guard.url
    flags = stage.guard.flags("w1")
    if "--username" in flags:
        url, flags = url.replace("//", "//w1@"), flags[2:]
    return [sys.executable, "-m", "bayesd.cli", "worker", "run", "--study", "s1", "--name", "w1", "--broker", url,
            *flags, "--spool", str(stage.folder / "spool"), "--", *command]


@pytest.mark.mosquitto
@pytest.mark.parametrize("profile", ["password", "certificate"])
def test_no_secret_is_in_anything_that_comes_out(profile: str, tmp_path: Path) -> None:
    stage = Stage(profile, tmp_path)
    guard = stage.guard
    with guard, guard.actor("witness") as witness, contextlib.ExitStack() as stack:
        witness.subscribe("#", "$SYS/#")
        daemon = Daemon(tmp_path, guard.url, *guard.flags("bayesd"), "--log-level", "debug", "--operators", "alice",
                        "--heads", str(tmp_path / "heads.txt"), "--events")
        if profile == "password":       # as systemd hands it over
            credentials = tmp_path / "credentials"
            credentials.mkdir()
            (credentials / "mqtt-password").write_text(guard.passwords["bayesd"])
            daemon._command = [word for at, word in enumerate(daemon._command)
                               if "--password-file" not in daemon._command[max(0, at - 1):at + 1]]
            daemon._environment["CREDENTIALS_DIRECTORY"] = str(credentials)
        stack.enter_context(daemon)
        witness.until(lambda: any(topic.endswith("/daemon") and b"online" in body for topic, body in witness.came),
                      "the daemon is online")
        assert daemon.process is not None
        stage.keep_process(daemon.process)
        stage.keep_files("daemon.json")

        # The good way.
        study = tmp_path / "s1.json"
        study.write_text(json.dumps({"name": "s1", "method": "random", "space": SPACE, "budget": {"trials": 3}}))
        created = stage.bayesd("study", "create", str(study))
        assert created.returncode == 0, created.stderr
        program = tmp_path / "program.py"
        program.write_text("import os, pathlib, sys\n"
                           "place = pathlib.Path(__file__).parent / f'child-{os.getpid()}.txt'\n"
                           "place.write_bytes(b'\\n'.join(pathlib.Path('/proc/self', each).read_bytes()\n"
                           "                              for each in ('cmdline', 'environ')))\n"
                           "print(0.5)\n")
        with subprocess.Popen(worker(stage, sys.executable, str(program)), env=stage.environment, cwd=tmp_path,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            stage.keep_process(process)
            said, _ = process.communicate(timeout=RUN_S)
            stage.outputs.append(("the worker", said))
        assert process.returncode == 0, said
        for words in (["doctor", "--log", str(daemon.log)], ["study", "show", "s1"]):
            stage.bayesd(*words)
        # The bad ways.
        stage.bayesd("--debug", "study", "show", "none")
        for words in (["--debug", "study", "list"], ["doctor"]):
            _with_the_wrong_secret(stage, words)
        stage.bayesd("--debug", "study", "list", "--broker", f"mqtt://alice@127.0.0.1:{free_port()}", "--timeout", "1",
                     as_=None)
        stage.bayesd("config", "show", "--origin", as_=None, BAYESD_BROKER=f"mqtt://a:{guard.passwords['alice']}@h")
        stage.bayesd("--debug", "config", "check", as_=None, BAYESD_BROKER=f"mqtt://a:{guard.passwords['alice']}@h:port")
        assert daemon.stop() == 0
    stage.bayesd("log", "export", str(daemon.log), as_=None)
    packed = stage.bayesd("study", "audit-pack", "s1", "--recorded", "--log", str(daemon.log), "-o",
                          str(tmp_path / "s1.zip"), as_=None)
    assert packed.returncode == 0, packed.stderr
    with zipfile.ZipFile(tmp_path / "s1.zip") as pack:
        stage.outputs += [(f"pack {name}", pack.read(name)) for name in pack.namelist()]
    stage.keep_files("log.db", "heads.txt", "child-*.txt", "daemon.stderr", "spool/**/*")
    stage.outputs += [(f"message at {topic}", body) for topic, body in witness.came]
    assert len(stage.outputs) > 30
    assert len(stage.canaries) > 5
    assert hits(stage.canaries, stage.outputs) == []


def _with_the_wrong_secret(stage: Stage, words: list[str]) -> None:
    """Alice's name with somebody else's secret: the broker refuses, and whoever says so quotes neither."""
    flags = stage.guard.flags("alice")
    other = stage.guard.flags("bob")
    mixed = [*flags[:-1], other[-1]]      # the last word is the file: of the password, or of the key
    stage.bayesd(*words, "--broker", stage.guard.url, *mixed, "--timeout", "2", as_=None)


def _addresses(password: str) -> list[str]:
    """What people write, and what a parser stumbles on."""
    return [f"mqtt://alice:{quote(password, safe='')}@h", f"mqtt://alice:{password}@h", f"tcp://alice:{password}@h",
            f"alice:{password}@h", f"mqtt:alice:{password}@h:1", f"mqtt://alice:{password}@h:port",
            f"mqtt://alice:1#{password}@h", f"mqtt://alice:{password}@[h", f"alice:{password}//x@h"]


@pytest.mark.parametrize("url", _addresses("x-" + SLASHED))
def test_an_address_with_a_password_is_refused_and_not_repeated(url: str) -> None:
    for read, error in ((BrokerAddress.parse, BusError), (address, BadAddress)):
        with pytest.raises(error) as refused:
            read(url)
        assert hits({"password": SLASHED.encode()}, [("", str(refused.value).encode())]) == []
        assert "canary" not in str(refused.value)
    assert "canary" not in shown(url)


@pytest.mark.parametrize("url", ["mqtt://h", "mqtts://alice@h:8883", "mqtt://[::1]:1883", "h:1883", ""])
def test_an_address_without_a_password_is_shown_as_it_is(url: str) -> None:
    assert shown(url) == url


CANARY = b"canary/+\xff-0123456789"


@pytest.mark.parametrize("leak", [
    CANARY, b"Basic " + base64.b64encode(b"user:" + CANARY), base64.b64encode(CANARY), CANARY.hex().encode(),
    quote(CANARY, safe="").encode(), b"x" + base64.b64encode(b"ab" + CANARY + b"tail")])
def test_a_leak_is_found(leak: bytes) -> None:
    assert hits({"it": CANARY}, [("here", b"before " + leak + b" after")]) == ["it in here"]


def test_a_password_in_a_log_line_is_found(tmp_path: Path) -> None:
    """The fault that this test is for, planted: a debug line with the whole address."""
    stage = Stage("password", tmp_path)
    Path(f"{tmp_path / 'log.db'}.key").write_text("PRIVATE+KEY+x+0+" + base64.b64encode(bytes(33)).decode())
    stage.outputs.append(("stderr", f"debug: connecting as alice with {stage.guard.passwords['alice']!r}".encode()))
    assert hits(stage.canaries, stage.outputs) == ["the password of alice in stderr"]


# --- What is redacted ------------------------------------------------------------------------------

@pytest.mark.mosquitto
def test_a_redacted_text_is_not_in_the_bytes_of_a_log_that_a_daemon_writes(tmp_path: Path) -> None:
    secret = "canary-text-" + "z" * 40
    with serving(tmp_path) as (daemon, wire):
        wire.create("s1")
        w1 = wire.worker("w1")
        w1.beat()
        for number in range(3):
            grant = w1.lease("s1", f"a{number}")
            assert w1.told(f"t{number}", grant, state="fail", error=f"{secret} {number}")["status"] == "recorded"
        assert secret.encode() in _bytes_of(daemon.log)      # the control: it is there to be taken out
        done = subprocess.run(
            [sys.executable, "-m", "bayesd.cli", "log", "redact", str(daemon.log), "--worker", "w1", "--reason", "test",
             "--broker", f"mqtt://{wire.host}:{wire.port}"], check=True, capture_output=True, timeout=RUN_S)
        assert b"3 texts" in done.stderr
        deadline_s = time.monotonic() + 30          # the WAL is cut when the daemon is idle, after some seconds
        while secret.encode() in _bytes_of(daemon.log):
            assert time.monotonic() < deadline_s, "a redacted text stays in the file or in its WAL"
            time.sleep(0.05)
        assert daemon.stop() == 0
    assert secret.encode() not in _bytes_of(daemon.log)


def _bytes_of(log: Path) -> bytes:
    return b"".join(path.read_bytes() for path in log.parent.glob(log.name + "*"))


# --- No door ---------------------------------------------------------------------------------------

LISTEN = "0A"


def sockets(pid: int) -> Iterator[str]:
    """The listening TCP sockets, the bound UDP ones and the abstract ones of a process, as /proc shows them."""
    own = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            own.add(os.readlink(each))
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        table = Path(f"/proc/{pid}/net/{kind}")
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            words = line.split()
            if f"socket:[{words[9]}]" in own and (kind.startswith("udp") or words[3] == LISTEN):
                yield f"{kind} {words[1]}"
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if f"socket:[{words[6]}]" in own and len(words) > 7:
            yield f"unix {words[7]}"


def children(pid: int) -> list[int]:
    out = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            out += [int(child), *children(int(child))]
    return out


@pytest.mark.mosquitto
def test_a_daemon_on_a_broker_of_yours_has_no_door(tmp_path: Path) -> None:
    with serving(tmp_path) as (daemon, wire):
        wire.create("s1")
        assert daemon.process is not None
        assert [door for pid in (daemon.process.pid, *children(daemon.process.pid)) for door in sockets(pid)] == []


def _opened(port: int, daemon: Daemon) -> None:
    """Wait for a broker that is started by a daemon."""
    deadline_s = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert daemon.alive, daemon.said()
            assert time.monotonic() < deadline_s, "the embedded broker does not open its port"
            time.sleep(0.02)
        else:
            return


@pytest.mark.mosquitto
def test_with_the_embedded_broker_there_is_one_door_on_this_machine(tmp_path: Path) -> None:
    port = free_port()
    daemon = Daemon(tmp_path, "unused")
    at = daemon._command.index("--broker")
    daemon._command[at:at + 2] = ["--port", str(port)]
    with daemon, contextlib.ExitStack() as stack:
        _opened(port, daemon)
        anybody = stack.enter_context(Actor(port, "anybody"))
        anybody.subscribe("bayesd/1/daemon")
        anybody.until(lambda: bool(anybody.came), "the daemon is online")
        assert daemon.process is not None
        doors = [door for pid in (daemon.process.pid, *children(daemon.process.pid)) for door in sockets(pid)]
    assert doors == [f"tcp 0100007F:{port:04X}"]


@pytest.mark.parametrize("planted", ["tcp", "udp", "abstract"])
def test_a_door_is_found(planted: str) -> None:
    family = socket.AF_UNIX if planted == "abstract" else socket.AF_INET
    kind = socket.SOCK_DGRAM if planted == "udp" else socket.SOCK_STREAM
    before = list(sockets(os.getpid()))
    with socket.socket(family, kind) as door:
        door.bind(f"\0bayesd-test-{os.getpid()}" if planted == "abstract" else ("127.0.0.1", 0))
        if planted != "udp":
            door.listen()
        assert len(list(sockets(os.getpid()))) == len(before) + 1
