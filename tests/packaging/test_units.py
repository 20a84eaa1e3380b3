"""The unit files: as tight as they claim, and the daemon works under what they forbid."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.edges.daemon import SPACE, Wire, serving
from tests.edges.mosquitto import Mosquitto, missing
from tests.edges.test_daemon import Manager
from tests.packaging import sandbox

from bayesd.cli import bayesd
from bayesd.log import verify

REPOSITORY = Path(__file__).parents[2]
UNITS = REPOSITORY / "deploy" / "systemd"
LAUNCHER = Path(__file__).with_name("sandbox.py")
PROGRAM = "/opt/bayesd/bin/bayesd"


@pytest.mark.parametrize("name", ["bayesd.service", "bayesd-worker@.service"])
def test_a_unit_is_as_tight_as_it_claims(name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze", "it scores the units; it comes with systemd")
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=15", str(UNITS / name)],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]


@pytest.mark.parametrize("name", ["bayesd.service", "bayesd-worker@.service"])
def test_systemd_knows_every_line_of_a_unit(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze", "it reads the units; it comes with systemd")
    unit = tmp_path / name
    unit.write_text((UNITS / name).read_text().replace(PROGRAM, "/bin/true"))
    if "worker" in name:            # with its drop-in
        folder = tmp_path / f"{name}.d"
        folder.mkdir()
        shutil.copy(UNITS / "bayesd-worker-gpu.conf", folder / "gpu.conf")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if name.partition(".")[0] in line]) == (0, [])


def test_the_worker_unit_says_what_the_command_knows() -> None:
    line = sandbox.settings(UNITS / "bayesd-worker@.service")["ExecStart"][0].split()
    assert line[:3] == [PROGRAM, "worker", "run"]
    run = bayesd.get_command(None, "worker").get_command(None, "run")       # type: ignore[arg-type, union-attr]
    known = {flag for option in run.params for flag in option.opts}
    assert {word for word in line if re.match("--[a-z]", word)} <= known
    wanted = {"STUDY", "COMMAND", "BAYESD_BROKER"}
    assert {each.partition("=")[0] for each in (UNITS / "worker.env").read_text().splitlines()
            if not each.startswith("#")} == wanted


PROBE = """
import json, mmap, os, socket, sys
def ends(call, *given):
    try:
        call(*given)
    except OSError as error:
        return error.errno
    return 0
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "home": os.path.isdir("/root") and os.listdir("/root"),
    "write": [ends(open, each + "/x", "w") for each in (os.environ["STATE_DIRECTORY"], "/tmp", "/etc", "")],
    "execute": ends(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)),
    "netlink": ends(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW),
    "internet": ends(socket.socket), "chroot": ends(os.chroot, "/"), "nice": ends(os.setpriority, 0, 0, 5),
    "meminfo": os.path.exists("/proc/meminfo"), "uid": os.getuid(),
    **{each: status[each].strip() for each in ("CapBnd", "CapEff", "NoNewPrivs", "Seccomp")}}))
"""


def _sandboxed(unit: str, state: Path, config: Path, *command: str) -> list[str]:
    code = {REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)}
    visible = [str(each) for each in code if not code & set(each.parents) and each.parts[1] != "usr"]
    return [sys.executable, str(LAUNCHER), str(UNITS / unit), str(state), *visible, str(config), "--", *command]


def _environment(state: Path, config: Path) -> dict[str, str]:
    """What systemd gives: nothing of ours."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8",
            "STATE_DIRECTORY": str(state), "CREDENTIALS_DIRECTORY": str(config)}


def _folders(tmp_path: Path) -> tuple[Path, Path]:
    if os.geteuid() != 0:
        missing("root", "the restrictions of the unit can only be put on by root")
    for tool in ("unshare", "systemd-analyze"):
        if shutil.which(tool) is None:
            missing(tool, "without it the restrictions of the unit cannot be put on")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        missing("a mount namespace", "this machine does not let root make one")
    state, config = tmp_path / "state", tmp_path / "config"
    for folder in (state, config):
        folder.mkdir(mode=0o700)
    return state, config


def _give(*folders: Path) -> None:
    for folder in folders:
        for path in (folder, *folder.iterdir()):
            os.chown(path, sandbox.USER, sandbox.USER)


def test_the_sandbox_of_the_tests_bites(tmp_path: Path) -> None:
    state, config = _folders(tmp_path)
    _give(state, config)
    done = subprocess.run(_sandboxed("bayesd.service", state, config, sys.executable, "-c", PROBE),
                          env=_environment(state, config), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["write"] == [0, 0, 30, 30]                 # EROFS
    assert (found["execute"], found["netlink"], found["chroot"]) == (13, 97, 1)     # EACCES, EAFNOSUPPORT, EPERM
    assert (found["internet"], found["nice"], found["meminfo"]) == (0, 1, False)
    assert (found["uid"], found["NoNewPrivs"], found["Seccomp"]) == (sandbox.USER, "1", "2")
    assert int(found["CapBnd"], 16) == int(found["CapEff"], 16) == 0
    assert not (tmp_path / "x").exists()


@pytest.mark.mosquitto
def test_the_daemon_works_under_what_its_unit_forbids(tmp_path: Path) -> None:
    """The command of the unit, with its environment, credential, limits and restrictions, but without systemd.

    Applied: the user, no capabilities, no new privileges, a user and mount namespace, everything read-only but for the
    state directory, an own /tmp, no homes, /proc with nothing but own processes, the system call filter (sets as the
    systemd of this machine has them), address families, namespaces, write-xor-execute by the kernel's own ban,
    limits and umask, and an environment as bare as a service's. Not applied, since it takes control groups or systemd
    itself: IPAddressDeny, MemoryMax (and TasksMax only as the limit of the user's processes), DevicePolicy and an own
    /dev, the keyring; and the few call filters that look at arguments (real-time, set-user-id, personality).
    """
    state, config = _folders(tmp_path)
    unit = sandbox.settings(UNITS / "bayesd.service")
    with Mosquitto(tmp_path) as broker, Wire(broker.url) as wire:
        (config / "bayesd.toml").write_text(f'broker = "{broker.url}"\nusername = "bayesd"\noperators = ["alice"]\n'
                                            f'archive = "{state}/archive"\narchive_events = 5\n')
        (config / "mqtt-password").write_text("secret\n")
        _give(state, config)
        manager = Manager(state)            # a socket that the sandbox can see
        os.chown(manager.path, sandbox.USER, sandbox.USER)
        line = unit["ExecStart"][0].replace("/etc/bayesd", str(config)).split()
        assert line[0] == PROGRAM
        environment = _environment(state, config) | dict(each.split("=") for each in unit["Environment"][0].split()) | {
            "NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": f"{unit['WatchdogSec'][0]}000000"}
        errors = tmp_path / "errors"
        with errors.open("wb") as stderr:
            daemon = subprocess.Popen(_sandboxed("bayesd.service", state, config, sys.executable, "-m", "bayesd.cli",
                                                 *line[1:]), env=environment, stderr=stderr)
        try:
            try:
                manager.until("READY=1")
            except TimeoutError:
                pytest.fail(f"it does not start: {errors.read_text()}")
            wire.until(lambda: wire.daemon is not None and wire.daemon["state"] == "online", "the daemon is online")
            reply = wire.request("study.create", {"spec": {"name": "s1", "method": "bayes", "space": SPACE}},
                                 client="alice")
            assert reply["status"] == "ok", reply
            worker = wire.worker("w1")
            for number in range(8):         # the last ones come from the model: BLAS, scipy, threads
                worker.ask(f"a{number}", study="s1")
                worker.tell(f"t{number}", worker.grant(f"a{number}"), value=0.1 * number)
                assert worker.receipt(f"t{number}")["status"] == "recorded"
            wire.until(lambda: "are archived in" in errors.read_text(), "a process of its own has written a segment")
            daemon.terminate()
            assert daemon.wait(20) == 0, errors.read_text()
        finally:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
            manager.socket.close()
        said = errors.read_text()
        assert "Traceback" not in said
        log = state / "log.db"
        report = verify(log)
        assert report.damage is None
        assert log.stat().st_uid == sandbox.USER
        assert log.stat().st_mode & 0o777 == 0o600
        assert report.verdict.signed > 0


@pytest.mark.mosquitto
def test_a_worker_works_under_what_its_unit_forbids(tmp_path: Path) -> None:
    """The command line of the template as it stands, with its variables and its credential; the same is left out as
    for the daemon."""
    states, config = _folders(tmp_path)
    state = states / "bayesd-worker" / "w1"
    state.mkdir(parents=True)
    (config / "mqtt-password").write_text("secret\n")
    _give(config, state)
    for folder in (states, state.parent):
        folder.chmod(0o755)                 # as /var/lib is; the sandbox shows no more of it than the way
    with serving(tmp_path) as (daemon, wire):
        wire.create("s1", budget={"trials": 2})
        variables = {"STUDY": "s1", "COMMAND": "/bin/echo {x}"}
        line = sandbox.settings(UNITS / "bayesd-worker@.service")["ExecStart"][0]
        for name, value in (("%i", "w1"), ("%S", str(states)), ("%d", str(config)), ("${STUDY}", variables["STUDY"]),
                            ("$COMMAND", variables["COMMAND"])):
            line = line.replace(name, value)
        errors = tmp_path / "errors"
        with errors.open("wb") as stderr:
            worker = subprocess.Popen(
                _sandboxed("bayesd-worker@.service", state, config, sys.executable, "-m", "bayesd.cli",
                           *line.split()[1:]), cwd=state, stderr=stderr,
                env=_environment(state, config) | {"BAYESD_BROKER": f"mqtt://w1@{wire.host}:{wire.port}"})
        try:
            wire.until(lambda: (wire.study("s1") or {}).get("state") == "closed", "two trials are told")
            worker.terminate()
            assert worker.wait(30) == 0, errors.read_text()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        told = [each for each in daemon.events() if each["type"] == "trial.completed"]
    assert len(told) == 2
    assert {each["actor"] for each in told} == {"worker/w1"}
